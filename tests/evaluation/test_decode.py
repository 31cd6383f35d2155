"""Live decoding, replay and the target's own trajectories tell one story, token by token and round by round."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from specauf_cli.errors import InputError
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, decode
from specauf_cli.evaluation.replay import every_start, replay
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.trajectories import Generated
from specauf_cli.models.blocks import previous_tokens
from specauf_cli.models.dflash import NOTHING, DFlash
from specauf_cli.models.heads import Heads
from specauf_cli.models.target import Target
from specauf_cli.types import Message, Prompt, PromptSet, Trace, Trajectory

MakeTarget = Callable[..., Target]
MakeDrafter = Callable[..., DFlash]
Wrong = Callable[[int, int], bool]

NEW, TAIL, SEED = 32, 8, 3
PROMPTS = (
    Prompt("p0", ("Hi",)),
    Prompt("p1", ("What is 2 + 3?",)),
    Prompt("p2", ("Name a color.", "And another one?")),
    Prompt("p3", ("Write a short letter to Anna.",)),
    Prompt("p4", ("Tell me a story about a fox named Leo.", "Make it shorter.")),
    Prompt("p5", ("Plan a day in Rome for two people who like soup.",)),
)

both_temperatures = pytest.mark.parametrize("temperature", [0.0, 1.0])


def generate(
    target: Target,
    temperature: float = 0.0,
    *,
    prompts: Sequence[Prompt] = PROMPTS,
    new: int = NEW,
    batch_size: int = 4,
) -> Generated:
    return trajectories.generate(
        target, prompts, temperature=temperature, seed=SEED, max_new_tokens=new, tail=TAIL, batch_size=batch_size
    )


def live(
    target: Target, drafter: DFlash, trajectory: Trajectory, temperature: float = 0.0, new: int = NEW
) -> tuple[Trace, tuple[int, ...]]:
    proposer = Drafted(target, drafter)
    trace, tokens, _ = decode(target, proposer, trajectory, temperature=temperature, seed=SEED, max_new_tokens=new)
    return trace, tokens


def one_token_at_a_time(target: Target, trajectory: Trajectory, temperature: float, count: int) -> list[int]:
    """The target's tokens without cache, batch or drafter: the whole sequence is read again for every token."""
    sampler = Sampler(temperature, SEED, [f"{trajectory.prompt_id}#{trajectory.turn}"], count)
    tokens, row = list(trajectory.prompt), torch.zeros(1, dtype=torch.long)
    for step in range(count):
        with torch.no_grad():
            logits = target.model(torch.tensor([tokens])).logits[:, -1:, : target.chat.vocab]
        tokens.append(int(sampler.choose(logits, row, row + step)) if temperature else int(logits[0, 0].argmax()))
    return tokens[len(trajectory.prompt) :]


def fit(drafter: DFlash, target: Target, made: Sequence[Trajectory], steps: int = 100) -> DFlash:
    """Overfits the drafter to a few trajectories, so that rounds of every length occur."""
    width = max(len(t.prompt) + len(t.tokens) for t in made)
    tokens = torch.zeros(len(made), width, dtype=torch.long)
    for row, t in enumerate(made):
        tokens[row, : len(t.prompt) + len(t.tokens)] = torch.tensor([*t.prompt, *t.tokens])
    features, starts = target.features(tokens), torch.tensor([[len(t.prompt)] for t in made])
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        anchors = starts + torch.randint(0, NEW - 1, (len(made), 8), generator=generator)
        found = drafter.hidden(target, drafter.context(features), tokens.gather(1, anchors), anchors)
        labels = tokens.gather(1, (anchors[:, :, None] + torch.arange(1, drafter.slots + 1)).flatten(1))
        previous = previous_tokens(tokens, anchors, drafter.slots)
        logits = drafter.logits(target, found.flatten(0, 1), previous.flatten(0, 1))[drafter.branches[-1]]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter


