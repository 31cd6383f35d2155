"""One training step, ours and that of two public packages: seconds at equal loss.

    python benchmarks/peers.py --python speculators=PYTHON --python specforge=PYTHON      writes benchmarks/peers.json

PYTHON is an interpreter that has the package (one may have both; without the option it is the one that runs this).
Neither is a dependency: their wheels pin other versions of torch, so put them beside the torch of this environment:

    pip install --no-deps speculators specforge, then what their imports ask for

One step: forward, backward and AdamW of a DFlash drafter of the laptop profile (2 layers, width 128, 3 taps, B = 16) on
16 sequences of 256 tokens with 8 anchors each; the target's features are given, its embedding and head are frozen; the
objective is decay with one gamma (D-PACE is theirs alone and left out). Everyone gets the same weights (copied by
tensor name), tokens, supervision, features, threads, allocator settings, precision and optimiser. A run is a process of
its own. Every setting that a peer offers for this is tried first, and its fastest one is what it is measured with; a
setting that fails is listed with its error.

Equal loss: on the same anchors, with the same labels, loss and gradient of both are compared with ours, in fp32 and
bf16.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VOCABULARIES = (2_048, 32_000, 152_000)
PRECISIONS = ("bf16", "fp32")
SEQUENCES, LENGTH, WIDTH, TAPS, MASK = 16, 256, 128, 3, 1
ANSWER = slice(32, 240)
"""Supervised tokens of every sequence: a question before, the end of a template behind. No block reaches the next
sequence."""
GOAL = 1.3
WARMUP = 3

CONTESTANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {"as it is": {}},
    "ours, labels from the target": {"as it is": {"labels": "target"}},
    "speculators": {
        f"{attention}, {layout}": {"attention": attention, "layout": layout}
        for attention in ("simple_flex_attention", "sdpa", "eager")
        for layout in ("packed", "one by one")
    },
    "specforge": {
        f"{attention}, objective_chunk_blocks={chunk}": {"attention": attention, "chunk": chunk}
        for attention in ("flex_attention", "sdpa", "eager")
        for chunk in (128, 0)
    },
    "specforge, bf16 weights": {"sdpa, objective_chunk_blocks=0": {"attention": "sdpa", "chunk": 0, "weights": "bf16"}},
}
NOTES = {
    "ours": "Step of training/drafter.py: auto head, auto attention; draws its anchors. Loss: sum m c l / sum m c.",
    "ours, labels from the target": (
        "trainer.labels=target: labels are the argmax of the target's head on its last hidden states (given), found "
        "in the step; what speculators always does."
    ),
    "speculators": (
        "DFlashDraftModel.forward with per_position_loss_weight=fixed-exp-decay, loss ce, --loss-implementation eager "
        "(the default one is Triton, for GPUs). Draws its anchors: 128 in a packed sequence of 4,096 tokens with "
        "document ids, or 8 in each of 16 passes. Its labels are the argmax of the target's logits, a second product "
        "with the head in every step; the last hidden states given here make that argmax the data token. Its loss is "
        "sum m c l / (sum m + 1e-5): ours for the comparison of losses is trainer.normalize=valid."
    ),
    "specforge": (
        "OnlineDFlashModel.forward with loss_type=dflash and loss_decay_gamma. Draws its anchors, 8 a sequence. "
        "Labels are the data tokens and the loss is sum m c l / sum m c, as ours. objective_chunk_blocks=128 is its "
        "default and computes the head again in the backward pass, 0 does not."
    ),
    "specforge, bf16 weights": (
        "The same with weights, gradients and optimiser state in bf16, as its trainer holds them (beside fp32 copies, "
        "left out here). Another precision than everyone else's, so it does not count for the goal."
    ),
}
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""What ``specauf`` tells glibc (machine.py), told to everyone."""


