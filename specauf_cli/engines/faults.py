"""The known faults of serving a drafter: each is a small change of target, drafter or prompt, to be replayed here.

A fault that reproduces a server's answers and counts, request by request, is what that server does. Sources of each are
in ``docs/servers.md``.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specauf_cli.data.chat import CHATML, Chat
from specauf_cli.errors import InputError
from specauf_cli.models.attention import BlockAttention
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import DTYPES, Target
from specauf_cli.types import Message

Render = Callable[[Chat, Sequence[Message]], tuple[int, ...]]
"""A chat up to the answer, as the tokens of a prompt."""


def _same_target(target: Target) -> Target:
    return target


def _same_drafter(drafter: DFlash) -> DFlash:
    return drafter


@dataclass(frozen=True)
class Fault:
    """One way to serve a drafter wrongly. ``kind`` groups variants; ``title`` says what the server does.

    ``target`` and ``drafter`` return what the server runs instead, copies where anything changes; ``prompt`` renders
    what it reads instead (None: the prompt that was sent). ``precision``: that of the target, where it is another.
    """

    kind: str
    title: str
    target: Callable[[Target], Target] = _same_target
    drafter: Callable[[DFlash], DFlash] = _same_drafter
    prompt: Render | None = None
    precision: str | None = None

    @property
    def of_drafts_only(self) -> bool:
        """Whether the target's own answers stay the same."""
        return self.target is _same_target and self.prompt is None


KINDS = {
    "causal": "the block attends causally",
    "layers": "other layers of the target are tapped",
    "first_norm": "the first layer's k_norm serves every draft layer",
    "proposals": "another block size, or another number of proposals",
    "dtype": "another dtype",
    "window": "a sliding window",
    "drafter": "another drafter",
    "template": "the prompt is rendered in another way",
}
"""Kinds of faults, in the order in which they are tried."""


def known_faults(
    drafter: DFlash | None, others: Mapping[str, Callable[[], DFlash]], *, longest: int
) -> Iterator[Fault]:
    """Every known fault of serving ``drafter``, by kind; without one those of a target alone.

    ``others``: further drafters of the same target, by name, the likeliest first; ``longest``: tokens of the longest
    prompt with its answer.
    """
    if drafter is not None:
        yield from _of_block(drafter)
    for precision in DTYPES:
        yield Fault(
            "dtype",
            f"target and drafter run in {precision}" if drafter is not None else f"the target runs in {precision}",
            target=partial(in_precision, precision=precision),
            drafter=partial(drafter_in_precision, precision=precision),
            precision=precision,
        )
    if drafter is not None:
        yield from _windows(drafter, longest)
    for name, load in others.items():
        yield Fault("drafter", f"the drafter is {name}", drafter=partial(_another, load=load))
    for title, render in RENDERINGS.items():
        yield Fault("template", f"the prompt {title}", prompt=render)


def _of_block(drafter: DFlash) -> Iterator[Fault]:
    block = drafter.backbone.block_size
    yield Fault("causal", KINDS["causal"], drafter=causal)
    for shift in (-1, 1):
        place = "before" if shift < 0 else "after"
        yield Fault("layers", f"the layers {place} the right ones are tapped", target=partial(shifted, by=shift))
    yield Fault("first_norm", f"{KINDS['first_norm']}, for the context", drafter=first_norm_of_context)
    yield Fault("first_norm", f"{KINDS['first_norm']}, for context and block", drafter=first_norm)
    for size in sorted({*range(2, block + 1), 2 * block} - {block}, reverse=True):
        yield Fault("proposals", f"blocks of {size} instead of {block}", drafter=partial(of_block, size=size))
    for count in range(drafter.slots, 0, -1):
        if count != drafter.backbone.proposals:
            title = f"{count} proposals of a block of {block} instead of {drafter.backbone.proposals}"
            yield Fault("proposals", title, drafter=partial(of_proposals, count=count))


def _windows(drafter: DFlash, longest: int) -> Iterator[Fault]:
    for width in _powers_of_two(drafter.backbone.block_size):
        title = f"slots see only what is less than {width} positions away in their block"
        yield Fault("window", title, drafter=partial(inside, width=width))
    for width in _powers_of_two(longest):
        title = f"slots see only what is less than {width} positions away, in context and block"
        yield Fault("window", title, drafter=partial(windowed, width=width))