def oracle(drafter: DFlash, trajectory: Trajectory, wrong: Wrong) -> DFlash:
    """Makes ``drafter`` propose the trajectory itself, except where ``wrong(anchor, slot)``, both relative to it."""
    stream, start = [*trajectory.prompt, *trajectory.tokens], len(trajectory.prompt)

    def draft(target: Target, _context: Any, anchor_tokens: Tensor, anchors: Tensor) -> Tensor:
        assert anchors.shape[0] == 1
        assert anchor_tokens[0].tolist() == [stream[at] for at in anchors[0].tolist()]
        blocks = [
            [(stream[at + 1 + k] + wrong(at - start, k)) % target.chat.vocab for k in range(drafter.backbone.proposals)]
            for at in anchors[0].tolist()
        ]
        return torch.tensor([blocks])

    def slot_by_slot(*block: Any) -> Any:
        drafted = draft(*block)[0]
        return lambda slot, blocks, _before: drafted[blocks, slot]

    drafter.draft = draft  # type: ignore[method-assign]
    drafter.slot_by_slot = slot_by_slot  # type: ignore[method-assign]
    return drafter


def rounds_by_hand(length: int, proposals: int, wrong: Wrong) -> tuple[int, ...]:
    rounds, at = [], 0
    while at < length - 1:
        count = 0
        while count < proposals and not wrong(at, count):
            count += 1
        rounds.append(count)
        at += count + 1
    return tuple(rounds)


@pytest.fixture(scope="module")
def made(target: Target) -> dict[float, Generated]:
    return {temperature: generate(target, temperature) for temperature in (0.0, 1.0)}


@pytest.fixture(scope="module")
def fitted(target: Target, make_drafter: MakeDrafter, made: dict[float, Generated]) -> Callable[[float], DFlash]:
    """A drafter that was fitted to the answers of a temperature."""
    return functools.cache(lambda temperature: fit(make_drafter(), target, made[temperature].trajectories[:4]))


@both_temperatures
def test_trajectories_are_the_targets_own_tokens_one_at_a_time(
    target: Target, made: dict[float, Generated], temperature: float
) -> None:
    found = made[temperature].trajectories
    assert [(t.prompt_id, t.turn) for t in found] == [(p.id, i) for p in PROMPTS for i in range(len(p.turns))]
    assert made[temperature].skipped == {}
    for t in found:
        assert len(t.tokens) == t.length + TAIL
        assert list(t.tokens) == one_token_at_a_time(target, t, temperature, len(t.tokens))
        assert t.ended == (t.tokens[t.length - 1] == target.chat.eos_id)
        assert t.length == NEW or t.ended
        assert target.chat.eos_id not in t.tokens[: t.length - 1]
        assert len(set(t.tokens)) > 8  # a varied stream, or the tests here would prove little


def test_the_second_turn_follows_the_targets_own_first_answer(target: Target, made: dict[float, Generated]) -> None:
    for found in made.values():
        first, second = (t for t in found.trajectories if t.prompt_id == "p2")
        answer = target.chat.text(first.tokens[: first.length])
        talk = [Message("user", "Name a color."), Message("assistant", answer), Message("user", "And another one?")]
        assert answer
        assert second.prompt == target.chat.prompt(talk)
        assert first.prompt == target.chat.prompt(talk[:1])
    assert made[0.0].trajectories[3].prompt != made[1.0].trajectories[3].prompt


@both_temperatures
def test_batching_and_the_order_of_prompts_change_no_trajectory(
    target: Target, made: dict[float, Generated], temperature: float
) -> None:
    assert generate(target, temperature, batch_size=1) == made[temperature]
    turned = generate(target, temperature, prompts=PROMPTS[::-1], batch_size=8).trajectories
    assert sorted(turned, key=lambda t: (t.prompt_id, t.turn)) == list(made[temperature].trajectories)


