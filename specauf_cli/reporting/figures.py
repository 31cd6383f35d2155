"""Figures as pure functions of records: what training looked like, how deep blocks are accepted, accuracy against tau.

Drawn with matplotlib's objects (no global state), in the Okabe-Ito colours, told apart by marker and line style as
well, so they survive print and colour-blindness. SVG and PNG come out the same for the same records.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.statistics import Interval, average
from specauf_cli.reporting import escape
from specauf_cli.reporting.measured import Measured, sources
from specauf_cli.store.records import RunRecord

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "specauf",
    "figure.dpi": 150,
    "lines.markersize": 4.5,
}
LOOKS = {
    "full_ce": 0,
    "decay": 1,
    "auf_decay": 2,
    "b_auf_decay": 2,
    "auf": 3,
    "b_auf": 3,
    "s_auf": 4,
    "s_auf_decay": 5,
    "f_auf": 6,
    "f_auf_decay": 7,
}
"""Which colour, marker and line an objective has in every figure; Domino's base-branch variants share those of their
DFlash namesakes."""

DEPTHS = range(1, 7)
CURVES = {
    "loss": "loss",
    "accuracy": "common-mask accuracy",
    "active_ratio": "active ratio",
    "support_accuracy": "support accuracy",
    "accept_length": "accept length (training blocks)",
}


@dataclass(frozen=True)
class Figure:
    """One drawing. ``caption`` says what is shown, ``records`` are what it was made of."""

    name: str
    title: str
    caption: str
    canvas: Canvas
    records: Sequence[RunRecord]

    def svg(self) -> str:
        """The drawing as SVG text, without a date."""
        return self._svg

    @cached_property
    def _svg(self) -> str:
        """Drawn once: the file of a figure and the report hold the same text."""
        return self._saved("svg", {"Date": None}).decode()

    def png(self) -> bytes:
        """The drawing as PNG bytes."""
        return self._saved("png", {"Software": None})

    def _saved(self, kind: str, metadata: Any) -> bytes:
        out = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.canvas.savefig(out, format=kind, metadata=metadata)
        return out.getvalue()


def _lay_out(canvas: Canvas) -> None:
    """Once: every later drawing is the same, and none is preceded by another that only lays out."""
    canvas.draw_without_rendering()
    canvas.set_layout_engine(None)


def figures(tables: Sequence[Measured], snapshots: Sequence[RunRecord] = ()) -> list[Figure]:
    """Every figure that the records of ``tables`` (of one profile) allow; ``snapshots`` are measurements of drafters
    along the way."""
    drawings: list[Figure | None] = []
    chosen = [table for table in tables if table.records]
    with matplotlib.rc_context(STYLE):
        for measured in chosen:
            drawings += [_dynamics(measured), _plane(measured), _depths(measured), _survival(measured)]
            drawings.append(_steps(measured, snapshots))
        drawings.append(_inversion(chosen))
        drawn = [f for f in drawings if f is not None]
        for figure in drawn:
            _lay_out(figure.canvas)
    return drawn


@dataclass(frozen=True)
class GammaPanel:
    """One condition of ``tau_by_gamma``: average tau of decay by gamma, and title and average tau of other objectives
    by name."""

    title: str
    decay: Mapping[float, Interval]
    levels: Mapping[str, tuple[str, Interval]]


def tau_by_gamma(name: str, panels: Sequence[GammaPanel], definition: str, records: Sequence[RunRecord]) -> Figure:
    """Average tau of decay against its gamma, with the intervals of other objectives as bands."""
    looks = _looks(dict.fromkeys(["decay", *(objective for panel in panels for objective in panel.levels)]))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(2.9 * len(panels) + 0.6, 3.4), layout="constrained")
        axes = np.atleast_1d(canvas.subplots(1, len(panels)))
        drawn: dict[str, Any] = {}  # by label: a panel may lack one
        for ax, panel in zip(axes, panels, strict=True):
            gammas, points = list(panel.decay), list(panel.decay.values())
            values = [p.value for p in points]
            spread = np.array([[p.value - p.low for p in points], [p.high - p.value for p in points]]).clip(0)
            drawn["decay"] = ax.errorbar(gammas, values, yerr=spread, capsize=2, linewidth=1.2, **looks["decay"])
            for objective, (title, level) in panel.levels.items():
                line = {key: value for key, value in looks[objective].items() if key != "marker"}
                ax.axhspan(level.low, level.high, color=line["color"], alpha=0.15, linewidth=0)
                drawn[escape.drawn(title)] = ax.axhline(level.value, linewidth=1.4, **line)
            _label_panel(ax, panel.title, "gamma of decay", {gamma: f"{gamma:g}" for gamma in gammas})
        _finish_panels(canvas, axes[0], drawn, definition, columns=len(drawn))
    text = (
        "tau of decay against its gamma. Lines and bands: other objectives with their 95 % intervals. The panels have "
        "different scales."
    )
    return Figure(name, "tau against gamma", text, canvas, records)


@dataclass(frozen=True)
class BudgetPanel:
    """The conditions of one factor in ``tau_by_budget``: by objective its title, and average tau by budget.

    ``seeds``: how many each budget was measured with, in words."""

    title: str
    lines: Mapping[str, tuple[str, Mapping[float, Interval]]]
    seeds: Mapping[float, str]


def tau_by_budget(name: str, panels: Sequence[BudgetPanel], definition: str, records: Sequence[RunRecord]) -> Figure:
    """Average tau of every objective against the training steps, as a multiple of the profile's."""
    looks = _looks(dict.fromkeys(objective for panel in panels for objective in panel.lines))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.6 * len(panels) + 0.6, 4.0), layout="constrained")
        axes = np.atleast_1d(canvas.subplots(1, len(panels)))
        drawn: dict[str, Any] = {}
        for ax, panel in zip(axes, panels, strict=True):
            for objective, (title, points) in panel.lines.items():
                ordered, look = sorted(points.items()), looks[objective]
                x = [budget for budget, _ in ordered]
                ax.fill_between(
                    x, [p.low for _, p in ordered], [p.high for _, p in ordered], color=look["color"], alpha=0.12, lw=0
                )
                (drawn[escape.drawn(title)],) = ax.plot(x, [p.value for _, p in ordered], linewidth=1.4, **look)
            budgets = {budget: f"{budget:g}\n{panel.seeds[budget]}" for budget in sorted(panel.seeds)}
            _label_panel(ax, panel.title, "training steps / the profile's", budgets)
        _finish_panels(canvas, axes[0], drawn, definition, columns=min(4, len(drawn)))
    text = (
        "Average tau against the number of training steps; bands: 95 % intervals. Every point is a training of its "
        "own. The panels have different scales."
    )
    return Figure(name, "tau against the training budget", text, canvas, records)


