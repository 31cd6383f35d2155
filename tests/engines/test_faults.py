"""Each known fault changes what it says and nothing else, live and in the replay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.drafters import every_backbone
from helpers.live import varied_norms
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.engines import faults
from specauf_cli.engines.along import Along, first_other_token, sampling
from specauf_cli.errors import InputError
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, decode
from specauf_cli.evaluation.turns import Request
from specauf_cli.models import checkpoint
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Message, Prompt, Trajectory

LENGTH, ANCHORS = 20, (9, 14)


@pytest.fixture
def drafter(make_drafter: Callable[..., DFlash]) -> DFlash:
    return varied_norms(make_drafter(3), 3)


def hidden(target: Target, drafter: DFlash, *, changed: int | None = None) -> Tensor:
    """Hidden states of two blocks after seeded tokens; ``changed``: a position whose features are others."""
    tokens = torch.randint(4, target.chat.vocab, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    features = target.features(tokens)
    if changed is not None:
        features = features.clone()
        features[:, changed] += 1
    anchors = torch.tensor([ANCHORS])
    with torch.no_grad():
        return drafter.hidden(target, drafter.context(features), tokens.gather(1, anchors), anchors)


@pytest.mark.parametrize("sight", [faults.Sight(), faults.Sight(inside=8), faults.Sight(window=LENGTH + 8)])
def test_an_attention_that_sees_everything_is_the_drafters(
    target: Target, drafter: DFlash, sight: faults.Sight
) -> None:
    same = faults.with_attention(drafter, sight)
    torch.testing.assert_close(hidden(target, same), hidden(target, drafter), rtol=1e-4, atol=1e-4)


def test_a_causal_block_does_not_see_what_comes_after(target: Target, drafter: DFlash) -> None:
    whole, short = faults.causal(drafter), faults.causal(faults.of_block(drafter, 4))
    torch.testing.assert_close(hidden(target, whole)[:, :, :3], hidden(target, short), rtol=1e-4, atol=1e-4)
    right = faults.of_block(drafter, 4)
    assert (hidden(target, drafter)[:, :, :3] - hidden(target, right)).abs().max() > 0.1


def test_a_window_hides_context_and_block(target: Target, drafter: DFlash) -> None:
    narrow = faults.windowed(drafter, 4)
    first, second = ANCHORS
    far, near = hidden(target, narrow, changed=0), hidden(target, narrow, changed=first - 1)
    assert torch.equal(far, hidden(target, narrow))
    assert not torch.equal(near[:, 0, :3], hidden(target, narrow)[:, 0, :3])
    assert torch.equal(near[:, 0, 3:], hidden(target, narrow)[:, 0, 3:]) is False, "slots see each other"
    assert torch.equal(near[:, 1], hidden(target, narrow)[:, 1]), f"{first - 1} is too far from {second}"
    inside = faults.inside(drafter, 4)
    assert not torch.equal(hidden(target, inside, changed=0), hidden(target, inside)), "the context is seen whole"


def test_a_first_norm_for_all_is_no_fault_where_norms_are_the_same(
    target: Target, drafter: DFlash, make_drafter: Callable[..., DFlash]
) -> None:
    plain = make_drafter(3)
    for change in (faults.first_norm, faults.first_norm_of_context):
        torch.testing.assert_close(hidden(target, change(plain)), hidden(target, plain), rtol=1e-4, atol=1e-4)
        assert (hidden(target, change(drafter)) - hidden(target, drafter)).abs().max() > 0.01
    apart = hidden(target, faults.first_norm(drafter)) - hidden(target, faults.first_norm_of_context(drafter))
    assert apart.abs().max() > 0.01, "of the context alone is another fault"


def test_shifted_taps_are_the_neighbours(target: Target) -> None:
    tokens = torch.randint(4, target.chat.vocab, (1, LENGTH))
    own, before, after = (t.features(tokens) for t in (target, faults.shifted(target, -1), faults.shifted(target, 1)))
    width = target.hidden_size
    assert torch.equal(before[..., :width], target.embed(tokens)), "before the first layer is the embedding"
    assert torch.equal(before[..., width:], own[..., : 2 * width])
    assert torch.equal(after[..., : 2 * width], own[..., width:])
    assert target.taps == (0, 1, 2), "the target itself is as it was"
    with pytest.raises(InputError, match="no layer 4 to tap"):
        faults.shifted(target, 2)


def test_precision_and_sizes(target: Target, drafter: DFlash) -> None:
    low = faults.in_precision(target, "bf16")
    assert (low.model.dtype, target.model.dtype) == (torch.bfloat16, torch.float32)
    assert faults.in_precision(target, "fp32") is target
    assert next(faults.drafter_in_precision(drafter, "bf16").parameters()).dtype == torch.bfloat16
    assert next(drafter.parameters()).dtype == torch.float32
    sizes = faults.of_block(drafter, 5).backbone, faults.of_proposals(drafter, 3).backbone, drafter.backbone
    assert [(b.block_size, b.proposals) for b in sizes] == [(5, 4), (8, 3), (8, 7)]


def test_renderings_differ_from_the_right_one(target: Target) -> None:
    talk = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    right = target.chat.prompt(talk)
    made = {title: render(target.chat, talk) for title, render in faults.RENDERINGS.items()}
    same = {title for title, tokens in made.items() if tokens == right}
    assert same == {
        "is rendered as ChatML, not by the target's own template",
        "is rendered with thinking switched on",
    }, "this target's template is ChatML without a thinking switch"
    assert len(set(made.values())) == len(made) - 1


def test_every_kind_is_tried_in_order(drafter: DFlash) -> None:
    tried = list(faults.known_faults(drafter, {"other": lambda: drafter}, longest=40))
    assert list(dict.fromkeys(f.kind for f in tried)) == list(faults.KINDS)
    assert len({f.title for f in tried}) == len(tried)
    plain = {f.kind for f in faults.known_faults(None, {}, longest=40)}
    assert plain == {"dtype", "template"}


@pytest.fixture(scope="module")
def answers(target: Target) -> list[Trajectory]:
    prompts = [Prompt(f"p{i}", (text,)) for i, text in enumerate(("What is 3 + 4?", "Write a list of 5 words."))]
    found = trajectories.generate(
        target, prompts, temperature=0.0, seed=0, max_new_tokens=12, tail=16, batch_size=2
    ).trajectories
    return list(found)


@pytest.mark.parametrize(
    "fault",
    [
        faults.Fault("causal", "", drafter=faults.causal),
        faults.Fault("first_norm", "", drafter=faults.first_norm_of_context),
        faults.Fault("window", "", drafter=lambda d: faults.windowed(d, 16)),
        faults.Fault("layers", "", target=lambda t: faults.shifted(t, -1)),
    ],
    ids=lambda f: f.kind,
)
def test_a_fault_is_the_same_live_and_in_the_replay(
    target: Target, drafter: DFlash, answers: list[Trajectory], fault: faults.Fault
) -> None:
    served, drafts = fault.target(target), fault.drafter(drafter)
    given = [(t.prompt, t.tokens[: t.length], t.tokens[t.length :]) for t in answers]
    replayed = Along(served, drafts, None, 2).follow(given)
    for trajectory, ours in zip(answers, replayed, strict=True):
        request = Request("x", "x", 0, trajectory.prompt)
        proposer = Drafted(served, drafts)
        trace, tokens, _ = decode(served, proposer, request, temperature=0.0, seed=0, max_new_tokens=12)
        assert tokens == trajectory.tokens[: trajectory.length]
        assert trace.accepted == ours.accepted


def test_a_token_that_is_not_greedy_is_found_with_its_gap(target: Target, answers: list[Trajectory]) -> None:
    prompt, tokens = answers[0].prompt, answers[0].tokens[: answers[0].length]
    assert first_other_token(target, prompt, tokens) is None
    wrong = (*tokens[:5], (tokens[5] + 1) % target.chat.vocab, *tokens[6:])
    found = first_other_token(target, prompt, wrong)
    assert found is not None
    at, own, gap, scale = found
    assert (at, own) == (5, tokens[5])
    assert 0 < gap <= 2 * scale


def test_draws_of_the_target_pass_and_others_do_not(target: Target, answers: list[Trajectory]) -> None:
    prompts = [Prompt(f"q{i}", (f"Say {i}.",)) for i in range(12)]
    made = {
        temperature: trajectories.generate(
            target, prompts, temperature=temperature, seed=1, max_new_tokens=40, tail=1, batch_size=12
        ).trajectories
        for temperature in (0.0, 1.0, 1.5)
    }
    found = {t: sampling(target, [(a.prompt, a.tokens[: a.length]) for a in known], 1.0) for t, known in made.items()}
    assert all(s is not None for s in found.values())
    assert found[1.0] is not None
    assert abs(found[1.0].z) < 4
    assert found[0.0] is not None
    assert found[0.0].z < -4, "greedy answers are too likely"
    assert found[1.5] is not None
    assert found[1.5].z > 4, "a higher temperature gives unlikelier ones"


def test_an_original_is_never_changed(target: Target, drafter: DFlash) -> None:
    before = copy.deepcopy(drafter.state_dict())
    backbone = replace(drafter.backbone)
    for fault in faults.known_faults(drafter, {}, longest=20):
        fault.drafter(drafter)
    assert drafter.backbone == backbone
    assert all(torch.equal(a, b) for a, b in zip(before.values(), drafter.state_dict().values(), strict=True))


@every_backbone
def test_a_drafter_of_any_kind_has_its_faults_or_says_that_it_cannot(
    target: Target, of: Callable[..., BackboneConfig], answers: list[Trajectory], name: str
) -> None:
    drafter = checkpoint.create(target, of(name))
    drafter.initialise(4)
    given = [(t.prompt, t.tokens[: t.length], t.tokens[t.length :]) for t in answers]
    worked: set[str] = set()
    for fault in faults.known_faults(drafter.eval(), {}, longest=20):
        try:
            served, drafts = fault.target(target), fault.drafter(drafter)
        except InputError:
            continue
        if fault.prompt is None:
            assert len(Along(served, drafts, None, 2).follow(given)) == len(given)
            worked.add(fault.kind)
    layers = {"causal", "first_norm", "window"}
    assert worked == {"layers", "proposals", "dtype"} | (layers if hasattr(drafter, "layers") else set())


def test_a_target_whose_last_state_is_read_has_no_other_taps(make_target: Callable[..., Target]) -> None:
    with pytest.raises(InputError, match="no layer"):
        faults.shifted(make_target(taps="last"), 1)
