"""How much faster is replay than live decoding? Ratios in one run, same prompts, same drafters, T = 0.

    python benchmarks/replay.py --run RUN --run RUN ...   finished DFlash runs of one target; up to half an hour

Live: every request decoded with batch size 1. Replay: trajectories already cached; and, for all drafters together, the
one-time generation of the trajectories included. The limit of a replay: one pass of the target (and the drafter's
context) over all tokens, and one draft for every round, timed with all rounds of a batch at once. Writes
benchmarks/replay.json; `--repeat` runs, medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import Measurement
from specauf_cli.config import compose
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, decode_all
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.evaluation.replay import STARTS, batches, replay
from specauf_cli.models import checkpoint
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.session import open_session
from specauf_cli.store import layout
from specauf_cli.store.files import write_json
from specauf_cli.types import Trace, Trajectory


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
        limit = limit_of(target, first, made, replayed(drafter=first), settings.batch_size)
        for name, took in zip(("limit: target's pass and context", "limit: a draft per round"), limit, strict=True):
            seconds.setdefault(name, []).append(took)
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
        | {"live, all drafters": round(live_all, 2), "replay, all drafters": round(replay_all, 2)},
        "ratios": {
            "live / replay, one drafter, trajectories cached": round(
                median["live, one drafter"] / median["replay, one drafter"], 1
            ),
            "live / (generate + replay), all drafters": round(live_all / (median["generate"] + replay_all), 1),
            "limit / replay, one drafter": round(
                (median["limit: target's pass and context"] + median["limit: a draft per round"])
                / median["replay, one drafter"],
                2,
            ),
        },
    }
    write_json(Path(options.out), measurement.record(str(target.device), torch.get_num_threads(), **result))
    print(json.dumps(result["ratios"], indent=1))


@torch.no_grad()
def limit_of(
    target: Target, drafter: DFlash, made: Sequence[Trajectory], traces: Sequence[Trace], batch_size: int
) -> tuple[float, float]:
    """Seconds of the target's pass with the drafter's context over all tokens, and of one draft for every round."""
    context_seconds = draft_seconds = rounds = drafted = 0.0
    for index, tokens in batches(target, made, drafter.backbone.proposals, batch_size):
        begin = time.perf_counter()
        context = drafter.context(target.features(tokens))
        context_seconds += time.perf_counter() - begin
        starts = [len(made[i].prompt) + np.cumsum([0, *(a + 1 for a in traces[i].accepted[:-1])]) for i in index]
        most = max(map(len, starts))
        anchors = torch.from_numpy(np.stack([np.pad(s, (0, most - len(s)), "edge") for s in starts])).to(tokens.device)
        begin = time.perf_counter()
        for some in anchors.split(STARTS, dim=1):
            drafter.draft(target, context, tokens.gather(1, some), some)
        draft_seconds += time.perf_counter() - begin
        rounds, drafted = rounds + sum(map(len, starts)), drafted + anchors.numel()
    return context_seconds, draft_seconds * rounds / drafted  # without those that only fill a row


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
