"""The page of baselines in a checkout: rendered from the records of other tables, its own record published once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.looked_up import lookup_record
from helpers.synthetic import constant
from specauf_cli.config import specs
from specauf_cli.config.groups import folder
from specauf_cli.config.specs import BaselinesSpec
from specauf_cli.errors import InputError
from specauf_cli.reporting import figures
from specauf_cli.store.lookup import load_lookup, save_lookup
from specauf_cli.store.records import save_record
from specauf_cli.study import publish, render
from specauf_cli.study.jobs import jobs_of

PAGE = specs.load_spec("baselines")
assert isinstance(PAGE, BaselinesSpec)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_render_shows_prompt_lookup_beside_the_drafters_of_other_tables(here: Path) -> None:
    assert isinstance(PAGE, BaselinesSpec)
    drafters = [constant(o, PAGE.columns, n, inputs={"target": "t"}) for o, n in (("decay", 1), ("auf", 2))]
    for record in drafters:
        save_record(record, Path("results/records/laptop"))
    render.render()
    page = Path("results/laptop/baselines.md")
    assert not page.exists(), "without a record of prompt lookup"
    path = save_lookup(lookup_record(), Path("results/lookup/laptop"))
    render.render()
    text = page.read_text()
    assert "| DFlash AUF | 3.00 ± 0.00 |" in text
    assert "| Domino decay | – |" in text
    for link in (f"../lookup/laptop/{path.name}", f"../records/laptop/{drafters[0].id}.json"):
        assert f"]({link})" in text
        assert (page.parent / link).is_file()
    report = Path("results/laptop/report.html").read_text()
    assert "baselines.md" in report
    assert "DFlash AUF 3.00 ± 0.00" in report


def test_a_record_of_prompt_lookup_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = save_lookup(lookup_record(), tmp_path)
    assert load_lookup(path) == lookup_record()
    renamed = path.rename(tmp_path / "other.json")
    with pytest.raises(InputError, match="was renamed or altered"):
        load_lookup(renamed)
    values = json.loads(renamed.read_text())
    for key, says in (("repetition", "not a record of prompt lookup"), ("profile", "not a complete record")):
        path.write_text(json.dumps({k: v for k, v in values.items() if k != key}))
        with pytest.raises(InputError, match=says):
            load_lookup(path)


def test_prompt_lookup_is_published_once_and_never_from_uncommitted_code(here: Path) -> None:
    runs = here / "runs"
    record = lookup_record()
    save_lookup(record, runs / "lookup")
    publish.publish_baselines("baselines", record, [], runs)
    publish.publish_baselines("baselines", record, [], runs)
    published = Path("results/lookup/laptop") / f"{record.id}.json"
    assert load_lookup(published) == record
    save_lookup(lookup_record(written="2027"), runs / "lookup")
    with pytest.raises(InputError, match="published records are never overwritten"):
        publish.publish_baselines("baselines", lookup_record(written="2027"), [], runs)
    with pytest.raises(InputError, match="with uncommitted changes"):
        publish.publish_baselines("baselines", lookup_record(code={"commit": "c", "dirty": True}), [], runs)


def test_drafters_that_no_table_has_are_published_with_the_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "figures", lambda *_: [])  # they are in no figure
    assert isinstance(PAGE, BaselinesSpec)
    clean = {"commit": "c", "dirty": False}
    one, other = (constant(o, PAGE.columns, 1, inputs={"target": "t"}, code=clean) for o in ("decay", "auf"))
    runs, tables, own = here / "runs", Path("results/records/laptop"), Path("results/records/laptop/baselines")
    save_lookup(lookup_record(), runs / "lookup")
    for record in (one, other):
        save_record(record, runs / record.run / "records")
    save_record(one, tables)
    publish.publish_baselines("baselines", lookup_record(), [one], runs)
    assert not own.exists(), "a table has it"
    publish.publish_baselines("baselines", lookup_record(), [one, other], runs)
    assert {p.stem for p in own.iterdir()} == {one.id, other.id}
    render.render()
    assert f"](../records/laptop/baselines/{other.id}.json)" in Path("results/laptop/baselines.md").read_text()


def test_the_page_trains_what_has_a_backbone() -> None:
    jobs = jobs_of([PAGE], ["profile=smoke"], [0], steps=5)
    assert [(job.backbone, job.objective, job.condition) for job in jobs] == [
        ("dflash", "decay", None),
        ("dflash", "auf", None),
        ("domino", "decay", None),
        ("domino", "b_auf_decay", None),
    ]
    assert jobs_of([PAGE], ["profile=smoke"], [0], steps=5, only=["plain", "lookup"]) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{objective: auf, backbone: dflash,", "{objective: auf,", "row 'auf' needs a backbone"),
        ("{objective: plain,", "{objective: plain, backbone: dflash,", "row 'plain' takes no backbone"),
        ("objective: auf, backbone: dflash", "objective: decay, backbone: dflash", "'decay' of dflash is there twice"),
        ("objective: auf,", "objective: auff,", "objective 'auff' is none of"),
        ("backbone: dflash", "backbone: dflush", "Did you mean 'dflash'?"),
        ("b_auf_decay", "auf_decay", "is called b_auf_decay on domino"),
        ("gsm8k:", "gsm9k:", "column 'gsm9k' is none of"),
        ("shortest: 2", "shortest: 6", "lookup.shortest=6 is more than 5"),
        ("shortest: 2", "shortest: 0", "lookup.shortest"),
        ("kind: baselines", "kind: baseline", "Did you mean 'baselines'?"),
    ],
)
def test_a_wrong_page_is_one_clear_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (folder("experiments") / "baselines.yaml").read_text()
    assert old in text
    path = tmp_path / "baselines.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as error:
        specs.load_spec(str(path))
    assert says in str(error.value)
