"""``specauf data fetch`` against a local fake of the hub: what it writes is what the loaders read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specauf_cli.config.schema import BenchmarkConfig, DataConfig
from specauf_cli.data import benchmarks as bm
from specauf_cli.data import conversations as cv
from specauf_cli.data.fetch import fetch
from specauf_cli.errors import InputError

GSM8K = BenchmarkConfig(
    name="gsm8k",
    title="GSM8K",
    column="gsm8k",
    source="hub",
    family=None,
    hub_id="openai/gsm8k",
    subset="main",
    split="test",
    revision="main",
    turns=("question",),
    template="{turn} Reason.",
    file="gsm8k.jsonl",
    limit=2,
    seed=0,
)
MT_BENCH = replace(
    GSM8K,
    name="mt_bench",
    hub_id="HuggingFaceH4/mt_bench_prompts",
    subset=None,
    split="train",
    turns=("prompt",),
    template="{turn}",
    file="mt_bench.jsonl",
)
OFFLINE = replace(GSM8K, name="offline_chat", source="offline", family="chat", hub_id=None, file=None)
SHAREGPT = DataConfig(
    name="sharegpt",
    source="hub",
    path=None,
    hub_id="Aeala/ShareGPT",
    revision="main",
    files="part.json",
    limit=None,
    heldout=1,
    seed=0,
)
BENCHMARKS = {one.name: one for one in (GSM8K, MT_BENCH, OFFLINE)}


class Hub:
    """Local files under the ids of the hub, read by the real ``datasets``; ``asked`` counts what was downloaded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        self.folder, self.real, self.asked = folder, datasets.load_dataset, list[str]()
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def publish(self, hub_id: str, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.folder / hub_id / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))

    def load(self, path: str, *, name: str | None, split: str, revision: str, data_files: str | None) -> Any:
        self.asked.append(path)
        if not (self.folder / path).is_dir():
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed.")
        files = data_files or f"{split}.jsonl"
        local = str(self.folder / path / files)
        return self.real("json", data_files={split: local}, split=split, cache_dir=str(self.folder / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub", monkeypatch)
    made.publish("openai/gsm8k", "test.jsonl", [{"question": f"q{i} é", "answer": str(i)} for i in range(5)])
    made.publish(
        "HuggingFaceH4/mt_bench_prompts",
        "train.jsonl",
        [{"category": "math", "prompt": ["a", "b"], "reference": ["r"], "prompt_id": 3}],
    )
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    made.publish(
        "Aeala/ShareGPT",
        "part.json",
        [
            {"id": "x", "conversations": turns},
            {"id": "y", "conversations": turns[:1]},
            {"id": "z", "conversations": turns},
        ],
    )
    return made


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_what_is_written_is_what_the_loaders_read(hub: Hub, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    fetch(out, BENCHMARKS, SHAREGPT, echo=said.append)
    assert files(out) == {"benchmarks/gsm8k.jsonl", "benchmarks/mt_bench.jsonl", "train/sharegpt.jsonl"}
    rows = [json.loads(line) for line in (out / "benchmarks/gsm8k.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"id": "gsm8k-0", "turns": ["q0 é"], "reference": "0", "category": None}
    assert len(rows) == 5  # all rows, without template or limit
    for one in (GSM8K, MT_BENCH):
        local, remote = bm.load(one, root=out / "benchmarks"), bm.load(one, root=None)
        assert (local.prompts, local.total, local.sha256) == (remote.prompts, remote.total, remote.sha256)
    written, read = cv.load_jsonl(out / "train"), cv.load_hub("Aeala/ShareGPT", revision="main", files="part.json")
    assert written.conversations == read.conversations
    assert len(read.conversations) == 2
    assert len(said) == 4
    assert any("dropped: 1 does not end" in line for line in said)
    assert any(line.startswith("offline_chat") and "nothing to fetch" in line for line in said)


def test_files_already_there_are_kept_and_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    (out / "benchmarks").mkdir(parents=True)
    (out / "benchmarks/gsm8k.jsonl").write_text("mine")
    fetch(out, BENCHMARKS, SHAREGPT, echo=said.append)
    assert (out / "benchmarks/gsm8k.jsonl").read_text() == "mine"
    assert "openai/gsm8k" not in hub.asked
    assert any("gsm8k: already there" in line for line in said)
    asked = len(hub.asked)
    fetch(out, BENCHMARKS, SHAREGPT, echo=said.append)
    assert len(hub.asked) == asked


def test_a_failure_names_its_set_and_does_not_stop_the_others(hub: Hub, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    broken = {**BENCHMARKS, "gsm8k": replace(GSM8K, hub_id="openai/gsm9k"), "none": replace(GSM8K, file=None)}
    with pytest.raises(InputError, match="2 of the sets could not be fetched: gsm8k, none"):
        fetch(out, broken, SHAREGPT, echo=said.append)
    assert files(out) == {"benchmarks/mt_bench.jsonl", "train/sharegpt.jsonl"}
    (line,) = [line for line in said if line.startswith("gsm8k: FAILED")]
    assert "openai/gsm9k" in line
    assert "\n" not in line


def test_an_interrupted_write_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_source: object, _target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specauf_cli.data.fetch.os.replace", full)
    said = list[str]()
    with pytest.raises(InputError, match="gsm8k, sharegpt"):
        fetch(tmp_path / "out", {"gsm8k": GSM8K}, SHAREGPT, echo=said.append)
    assert files(tmp_path / "out") == set()
    assert any("No space left" in line for line in said)
