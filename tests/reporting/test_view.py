"""The view of rounds on answers made up here: what it says, in which order, that no text becomes markup, and what it
does in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.browser import BROWSER, asked
from specauf_cli.evaluation import tau
from specauf_cli.reporting import view
from specauf_cli.reporting.view import Round, Viewed, ViewedAnswer

EVIL = "</span></article><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\n\x1b[31m\u202e`|&amp;"
P = 4
"""Draft tokens of every round."""


def answer(name: str, counts: list[int], *, benchmark: str = "Algebra", length: int | None = None) -> ViewedAnswer:
    """Tokens ``t0 t1 ...``; round after round accepts ``counts``; what was rejected is ``x``."""
    tokens = [f"t{i}" for i in range(1 + sum(counts) + len(counts))][:length]
    rounds, at = [], 1
    for a in counts:
        proposed = [f"t{at + k}" for k in range(a)] + ["x"] * (P - a)
        rounds.append(Round(tuple(proposed), a, tuple(tokens[at : at + a + 1])))
        at += a + 1
    return ViewedAnswer(name, benchmark, 0, "What?\nNow.", tuple(tokens), tuple(rounds))


def viewed(run: str, *answers: ViewedAnswer) -> Viewed:
    return Viewed(run, run.upper(), answers)


class Page(HTMLParser):
    """Tags, their attributes, and the text of every element by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.chips: dict[str, list[str]] = {}
        self._round: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if name := dict(attrs).get("data-round"):
            self._round = name
            self.chips.setdefault(name, []).append("")

    def handle_data(self, data: str) -> None:
        if self._round is not None:
            self.chips[self._round][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._round = None


def test_the_rounds_of_a_page_are_the_answers_rounds() -> None:
    one = answer("p0", [0, 2, 4])
    page = Page(view.html([viewed("a", one)]))
    assert page.chips == {"a0a0": ["t1"], "a0a1": ["t2", "t3", "t4"], "a0a2": ["t5", "t6", "t7", "t8", "t9"]}
    buttons = [a for tag, a in page.tags if tag == "button"]
    assert [b["aria-describedby"] for b in buttons] == [b["data-round"] for b in buttons] == ["a0a0", "a0a1", "a0a2"]


@given(st.lists(st.integers(0, P), min_size=1, max_size=12))
def test_counts_are_those_of_the_trace(counts: list[int]) -> None:
    one = answer("p0", counts)
    assert one.trace.accepted == tuple(counts)
    assert one.trace.tokens == 1 + sum(len(r.emitted) for r in one.rounds) == len(one.tokens)
    assert f"{sum(counts)} of {P * len(counts)} draft tokens accepted" in view.counts(one)
    assert f"tau {tau.mean([one.trace]):.2f} over 1 answer" in view.html([viewed("a", one)])
    emitted = Page(view.html([viewed("a", one)])).chips
    assert [t for r in emitted.values() for t in r] == list(one.tokens[1:])


def test_a_last_round_may_be_cut_at_the_end() -> None:
    cut = answer("p0", [1, 3], length=5)
    assert cut.rounds[-1].own is None
    page = view.html([viewed("a", cut)])
    assert "3 of 4 accepted, 1 of them past the end of the answer" in page
    assert "draft past" in page


def test_rounds_that_do_not_give_the_answer_are_refused() -> None:
    with pytest.raises(AssertionError):
        replace(answer("p0", [1, 3]), tokens=("t0", "t1"))


def test_an_answer_without_a_round() -> None:
    page = view.html([viewed("a", ViewedAnswer("p0", "Chat", 1, "Hi", ("bye",), ()))])
    assert "1 token and no round" in page
    assert "p0, turn 2" in page


def test_two_drafters_share_a_column_for_every_token() -> None:
    pair = [viewed("a", answer("p0", [0, 0, 0, 3])), viewed("b", answer("p0", [1, 4]))]
    page = view.html(pair)
    tokens = page.partition('<div class="tokens">')[2].partition("</div>")[0]
    columns = tokens.split('<span class="column" id="a0t')[1:]
    assert [c.partition('"')[0] for c in columns] == [str(i) for i in range(8)]
    for number, column in enumerate(columns):
        assert re.findall(r">(t\d+)<", column) == [f"t{number}"] * 2
    assert "differ from token" not in page


def test_differences_are_of_rounds_that_begin_at_the_same_token_largest_first() -> None:
    # Starts of A: 1 2 3 4, of B: 1 3: both begin rounds at tokens 1 and 3.
    first = viewed("a", answer("p0", [0, 0, 0, 3]), answer("p1", [4, 0, 1]))
    second = viewed("b", answer("p0", [1, 4]), answer("p1", [0, 3, 0, 0]))
    known = view.differences(first, second)
    assert [(d.answer, d.position, d.emitted) for d in known] == [
        (0, 3, (1, 5)),
        (1, 1, (5, 1)),
        (0, 1, (1, 2)),
        (1, 7, (2, 1)),
    ]
    shown = view.paired([first, viewed("b", *second.answers[::-1])])
    assert [a.key for a in shown[0].answers] == [a.key for a in shown[1].answers]
    page = view.html([first, second])
    assert re.findall(r'href="#(\w+)"', page) == ["a0t3", "a1t1", "a0t1", "a1t7"]


def test_answers_with_larger_differences_come_first() -> None:
    same, small, large = [1, 1], [0, 1, 0], [4]
    first = viewed("a", *(answer(n, [1, 1]) for n in ("same", "small")), answer("large", [0, 0, 0, 0, 0]))
    second = viewed("b", answer("same", same), answer("small", small), answer("large", large))
    assert [a.prompt_id for a in view.paired([first, second])[0].answers] == ["large", "small", "same"]


def test_an_answer_that_repeats_itself_does_not_fill_the_list() -> None:
    first = viewed("a", answer("loop", [0, 0] * 4), answer("other", [0, 0]))
    second = viewed("b", answer("loop", [1] * 4), answer("other", [1]))
    assert [d.answer for d in view.differences(first, second)] == [0, 1, 0, 0, 0]


def test_after_the_first_different_token_nothing_is_compared() -> None:
    first, other = answer("p0", [0, 1, 0]), answer("p0", [0, 0, 1])
    tokens = (*other.tokens[:2], *(f"u{i}" for i in range(2, 5)))
    forked = replace(
        other, tokens=tokens, told=(other.rounds[0], Round(("x",) * P, 0, ("u2",)), Round(("u3",), 1, ("u3", "u4")))
    )
    assert view.same_tokens(first, forked) == 2
    assert [d.position for d in view.differences(viewed("a", first), viewed("b", forked))] == [2]
    page = view.html([viewed("a", first), viewed("b", forked)])
    assert "The answers differ from token 3 on" in page
    assert "2 rounds begin at the same token in both" in page
    lines = view.terminal([viewed("a", first), viewed("b", forked)], color=False)
    assert "the answers differ from token 3 on" in lines


def test_answers_to_other_requests_are_no_pair() -> None:
    with pytest.raises(ValueError, match="do not answer the same requests"):
        view.html([viewed("a", answer("p0", [1])), viewed("b", answer("p1", [1]))])


def evil(name: str) -> ViewedAnswer:
    rounds = (Round((EVIL, EVIL), 1, (EVIL, EVIL), EVIL), Round((EVIL,), 0, (EVIL,)))
    return ViewedAnswer(name + EVIL, "Bench" + EVIL, 0, EVIL, (EVIL,) * 4, rounds)


@pytest.mark.parametrize("runs", [1, 2])
def test_no_text_becomes_markup(runs: int) -> None:
    text = view.html([Viewed(f"run{i}" + EVIL, EVIL, (evil("p0"),)) for i in range(runs)], notes=[EVIL])
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"img", "iframe", "link", "base", "object", "form"} & set(tags)
    for _, attributes in page.tags:
        assert not [k for k in attributes if k.startswith("on") or k in ("src", "style", "action")]
        assert str(attributes.get("href", "#")).startswith("#")
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_allows_itself_nothing_but_its_own_style_and_script() -> None:
    text = view.html([viewed("a", answer("p0", [1]))])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r"https?:|//\w|url\(|@import", text)