def _another(_: DFlash, load: Callable[[], DFlash]) -> DFlash:
    return load()


def _powers_of_two(most: int) -> Iterator[int]:
    width = 1
    while width < most:
        yield width
        width *= 2


# ---- the block's attention


@dataclass(frozen=True)
class Sight:
    """What a slot sees. ``causal``: of its block only what is before it. ``inside``: of its block only positions closer
    than this. ``window``: of context and block only positions closer than this."""

    causal: bool = False
    inside: int | None = None
    window: int | None = None

    def of_block(self, width: int, device: torch.device) -> Bool[Tensor, "W W"]:
        """Which position of its block (column) each position (row) sees."""
        at = torch.arange(width, device=device)
        ahead = at[:, None] - at
        seen = torch.ones(width, width, dtype=torch.bool, device=device)
        for limit in (self.inside, self.window):
            if limit is not None:
                seen &= ahead.abs() < limit
        return seen & (ahead >= 0) if self.causal else seen

    def of_context(self, visible: Bool[Tensor, "B A T"], width: int) -> Bool[Tensor, "B AW T"]:
        """Which context position each position of every block sees."""
        rows = visible.repeat_interleave(width, dim=1)
        if self.window is None:
            return rows
        anchors = visible.sum(dim=2)  # context positions before an anchor: its own position
        slots = torch.arange(width, device=visible.device)
        positions = (anchors[:, :, None] + slots).flatten(1)
        return rows & (positions[:, :, None] - torch.arange(visible.shape[2], device=visible.device) < self.window)


class FaultyAttention(BlockAttention):
    """The attention of a draft layer, with what its slots see, and the norm of the context's keys, replaced."""

    def __init__(self, of: BlockAttention, sight: Sight, context_norm: Any) -> None:
        super().__init__(of.config, of.layer_idx)
        self.load_state_dict(of.state_dict())
        self.to(of.k_proj.weight)
        self.sight, self._context_norm = sight, [context_norm]  # in a list: it is not this layer's own module

    def context_norm(self, keys: Float[Tensor, "B T Hkv Dh"]) -> Float[Tensor, "B T Hkv Dh"]:
        """As in ``BlockAttention``, but for the replaced norm."""
        (norm,) = self._context_norm
        normed: Tensor = super().context_norm(keys) if norm is None else norm(keys)
        return normed

    def _split(
        self, q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, visible: Tensor
    ) -> Float[Tensor, "B H AW Dh"]:
        groups, rows, blocks = self.num_key_value_groups, q.shape[2], visible.shape[1]
        ck, cv, k, v = (x.repeat_interleave(groups, dim=1) for x in (ck, cv, k, v))
        width = rows // blocks
        own = torch.kron(torch.eye(blocks, device=q.device), self.sight.of_block(width, q.device).float()).bool()
        mask = torch.cat([self.sight.of_context(visible, width), own.expand(len(q), -1, -1)], dim=2)
        scores = q @ torch.cat([ck, k], dim=2).transpose(2, 3) * self.scaling
        weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=3, dtype=torch.float32).to(q.dtype)
        attended: Tensor = weights @ torch.cat([cv, v], dim=2)
        return attended


def with_attention(drafter: DFlash, sight: Sight, *, first_context_norm: bool = False) -> DFlash:
    """A copy of ``drafter`` whose layers attend by ``sight``; ``first_context_norm``: with the first layer's k_norm for
    the context's keys of every layer. Errors: InputError for a drafter without layers."""
    faulty = _with_layers(drafter)
    faulty.backbone = replace(drafter.backbone, attention="split")
    norm = faulty.layers[0].self_attn.k_norm if first_context_norm else None
    for layer in faulty.layers:
        layer.self_attn = FaultyAttention(layer.self_attn, sight, norm)
    return faulty.eval()


def _with_layers(drafter: DFlash) -> DFlash:
    """A copy of a drafter that has layers. Errors: InputError for one that has none."""
    if not hasattr(drafter, "layers"):
        raise InputError(f"a {drafter.backbone.kind} drafter has no layers")
    return copy.deepcopy(drafter)


def causal(drafter: DFlash) -> DFlash:
    """A block whose positions see nothing after themselves."""
    return with_attention(drafter, Sight(causal=True))


