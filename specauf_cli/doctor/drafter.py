"""Checks of the drafter: what a block can see, what its slots predict, whether it fits its target, saving and
loading."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from specauf_cli.doctor.subject import FAIL, OK, Finding, Subject, close
from specauf_cli.errors import InputError
from specauf_cli.evaluation.replay import replay
from specauf_cli.interchange import formats
from specauf_cli.models import blocks, checkpoint
from specauf_cli.models.dflash import Context, DFlash, SlotBySlot
from specauf_cli.models.target import Target
from specauf_cli.store import layout
from specauf_cli.store.files import read_json
from specauf_cli.types import Example, Trajectory

MASKED = "let a block see only context positions strictly before its anchor"


@torch.no_grad()
def leak(subject: Subject) -> Finding:
    """Nothing at or after an anchor changes its block, bit for bit; the state right before it does (SpecForge#470).

    Checked with several blocks in one pass (training) and each alone (decoding), with changed states and with changed
    tokens. A branch that reads the tokens of its block must read none after the slot.
    """
    target, drafter, tokens = subject.target(), subject.drafter(), subject.tokens()
    length = tokens.shape[1]
    anchors = sorted({max(1, length // 4), length // 2, length - 2})
    features = target.features(tokens)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
    noise = noise * (features.float().std() + 1).to(features)

    def block(states: Tensor, at: list[int]) -> Tensor:
        where = torch.tensor([at], device=tokens.device)
        return drafter.hidden(target, drafter.context(states), tokens.gather(1, where), where)

    def changed(first: int, last: int) -> Tensor:
        states = features.clone()
        states[:, first:last] += noise[:, first:last]
        return states

    for at in (anchors, *([a] for a in anchors)):
        before = block(features, at)
        for i, anchor in enumerate(at):
            if not torch.equal(block(changed(anchor, length), at)[:, : i + 1], before[:, : i + 1]):
                reached = [
                    t - anchor
                    for t in range(anchor, length)
                    if not torch.equal(block(changed(t, t + 1), at)[:, : i + 1], before[:, : i + 1])
                ]
                first = f"anchor + {min(reached)}" if reached else "or after the anchor"
                return Finding(FAIL, f"the target state at {first} reaches the block, {len(reached)} do", MASKED)
            if torch.equal(block(changed(anchor - 1, anchor), at)[:, i], before[:, i]):
                return Finding(
                    FAIL,
                    "the target state right before the anchor does not reach the block",
                    "attend over every context position before the anchor; check that fc, k_proj and v_proj are not "
                    "zero",
                )
    return _leak_of_tokens(target, drafter, tokens, anchors)


def _leak_of_tokens(target: Target, drafter: DFlash, tokens: Int[Tensor, "1 T"], anchors: list[int]) -> Finding:
    where = torch.tensor([anchors[1:2]], device=tokens.device)
    anchor, vocab = anchors[1], min(target.chat.vocab, target.model.get_input_embeddings().num_embeddings)
    other = tokens.clone()
    other[:, anchor + 1 :] = (other[:, anchor + 1 :] + 1) % vocab
    features, moved = target.features(tokens), target.features(other)
    if not close(moved[:, : anchor + 1], features[:, : anchor + 1]):
        return Finding(
            FAIL,
            "tokens after a position change the target's state there: its attention is not causal",
            "use a causal language model as target",
        )
    hidden = [drafter.hidden(target, drafter.context(f), tokens.gather(1, where), where) for f in (features, moved)]
    if not close(hidden[1], hidden[0]):
        return Finding(FAIL, "tokens after the anchor reach the block", MASKED)
    previous = blocks.previous_tokens(tokens, where, drafter.slots)[0]
    slots = previous.shape[1]
    before = drafter.logits(target, hidden[0][0], previous)[drafter.branches[-1]]
    for slot in range(1, slots):
        later = previous.clone()
        later[:, slot:] = (later[:, slot:] + 1) % vocab
        after = drafter.logits(target, hidden[0][0], later)[drafter.branches[-1]]
        if not torch.equal(after[:, :slot], before[:, :slot]):
            return Finding(
                FAIL,
                f"slot {slot - 1} reads the token that slot {slot - 1} or a later one is to predict",
                "feed a causal branch the tokens before each slot only",
            )
    branch = f"; branch {drafter.branches[-1]} reads earlier slots only" if len(drafter.branches) > 1 else ""
    return Finding(OK, f"nothing at or after an anchor reaches its block, the state before it does{branch}")


class _Oracle(DFlash):
    """A drafter without weights that proposes, for every slot, the label that training would give it."""

    def __init__(self, of: DFlash, tokens: Int[Tensor, "1 T"]) -> None:
        torch.nn.Module.__init__(self)
        self.backbone, self.first, self.tokens = of.backbone, of.first, tokens

    def context(self, features: Tensor, start: int = 0) -> Context:
        return Context([], [])

    def draft(self, target: Target, context: Context, anchor_tokens: Tensor, anchors: Tensor) -> Tensor:
        everything = torch.ones_like(self.tokens, dtype=torch.bool)
        real = torch.ones_like(anchors, dtype=torch.bool)
        labels, _ = blocks.labels_and_mask(self.tokens, everything, anchors, real, self.slots)
        return labels[:, :, : self.backbone.proposals]

    def slot_by_slot(self, target: Target, context: Context, anchor_tokens: Tensor, anchors: Tensor) -> SlotBySlot:
        drafted = self.draft(target, context, anchor_tokens, anchors).flatten(0, 1)
        return lambda slot, rows, before: drafted[rows, slot]


@torch.no_grad()
def labels(subject: Subject) -> Finding:
    """Slot k is the (k+1)-th token after its anchor: in labels, in what is drafted, and where replay compares
    (SpecForge#473)."""
    target, drafter, examples = subject.target(), subject.drafter(), subject.examples()
    slots, first = drafter.slots, drafter.first
    if slots != drafter.backbone.block_size - first:
        return Finding(
            FAIL, f"{slots} slots in a block of {drafter.backbone.block_size} whose slot 0 is position {first}"
        )
    chosen = [*examples[:3], *examples[3:][-1:]]  # the last one has several answers if any example has
    batch = blocks.collate(chosen, range(len(chosen)), target.chat.pad_id)
    places = [v.nonzero()[:, 0].tolist() for v in blocks.valid_anchors(batch.supervised)]
    ends = [(p[:32] + p[32:][-32:] + [0] * 64)[:64] for p in places]  # where answers begin and end
    anchors = torch.tensor(ends)
    real = torch.arange(64) < torch.tensor([[len(p)] for p in places])
    answers, mask = blocks.labels_and_mask(batch.tokens, batch.supervised, anchors, real, slots)
    for row, example in enumerate(chosen):
        for i, anchor in enumerate(anchors[row].tolist()):
            if real[row, i] and (wrong := _wrong(example, anchor, answers[row, i].tolist(), mask[row, i].tolist())):
                return Finding(FAIL, f"example {example.id}: {wrong}", "label slot k with token anchor + 1 + k")
    example = max(chosen, key=lambda e: len(e.tokens))
    start = example.supervised.index(True)
    rounds, proposals = _oracle_rounds(target, drafter, example, start)
    if any(a != proposals for a in rounds):
        return Finding(
            FAIL,
            f"a drafter that proposes the training labels has {sum(rounds)} of {len(rounds) * proposals} proposals "
            "accepted",
            "compare proposal k with the (k+1)-th token after the anchor",
        )
    slot = _first_other_slot(target, drafter, torch.tensor([example.tokens], device=target.device), start)
    if slot is not None:
        return Finding(
            FAIL,
            f"slot {slot} drafts another token than its training logits say",
            "draft from the block position that is trained for the slot",
        )
    where = f"position {first} of the block is slot 0"
    return Finding(OK, f"slot k is token anchor + 1 + k in training, drafting and replay; {where}, {slots} slots")


def _wrong(example: Example, anchor: int, labels: list[int], mask: list[bool]) -> str:
    """What is wrong with the labels of one block, found by counting along the example."""
    inside = True
    for k, (label, asked) in enumerate(zip(labels, mask, strict=True)):
        at = anchor + 1 + k
        inside = inside and at < len(example.tokens) and example.supervised[at]
        if asked != inside:
            return (
                f"slot {k} of the block at {anchor} is {'' if asked else 'not '}supervised, its token "
                f"{'is' if inside else 'is not'}"
            )
        if asked and label != example.tokens[at]:
            shifts = [
                d for d in (1, -1, 2, -2) if 0 <= at + d < len(example.tokens) and label == example.tokens[at + d]
            ]
            also = f", it is the token at anchor + {1 + k + shifts[0]}" if shifts else ""
            return f"the label of slot {k} is not the token at anchor + {1 + k}{also}"
    return ""


def _oracle_rounds(target: Target, drafter: DFlash, example: Example, start: int) -> tuple[list[int], int]:
    """Accepted counts of a replay over the example in which the labels themselves are proposed, and how many
    proposals."""
    proposals = drafter.backbone.proposals
    rest = example.tokens[start:]
    tail = (target.chat.pad_id,) * proposals
    whole = torch.tensor([[*example.tokens, *tail]], device=target.device)
    oracle = _Oracle(drafter, whole)
    trajectory = Trajectory("labels", 0, example.tokens[:start], rest + tail, len(rest), True)
    (trace,) = replay(target, oracle, [trajectory], batch_size=1)
    return list(trace.accepted), proposals


def _first_other_slot(target: Target, drafter: DFlash, tokens: Int[Tensor, "1 T"], start: int) -> int | None:
    """The first slot whose training logits, read with the drafted tokens before it, name another token than is drafted.

    In one pass as live decoding drafts, or slot by slot as replay does.
    """
    anchor = torch.tensor([[start]], device=tokens.device)
    context, first = drafter.context(target.features(tokens)), tokens[:, start : start + 1]
    drafted = drafter.draft(target, context, first, anchor)[0]
    hidden = drafter.hidden(target, context, first, anchor)[0]
    previous = torch.cat([first, drafted], dim=1)[:, : drafter.slots]
    previous = torch.nn.functional.pad(previous, (0, drafter.slots - previous.shape[1]))
    scores = drafter.logits(target, hidden, previous)[drafter.branches[-1]][0, : drafted.shape[1]].float()
    propose = drafter.slot_by_slot(target, context, first, anchor)
    only = torch.zeros(1, dtype=torch.long, device=tokens.device)
    alone = torch.cat([propose(slot, only, previous[0, slot : slot + 1]) for slot in range(drafted.shape[1])])
    chosen = scores.gather(1, torch.stack([drafted[0], alone], dim=1))
    lost = (scores.max(dim=-1, keepdim=True).values - chosen).max(dim=-1).values
    wrong = (lost > 1e-3 * scores.abs().max()).nonzero()  # a tie within rounding does not count as another token
    return int(wrong[0]) if len(wrong) else None


def belongs(subject: Subject) -> Finding:
    """The drafter's files against target and settings: sizes, vocabulary, mask token, block, fingerprint, weights.

    Without a run: whether the configured drafter can be created. Its ``target_layer_ids`` belong to the check *layers*.
    """
    target, drafter = subject.target(), subject.drafter()
    size = f"{sum(p.numel() for p in drafter.parameters()):,} parameters"
    if subject.folder is None:
        return Finding(
            OK,
            f"{drafter.backbone.title}, {size}: {drafter.slots} slots, {drafter.backbone.proposals} proposals "
            "(initialised here)",
        )
    stored, expected = (
        read_json(layout.drafter_of(subject.folder) / "config.json"),
        checkpoint.public_config(drafter, target),
    )
    theirs, ours = _flat(stored), _flat(expected)
    free = ("dtype", "dflash_config.target_layer_ids", "specauf.run", "specauf.weights")
    other = [k for k, v in ours.items() if k not in free and k in theirs and theirs[k] != v]
    missing = [k for k in ours if k not in free and k not in theirs]
    if other or missing:
        differences = [f"{k} is {theirs[k]!r}, here it is {ours[k]!r}" for k in other[:3]] + [
            f"{k} is missing" for k in missing[:3]
        ]
        return Finding(
            FAIL,
            "; ".join(differences),
            "use the target, backbone and mask token it was trained with, or train it again",
        )
    if subject.refused and theirs.get("dflash_config.target_layer_ids") == list(target.taps):
        return Finding(FAIL, subject.refused, "restore the run's files, or train it again")
    return Finding(OK, f"{len(ours.keys() - set(free))} settings fit the target, {size}")


def _flat(values: object) -> dict[str, object]:
    """Two levels of a configuration as one, ``outer.inner``."""
    flat: dict[str, object] = {}
    for key, value in (values if isinstance(values, dict) else {}).items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _public_layout(drafter: DFlash, target: Target) -> str | None:
    """The first layout in which it can be exported; None for a user's own backbone, or heads on tapped layers."""
    if drafter.architecture not in formats.ARCHITECTURES:
        return None
    config = checkpoint.public_config(drafter, target)
    return next((x for x in formats.LAYOUTS if formats.not_written(config, x) is None), None)


def _own_files(drafter: DFlash, target: Target, folder: Path) -> DFlash:
    checkpoint.save(drafter, target, folder, run="round trip")
    return checkpoint.load(folder, target, drafter.backbone, run="round trip")


def _public_files(drafter: DFlash, target: Target, folder: Path) -> DFlash:
    checkpoint.save(drafter, target, folder / "drafter", run="round trip")
    public = _public_layout(drafter, target)
    assert public is not None, "the caller asks for it only where there is one"
    head = formats.own_head(target) if drafter.architecture == formats.MEDUSA else None
    formats.write(folder / "drafter", folder / "export", layout=public, dtype="fp32", head=head)
    imported, _ = formats.drafter(formats.read(folder / "export"), target, drafter.backbone)
    return imported


ROUND_TRIPS: dict[str, Callable[[DFlash, Target, Path], DFlash]] = {
    "checkpoint": _own_files,
    "export and import": _public_files,
}
"""Ways to write a drafter and read it back."""


@torch.no_grad()
def round_trip(subject: Subject) -> Finding:
    """Saved and loaded again, every weight is the same bit for bit and every draft the same token."""
    target, drafter, tokens = subject.target(), subject.drafter(), subject.tokens()
    anchors = torch.tensor([[max(1, tokens.shape[1] // 2)]], device=tokens.device)
    context = target.features(tokens)

    def draft(of: DFlash) -> Tensor:
        return of.draft(target, of.context(context), tokens.gather(1, anchors), anchors)

    public = _public_layout(drafter, target) is not None
    trips = {name: trip for name, trip in ROUND_TRIPS.items() if public or trip is not _public_files}
    for name, trip in trips.items():
        try:
            with tempfile.TemporaryDirectory(prefix="specauf-doctor-") as place:
                back = trip(drafter, target, Path(place)).to(target.model.dtype)
        except InputError as error:
            return Finding(FAIL, f"{name}: what was written is refused: {error}")
        before, after = drafter.state_dict(), back.state_dict()
        names = sorted(set(before) ^ set(after)) or [
            n for n, x in before.items() if x.shape != after[n].shape or not torch.equal(x, after[n])
        ]
        if names:
            return Finding(
                FAIL, f"{name}: {names[0]} comes back changed", "write every tensor as it is, in its own dtype"
            )
        if not torch.equal(draft(back), draft(drafter)):
            return Finding(
                FAIL, f"{name}: the same weights draft other tokens", "restore every knob of the drafter too"
            )
    return Finding(
        OK, f"{len(drafter.state_dict())} tensors come back bit for bit, drafts are equal ({', '.join(trips)})"
    )
