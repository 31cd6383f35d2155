"""The words of a command line that commands share: overrides, runs, benchmarks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specauf_cli.schema import InputError, nearest

if TYPE_CHECKING:
    from specauf_cli.settings import Config

OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides, e.g. profile=smoke seed=1")
]
RunOption = Annotated[
    list[str] | None, typer.Option(help="Run id or folder; repeatable. Default: the latest finished run.")
]


def overrides_of(words: Sequence[str] | None) -> list[str]:
    """``words`` as overrides. Errors: InputError for a word that is none."""
    for word in words or []:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{word!r} is not an override; write key=value, for example profile=smoke")
    return list(words or [])


def runs_words(overrides: Sequence[str]) -> list[str]:
    """Those of ``overrides`` that name the folder of the runs."""
    return [o for o in overrides if o.lstrip("+").startswith("runs=")]


def runs_folder(overrides: Sequence[str]) -> str:
    """The folder that ``runs=...`` names among ``overrides``. Errors: InputError for an empty one."""
    given = [o.partition("=")[2].strip("'\"") for o in runs_words(overrides)]
    if given and not given[-1]:
        raise InputError("runs= is empty; it names the folder of the runs, for example runs=runs")
    return os.path.expanduser(given[-1]) if given else "runs"


def runs_folder_only(overrides: Sequence[str]) -> str:
    """The same for a command that takes no other setting."""
    for override in overrides:
        if override.partition("=")[0].lstrip("+") != "runs":
            raise InputError(f"{override!r}: this command takes no setting but runs=FOLDER")
    return runs_folder(overrides)


def configs(folder: Path, extra: Sequence[str], benchmarks: str) -> "tuple[Config, Config]":
    """How a run was trained (its data were cleaned of the benchmarks chosen then), and how it is measured now."""
    from specauf_cli import compose, runs, trust

    place = [] if runs_words(extra) else [f"runs={folder.parent}"]
    own, extra = [*trust.overrides_of(folder, extra), *place], list(extra)
    # Answers that were regenerated for its training depend on the evaluation settings of then.
    later = [o for o in extra if o.lstrip("+").startswith(("benchmark=", "benchmark.", "evaluation=", "evaluation."))]
    as_trained = compose.compose([*own, *(o for o in extra if o not in later)])
    runs.check_same_training(as_trained, folder)
    if not later:
        return as_trained, with_benchmarks(as_trained, benchmarks)
    chosen = [o for o in own if not (o.startswith("benchmark=") and any(e.startswith("benchmark=") for e in extra))]
    return as_trained, with_benchmarks(compose.compose([*chosen, *extra]), benchmarks)


def with_benchmarks(config: "Config", names: str) -> "Config":
    """``config`` restricted to the named benchmarks; names outside the profile's own are read from conf/benchmark."""
    from dataclasses import replace

    from specauf_cli import choices, compose

    if names == "all":
        return config
    chosen = {}
    for name in names.split(","):
        if name in chosen:
            raise InputError(f"--benchmarks {names}: {name} is there twice")
        if name == "all":
            raise InputError(f"--benchmarks {names}: all stands alone, it means every benchmark of the profile")
        valid = choices.groups()["benchmark"]
        if name not in valid:
            raise InputError(
                f"unknown benchmark {name!r}; valid: all, {', '.join(v for v in valid if v != 'all')}.{nearest(name, valid)}"
            )
        found = config if name in config.benchmark else compose.compose([f"benchmark={name}"])
        chosen.update({name: found.benchmark[name]} if name in found.benchmark else found.benchmark)
    resolved = {**config.resolved, "benchmark": {n: _plain(b) for n, b in chosen.items()}}
    return replace(config, benchmark=chosen, resolved=resolved)


def _plain(benchmark: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(benchmark)  # type: ignore[call-overload, no-any-return]