class Given:
    """What everyone gets: the file that ``prepare`` wrote."""

    def __init__(self, path: Path, precision: str) -> None:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        self.sizes, self.gamma, self.block, self.count = (about[k] for k in ("sizes", "gamma", "block", "anchors"))
        self.precision = precision
        tensors = load_file(path)
        self.tokens, self.supervised, self.anchors = (tensors.pop(k) for k in ("tokens", "supervised", "anchors"))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.features, self.last = (tensors.pop(k).to(dtype) for k in ("features", "last"))
        self.head = tensors.pop("head")
        self.drafter = tensors

    @property
    def vocabulary(self) -> int:
        return len(self.head)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


class Contestant:
    """A module with its parameters; ``step`` leaves the gradient of a batch in them and returns the loss."""

    def __init__(self, module: nn.Module, step: Callable[[int], Tensor], fix: Callable[[], None]) -> None:
        self.module, self.step, self.fix = module, step, fix
        """``fix``: from now on the anchors are those given, not drawn."""

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]


def prepare(path: Path, vocabulary: int) -> None:
    """Writes the batch, the target's part and the drafter's weights."""
    from transformers import Qwen3Config

    from specauf_cli.config.compose import compose
    from specauf_cli.models.blocks import sample_anchors, valid_anchors
    from specauf_cli.models.dflash import DFlash

    config = compose(["profile=laptop", "objective=decay"])
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": config.backbone.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }
    drafter = DFlash(Qwen3Config(**sizes), config.backbone, TAPS, MASK)
    drafter.initialise(0)
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(vocabulary, WIDTH, generator=generator) * 0.05
    tokens = torch.randint(2, vocabulary, (SEQUENCES, LENGTH), generator=generator)
    supervised = torch.zeros(SEQUENCES, LENGTH, dtype=torch.bool)
    supervised[:, ANSWER] = True
    last = head[tokens].roll(-1, dims=1)  # the target's argmax at a position is the next token of the data
    for precision in (torch.float32, torch.bfloat16):
        found = F.linear(F.rms_norm(last[:, :-1].to(precision), (WIDTH,)), head.to(precision)).argmax(dim=-1)
        assert torch.equal(found, tokens[:, 1:])
    anchors, real = sample_anchors(valid_anchors(supervised), config.trainer.anchors, generator)
    assert bool(real.all())
    about = {
        "sizes": sizes,
        "gamma": config.objective.base[0].knobs["gamma"],
        "block": config.backbone.block_size,
        "anchors": config.trainer.anchors,
    }
    features = torch.randn(SEQUENCES, LENGTH, TAPS * WIDTH, generator=generator)
    tensors = {"tokens": tokens, "supervised": supervised, "anchors": anchors, "features": features, "last": last}
    save_file(tensors | {"head": head} | drafter.state_dict(), path, metadata={"about": json.dumps(about)})


def ours(given: Given, *, labels: str = "data", normalize: str = "credit") -> Contestant:
    from transformers import Qwen3Config

    from specauf_cli.config.compose import compose
    from specauf_cli.models.dflash import DFlash
    from specauf_cli.training import drafter as training
    from specauf_cli.types import Example

    config = compose(
        [
            "profile=laptop",
            "objective=decay",
            f"trainer.precision={given.precision}",
            f"trainer.labels={labels}",
            f"trainer.normalize={normalize}",
        ]
    )
    made = DFlash(Qwen3Config(**given.sizes), config.backbone, TAPS, MASK)
    made.load_state_dict(given.drafter)

    def head(hidden: Tensor) -> Tensor:
        return F.linear(hidden, given.head)

    def greedy_labels(tokens: Tensor) -> Tensor:
        with torch.no_grad(), given.autocast():
            found = head(F.rms_norm(given.last[:, :-1], (WIDTH,))).argmax(dim=-1)
        return torch.cat([tokens[:, :1], found], dim=1)

    target = SimpleNamespace(
        device=torch.device("cpu"),
        chat=SimpleNamespace(vocab=given.vocabulary, pad_id=0),
        head=head,
        embed=nn.Embedding.from_pretrained(given.head),
        greedy_labels=greedy_labels,
    )
    examples = [
        Example(str(i), tuple(t.tolist()), tuple(s.tolist()))
        for i, (t, s) in enumerate(zip(given.tokens, given.supervised, strict=True))
    ]
    features = SimpleNamespace(
        with_last=False, begin=lambda _: None, ahead=lambda _: None, of=lambda _: (given.features, None)
    )
    step = training.Step(config, target, made, examples, features)  # type: ignore[arg-type]
    step.order = SimpleNamespace(batch=lambda _: list(range(SEQUENCES)))  # type: ignore[assignment]

    def fix() -> None:
        real = torch.ones_like(given.anchors, dtype=torch.bool)
        training.sample_anchors = lambda *_: (given.anchors, real)

    return Contestant(made, lambda i: step(i).loss, fix)