def _label_panel(ax: Any, title: str, label: str, ticks: Mapping[float, str]) -> None:
    """Title and logarithmic axis of one panel, marked at the values that were measured."""
    ax.set(xscale="log", xlabel=label, title=escape.drawn(title))
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()


def _finish_panels(canvas: Canvas, first: Any, drawn: Mapping[str, Any], definition: str, *, columns: int) -> None:
    """What the panels of a drawing share: the axis of tau, and one legend below them; then the layout is fixed."""
    first.set_ylabel(f"tau ({definition}), average over benchmarks")
    canvas.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=columns)
    _lay_out(canvas)


def page(profile: str, drawn: Sequence[Figure], *, links: str) -> str:
    """The figures of a profile as a Markdown page with captions. ``links``: relative path to the records."""
    text = [f"# Figures, profile {escape.code(profile)}", ""]
    for figure in drawn:
        text += [
            f"## {escape.cell(figure.title)}",
            "",
            f"![{escape.cell(figure.title)}](figures/{escape.path(figure.name)}.png)",
            "",
            figure.caption,
            "",
        ]
        text += [f"Records: {sources(figure.records, links)}.", ""]
    return "\n".join(text)


def _dynamics(measured: Measured) -> Figure | None:
    """Loss, common-mask accuracy, active ratio, support accuracy and accept length against the step."""
    curves = _curves(measured)
    if not curves:
        return None
    canvas = Canvas(figsize=(11, 5.6), layout="constrained")
    axes = canvas.subplots(2, 3).ravel()
    for ax, (column, label) in zip(axes, CURVES.items(), strict=False):
        for title, look, frame in curves:
            ax.plot(frame["step"], frame[column], label=escape.drawn(title), linewidth=1.4, **{**look, "marker": ""})
        ax.set(xlabel="step", ylabel=label)
    axes[5].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[5].legend(handles, labels, loc="center", title="objective")
    text = (
        "Training dynamics, mean over seeds. Every statistic is the same for all objectives: no credit enters, except "
        "into the loss itself, whose values are therefore not comparable between objectives. For Domino: the final "
        "branch, fed with the data's tokens."
    )
    return _figure(measured, "dynamics", "training dynamics", text, canvas)


def _plane(measured: Measured) -> Figure | None:
    """The path of each objective in the plane of active ratio and support accuracy."""
    curves = _curves(measured)
    if not curves:
        return None
    canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
    ax = canvas.subplots()
    for title, look, frame in curves:
        x, y = frame["active_ratio"], frame["support_accuracy"]
        ax.plot(x, y, linewidth=1.2, alpha=0.8, **{**look, "marker": ""})
        ax.plot(x.iloc[-1:], y.iloc[-1:], label=escape.drawn(title), **{**look, "linestyle": "none"})
    ax.set(xlabel="active ratio |S| / |V|", ylabel="support accuracy (accuracy on S)")
    ax.legend(title="last step")
    text = (
        "Path of training, from the lower left; the marker is the last step. Mean over seeds. S: accept-until-fail "
        "support."
    )
    return _figure(measured, "plane", "active ratio and support accuracy", text, canvas)


