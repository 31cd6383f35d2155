"""Where the target of a run is, for tools that run in another folder, and the target itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specauf_cli.config import compose
from specauf_cli.config.identity import is_local
from specauf_cli.config.overrides import key_of
from specauf_cli.errors import InputError
from specauf_cli.models.target import Target, load
from specauf_cli.store import layout, trust
from specauf_cli.store.layout import about_of
from specauf_cli.training import pretrain

NAMING = ("profile", "target", "target.name", "target.path", "target.revision", "data_root")
"""Settings that say which target a run was trained for."""

LOADING = (
    *NAMING,
    "target.taps",
    "target.dtype",
    "target.mask_token",
    "target.chat_template",
    "target.trust_remote_code",
)
"""Settings that say how it is loaded, too."""

FROM_THE_USER = ("target.path", "target.trust_remote_code")
"""Settings of a target that the user can give in place of those that a run folder from elsewhere may not bring."""


def target_path(folder: Path, given: Sequence[str] = ()) -> str:
    """Hub id, or absolute path, of the target that a run was trained for.

    ``given``: ``target.path=`` as the user names it. Errors: InputError when it was trained here and is gone, or when a
    run folder from elsewhere names a path.
    """
    about = about_of(folder)
    named = any(key_of(word) == "target.path" for word in given)
    if named or about["config"]["target"].get("path") is not None:  # a folder is named by the run's own words alone
        words = [*trust.overrides_of(folder, given, only=NAMING), *given]
        return absolute(str(compose.compose(words).target.path))
    targets = layout.targets(folder.parent)
    for place in sorted(p.parent for p in targets.glob(f"*/{pretrain.MARKER}")):
        if pretrain.describe(str(place)).get("fingerprint") == about["inputs"].get("target"):
            return absolute(str(place))
    raise InputError(f"the target of run {folder.name} is not under {targets}/ any more")


def opened(folder: Path, given: Sequence[str] = ()) -> Target:
    """The target that a run was trained for, on the CPU; ``given``: ``FROM_THE_USER`` as the user names them.

    Errors: InputError when it cannot be loaded, is another one than the run's, or for what ``target_path`` refuses.
    """
    path, expected = target_path(folder, given), str(about_of(folder)["inputs"].get("target"))
    words = [*trust.overrides_of(folder, given, only=LOADING), *given]
    config = replace(compose.compose(words).target, path=path, device_map=None)
    commit = expected.partition("+")[0]
    if len(commit) == 40 and not Path(path).is_dir():  # a model of the hub: its branch may have moved since
        config = replace(config, revision=commit)
    target = load(config, device="cpu")
    if target.fingerprint != expected:
        raise InputError(
            f"run {folder.name} was trained for target {expected}, and {path} is {target.fingerprint}: give the same "
            "one, target.path=PATH"
        )
    return target


def absolute(path: str) -> str:
    """A folder as its absolute path; a hub id as it is."""
    return str(Path(path).expanduser().resolve()) if is_local(path) else path