def speculators(given: Given, *, attention: str, layout: str) -> Contestant:
    from speculators.losses import resolve_loss_config
    from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig, core
    from transformers import Qwen3Config

    config = DFlashSpeculatorConfig(
        transformer_layer_config=Qwen3Config(**given.sizes),
        draft_vocab_size=given.vocabulary,
        block_size=given.block,
        aux_hidden_state_layer_ids=list(range(1, TAPS + 1)),
        mask_token_id=MASK,
        sample_from_anchor=False,
    )
    config.transformer_layer_config._attn_implementation = attention
    model = DFlashDraftModel(config).train()
    owned = dict.fromkeys(("embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight"), given.head)
    model.load_state_dict(given.drafter | owned | {"verifier_norm.weight": torch.ones(WIDTH)})
    batch = {
        "hidden_states": given.features,
        "input_ids": given.tokens,
        "loss_mask": given.supervised,
        "verifier_last_hidden_states": given.last,
        "document_ids": torch.arange(SEQUENCES)[:, None].expand(-1, LENGTH),
        "position_ids": torch.arange(LENGTH).expand(SEQUENCES, -1),
    }
    pieces = 1 if layout == "packed" else SEQUENCES
    batch = {k: v.reshape(pieces, 1, -1, *v.shape[2:]) for k, v in batch.items()}
    knobs = {
        "loss_config": resolve_loss_config("ce", "eager"),
        "gamma": given.gamma,
        "max_anchors": SEQUENCES * given.count // pieces,
        "per_position_loss_weight": "fixed-exp-decay",
    }

    def step(_: int) -> Tensor:
        total = torch.zeros(())
        for i in range(pieces):
            with given.autocast():
                loss = model(**{k: v[i] for k, v in batch.items()}, **knobs)[1] / pieces
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def fix() -> None:
        packed = (given.anchors + LENGTH * torch.arange(SEQUENCES)[:, None]).flatten()
        core.select_anchors = lambda *_: (packed, torch.ones_like(packed, dtype=torch.bool))

    return Contestant(model, step, fix)


def specforge(given: Given, *, attention: str, chunk: int, weights: str = "fp32") -> Contestant:
    from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel
    from specforge.modeling.draft.dflash import DFlashDraftModel
    from transformers import Qwen3Config

    config = Qwen3Config(
        **given.sizes,
        block_size=given.block,
        num_target_layers=TAPS + 1,
        dflash_config={"target_layer_ids": list(range(TAPS)), "mask_token_id": MASK},
    )
    config._attn_implementation = attention
    draft = DFlashDraftModel(config)
    draft.load_state_dict(given.drafter)
    head = nn.Linear(WIDTH, given.vocabulary, bias=False).requires_grad_(False)
    head.weight = nn.Parameter(given.head, requires_grad=False)
    model = OnlineDFlashModel(
        draft,
        head,
        nn.Embedding.from_pretrained(given.head),
        MASK,
        given.block,
        attention,
        given.count,
        float(given.gamma),
        chunk,
    ).train()
    if weights == "bf16":
        model.to(torch.bfloat16)
    loss_mask = given.supervised.float()

    def step(_: int) -> Tensor:
        with given.autocast() if weights == "fp32" else nullcontext():
            loss = model(given.tokens, given.features, loss_mask)[0]
        torch.autograd.backward(loss)
        return loss.detach()

    def fix() -> None:
        model._sample_anchor_positions = lambda *_: (given.anchors, torch.ones_like(given.anchors, dtype=torch.bool))

    return Contestant(draft, step, fix)


