"""Benchmarks: every yaml, the hub's field names through real local files, templates, subsets, bad input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from specauf_cli.config.schema import BenchmarkConfig
from specauf_cli.data import benchmarks as bm
from specauf_cli.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "benchmark"
REAL = ["gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "alpaca"]
LIMITS = {"gsm8k": 200, "math500": 200, "humaneval": 164, "mbpp": 200, "mt_bench": 80, "alpaca": 200}
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

# Two rows of each set with the hub's own field names; the braces and brackets are there to trip a naive template.
HUB_ROWS: dict[str, list[dict[str, object]]] = {
    "gsm8k": [{"question": "1 {turn} 2?", "answer": "3\n#### 3"}, {"question": "{x}", "answer": "4"}],
    "math500": [
        {
            "problem": "$\\frac{1}{2}$",
            "solution": "s",
            "answer": "a",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "t/1",
        },
        {"problem": "p", "solution": "s", "answer": "b", "subject": "Geometry", "level": 2, "unique_id": "t/2"},
    ],
    "humaneval": [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def f{i}():\n",
            "canonical_solution": "  pass",
            "test": "",
            "entry_point": "f",
        }
        for i in range(2)
    ],
    "mbpp": [
        {
            "source_file": "b",
            "task_id": i,
            "prompt": f"Write {i}.",
            "code": "pass",
            "test_imports": [],
            "test_list": ["x"],
        }
        for i in (11, 12)
    ],
    "mt_bench": [
        {"category": "math", "prompt": ["first", "second"], "reference": ["r1", "r2"], "prompt_id": 7},
        {"category": "writing", "prompt": ["one", "two"], "reference": [], "prompt_id": 8},
    ],
    "alpaca": [
        {"instruction": "Sum [1] {input}", "input": "2 {x}", "output": "o", "text": "t"},
        {"instruction": "Name one.", "input": "", "output": "p", "text": "t"},
    ],
}


def read_yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())  # type: ignore[no-any-return]


def config(name: str, **changes: Any) -> BenchmarkConfig:
    keys = read_yaml(name)[name]
    return replace(BenchmarkConfig(**{**keys, "turns": tuple(keys["turns"])}), **changes)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, list[dict[str, object]]], None]:
    """A local hub: each id a real parquet file, read by the real ``datasets``; records what was asked for."""
    import datasets

    real = datasets.load_dataset
    files: dict[str, Path] = {}

    def load(path: str, name: str | None = None, **asked: Any) -> Any:
        assert asked.pop("revision") == "main"
        place = f"{path}/{name}/{asked['split']}"
        if place not in files:
            raise ConnectionError(f"Couldn't reach\n{place!r} on the Hub")
        assert asked.pop("data_files") is None
        return real(
            "parquet", data_files={asked["split"]: str(files[place])}, cache_dir=str(tmp_path / "cache"), **asked
        )

    def publish(place: str, rows: list[dict[str, object]]) -> None:
        files[place] = tmp_path / f"{len(files)}.parquet"
        datasets.Dataset.from_list(rows).to_parquet(str(files[place]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return publish


PLACES = {
    "gsm8k": "openai/gsm8k/main/test",
    "math500": "HuggingFaceH4/MATH-500/None/test",
    "humaneval": "openai/openai_humaneval/None/test",
    "mbpp": "google-research-datasets/mbpp/sanitized/test",
    "mt_bench": "HuggingFaceH4/mt_bench_prompts/None/train",
    "alpaca": "tatsu-lab/alpaca/None/train",
}
EXPECTED = {
    "gsm8k": [
        ("gsm8k-0", (f"1 {{turn}} 2?\n{BOXED}",), None, "3\n#### 3"),
        ("gsm8k-1", (f"{{x}}\n{BOXED}",), None, "4"),
    ],
    "math500": [
        ("t/1", (f"$\\frac{{1}}{{2}}$\n{BOXED}",), "Algebra", "a"),
        ("t/2", (f"p\n{BOXED}",), "Geometry", "b"),
    ],
    "humaneval": [
        (
            f"HumanEval/{i}",
            (
                "Write a solution to the following problem and make sure that it passes the tests:\n"
                f"```python\ndef f{i}():\n\n```",
            ),
            None,
            "  pass",
        )
        for i in range(2)
    ],
    "mbpp": [("mbpp-11", ("Write 11.",), None, "pass"), ("mbpp-12", ("Write 12.",), None, "pass")],
    "mt_bench": [
        ("mt_bench-7", ("first", "second"), "math", "r1\n\nr2"),
        ("mt_bench-8", ("one", "two"), "writing", None),
    ],
    "alpaca": [
        ("alpaca-0", ("Sum [1] {input}\n\nInput:\n2 {x}",), None, "o"),
        ("alpaca-1", ("Name one.",), None, "p"),
    ],
}


@pytest.mark.parametrize("name", REAL)
def test_hub_rows_become_templated_prompts(hub: Callable[..., None], name: str) -> None:
    hub(PLACES[name], HUB_ROWS[name])
    read = bm.load(config(name), root=None)
    assert sorted((p.id, p.turns, p.category, p.reference) for p in read.prompts) == EXPECTED[name]
    assert (read.total, read.origin) == (2, f"hub:{config(name).hub_id}@main")
    raw = bm.load_raw(config(name), root=None)
    assert [p.id for p in raw.prompts] == [p.id for p in read.prompts]
    assert (raw.prompts == read.prompts) == (config(name).template == "{turn}")


def test_hub_failures_are_one_line(hub: Callable[..., None]) -> None:
    with pytest.raises(
        InputError, match=r"cannot load 'openai/gsm8k'.*benchmark_root=DIR with DIR/gsm8k\.jsonl"
    ) as caught:
        bm.load(config("gsm8k"), root=None)
    assert "\n" not in str(caught.value)
    hub(PLACES["gsm8k"], HUB_ROWS["gsm8k"])
    with pytest.raises(
        InputError, match=r"openai/gsm8k, row 0: no field 'questions'; it has: question, answer\. Did you"
    ):
        bm.load(config("gsm8k", turns=("questions",)), root=None)
    with pytest.raises(InputError, match="row 0: no field 'prompt'"):
        bm.load(config("gsm8k", turns=("{question}[ {prompt}]",)), root=None)
    hub(PLACES["mbpp"], [*HUB_ROWS["mbpp"], *HUB_ROWS["mbpp"]])
    with pytest.raises(InputError, match="the id 'mbpp-11' occurs twice"):
        bm.load(config("mbpp"), root=None)


def test_the_yamls_say_what_the_paper_says() -> None:
    listed = read_yaml("all")["defaults"]
    offline = read_yaml("offline")["defaults"]
    assert listed == REAL
    assert {name: config(name).limit for name in listed} == LIMITS
    assert [config(name).column for name in offline] == [config(name).column for name in listed] == REAL
    for path in CONF.glob("*.yaml"):
        if path.stem in ("all", "offline"):
            continue
        one = config(path.stem)  # every key and no other
        assert one.name == path.stem
        assert "{turn}" in one.template
        assert (one.source == "offline") == path.stem.startswith("offline_") == one.title.endswith("(offline)")


@pytest.mark.parametrize("family", ["word_problems", "algebra", "functions", "programs", "chat", "instructions"])
def test_offline_benchmarks(family: str) -> None:
    one = config(f"offline_{family}", limit=3)
    read = bm.load(one, root=Path("nowhere"))  # benchmark_root is for the real sets
    assert (len(read.prompts), read.total, read.origin) == (3, 3, "offline")
    assert read == bm.load(one, root=None)
    assert read != bm.load(replace(one, seed=1), root=None)


def test_subset_is_the_first_of_a_seeded_permutation(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", *[{"id": f"r{i}", "turns": [f"q{i}"]} for i in range(40)])

    def ids(**changes: Any) -> list[str]:
        return [p.id for p in bm.load(config("gsm8k", **changes), root=tmp_path).prompts]

    everything = ids(limit=99)
    assert sorted(everything) == sorted(f"r{i}" for i in range(40))
    assert everything != sorted(everything)
    assert ids(limit=7) == everything[:7] != ids(limit=7, seed=1)
    few, all_of_them = (bm.load(config("gsm8k", limit=n), root=tmp_path) for n in (7, 99))
    assert few.total == all_of_them.total == 40
    assert few.sha256 != all_of_them.sha256
    assert few.origin == "jsonl"
    assert str(tmp_path) not in repr(few)
    assert few.sha256 == bm.load(config("gsm8k", limit=7), root=tmp_path).sha256
    assert few.sha256 != bm.load_raw(config("gsm8k", limit=7), root=tmp_path).sha256


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "a", ', "line 2: not valid JSON"),
        ("3", "line 2: expected a JSON object, found a number"),
        ({"id": "b"}, r"line 2: expected 'turns', a list of strings \(the row has: id\)"),
        ({"id": "b", "turns": "q"}, "line 2: expected 'turns'"),
        ({"id": "b", "turns": []}, "line 2: no turns"),
        ({"id": "b", "turns": ["q", 1]}, "line 2, turn 2: expected a string, found a number"),
        ({"id": "b", "turns": [" "]}, "line 2, turn 1: empty"),
        ({"id": "b", "turns": ["\ud83d"]}, "line 2, turn 1: not valid Unicode"),
        ({"id": "b", "turns": ["q"], "reference": 3}, "line 2: 'reference' must be a string or null"),
        ({"id": "a", "turns": ["q"]}, "the id 'a' occurs twice"),
        ({"id": "b\ud83d", "turns": ["q"]}, r"the id 'b\\ud83d' is not valid Unicode"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    write(tmp_path / "gsm8k.jsonl", {"id": "a", "turns": ["q"]}, row)
    with pytest.raises(InputError, match=f"gsm8k.jsonl.*{message}") as caught:
        bm.load(config("gsm8k"), root=tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_settings_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", {"turns": ["q"]})
    write(tmp_path / "empty.jsonl")
    assert bm.load(config("gsm8k"), root=tmp_path).prompts[0].id == "gsm8k-1"
    for one, root, message in [
        (config("gsm8k", template="{turns}"), tmp_path, r"does not contain \{turn\}"),
        (config("gsm8k", hub_id=None, file=None), None, "needs hub_id"),
        (config("gsm8k", hub_id=None), None, "read from the file gsm8k.jsonl only.*benchmark_root=DIR"),
        (config("gsm8k", file=None), tmp_path, "needs a 'file'"),
        (config("gsm8k", file="empty.jsonl"), tmp_path, "empty.jsonl is empty"),
        (config("gsm8k", file="gsm8.jsonl"), tmp_path, "Did you mean 'gsm8k.jsonl'"),
        (config("gsm8k"), tmp_path / "nowhere", "no such folder"),
        (config("offline_chat", family="chats"), None, "'chats'.*Did you mean 'chat'"),
    ]:
        with pytest.raises(InputError, match=message):
            bm.load(one, root=root)


SHARED = Path(os.environ.get("SPECAUF_DATA", "")) / "benchmarks"


@pytest.mark.skipif(not os.environ.get("SPECAUF_DATA") or not SHARED.is_dir(), reason="SPECAUF_DATA is not set")
@pytest.mark.parametrize("name", REAL)
def test_real_benchmarks_load(name: str) -> None:
    read = bm.load(config(name), root=SHARED)
    assert len(read.prompts) == min(config(name).limit, read.total) == LIMITS[name]