def test_no_text_reaches_the_terminal_as_a_command() -> None:
    pair = [Viewed(f"run{i}" + EVIL, EVIL, (evil("p0"),)) for i in range(2)]
    lines = view.terminal(pair, color=False, notes=[EVIL])
    assert not [line for line in lines if "\x1b" in line or "\u202e" in line or "\n" in line]


def test_a_terminal_shows_the_rounds_of_both_by_position() -> None:
    pair = [viewed("a", answer("p0", [0, 3])), viewed("b", answer("p0", [2, 1]))]
    lines = view.terminal(pair, color=False)
    begin = lines.index("== Algebra: p0")
    rounds = [line.split("note")[0] for line in lines[begin:] if line.startswith("@")]
    assert rounds[1:] == [
        "@   2  A  0/4   ◆[t1]  ✗[x][x][x][x]",
        "@   2  B  2/4   [t1][t2]◆[t3]  ✗[x][x]",
        "@   3  A  3/4   [t2][t3][t4]◆[t5]  ✗[x]",
        "@   5  B  1/4   [t4]◆[t5]  ✗[x][x][x]",
    ]
    assert "\x1b[1;33m◆[t1]\x1b[0m" in "\n".join(view.terminal(pair, color=True))


def test_a_note_is_shown_with_its_round() -> None:
    one = answer("p0", [1, 2])
    noted = replace(one, told=(one.rounds[0], replace(one.rounds[1], note="the server accepted 0 here")))
    assert "the server accepted 0 here" in view.html([viewed("a", noted)])
    assert view.html([viewed("a", noted)]).count("start noted") == 1
    assert "note: the server accepted 0 here" in "\n".join(view.terminal([viewed("a", noted)], color=False))


