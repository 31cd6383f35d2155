"""The study for one large GPU, run small on a CPU: every setting of its profile but sizes and lengths, on data in its
layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import specauf
from specauf_cli.data import offline

BENCHMARKS = ("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "alpaca")
SMALL = [
    "target.pretrain.vocab_size=400",
    "target.pretrain.hidden_size=32",
    "target.pretrain.heads=2",
    "target.pretrain.kv_heads=1",
    "target.pretrain.head_dim=16",
    "target.pretrain.intermediate_size=64",
    "target.pretrain.steps=6",
    "target.pretrain.rows=4",
    "target.pretrain.row_length=64",
    "data.heldout=12",
    "trainer.steps=4",
    "trainer.batch_size=4",
    "trainer.micro_batch=4",
    "trainer.max_length=128",
    "trainer.anchors=4",
    "backbone.layers=1",
    "domino.gru_hidden_dim=8",
    "domino.emb_dim=4",
    "evaluation.prompts=2",
    "evaluation.max_new_tokens=8",
    "evaluation.audit=1",
    "evaluation.heldout_anchors=4",
]


@pytest.mark.slow
def test_one_command_runs_the_study(tmp_path: Path) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/benchmarks").mkdir()
    rows = [
        {"id": c.id, "conversations": [{"role": m.role, "content": m.content} for m in c.messages]}
        for c in offline.conversations(200, seed=5).conversations
    ]
    (tmp_path / "data/train/own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in BENCHMARKS:
        prompts = [{"id": f"{name}-{i}", "turns": [f"{name}: what comes after {i}?"]} for i in range(3)]
        (tmp_path / f"data/benchmarks/{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    words = [
        "table",
        "table2",
        "table4",
        "--only",
        "decay,auf,b_auf",
        "profile=h200",
        "data_root=data",
        "device=cpu",
        *SMALL,
    ]
    printed = specauf(tmp_path, *words).stdout
    assert "Profile `h200`" in printed
    assert "Table 4. Domino" in printed
    runs = sorted((tmp_path / "runs").glob("*-medium-h200-s0-*"))
    assert [r.name.split("-")[:2] for r in runs] == [
        ["dflash", "auf"],
        ["dflash", "decay"],
        ["domino", "b_auf"],
        ["domino", "decay"],
    ]
    for run in runs:
        (record,) = (json.loads(p.read_text()) for p in (run / "records").glob("*.json"))
        assert {b["temperature"] for b in record["benchmarks"]} == {0.0, 1.0}
        assert len(record["benchmarks"]) == 12
        assert all(b["audit"]["identical"] == b["audit"]["requests"] == 1 for b in record["benchmarks"])
    again = specauf(tmp_path, *words)
    assert again.stderr.count("measured already") == 4
