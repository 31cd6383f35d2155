"""The audit: nothing to report in fp32, every deviation counted, and each priced by the target's own logits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from specauf_cli.evaluation import audit as audits
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.audit import Report, audit
from specauf_cli.evaluation.decode import Drafted, decode
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Prompt, Trace, Trajectory

MakeDrafter = Callable[..., DFlash]
NEW = 16
PROMPTS = (Prompt("p0", ("Hi",)), Prompt("p1", ("What is 2 + 3?",)), Prompt("p2", ("Name a color.", "And another?")))


@pytest.fixture(scope="module")
def made(target: Target) -> tuple[Trajectory, ...]:
    found = trajectories.generate(
        target, PROMPTS, temperature=0.0, seed=0, max_new_tokens=NEW, tail=8, batch_size=4
    ).trajectories
    assert len(found) == 4
    return found


@pytest.fixture(scope="module")
def drafter(make_drafter: MakeDrafter) -> DFlash:
    return make_drafter()


@torch.no_grad()
def gap(target: Target, before: tuple[int, ...], token: int) -> float:
    """How far below the best logit ``token`` is after ``before``: the whole text read anew, no cache, no batch."""
    logits = target.model(torch.tensor([before])).logits[0, -1, : target.chat.vocab]
    return float(logits.max() - logits[token])


def with_weights(target: Target, change: Callable[[torch.nn.Module], object]) -> Target:
    model = copy.deepcopy(target.model)
    change(model)
    return Target(model, target.chat, target.config, "changed")


def test_fp32_output_is_identical_and_has_no_regret(
    target: Target, drafter: DFlash, made: tuple[Trajectory, ...]
) -> None:
    found = audit(target, target, drafter, made, max_new_tokens=NEW)
    assert found == Report(4, 4, sum(t.length for t in made), ())
    line = found.line("Toy")
    assert (
        line
        == f"Toy: 4 of 4 outputs equal the target's own greedy output; every one of {found.tokens} tokens is the fp32 "
        "argmax"
    )


@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_trajectory_that_was_tampered_with_is_counted_as_different(
    target: Target, drafter: DFlash, made: tuple[Trajectory, ...], at: int
) -> None:
    tokens = list(made[2].tokens)
    tokens[at if at >= 0 else made[2].length - 1] += 1
    found = audit(target, target, drafter, [made[1], replace(made[2], tokens=tuple(tokens))], max_new_tokens=NEW)
    assert (found.requests, found.identical, found.regrets) == (2, 1, ())


def test_a_trajectory_of_another_length_is_counted_as_different(
    target: Target, drafter: DFlash, made: tuple[Trajectory, ...]
) -> None:
    found = audit(target, target, drafter, [replace(made[0], length=made[0].length - 1)], max_new_tokens=NEW)
    assert found.identical == 0
    tail = replace(made[0], tokens=(*made[0].tokens[: made[0].length], 5, 5, 5))  # what follows the end is not output
    assert audit(target, target, drafter, [tail], max_new_tokens=NEW).identical == 1


@pytest.mark.parametrize("at", [0, 5, -1])
def test_regret_of_a_wrong_token_is_its_logit_gap(
    target: Target, drafter: DFlash, made: tuple[Trajectory, ...], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong token is forced; what follows is the target's own continuation, so nothing else has a gap."""
    own = made[1]
    at = at % own.length
    wrong = (own.tokens[at] + 3) % target.chat.vocab
    before = (*own.prompt, *own.tokens[:at])
    emitted = [*own.tokens[:at], wrong]
    while len(emitted) < own.length:
        with torch.no_grad():
            logits = target.model(torch.tensor([[*own.prompt, *emitted]])).logits[0, -1, : target.chat.vocab]
        emitted.append(int(logits.argmax()))

    def forced(*_: object, **__: object) -> list[tuple[Trace, tuple[int, ...]]]:
        return [(Trace(own.prompt_id, own.turn, (), 7, len(emitted), False), tuple(emitted))]

    monkeypatch.setattr(audits, "decode_all", forced)
    found = audit(target, target, drafter, [own], max_new_tokens=NEW)
    assert (found.identical, found.tokens) == (0, own.length)
    assert found.regrets == pytest.approx((gap(target, before, wrong),), rel=1e-3)
    assert f"1 of {own.length} tokens are not the fp32 argmax" in found.line("x")


def test_regrets_of_a_target_with_other_weights_are_those_of_the_exact_one(
    target: Target, drafter: DFlash, made: tuple[Trajectory, ...]
) -> None:
    """Live decoding by a target whose last layer is missing: its tokens are judged by the whole one, prefix by
    prefix."""

    def silence(model: Any) -> None:
        model.model.layers[3].mlp.down_proj.weight.zero_()

    other = with_weights(target, silence)
    found = audit(target, other, drafter, made, max_new_tokens=NEW)
    assert found.identical < 4
    expected = []
    for t in made:
        _, emitted, _ = decode(other, Drafted(other, drafter), t, temperature=0.0, seed=0, max_new_tokens=NEW)
        gaps = [gap(target, (*t.prompt, *emitted[:i]), emitted[i]) for i in range(len(emitted))]
        expected += [g for g in gaps if g > 1e-3]
    assert len(expected) > 10
    assert found.regrets == pytest.approx(expected, rel=1e-3)
    shown = re.search(r"regret mean (\S+), largest (\S+) \(logits\)", found.line("Toy"))
    assert shown
    assert [float(x) for x in shown.groups()] == pytest.approx([sum(expected) / len(expected), max(expected)], rel=1e-3)


def test_bf16_runs_and_its_regrets_are_positive(
    target: Target, make_drafter: MakeDrafter, made: tuple[Trajectory, ...]
) -> None:
    low = with_weights(target, lambda m: m.to(torch.bfloat16))
    found = audit(target, low, make_drafter(of=low).to(torch.bfloat16), made, max_new_tokens=NEW)
    assert found.requests == 4
    assert found.tokens >= sum(t.length for t in made) * 0.5
    assert all(r > 0 for r in found.regrets)
    assert (found.identical == 4) <= (not found.regrets), "an output that equals the trajectory has no regret"
    assert len(found.regrets) < found.tokens / 2, "bf16 may differ here and there, not at every other token"


def test_the_line_of_a_report_with_regrets() -> None:
    line = Report(3, 1, 50, (0.01, 0.03)).line("GSM8K, bf16")
    assert line.startswith("GSM8K, bf16: 1 of 3 outputs equal")
    assert line.endswith("2 of 50 tokens are not the fp32 argmax, regret mean 0.0200, largest 0.0300 (logits)")
