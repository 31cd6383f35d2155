"""Every objective for a reader: the text of ``specauf objectives``, and docs/objectives.md with its pictures.

``python -m specauf_cli.reporting.gallery`` writes the page and the pictures, from ``config/catalogue.py`` (yaml and
docstrings), the weights that ``benchmarks/weights.py`` measured, and the pages of results as far as they are committed.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from specauf_cli.config import catalogue
from specauf_cli.config.catalogue import SECTIONS, Entry, Function
from specauf_cli.config.compose import read_yaml
from specauf_cli.config.groups import folder
from specauf_cli.config.schema import TermConfig
from specauf_cli.config.specs import ComparisonSpec, load_spec
from specauf_cli.reporting import escape

PAGE = Path("docs/objectives.md")
PICTURES = Path("docs/objectives")
WEIGHTS = Path("benchmarks/weights.json")
RESULTS = Path("results/laptop")
PAGES = ("objectives", "controls")
"""Pages of results that an objective may have a row on: ``experiments/NAME.yaml`` and ``results/laptop/NAME.csv``."""
REPOSITORIES = {
    "SpecForge": ("sgl-project/SpecForge", "specforge"),
    "speculators": ("vllm-project/speculators", "src/speculators"),
    "DeepSpec": ("deepseek-ai/DeepSpec", "deepspec"),
    "AMD-AGI/PARD": ("AMD-AGI/PARD", ""),
}
"""What a source calls a repository: its address on GitHub, and the folder in which the files are that it names."""
WHEN = ("early", "late")


@dataclass(frozen=True)
class Weights:
    """How the weight of an objective is spread over the slots of a block, by drafter (``WHEN``); each adds up to 1.
    ``terms`` are those it was measured with."""

    terms: tuple[str, ...]
    shares: Mapping[str, Sequence[float]]


# --- the terminal ---


def listing(entries: Sequence[Entry]) -> list[str]:
    """All of them by section, two lines each: what it is; what it needs, its backbones and its source."""
    text: list[str] = []
    for section, members in groupby(entries, key=lambda entry: entry.section):
        text.append(("\n" if text else "") + SECTIONS[section])
        for entry in members:
            text.append(f"  {entry.choice} ({entry.config.title})" + (f": {entry.line}" if entry.line else ""))
            text.append("      " + " · ".join(filter(None, [_needs(entry), _backbones(entry), entry.source])))
    return [*text, "", "specauf objectives NAME shows one"]


def details(entry: Entry) -> list[str]:
    """One of them: what it is, the terms of each branch with their formulas, and the command that trains it."""
    text = [f"{entry.choice} · {entry.config.title}"] + ([entry.line] if entry.line else [])
    about = {
        "needs": _needs(entry),
        "backbones": _backbones(entry),
        "source": entry.source,
        "yaml": entry.shown_path,
        "command": entry.command,
    }
    text += [f"  {key:<10} {value}" for key, value in about.items() if value]
    for branch, terms in entry.config.branches.items():
        text.append(_branch(entry, branch))
        if branch == "final" and terms == entry.config.base:
            text.append("  the terms of the base branch")
            continue
        for term in terms:
            text.append(f"  {catalogue.term_text(term)}")
            text.append(f"    {_product(term)} (normalize: {_normaliser(term)})")
            text += [f"    {_defined(symbol, f)}" for symbol, f in zip("lc", _functions(term), strict=True)]
    return text


def as_data(entry: Entry) -> dict[str, Any]:
    """One of them as plain data, for scripts."""
    return {
        "name": entry.choice,
        "title": entry.config.title,
        "line": entry.line,
        "section": entry.section,
        "needs": list(entry.needs),
        "backbones": list(entry.config.backbones),
        "aliases": dict(entry.config.aliases),
        "source": entry.source,
        "yaml": entry.shown_path,
        "command": entry.command,
        "branches": {
            branch: [
                {
                    "loss": term.loss,
                    "credit": term.credit,
                    "knobs": dict(term.knobs),
                    "weight": term.weight,
                    "normalize": _normaliser(term),
                }
                for term in terms
            ]
            for branch, terms in entry.config.branches.items()
        },
        "final_reads": entry.config.final_reads,
    }


def _needs(entry: Entry) -> str:
    return ", ".join(entry.needs)


def _backbones(entry: Entry) -> str:
    aliases = [f"{backbone} as {name}" for backbone, name in entry.config.aliases.items()]
    return ", ".join([*entry.config.backbones, *aliases])


def _branch(entry: Entry, branch: str) -> str:
    reads = entry.config.final_reads or branch if branch == "final" else branch
    return f"branch {branch}" + (f", its credits read the branch {reads}" if reads != branch else "")


def _functions(term: TermConfig) -> tuple[Function, Function]:
    return catalogue.loss(term.loss), catalogue.credit(term.credit)


def _normaliser(term: TermConfig) -> str:
    """The normaliser of a term, ``trainer.normalize`` of the shipped recipe where it names none."""
    return term.normalize or str(read_yaml(folder("conf") / "trainer" / "paper.yaml")["normalize"])


def _product(term: TermConfig) -> str:
    """A term as a formula: its weight and its normalised sum."""
    normalised = re.split(r"[,;.](?:\s|$)", catalogue.normalisers()[_normaliser(term)], maxsplit=1)[0]
    return normalised if term.weight == 1 else f"{term.weight:g} x {normalised}"


def _defined(symbol: str, function: Function) -> str:
    """What a loss (``l``) or credit (``c``) is: name, meaning and formula; it may say nothing of itself."""
    text = " · ".join(filter(None, [f"{symbol}: {function.name}", function.meaning]))
    return (text + (f": {function.formula}" if function.formula else "")).replace("``", "")


# --- the page ---


def document(weights: Mapping[str, Weights], about: Mapping[str, Any]) -> str:
    """``docs/objectives.md``. ``weights`` by objective, ``about`` what they were measured with (``read_weights``)."""
    entries = [entry for entry in catalogue.entries() if entry.is_shipped]
    by_page = {name: results(name) for name in PAGES}
    text = [*_introduction(entries, about)]
    for section, members in groupby(entries, key=lambda entry: entry.section):
        text += [f"## {SECTIONS[section]}", ""]
        for entry in members:
            text += _objective(entry, weights.get(entry.choice), by_page)
    return "\n".join(text)


def _introduction(entries: Sequence[Entry], about: Mapping[str, Any]) -> list[str]:
    drafters = {when: about["drafters"][when] for when in WHEN}
    shown = ". ".join(
        f"{when.capitalize()}: step {d['step']} of {about['steps']}, accept length {d['accept_length']:.2f}, "
        f"first slot right in {100 * d['first_slot']:.0f} % of the blocks"
        for when, d in drafters.items()
    )
    return [
        "# Objectives",
        "",
        f"The {len(entries)} objectives of `specauf train objective=NAME`; `specauf objectives` lists them in the "
        "terminal, your own included. This page is generated from the yaml files and the docstrings "
        "(`python -m specauf_cli.reporting.gallery` writes it, a test keeps it in step). Which project uses which "
        "conventions, and which yaml gives them: [conventions.md](conventions.md). Adding your own: [own.md](own.md).",
        "",
        "## Terms",
        "",
        "An objective is, for each branch of logits, a list of terms; their sum is minimised. A term is",
        "",
        "```yaml",
        "{loss: ce, credit: decay, gamma: 7, weight: 1.0, normalize: credit}",
        "```",
        "",
        "- `loss`, by default `ce`: a number l for each slot, with gradient.",
        "- `credit`: a weight c >= 0 for each slot, without gradient.",
        "- `weight`, by default 1: a factor.",
        "- `normalize`, by default `trainer.normalize`: what the sum over slots of m c l is divided by.",
        "- All other keys are knobs of the loss and the credit.",
        "",
        "Symbols: slot i = 1..K; m_i is 1 where the slot is supervised, else 0; q_i is the drafter's distribution at "
        "slot i, or its probability of the label; p_i the target's; alpha = sum_v min(p, q) the probability that a "
        "sampled token is accepted (the knob `alpha` of D-PACE is another number); j\\* the drafter's first wrong "
        "slot. DFlash has the branch `base`; Domino has `base` and `final`, whose shares of the loss change during "
        "training ([domino.md](domino.md)).",
        "",
        "What an objective needs: **label**, the token of the data; **rank**, that of the label among the drafter's "
        "tokens; **progress**, the share of the steps that are done; **target's distribution**, the target's "
        "probabilities of all tokens, which cost a second product with the head.",
        "",
        "### Losses",
        "",
        *_table(["loss", "formula", "gradient", "range", "source"], map(_loss_row, catalogue.losses())),
        "",
        "The gradient is with respect to the drafter's logits.",
        "",
        "### Credits",
        "",
        *_table(["credit", "meaning", "formula", "depends on", "source"], map(_credit_row, catalogue.credits())),
        "",
        "### Normalisers",
        "",
        *_table(
            ["normalize", "meaning"], ((f"`{n}`", _words(m.rstrip("."))) for n, m in catalogue.normalisers().items())
        ),
        "",
        "## Pictures and results",
        "",
        "A picture shows the share of an objective's weight that each slot of a block has, slot 1 on the left: light "
        "early in training, dark at its end. The weight of a slot is the factor that the terms and their normalisers "
        "give its loss, summed over all blocks; where there are several branches, in the base branch. The axis ends at "
        f"{100 * HIGHEST:.0f} %; a longer bar is cut, and its share is written beside it. **All pictures are of the "
        f"same two drafters**, both from one run with AUF (`{about['run']}`, profile `{about['profile']}`), on "
        f"{drafters['late']['blocks']:,} blocks of held-out conversations, so they compare objectives on equal "
        f"statistics; the drafter that an objective trains itself has others. {shown}. Numbers, command and commit: "
        "[weights.json](../benchmarks/weights.json).",
        "",
        "tau is the average over the benchmarks of the profile `laptop` at T = 0, with half of the 95 % interval; the "
        "difference is that to decay with gamma 7. All rows side by side: "
        f"{_result_pages()}. Domino's variants: [Table 4](../results/laptop/table4.md).",
        "",
    ]


def _result_pages() -> str:
    """Links to the pages of results; the specification of one that is not published."""
    pages = {name: RESULTS / f"{name}.md" for name in PAGES}
    return ", ".join(
        f"[{name}](../{page})" if page.is_file() else f"[{name}](../experiments/{name}.yaml) (not measured yet)"
        for name, page in pages.items()
    )


def _objective(entry: Entry, weights: Weights | None, by_page: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """What the page says of one objective."""
    text = [f"### {entry.choice}", ""]
    if weights is not None:
        text += [f"![weight by slot, early and late](objectives/{entry.choice}.svg)", ""]
    text += [f"**{escape.cell(entry.config.title)}** · {_words(entry.line)}", ""]
    text += ["```yaml", *_yaml_terms(entry), "```", ""]
    for branch, terms in entry.config.branches.items():
        if branch == "final" and terms == entry.config.base:
            continue
        label = "" if len(entry.config.branches) == 1 or entry.config.final == entry.config.base else f" ({branch})"
        text += [f"- loss{label}: {_formula(term)}" for term in terms[:1]]
        text += [f"- plus {_formula(term)}" for term in terms[1:]]
    text += [
        f"- needs: {_needs(entry)}; backbones: {_backbones(entry)}",
        f"- source: {_words(entry.source)} · [{entry.choice}.yaml](../{entry.shown_path})",
    ]
    for name, values in by_page.items():
        if entry.choice in values:
            shown = values[entry.choice]
            text.append(f"- result, page {name}: " + ("; ".join(shown) if shown else "– (not measured yet)"))
    return [*text, ""]


def _formula(term: TermConfig) -> str:
    """A term as a formula with the names of its loss and credit, which the tables explain."""
    own_loss, own_credit = _functions(term)
    where = [f"l = {own_loss.formula or own_loss.name}", own_credit.formula or f"c = {own_credit.name}"]
    where += [
        f"{knob} = {value:g}" if isinstance(value, float) else f"{knob} = {value}" for knob, value in term.knobs.items()
    ]
    return f"`{_product(term)}` with " + ", ".join(map(_words, where))


def _yaml_terms(entry: Entry) -> list[str]:
    """The lines of its yaml from its terms on."""
    lines = entry.path.read_text("utf-8").rstrip().splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("base:")) :]


def _loss_row(function: Function) -> list[str]:
    parts = [function.parts.get(label, "").rstrip(".") for label in ("Gradient", "Range", "Source")]
    return [f"`{function.name}`", _words(f"{function.meaning}: {function.formula}"), *map(_words, parts)]


def _credit_row(function: Function) -> list[str]:
    parts = [function.parts.get(label, "").rstrip(".") for label in ("Depends on", "Source")]
    return [f"`{function.name}`", _words(function.meaning), _words(function.formula), *map(_words, parts)]


def _table(head: Sequence[str], rows: Any) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _words(text: str) -> str:
    """Text of a docstring or yaml as Markdown: code as code, papers and repositories as links."""
    shown = []
    for n, piece in enumerate(re.split(r"``(.+?)``", text)):
        before, after = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
        shown.append(escape.code(piece) if n % 2 else f"{before}{_linked(escape.cell(piece))}{after}")
    return "".join(shown)


def _linked(text: str) -> str:
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    names = "|".join(map(re.escape, REPOSITORIES))

    def link(match: re.Match[str]) -> str:
        address, home = REPOSITORIES[match["name"]]
        where = f"https://github.com/{address}"
        if match["number"]:
            return f"[{match[0]}]({where}/issues/{match['number']})"
        if match["file"]:
            return f"[{match['name']}]({where}/blob/main/{home}/{match['file']}) ({match['file']}"
        return f"[{match['name']}]({where})"

    return re.sub(rf"(?<![\w/])(?P<name>{names})(?:#(?P<number>\d+)| \((?P<file>[\w/]+\.py))?(?![\w/-])", link, text)


def results(name: str) -> dict[str, list[str]]:
    """For every objective with a row of its own on a page of results: its tau under each condition, as text; nothing
    before the page is published."""
    page = load_spec(name)
    assert isinstance(page, ComparisonSpec)
    values: dict[str, list[str]] = {row.objective: [] for row in page.rows if row.recorded_as == row.objective}
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return values
    with path.open(encoding="utf-8", newline="") as file:
        numbers = {(r["condition"], r["row"], r["what"]): r for r in csv.DictReader(file) if r["of"] == "average"}
    for objective, shown in values.items():
        for condition in page.conditions:
            tau = numbers.get((condition.name, objective, "tau"))
            if tau is None:
                continue
            difference = numbers.get((condition.name, objective, f"tau - {page.baseline}"))
            text = f"tau {float(tau['value']):.2f} ± {_half_width(tau):.2f}"
            if difference is not None and objective != page.baseline:
                text += f", {float(difference['value']):+.2f} ± {_half_width(difference):.2f}"
            shown.append(f"{text} ({condition.factor} {condition.value})")
    return values


def _half_width(number: Mapping[str, str]) -> float:
    return (float(number["high"]) - float(number["low"])) / 2


# --- the pictures ---

WIDTH, HEIGHT = 224, 84
"""Of a picture, in pixels."""
LEFT, RIGHT, TOP, BASE = 28, 220, 14, 70
"""The edges of the area with the bars."""
HIGHEST, MARKED = 0.6, (0.2, 0.4, 0.6)
"""The share that is as high as the area, and those that the axis names: the same in all pictures."""
COLOURS = {"early": "#bdbdbd", "late": "#1b4f8a"}
"""Far apart in lightness, so that they can be told apart in grey."""


def picture(title: str, weights: Weights) -> str:
    """An SVG of the share of the weight by slot, two bars for each: early and late."""
    slots = len(weights.shares["late"])
    step, scale = (RIGHT - LEFT) / slots, (BASE - TOP) / HIGHEST
    width = (step - 2) / 2
    described = escape.markup(f"{title}: share of the weight by slot, early and late in training")
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'role="img" font-family="sans-serif" font-size="8">',
        f"<title>{described}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for number, when in enumerate(WHEN):
        for slot, share in enumerate(weights.shares[when]):
            height = min(share, HIGHEST) * scale
            x = LEFT + slot * step + 1 + number * width
            text.append(_box(x, BASE - height, width, height, COLOURS[when]))
        x = RIGHT - 72 + 38 * number
        text += [_box(x, 2, 7, 7, COLOURS[when]), _label(x + 10, 9, when, "start")]
    for slot, both in enumerate(zip(*(weights.shares[when] for when in WHEN), strict=True)):
        if cut := ", ".join(f"{100 * share:.0f} %" for share in both if share > HIGHEST):
            text.append(_label(LEFT + (slot + 1) * step, TOP + 7, cut, "start"))
    text.append(f'<path d="M{LEFT} {TOP}V{BASE}H{RIGHT}" stroke="#333333" fill="none"/>')
    text += [_label(LEFT - 3, BASE - share * scale + 3, f"{100 * share:.0f} %", "end") for share in MARKED]
    text += [_label(LEFT + (slot - 0.5) * step, HEIGHT - 4, f"{slot}", "middle") for slot in (1, slots)]
    return "\n".join([*text, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def read_weights(path: Path = WEIGHTS) -> tuple[dict[str, Weights], dict[str, Any]]:
    """The measured weights by objective, and what they were measured with."""
    about = json.loads(path.read_text("utf-8"))
    weights = {
        name: Weights(tuple(content["terms"]), {when: tuple(content[when]) for when in WHEN})
        for name, content in about.pop("objectives").items()
    }
    return weights, about


def pictures(weights: Mapping[str, Weights]) -> dict[Path, str]:
    """The pictures of the shipped objectives, by file."""
    entries = [entry for entry in catalogue.entries() if entry.choice in weights]
    return {PICTURES / f"{e.choice}.svg": picture(e.config.title, weights[e.choice]) for e in entries}


if __name__ == "__main__":
    measured, measured_with = read_weights()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for picture_path, drawing in pictures(measured).items():
        picture_path.write_text(drawing, "utf-8")
    PAGE.write_text(document(measured, measured_with), "utf-8")