def inside(drafter: DFlash, width: int) -> DFlash:
    """A block whose positions see only the positions of it that are closer than ``width``."""
    return with_attention(drafter, Sight(inside=width))


def windowed(drafter: DFlash, width: int) -> DFlash:
    """Slots that see only what is closer than ``width``, of context and block."""
    return with_attention(drafter, Sight(window=width))


def first_norm_of_context(drafter: DFlash) -> DFlash:
    """The first layer's k_norm for the context's keys of every layer."""
    return with_attention(drafter, Sight(), first_context_norm=True)


def first_norm(drafter: DFlash) -> DFlash:
    """The first layer's k_norm in every layer, for context and block. Errors: InputError for a drafter without
    layers."""
    faulty = _with_layers(drafter)
    for layer in faulty.layers:
        layer.self_attn.k_norm = faulty.layers[0].self_attn.k_norm
    return faulty


# ---- sizes, precision, layers


def of_block(drafter: DFlash, size: int) -> DFlash:
    """The same weights with blocks of ``size``: an engine's block is as long as its number of draft tokens says.

    Errors: InputError for one that has a head for every slot and too few of them.
    """
    if size > drafter.backbone.block_size and not hasattr(drafter, "layers"):
        raise InputError(f"a {drafter.backbone.kind} drafter has no slot beyond its block")
    changed = copy.copy(drafter)
    changed.backbone = replace(drafter.backbone, block_size=size, proposals=size - 1)
    return changed


def of_proposals(drafter: DFlash, count: int) -> DFlash:
    """The same drafter, of whose block only the first ``count`` tokens are proposed."""
    changed = copy.copy(drafter)
    changed.backbone = replace(drafter.backbone, proposals=count)
    return changed


def in_precision(target: Target, precision: str) -> Target:
    """The target with weights rounded to ``precision``."""
    if target.model.dtype == DTYPES[precision]:
        return target
    model = copy.deepcopy(target.model).to(DTYPES[precision])
    return Target(model, target.chat, target.config, target.fingerprint)


def drafter_in_precision(drafter: DFlash, precision: str) -> DFlash:
    """The drafter with weights rounded to ``precision``."""
    return copy.deepcopy(drafter).to(DTYPES[precision])


def shifted(target: Target, by: int) -> Target:
    """The target whose taps are ``by`` layers further on; the one before the first layer is the embedding.

    Errors: InputError when a tap would be after the last layer.
    """
    taps = tuple(t + by for t in target.taps)
    if target.config.taps == "last" or max(taps) >= target.depth:
        raise InputError(f"no layer {max(taps)} to tap")
    changed = copy.copy(target)
    changed.taps = taps
    return changed


# ---- prompts


def _of_text(chat: Chat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokens([text])[0])


def _with_template(chat: Chat, template: str) -> Chat:
    tokenizer = copy.copy(chat.tokenizer)
    tokenizer.chat_template = template
    other = copy.copy(chat)
    other.tokenizer = tokenizer
    return other


def _doubled_start(chat: Chat, messages: Sequence[Message]) -> tuple[int, ...]:
    start = chat.tokenizer.bos_token_id
    prompt = chat.prompt(messages)
    return (prompt[0] if start is None else int(start), *prompt)


def _with_thinking(chat: Chat, messages: Sequence[Message]) -> tuple[int, ...]:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    text: str = chat.tokenizer.apply_chat_template(
        rows, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return _of_text(chat, text)


RENDERINGS: dict[str, Render] = {
    "lacks the opening of the answer": lambda chat, m: _of_text(chat, chat.render(m, generation=False)),
    "is the user's text without the chat template": lambda chat, m: _of_text(chat, m[-1].content),
    "begins with its start token twice": _doubled_start,
    "is rendered as ChatML, not by the target's own template": lambda chat, m: _with_template(chat, CHATML).prompt(m),
    "is rendered with thinking switched on": _with_thinking,
    "lacks the earlier turns": lambda chat, m: chat.prompt(m[-1:]),
    "has a system turn before it": lambda chat, m: chat.prompt([Message("system", "You are a helpful assistant."), *m]),
    "ends with a space": lambda chat, m: _of_text(chat, chat.render(m, generation=True) + " "),
}
"""Ways in which servers and gateways render a chat otherwise."""
