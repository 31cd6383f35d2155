"""The referee's record as a page, in Markdown and HTML, and as lines for the terminal. Pure functions."""

from collections.abc import Sequence

from markdown_it import MarkdownIt

from specauf_cli.reporting import escape
from specauf_cli.reporting.report import CSS
from specauf_cli.reporting.tables import DASH, table_row
from specauf_cli.store.records import skips
from specauf_cli.store.referee import LARGEST_Z, Average, Difference, First, Judged, Pair, RefereeRecord

WORDS = {
    "equal": "Equal: every answer and every count that was compared.",
    "rounding": "Equal up to rounding: answers differ only where the target's logits tie in the server's precision.",
    "differs": "Differs.",
}
SUBJECTS = {"drafter": "a drafter", "lookup": "prompt lookup", "plain": "no drafter"}
NO_CAUSE = "None of the known faults reproduces this server."
SAMPLING = "the server's sampling: at T = 0 all is equal, at T > 0 the draws are not the target's"
PRECISION_WORDS = {"fp32": "a tie in fp32", "bf16": "a tie in bf16, not in fp32"}


def summary(record: RefereeRecord) -> list[str]:
    """Lines for the terminal."""
    text = [f"\n{_title(record)}"]
    for b in record.benchmarks:
        text.append(f"  {b.title:<28} T={b.temperature:g}  {b.verdict:<8}  {'; '.join(_found(b))}")
    for a in record.averages:
        text.append(f"  {'average':<28} T={a.temperature:g}            {_average(a)}")
    text += [f"  it says of itself: {reason}" for reason in record.reported]
    text.append(f"  {WORDS[record.verdict]}")
    if record.first is not None:
        text.append(f"  first difference: {_first(record.first)}")
    if record.tried:
        text.append(f"  cause: {_cause(record)}")
    return escape.lines(text)


def markdown(record: RefereeRecord, *, first: str | None = None) -> str:
    """The page; ``first``: the file beside it that shows the first difference round by round."""
    cell = escape.cell
    text = [
        f"# {cell(_title(record))}",
        "",
        f"**{WORDS[record.verdict]}**",
        "",
        *(f"- It says of itself: {cell(reason)}" for reason in record.reported),
        *([f"- Cause: {cell(_cause(record))}"] if record.tried else []),
        *([f"- First difference: {cell(_first(record.first))}"] if record.first is not None else []),
        *([f"- {escape.link('The first difference, token by token', escape.path(first))}"] if first else []),
        "",
        _about(record),
        "",
        "## Benchmarks",
        "",
        *_benchmarks(record),
    ]
    if record.first is not None:
        text += ["", "## First difference", "", *_first_section(record)]
    if record.tried:
        text += ["", "## Known faults, tried here", "", *_tried(record)]
    text += ["", "## Record", "", *_record(record), ""]
    return "\n".join(text)


