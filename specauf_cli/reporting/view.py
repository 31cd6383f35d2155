"""Where the tokens of answers come from: verification rounds, as one self-contained HTML page or for a terminal.

Pure functions: data in, text out. Every text may come from a model or a server, so none of it becomes markup; the page
allows itself no network, no further script and no style but its own (Content-Security-Policy with hashes).
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from specauf_cli.evaluation import tau
from specauf_cli.reporting.escape import markup, plain
from specauf_cli.types import Trace

FIRST_DIFFERENCES = 10
"""Rounds listed under "rounds that differ most"; how many more there are is said."""


@dataclass(frozen=True)
class Round:
    """One verification round, tokens as text.

    ``accepted`` of the ``proposed`` tokens were accepted; they may reach past the end of the answer. ``emitted``: the
    answer's tokens from this round, the accepted ones and then the target's own, cut at the end of the answer.
    ``note``: something to say about this round.
    """

    proposed: tuple[str, ...]
    accepted: int
    emitted: tuple[str, ...]
    note: str = ""

    @property
    def own(self) -> str | None:
        """The token that the target itself added; None when the answer had ended before it."""
        return self.emitted[-1] if len(self.emitted) > self.accepted else None


@dataclass(frozen=True)
class ViewedAnswer:
    """One answer and its rounds. ``tokens[0]`` comes from the prompt's own pass, all others from the rounds
    ``told``, in order (None: rounds that are not known, as of a server). ``benchmark`` is a title; ``turn`` counts from
    0."""

    prompt_id: str
    benchmark: str
    turn: int
    prompt_text: str
    tokens: tuple[str, ...]
    told: tuple[Round, ...] | None

    def __post_init__(self) -> None:
        if self.told is not None:
            assert self.tokens[1:] == tuple(t for r in self.told for t in r.emitted), "rounds emit the answer's tokens"

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds; none where they are not known."""
        return self.told or ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What the answers of two drafters are paired by."""
        return self.benchmark, self.prompt_id, self.turn

    @property
    def name(self) -> str:
        """The request for readers: ``algebra-3``, ``chat-1, turn 2``."""
        return self.prompt_id + (f", turn {self.turn + 1}" if self.turn else "")

    @property
    def starts(self) -> tuple[int, ...]:
        """Index in ``tokens`` of the first token of each round."""
        starts, at = [], 1
        for r in self.rounds:
            starts.append(at)
            at += len(r.emitted)
        return tuple(starts)

    @property
    def trace(self) -> Trace:
        """The counts of this answer, for the definitions of tau (``ended`` is not known here)."""
        proposed = max((len(r.proposed) for r in self.rounds), default=0)
        accepted = tuple(r.accepted for r in self.rounds)
        return Trace(self.prompt_id, self.turn, accepted, proposed, len(self.tokens), False)


@dataclass(frozen=True)
class Viewed:
    """The answers under one drafter, or of one server. ``run`` is its id, ``title`` its name for readers."""

    run: str
    title: str
    answers: tuple[ViewedAnswer, ...]


@dataclass(frozen=True)
class Difference:
    """Two rounds that begin at the same token of the same answer, so that both drafters saw the same text.

    ``answer``: index of the answer; ``position``: index of the first token of both rounds; ``rounds``: their indices.
    ``emitted``: tokens of the answer that each of them gave.
    """

    answer: int
    position: int
    rounds: tuple[int, int]
    emitted: tuple[int, int]

    @property
    def size(self) -> int:
        """By how many tokens the two rounds differ."""
        return abs(self.emitted[0] - self.emitted[1])


def same_tokens(first: ViewedAnswer, second: ViewedAnswer) -> int:
    """Number of tokens before the first one in which two answers differ."""
    pairs = zip(first.tokens, second.tokens, strict=False)
    shortest = min(len(first.tokens), len(second.tokens))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shortest)


def differences(first: Viewed, second: Viewed) -> list[Difference]:
    """All pairs of rounds that begin at the same token and differ in length, the largest difference first.

    Of equal ones every answer's first comes before any answer's second: an answer that repeats itself does not fill the
    head of the list.
    """
    result = []
    for index, (one, other) in enumerate(zip(first.answers, second.answers, strict=True)):
        begun = {start: r for r, start in enumerate(other.starts)}
        for r, start in enumerate(one.starts):
            if start in begun and start <= same_tokens(one, other):
                emitted = len(one.rounds[r].emitted), len(other.rounds[begun[start]].emitted)
                result.append(Difference(index, start, (r, begun[start]), emitted))
    result = sorted((d for d in result if d.size), key=lambda d: (-d.size, d.answer, d.position))
    earlier: Counter[tuple[int, int]] = Counter()
    turns = []
    for d in result:
        turns.append(earlier[d.size, d.answer])
        earlier[d.size, d.answer] += 1
    order = sorted(range(len(result)), key=lambda i: (-result[i].size, turns[i], i))
    return [result[i] for i in order]


def paired(viewed: Sequence[Viewed]) -> list[Viewed]:
    """``viewed``, one or two, ready to be shown: answers of two are paired, those with the largest differences first.

    A pair's answers are sorted by their largest difference between rounds, then by how many rounds more one drafter
    took. Errors: ValueError when the two do not answer the same requests.
    """
    if len(viewed) == 1:
        return list(viewed)
    first, second = viewed
    answers = {a.key: a for a in second.answers}
    if sorted(answers) != sorted(a.key for a in first.answers):
        raise ValueError(f"{first.run} and {second.run} do not answer the same requests")
    second = Viewed(second.run, second.title, tuple(answers[a.key] for a in first.answers))
    largest: dict[int, int] = {}
    for d in differences(first, second):
        largest.setdefault(d.answer, d.size)

    def rank(index: int) -> tuple[int, int]:
        more = abs(len(first.answers[index].rounds) - len(second.answers[index].rounds))
        return -largest.get(index, 0), -more

    order = sorted(range(len(first.answers)), key=rank)
    return [Viewed(v.run, v.title, tuple(v.answers[i] for i in order)) for v in (first, second)]


def counts(answer: ViewedAnswer) -> str:
    """An answer in numbers: ``61 tokens in 25 rounds (2.44 a round), 35 of 375 draft tokens accepted``."""
    rounds, tokens = len(answer.rounds), len(answer.tokens)
    if answer.told is None:
        return f"{tokens} token{'s' if tokens > 1 else ''}, rounds not known"
    if not rounds:
        return f"{tokens} token{'s' if tokens > 1 else ''} and no round"
    accepted, proposed = sum(r.accepted for r in answer.rounds), sum(len(r.proposed) for r in answer.rounds)
    return (
        f"{tokens} tokens in {rounds} round{'s' if rounds > 1 else ''} ({tokens / rounds:.2f} a round), "
        f"{accepted} of {proposed} draft tokens accepted"
    )


def summary(viewed: Viewed) -> str:
    """Tau of the answers shown (engine definition) and their number."""
    number = len(viewed.answers)
    if all(a.told is None for a in viewed.answers):
        return f"{number} answer{'s' if number != 1 else ''}, rounds not known"
    return f"tau {tau.mean([a.trace for a in viewed.answers]):.2f} over {number} answer{'s' if number != 1 else ''}"


def glyphs(text: str) -> str:
    """A token's text in one line: line ends and tabs as arrows, spaces of a blank token as dots."""
    if not text:
        return "∅"
    if not text.strip(" "):
        return "·" * len(text)
    return text.replace("\r", "␍").replace("\n", "↵").replace("\t", "→")