@pytest.mark.parametrize(
    ("text", "shown"), [("", "∅"), ("  ", "··"), (" a", " a"), ("\n", "↵"), (" \n\n", " ↵↵"), ("\tx\r", "→x␍")]
)
def test_white_space_is_visible(text: str, shown: str) -> None:
    assert view.glyphs(text) == shown


QUESTIONS = """(async () => {
  const tip = document.getElementById("tip"), filter = document.getElementById("benchmark");
  const root = document.documentElement, wider = () => root.scrollWidth - root.clientWidth;
  const says = {width: innerWidth, overflow: wider()};
  const visible = () => [...document.querySelectorAll(".answer")].filter(a => !a.hidden).length;
  const inside = () => tip.getBoundingClientRect().left >= 0 &&
    tip.getBoundingClientRect().right <= document.documentElement.clientWidth;
  const chips = document.querySelectorAll("button.start"), key = k => document.dispatchEvent(
    new KeyboardEvent("keydown", {key: k, bubbles: true}));
  says.before = tip.hidden;
  chips[1].focus();
  says.focus = !tip.hidden && tip.textContent.includes("B, round 1") && inside();
  says.marked = document.querySelectorAll(".chip.on").length;
  key("Escape");
  says.escape = tip.hidden;
  const last = chips[chips.length - 1];
  last.click();
  says.tap = !tip.hidden && inside();
  says.tapped = wider();
  document.querySelector("h1").click();
  says.elsewhere = tip.hidden;
  chips[0].dispatchEvent(new PointerEvent("pointerover", {pointerType: "mouse", bubbles: true}));
  says.hover = !tip.hidden;
  says.all = visible();
  filter.value = filter.options[2].value;
  filter.dispatchEvent(new Event("change"));
  says.filtered = visible();
  says.count = document.getElementById("count").textContent;
  says.benchmark = [...document.querySelectorAll(".answer")].find(a => !a.hidden).querySelector("h3").textContent;
  for (const d of document.querySelectorAll("details")) d.open = true;
  says.opened = wider();
  let blocked = 0;
  document.addEventListener("securitypolicyviolation", () => { blocked += 1; });
  const further = document.createElement("script");
  further.textContent = "window.ran = true;";
  document.body.append(further);
  const image = new Image();
  image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
  document.body.append(image);
  await new Promise(done => setTimeout(done, 200));
  says.blocked = blocked;
  says.ran = window.ran === true;
  const rows = [...document.querySelectorAll("#a0 .column[id]")].map(c => [...c.querySelectorAll(".chip")]);
  says.aligned = rows.every(r => r.length === 2 && r[0].textContent === r[1].textContent);
  return says;
})()"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path: Path, width: int) -> None:
    long = answer("long" * 30, [1, 2] * 20, benchmark="Long")
    wide = ViewedAnswer("w", "Long", 0, "p" * 500, ("t0", "=" * 300), (Round(("y" * 300, "z"), 0, ("=" * 300,)),))
    first = viewed("a" * 200, answer("p0", [0, 0, 0, 3]), long, wide)
    second = viewed("b", answer("p0", [1, 4]), replace(long), wide)
    page = tmp_path / "view.html"
    page.write_text(view.html([first, second]))
    says = asked(page, QUESTIONS, width)
    assert says == {
        "width": width,
        "overflow": 0,
        "before": True,
        "focus": True,
        "marked": says["marked"],
        "escape": True,
        "tap": True,
        "tapped": 0,
        "elsewhere": True,
        "hover": True,
        "all": 3,
        "filtered": 2,
        "count": "2 answers",
        "benchmark": says["benchmark"],
        "opened": 0,
        "blocked": 2,
        "ran": False,
        "aligned": True,
    }
    assert says["marked"] > 0
    assert says["benchmark"].startswith("Long")


def test_an_answer_whose_rounds_are_not_known_is_shown_without_them() -> None:
    known = ViewedAnswer("p0", "Chat", 0, "Hi", ("a", "b", "c"), (Round(("b", "x"), 1, ("b", "c")),))
    unknown = replace(known, told=None)
    assert unknown.rounds == ()
    assert view.counts(unknown) == "3 tokens, rounds not known"
    pair = [viewed("a", known), viewed("b", unknown)]
    page = view.html(pair)
    assert "1 answer, rounds not known" in page
    assert page.count('<span class="chip">') == 2, "its tokens are shown, none as drafted"
    assert view.differences(*pair) == []
    assert any("rounds not known" in line for line in view.terminal(pair, color=False))
