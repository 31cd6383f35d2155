"""Training and measuring on a GPU: the same numbers as on a CPU where they must be, and exact where they must be."""

import json
import os
import signal
from pathlib import Path

import pytest

from helpers.commands import specauf
from specauf_cli.store.files import read_log
from specauf_cli.store.layout import log_of, record_paths
from specauf_cli.training.drafter import Outcome, Step

pytestmark = pytest.mark.gpu

SMALL = ("profile=smoke", "trainer.steps=6", "trainer.log_every=1", "trainer.save_every=3", "target.pretrain.steps=4")


def trained(folder: Path, *words: str) -> Path:
    """The folder of a run."""
    return folder / specauf(folder, "train", *SMALL, *words).stdout.strip()


@pytest.mark.parametrize(
    "drafter", [("objective=auf",), ("objective=full_ce",), ("objective=b_auf", "backbone=domino")], ids=lambda d: d[0]
)
def test_losses_are_those_of_a_cpu(tmp_path: Path, gpu: str, drafter: tuple[str, ...]) -> None:
    """One target, trained on the CPU, and in fp32 the same steps within rounding."""
    on_cpu = trained(tmp_path, *drafter, "device=cpu")
    on_gpu = trained(tmp_path, *drafter, f"device={gpu}", "runs=others", f"target.path={path_of_target(tmp_path)}")
    ours, theirs = (read_log(log_of(run)) for run in (on_gpu, on_cpu))
    assert len(ours) == len(theirs) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def path_of_target(folder: Path) -> Path:
    (marked,) = (f.parent for f in (folder / "runs" / "targets").glob("*/config.json"))
    return marked


def test_live_decoding_is_the_replay_and_the_targets_own_answer(tmp_path: Path, gpu: str) -> None:
    specauf(tmp_path, "train", *SMALL, "objective=auf", f"device={gpu}")
    specauf(tmp_path, "eval", f"device={gpu}", "evaluation.precision=fp32", "evaluation.audit=null")
    (run,) = (tmp_path / "runs").glob("dflash-auf-*")
    (record,) = (json.loads(path.read_text()) for path in record_paths(run))
    assert record["environment"]["device"] == gpu
    for benchmark in record["benchmarks"]:
        assert benchmark["audit"]["identical"] == benchmark["audit"]["requests"] > 0


def test_a_training_that_was_stopped_goes_on(tmp_path: Path, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a GPU may add in another order, so what follows is equal within rounding."""
    words = ("objective=auf", f"device={gpu}")
    whole = read_log(log_of(trained(tmp_path, *words)))
    count = [0]
    step = Step.__call__

    def stopped_in_the_fifth(self: Step, index: int) -> Outcome:
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, index)

    monkeypatch.setattr(Step, "__call__", stopped_in_the_fifth)
    specauf(tmp_path, "target", *SMALL, *words, "runs=cut")
    assert specauf(tmp_path, "train", *SMALL, *words, "runs=cut", check=False).returncode == 130
    assert count == [5]
    rest = read_log(log_of(trained(tmp_path, *words, "runs=cut")))
    assert count == [6]
    assert [line["loss"] for line in rest] == pytest.approx([line["loss"] for line in whole], rel=1e-3)
