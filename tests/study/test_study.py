"""Tables of a checkout: rendered from committed records, published once, refused where a record could not be redone."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.synthetic import benchmark, constant, record
from specauf_cli import session
from specauf_cli.config import compose, specs
from specauf_cli.config.groups import folder
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.reporting import figures, tables
from specauf_cli.reporting.measured import select
from specauf_cli.session import Session
from specauf_cli.store import trust
from specauf_cli.store.records import RunRecord, load_record, save_record
from specauf_cli.study import executors, last, publish, render, table

EXPERIMENT = specs.load_spec("table2")
README = """# A project

<!-- claims -->
<!-- end -->

<!-- averages table2 -->
an old table
<!-- end -->

Prose in between, with | bars | in it.

<!-- averages unknown -->
stays
<!-- end -->
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest of these tests, and reporting/test_figures.py looks at it."""
    monkeypatch.setattr(figures, "figures", lambda *_: [])


def commit(record: RunRecord) -> None:
    save_record(record, Path("results/records") / record.profile)


def tree() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


# --- render ---


def test_render_writes_pages_and_readme_quotes_and_a_second_call_changes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop = [constant(o, EXPERIMENT.columns, n) for o, n in (("decay", 1), ("auf", 2))]
    real = [constant("auf", EXPERIMENT.columns, 7, profile="cpu_real", run="real")]
    for r in laptop + real:
        commit(r)
    Path("README.md").write_text(README)
    render.render()
    made = tree()
    pages = ["results/table3.md"]
    pages += [f"results/{p}/{n}" for p in ("cpu_real", "laptop") for n in ("table2.md", "figures.md", "report.html")]
    assert capsys.readouterr().out.split() == pages
    for profile, records in (("laptop", laptop), ("cpu_real", real)):
        page = made[f"results/{profile}/table2.md"].decode()
        assert page == tables.markdown(select(EXPERIMENT, records), links=f"../records/{profile}")
        assert made[f"results/{profile}/table2.csv"].decode() == tables.to_csv(select(EXPERIMENT, records))
        for r in records:
            link = f"../records/{profile}/{r.id}.json"
            assert f"]({link})" in page
            assert (here / f"results/{profile}" / link).is_file()
    readme = made["README.md"].decode()
    first, second = (
        readme.split(f"<!-- averages {n} -->\n")[1].split("<!-- end -->")[0] for n in ("table2", "unknown")
    )
    assert "old table" not in readme
    head, _, *rows = first.splitlines()
    assert head.startswith("| average tau | `cpu_real`, T = 0 | `laptop`, T = 0 | paper, T = 0 |")
    assert "| AUF | 8.38 ± 0.06 | 3.38 ± 0.06 | 2.61 |" in rows
    assert "| decay | – | 2.38 ± 0.06 | 2.40 |" in rows
    assert second == "stays\n"
    claims = readme.split("<!-- claims -->\n")[1].split("<!-- end -->")[0]
    assert "| claim | `cpu_real` | `laptop` |" in claims
    assert (
        "| **C1** AUF > decay in tau on every benchmark and on average | – | [holds](results/laptop/table2.md) |"
        in claims
    )
    assert "\n\nProse in between, with | bars | in it.\n\n" in readme
    render.render()
    assert tree() == made


@pytest.mark.usefixtures("undrawn")
def test_render_takes_the_newest_record_of_a_run(here: Path) -> None:
    old = constant("auf", EXPERIMENT.columns, 1, written="2026-01")
    new = constant("auf", EXPERIMENT.columns, 4, written="2026-02")
    settings = {**new.config, "evaluation": {"precision": "fp32", "mode": "decode"}}
    for r in (old, replace(new, config=settings)):
        commit(r)
    render.render()
    assert len(list(Path("results/records/laptop").iterdir())) == 2
    assert "| 0 | AUF | ours | **5.38** ± " in Path("results/laptop/table2.md").read_text()


def test_render_without_a_readme_or_rows_of_a_table(here: Path) -> None:
    commit(record("unheard_of", [benchmark("gsm8k", [[1], [2]])]))
    render.render()
    assert [p for p in tree() if "records" not in p] == ["results/table3.md"]


@pytest.mark.parametrize("made", ["", "results", "results/laptop"])
def test_a_tree_without_records_is_one_clear_line(here: Path, made: str) -> None:
    Path(made or ".").mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError) as caught:
        render.render()
    assert str(caught.value) == "no results/records here; run this in a checkout of the project"


def test_render_names_a_damaged_record(here: Path) -> None:
    commit(constant("auf", EXPERIMENT.columns, 1))
    (path,) = Path("results/records/laptop").iterdir()
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match=f"{path.name}:.*not valid JSON"):
        render.render()


def test_a_record_survives_the_disk(here: Path) -> None:
    made = constant("auf", EXPERIMENT.columns, 3)
    assert load_record(save_record(made, here)) == made


# --- publish ---

composed = functools.cache(lambda job, make=compose.compose: make(list(job)))  # it takes a third of a second each time
CLEAN = {"version": "1", "commit": "abc", "dirty": False}


@pytest.fixture
def jobs(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``table.run`` whose training and measuring give made-up records; ``changes`` go into those of AUF."""
    state: dict[str, Any] = {"code": dict(CLEAN), "changes": {}, "accepted": 3, "opened": 0}

    def open_session(config: Config) -> Session:
        state["opened"] += 1
        return Session(config, None, None, None)  # type: ignore[arg-type]

    def measure(_session: object, config: Config, folder: Path, _words: object) -> RunRecord:
        name = config.objective.name
        own = {"accepted": state["accepted"], **state["changes"]} if name == "auf" else {"accepted": 1}
        made = constant(
            name, EXPERIMENT.columns, own.pop("accepted"), run=folder.name, profile=config.profile.name, **own
        )
        save_record(made, folder / "records")
        return made

    monkeypatch.setattr(compose, "compose", lambda job: composed(tuple(job)))
    monkeypatch.setattr(publish, "code_state", lambda: state["code"])
    monkeypatch.setattr(publish, "CHECKOUT", here)
    for module in (executors, last):
        monkeypatch.setattr(module, "open_session", open_session)
    monkeypatch.setattr(Session, "serves", lambda *_: True)

    def train(_session: object, some: Any, **_: object) -> list[Path]:
        return [Path(config.runs) / f"run-{config.objective.name}" for config, _ in some]

    monkeypatch.setattr(Session, "train_together", train)
    monkeypatch.setattr(Session, "measure", measure)
    return state


