"""Tokens a second and the cost of a round: `specauf speed` for drafters that are at hand.

    python benchmarks/speed.py --run RUN --run RUN ...      finished runs of one target

Writes benchmarks/speed.json and speed.md.

Every method decodes the same requests in random order, and single rounds are timed alone, at batch sizes 1 and 8.
"""

import argparse
from pathlib import Path

from specauf_cli.store import layout
from specauf_cli.store.speed import SPEED
from specauf_cli.study.speed import Elsewhere, SpeedOptions, measure_speed, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, help="id or folder; may be repeated")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed.json"))
    options = parser.parse_args()
    folders = layout.find(Path(options.runs), options.run, every=False)
    what = SpeedOptions(options.prompts, options.repeats, options.repetitions, (1, 8), None, (5, 2))
    record = measure_speed(folders, what, [f"threads={options.threads}", f"runs={options.runs}"], "all")
    SPEED.save(record, options.out)
    print(write_page(record, options.out, Elsewhere()))


if __name__ == "__main__":
    main()
