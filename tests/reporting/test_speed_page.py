"""The page of ``specauf speed`` says what its record says; projections are labelled; text from a record is harmless."""

from __future__ import annotations

from helpers.timings import PLAIN, speed_record, timed_request, timed_rounds
from specauf_cli.reporting.speed import Projection, markdown, summary
from specauf_cli.store.speed import SpeedRecord, TimedMethod

CURVE = {"1": {"toy/a": (6, 4), "toy/b": (12, 8)}, "4": {"toy/a": (6, 2), "toy/b": (6, 2)}}


def made(**changes: object) -> SpeedRecord:
    requests = [timed_request(PLAIN, p, (0,) * 6) for p in "ab"]
    requests += [timed_request("lookup", p, (1, 1, 1), verify=1.25) for p in "ab"]
    requests += [timed_request("run", p, (2, 2), draft=0.5, verify=1.25, rest=0.25) for p in "ab"]
    rounds = [
        timed_rounds(PLAIN, 1, 0, verify=[1.0] * 3),
        timed_rounds("run", 1, 1, draft=[0.5] * 3, verify=[1.0] * 3),
        timed_rounds("run", 1, 4, draft=[0.5] * 3, verify=[1.5] * 3),
    ]
    return speed_record(requests, rounds=rounds, curve=CURVE, **changes)


def cells(page: str, title: str) -> list[list[str]]:
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == title]


def test_speeds_ratios_and_the_best_number_of_proposals() -> None:
    page = markdown(made())
    speed, ratio = cells(page, "DFlash AUF")
    assert speed == ["1.5 ± 0.0", "666.67 ± 0.00", "666.67 ± 0.00", "1.50 ± 0.00"]
    assert ratio == [
        "4",
        "3.00 ± 0.00",
        "0 %",
        "0.50",
        "1.25",
        "0.25",
        "2.00 ± 0.00",
        "1.50 ± 0.00",
        "1.50 ± 0.00",
        "+0.0 %",
    ]
    assert cells(page, "plain decoding") == [["1.0 ± 0.0", "1000.00 ± 0.00", "1000.00 ± 0.00", "–"]]
    assert cells(page, "4") == [["3.00 ± 0.00", "0.50", "1.50", "0.00", "2.00 ± 0.00", "**1.50 ± 0.00**"]]
    assert "Best P: 4. At P = 4 rounds timed alone predict 1.50, whole requests gave 1.50 (+0.0 %)." in page
    assert "**Live rounds that are not those of the replay:** prompt lookup." in page, "it has none in this record"
    assert "Elsewhere" not in page
    (line,) = (line for line in summary(made()) if "AUF" in line)
    assert "speed-up  1.50 (tau / R 1.50)" in line


def test_looping_answers_and_outputs_that_differ_are_marked() -> None:
    page = markdown(made(repetition=[("toy", 50, 100), ("other", 0, 100)], different={"run": 2}))
    assert "TOY **50 % (repeats itself)**, OTHER 0 %. Answers that repeat themselves are easy" in page
    assert cells(page, "DFlash AUF")[1][2] == "**25 % (repeats itself)**"
    assert "**Live outputs that are not the target's own:** DFlash AUF 2" in page


def test_projections_say_what_they_are() -> None:
    ours = Projection("Where R is known", "R as it was given.", {"run": 1.5}, floor=False)
    theirs = Projection("Qwen3-8B on h100", "an upper bound.", {"run": 1.2}, floor=True)
    page = markdown(made(), [ours, theirs])
    assert "| method | tau, pooled | R | speed-up |" in page
    assert "| method | tau, pooled | R, at least | speed-up at most |" in page
    assert cells(page, "DFlash AUF")[2:] == [
        ["3.00 ± 0.00", "1.50", "2.00 ± 0.00"],
        ["3.00 ± 0.00", "1.20", "2.50 ± 0.00"],
    ]


def test_a_title_from_a_record_becomes_no_markup() -> None:
    methods = (TimedMethod(PLAIN, "<script>|x|", "plain", 0),)
    record = speed_record([timed_request(PLAIN, p, (0, 0)) for p in "ab"], methods=methods)
    page = markdown(record)
    assert "<script>" not in page.replace("\\<script>", "")
    assert "\\|x\\|" in page