def _depths(measured: Measured) -> Figure | None:
    """Conditional acceptance at depth k: when decoding, and on held-out blocks as training sees them."""
    temperature = measured.temperatures[0]
    columns = list(measured.experiment.columns)
    canvas = Canvas(figsize=(9.5, 4), layout="constrained")
    left, right = canvas.subplots(1, 2, sharey=True)
    drawn = 0
    for i, (objective, title, look) in enumerate(_rows(measured)):
        points = []
        for k in DEPTHS:
            try:
                samples = measured.alphas(objective, temperature, k)
                points.append((k, average(samples)))
            except InputError:  # no round of some seed got to depth k - 1
                break
        points = [(k, p) for k, p in points if len(measured.alphas(objective, temperature, k)) == len(columns)]
        ks, shift = np.array([k for k, _ in points]), 0.07 * (i - 2)
        values = np.array([p.value for _, p in points])
        spread = np.array([[p.value - p.low for _, p in points], [p.high - p.value for _, p in points]]).clip(0)
        left.errorbar(ks + shift, values, yerr=spread, capsize=2, label=escape.drawn(title), linewidth=1.2, **look)
        seen = [r.heldout for r in measured.of(objective) if r.heldout.reached]
        drawn += len(points)
        if seen:
            reached = np.sum([h.reached[: DEPTHS.stop - 1] for h in seen], axis=0)
            passed = np.sum([h.passed[: DEPTHS.stop - 1] for h in seen], axis=0)
            right.plot(
                np.array(DEPTHS) + shift,
                passed / np.maximum(reached, 1),
                label=escape.drawn(title),
                linewidth=1.2,
                **look,
            )
    if not drawn:
        return None
    left.set(
        xlabel="k",
        xticks=DEPTHS,
        ylabel="alpha_k",
        title=f"when decoding, T = {temperature:g}, average over benchmarks",
    )
    right.set(xlabel="k", xticks=DEPTHS, title="on held-out conversations, as in training")
    left.legend(ncols=2)
    text = (
        "Conditional acceptance alpha_k: of the rounds (blocks) whose first k - 1 drafts are right, the share whose "
        "k-th is too. Left: with 95 % intervals over prompts and seeds. Right: labels are the data's tokens."
    )
    return _figure(measured, "alpha", "conditional acceptance by depth", text, canvas)


def _survival(measured: Measured) -> Figure | None:
    """P(A >= k) over all rounds of all benchmarks at the lowest temperature."""
    temperature = measured.temperatures[0]
    canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
    ax = canvas.subplots()
    for objective, title, look in _rows(measured):
        traces = [
            t for r in measured.of(objective) for b in r.benchmarks if b.temperature == temperature for t in b.traces
        ]
        alive = np.array(tau.survival(traces))
        shown = alive > 0
        ax.plot(np.arange(len(alive))[shown], alive[shown], label=escape.drawn(title), **look)
    ax.set(xlabel="k", ylabel="P(A ≥ k)", yscale="log", title=f"all rounds of all benchmarks, T = {temperature:g}")
    ax.legend()
    text = (
        "Survival of a block: the share of rounds that accept at least k draft tokens; one plus the sum over k ≥ 1 "
        "is the pooled tau."
    )
    return _figure(measured, "survival", "survival of a block", text, canvas)


def _steps(measured: Measured, snapshots: Sequence[RunRecord]) -> Figure | None:
    """tau against the training step, from drafters kept along the way."""
    runs = {r.run for r in measured.records}
    found = [s for s in sorted(snapshots, key=lambda s: (s.written, s.id)) if s.run in runs and s.step is not None]
    if not found:
        return None
    asked = Counter(_settings_of_steps(s) for s in found)  # means over other prompts would not make one curve
    usual = max(asked, key=lambda prompts: asked[prompts])
    newest = {(s.run, s.step): s for s in found if _settings_of_steps(s) == usual}
    chosen = sorted(newest.values(), key=lambda s: s.id)
    temperature = min(b.temperature for s in chosen for b in s.benchmarks)
    canvas = Canvas(figsize=(5.6, 4.4), layout="constrained")
    ax = canvas.subplots()
    for objective, title, look in _rows(measured):
        points: dict[int, list[float]] = {}
        for s in chosen:
            if s.objective == objective:
                taus = [
                    tau.mean(b.traces, measured.experiment.definition)
                    for b in s.benchmarks
                    if b.temperature == temperature
                ]
                points.setdefault(s.step or 0, []).append(float(np.mean(taus)))
        steps = sorted(points)
        means = [float(np.mean(points[s])) for s in steps]
        ax.plot(steps, means, label=escape.drawn(title), **look)
    ax.set(xlabel="training step", ylabel=f"tau ({measured.experiment.definition}), T = {temperature:g}")
    ax.legend()
    prompts = sum(b.measured for b in chosen[0].benchmarks if b.temperature == temperature)
    text = (
        f"tau of drafters kept along the way, average over benchmarks, {prompts} prompts in all (fewer than in the "
        "tables)."
    )
    return _figure(measured, "steps", "tau against training", text, canvas, chosen)


