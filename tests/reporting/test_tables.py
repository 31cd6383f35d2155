"""Tables are pure functions of records: means with intervals, dashes, the paper beside, no mixing of profiles."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.synthetic import benchmark, constant, heldout, record
from specauf_cli.config import specs
from specauf_cli.errors import InputError
from specauf_cli.evaluation.statistics import Interval, average, average_difference, difference, interval, sample
from specauf_cli.reporting import in_short, tables
from specauf_cli.reporting.measured import select
from specauf_cli.store.records import RunRecord

EXPERIMENT = specs.load_spec("table2")
COLUMNS = tuple(EXPERIMENT.columns)


def lines(records: Sequence[RunRecord]) -> list[tables.Line]:
    return tables.lines(select(EXPERIMENT, records))


def same(objective: str, accepted: int, **changes: Any) -> RunRecord:
    return constant(objective, changes.pop("columns", EXPERIMENT.columns), accepted, **changes)


def noisy(objective: str, seed: int = 0, *, shift: int = 0, draw: int = 0, temperature: float = 0.0) -> RunRecord:
    """Eight prompts per benchmark of very different lengths of acceptance; ``shift`` is added to every round."""
    found = []
    for i, column in enumerate(COLUMNS):
        rng = np.random.default_rng([draw, i])
        rounds = (rng.integers(0, 9, size=(8, 5)) + rng.integers(0, 4, size=(8, 1)) + shift).tolist()
        found.append(benchmark(column, rounds, temperature))
    return record(objective, found, seed=seed)


def line(found: Sequence[tables.Line], method: str, source: str = "ours", temperature: float = 0.0) -> tables.Line:
    return next(x for x in found if (x.method, x.source, x.temperature) == (method, source, temperature))


def numbers(found: tables.Line) -> list[float | None]:
    return [x.value if isinstance(x, Interval) else x for x in found.values]


def cells(text: str, start: str) -> list[str]:
    """The cells of the first row of the Markdown ``text`` that starts so."""
    row = next(x for x in text.splitlines() if x.startswith(start))
    return [c.strip() for c in row.strip("|").split("|")]


def test_cells_are_tau_and_means_over_seeds() -> None:
    found = line(lines([same("auf", 1), same("auf", 3, seed=1)]), "AUF")
    one, three = (9 / 4 + 5 / 2) / 2, (17 / 4 + 9 / 2) / 2
    assert numbers(found) == pytest.approx([(one + three) / 2] * 7)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx((6 / 20 + 7 / 20) / 2)


def test_the_average_weighs_benchmarks_alike_whatever_their_size() -> None:
    sizes = dict(zip(COLUMNS, (2, 3, 4, 5, 6, 40), strict=True))
    made = [benchmark(c, [[i, i]] * n) for i, (c, n) in enumerate(sizes.items())]
    found = numbers(line(lines([record("auf", made)]), "AUF"))
    assert found == pytest.approx([i + 1.5 for i in range(6)] + [4.0])


def test_plus_minus_is_half_of_the_interval_of_statistics() -> None:
    made = noisy("auf")
    samples = {b.column: sample({0: b.traces}, "engine") for b in made.benchmarks}
    expected = [interval(samples[c], c) for c in COLUMNS] + [average(samples)]
    assert all(x.half_width > 0.2 for x in expected)
    shown = cells(tables.markdown(select(EXPERIMENT, [made])), "| 0 | AUF | ours")
    assert shown[3:10] == [f"**{x.value:.2f}** ± {(x.high - x.low) / 2:.2f}" for x in expected]
    right, asked = np.array([9, 4, 7, 5, 8, 2]), np.array([10, 12, 9, 14, 8, 11])
    blocks = record("auf", made.benchmarks, blocks=heldout(asked.tolist(), right.tolist()))
    share = re.fullmatch(r"(.*) ± (.*) %", cells(tables.markdown(select(EXPERIMENT, [blocks])), "| 0 | AUF | ours")[-1])
    assert share
    assert share[1] == f"{100 * right.sum() / asked.sum():.1f}"
    drawn = np.random.default_rng(1).integers(6, size=(40_000, 6))  # its own bootstrap
    low, high = np.quantile(right[drawn].sum(axis=1) / asked[drawn].sum(axis=1), [0.025, 0.975])
    assert float(share[2]) == pytest.approx(100 * (high - low) / 2, rel=0.05)


def test_missing_benchmark_is_a_dash_and_so_is_the_average() -> None:
    made = [same("auf", 1, columns=("gsm8k",))]
    found = line(lines(made), "AUF")
    assert found.values[0] is not None
    assert found.values[1:] == (None,) * 6
    shown = cells(tables.markdown(select(EXPERIMENT, made)), "| 0 | AUF | ours")
    assert shown[3].startswith("**2.38** ± ")
    assert shown[4:10] == ["–"] * 6
    assert cells(tables.markdown(select(EXPERIMENT, made)), "| 0 | decay | ours")[3:] == ["–"] * 8


def test_a_benchmark_that_one_seed_lacks_is_a_dash() -> None:
    whole = same("auf", 1)
    part = record("auf", [b for b in whole.benchmarks if b.column != "mbpp"], seed=1)
    found = numbers(line(lines([whole, part]), "AUF"))
    assert [c for c, x in zip(COLUMNS, found, strict=False) if x is None] == ["mbpp"]
    assert found[-1] is None


def test_paper_stands_beside_and_full_ce_has_none() -> None:
    text = tables.markdown(select(EXPERIMENT, [same("full_ce", 1), same("decay", 1)]))
    rows = [x for x in text.splitlines() if x.startswith("|  |  | paper")]
    assert rows[0] == "|  |  | paper | – | – | – | – | – | – | – | – |"
    assert "| paper | 2.29 | 2.39 | 2.86 | 2.85 | 2.03 | 2.01 | 2.40 |" in rows[1]


def test_best_of_a_column_is_bold() -> None:
    text = tables.markdown(select(EXPERIMENT, [same("decay", 1), same("auf", 2)]))
    assert all(c.startswith("**3.38** ±") for c in cells(text, "| 0 | AUF | ours")[3:10])
    assert all(c.startswith("2.38 ±") for c in cells(text, "| 0 | decay | ours")[3:10])


def test_what_rounds_to_the_best_is_bold_too() -> None:
    text = tables.markdown(select(EXPERIMENT, [same("decay", 2), same("auf", 2)]))
    for method in ("AUF", "decay"):
        assert all(c.startswith("**3.38**") for c in cells(text, f"| 0 | {method} | ours")[3:10])


def test_every_temperature_is_a_block_with_its_own_best_and_its_own_paper_values() -> None:
    cold, warm = {"decay": 1, "auf": 3}, {"decay": 4, "auf": 2}
    made = [
        record(
            name,
            [benchmark(c, [[n] * 4, [n] * 2], t) for t, n in ((0.0, cold[name]), (1.0, warm[name])) for c in COLUMNS],
        )
        for name in ("auf", "decay")
    ]
    text = tables.markdown(select(EXPERIMENT, made))
    order = [x[:-7] for x in re.findall(r"^\| [01] \| \S+ \| ours", text.split("## Differences")[0], re.MULTILINE)]
    assert order == [f"| {t} | {m}" for t in (0, 1) for m in ("full-CE", "decay", "AUF+decay", "AUF")]
    assert cells(text, "| 0 | AUF | ours")[3].startswith("**4.38**")
    assert cells(text, "| 1 | AUF | ours")[3].startswith("3.38")
    assert cells(text, "| 1 | decay | ours")[3].startswith("**5.38**")
    found = lines(made)
    assert line(found, "AUF", "paper", 1.0).values == (2.40, 2.50, 2.89, 2.94, 2.06, 2.11, 2.48)
    assert line(found, "AUF", "paper", 0.0).values == (2.51, 2.64, 3.09, 3.09, 2.18, 2.15, 2.61)
    minus = tables.differences(select(EXPERIMENT, made))
    assert numbers(line(minus, "AUF", temperature=0.0)) == pytest.approx([2.0] * 7)
    assert numbers(line(minus, "AUF", temperature=1.0)) == pytest.approx([-2.0] * 7)
    paper = numbers(line(minus, "AUF", "paper", 1.0))
    assert paper == pytest.approx([0.19, 0.22, 0.19, 0.20, 0.12, 0.15, 0.17])


def test_a_method_compared_with_itself_under_another_name_differs_by_exactly_nothing() -> None:
    made = [noisy("decay"), noisy("auf"), noisy("decay", 1, draw=1), noisy("auf", 1, draw=1)]
    assert all(isinstance(x, Interval) and x.half_width > 0.2 for x in line(lines(made), "AUF").values)
    text = tables.markdown(select(EXPERIMENT, made)).split("## Differences to decay")[1]
    assert cells(text, "| 0 | AUF | ours")[3:] == ["+0.00 ± 0.00 (n.s.)"] * 7 + ["+0.0 ± 0.0 (n.s.)"]


def test_differences_are_paired_by_prompt_and_seed() -> None:
    """Prompts and seeds differ by several tokens, but the method adds exactly one to each: its difference has no
    error."""
    made = [noisy("decay"), noisy("auf", shift=1), noisy("decay", 1, draw=1), noisy("auf", 1, shift=1, draw=1)]
    found = line(tables.differences(select(EXPERIMENT, made)), "AUF")
    for cell in found.values:
        assert isinstance(cell, Interval)
        assert (cell.value, cell.low, cell.high) == pytest.approx((1.0, 1.0, 1.0))
    text = tables.markdown(select(EXPERIMENT, made)).split("## Differences to decay")[1]
    assert cells(text, "| 0 | AUF | ours")[3:10] == ["+1.00 ± 0.00"] * 7


def test_differences_are_those_of_statistics_with_not_separable_marked() -> None:
    made = [noisy("decay"), noisy("auf", draw=1, shift=1)]
    base, ours = ({b.column: sample({0: b.traces}, "engine") for b in r.benchmarks} for r in made)
    expected = [difference(ours[c], base[c], c) for c in COLUMNS] + [average_difference(ours, base)]
    assert {x.separable for x in expected} == {False, True}, "the example must show both"
    shown = cells(tables.markdown(select(EXPERIMENT, made)).split("## Differences to decay")[1], "| 0 | AUF | ours")
    assert shown[3:10] == [
        f"{x.value:+.2f} ± {(x.high - x.low) / 2:.2f}" + ("" if x.low > 0 or x.high < 0 else " (n.s.)")
        for x in expected
    ]


def test_differences_of_the_paper_are_those_of_its_values_and_have_no_interval() -> None:
    found = tables.differences(select(EXPERIMENT, [same("decay", 1), same("auf", 2)]))
    assert numbers(line(found, "AUF", "paper")) == pytest.approx([0.22, 0.25, 0.23, 0.24, 0.15, 0.14, 0.21])
    assert line(found, "full-CE", "paper").values == (None,) * 7
    assert not [x for x in found if x.method == "decay"]
    text = tables.markdown(select(EXPERIMENT, [same("decay", 1), same("auf", 2)])).split("## Differences")[1]
    assert "|  |  | paper | +0.22 | +0.25 | +0.23 | +0.24 | +0.15 | +0.14 | +0.21 | – |" in text


def test_a_method_without_the_baseline_has_no_difference() -> None:
    found = tables.differences(select(EXPERIMENT, [same("auf", 2)]))
    assert line(found, "AUF").values == (None,) * 7
    assert line(found, "AUF").accuracy is None


def test_differences_of_accuracy_are_in_points() -> None:
    made = [
        same("decay", 1, blocks=heldout([10, 10, 10], [8, 5, 8])),
        same("auf", 1, blocks=heldout([10] * 3, [6, 3, 6])),
    ]
    text = tables.markdown(select(EXPERIMENT, made)).split("## Differences to decay")[1]
    assert cells(text, "| 0 | AUF | ours")[-1] == "-20.0 ± 0.0"


def test_profiles_never_mix() -> None:
    with pytest.raises(InputError, match="several profiles"):
        select(EXPERIMENT, [same("auf", 1), same("decay", 1, profile="h200")])


def test_two_runs_with_one_objective_and_seed_are_an_error() -> None:
    with pytest.raises(InputError, match="dflash-auf-s0 and other-run are both auf with seed 0; keep one"):
        select(EXPERIMENT, [same("auf", 1), same("auf", 1, run="other-run", written="2027")])


def test_newest_record_of_a_run_wins_and_order_does_not_matter() -> None:
    old, new = same("auf", 1, written="2026-01"), same("auf", 5, written="2026-02")
    assert tables.markdown(select(EXPERIMENT, [old, new])) == tables.markdown(select(EXPERIMENT, [new, old]))
    assert numbers(line(lines([new, old]), "AUF"))[0] == pytest.approx((25 / 4 + 13 / 2) / 2)


def test_other_backbones_and_objectives_stay_out() -> None:
    stray = [same("auf", 9, backbone="domino", run="x"), same("unheard_of", 9)]
    assert not select(EXPERIMENT, stray).records
    assert line(lines(stray), "AUF").values == (None,) * 7


def test_records_of_an_objective_must_share_their_heldout_conversations() -> None:
    other = {**heldout([10, 10], [5, 1]), "ids": ["x", "y"]}
    with pytest.raises(InputError, match="different held-out conversations"):
        lines([same("auf", 1), same("auf", 1, seed=1, blocks=other)])


def test_csv_holds_the_unrounded_numbers_and_their_intervals() -> None:
    made = noisy("auf")
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(select(EXPERIMENT, [made])))))
    found = {(r["method"], r["source"], r["column"]): r for r in rows}
    samples = {b.column: sample({0: b.traces}, "engine") for b in made.benchmarks}
    for name, expected in [*((c, interval(samples[c], c)) for c in COLUMNS), ("average", average(samples))]:
        row = found["AUF", "ours", name]
        shown = [float(row[k]) for k in ("value", "low", "high")]
        assert shown == pytest.approx([expected.value, expected.low, expected.high], abs=1e-6)
        assert expected.low < expected.value < expected.high
    assert float(found["AUF", "ours", "block_mask_accuracy"]["value"]) == pytest.approx(0.3)
    paper = found["AUF", "paper", "average"]
    assert (paper["value"], paper["low"], paper["high"]) == ("2.61", "", "")
    assert not [k for k in found if k[:2] == ("full-CE", "paper")]
    assert not [k for k in found if k[:2] == ("decay", "ours")]


def test_offline_benchmarks_are_never_shown_as_the_real_ones() -> None:
    text = tables.markdown(select(EXPERIMENT, [same("auf", 1)]))
    assert "*ours measured on*" in text
    assert "*MATH500*" in text
    real = record("auf", [benchmark(c, [[1, 1], [1]], title=t) for c, t in EXPERIMENT.columns.items()])
    assert "*ours measured on*" not in tables.markdown(select(EXPERIMENT, [real]))


def test_footnotes_say_what_was_counted_on_what_and_where_the_records_are() -> None:
    audit = {"requests": 4, "identical": 3, "same_rounds": 2, "first_difference": None}
    made = [
        record(name, [benchmark("gsm8k", [[1], [2]], skipped={"too long": 3}, audit=audit)], seed=seed)
        for name in ("decay", "auf")
        for seed in (0, 7)
    ]
    text = " ".join(tables.markdown(select(EXPERIMENT, made), links="../records/laptop").split())
    assert "Profile `laptop`. A laptop. Target: tiny." in text
    assert "tau: definition `engine`" in text
    assert "Prompts measured: GSM8K 2 (3 skipped: too long). At most" in text
    assert "answers that ended by themselves: at T = 0 GSM8K 100 %." in text
    assert "Seeds: 0, 7 (same initial weights" in text
    assert "and seeds. (n.s.): not separable" in text
    assert "Audit (fp32, decoded live): 12 of 16 outputs" in text
    assert "8 of 16 have the recorded rounds exactly (8 requests measured)" in text
    assert f"Paper: {EXPERIMENT.paper.source}." in text
    for r in made:
        assert f"[s{r.seed}](../records/laptop/{r.id}.json)" in text
    assert "Records:" not in tables.markdown(select(EXPERIMENT, made))
    one = tables.markdown(select(EXPERIMENT, made[:1]))
    assert "with one seed it speaks of this drafter, not of training again" in one
    uneven = tables.markdown(select(EXPERIMENT, made[:3]))
    assert "Seeds: decay: 0, 7; auf: 0." in uneven


def test_the_smallest_detectable_differences_are_named() -> None:
    made = [noisy("decay"), noisy("auf", draw=1)]
    base, ours = ({b.column: sample({0: b.traces}, "engine") for b in r.benchmarks} for r in made)
    single = max(difference(ours[c], base[c], c).detectable for c in COLUMNS)
    text = tables.markdown(select(EXPERIMENT, made))
    mean = average_difference(ours, base).detectable
    assert f"80 % power: up to {single:.2f} on a benchmark, up to {mean:.2f} on the average" in text


def test_empty_table_says_so() -> None:
    text = tables.markdown(select(EXPERIMENT, []))
    assert "No run of this table is finished yet" in text
    assert "## Differences" not in text
    assert "Verdict" not in text
    assert "| paper | 2.51 |" in text


VARIANTS = specs.load_spec("table3")


def test_the_variant_matrix_is_read_from_the_objectives_and_is_the_papers() -> None:
    found = {row.objective: tables.matrix(specs.objective_yaml(row.objective)) for row in VARIANTS.rows}
    assert found == VARIANTS.paper
    page = tables.variants(VARIANTS, {o: specs.objective_yaml(o) for o in found})
    assert page.count("| yes |") == 7
    assert "| S-AUF+D | base-auf | base-auf | on | yes |" in page


def test_an_objective_that_drifts_from_the_paper_is_shown() -> None:
    objectives = {row.objective: specs.objective_yaml(row.objective) for row in VARIANTS.rows}
    objectives["s_auf"] = objectives["s_auf"] | {"final_reads": "final"}
    page = tables.variants(VARIANTS, objectives)
    assert "| S-AUF | base-auf | final-auf | off | **no** |" in page
    assert page.count("| yes |") == 6


def test_a_matrix_names_credits_of_ones_own() -> None:
    own = {
        "base": {"credit": "my.credits.first_half"},
        "final": {"credit": "x.decay", "gamma": 3},
        "final_reads": "final",
    }
    assert tables.matrix(own) == ("first_half", "common", "off, on")
    assert tables.matrix(specs.objective_yaml("auf")) == ("base-auf", "–", "off")


def test_examples_of_one_conversation_are_one_cluster() -> None:
    """A template that rewrites earlier turns makes several examples of a conversation: they rise and fall together."""
    right = [2, 8] * 10
    alone = heldout([10] * 20, right)
    parts = {
        **heldout([10] * 80, [n for n in right for _ in range(4)]),
        "ids": [i for i in alone["ids"] for _ in range(4)],
    }
    one, four = (select(EXPERIMENT, [record("auf", [benchmark("gsm8k", [[1]])], blocks=b)]) for b in (alone, parts))
    first, second = (interval(m.accuracy("auf"), "heldout") for m in (one, four))
    assert second.value == pytest.approx(first.value)
    assert second.half_width == pytest.approx(first.half_width)


def test_seeds_of_a_row_are_trained_one_way() -> None:
    made = [same("auf", 1, seed=s) for s in (0, 1)]
    for i, r in enumerate(made):
        r.config["objective"] = {"base": {"gamma": 4 + i}}
    with pytest.raises(InputError, match=r"auf-s0 \(gamma 4\) and dflash-auf-s1 \(gamma 5\) cannot share a row"):
        select(EXPERIMENT, made)


@pytest.mark.parametrize(("what", "called"), [("target", "targets"), ("data", "training data")])
def test_drafters_of_one_seed_share_target_and_data(what: str, called: str) -> None:
    decay, auf = (same(name, 1, inputs={what: f"{name}-input"}) for name in ("decay", "auf"))
    says = rf"auf-s0 \(auf-input\) and dflash-decay-s0 \(decay-input\) have different {called} with seed 0"
    with pytest.raises(InputError, match=says):
        select(EXPERIMENT, [decay, auf])


def test_seeds_with_weights_of_their_own_are_named() -> None:
    made = [same(name, 1, seed=s, inputs={"target": f"{s:08d}ff"}) for name in ("decay", "auf") for s in (0, 1)]
    note = tables.profile_note(select(EXPERIMENT, made).records)
    assert "`00000000` (seed 0), `00000001` (seed 1)" in note
    assert "answers that ended by themselves (seed 0):" in tables.prompts_note(made)
    alone = [r for r in made if r.seed == 0]
    assert "weights" not in tables.profile_note(alone)
    assert "(seed" not in tables.prompts_note(alone)


def test_in_short_a_table_is_its_best_row_beside_decay() -> None:
    made = [same(name, n) for name, n in (("decay", 1), ("auf", 3), ("auf_decay", 2))]
    (line,) = in_short.of_table(select(EXPERIMENT, made), "pooled")
    assert line == "T = 0: AUF 4.00 ± 0.00, decay 2.00 ± 0.00; difference +2.00 ± 0.00"
    assert in_short.of_table(select(EXPERIMENT, made[1:]), "pooled") == [], "nothing to compare with"
