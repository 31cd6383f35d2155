"""One self-contained HTML page per profile: the story first, then tables, figures, commands, records. No network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt

from specauf_cli.reporting import tables
from specauf_cli.reporting.claims import Verdict, verdicts
from specauf_cli.reporting.escape import markup, path
from specauf_cli.reporting.figures import Figure
from specauf_cli.reporting.frontpage import averages
from specauf_cli.reporting.measured import Measured, seeds_of, sources
from specauf_cli.store.records import RunRecord

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 82rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { background: #f4f4f4; } td[style*="right"], th[style*="right"], .wide td:nth-child(2) { white-space: nowrap; }
td em { white-space: normal; }
figure { margin: 1.5rem 0; break-inside: avoid; } figure svg { width: 100%; height: auto; max-width: 60rem; }
figcaption { font-size: .85rem; color: #444; max-width: 60rem; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .8rem; }
.holds { color: #006b4f; } .fails { color: #a33b00; } .open { color: #555; }
details { margin: .35rem 0; } summary { cursor: pointer; }
details p { margin: .3rem 0 .3rem 1.2rem; font-size: .85rem; }
@media (max-width: 40rem) { body { padding: .8rem; font-size: 15px; } table { font-size: .78rem; } }
@media print {
  h1, h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav { display: none; } .wide { overflow: visible; } table { font-size: 7.5pt; }
}
"""
MARK = {"holds": "holds", "does not hold": "fails", "not separable": "open"}


ABOUT = (
    "Drafters for speculative decoding, trained with different objectives from the same initial weights, data and "
    "order, and verified left to right against their frozen target. <b>tau</b> is the mean number of tokens emitted "
    "per verification round. Accept-until-fail (AUF) supervises a block up to and including the drafter's first wrong "
    "token."
)


@dataclass(frozen=True)
class Found:
    """A page beside the report, and what it found in a few lines of Markdown, of how many ``seeds`` (may be empty)."""

    file: str
    title: str
    seeds: str
    lines: Sequence[str]


