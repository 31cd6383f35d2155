"""The shared training loop: resume bit for bit, signals, non-finite loss, damaged and foreign checkpoints."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from specauf_cli.errors import InputError
from specauf_cli.training import loop, state
from specauf_cli.training.loop import Interrupted, Outcome, Training


def training(
    folder: Path, *, steps: int = 12, hook: Callable[[int], None] = lambda _: None, identity: str = "a"
) -> Training:
    """A small regression whose data are keyed by the step, as in the real trainings."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def step(i: int) -> Outcome:
        hook(i)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
        error = (module(x).squeeze(1) - x.sum(dim=1)).square()
        error.mean().backward()
        return Outcome(error.mean().detach(), {"n": torch.tensor(8)}, 8)

    return Training(
        name="toy",
        folder=folder,
        module=module,
        step=step,
        summary=lambda s: {"n": s["n"]},
        identity=identity,
        steps=steps,
        lr=1e-2,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        warmup=0.1,
        clip=1.0,
        log_every=3,
        save_every=4,
    )


def run(toy: Training) -> tuple[dict[str, float], float]:
    (ended,) = loop.run([toy])
    if ended.failure:
        raise ended.failure
    return ended.line, ended.seconds


def weights(toy: Training) -> list[torch.Tensor]:
    return [p.detach().clone() for p in toy.module.parameters()]


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines]