def _settings_of_steps(record: RunRecord) -> tuple[tuple[str, float, str], ...]:
    """Which prompts were asked, and at which temperatures."""
    return tuple(sorted((b.benchmark, b.temperature, b.prompts_sha256) for b in record.benchmarks))


def _inversion(chosen: Sequence[Measured]) -> Figure | None:
    """Common-mask accuracy against average tau, one point per run, with the rank correlation."""
    points = []
    for measured in chosen:
        temperature = measured.temperatures[0]
        for objective, title, look in _rows(measured):
            for record in measured.of(objective):
                taus = [
                    tau.mean(b.traces, measured.experiment.definition)
                    for b in record.benchmarks
                    if b.temperature == temperature and b.column in measured.experiment.columns
                ]
                if len(taus) == len(measured.experiment.columns):
                    points.append((record, title, look, 100 * record.heldout.accuracy, float(np.mean(taus))))
    if len(points) < 2:
        return None
    backbones = list(dict.fromkeys(p[0].backbone for p in points))
    canvas = Canvas(figsize=(5.2 * len(backbones), 4.2), layout="constrained")
    axes = np.atleast_1d(canvas.subplots(1, len(backbones), sharey=True))
    notes = []
    for ax, backbone in zip(axes, backbones, strict=True):
        own = [p for p in points if p[0].backbone == backbone]
        for title, look in {p[1]: p[2] for p in own}.items():
            xy = [(x, y) for _, t, _, x, y in own if t == title]
            ax.plot(*zip(*xy, strict=True), label=escape.drawn(title), **{**look, "linestyle": "none"})
        if len(own) > 2:
            rho = pd.DataFrame([p[3:] for p in own]).corr("spearman").to_numpy()[0, 1]
            notes.append(f"{escape.cell(own[0][0].config['backbone']['title'])} {rho:+.2f} ({len(own)} runs)")
        ax.set(xlabel="block-mask token accuracy, %", title=escape.drawn(own[0][0].config["backbone"]["title"]))
        ax.legend()
    axes[0].set_ylabel("tau, average over benchmarks, T = 0")
    text = (
        "The inversion: a drafter that predicts more slots of a block right need not be accepted further. One point "
        f"per run; rank correlation {'; '.join(notes) or 'of fewer than three runs is not shown'}."
    )
    return Figure("inversion", "Block-mask accuracy and tau", text, canvas, [p[0] for p in points])


def _rows(measured: Measured) -> list[tuple[str, str, dict[str, Any]]]:
    """(objective, title, look) of the rows that have records; an objective of the reader's own takes a look that is
    free."""
    looks = _looks([row.objective for row in measured.experiment.rows])
    return [(r.objective, r.title, looks[r.objective]) for r in measured.experiment.rows if measured.of(r.objective)]


def _looks(objectives: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The look of every objective of one figure."""
    names = list(objectives)
    free = (i for i in itertools.count() if i not in {LOOKS.get(o) for o in names})
    return {o: _look(LOOKS[o] if o in LOOKS else next(free)) for o in names}


def _look(i: int) -> dict[str, Any]:
    """Colour, marker and line, as matplotlib names them."""
    i %= len(COLORS)
    return {"color": COLORS[i], "marker": MARKERS[i], "linestyle": LINES[i]}


def _curves(measured: Measured) -> list[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Per row its title, look and the mean log over seeds."""
    curves = []
    for objective, title, look in _rows(measured):
        logs = [pd.DataFrame(r.training.curve) for r in measured.of(objective) if r.training.curve]
        if logs:
            curves.append((title, look, pd.concat(logs).groupby("step", as_index=False).mean()))
    return curves


def _figure(
    measured: Measured, kind: str, title: str, text: str, canvas: Canvas, records: Sequence[RunRecord] | None = None
) -> Figure:
    first = measured.records[0]
    name = first.config["backbone"]["title"]
    return Figure(f"{kind}-{first.backbone}", f"{name}: {title}", text, canvas, records or measured.records)
