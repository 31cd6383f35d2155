"""Figures and the report: drawn from records alone, the same bytes twice, naming what they were made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from helpers.synthetic import benchmark, heldout, record
from specauf_cli.config import specs
from specauf_cli.config.specs import Row, TableSpec
from specauf_cli.reporting import figures as drawings
from specauf_cli.reporting.measured import Measured, select
from specauf_cli.reporting.report import html
from specauf_cli.store.records import RunRecord

TABLES = [t for t in map(specs.load_spec, ("table2", "table4")) if isinstance(t, TableSpec)]
COLUMNS = TABLES[0].columns
STEPS = list(range(20, 201, 20))


def run(backbone: str, objective: str, title: str, level: float, seed: int = 0) -> RunRecord:
    """A made-up run: ``level`` moves its tau up and its block-mask accuracy down."""
    rng = np.random.default_rng(seed)
    rounds = [rng.poisson(level, size=8).clip(0, 15).tolist() for _ in range(6)]
    curve = {
        "step": STEPS,
        "loss": [5 - 0.01 * s for s in STEPS],
        "accuracy": [0.001 * s for s in STEPS],
        "active_ratio": [0.1 + 0.001 * s for s in STEPS],
        "support_accuracy": [0.1 + 0.002 * s for s in STEPS],
        "accept_length": [1 + 0.01 * s for s in STEPS],
    }
    blocks = heldout([10] * 5, [max(0, 8 - round(level))] * 5) | {
        "reached": [9, 8, 7, 6, 5, 4],
        "passed": [8, 7, 6, 5, 4, 3],
    }
    made = record(
        objective,
        [benchmark(c, rounds, t) for c in COLUMNS for t in (0.0, 1.0)],
        seed=seed,
        blocks=blocks,
        title=title,
        run=f"{backbone}-{objective}-s{seed}",
        backbone=backbone,
        environment={"cpu": "a CPU", "torch": "2"},
        code={"commit": "c0ffee" * 6, "dirty": False},
        training={
            "code": {"commit": "badf00d" * 5, "dirty": False},
            "command": f"specauf train objective={objective}",
            "curve": curve,
        },
    )
    return replace(made, config={**made.config, "backbone": {"name": backbone, "title": backbone.title()}})


RECORDS = [
    *(run("dflash", o, o, n, s) for o, n in (("decay", 1.5), ("auf", 3.0), ("auf_decay", 3.1)) for s in (0, 1)),
    *(run("domino", o, o, n) for o, n in (("decay", 1.6), ("b_auf", 3.3))),
]
SNAPSHOTS = [replace(r, step=s) for r in RECORDS[:4] for s in (50, 100)]


def chosen(tables: Sequence[TableSpec], records: Sequence[RunRecord]) -> list[Measured]:
    return [select(table, records) for table in tables]


@pytest.fixture(scope="module")
def drawn() -> list[drawings.Figure]:
    return drawings.figures(chosen(TABLES, RECORDS), SNAPSHOTS)


def test_every_figure_is_there_and_names_its_records(drawn: list[drawings.Figure]) -> None:
    kinds = ("dynamics", "plane", "alpha", "survival")
    assert [f.name for f in drawn] == [
        *(f"{k}-dflash" for k in kinds),
        "steps-dflash",
        *(f"{k}-domino" for k in kinds),
        "inversion",
    ]
    for figure in drawn:
        own = [r for r in RECORDS if figure.name == "inversion" or r.backbone in figure.name]
        expected = own if "steps" not in figure.name else SNAPSHOTS
        assert sorted(r.id for r in figure.records) == sorted(r.id for r in expected)
        assert "<svg" in figure.svg()
    assert drawn[0].png().startswith(b"\x89PNG")


def test_the_same_records_draw_the_same_bytes(drawn: list[drawings.Figure]) -> None:
    again = drawings.figures(chosen(TABLES, RECORDS[::-1]), SNAPSHOTS[::-1])
    for a, b in zip(drawn, again, strict=True):
        assert (a.svg(), a.png(), a.caption) == (b.svg(), b.png(), b.caption)
    assert drawings.page("laptop", drawn, links="x") == drawings.page("laptop", again, links="x")


def colours(figure: drawings.Figure) -> dict[str, str]:
    handles, labels = figure.canvas.axes[0].get_legend_handles_labels()
    return {label: handle.get_color() for handle, label in zip(handles, labels, strict=True)}


def test_an_objective_has_the_same_look_in_every_figure(drawn: list[drawings.Figure]) -> None:
    found = {f.name: colours(f) for f in drawn if not f.name.startswith("alpha")}
    one, other = found["survival-dflash"], found["survival-domino"]
    assert len(set(one.values())) == len(one) == 3
    assert one["decay"] == other["decay"] == found["dynamics-dflash"]["decay"] == found["inversion"]["decay"]
    assert one["AUF"] == other["B-AUF"]


def test_more_objectives_than_there_are_colours(drawn: list[drawings.Figure]) -> None:
    names = [f"mine{i}" for i in range(8)]
    table = replace(TABLES[0], rows=(*TABLES[0].rows, *(Row(n, n) for n in names)))
    found = drawings.figures(chosen([table], [*RECORDS[:6], *(run("dflash", n, n, 2.0) for n in names)]))
    shown = colours(next(f for f in found if f.name == "survival-dflash"))
    assert len(shown) == 11
    assert shown["decay"] == colours(drawn[3])["decay"]
    assert len({shown[n] for n in ("decay", "AUF", "AUF+decay", *names[:4])}) == 7


def test_the_page_links_every_record(drawn: list[drawings.Figure]) -> None:
    text = drawings.page("laptop", drawn, links="../records/laptop")
    linked = set(re.findall(r"\]\(\.\./records/laptop/([^)]+)\.json\)", text))
    assert linked == {*(r.id for r in RECORDS), *(f"steps/{r.id}" for r in SNAPSHOTS)}


def test_the_inversion_states_its_rank_correlation(drawn: list[drawings.Figure]) -> None:
    assert re.search(r"rank correlation Dflash -0\.\d\d \(6 runs\)", drawn[-1].caption)


def test_what_records_do_not_hold_is_not_drawn() -> None:
    bare = [replace(r, training=r.training.model_copy(update={"curve": {}})) for r in RECORDS[:2]]
    assert [f.name for f in drawings.figures(chosen(TABLES, bare))] == ["alpha-dflash", "survival-dflash", "inversion"]
    assert drawings.figures(chosen(TABLES, [])) == []
    assert "inversion" not in [f.name for f in drawings.figures(chosen(TABLES, bare[:1]))]


def test_figures_follow_the_numbers(drawn: list[drawings.Figure]) -> None:
    """Another number in a record, another drawing."""
    changed = [replace(RECORDS[0], heldout=heldout([10] * 5, [9] * 5)), *RECORDS[1:]]
    assert drawings.figures(chosen(TABLES, changed))[-1].svg() != drawn[-1].svg()


class Page(HTMLParser):
    """Collects what a page refers to, its ids, and whether its tags close."""

    VOID = ("meta", "br", "link", "path", "use", "rect", "image", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.inside: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                (self.inside if str(value).startswith("#") else self.outside).append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_report_is_one_file_without_network(drawn: list[drawings.Figure]) -> None:
    text = html(
        "laptop", chosen(TABLES, RECORDS), drawn, ["# Table 3\n\n| a |\n| --- |\n| b |\n"], links="../records/laptop"
    )
    page = Page(text)
    assert page.open == []
    steps = {f"../records/laptop/steps/{r.id}.json" for r in SNAPSHOTS}
    assert set(page.outside) == steps | {f"../records/laptop/{r.id}.json" for r in RECORDS}
    assert len(page.ids) == len(set(page.ids)), "drawings share a document: their ids must not collide"
    assert {i.removeprefix("#") for i in page.inside} <= set(page.ids)
    for told in ("C1", "C2", "C3", "C4", "C6", "C7", "Table 3", "specauf train objective=b_auf", "c0ffee", "a CPU"):
        assert told in text
    assert not re.search(r"<(script|link)", text)
    assert "http-equiv" not in text


def test_a_report_of_nobodys_machine_links_nothing(drawn: list[drawings.Figure]) -> None:
    assert Page(html("laptop", chosen(TABLES, RECORDS), drawn, [], links=None)).outside == []


def test_text_from_records_is_escaped() -> None:
    odd = [replace(r, target={"title": "<b>&tiny"}) for r in RECORDS[:2]]
    assert "&lt;b&gt;&amp;tiny" in html("laptop", chosen(TABLES, odd), [], [], links=None)


def test_drafters_on_the_way_are_compared_on_the_same_prompts_only(drawn: list[drawings.Figure]) -> None:
    """A step measured again on other prompts, or later on the same ones, adds no second point and moves none of the
    others."""
    few = replace(SNAPSHOTS[0], benchmarks=SNAPSHOTS[0].benchmarks[:2], written="2027")
    again = replace(SNAPSHOTS[1], written="2027")
    expected = next(f for f in drawn if f.name == "steps-dflash")
    found = next(
        f for f in drawings.figures(chosen(TABLES, RECORDS), [*SNAPSHOTS, few, again]) if f.name == "steps-dflash"
    )
    assert found.svg() == expected.svg()
    assert few not in found.records
