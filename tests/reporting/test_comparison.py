"""Pages that compare objectives: the order of rows, what is separable, C8 and C9, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from helpers.synthetic import benchmark, heldout, record
from specauf_cli.config import specs
from specauf_cli.config.specs import ComparisonSpec, Condition, VariantRow
from specauf_cli.reporting import comparison, in_short
from specauf_cli.reporting.comparison import Comparison, Part
from specauf_cli.store.records import RunRecord

SHIPPED = specs.load_spec("controls")
assert isinstance(SHIPPED, ComparisonSpec)
PAGE = replace(
    SHIPPED,
    columns={"gsm8k": "GSM8K", "mbpp": "MBPP"},
    conditions=(Condition("b16", "B", "16"), Condition("x4", "steps", "x 4", budget=4)),
    claims=("x4", "b16"),
    rows=(
        VariantRow("decay", "decay, gamma 1", name="decay_1", settings=("objective.base.gamma=1",), group="gamma"),
        VariantRow("decay", "decay, gamma 7", group="gamma"),
        VariantRow("auf", "AUF", group="AUF"),
        VariantRow("shuffled_auf", "shuffled | AUF", group="support"),
        VariantRow("static_auf", "static AUF", group="support"),
        VariantRow("tail", "tail", conditions=("b16",)),
    ),
)
Counts = Sequence[int]
"""Accepted tokens of every round, one number per prompt."""
LOW, MIDDLE, HIGH = [1] * 10, [2] * 10, [3] * 10
NOISE = [1, 3] * 5


def drafter(name: str, accepted: Counts, seed: int = 0, **changes: object) -> RunRecord:
    """Ten prompts of six rounds on each benchmark; ten held-out conversations, half of whose slots are right."""
    results = [benchmark(c, [[n] * 6 for n in accepted]) for c in PAGE.columns]
    training = {"last": {"step": 50}, "seconds": 10.0}
    values = {"run": f"dflash-{name}-s{seed}-{len(accepted)}", "training": training, **changes}
    return record(name, results, seed=seed, blocks=heldout([10] * 10, [5] * 10), **values)


def judged(**accepted: Counts) -> Comparison:
    """What the page says of these rows under its first condition."""
    return comparison.compare(PAGE, {"b16": [drafter(name, counts) for name, counts in accepted.items()]})


def only_part(compared: Comparison) -> Part:
    (part,) = compared.parts
    return part


FULL = {"decay_1": MIDDLE, "decay": LOW, "auf": HIGH, "shuffled_auf": MIDDLE, "static_auf": LOW, "tail": LOW}


def verdicts_of(compared: Comparison) -> dict[str, str]:
    return {v.claim: v.verdict for v in only_part(compared).verdicts}


def test_rows_are_sorted_by_average_tau_and_compared_with_baseline_and_best() -> None:
    lines = only_part(judged(**FULL)).lines
    assert [line.row.recorded_as for line in lines[:3]] == ["auf", "decay_1", "shuffled_auf"]
    best, second, *_ = lines
    assert best.average is not None
    assert best.average.value == pytest.approx(25 / 6)  # 6 rounds of 4 tokens, and that of the prompt's pass
    assert best.to_best is None
    assert best.to_baseline is not None
    assert best.to_baseline.value == pytest.approx(2)
    assert second.to_best is not None
    assert second.to_best.value == pytest.approx(-1)
    assert best.survival == (1, 1, 1, 0)
    assert lines[-1].survival == (1, 0, 0, 0)
    assert best.accuracy.value == pytest.approx(0.5)
    assert best.slots == (0.5,)
    assert best.seconds == pytest.approx(0.2)


def test_the_page_says_what_is_best_and_what_is_not_separable_from_it() -> None:
    text = comparison.markdown(judged(**FULL), links="../records/laptop/controls")
    assert (
        "## B 16\n\n**AUF** has the highest average tau, 4.17 ± 0.00. All other rows are separable from it.\n" in text
    )
    assert "| AUF | AUF | **4.17** ± 0.00 | **4.17** ± 0.00 | **4.17** ± 0.00 | +2.00 ± 0.00 | – |\n" in text
    assert "| gamma | decay, gamma 7 | 2.17 ± 0.00 | 2.17 ± 0.00 | 2.17 ± 0.00 | – | -2.00 ± 0.00 |\n" in text
    assert "| decay, gamma 1 | 1.00 | 1.00 | 0.00 | 0.00 | 50.0 ± 0.0 % | 50.0 | – | – | – | 0.200 * |\n" in text
    assert "Not measured yet: steps x 4.\n" in text
    assert "(../records/laptop/controls/b16/" in text
    assert r"shuffled \| AUF" in text
    assert " seeds |" not in text
    tied = comparison.markdown(judged(**FULL | {"decay_1": NOISE, "shuffled_auf": HIGH, "auf": MIDDLE}))
    assert r"**shuffled \| AUF** has the highest average tau, 4.17 ± 0.00. All other rows" in tied
    tied = comparison.markdown(judged(decay=MIDDLE, auf=NOISE, tail=LOW))
    assert "3.17 ± 0.00. Not separable from it: AUF.\n" in tied
    assert "Records:" not in tied


def test_rows_and_conditions_without_records_are_named() -> None:
    text = comparison.markdown(judged(decay=LOW, auf=MIDDLE))
    assert r"Not measured yet: decay, gamma 1; shuffled \| AUF; static AUF; tail." in text
    assert "No run of this page is finished yet." in comparison.markdown(comparison.compare(PAGE, {}))
    short = drafter("tail", HIGH)
    records = [drafter("decay", LOW), drafter("auf", MIDDLE), replace(short, benchmarks=short.benchmarks[:1])]
    part = only_part(comparison.compare(PAGE, {"b16": records}))
    assert [line.row.recorded_as for line in part.lines] == ["auf", "decay", "tail"], "not ranked, and last"
    text = comparison.markdown(Comparison(PAGE, (part,)))
    assert "**AUF** has the highest average tau" in text
    assert "Not measured on every benchmark, and therefore not ranked: tail." in text
    assert "|  | tail | **4.17** ± 0.00 | – | – | – | – |\n" in text


def test_every_record_is_on_the_page() -> None:
    stray = drafter("geometric", LOW)
    text = comparison.markdown(comparison.compare(PAGE, {"b16": [drafter("decay", LOW), stray]}))
    assert f"Records without a row on this page: `{stray.id}`." in text


def test_rows_of_different_seeds_are_compared_on_common_ones() -> None:
    records = [drafter("decay", LOW, seed=s) for s in (0, 1)] + [drafter("auf", HIGH, seed=s) for s in (1, 2)]
    records += [drafter("tail", MIDDLE, seed=0)]
    compared = comparison.compare(PAGE, {"b16": records})
    lines = {line.row.recorded_as: line for line in only_part(compared).lines}
    assert lines["auf"].to_baseline is not None
    assert (lines["auf"].to_baseline.seeds, lines["auf"].average and lines["auf"].average.seeds) == (1, 2)
    assert lines["tail"].to_best is None
    text = comparison.markdown(compared)
    assert "**AUF** has the highest average tau, 4.17 ± 0.00. No seed in common with it: tail.\n" in text
    assert "| Avg - best | seeds |" in text
    assert "+2.00 ± 0.00 | – | 1, 2 |\n" in text
    assert "Seeds: 0, 1, 2 (same initial weights" in text
    assert "Some rows have fewer: a tau is the mean over the seeds of its row" in text


@pytest.mark.parametrize(
    ("changes", "c8", "c9"),
    [
        ({}, "holds", "holds"),
        ({"decay_1": [4] * 10}, "does not hold", "holds"),
        ({"auf": MIDDLE, "decay_1": NOISE, "shuffled_auf": NOISE}, "not separable", "not separable"),
        ({"static_auf": [4] * 10}, "holds", "does not hold"),
    ],
)
def test_claims_are_judged(changes: dict[str, Counts], c8: str, c9: str) -> None:
    assert verdicts_of(judged(**{**FULL, **changes})) == {"C8": c8, "C9": c9}


@pytest.mark.parametrize(("absent", "c8", "c9"), [("decay", 0, 1), ("static_auf", 1, 0), ("tail", 1, 1)])
def test_a_claim_cannot_hold_on_some_of_its_rows(absent: str, c8: int, c9: int) -> None:
    words = ("not separable", "holds")
    compared = judged(**{name: counts for name, counts in FULL.items() if name != absent})
    assert verdicts_of(compared) == {"C8": words[c8], "C9": words[c9]}


def test_c8_takes_the_best_gamma_and_says_which() -> None:
    text = only_part(judged(**FULL)).verdicts[0].numbers
    assert text == "best: decay, gamma 1 (3.17); AUF - decay, gamma 1: +1.00 ± 0.00"
    text = only_part(judged(auf=HIGH, decay=LOW)).verdicts[0].numbers
    assert text.endswith("AUF - decay, gamma 7: +2.00 ± 0.00; not measured: decay, gamma 1")


def test_the_front_page_quotes_the_first_condition_that_is_whole() -> None:
    first = [drafter(name, counts) for name, counts in FULL.items()]
    lost = [drafter(name, LOW if name == "auf" else MIDDLE) for name in FULL if name != "tail"]
    assert [v.verdict for v in comparison.compare(PAGE, {"b16": first}).quoted] == ["holds", "holds"]
    both = comparison.compare(PAGE, {"b16": first, "x4": lost})
    assert [v.verdict for v in both.quoted] == ["does not hold", "does not hold"]
    begun = [record for record in lost if record.objective != "decay_1"]
    compared = comparison.compare(PAGE, {"b16": first, "x4": begun})
    assert [v.verdict for v in compared.quoted] == ["holds", "holds"], "rows of the first are still missing"
    assert [v.verdict for v in comparison.compare(PAGE, {"x4": begun}).quoted] == ["does not hold", "does not hold"]
    silent = comparison.compare(replace(PAGE, claims=()), {"b16": first})
    assert silent.quoted == ()
    assert "| claim |" not in comparison.markdown(silent)


def test_the_csv_has_every_number_once() -> None:
    lines = comparison.to_csv(judged(**FULL)).splitlines()
    assert lines[0] == "condition,row,what,of,value,low,high"
    assert "b16,decay_1,tau - decay,average,1.0,1.0,1.0" in lines
    assert "b16,decay_1,tau - best,average,-1.0,-1.0,-1.0" in lines
    assert "b16,auf,P(A >= k),3,1.0,," in lines
    assert "b16,auf,seconds per step,,0.2,," in lines
    keys = [line.rsplit(",", 3)[0] for line in lines]
    assert len(set(keys)) == len(keys)


def test_the_figure_has_a_panel_for_every_condition_with_several_gammas() -> None:
    records = [drafter(name, counts) for name, counts in FULL.items()]
    figure = comparison.gamma_figure(comparison.compare(PAGE, {"b16": records, "x4": records[1:]}))
    assert figure is not None
    assert [ax.get_title() for ax in figure.canvas.axes] == ["B 16"]
    assert {r.objective for r in figure.records} == set(FULL) - {"tail"}
    assert figure.svg() == figure.svg()
    assert comparison.gamma_figure(judged(decay=LOW, auf=HIGH)) is None


BUDGETS = replace(
    PAGE,
    conditions=tuple(
        Condition(f"{name}_x{n}", factor, f"steps x {n}", budget=n)
        for name, factor in (("o", "original answers"), ("r", "the target's own answers"))
        for n in (1, 2)
    ),
    claims=(),
)


def by_budget() -> Comparison:
    first = [drafter("decay", LOW), drafter("auf", HIGH), drafter("static_auf", HIGH)]
    second = [drafter("decay", HIGH), drafter("auf", MIDDLE)]
    return comparison.compare(BUDGETS, {"o_x1": first, "o_x2": second, "r_x1": first})


def test_objectives_are_shown_by_budget_and_the_best_with_what_is_not_separable_from_them() -> None:
    text = comparison.markdown(by_budget())
    (table,) = text.split("**original answers**: average tau")[1:]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in table.split("## ")[0].splitlines()}
    assert [cell.strip("| ") for cell in rows["objective"]] == ["x 1", "x 2"]
    bold = {title: ["**" in cell for cell in cells] for title, cells in rows.items() if title in ("AUF", "static AUF")}
    assert bold == {"AUF": [True, False], "static AUF": [True, False]}
    assert "**" in rows["decay, gamma 7"][1]
    assert "**the target's own answers**: average tau" not in text, "one budget is no development"


def test_the_budget_figure_has_a_panel_for_every_factor_with_several_budgets() -> None:
    figure = comparison.budget_figure(by_budget())
    assert figure is not None
    assert [ax.get_title() for ax in figure.canvas.axes] == ["original answers"]
    assert {line.get_label() for line in figure.canvas.axes[0].get_lines()}
    assert [list(line.get_xdata()) for line in figure.canvas.axes[0].get_lines()] == [[1, 2], [1, 2], [1]]
    assert [label.get_text() for label in figure.canvas.axes[0].get_xticklabels()] == ["1\n1 seed", "2\n1 seed"]
    assert len(figure.records) == 5
    assert comparison.budget_figure(judged(decay=LOW, auf=HIGH)) is None


def test_in_short_it_is_the_best_of_each_condition_and_what_auf_gains() -> None:
    assert in_short.of_comparison(judged(**FULL)) == ["B 16: best AUF 4.17 ± 0.00; AUF - decay, gamma 7 +2.00 ± 0.00"]
    tied = in_short.of_comparison(judged(decay=LOW, auf=HIGH, shuffled_auf=HIGH))
    assert tied[0].startswith("B 16: best AUF 4.17 ± 0.00 (not separable from it: shuffled \\| AUF); AUF - decay")
    assert in_short.of_comparison(judged(decay=LOW)) == ["B 16: best decay, gamma 7 2.17 ± 0.00"]


def test_in_short_budgets_stand_in_a_row() -> None:
    best, gains, *others = in_short.of_comparison(by_budget())
    assert best == "original answers, best: AUF (x 1); decay, gamma 7 (x 2)"
    assert gains == "original answers, AUF - decay, gamma 7: +2.00 ± 0.00 (x 1), -1.00 ± 0.00 (x 2)"
    assert all("original answers" not in line for line in others)
