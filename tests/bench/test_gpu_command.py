"""``make gpu``, as far as it can be seen without a GPU: small on a CPU, its time, the paper's sizes without memory."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, records
from benchmarks.gpu import PARTS, STEPS, Job, Part, Setting
from benchmarks.limits import card, counted
from specauf_cli.config import compose, names
from specauf_cli.config.schema import Config
from specauf_cli.config.specs import load_spec
from specauf_cli.models import sizes
from specauf_cli.models.target import Target, taps_of
from specauf_cli.planning.plan import GPUS, Plan, estimated, make_plan
from specauf_cli.store.provenance import environment

ON_A_CPU = ("--device", "cpu", "--small")


@pytest.mark.slow
def test_the_whole_command_runs_small_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ON_A_CPU, "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert gpu.main(words) == 0, capsys.readouterr()
    text = (tmp_path / "gpu.json").read_text()
    parts = json.loads(text)["parts"]
    assert list(parts) == ["tests", "steps", "attention", "study"]
    assert all(p["status"] == "done" and p["small"] and p["seconds"] > 0 for p in parts.values())
    assert all({"date", "command", "environment", "code", "load"} <= set(p) for p in parts.values())
    assert parts["tests"]["passed"] >= 7
    (step,) = parts["steps"]["rows"].values()
    assert step["share of peak"] > 0
    (both,) = parts["attention"]["rows"].values()
    assert both["largest difference"] < 0.05, "bf16"
    assert list(parts["study"]["records"].values()) == [1]
    assert parts["study"]["tables"] == ["smoke-table2.md"]
    capsys.readouterr()

    assert gpu.main(words) == 0
    assert capsys.readouterr().out.count(": done at ") == 4
    assert gpu.main([*words, "--again", "steps", "--minutes", "0.1"]) == 3
    assert "steps: no time left; the same command continues" in capsys.readouterr().out
    assert (tmp_path / "gpu.json").read_text() == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no CUDA device here"),
        (("--device", "cpu"), "add --small"),
        ((*ON_A_CPU, "--minutes", "0"), "--minutes 0 must be above 0"),
        (
            (*ON_A_CPU, "--only", "step"),
            "unknown part 'step'; valid: tests, steps, attention, study. Did you mean 'steps'",
        ),
        ((*ON_A_CPU, "--again", "studies"), "Did you mean 'study'"),
    ],
)
def test_what_cannot_run_is_one_line(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([*words, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("make gpu: ")
    assert said in line
    assert not (tmp_path / "gpu.json").exists()


def test_time_is_divided_and_the_study_gets_the_rest() -> None:
    left, spent = 28 * 60.0, []
    for part in PARTS.values():
        seconds = gpu.share(part, left)
        assert seconds is not None
        assert seconds + records.GRACE <= left
        spent.append(seconds)
        left -= seconds
    assert spent[-1] == max(spent) >= 12 * 60
    assert gpu.share(PARTS["study"], 60) is None


def job(content: dict[str, Any], seconds: float) -> Job:
    return Job(Setting("cpu", True, Path("runs"), None), content, lambda: None, time.monotonic() + seconds)


def test_a_cell_is_ended_when_the_time_of_its_part_is_up() -> None:
    late = job({}, 1.0)
    begin = time.monotonic()
    assert gpu.attention(late) == "unfinished"
    assert time.monotonic() - begin < records.GRACE
    assert late.content == {"rows": {}}


def test_a_part_without_time_keeps_its_cells_and_one_with_all_of_them_measures_none() -> None:
    row = {"share of peak": 0.4}
    assert gpu.steps(job({"rows": dict.fromkeys(gpu.SMALL_STEPS, row)}, 0)) == "done"
    assert gpu.steps(job({}, 0)) == "unfinished"


@pytest.mark.parametrize(("changed", "kept"), [({}, True), ({"commit": "other"}, False)])
def test_a_part_that_was_cut_goes_on_with_its_cells_while_the_code_is_the_same(
    changed: dict[str, str], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def work(at: Job) -> str:
        seen.append(at.content.get("rows"))
        return "done"

    monkeypatch.setitem(PARTS, "steps", Part(work, 60, 1))
    known = {
        "status": "unfinished",
        "seconds": 100.0,
        "small": True,
        "rows": {"a cell": {}},
        "environment": environment("cpu", 1),
        "code": {**records.code(), **changed},
    }
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {"steps": known}}))
    assert gpu.main([*ON_A_CPU, "--only", "steps", "--out", str(tmp_path)]) == 0
    assert seen == [{"a cell": {}} if kept else None]
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]["steps"]
    assert (found["seconds"] >= 100) == kept


def test_a_record_of_another_device_is_measured_again() -> None:
    setting = Setting("cpu", True, Path("runs"), None)
    here = {"small": True, "environment": environment("cpu", 1)}
    assert gpu.same_place(here, setting)
    assert not gpu.same_place({**here, "small": False}, setting)
    assert not gpu.same_place({**here, "environment": {**here["environment"], "gpu": "NVIDIA H200"}}, setting)


def test_without_conversations_the_study_is_left_out_and_says_why(tmp_path: Path) -> None:
    at = Job(Setting("cuda", False, tmp_path, tmp_path), {}, lambda: None, time.monotonic() + 1)
    assert gpu.study(at) == "skipped"
    assert "SPECAUF_DATA=DIR" in at.content["why"]


def test_the_study_is_of_rows_that_its_tables_have() -> None:
    config = compose.compose([*(w for w in gpu.STUDY if "=" in w), "data_root=DIR"])
    assert config.profile.name == "h200"
    tables = [load_spec(word) for word in gpu.STUDY[:2]]
    rows = {row.objective for table in tables for row in table.rows}  # type: ignore[union-attr]
    assert set(gpu.STUDY[gpu.STUDY.index("--only") + 1].split(",")) <= rows


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_the_name_it_gives_itself(name: str, found: str | None) -> None:
    assert card(name) == found
    assert found is None or found in GPUS


# --- the paper's sizes, without weights ---


def planned(words: tuple[str, ...]) -> tuple[Config, Plan]:
    config = compose.compose([word for word in words if not word.startswith("device")])
    return config, make_plan(config, sizes.of(config.target), estimated(config, None), on_gpu=True)


@pytest.mark.parametrize("name", STEPS)
def test_every_step_fits_into_a_card_of_80_gb(name: str) -> None:
    config, plan = planned(STEPS[name])
    assert (config.backbone.layers, config.backbone.block_size, config.trainer.precision) == (5, 16, "bf16")
    assert config.trainer.anchors == (256 if "Domino" in name else 512)
    assert f"width {plan.sizes.hidden_size}" in name
    assert round(plan.sizes.vocab_size, -3) == 152_000
    assert sum(plan.memory.values()) < 0.9 * GPUS["h100"][1]
    assert (plan.lengths.mean + 16) % 32 == 0, "padded to just the width that the plan counts with"


@pytest.mark.parametrize("name", [n for n in STEPS if "DFlash AUF" in n])
def test_the_drafter_at_the_papers_sizes_has_the_shapes_and_the_work_that_the_plan_counts(
    name: str, target: Target
) -> None:
    """Products counted by PyTorch on tensors without memory, one sequence, forward and backward. Split attention
    computes the scores that flex does, and none between blocks."""
    config, plan = planned(STEPS[name])
    backbone = replace(config.backbone, attention="split")
    taps, width, length = len(taps_of(config.target.taps, plan.sizes.layers)), plan.sizes.hidden_size, 1312
    with FakeTensorMode():
        drafter = names.backbone(backbone)(sizes.draft_layer(plan.sizes, backbone), backbone, taps, 0, **backbone.knobs)
        places = torch.zeros(1, config.trainer.anchors, dtype=torch.long)
        features = torch.zeros(1, length, taps * width)
        wide = copy.copy(target)  # of a target a drafter needs only the embedding
        wide.embed = nn.Embedding(8, width).requires_grad_(False)  # type: ignore[method-assign]
        with FlopCounterMode(display=False) as counter:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = drafter.hidden(wide, drafter.context(features), places, places)
            hidden.float().square().mean().backward()
    assert hidden.shape == (1, 512, 15, width)
    ours = plan.work["drafter"] / config.trainer.batch_size
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.03)


def test_rows_of_a_pruned_head_are_counted_as_they_were_computed() -> None:
    _, auf = planned(STEPS["DFlash AUF, width 4096"])
    row = 2 * auf.sizes.hidden_size * auf.sizes.vocab_size
    assert auf.head == "pruned"
    assert counted(auf, 1000)["head"] - counted(auf, 0)["head"] == pytest.approx(2000 * row)
    assert counted(auf, 0)["head"] == pytest.approx(0, abs=row)
    _, full = planned(STEPS["DFlash full-CE, width 4096"])
    assert counted(full, 1000) == full.work
