"""One self-contained HTML page per profile: headline, tables, verdicts, figures, commands, environment, records. No
network."""

from collections import Counter
from collections.abc import Mapping, Sequence

from markdown_it import MarkdownIt

from specauf_cli.config.specs import TableSpec
from specauf_cli.reporting import tables
from specauf_cli.reporting.claims import Verdict, verdicts
from specauf_cli.reporting.escape import markup, path
from specauf_cli.reporting.figures import Figure
from specauf_cli.reporting.measured import select, sources
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
.matrix td { white-space: nowrap; } .matrix td:last-child { white-space: normal; }
@media (max-width: 40rem) { body { padding: .8rem; font-size: 15px; } table { font-size: .78rem; } }
@media print {
  h1, h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav { display: none; } .wide { overflow: visible; } table { font-size: 7.5pt; }
}
"""
MARK = {"holds": "holds", "does not hold": "fails", "not separable": "open"}


def html(
    profile: str,
    experiments: Sequence[TableSpec],
    records: Sequence[RunRecord],
    drawn: Sequence[Figure],
    variants: Sequence[str],
    *,
    links: str | None,
) -> str:
    """The page. ``variants``: further tables as Markdown; ``links``: where the record files lie from the page (None:
    not linked)."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    chosen = [e for e in experiments if select(e, records).records]
    shown = [r for e in chosen for r in select(e, records).records]
    first, found = shown[0], [v for e in chosen for v in verdicts(select(e, records), e.definition)]
    parts = [
        f"<h1>SpecAUF, profile {markup(profile)}</h1>",
        f"<p>{markup(first.config['profile']['text'])} Target: {markup(first.target.title)}.</p>",
        f"<p>{_headline(found, shown)}</p>",
        '<nav><a href="#verdicts">Verdicts</a>'
        + "".join(f'<a href="#{markup(e.name)}">{markup(e.title.split(":")[0])}</a>' for e in chosen)
        + '<a href="#figures">Figures</a><a href="#commands">Commands</a><a href="#records">Records</a></nav>',
        '<h2 id="verdicts">Verdicts on the paper\'s claims</h2>',
        _matrix(found),
    ]
    for experiment in chosen:
        body = tables.markdown(experiment, records, links=links).partition("\n")[2]
        parts += [
            f'<h2 id="{markup(experiment.name)}">{markup(experiment.title)}</h2>',
            _wide(markdown.render(_lower(body))),
        ]
    for text in variants:
        heading, _, body = text.partition("\n")
        parts += [f"<h2>{markdown.renderInline(heading.removeprefix('# '))}</h2>", _wide(markdown.render(body))]
    parts.append('<h2 id="figures">Figures</h2>')
    for figure in drawn:
        caption = markdown.renderInline(
            figure.caption + (f" Records: {sources(figure.records, links)}." if links else "")
        )
        parts.append(
            f"<figure>{_inline(figure)}<figcaption><b>{markup(figure.title)}.</b> {caption}</figcaption></figure>"
        )
    parts += ['<h2 id="commands">Commands</h2>', _commands(shown), "<h2>Environment</h2>", _environment(shown)]
    parts += ['<h2 id="records">Records</h2>', _records(shown, links)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SpecAUF, {markup(profile)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _headline(found: Sequence[Verdict], records: Sequence[RunRecord]) -> str:
    """How many claims hold, do not hold, or could not be separated, over all temperatures."""
    words = [v.verdict for v in found]
    counted = ", ".join(f"<b>{words.count(name)}</b> <span class={css}>{name}</span>" for name, css in MARK.items())
    counts = sorted(set(Counter((r.backbone, r.objective) for r in records).values()))
    return (
        f"{len(found)} verdicts on the paper's claims: {counted}. {' or '.join(map(str, counts))} "
        f"seed{'s' if counts[-1] > 1 else ''}."
    )


def _matrix(found: Sequence[Verdict]) -> str:
    rows = []
    for v in sorted(found, key=lambda v: (v.claim, v.temperature or 0.0)):
        at = "–" if v.temperature is None else f"{v.temperature:g}"
        cells = [
            markup(v.claim),
            at,
            f"<span class={MARK[v.verdict]}><b>{v.verdict}</b></span>",
            f"{markup(v.text)}.<br>{markup(v.numbers)}",
        ]
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "<tr><th>claim</th><th>T</th><th>verdict</th><th>what was claimed and measured</th></tr>"
    return f'<div class="wide"><table class="matrix">{head}{"".join(rows)}</table></div>'


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
