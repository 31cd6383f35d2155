"""How often does rounding change a draw at T = 1? By the inverse CDF and by Gumbel noise (``evaluation.draw``).

    python benchmarks/draws.py             needs the laptop target of `make table`; two minutes on 2 cores

The logits of the target's own answers are computed twice in fp32: in one pass over the sequence, and by verification
passes of 16 tokens on a cache, as in live decoding. Both ways of drawing get both logits and the same keyed random
numbers; a draw that differs is a flip. Then the time of one draw, by vocabulary size. Writes benchmarks/draws.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.records import Measurement
from specauf_cli.config import compose
from specauf_cli.config.schema import Draw
from specauf_cli.evaluation.evaluate import load_benchmarks, own_answers
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.models.target import Target
from specauf_cli.session import open_session
from specauf_cli.store.files import write_json
from specauf_cli.types import Trajectory

BLOCK = 16
NAMES: dict[Draw, str] = {"inverse_cdf": "inverse CDF", "gumbel": "Gumbel"}
FIRST = torch.zeros(1, dtype=torch.long)
VOCABULARIES = (2_048, 32_000, 152_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seeds", type=int, default=20, help="random numbers for every position")
    parser.add_argument("--out", default="benchmarks/draws.json")
    options = parser.parse_args()
    measurement = Measurement(f"python benchmarks/draws.py --seeds {options.seeds}")
    config = compose.compose([f"profile={options.profile}", f"runs={options.runs}"])
    session = open_session(config)
    cache = Path(options.runs) / "trajectories" / session.target.fingerprint[:16]
    draws, flips, gap = 0, dict.fromkeys(NAMES.values(), 0), 0.0
    for prompts in load_benchmarks(config):
        for number, trajectory in enumerate(own_answers(config, session.target, prompts, 1.0, cache).trajectories):
            whole, blocks = both(session.target, trajectory)
            gap = max(gap, float((whole - blocks).abs().max()))
            for seed in range(options.seeds):
                for draw in NAMES:
                    sampler = Sampler(1.0, seed, [str(number)], len(whole), draw)
                    one, other = (sampler.choose(x[None], FIRST, FIRST) for x in (whole, blocks))
                    flips[NAMES[draw]] += int((one != other).sum())
                draws += len(whole)
        print(prompts.name, draws, flips, flush=True)
    result = {
        "profile": options.profile,
        "draws": draws,
        "flips": flips,
        "largest difference of a logit": gap,
        "milliseconds of a draw": {f"{v:,}": cost(v) for v in VOCABULARIES},
    }
    device = str(session.target.device)
    write_json(Path(options.out), measurement.record(device, torch.get_num_threads(), **result))
    print(json.dumps(result["milliseconds of a draw"], indent=1))


@torch.no_grad()
def both(target: Target, t: Trajectory) -> tuple[Tensor, Tensor]:
    """Logits ``[completion tokens, V]`` of an answer: from one pass, and block after block on a cache."""
    tokens = torch.tensor([[*t.prompt, *t.tokens[: t.length - 1]]], device=target.device)
    whole, _ = target.forward(tokens, target.new_cache())
    cache, begin = target.new_cache(), len(t.prompt)
    first, _ = target.forward(tokens[:, :begin], cache, last_only=True)
    pieces = [first[0]]
    while begin < tokens.shape[1]:
        logits, _ = target.forward(tokens[:, begin : begin + BLOCK], cache)
        pieces.append(logits[0])
        begin += BLOCK
    return whole[0, len(t.prompt) - 1 :].float(), torch.cat(pieces).float()


def cost(vocabulary: int, repeat: int = 30) -> dict[str, float]:
    """Milliseconds of one draw, its random numbers included: the median of ``repeat``."""
    logits, found = torch.randn(1, repeat, vocabulary), {}
    for draw in NAMES:
        sampler, times = Sampler(1.0, 0, ["x"], repeat, draw), []
        for i in range(repeat):
            begin = time.perf_counter()
            sampler.choose(logits[:, i : i + 1], FIRST, FIRST + i)
            times.append(time.perf_counter() - begin)
        found[NAMES[draw]] = round(1000 * sorted(times)[repeat // 2], 3)
    return found


if __name__ == "__main__":
    main()