@pytest.mark.parametrize("at", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_continues_bit_for_bit(tmp_path: Path, at: int, number: signal.Signals) -> None:
    whole = training(tmp_path / "whole")
    expected, _ = run(whole)

    def stop(i: int) -> None:
        if i == at - 1:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        run(training(tmp_path / "cut", hook=stop))
    assert caught.value.exit_code == 128 + number
    assert f"step {at}" in str(caught.value)
    again = training(tmp_path / "cut")
    last, _ = run(again)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    assert last == expected


def test_crash_between_checkpoints_continues_from_the_last_one(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole")
    run(whole)

    def crash(i: int) -> None:
        if i == 9:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(training(tmp_path / "cut", hook=crash))
    seen: list[int] = []
    again = training(tmp_path / "cut", hook=seen.append)
    run(again)
    assert seen == [8, 9, 10, 11]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert log(tmp_path / "whole") == log(tmp_path / "cut")


@pytest.mark.parametrize(
    "change", [{"step": 99999}, {"identity": "b"}, {"sha256": []}, {"seconds": None}, {"window": 1}]
)
def test_an_altered_state_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    def crash(i: int) -> None:
        if i == 9:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(training(tmp_path, hook=crash))
    newest = sorted(tmp_path.glob("checkpoints/step-*/state.json"))[-1]
    newest.write_text(json.dumps({**json.loads(newest.read_text()), **change}))
    with pytest.raises(InputError, match=r"state\.json is damaged .* delete .* to go on from the one before"):
        run(training(tmp_path))


def test_checkpoints_come_by_the_clock_too(tmp_path: Path) -> None:
    def crash(i: int) -> None:
        if i == 6:
            raise MemoryError

    often = {"save_every": 10**6, "save_minutes": 1e-9}
    with pytest.raises(MemoryError):
        run(replace(training(tmp_path, hook=crash), **often))
    seen: list[int] = []
    run(replace(training(tmp_path, hook=seen.append), **often))
    assert seen == [6, 7, 8, 9, 10, 11]


def test_what_is_measured_on_the_way_is_in_the_log_and_changes_nothing(tmp_path: Path) -> None:
    plain, measured = training(tmp_path / "a"), training(tmp_path / "b")
    run(plain)
    run(replace(measured, measure=lambda done: {"tau": 1.0 + done} if done % 6 == 0 else {}))
    assert [x.get("tau") for x in log(tmp_path / "b")] == [None, 7.0, None, 13.0]
    assert [{k: v for k, v in x.items() if k != "tau"} for x in log(tmp_path / "b")] == log(tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(measured), strict=True))


def test_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    broken = training(tmp_path)

    def step(i: int) -> Outcome:
        found = job_step(i)
        return replace(found, loss=found.loss * float("nan")) if i == 6 else found

    job_step = broken.step
    with pytest.raises(InputError, match=r"loss nan.*step 7.*last good checkpoint") as caught:
        run(replace(broken, step=step))
    assert "\n" not in str(caught.value)
    last = state.latest(tmp_path / "checkpoints")
    assert last is not None
    assert last.name == "step-000004"
    assert all(torch.isfinite(p).all() for p in weights(broken))


def test_no_space_left_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:  # the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device; the last good checkpoint is .*step-000004"):
        run(training(tmp_path))
    monkeypatch.setattr(os, "fsync", real)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    run(training(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoint_is_one_line_naming_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(Interrupted):
        run(training(tmp_path, hook=lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 5 else None))
    path = tmp_path / "checkpoints" / "step-000006" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="step-000006") as caught:
        run(training(tmp_path))
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(training(tmp_path, hook=lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 5 else None))
    with pytest.raises(InputError, match="another configuration"):
        run(training(tmp_path, identity="b"))


def test_schedule_warms_up_then_falls_to_zero() -> None:
    toy = replace(training(Path()), steps=100, warmup=0.1)
    rates = [loop.learning_rate(toy, i) for i in range(100)]
    assert rates[0] == pytest.approx(toy.lr / 10)
    assert rates[9] == pytest.approx(toy.lr)
    assert max(rates) == pytest.approx(toy.lr)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.001 * toy.lr


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    run(training(tmp_path, steps=20))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000016", "step-000020"]


def test_the_newest_checkpoint_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    """As text 1000000 sorts before 999000."""
    toy = training(tmp_path)
    optimizer = torch.optim.AdamW(toy.module.parameters())
    for step in (999_000, 999_500, 1_000_000):
        state.save(tmp_path, state.content(toy.module, optimizer), step, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-999500"]
    assert state.latest(tmp_path) == tmp_path / "step-1000000"


def test_a_weight_that_no_gradient_reached_is_restored_too(tmp_path: Path) -> None:
    """It has no optimiser state, in the checkpoint as before it."""
    module = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module["used"](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved = state.save(tmp_path, state.content(module, optimizer), 1, {})
    again = torch.optim.AdamW(module.parameters(), fused=True)
    state.restore(saved, module, again)
    assert [len(again.state[p]) for p in module.parameters()] == [3, 3, 0, 0]
    for p in module["used"].parameters():
        for key, value in optimizer.state[p].items():
            assert torch.equal(again.state[p][key], value)
            assert again.state[p][key].device == p.device


@pytest.mark.gpu
def test_optimiser_state_goes_back_to_the_gpu(tmp_path: Path, gpu: str) -> None:
    """The fused AdamW of a GPU wants its step counter there."""
    module = nn.Linear(3, 1).to(gpu)
    for _ in range(2):
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        if state.latest(tmp_path):
            state.restore(tmp_path / "step-000001", module, optimizer)
        module(torch.ones(2, 3, device=gpu)).sum().backward()
        optimizer.step()
        state.save(tmp_path, state.content(module, optimizer), 1, {})
    assert optimizer.state[module.weight]["step"].item() == 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handling of SIGINT, which a process that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_in_the_very_last_step_still_stops_what_would_come_next(tmp_path: Path) -> None:
    """Everything is saved and nothing is left to do here, but an evaluation or another cell would follow."""
    whole = training(tmp_path / "whole")
    expected, _ = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(training(tmp_path / "cut", hook=lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 11 else None))
    again = training(tmp_path / "cut", hook=lambda _: pytest.fail("another step"))
    last, _ = run(again)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert {**last, "tokens_per_second": 0} == {**expected, "tokens_per_second": 0}


@pytest.mark.usefixtures("interruptible")
def test_ranks_get_a_signal_twice_and_save_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun passes on what its ranks have got themselves."""
    monkeypatch.setattr(loop.ranks, "WORLD", 2)

    def stopped() -> None:
        with loop._signals() as caught:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            assert caught() == signal.SIGINT

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_an_error_of_one_rank_is_raised_for_the_others_would_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.ranks, "WORLD", 2)
    monkeypatch.setattr(loop.ranks, "wait", lambda: None)
    monkeypatch.setattr(loop.ranks, "largest", lambda number, _: number)

    def full(_: int) -> None:
        raise InputError("No space left on device")

    with pytest.raises(InputError, match="No space left"):
        loop.run([replace(training(tmp_path), snapshot=full, shared=True)])