LETTERS = "AB"


# ---- HTML


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 75rem;
  padding: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 0 0 .3rem; }
p { margin: .4rem 0; }
.small { font-size: .85rem; color: #444; }
.bar { position: sticky; top: 0; background: #fff; padding: .5rem 0; border-bottom: 1px solid #ccc; z-index: 1; }
select { font: inherit; max-width: 100%; padding: .2rem; min-height: 2.2rem; }
.answer { margin: 1.2rem 0; padding: .8rem; border: 1px solid #ccc; border-radius: .4rem; }
.tokens { display: flex; flex-wrap: wrap; row-gap: .6rem; align-items: stretch; margin: .6rem 0; max-width: 100%;
  font: .9rem/1.4 ui-monospace, monospace; }
.column { display: grid; row-gap: .2rem; max-width: 100%; scroll-margin-top: 4rem; }
.column:target { outline: 3px solid #b00060; outline-offset: 2px; }
.end { flex-basis: 100%; height: 0; margin: 0; }
.fork { flex-basis: 100%; font: .85rem system-ui, sans-serif; border-top: 2px dashed #b00060; padding-top: .2rem; }
.chip { font: inherit; color: #10263d; margin: 0; padding: .1rem .3rem; white-space: pre-wrap; text-align: center;
  min-width: 1.1em; min-height: 1.9em; max-width: 100%; border: 2px solid transparent; background: none;
  overflow-wrap: anywhere; }
.chip.start { margin-left: .5rem; }
.draft { background: #cfe5f8; border-color: #cfe5f8; border-radius: 0; }
.draft.start { border-radius: 1em 0 0 1em; }
.line .draft { border-radius: 1em; }
.own { background: #fff; border: 2px solid #8a4300; border-radius: 0; font-weight: 700; color: #5a2c00; }
.own::before { content: "\\25c6"; font-size: .7em; margin-right: .25em; vertical-align: .1em; }
.first { border: 2px dotted #555; color: #1a1a1a; }
.none { background: repeating-linear-gradient(45deg, #eee 0 4px, #fff 4px 8px); }
.rejected { border: 1px dashed #666; color: #555; }
.rejected.wrong { border: 2px dashed #8c0038; color: #8c0038; }
.rejected.wrong::before { content: "\\2717"; display: inline-block; margin-right: .25em; }
.past { border: 2px dotted #10263d; }
.noted::after { content: "!"; font-weight: 700; color: #b00060; margin-left: .2em; }
button.chip { cursor: help; }
button.chip:focus-visible { outline: 3px solid #1a1a1a; outline-offset: 1px; }
.chip.on { box-shadow: 0 0 0 2px #1a1a1a; position: relative; }
.label { color: #444; align-self: center; font: .8rem system-ui, sans-serif; padding-right: .2rem; }
.line { display: flex; flex-wrap: wrap; gap: .2rem; align-items: center; margin: .2rem 0;
  font: .85rem/1.3 ui-monospace, monospace; }
.line .chip { min-height: 0; margin: 0; }
.line .what { font: .8rem system-ui, sans-serif; flex-basis: 6.5rem; color: #444; }
ol.rounds, ol.most { padding-left: 0; list-style: none; }
ol.rounds > li, ol.most > li { margin: .5rem 0; padding-left: .6rem; border-left: 3px solid #ccc; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .8rem; margin: .4rem 0;
  font: .85rem/1.4 ui-monospace, monospace; }
summary { cursor: pointer; padding: .2rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; padding: 0; list-style: none; }
#tip { position: absolute; z-index: 2; background: #fff; border: 2px solid #1a1a1a; border-radius: .3rem;
  padding: .5rem .7rem; width: max-content; max-width: min(36rem, calc(100% - 16px)); font-size: .9rem;
  box-shadow: 0 2px 8px #0005; }
[hidden] { display: none !important; }
@media (max-width: 40rem) { body { padding: .8rem; font-size: 15px; } .answer { padding: .5rem; }
  .line .what { flex-basis: 100%; } }
@media print { .bar { position: static; } .answer { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const tip = document.getElementById("tip");
let shown = null, from = null, timer = 0;
function mark(id, on) {
  for (const chip of document.querySelectorAll("[data-round='" + id + "']")) chip.classList.toggle("on", on);
}
function close() {
  clearTimeout(timer);
  if (shown !== null) mark(shown, false);
  shown = null;
  tip.hidden = true;
}
function place(chip) {
  const box = chip.closest(".column").getBoundingClientRect(), width = document.documentElement.clientWidth;
  tip.style.left = "0px";
  tip.style.left = Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8)) + window.scrollX + "px";
  const below = box.bottom + 6 + tip.offsetHeight <= window.innerHeight || box.top < tip.offsetHeight + 6;
  tip.style.top = window.scrollY + (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + "px";
}
function open(chip) {
  clearTimeout(timer);
  const id = chip.dataset.round;
  if (shown === id) return;
  close();
  tip.replaceChildren(...Array.from(document.getElementById(id).childNodes, n => n.cloneNode(true)));
  tip.hidden = false;
  place(chip);
  shown = id;
  from = chip;
  mark(id, true);
}
function later() { clearTimeout(timer); timer = setTimeout(close, 200); }
function chipOf(event) { return event.target instanceof Element ? event.target.closest(".tokens [data-round]") : null; }
document.addEventListener("pointerover", event => {
  if (event.pointerType !== "mouse") return;
  const chip = chipOf(event);
  if (chip) open(chip);
  else if (tip.contains(event.target)) clearTimeout(timer);
  else if (shown !== null && !(document.activeElement && document.activeElement.dataset.round === shown)) later();
});
document.addEventListener("focusin", event => {
  const chip = chipOf(event);
  if (chip) open(chip); else if (!tip.contains(event.target)) close();
});
document.addEventListener("click", event => {
  const chip = chipOf(event);
  if (chip) open(chip); else if (!tip.contains(event.target)) close();
});
document.addEventListener("keydown", event => { if (event.key === "Escape") close(); });
addEventListener("resize", () => { if (shown !== null) place(from); });
const filter = document.getElementById("benchmark");
function apply() {
  close();
  let answers = 0;
  for (const part of document.querySelectorAll("[data-benchmark]")) {
    part.hidden = filter.value !== "" && part.dataset.benchmark !== filter.value;
    if (!part.hidden && part.classList.contains("answer")) answers += 1;
  }
  document.getElementById("count").textContent = answers + (answers === 1 ? " answer" : " answers");
}
if (filter) { filter.addEventListener("change", apply); apply(); }
"""


def html(viewed: Sequence[Viewed], *, notes: Sequence[str] = ()) -> str:
    """The page of one drafter's answers, or of two drafters' answers to the same requests.

    Two are shown one under the other, a column for each token, so that their rounds are aligned by position, and sorted
    as ``paired`` says. ``notes``: lines for the head of the page. Errors: ValueError when two do not answer the same
    requests.
    """
    shown = paired(viewed)
    title = "Where tokens come from: " + " and ".join(v.title for v in shown)
    benchmarks = list(dict.fromkeys(a.benchmark for a in shown[0].answers))
    parts = [
        f"<h1>{markup(title)}</h1>",
        *(f"<p>{markup(_drafter_line(shown, v))}</p>" for v in range(len(shown))),
        *(f"<p>{markup(note)}</p>" for note in notes),
        _legend(len(shown) > 1),
        _filter(benchmarks, len(shown[0].answers)),
        *_most_different(shown, benchmarks),
        "<h2>Answers</h2>",
        *(_answer([v.answers[i] for v in shown], i, benchmarks) for i in range(len(shown[0].answers))),
        '<div id="tip" role="tooltip" hidden></div>',
    ]
    policy = (
        f"default-src 'none'; style-src {_source_hash(CSS)}; script-src {_source_hash(SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup(title)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _source_hash(text: str) -> str:
    """The source that allows one inline element, and no other, in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _drafter_line(shown: Sequence[Viewed], index: int) -> str:
    viewed = shown[index]
    row = f"{LETTERS[index]}, {'upper' if index == 0 else 'lower'} row: " if len(shown) > 1 else ""
    return f"{row}{viewed.title} ({viewed.run}), {summary(viewed)}"


def _legend(pair: bool) -> str:
    entries = [
        (
            '<span class="chip draft start">token</span>',
            "accepted draft token; the left end is round where a round begins",
        ),
        ('<span class="chip own">token</span>', "the target's own token, which ends a round"),
        ('<span class="chip first">token</span>', "first token, from the prompt's own pass"),
        ('<span class="chip rejected wrong">token</span>', "first rejected draft token"),
        ('<span class="chip rejected">token</span>', "proposed after it"),
    ]
    rows = "".join(f"<li>{chip} {text}</li>" for chip, text in entries)
    both = " Columns are token positions; a gap is the start of a round in that row." if pair else ""
    return (
        f'<ul class="legend small">{rows}</ul><p class="small">Point at a round, tap it or reach it with Tab to see '
        f"what was proposed; Escape closes it.{both} ↵ is a line end, → a tab, · a space.</p>"
    )


def _filter(benchmarks: Sequence[str], answers: int) -> str:
    options = "".join(f'<option value="b{i}">{markup(name)}</option>' for i, name in enumerate(benchmarks))
    number = f"{answers} answer{'s' if answers != 1 else ''}"
    return (
        f'<div class="bar"><label>Benchmark <select id="benchmark"><option value="">all</option>{options}</select>'
        f'</label> <output id="count" for="benchmark">{number}</output></div>'
    )


def _most_different(shown: Sequence[Viewed], benchmarks: Sequence[str]) -> list[str]:
    """The rounds of two drafters that begin at the same token and differ most in length."""
    if len(shown) == 1:
        return []
    all_ = differences(shown[0], shown[1])
    pairs = zip(shown[0].answers, shown[1].answers, strict=True)
    compared = sum(s <= same_tokens(a, b) for a, b in pairs for s in set(a.starts) & set(b.starts))
    listed = all_[:FIRST_DIFFERENCES]
    entries = []
    for d in listed:
        answers = [v.answers[d.answer] for v in shown]
        rows = "".join(
            _round_lines(a.rounds[r], LETTERS[i]) for i, (a, r) in enumerate(zip(answers, d.rounds, strict=True))
        )
        entries.append(
            f'<li data-benchmark="b{benchmarks.index(answers[0].benchmark)}">'
            f'<a href="#a{d.answer}t{d.position}">{markup(answers[0].name)}, token {d.position + 1}</a>: '
            f"A emitted {d.emitted[0]}, B {d.emitted[1]}{rows}</li>"
        )
    number = f"{len(listed)} of {len(all_)}" if len(all_) > len(listed) else f"{len(all_)}"
    return [
        "<h2>Rounds that differ most</h2>",
        f'<p class="small">{compared} rounds begin at the same token in both, so both drafters continued the same text;'
        f" {len(all_)} of these pairs differ in length. Shown: {number}, the largest difference first.</p>",
        f'<ol class="most">{"".join(entries)}</ol>',
    ]


def _answer(answers: Sequence[ViewedAnswer], index: int, benchmarks: Sequence[str]) -> str:
    """One request: its prompt, the answer's tokens, and the list of rounds of each drafter."""
    first = answers[0]
    letters = LETTERS if len(answers) > 1 else " "
    numbers = "".join(
        f'<p class="small">{markup(f"{letters[i]} {counts(a)}".strip())}</p>' for i, a in enumerate(answers)
    )
    prompt = "\n".join(markup(line) for line in first.prompt_text.split("\n"))
    lists = "".join(_round_list(a, index, i, len(answers) > 1) for i, a in enumerate(answers))
    return (
        f'<article class="answer" id="a{index}" data-benchmark="b{benchmarks.index(first.benchmark)}">'
        f"<h3>{markup(first.benchmark)}: {markup(first.name)}</h3>{numbers}"
        f"<details class=prompt><summary>Prompt</summary><pre>{prompt}</pre></details>"
        f'<div class="tokens">{"".join(_columns(answers, index))}</div>'
        f"<details><summary>All rounds</summary>{lists}</details></article>"
    )


def _columns(answers: Sequence[ViewedAnswer], index: int) -> Iterator[str]:
    """A column for each token position with the token's chip in every row."""
    if len(answers) > 1:
        yield '<span class="column"><span class="label">A</span><span class="label">B</span></span>'
    same = min(same_tokens(answers[0], a) for a in answers)
    rows = [_chips(a, index, i, len(answers) > 1) for i, a in enumerate(answers)]
    for position, chips in enumerate(zip_longest(*rows, fillvalue='<span class="chip none"></span>')):
        if len(answers) > 1 and position == same:
            yield f'<span class="fork">The answers differ from token {position + 1} on</span>'
        yield f'<span class="column" id="a{index}t{position}">{"".join(chips)}</span>'
        if any(position < len(a.tokens) and a.tokens[position].endswith("\n") for a in answers):
            yield '<span class="end"></span>'


def _chips(answer: ViewedAnswer, index: int, row: int, pair: bool) -> list[str]:
    """The tokens of one answer: a button where a round begins, spans for its other tokens."""
    chips = [f'<span class="chip first">{_text(answer.tokens[0])}</span>']
    for number, r in enumerate(answer.rounds):
        name = _round_id(index, row, number)
        said = f"{f'{LETTERS[row]}, ' if pair else ''}round {number + 1}: {_accepted(r)}"
        for k, token in enumerate(r.emitted):
            kind = "draft" if k < r.accepted else "own"
            text = _text(token)
            if k == 0:
                noted = " noted" if r.note else ""
                chips.append(
                    f'<button type="button" class="chip {kind} start{noted}" data-round="{name}" '
                    f'aria-describedby="{name}" aria-label="{text} ({markup(said)})">{text}</button>'
                )
            else:
                chips.append(f'<span class="chip {kind}" data-round="{name}">{text}</span>')
    if answer.told is None:
        chips += [f'<span class="chip">{_text(token)}</span>' for token in answer.tokens[1:]]
    return chips


def _round_list(answer: ViewedAnswer, index: int, row: int, pair: bool) -> str:
    letter = f"{LETTERS[row]}, " if pair else ""
    if answer.told is None:
        return f'<p class="small">{letter}rounds not known</p>'
    entries = [
        f'<li id="{_round_id(index, row, number)}"><b>{letter}round {number + 1}</b>, {_range(start, r)}: '
        f"{_accepted(r)}{_round_lines(r)}</li>"
        for number, (start, r) in enumerate(zip(answer.starts, answer.rounds, strict=True))
    ]
    return f'<ol class="rounds">{"".join(entries)}</ol>'


def _round_lines(r: Round, letter: str = "") -> str:
    """What was proposed, and what was emitted, one under the other."""
    head = f"{letter} " if letter else ""
    proposed = "".join(f'<span class="chip {_fate(r, k)}">{_text(t)}</span>' for k, t in enumerate(r.proposed))
    emitted = "".join(
        f'<span class="chip {"draft" if k < r.accepted else "own"}">{_text(t)}</span>' for k, t in enumerate(r.emitted)
    )
    note = f'<p class="small"><b>Note:</b> {markup(r.note)}</p>' if r.note else ""
    return (
        f'<div class="line"><span class="what">{head}proposed</span>{proposed}</div>'
        f'<div class="line"><span class="what">{head}emitted</span>{emitted}</div>{note}'
    )


def _fate(r: Round, slot: int) -> str:
    """What became of a draft token, as classes of its chip."""
    if slot < r.accepted:
        return "draft" if slot < len(r.emitted) else "draft past"
    return "rejected wrong" if slot == r.accepted else "rejected"


def _accepted(r: Round) -> str:
    past = r.accepted - len(r.emitted)
    beyond = f", {past} of them past the end of the answer" if past > 0 else ""
    return f"{r.accepted} of {len(r.proposed)} accepted{beyond}"


def _range(start: int, r: Round) -> str:
    last = start + len(r.emitted)
    return f"token {last}" if len(r.emitted) == 1 else f"tokens {start + 1} to {last}"


def _round_id(index: int, row: int, number: int) -> str:
    return f"a{index}{'ab'[row]}{number}"


def _text(token: str) -> str:
    return markup(glyphs(token))


# ---- terminal

ACCEPTED, OWN, REJECTED, RESET = "\x1b[34m", "\x1b[1;33m", "\x1b[2m", "\x1b[0m"


def terminal(viewed: Sequence[Viewed], *, color: bool, notes: Sequence[str] = ()) -> list[str]:
    """The same for a terminal, one line a round, sorted by position; shapes tell tokens apart without colour too.

    Errors: ValueError when two do not answer the same requests.
    """
    shown = paired(viewed)
    pair = len(shown) > 1
    lines = [
        plain(_drafter_line(shown, v).replace(", upper row", "").replace(", lower row", "")) for v in range(len(shown))
    ]
    lines += [plain(note) for note in notes]
    lines.append(
        "[accepted draft token]  ◆[the target's own token]  ✗[first rejected draft token]  "
        "@ token at which the round begins"
    )
    all_ = differences(shown[0], shown[1]) if pair else []
    if all_:
        lines += ["", f"rounds that differ most ({min(len(all_), FIRST_DIFFERENCES)} of {len(all_)}):"]
    for d in all_[:FIRST_DIFFERENCES]:
        answers = [v.answers[d.answer] for v in shown]
        lines.append(f"{plain(answers[0].benchmark)}: {plain(answers[0].name)}")
        lines += [
            _terminal_round(a.rounds[r], d.position, LETTERS[i], color)
            for i, (a, r) in enumerate(zip(answers, d.rounds, strict=True))
        ]
    for answers_of_all in zip(*(v.answers for v in shown), strict=True):
        lines += _terminal_answer(answers_of_all, color)
    return lines


def _terminal_answer(answers: Sequence[ViewedAnswer], color: bool) -> list[str]:
    pair = len(answers) > 1
    first = answers[0]
    lines = ["", f"== {plain(first.benchmark)}: {plain(first.name)}"]
    lines += [f"   {plain(line)}" for line in first.prompt_text.split("\n")]
    lines += [f"{LETTERS[i] + ': ' if pair else ''}{counts(a)}" for i, a in enumerate(answers)]
    rounds = [
        (start, LETTERS[i] if pair else "", r)
        for i, a in enumerate(answers)
        for start, r in zip(a.starts, a.rounds, strict=True)
    ]
    same = min(same_tokens(first, a) for a in answers)
    if pair and same < max(len(a.tokens) for a in answers):
        lines.append(f"the answers differ from token {same + 1} on")
    lines.append(f"@   1{'  ' if pair else ''}         [{plain(glyphs(first.tokens[0]))}] from the prompt's own pass")
    return lines + [
        _terminal_round(r, start, letter, color) for start, letter, r in sorted(rounds, key=lambda x: x[:2])
    ]


def _terminal_round(r: Round, start: int, letter: str, color: bool) -> str:
    def painted(text: str, code: str) -> str:
        return f"{code}{text}{RESET}" if color else text

    tokens = [f"[{plain(glyphs(t))}]" for t in r.emitted]
    accepted = painted("".join(tokens[: r.accepted]), ACCEPTED) if tokens[: r.accepted] else ""
    own = painted(f"◆{tokens[-1]}", OWN) if r.own is not None else ""
    rejected = [f"[{plain(glyphs(t))}]" for t in r.proposed[r.accepted :]]
    wrong = "  " + painted("✗" + "".join(rejected), REJECTED) if rejected else ""
    note = f"  note: {plain(r.note)}" if r.note else ""
    name = f"{letter} " if letter else ""
    return f"@{start + 1:>4}  {name}{r.accepted:>2}/{len(r.proposed):<2}  {accepted}{own}{wrong}{note}"
