"""A record whose every text tries to become a tag, a link, a cell, a formula or a terminal command: none of them
does."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from helpers.synthetic import benchmark, record
from specauf_cli.config import specs
from specauf_cli.config.specs import ComparisonSpec
from specauf_cli.interchange.card import card
from specauf_cli.reporting import comparison, figures, in_short, summary, tables
from specauf_cli.reporting.measured import select
from specauf_cli.reporting.report import Found, html
from specauf_cli.store.records import RunRecord

EVIL = " <script>alert(1)</script> ](javascript:alert(1)) | `x` $y_{$ \n\n# h\x1b[31m\u202e<img src=x onerror=alert(1)>"
EXPERIMENT = specs.load_spec("table2")
KEPT = {"objective", "backbone", "column", "benchmark", "commit", "ended", "written", "prompts_sha256"}
"""What records are found and grouped by."""


def poisoned(value: Any, key: str = "") -> Any:
    """``value`` with EVIL after every text in it, keys of its dictionaries included where they are data."""
    if isinstance(value, str):
        return value if key in KEPT else value + EVIL
    if isinstance(value, dict):
        free = key in ("environment", "skipped", "inputs")
        return {(k + EVIL if free else k): poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(v, key) for v in value)
    return value


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    made = []
    for objective, accepted in (("decay", 1), ("auf", 2), ("auf_decay", 2), ("full_ce", 0)):
        asked = [
            replace(
                benchmark(c, [[accepted] * 4, [accepted] * 2]),
                title=c + EVIL,
                origin="jsonl" + EVIL,
                skipped={"why" + EVIL: 1},
            )
            for c in EXPERIMENT.columns
        ]
        one = record(objective, asked)
        config = {
            "profile": {"name": "laptop", "text": "A laptop."},
            "backbone": {"name": "dflash", "title": "DFlash", "proposals": 15},
            "evaluation": {"precision": "fp32", "max_new_tokens": 9, "seed": 0},
            "benchmark": {},
            "objective": {"name": objective},
        }
        training = {
            **one.training.model_dump(),
            "command": "specauf train x=y",
            "data": {"name": "data", "examples": 3},
        }
        training["curve"] = {
            k: [0.1, 0.2] for k in ("step", "loss", "accuracy", "active_ratio", "support_accuracy", "accept_length")
        }
        changed = {
            "config": poisoned(config),
            "training": poisoned(training),
            "environment": poisoned({"cpu": "x", "python": "3"}),
            "target": poisoned({"title": "tiny"}),
            "inputs": poisoned({"data": "x"}),
            **{k: getattr(one, k) + EVIL for k in ("run", "profile", "title", "command")},
        }
        made.append(replace(one, **changed))
    return made


class Spec(HTMLParser):
    """Tags, addresses and handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.handlers = set[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("href", "src", "xlink:href", "action")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]


def check_inert(page: str) -> Spec:
    read = Spec(page)
    assert not {"script", "iframe", "object"} & read.tags
    assert not read.handlers
    assert not [a for a in read.addresses if a.strip().lower().startswith(("javascript:", "data:text"))]
    assert "\x1b" not in page
    assert "\u202e" not in page
    return read


def check_markdown(text: str) -> None:
    """As a reader that allows HTML sees it: only the table and the links that are ours, rows of one width."""
    page = check_inert(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert "img" not in page.tags
    assert not [a for a in page.addresses if not a.startswith(("../records/", "figures/", "https://"))]
    widths: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            widths.append(len([c for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"]))
        else:
            assert len(set(widths)) <= 1, line
            widths = []


def test_a_tables_page(records: list[RunRecord]) -> None:
    check_markdown(tables.markdown(select(EXPERIMENT, records), links="../records/laptop"))


def test_a_page_that_compares_objectives(records: list[RunRecord]) -> None:
    page = specs.load_spec("objectives")
    assert isinstance(page, ComparisonSpec)
    stray = [replace(records[0], objective=records[0].objective + EVIL)]
    compared = comparison.compare(page, {"original": [*records, *stray]})
    check_markdown(comparison.markdown(compared, links="../records/laptop/objectives"))


def test_the_report_with_its_drawings(records: list[RunRecord]) -> None:
    drawn = figures.figures([select(EXPERIMENT, records)], [])
    found = [
        Found(f"table2{EVIL}.md", f"Table 2{EVIL}", EVIL, in_short.of_table(select(EXPERIMENT, records), "engine"))
    ]
    page = check_inert(
        html("laptop" + EVIL, [select(EXPERIMENT, records)], drawn, [], links="../records/laptop", found=found)
    )
    assert {"svg", "table", "nav"} <= page.tags
    check_inert(html("laptop", [select(EXPERIMENT, records)], drawn, [], links=None))
    for figure in drawn:
        assert figure.png()


def test_the_page_of_figures(records: list[RunRecord]) -> None:
    drawn = figures.figures([select(EXPERIMENT, records)], [])
    text = figures.page("laptop" + EVIL, drawn, links="../records/laptop")
    page = check_inert(MarkdownIt("commonmark", {"html": True}).render(text))
    assert not [a for a in page.addresses if not a.startswith(("../records/", "figures/"))]


@pytest.mark.parametrize("layout", ["hf", "vllm"])
def test_a_model_card(records: list[RunRecord], layout: str) -> None:
    about = {
        "run": "r",
        "command": "c",
        "data": {"name": "d", "examples": 3},
        "code": {"commit": "c0", "dirty": True, "version": "1"},
        "config": {
            "target": {"title": "t", "path": "p"},
            "data": {"source": "hub", "hub_id": "o/n"},
            "seed": 0,
            "backbone": {"title": "DFlash", "name": "dflash"},
            "objective": {"title": "AUF"},
        },
        "imported": {"source": "s"},
    }
    config = {
        "architectures": ["DFlashDraftModel"],
        "num_hidden_layers": 1,
        "block_size": 16,
        "dflash_config": {"target_layer_ids": [1], "mask_token_id": 3},
        "specauf": {"target_fingerprint": "f", "weights": "w"},
    }
    for imported in (True, False):
        given = poisoned({k: v for k, v in about.items() if imported or k != "imported"})
        text = card(given, poisoned(config), records[:1], layout=layout, dtype="fp32")
        front, body = text.removeprefix("---\n").split("\n---\n", 1)
        assert all(": " in line for line in front.splitlines()), "front matter of one line a key"
        check_markdown(body)


def test_what_is_printed(records: list[RunRecord]) -> None:
    printed = [*summary.of_record(records[0], "engine"), *summary.comparison([[r] for r in records], "engine")]
    for line in printed:
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert "\n" not in line.removeprefix("\n")