def publish_table2() -> None:
    table.run(["table2"], ["profile=smoke"], [0], publish=True)


def test_publish_copies_the_records_and_renders(jobs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    publish_table2()
    published = sorted(Path("results/records/smoke").iterdir())
    assert [load_record(p).objective for p in published] == ["auf", "auf_decay", "decay", "full_ce"]
    for path in published:
        local = Path("runs") / load_record(path).run / "records" / path.name
        assert path.read_bytes() == local.read_bytes()
    assert "| 0 | AUF | ours | **4.38** ± " in Path("results/smoke/table2.md").read_text()
    assert "| 0 | AUF | ours | **4.38** ± " in capsys.readouterr().out
    before = tree()
    publish_table2()
    assert tree() == before


def test_without_publish_nothing_is_written_under_results(jobs: dict[str, Any]) -> None:
    jobs["code"]["dirty"] = True
    table.run(["table2"], ["profile=smoke"], [0], publish=False)
    assert not Path("results").exists()
    assert Path("runs/tables/smoke-table2.md").is_file()
    assert Path("runs/tables/smoke-table2.csv").is_file()


def test_a_failed_cell_leaves_the_others_and_is_tried_again(
    jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Session.measure

    def broken(session: Any, config: Config, folder: Path, words: Any) -> RunRecord:
        if config.objective.name == "decay":
            raise InputError("the disk is full")
        return whole(session, config, folder, words)

    monkeypatch.setattr(Session, "measure", broken)
    with pytest.raises(
        InputError, match=r"1 jobs failed, the same command tries them again: table2, decay, seed 0: the disk is full"
    ):
        publish_table2()
    assert not Path("results").exists(), "nothing is published by halves"
    written = Path("runs/tables/smoke-table2.md").read_text()
    assert "| 0 | AUF | ours | **4.38** ± " in written
    assert "| 0 | decay | ours | – |" in written
    monkeypatch.setattr(Session, "measure", whole)
    publish_table2()
    assert "| 0 | decay | ours | 2.38 ± " in Path("results/smoke/table2.md").read_text()


def test_a_record_is_never_published_twice_with_other_content(jobs: dict[str, Any]) -> None:
    publish_table2()
    before = {k: v for k, v in tree().items() if k.startswith("results")}
    jobs["accepted"] = 5
    with pytest.raises(InputError, match=r"run-auf\.\w+\.json exists with other content; published records are never"):
        publish_table2()
    assert {k: v for k, v in tree().items() if k.startswith("results")} == before


def test_publish_elsewhere_than_in_the_checkout_is_refused(
    jobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="results/ of the checkout; run it in"):
        publish_table2()
    assert not jobs["opened"]


@pytest.mark.parametrize(
    ("code", "says"),
    [({"commit": None, "dirty": None}, "works in a git checkout"), ({"dirty": True}, "needs a clean tree")],
)
def test_publish_is_refused_before_anything_is_trained(jobs: dict[str, Any], code: dict[str, Any], says: str) -> None:
    jobs["code"].update(code)
    with pytest.raises(InputError, match=says):
        publish_table2()
    assert jobs["opened"] == 0
    assert not Path("results").exists()


@pytest.mark.parametrize("dirty", [True, None])
@pytest.mark.parametrize("what", ["measured", "trained"])
def test_a_record_made_with_dirty_or_unknown_code_is_refused(
    jobs: dict[str, Any], what: str, dirty: bool | None
) -> None:
    code = {**CLEAN, "dirty": dirty}
    jobs["changes"] = {"code": code} if what == "measured" else {"training": {"code": code}}
    with pytest.raises(
        InputError, match=rf"record run-auf\.\w+ was {what} with uncommitted changes; move runs/run-auf"
    ):
        publish_table2()
    published = [json.loads(p.read_text())["objective"] for p in Path("results").rglob("*.json")]
    assert "auf" not in published


# --- what can be measured at all ---


@pytest.mark.parametrize("mode", ["replay", "decode"])
def test_sampled_drafts_are_refused_with_the_reason(mode: str) -> None:
    with pytest.raises(InputError) as caught:
        compose.compose(["profile=smoke", "evaluation.drafts=sampled", f"evaluation.mode={mode}"])
    text = str(caught.value)
    assert text.startswith("evaluation.drafts='sampled' cannot be replayed, only greedy drafts can")
    assert "the emitted text depends on the drafter" in text
    assert "\n" not in text


# --- conditions ---


@pytest.mark.usefixtures("undrawn")  # conditions are in no figure
def test_conditions_are_published_and_rendered_apart_from_the_tables(jobs: dict[str, Any]) -> None:
    publish_table2()
    table2 = Path("results/smoke/table2.md").read_bytes()
    table.run(["robustness"], ["profile=smoke"], [0], publish=True)
    page = Path("results/smoke/robustness.md").read_text()
    assert page.count("| B | ") == 6  # two tables of three block sizes
    assert "**AUF > decay** on average holds under 14 of 14 conditions." in page
    assert "Not measured yet" not in page
    found = sorted(p.relative_to("results/records/smoke") for p in Path("results/records/smoke/robustness").glob("*/*"))
    assert len(found) == 14 * 3
    assert Path("results/smoke/table2.md").read_bytes() == table2
    before = tree()
    render.render()
    assert tree() == before


def test_a_comparison_is_published_by_condition_and_quoted_on_the_front_page(jobs: dict[str, Any]) -> None:
    publish_table2()
    before = Path("results/smoke/report.html").read_text()
    Path("README.md").write_text(README)
    rows = ["decay", "decay_1", "auf", "shuffled_auf", "static_auf"]
    table.run(["controls"], ["profile=smoke"], [0], publish=True, only=rows)
    assert Path("runs/tables/smoke-controls.csv").is_file()
    records = sorted(p.relative_to("results/records/smoke") for p in Path("results/records/smoke/controls").glob("*/*"))
    assert len(records) == 4 * len(rows)
    assert sum(p.name.startswith("run-decay_1.") for p in records) == 4
    page = Path("results/smoke/controls.md").read_text()
    assert page.count("**AUF** has the highest average tau, 4.38 ± ") == 4
    assert "](../records/smoke/controls/b16_x4/run-decay_1." in page
    assert "![tau against gamma](figures/gamma-controls.png)" in page
    assert Path("results/smoke/figures/gamma-controls.png").is_file()
    readme = Path("README.md").read_text()
    assert (
        "| **C1** AUF > decay in tau on every benchmark and on average | [holds](results/smoke/table2.md) |" in readme
    )
    assert (
        "C8** AUF > decay with the best gamma, in average tau | [not separable](results/smoke/controls.md) |" in readme
    )
    assert "in average tau | [holds](results/smoke/controls.md) |" in readme
    linked = '<li><a href="controls.md">Controls: '
    assert linked in Path("results/smoke/report.html").read_text()
    assert linked not in before
    made = tree()
    render.render()
    assert tree() == made


def test_a_table_of_one_seed_composes_every_job_once(jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[str, ...]] = []
    composed_before = compose.compose

    def counted(overrides: Sequence[str]) -> Config:
        words.append(tuple(overrides))
        return composed_before(overrides)

    monkeypatch.setattr(compose, "compose", counted)
    table.run([], ["profile=smoke"], [0], publish=False)
    assert len(words) == len(set(words)) == 11 + 1, "every drafter of Tables 2 and 4, and the settings that they share"


def test_all_tables_leave_conditions_out(jobs: dict[str, Any]) -> None:
    table.run([], ["profile=smoke"], [0], publish=False)
    assert sorted(p.stem for p in Path("runs/tables").glob("*.md")) == ["smoke-table2", "smoke-table4", "table3"]


def test_only_rows_of_a_page_that_trains_nothing(jobs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--only auf: nothing is trained for table3; leave it out"):
        table.run(["table3"], ["profile=smoke"], [0], publish=False, only=["auf"])


def test_two_pages_of_one_name_are_refused(jobs: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "table2.yaml"
    other.write_text((folder("experiments") / "table2.yaml").read_text())
    with pytest.raises(InputError, match="two of the pages asked for are called 'table2'"):
        table.run(["table2", str(other)], ["profile=smoke"], [0], publish=False)


def test_only_some_rows(jobs: dict[str, Any]) -> None:
    table.run(["table2", "table4"], ["profile=smoke"], [0], publish=False, only=["auf", "decay", "b_auf"])
    lines = Path("runs/tables/smoke-table2.md").read_text().splitlines()
    shown = {method: next(x for x in lines if x.startswith(f"| 0 | {method} |")) for method in ("AUF", "AUF+decay")}
    assert "4.38" in shown["AUF"]
    assert shown["AUF+decay"].endswith("ours" + " | –" * 8 + " |")
    with pytest.raises(InputError, match=r"--only: 'auff' is no row here; valid: full_ce, .* Did you mean 'auf'\?"):
        table.run(["table2"], ["profile=smoke"], [0], publish=False, only=["auff"])


def test_figures_and_report_show_the_last_table_of_a_backbone(
    jobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the reader's own takes the place of the shipped one, whatever it is called."""
    shown: list[tuple[str, list[str]]] = []

    def draw(measured: Any, _snapshots: Any) -> list[Any]:
        titles = " ".join(m.experiment.title for m in measured)
        shown.append((titles, sorted(r.objective for m in measured for r in m.records)))
        return []

    monkeypatch.setattr(figures, "figures", draw)
    monkeypatch.setattr(last, "_measure_snapshots", lambda *_: None)
    mine = tmp_path / "mine.yaml"
    text = (folder("experiments") / "table2.yaml").read_text()
    rows = (
        "rows:\n  - {objective: decay, title: decay}\n  - {objective: auf, title: mine}\npaper: {source: none, "
        "values: {}}\n"
    )
    head = text.partition("rows:")[0].replace("name: table2", "name: mine").replace('"Table 2.', '"My table.')
    mine.write_text(head + rows)
    table.run(["table2"], ["profile=smoke"], [0], publish=False)
    table.run([str(mine)], ["profile=smoke"], [0], publish=False)
    last.draw_figures(["profile=smoke"])
    last.write_report(["profile=smoke"])
    assert shown == [("My table. DFlash: mean emitted length tau", ["auf", "decay"])] * 2
    page = Path("runs/reports/smoke.html").read_text()
    assert "My table" in page
    assert "Table 2" not in page


def test_a_run_that_goes_on_with_other_code_is_nobodys_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published names the one commit that made it; a run of two commits says so, and ``--publish`` refuses
    it."""
    content = SimpleNamespace(name="toy", sha256="data")
    opened: Any = SimpleNamespace(
        examples=lambda: ([], {"examples": 1, "supervised tokens": 2}),
        conversations=content,
        heldout=content,
        target=SimpleNamespace(fingerprint="target"),
        inputs_of=lambda init: {},
    )
    config, folder_ = compose.compose(["profile=smoke"]), tmp_path / "run"
    seen = []
    for commit_, step in (("abc", None), ("def", 10), ("def", 20)):
        monkeypatch.setattr(session, "code_state", lambda name=commit_: {**CLEAN, "commit": name})
        if step is not None:
            (folder_ / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        Session._announce(opened, config, ["profile=smoke"], folder_, None)
        seen.append(json.loads((folder_ / "run.json").read_text())["code"])
    assert [c["dirty"] for c in seen] == [False, True, True]
    assert seen[1]["began"] == {**CLEAN, "commit": "abc"}
    before = {**CLEAN, "commit": "abc"}
    monkeypatch.setattr(session, "code_state", lambda: before)
    Session._announce(opened, config, ["profile=smoke"], tmp_path / "other" / "run", None)
    (tmp_path / "other" / "run" / "checkpoints" / "step-000010").mkdir(parents=True)
    Session._announce(opened, config, ["profile=smoke"], tmp_path / "other" / "run", None)
    assert json.loads((tmp_path / "other" / "run" / "run.json").read_text())["code"] == before


@pytest.mark.usefixtures("undrawn")
def test_figures_measure_what_an_interrupted_call_left(jobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    table.run(["table2"], ["profile=smoke"], [0], publish=False)
    place = Path("runs/run-auf")
    for step in (8, 16, 24):
        (place / "snapshots" / f"step-{step:06d}").mkdir(parents=True)
    save_record(constant("auf", EXPERIMENT.columns, 1, run="run-auf", step=8), place / "snapshots/step-000008/records")
    monkeypatch.setattr(trust, "overrides_of", lambda *_: ["profile=smoke"])
    asked: list[int] = []
    monkeypatch.setattr(Session, "measure", lambda *_, step: asked.append(step))
    last.draw_figures(["profile=smoke"])
    assert asked == [16, 24]
