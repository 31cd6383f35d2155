"""Where the target of a run is, for tools that run in another folder."""

from collections.abc import Sequence
from pathlib import Path

from specauf_cli.config import compose
from specauf_cli.config.identity import is_local
from specauf_cli.errors import InputError
from specauf_cli.store import layout, trust
from specauf_cli.store.layout import about_of
from specauf_cli.training import pretrain

NAMING = ("profile", "target", "target.name", "target.path", "target.revision", "data_root")
"""Settings that say which target a run was trained for."""


def target_path(folder: Path, given: Sequence[str] = ()) -> str:
    """Hub id, or absolute path, of the target that a run was trained for.

    ``given``: ``target.path=`` as the user names it. Errors: InputError when it was trained here and is gone, or when a
    run folder from elsewhere names a path.
    """
    about = about_of(folder)
    if about["config"]["target"].get("path") is not None:  # a folder is named by the run's own words alone
        words = [*trust.overrides_of(folder, given, only=NAMING), *given]
        return absolute(str(compose.compose(words).target.path))
    targets = layout.targets(folder.parent)
    for place in sorted(p.parent for p in targets.glob(f"*/{pretrain.MARKER}")):
        if pretrain.describe(str(place)).get("fingerprint") == about["inputs"].get("target"):
            return absolute(str(place))
    raise InputError(f"the target of run {folder.name} is not under {targets}/ any more")


def absolute(path: str) -> str:
    """A folder as its absolute path; a hub id as it is."""
    return str(Path(path).expanduser().resolve()) if is_local(path) else path
