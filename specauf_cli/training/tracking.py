"""Where log lines go besides ``log.jsonl``: a Weights & Biases run, if asked for. Its failures never stop a
training."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from specauf_cli.config.schema import TrackingConfig
from specauf_cli.errors import first_line

Sink = Callable[[Mapping[str, float]], None]
OFF = TrackingConfig("none", None, None)


@contextmanager
def sink(config: TrackingConfig, folder: Path, settings: Mapping[str, Any]) -> Iterator[Sink]:
    """Yields ``log(line)``. The wandb run is named after ``folder``, so a resumed training continues it."""
    if config.sink == "none":
        yield lambda _: None
        return
    failed: list[str] = []

    def give_up(error: BaseException) -> None:
        failed.append(str(error))
        reason = first_line(error)
        print(f"wandb: {reason}; training goes on without it, log.jsonl has everything", file=sys.stderr)

    run: Any = None
    try:
        import wandb

        run = wandb.init(
            project=config.project,
            id=folder.name,
            name=folder.name,
            dir=str(folder),
            mode=config.mode,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )
    except Exception as error:
        give_up(error)

    def log(line: Mapping[str, float]) -> None:
        if run is None or failed:
            return
        try:
            run.log(dict(line), step=int(line["step"]))
        except Exception as error:
            give_up(error)

    try:
        yield log
    finally:
        if run is not None:
            with suppress(Exception):
                run.finish()
