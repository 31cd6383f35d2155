"""docs/engines.md is rendered from benchmarks/engine.json, and that record holds every case of the benchmark."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.engine.case import load_cases as benchmark_cases
from helpers.commands import ROOT
from specauf_cli.errors import InputError
from specauf_cli.reporting import engines
from specauf_cli.reporting.marks import fill
from specauf_cli.store.engine import ENGINE, EngineCase, EngineRecord

CASES = {case.name: case for case in ENGINE.load(ROOT / engines.RECORD).cases}


def test_the_page_is_in_step_with_the_record() -> None:
    text = (ROOT / engines.PAGE).read_text("utf-8")
    assert fill(text, engines.parts(tuple(CASES.values())), engines.PAGE) == text, "make render"


def test_the_record_has_every_case_as_it_is_defined() -> None:
    defined = {case.name: case for case in benchmark_cases()}
    assert list(CASES) == list(defined)
    for name, case in defined.items():
        found = CASES[name]
        assert (found.title, found.layout, found.without, found.changed, found.expected) == (
            case.title,
            case.layout,
            case.without,
            case.config,
            case.verdict,
        ), f"{name}: make engine ARGS='--only {name}'"
        assert (found.clean, found.code.dirty) == (True, False), name


@pytest.mark.parametrize("name", [c.name for c in CASES.values() if c.drafter and c.expected == "equal"])
def test_the_engine_gives_the_replays_answers_and_counts(name: str) -> None:
    (zero, one) = CASES[name].temperatures
    assert (zero.temperature, zero.answers, zero.counts) == (0, (280, 280), (280, 280))
    assert zero.engine == zero.replay
    assert (one.temperature, one.counts, one.verdict) == (1, (280, 280), "equal")
    assert one.difference is not None
    assert one.difference[1] <= 0 <= one.difference[2]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.without or case.changed])
def test_without_a_workaround_the_referee_sees_a_difference(name: str) -> None:
    assert CASES[name].verdict == "differs"


def test_each_fault_is_shown_in_ten_lines() -> None:
    text = (ROOT / engines.PAGE).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        lines = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.stmt)]
        assert len(lines) <= 10, block


def test_a_row_says_what_was_measured() -> None:
    zero, one = CASES["auf-vllm"].temperatures
    zero = replace(zero, answers=(279, 280), counts=(7, 280), engine=1.5, replay=1.75, difference=(-0.25, -0.3, -0.2))
    assert engines.measured(zero)[:6] == ["0", "279 of 280", "7 of 280", "1.500", "1.750", "-0.250 ± 0.050"]
    plain = replace(one, answers=(0, 0), counts=(0, 0), engine=None, replay=None, difference=None, sampling=1.26)
    assert engines.measured(plain) == ["1", "–", "–", "–", "–", "–", "1.3", "equal"]


def test_a_case_without_a_cause_says_so(tmp_path: Path) -> None:
    case = replace(CASES["auf-causal"], cause=None, tried=(), first=None)
    (line,) = (x for x in engines.faulty([case]) if x.startswith("- "))
    assert line == "- `sliding_window_non_causal: false`: the referee names none of the faults it knows."


def test_a_page_without_a_mark_is_refused() -> None:
    text = (ROOT / engines.PAGE).read_text("utf-8").replace("<!-- faults -->", "")
    with pytest.raises(InputError, match=r"needs <!-- faults --> and <!-- end --> once, and has them 0 times"):
        fill(text, engines.parts(tuple(CASES.values())), engines.PAGE)


def test_records_are_read_as_they_were_written_and_damaged_ones_refused(tmp_path: Path) -> None:
    path, cases = tmp_path / "engine.json", tuple[EngineCase, ...](CASES.values())
    ENGINE.save(EngineRecord("make engine", cases), path)
    assert ENGINE.load(path).cases == cases
    raw = json.loads(path.read_text())
    raw["cases"][0]["verdict"] = "fine"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"engine\.json is not a complete record of make engine: .*verdict"):
        ENGINE.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a record of make engine, schema 1"):
        ENGINE.load(path)