def html(record: RefereeRecord, *, first: str | None = None) -> str:
    """The same as one self-contained HTML page."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(record, first=first))
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape.markup(_title(record))}</title><style>{CSS}</style></head><body>\n{body}</body></html>\n"
    )


def view_notes(record: RefereeRecord) -> list[str]:
    """Lines for the head of the page that shows the first difference."""
    first = [] if record.first is None else [f"First difference: {_first(record.first)}"]
    return [f"{_title(record)}: {record.verdict}.", *first, *([f"Cause: {_cause(record)}"] if record.tried else [])]


def _title(record: RefereeRecord) -> str:
    version = f"{record.backend} {record.server.get('version') or ''}".rstrip()
    run = f", run {record.run}" if record.run else ""
    return f"Referee: {version} with {SUBJECTS[record.subject]}{run}"


def _found(judged: Judged) -> list[str]:
    """What was compared, in words."""
    text = []
    same, compared = judged.answers
    if compared:
        text.append(f"{same} of {compared} answers equal")
    same, compared = judged.counts
    if compared:
        text.append(f"{same} of {compared} {'sums of counts' if judged.groups else 'accepted counts'} equal")
    if judged.taus and judged.taus[0].server is not None and judged.taus[0].ours is not None:
        text.append(f"tau {judged.taus[0].server:.3f}, replay {judged.taus[0].ours:.3f}")
    if judged.sampling is not None:
        text.append(f"sampling z {judged.sampling.z:+.1f}{_other_draws(judged)}")
    if judged.only_one:
        text.append(f"{judged.only_one} requests answered by one side only")
    return text + ([skips(judged.skipped)] if judged.skipped else [])


def _other_draws(judged: Judged) -> str:
    """Said where the server's draws cannot be the target's."""
    drawn = judged.sampling
    return ": its draws are not the target's" if drawn is not None and abs(drawn.z) > LARGEST_Z else ""


def _average(average: Average) -> str:
    """tau of both, and the paired difference."""
    pair, found = average.taus[0], average.difference
    text = f"tau {pair.server:.3f}, replay {pair.ours:.3f}" if pair.server is not None and pair.ours is not None else ""
    if found is None or found.low is None or found.high is None:
        return text
    reading = "" if found.separable else ", not separable"
    return f"{text}, difference {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{reading}"


def _cause(record: RefereeRecord) -> str:
    if record.cause is None:
        return _no_cause(record)
    best = next(t for t in record.tried if record.cause.startswith(t.title))
    return f"{record.cause} (reproduces {best.reproduced} of {best.examined} requests)"


def _no_cause(record: RefereeRecord) -> str:
    """What is known where no fault of drafter or prompt reproduces the server."""
    return f"It is {SAMPLING}." if record.only_sampling else NO_CAUSE


def _first(first: First) -> str:
    turn = f", turn {first.turn + 1}" if first.turn else ""
    where = "" if first.position is None else f", token {first.position + 1}"
    text = f"{first.benchmark}, T={first.temperature:g}, {first.prompt_id}{turn}{where}"
    if first.what == "counts":
        answer = (
            "the counts along its answer" if first.temperature > 0 else "the answer is the target's own, the counts"
        )
        return f"{text}: {answer} are not the replay's"
    return f"{text}: {_token(first.theirs)} instead of {_token(first.ours)}{_gap(first)}"


def _token(token: tuple[int, str] | None) -> str:
    return "no token" if token is None else f"{token[1]!r} ({token[0]})"


def _gap(first: First) -> str:
    if first.gap is None or first.scale is None:
        return ""
    reading = PRECISION_WORDS[first.tie] if first.tie else "no rounding explains that"
    return f"; the target's logits there are {first.gap:.3g} apart, the largest is {first.scale:.3g}: {reading}"


def _about(record: RefereeRecord) -> str:
    cell = escape.cell
    settings = record.config.get("evaluation", {})
    drafter = record.server.get("drafter")
    told = f"drafter {escape.code(drafter)}" if drafter else "drafter not named"
    parts = [
        f"The server: {escape.code(record.server.get('name'))}, {told}, dtype "
        f"{cell(record.server.get('dtype') or 'not named')}, {record.concurrency} requests at a time. Compared with "
        f"the replay in {cell(settings.get('precision', DASH))}, at most {cell(settings.get('max_new_tokens', DASH))} "
        "new tokens.",
    ]
    if record.unchecked:
        parts.append(f"It does not say, and it was not checked: {', '.join(map(cell, record.unchecked))}.")
    parts.append(
        "Accepted counts are compared along the server's own answer, where greedy drafts fix every round. How to read "
        "this page: docs/servers.md."
    )
    return " ".join(parts)


def _benchmarks(record: RefereeRecord) -> list[str]:
    """A row for every benchmark and temperature, and one for their average."""
    definitions = list(dict.fromkeys(p.definition for b in record.benchmarks for p in b.taus))
    head = ["benchmark", "T", "verdict", "answers equal", "counts equal"]
    for definition in definitions:
        head += [f"tau ({definition}), server", "replay"]
    paired = any(b.difference for b in record.benchmarks)
    sampled = any(b.sampling for b in record.benchmarks)
    head += ["difference, paired"] * paired + ["sampling z"] * sampled
    rows = [table_row(head), table_row(["---", "--:", "---", *["--:"] * (len(head) - 3)])]
    for temperature in dict.fromkeys(b.temperature for b in record.benchmarks):
        for b in (b for b in record.benchmarks if b.temperature == temperature):
            row = [
                escape.cell(b.title),
                f"{b.temperature:g}",
                b.verdict if b.verdict == "equal" else f"**{b.verdict}**",
            ]
            row += [f"{same} of {of}" if of else DASH for same, of in (b.answers, b.counts)]
            row += [*_taus(b.taus, definitions), *[_difference(b.difference)] * paired]
            rows.append(table_row([*row, *[DASH if b.sampling is None else f"{b.sampling.z:+.2f}"] * sampled]))
        for a in (a for a in record.averages if a.temperature == temperature):
            row = ["**average**", f"{a.temperature:g}", "", "", "", *_taus(a.taus, definitions)]
            rows.append(table_row([*row, *[_difference(a.difference)] * paired, *[""] * sampled]))
    notes = [
        f"- {escape.cell(b.title)}, T = {b.temperature:g}: {escape.cell(n)}"
        for b in record.benchmarks
        for n in _left_out(b)
    ]
    return [*rows, "", *notes] if notes else rows


def _taus(pairs: Sequence[Pair], definitions: Sequence[str]) -> list[str]:
    """Cells of the server's tau and the replay's, for every definition."""
    known = {p.definition: p for p in pairs}
    both = [(known[d].server, known[d].ours) if d in known else (None, None) for d in definitions]
    return [DASH if value is None else f"{value:.3f}" for pair in both for value in pair]


def _left_out(judged: Judged) -> list[str]:
    """What could not be compared, in words."""
    text = [f"{judged.only_one} requests were answered by one side only"] if judged.only_one else []
    text += ["counts are those of several requests together (a server without counts per request)"] * bool(
        judged.groups
    )
    unknown = sum(r.same_answer is None for r in judged.requests) if judged.temperature == 0 else 0
    text += [f"{unknown} answers could not be compared"] if unknown else []
    if _other_draws(judged):
        text.append("its draws are not the target's at this temperature (sampling z beyond 4 standard deviations)")
    return text + ([skips(judged.skipped)] if judged.skipped else [])


def _difference(found: Difference | None) -> str:
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return f"{found.value:+.3f}"
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"**{text}**" if found.separable else text


def _first_section(record: RefereeRecord) -> list[str]:
    first = record.first
    assert first is not None
    judged = next(b for b in record.benchmarks if (b.title, b.temperature) == (first.benchmark, first.temperature))
    row = next(r for r in judged.requests if (r.prompt_id, r.turn) == (first.prompt_id, first.turn))
    text = [f"- {escape.cell(_first(first))}"]
    if row.rounds is not None and record.subject != "plain":
        server = f"{row.rounds} rounds" + ("" if row.accepted is None else f", {row.accepted} draft tokens accepted")
        if row.histogram is not None:
            server += f", rounds by accepted tokens: {_histogram(row.histogram)}"
        most = max((*row.ours, len(row.histogram or ()) - 1), default=0)
        ours = [sum(a == k for a in row.ours) for k in range(most + 1)]
        more = " (the last round may have accepted more, past the end of the answer)" if row.open else ""
        text += [
            f"- The server counts {server}.",
            f"- The replay along the same answer: {len(row.ours)} rounds, {sum(row.ours)} accepted, "
            f"{_histogram(ours)}{more}.",
        ]
    return text


def _histogram(counts: Sequence[int]) -> str:
    """``0: 12, 1: 3``: accepted tokens and rounds, those that occur."""
    return ", ".join(f"{k}: {n}" for k, n in enumerate(counts) if n) or "none"


def _tried(record: RefereeRecord) -> list[str]:
    """Every fault that reproduces a request, and how many there are that do not."""
    ranked = sorted(record.tried, key=lambda t: (-t.examined, -t.reproduced))
    shown = [t for t in ranked if t.reproduced][:12]
    rows = [table_row(["fault", "reproduces"]), table_row(["---", "--:"])]
    rows += [table_row([escape.cell(t.title), f"{t.reproduced} of {t.examined}"]) for t in shown]
    rest = len(ranked) - len(shown)
    verdict = _no_cause(record) if record.cause is None else f"Named: {record.cause}."
    text = [*rows, ""] if shown else []
    return [
        *text,
        f"{escape.cell(verdict)} {rest} more were tried." if rest else escape.cell(verdict),
        "A fault reproduces a request if the server's answer and its counts are those of the replay with the fault "
        "switched on; among the requests are some that do not differ. Faults that reproduce equally many are told "
        "apart by more requests.",
    ]


def _record(record: RefereeRecord) -> list[str]:
    commit = (record.code.commit or "no commit")[:12] + (" with uncommitted changes" if record.code.dirty else "")
    return [
        f"- {escape.code(record.command)}",
        f"- code {escape.cell(commit)}, {record.seconds:.0f} s, written {escape.cell(record.written)}",
        *(f"- {escape.cell(k)}: {escape.code(v)}" for k, v in record.inputs.items() if v),
    ]
