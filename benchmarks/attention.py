"""flex_attention against split attention: the drafter's trunk, forward and backward.

    python benchmarks/attention.py --cell device=cuda profile=paper target=qwen3_8b     a part of `make gpu`

One sequence with features of a target given, ``trainer.anchors`` blocks at random places, bf16 autocast over fp32
weights, as in training; the gradient goes into the drafter's weights. Both attentions get the same weights, features
and blocks, and take turns. One that does not fit is listed with its error. On a CPU, where flex_attention has no
backward pass, forward only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from specauf_cli.config import names
from specauf_cli.config.compose import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import first_line
from specauf_cli.models import sizes
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import taps_of
from specauf_cli.runtime.machine import use_machine

ATTENTIONS: tuple[Literal["flex", "split"], ...] = ("flex", "split")
TOKENS = 1000
"""Rows of the embedding: which token a block starts with does not matter to its time."""


class Trunk:
    """A drafter of the configured sizes, and one batch for it: sequence of ``length`` tokens, B = 1."""

    def __init__(self, config: Config, attention: Literal["flex", "split"], length: int, device: str) -> None:
        target, backbone = sizes.of(config.target), replace(config.backbone, attention=attention)
        self.taps = len(taps_of(config.target.taps, target.layers))
        self.width, self.anchors, self.device = target.hidden_size, config.trainer.anchors, torch.device(device)
        with self.device:
            layer = sizes.draft_layer(target, backbone, max_position_embeddings=length + backbone.block_size)
            self.drafter: DFlash = names.backbone(backbone)(layer, backbone, self.taps, 0, **backbone.knobs)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(TOKENS, self.width, generator=generator) * backbone.init_std
        self.target: Any = SimpleNamespace(embed=nn.Embedding.from_pretrained(rows.to(self.device)))
        places = torch.randperm(length - 1, generator=generator)[: self.anchors].sort().values + 1
        self.places = places[None].to(self.device)
        self.tokens = torch.randint(TOKENS, (1, len(places)), generator=generator).to(self.device)
        shape = (1, length, self.taps * self.width)
        self.features = torch.randn(shape, generator=generator).to(self.device, torch.bfloat16)

    def hidden(self) -> Tensor:
        """Final hidden states ``[1, A, K, D]``."""
        with torch.autocast(self.device.type, torch.bfloat16):
            context = self.drafter.context(self.features)
            return self.drafter.hidden(self.target, context, self.tokens, self.places)

    def run(self) -> None:
        """The same, and on a GPU the gradient of their mean square in the drafter's weights."""
        self.drafter.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(self.device.type == "cuda"):
            loss = self.hidden().float().square().mean()
        if loss.requires_grad:
            torch.autograd.backward(loss)
        loss.item()  # waits for a GPU

    def timed(self) -> float:
        """Seconds of ``run``."""
        begin = time.perf_counter()
        self.run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


def cell(overrides: Sequence[str], length: int, repeat: int) -> dict[str, Any]:
    """Seconds and memory of both attentions, their ratio, and how far apart their outputs are."""
    config = compose(overrides)
    device = use_machine(config)
    on_gpu = device.startswith("cuda")
    rows: dict[str, dict[str, Any]] = {}
    trunks: dict[Literal["flex", "split"], Trunk] = {}
    outputs = []
    for attention in ATTENTIONS:
        try:
            trunk = Trunk(config, attention, length, device)
            trunk.drafter.initialise(0)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            first = trunk.timed()
            rows[attention] = {"first": round(first, 3)}  # flex is compiled in it
            with torch.no_grad():
                outputs.append(trunk.hidden().float().cpu())
            if on_gpu:
                rows[attention]["memory, GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
            trunks[attention] = trunk
        except RuntimeError as error:  # out of memory, or a kernel that cannot be compiled here
            rows[attention] = {"error": first_line(error)}
    seconds: dict[Literal["flex", "split"], list[float]] = {attention: [] for attention in trunks}
    for _ in range(repeat):
        for attention, trunk in trunks.items():
            seconds[attention].append(trunk.timed())
    for attention, runs in seconds.items():
        rows[attention] |= {"seconds": round(statistics.median(runs), 5), "slowest": round(max(runs), 5)}
    found: dict[str, Any] = {"length": length, "anchors": config.trainer.anchors, "backward": on_gpu, "rows": rows}
    if len(trunks) == len(ATTENTIONS):
        found["split / flex"] = round(rows["split"]["seconds"] / rows["flex"]["seconds"], 2)
        found["largest difference"] = float(f"{(outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max():.2g}")
    return found | {"threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", action="store_true", required=True, help="print the numbers of these settings")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the sequence")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    print(json.dumps(cell(options.overrides, options.length, options.repeat)))


if __name__ == "__main__":
    main()
