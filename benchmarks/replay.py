"""How much faster is replay than live decoding? Ratios in one run, same prompts, same drafters, T = 0.

    python benchmarks/replay.py --run RUN --run RUN ...        finished DFlash runs of one target; about ten minutes

Live: every request decoded with batch size 1. Replay: trajectories already cached; and, for all drafters together, the
one-time generation of the trajectories included. Writes benchmarks/replay.json; `--repeat` runs, medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.records import Measurement
from specauf_cli.config import compose
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, decode_all
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.evaluation.replay import batches, replay
from specauf_cli.models import checkpoint
from specauf_cli.session import open_session
from specauf_cli.store import layout
from specauf_cli.store.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--run", action="append", required=True, help="id or folder; may be repeated")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/replay.json")
    options = parser.parse_args()
    measurement = Measurement("python benchmarks/replay.py --run RUN ...")
    folders = layout.find(Path(options.runs), options.run, every=False)
    config = compose.compose([*layout.about_of(folders[0])["overrides"], f"runs={options.runs}"])
    session = open_session(config)
    target, settings = session.target, config.evaluation
    drafters = {f.name: checkpoint.load(f / "drafter", target, config.backbone) for f in folders}
    prompts = load_benchmarks(config)
    tail = config.backbone.block_size + 1

    def generate() -> list[trajectories.Generated]:
        return [
            trajectories.generate(
                target,
                p.prompts,
                temperature=0.0,
                seed=0,
                max_new_tokens=settings.max_new_tokens,
                tail=tail,
                batch_size=settings.batch_size,
            )
            for p in prompts
        ]

    made = [t for g in generate() for t in g.trajectories]  # also warms up
    replayed = partial(replay, target, trajectories=made, batch_size=settings.batch_size)
    live = partial(decode_all, target, requests=made, temperature=0.0, seed=0, max_new_tokens=settings.max_new_tokens)
    seconds: dict[str, list[float]] = {"generate": [], "replay, one drafter": [], "live, one drafter": []}
    first = next(iter(drafters.values()))
    for _ in range(options.repeat):
        seconds["generate"].append(timed(generate))
        seconds["replay, one drafter"].append(timed(partial(replayed, drafter=first)))
        seconds["live, one drafter"].append(timed(partial(live, Drafted(target, first))))
    # Where a replay's time goes: the target's pass and the drafter's context, the rest is drafting.
    proposals = first.backbone.proposals
    with torch.no_grad():
        context = timed(
            lambda: [
                first.context(target.features(tokens))
                for _, tokens in batches(target, made, proposals, settings.batch_size)
            ]
        )
    # All drafters, once each: the cost of live decoding depends on a drafter's tau.
    replay_all = sum(timed(partial(replayed, drafter=d)) for d in drafters.values())
    live_all = sum(timed(partial(live, Drafted(target, d))) for d in drafters.values())
    median = {k: statistics.median(v) for k, v in seconds.items()}
    result = {
        "profile": config.profile.name,
        "requests": len(made),
        "tokens": sum(t.length for t in made),
        "drafters": list(drafters),
        "seconds": {k: [round(x, 2) for x in v] for k, v in seconds.items()}
        | {"of one replay: target pass and context": round(context, 2)}
        | {"live, all drafters": round(live_all, 2), "replay, all drafters": round(replay_all, 2)},
        "ratios": {
            "live / replay, one drafter, trajectories cached": round(
                median["live, one drafter"] / median["replay, one drafter"], 1
            ),
            "live / (generate + replay), all drafters": round(live_all / (median["generate"] + replay_all), 1),
        },
    }
    write_json(Path(options.out), measurement.record(str(target.device), torch.get_num_threads(), **result))
    print(json.dumps(result["ratios"], indent=1))


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