@pytest.mark.parametrize("proposals", [7, 3])
def test_live_output_at_temperature_zero_is_the_targets_greedy_output(
    target: Target, make_drafter: MakeDrafter, made: dict[float, Generated], proposals: int
) -> None:
    drafter = make_drafter(proposals=proposals)
    for t in made[0.0].trajectories[:4]:
        trace, tokens = live(target, drafter, t, new=20)
        assert list(tokens) == one_token_at_a_time(target, t, 0.0, 20)
        assert (trace.prompt_id, trace.turn, trace.proposed) == (t.prompt_id, t.turn, proposals)
        assert (trace.tokens, trace.ended) == (20, False)


@contextmanager
def drafts_of(drafter: DFlash) -> Iterator[list[tuple[int, ...]]]:
    """What ``drafter`` proposes for one sequence, block after block."""
    original, drafted = drafter.draft, list[tuple[int, ...]]()

    def draft(*block: Any) -> Tensor:
        proposal = original(*block)
        drafted.append(tuple(token for token in proposal[0, 0].tolist() if token != NOTHING))
        return proposal

    drafter.draft = draft  # type: ignore[method-assign]
    try:
        yield drafted
    finally:
        drafter.draft = original  # type: ignore[method-assign]


def check_agreement(target: Target, drafter: DFlash, found: Generated, new: int = NEW) -> list[Trace]:
    """Replay equals live decoding round by round, proposals included, and live output the trajectory token for
    token."""
    recorded: list[list[tuple[int, ...]]] = [[] for _ in found.trajectories]
    replayed = replay(target, drafter, found.trajectories, batch_size=3, record=lambda i, p: recorded[i].append(p))
    for t, trace, proposed in zip(found.trajectories, replayed, recorded, strict=True):
        with drafts_of(drafter) as drafted:
            lived, tokens = live(target, drafter, t, found.temperature, new)
        assert drafted == proposed
        assert lived == trace
        assert tokens == t.tokens[: t.length]
        emitted = [a + 1 for a in trace.accepted]
        assert t.length - 1 <= sum(emitted)
        assert not emitted or sum(emitted[:-1]) < t.length - 1
    return replayed


@pytest.mark.parametrize(
    ("temperature", "changes"),
    [(0.0, {}), (1.0, {}), (1.0, {"proposals": 4}), (0.0, {"block_size": 2, "proposals": 1})],
)
def test_live_rounds_are_replay_rounds_for_an_untrained_drafter(
    target: Target, make_drafter: MakeDrafter, made: dict[float, Generated], temperature: float, changes: dict[str, int]
) -> None:
    found = made[temperature]
    some = found.trajectories[: 3 if changes else 5]
    check_agreement(target, make_drafter(1, **changes), replace(found, trajectories=some))


@both_temperatures
def test_live_rounds_are_replay_rounds_for_a_fitted_drafter(
    target: Target, fitted: Callable[[float], DFlash], made: dict[float, Generated], temperature: float
) -> None:
    traces = check_agreement(target, fitted(temperature), made[temperature])
    assert traces == replay(target, fitted(temperature), made[temperature].trajectories, batch_size=3)  # unrecorded
    counts = [a for t in traces for a in t.accepted]
    assert counts.count(0) > 3
    assert counts.count(7) > 0
    assert sum(0 < a < 7 for a in counts) > 8


@both_temperatures
def test_a_walk_over_every_start_is_the_replay(
    target: Target, fitted: Callable[[float], DFlash], made: dict[float, Generated], temperature: float
) -> None:
    found = made[temperature].trajectories
    starts = every_start(target, fitted(temperature), found, batch_size=3)
    assert [len(a) for a in starts.accepted] == [t.length - 1 for t in found]
    assert sum(starts.histogram()) == sum(t.length - 1 for t in found)
    for t, accepted, trace in zip(
        found, starts.accepted, replay(target, fitted(temperature), found, batch_size=4), strict=True
    ):
        position, rounds = 0, []
        while position < t.length - 1:
            rounds.append(accepted[position])
            position += accepted[position] + 1
        assert tuple(rounds) == trace.accepted