def html(
    profile: str,
    measured: Sequence[Measured],
    drawn: Sequence[Figure],
    credit_tables: Sequence[str],
    *,
    links: str | None,
    found: Sequence[Found] = (),
) -> str:
    """The page: what this is, what was found, the first figure, averages, a line per claim; then tables, figures,
    commands, records.

    ``credit_tables``: further tables as Markdown; ``links``: the folder of the record files, relative to the page
    (None: not linked); ``found``: what each page beside this one found.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    chosen = [table for table in measured if table.records]
    shown = [record for table in chosen for record in table.records]
    judged = [verdict for table in chosen for verdict in verdicts(table, table.experiment.definition)]
    sections = [(table.experiment.name, table.experiment.title.split(":")[0]) for table in chosen]
    sections += [("figures", "Figures"), ("commands", "Commands"), ("records", "Records")]
    opening = [figure for figure in drawn if figure.name == "inversion"]
    others = [figure for figure in drawn if figure not in opening]
    entries = [f'<a href="#{markup(name)}">{markup(title)}</a>' for name, title in sections]
    parts = [
        f"<h1>SpecAUF, profile {markup(profile)}</h1>",
        f"<p>{ABOUT}</p>",
        f"<p>{markup(shown[0].config['profile']['text'])} Target: {markup(shown[0].target.title)}. "
        f"{seeds_of([shown])}.</p>",
        *_in_short(found, markdown),
        *(_figure(figure, markdown, links) for figure in opening),
        "<h2>Averages</h2>",
        *(_average_table(table, profile, markdown) for table in chosen),
        '<h2 id="verdicts">The paper\'s claims</h2>',
        f"<p>{_counted(judged)}. Each line opens to its numbers.</p>",
        *_verdicts(judged),
        f"<nav>{''.join(entries)}</nav>",
    ]
    for table in chosen:
        spec, body = table.experiment, tables.markdown(table, links=links).partition("\n")[2]
        parts += [f'<h2 id="{markup(spec.name)}">{markup(spec.title)}</h2>', _wide(markdown.render(_lower(body)))]
    for text in credit_tables:
        heading, _, body = text.partition("\n")
        parts += [f"<h2>{markdown.renderInline(heading.removeprefix('# '))}</h2>", _wide(markdown.render(body))]
    parts += ['<h2 id="figures">Figures</h2>', *(_figure(figure, markdown, links) for figure in others)]
    parts += ['<h2 id="commands">Commands</h2>', _commands(shown), "<h2>Environment</h2>", _environment(shown)]
    parts += ['<h2 id="records">Records</h2>', _records(shown, links)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SpecAUF, {markup(profile)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _in_short(found: Sequence[Found], markdown: MarkdownIt) -> list[str]:
    """A link to every page, and what it found."""
    entries = []
    for page in found:
        lines = "".join(f"<li>{markdown.renderInline(line)}</li>" for line in page.lines)
        below = f"<ul>{lines}</ul>" if lines else ""
        seeds = f" ({markup(page.seeds)})" if page.seeds else ""
        entries.append(f'<li><a href="{path(page.file)}">{markup(page.title)}</a>{seeds}{below}</li>')
    return [f"<h2>In short</h2><ul>{''.join(entries)}</ul>"] if entries else []


def _figure(figure: Figure, markdown: MarkdownIt, links: str | None) -> str:
    caption = markdown.renderInline(figure.caption + (f" Records: {sources(figure.records, links)}." if links else ""))
    return f"<figure>{_inline(figure)}<figcaption><b>{markup(figure.title)}.</b> {caption}</figcaption></figure>"


def _average_table(measured: Measured, profile: str, markdown: MarkdownIt) -> str:
    table = _wide(markdown.render("\n".join(averages({profile: measured}))))
    return f"<h3>{markup(measured.experiment.title)}</h3>{table}"


def _counted(judged: Sequence[Verdict]) -> str:
    """How many verdicts hold, do not hold, or could not be separated, over all temperatures."""
    words = [v.verdict for v in judged]
    return ", ".join(f"<b>{words.count(name)}</b> <span class={css}>{name}</span>" for name, css in MARK.items())


def _verdicts(judged: Sequence[Verdict]) -> list[str]:
    """A line for each claim, with its verdict at each temperature; it opens to what was measured."""
    lines = []
    for claim in sorted({v.claim for v in judged}):
        own = sorted((v for v in judged if v.claim == claim), key=lambda v: v.temperature or 0.0)
        words = ", ".join(f"{_at(v)}<span class={MARK[v.verdict]}><b>{v.verdict}</b></span>" for v in own)
        numbers = "".join(f"<p>{_at(v)}{markup(v.numbers)}</p>" for v in own)
        lines.append(
            f"<details><summary><b>{markup(claim)}</b> {markup(own[0].text)}: {words}</summary>{numbers}</details>"
        )
    return lines


def _at(verdict: Verdict) -> str:
    return "" if verdict.temperature is None else f"T = {verdict.temperature:g}: "


def _commands(records: Sequence[RunRecord]) -> str:
    lines = [line for r in records for line in (r.training.command, r.command)]
    shown = "\n".join(map(markup, dict.fromkeys(lines)))
    return f"<p>Every run was made by these, in this order.</p><pre>{shown}</pre>"


def _environment(records: Sequence[RunRecord]) -> str:
    seen: dict[str, Mapping[str, object]] = {str(r.environment): r.environment for r in records}
    text = [", ".join(f"{k} {v}" for k, v in e.items() if v is not None) for e in seen.values()]
    commits = sorted({str(c.commit)[:12] for r in records for c in (r.code, r.training.code)})
    return "".join(f"<p>{markup(t)}</p>" for t in text) + f"<p>Commits: <code>{markup(', '.join(commits))}</code></p>"


def _records(records: Sequence[RunRecord], links: str | None) -> str:
    names = [
        f'<a href="{markup(links)}/{path(f"{r.id}.json")}"><code>{markup(r.id)}</code></a>'
        if links
        else f"<code>{markup(r.id)}</code>"
        for r in records
    ]
    return "<ul>" + "".join(f"<li>{n}</li>" for n in names) + "</ul>"


def _inline(figure: Figure) -> str:
    """The drawing's own SVG element; ids get the figure's name, since all drawings share one document."""
    svg = figure.svg()
    svg = svg[svg.index("<svg") :]
    for before, after in (
        ('id="', f'id="{figure.name}-'),
        ("url(#", f"url(#{figure.name}-"),
        ('xlink:href="#', f'xlink:href="#{figure.name}-'),
    ):
        svg = svg.replace(before, after)
    return svg


def _wide(body: str) -> str:
    """Tables scroll inside their own box, so that the page itself never does."""
    return body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def _lower(text: str) -> str:
    """Headings one level down, below the page's own."""
    return text.replace("\n## ", "\n### ")
