"""Does a corpus larger than memory fit? A JSONL of up to 10 GB, read as a training reads it; the peak of memory.

    python benchmarks/corpus.py       half an hour on 2 cores and 25 GB of disk; writes benchmarks/corpus.json

Every size in a process of its own: a synthetic file of conversations of about 4 kB is written into ``TMPDIR``, then
read, cleaned and split as in every training (``conversations.load``), and up to ``--tokenised`` gigabytes of it are
tokenised for training too (``chat.encode``). Memory is the process's own (RssAnon of /proc/self/status), sampled every
20 ms, beyond that of the process before it reads; mapped pages of files, which the system takes back when memory is
short, are not in it. What a corpus needs in memory is its conversations' indices and lengths.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import records
from benchmarks.records import Measurement
from specauf_cli.config.compose import compose
from specauf_cli.data import chat, conversations, offline
from specauf_cli.errors import InputError
from specauf_cli.store.files import write_json

SIZES = (0.5, 1.0, 10.0)
TURN = 2_400
"""Characters of a message, at most; a conversation has two."""
EVERY = 0.02
"""Seconds between two looks at the memory."""


def texts() -> list[str]:
    """What the words of the file are from, and the tokenizer."""
    return [m.content for c in offline.conversations(500, seed=0).conversations for m in c.messages]


def write_corpus(path: Path, size: int) -> None:
    """Writes conversations of random words until the file has ``size`` bytes."""
    words = sorted({word for text in texts() for word in text.split()})
    generator, count, written = random.Random(0), 0, 0
    pool = [" ".join(generator.choices(words, k=80)) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            question, answer = (" ".join(generator.choices(pool, k=max(1, TURN // len(pool[0])))) for _ in range(2))
            row = {
                "id": f"c{count}",
                "conversations": [
                    {"from": "human", "value": f"{count}: {question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            written += file.write(json.dumps(row) + "\n")
            count += 1


def own_memory() -> float:
    """Memory of this process that no file backs, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@contextmanager
def peak_of(found: dict[str, float], name: str) -> Iterator[None]:
    """Puts the peak of this process's own memory meanwhile into ``found``, beyond that of now, and the seconds."""
    begin, before, done = time.perf_counter(), own_memory(), threading.Event()
    peak = before

    def look() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, own_memory())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    found[f"{name}, MiB"] = round(max(peak, own_memory()) - before)
    found[f"{name}, s"] = round(time.perf_counter() - begin, 1)


def cell(path: Path, tokenised: bool) -> dict[str, float]:
    """Peaks and seconds of reading one file, and of tokenising it."""
    tokenizer = chat.Chat.build(texts(), 2_048)
    config = replace(compose(["profile=laptop"]).data, source="jsonl", path=str(path), limit=None, heldout=256)
    found: dict[str, float] = {"bytes": path.stat().st_size}
    with peak_of(found, "read"):
        train, heldout = conversations.load(config)
    found["conversations"] = len(train.conversations) + len(heldout.conversations)
    if tokenised:
        with peak_of(found, "tokenised"):
            examples, _ = chat.encode(tokenizer, train, max_length=2_048)
        found["examples"] = len(examples)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default=",".join(map(str, SIZES)))
    parser.add_argument("--tokenised", type=float, default=0.5, help="gigabytes up to which a file is tokenised too")
    parser.add_argument("--out", default="benchmarks/corpus.json")
    parser.add_argument("--cell", type=Path, help="one file, in this process")
    parser.add_argument("--encode", action="store_true", help="of a cell: tokenise it too")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options.cell, options.encode)))
        return 0
    return records.status_of("corpus.py", lambda: measure(options), "nothing was written")


def measure(options: argparse.Namespace) -> int:
    """Every size, one after the other. Errors: InputError for too little space."""
    measurement = Measurement(
        f"python benchmarks/corpus.py --gigabytes {options.gigabytes} --tokenised {options.tokenised:g}"
    )
    rows = []
    for size in map(float, options.gigabytes.split(",")):
        needed, free = 2.5e9 * size, shutil.disk_usage(tempfile.gettempdir()).free
        if free < needed:
            raise InputError(
                f"{size:g} GB need {needed / 1e9:.0f} GB in {tempfile.gettempdir()}; {free / 1e9:.0f} GB are free"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus.jsonl"
            write_corpus(path, int(size * 1e9))
            words = ["--cell", str(path), *(["--encode"] if size <= options.tokenised else [])]
            rows.append({"gigabytes": size, **records.cell("benchmarks.corpus", words)})
        print(rows[-1], flush=True)
    write_json(Path(options.out), measurement.record("cpu", 1, rows=rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