OTHERS: dict[str, tuple[int, dict[str, int | str]]] = {
    "domino": (7, {"gru_hidden_dim": 12, "emb_dim": 8, "pure_draft_prefix_len": 1}),
    "domino, 8": (8, {"gru_hidden_dim": 12, "emb_dim": 8, "pure_draft_prefix_len": 1}),
    "dspark, 8": (8, {"markov_rank": 8, "markov_head_type": "vanilla"}),
    "dspark": (7, {"markov_rank": 8, "markov_head_type": "gated"}),
    "medusa": (7, {}),
    "recurrent": (7, {"gru_hidden_dim": 48}),
}
"""Proposals and knobs by kind. With 8 proposals a block of 8 drafts one token per position, the anchor's own
included."""


@pytest.fixture(scope="module")
def fitted_other(target: Target, make_drafter: MakeDrafter, made: dict[float, Generated]) -> Callable[[str], DFlash]:
    """A drafter of ``OTHERS`` that was fitted to answers of both temperatures."""
    some = [t for found in made.values() for t in found.trajectories[:3]]

    @functools.cache
    def make(name: str) -> DFlash:
        kind, (proposals, knobs) = name.partition(",")[0], OTHERS[name]
        drafter = make_drafter(name=kind, kind=kind, knobs=knobs, proposals=proposals)
        return fit(drafter, target, some, steps=400 if isinstance(drafter, Heads) else 80)

    return make


@both_temperatures
@pytest.mark.parametrize("name", OTHERS)
def test_live_rounds_are_replay_rounds_for_other_drafters(
    target: Target,
    fitted_other: Callable[[str], DFlash],
    made: dict[float, Generated],
    temperature: float,
    name: str,
) -> None:
    drafter = fitted_other(name)
    found = replace(made[temperature], trajectories=made[temperature].trajectories[:4])
    traces = check_agreement(target, drafter, found)
    counts = [a for t in traces for a in t.accepted]
    assert counts.count(0) > 3
    assert sum(0 < a < OTHERS[name][0] for a in counts) > (3 if isinstance(drafter, Heads) else 8)
    assert all(t.proposed == OTHERS[name][0] for t in traces)


@both_temperatures
def test_a_drafter_that_is_not_sure_proposes_less_and_replay_follows(
    target: Target, fitted_other: Callable[[str], DFlash], made: dict[float, Generated], temperature: float
) -> None:
    """The threshold is a value that its own confidence takes, so blocks end everywhere."""
    drafter = copy.deepcopy(fitted_other("dspark, 8"))
    found = replace(made[temperature], trajectories=made[temperature].trajectories[:4])
    plain = replay(target, drafter, found.trajectories, batch_size=3)
    drafter.least_confidence = 0.6
    with torch.no_grad():
        drafter.confidence_head.proj.weight.mul_(3)
    cut = check_agreement(target, drafter, found)
    assert sum(sum(t.accepted) for t in cut) < sum(sum(t.accepted) for t in plain)
    lengths: set[int] = set()
    replay(target, drafter, found.trajectories, batch_size=3, record=lambda _, proposed: lengths.add(len(proposed)))
    assert len(lengths) > 2, lengths


@both_temperatures
@pytest.mark.parametrize(
    "wrong",
    [
        lambda anchor, slot: False,
        lambda anchor, slot: True,
        lambda anchor, slot: (anchor + slot) % 5 == 3,
        lambda anchor, slot: (anchor * 7 + slot * 3) % 11 == 0,
        lambda anchor, slot: slot == 6,
    ],
    ids=["never wrong", "always wrong", "by position", "by anchor and slot", "last slot"],
)
def test_an_oracle_with_errors_leaves_exactly_the_rounds_its_errors_say(
    target: Target, make_drafter: MakeDrafter, made: dict[float, Generated], temperature: float, wrong: Wrong
) -> None:
    for t in made[temperature].trajectories[:3]:
        drafter = oracle(make_drafter(), t, wrong)
        trace, tokens = live(target, drafter, t, temperature)
        assert tokens == t.tokens[: t.length]
        assert trace.accepted == rounds_by_hand(t.length, 7, wrong)
        assert replay(target, drafter, [t], batch_size=1) == [trace]