MAKERS: dict[str, Callable[..., Contestant]] = {"ours": ours, "speculators": speculators, "specforge": specforge}


def timed(made: Contestant, steps: int) -> dict[str, Any]:
    """Median seconds of a step, on the clock and of all threads, and by how much the process grew with the steps
    (MiB)."""
    optimizer = torch.optim.AdamW([p for _, p in made.parameters()], lr=1e-4, fused=True)
    before, seconds, busy = peak_memory_mib(), [], []
    for i in range(WARMUP + steps):
        begin, begin_busy = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = made.step(i)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
        busy.append(time.process_time() - begin_busy)
    return {
        "seconds": round(statistics.median(seconds[WARMUP:]), 4),
        "cpu seconds": round(statistics.median(busy[WARMUP:]), 4),
        "memory": round(peak_memory_mib() - before),
        "last loss": round(float(loss), 4),
    }


def checked(made: Contestant, out: Path) -> dict[str, Any]:
    """The loss on the anchors given; its gradient goes to ``out``."""
    made.fix()
    loss = made.step(0)
    save_file({n: p.grad for n, p in made.parameters() if p.grad is not None}, out)
    return {"loss": float(loss)}


def peak_memory_mib() -> float:
    """Peak resident memory of this process; ru_maxrss would count its parent's, from before the interpreter started."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process: what the parent asked for, or the error in one line."""
    order = json.loads(options.work)
    torch.set_num_threads(order["threads"])
    torch.manual_seed(order["seed"])
    try:
        made = MAKERS[order["package"]](Given(Path(order["file"]), order["precision"]), **order["knobs"])
        found = checked(made, Path(order["check"])) if order["check"] else timed(made, order["steps"])
    except Exception as error:  # whatever a peer raises is a result
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return found


