"""Progress of long work on stderr: a bar with ETA and live numbers on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between lines when stderr is not a terminal."""


@contextmanager
def track(name: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yields ``show(done, text)``: ``done`` of ``total`` steps are finished, ``text`` holds the live numbers.

    Without a terminal the last step always prints, and work shorter than ten seconds prints nothing else.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, completed=start, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)
        return
    began = last = time.perf_counter()

    def show(done: int, text: str) -> None:
        nonlocal last
        if time.perf_counter() - last < EVERY and done < total:
            return
        last = time.perf_counter()
        left = (last - began) / max(1, done - start) * (total - done)
        print(f"{name}: {done}/{total}{f' · {text}' if text else ''} · {left:.0f} s left", file=sys.stderr, flush=True)

    yield show