@pytest.mark.parametrize("new", [2, 8, 9, 10, 17, 18])
def test_the_limit_inside_a_block_cuts_the_completion_but_not_the_round(
    target: Target, make_drafter: MakeDrafter, made: dict[float, Generated], new: int
) -> None:
    """Rounds of 7 + 1 tokens behind the first one: lengths 9 and 17 end exactly with a round."""
    (t,) = generate(target, prompts=PROMPTS[:1], new=new).trajectories
    assert t.tokens == made[0.0].trajectories[0].tokens[: new + TAIL]
    drafter = oracle(make_drafter(), t, lambda anchor, slot: False)
    trace, tokens = live(target, drafter, t, new=new)
    assert trace == Trace("p0", 0, (7,) * -(-(new - 1) // 8), 7, new, False)
    assert tokens == t.tokens[:new]
    assert replay(target, drafter, [t], batch_size=1) == [trace]


def first_occurrences(tokens: Sequence[int]) -> list[int]:
    return [i for i, token in enumerate(tokens) if token not in tokens[:i]]


@both_temperatures
def test_the_end_of_turn_inside_an_accepted_block_ends_the_completion(
    target: Target,
    make_target: MakeTarget,
    make_drafter: MakeDrafter,
    made: dict[float, Generated],
    temperature: float,
) -> None:
    reference = made[temperature].trajectories[0]
    places = {at % 8: at for at in first_occurrences(reference.tokens[: reference.length]) if at > 0}
    for at in (places[1], places[4], places[7], places[0]):  # in a block: first, inside, last; the target's own token
        stopping = make_target(stop_ids=[reference.tokens[at]])
        (t,) = generate(stopping, temperature, prompts=PROMPTS[:1]).trajectories
        assert t == replace(reference, tokens=reference.tokens[: at + 1 + TAIL], length=at + 1, ended=True)
        drafter = oracle(make_drafter(), t, lambda anchor, slot: False)
        trace, tokens = live(stopping, drafter, t, temperature)
        assert tokens == reference.tokens[: at + 1]
        assert trace == Trace("p0", 0, (7,) * -(-at // 8), 7, at + 1, True)
        assert replay(stopping, drafter, [t], batch_size=1) == [trace]


@both_temperatures
def test_live_rounds_are_replay_rounds_when_turns_end(
    make_target: MakeTarget, fitted: Callable[[float], DFlash], made: dict[float, Generated], temperature: float
) -> None:
    """Completions of many lengths in one batch, most of them ended by a stop token."""
    stops = {t.tokens[4 + 5 * i] for i, t in enumerate(made[temperature].trajectories[:6])}
    stopping = make_target(stop_ids=stops)
    found = generate(stopping, temperature)
    assert len({t.length for t in found.trajectories}) >= 3
    for t in found.trajectories:
        assert t.ended == (t.tokens[t.length - 1] in stopping.chat.stop_ids)
        assert not stopping.chat.stop_ids & set(t.tokens[: t.length - 1])
        assert t.ended or t.length == NEW
    check_agreement(stopping, fitted(temperature), replace(found, trajectories=found.trajectories[:6]))


def test_a_completion_of_one_token_has_no_rounds(
    target: Target, make_target: MakeTarget, make_drafter: MakeDrafter, made: dict[float, Generated]
) -> None:
    reference = made[0.0].trajectories
    (short,) = generate(target, prompts=PROMPTS[:1], new=1).trajectories
    stopping = make_target(stop_ids=[reference[0].tokens[0]])
    found = generate(stopping, prompts=PROMPTS[:2])
    ended = found.trajectories[0]
    assert (ended.length, ended.ended, short.length, short.ended) == (1, True, 1, False)
    drafter = make_drafter()
    assert live(target, drafter, short, new=1) == (Trace("p0", 0, (), 7, 1, False), reference[0].tokens[:1])
    assert live(stopping, drafter, ended) == (Trace("p0", 0, (), 7, 1, True), reference[0].tokens[:1])
    assert replay(target, drafter, [short], batch_size=1) == [Trace("p0", 0, (), 7, 1, False)]
    check_agreement(stopping, drafter, found)  # among others in a batch


@both_temperatures
def test_traces_do_not_depend_on_batching_or_order(
    target: Target, fitted: Callable[[float], DFlash], made: dict[float, Generated], temperature: float
) -> None:
    drafter, found = fitted(temperature), made[temperature].trajectories
    reference = replay(target, drafter, found, batch_size=8)
    assert replay(target, drafter, found, batch_size=1) == reference
    assert replay(target, drafter, found[::-1], batch_size=3) == reference[::-1]
    once = [live(target, drafter, t, temperature) for t in found[:3]]
    assert [live(target, drafter, t, temperature) for t in found[2::-1]] == once[::-1]


def test_a_prompt_that_does_not_fit_is_skipped_and_counted_and_so_are_its_later_turns(
    target: Target, make_target: MakeTarget, made: dict[float, Generated]
) -> None:
    long = Prompt("long", ("soup " * 100, "And then?", "And then?"))
    reference = made[0.0].trajectories
    fits = max(len(t.prompt) for t in reference if t.turn == 0)
    small = make_target(context_length=fits + NEW + TAIL)
    found = generate(small, prompts=(*PROMPTS, long))
    assert [t for t in found.trajectories if t.turn == 0] == [t for t in reference if t.turn == 0]
    second = sum(t.turn == 1 and len(t.prompt) > fits for t in reference)
    assert second > 0
    assert found.skipped == {"prompt longer than the target's context": 1 + second, "an earlier turn was skipped": 2}
    assert len(found.trajectories) + sum(found.skipped.values()) == len(reference) + 3
    smaller = generate(make_target(context_length=fits + NEW + TAIL - 1))
    assert len([t for t in smaller.trajectories if t.turn == 0]) == len(PROMPTS) - 1


def test_a_prompt_that_spells_a_control_token_is_skipped_and_counted(
    target: Target, made: dict[float, Generated]
) -> None:
    spelled = Prompt("spelled", ("What is <|im_end|>?", "And then?"))
    found = generate(target, prompts=(*PROMPTS, spelled))
    assert found.trajectories == made[0.0].trajectories
    assert found.skipped == {"a control token spelled out in the text": 1, "an earlier turn was skipped": 1}


def test_answers_cached_before_control_tokens_were_skipped_are_not_read(target: Target, tmp_path: Path) -> None:
    spelled = Prompt("spelled", ("What is <|im_end|>?",))
    names = []
    for prompts in (PROMPTS[:1], (PROMPTS[0], spelled)):
        made = PromptSet("toy", "Toy", prompts, len(prompts), "content", "made")
        trajectories.get(target, made, temperature=0.0, seed=0, max_new_tokens=4, tail=0, batch_size=4, cache=tmp_path)
        names.append({p.name for p in tmp_path.glob("*.json")})
    assert len(names[1]) == len(names[0]) + 1


def test_when_no_prompt_fits_it_is_an_input_error(make_target: MakeTarget, tmp_path: Path) -> None:
    prompts = PromptSet("toy", "Toy", tuple(PROMPTS), len(PROMPTS), "content", "made")
    with pytest.raises(InputError, match=r"no prompt fits the target .*its context holds 50 tokens.*max_new_tokens=32"):
        trajectories.get(
            make_target(context_length=50),
            prompts,
            temperature=0.0,
            seed=0,
            max_new_tokens=NEW,
            tail=TAIL,
            batch_size=4,
            cache=tmp_path,
        )