def versions(package: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in dict.fromkeys(("torch", "transformers", package)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


class Parent:
    """Starts the runs."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.python = dict(word.split("=", 1) for word in options.python)
        self.runs = 0

    def interpreter(self, package: str) -> str:
        return str(self.python.get(package, sys.executable))

    def start(self, package: str, words: Iterable[str]) -> Any:
        words = [self.interpreter(package), __file__, *words]
        try:
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | ALLOCATOR, check=False)
        except OSError as error:
            return {"error": f"the interpreter given for {package}: {error.strerror}"}
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            lines = done.stderr.strip().splitlines() or ["nothing was printed"]
            return {"error": f"exit status {done.returncode}: {lines[-1][:300]}"}

    def run(
        self, who: str, knobs: dict[str, Any], vocabulary: int, precision: str, steps: int, check: Path | None = None
    ) -> dict[str, Any]:
        package = who.split(",")[0]
        self.runs += 1
        order = {
            "package": package,
            "knobs": knobs,
            "file": str(self.folder / f"{vocabulary}.safetensors"),
            "precision": precision,
            "steps": steps,
            "threads": self.options.threads,
            "seed": self.runs,
            "check": str(check) if check else None,
        }
        found: dict[str, Any] = self.start(package, ["--work", json.dumps(order)])
        return found

    def settings(self, vocabulary: int, precision: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Every contestant's settings tried once, with a few steps."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for who, settings in CONTESTANTS.items():
            if who == "specforge, bf16 weights" and precision != "bf16":
                continue
            found[who] = {}
            for name, knobs in settings.items():
                found[who][name] = self.run(who, knobs, vocabulary, precision, max(2, self.options.steps // 3))
                print(f"  {who}, {name}: {found[who][name]}", flush=True)
        return found

    def losses(self, vocabulary: int) -> dict[str, Any]:
        """Loss and gradient of every peer beside ours with the same normalisation, on the same anchors."""
        rows: dict[str, Any] = {}
        for peer, normalize, setting in (
            ("specforge", "credit", "sdpa, objective_chunk_blocks=0"),
            ("speculators", "valid", "sdpa, packed"),
        ):
            rows[peer] = {"setting": setting, "ours": f"trainer.normalize={normalize}"}
            files = self.folder / "ours.safetensors", self.folder / "theirs.safetensors"
            for precision in PRECISIONS:
                mine = self.run("ours", {"normalize": normalize}, vocabulary, precision, 1, files[0])
                theirs = self.run(peer, CONTESTANTS[peer][setting], vocabulary, precision, 1, files[1])
                if "error" in mine or "error" in theirs:
                    rows[peer][precision] = {"ours": mine, "theirs": theirs}
                    continue
                a, b = load_file(files[0]), load_file(files[1])
                assert set(a) == set(b), "the trainable tensors differ"
                apart = {n: float((a[n] - b[n]).double().norm()) for n in a}
                norms = {n: float(a[n].double().norm()) for n in a}
                rows[peer][precision] = {
                    "our loss": mine["loss"],
                    "their loss": theirs["loss"],
                    "relative difference": _short(abs(theirs["loss"] / mine["loss"] - 1)),
                    "of the gradient": _short(_norm(apart.values()) / _norm(norms.values())),
                    "of the gradient, worst tensor": _short(max(apart[n] / norms[n] for n in a)),
                }
            print(f"equal loss, V = {vocabulary:,}, {peer}: {json.dumps(rows[peer])}", flush=True)
        return rows


def _short(number: float) -> float:
    return float(f"{number:.2g}")


def _norm(parts: Iterable[float]) -> float:
    return float(sum(x * x for x in parts) ** 0.5)


def cell(parent: Parent, vocabulary: int, precision: str) -> dict[str, Any]:
    """Everyone at one vocabulary and precision: settings, medians of the runs, ratios, and the load meanwhile."""
    from specauf_cli.store.provenance import Watch

    watch = Watch()
    tried = parent.settings(vocabulary, precision)
    close: list[tuple[str, str]] = []  # settings within a quarter of their contestant's fastest are all measured
    for who, settings in tried.items():
        seconds = {n: t["seconds"] for n, t in settings.items() if "error" not in t}
        close += [(who, n) for n, s in seconds.items() if s <= 1.25 * min(seconds.values())]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in close}
    for _ in range(parent.options.repeat):
        for who, name in close:
            found = parent.run(who, CONTESTANTS[who][name], vocabulary, precision, parent.options.steps)
            if "error" in found:
                raise RuntimeError(f"{who}, {name}: ran at first, then {found['error']}")
            runs[who, name].append(found)
    rows: dict[str, Any] = {}
    for who, settings in tried.items():
        rows[who] = {"cannot run": {n: t["error"] for n, t in settings.items() if "error" in t}}
        medians = {n: _median(runs[w, n], "seconds") for w, n in close if w == who}
        if not medians:
            continue
        name = min(medians, key=lambda n: medians[n])
        rows[who] = {
            "setting": name,
            "seconds": round(medians[name], 4),
            "runs": [r["seconds"] for r in runs[who, name]],
            "cpu seconds": round(_median(runs[who, name], "cpu seconds"), 4),
            "tokens per second": round(SEQUENCES * LENGTH / medians[name]),
            "memory": round(_median(runs[who, name], "memory")),
            "other settings": {
                n: medians.get(n, t.get("seconds")) for n, t in settings.items() if "error" not in t and n != name
            },
            **rows[who],
        }
    made = {"vocabulary": vocabulary, "precision": precision, "rows": rows, "ratios": ratios_of(rows)}
    made["load"] = asdict(watch.load())
    print(table(made), flush=True)
    return made


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def ratios_of(rows: dict[str, Any]) -> dict[str, Any]:
    """The faster peer against ours, beside the goal, and every other pair that says something."""
    peers = {who: rows[who] for who in ("speculators", "specforge") if "seconds" in rows[who]}
    mine = rows["ours"]
    if not peers or "seconds" not in mine:
        return {"faster peer": None, "why": "nothing to compare: see what cannot run"}
    faster = min(peers, key=lambda who: peers[who]["seconds"])
    ratio = round(peers[faster]["seconds"] / mine["seconds"], 2)
    found: dict[str, Any] = {
        "faster peer": faster,
        "faster peer / ours": ratio,
        "goal": GOAL,
        "reached": ratio >= GOAL,
        "each run": [round(a / b, 2) for a, b in zip(peers[faster]["runs"], mine["runs"], strict=True)],
        "cpu seconds": round(peers[faster]["cpu seconds"] / mine["cpu seconds"], 2),
    }
    pairs = [(who, "ours") for who in peers]
    pairs += [("speculators", "ours, labels from the target"), ("specforge, bf16 weights", "ours")]
    for a, b in pairs:
        if "seconds" in rows.get(a, {}) and "seconds" in rows[b]:
            found[f"{a} / {b}"] = round(rows[a]["seconds"] / rows[b]["seconds"], 2)
    return found


def table(made: dict[str, Any]) -> str:
    lines = [f"V = {made['vocabulary']:,}, {made['precision']}"]
    for who, row in made["rows"].items():
        if "seconds" in row:
            lines.append(f"  {who:29} {row['seconds']:8.4f} s  {row['memory']:6} MiB  {row['setting']}")
        else:
            lines.append(f"  {who:29} cannot run on this machine's CPU")
        lines += [f"    {name} cannot run: {error}" for name, error in row["cannot run"].items()]
    ratios = made["ratios"]
    if ratios["faster peer"]:
        reached = "reached" if ratios["reached"] else "missed"
        lines.append(f"  {ratios['faster peer']} / ours: {ratios['faster peer / ours']:.2f} (goal {GOAL}: {reached})")
    return "\n".join(lines)


def command(options: argparse.Namespace) -> str:
    """The command without paths of this machine."""
    return (
        f"python benchmarks/peers.py --repeat {options.repeat} --steps {options.steps} --threads {options.threads} "
        f"--vocabularies {options.vocabularies} --precisions {options.precisions}"
    ) + "".join(f" --python {word.partition('=')[0]}=PYTHON" for word in options.python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs of everyone in every cell, in turn")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vocabularies", default=",".join(map(str, VOCABULARIES)))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    parser.add_argument("--out", default="benchmarks/peers.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--versions", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work or options.versions:
        print(json.dumps(work(options) if options.work else versions(options.versions)))
        return

    from benchmarks.records import Measurement
    from specauf_cli.store.files import write_json

    measurement = Measurement(command(options))
    with tempfile.TemporaryDirectory() as name:
        parent = Parent(options, Path(name))
        used = {package: parent.start(package, ["--versions", package]) for package in ("speculators", "specforge")}
        cells, losses = [], {}
        for vocabulary in map(int, options.vocabularies.split(",")):
            prepare(parent.folder / f"{vocabulary}.safetensors", vocabulary)
            losses[f"V = {vocabulary}"] = parent.losses(vocabulary)
            cells += [cell(parent, vocabulary, precision) for precision in options.precisions.split(",")]
    result = {
        "goal": f"seconds of a step, the faster peer / ours, at least {GOAL} at equal loss",
        "step": {
            "sequences": SEQUENCES,
            "length": LENGTH,
            "supervised": ANSWER.stop - ANSWER.start,
            "anchors": 8,
            "B": 16,
            "layers": 2,
            "width": WIDTH,
            "taps": TAPS,
            "gamma": 7,
        },
        "how": NOTES,
        "cells": cells,
        "equal loss": losses,
        "versions": used,
    }
    write_json(Path(options.out), measurement.record("cpu", options.threads, **result))


if __name__ == "__main__":
    main()
