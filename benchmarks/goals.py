"""The table of goals in benchmarks/README.md, from the records; ``python -m benchmarks.goals`` writes it.

Everything else on the page is written by hand; what is rendered is between ``<!-- goals -->`` and ``<!-- end -->``.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specauf_cli.reporting import escape
from specauf_cli.reporting.marks import fill_page
from specauf_cli.reporting.tables import DASH, table_row
from specauf_cli.store.files import read_json

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "README.md"
BESIDE = "beside other work"


@dataclass(frozen=True)
class Value:
    """One measured number in words, where it belongs to (``of``, may be empty), whether it meets the goal (None: it
    does not count), and the load under which it was measured (None: not noted)."""

    text: str
    of: str = ""
    met: bool | None = None
    load: Mapping[str, Any] | None = None

    @property
    def shown(self) -> str:
        """As the table has it."""
        where = f" {self.of}" if self.of else ""
        return f"{self.text}{where}" + (f" ({BESIDE})" if self.load is not None and not self.load["alone"] else "")


Values = Callable[[Any], Iterator[Value]]


@dataclass(frozen=True)
class Goal:
    """A row: what is asked, the goal in words (None: there is none), and its numbers from the record."""

    script: str
    record: str
    question: str
    goal: str | None
    values: Values


def ratio(row: Mapping[str, Any], other: Mapping[str, Any], key: str = "seconds") -> float:
    """How many times ``row``'s is ``other``'s; memory that is not noticed counts as a tenth of a MiB."""
    return float(
        max(0.1 if key == "memory" else 0.0, row[key]) / (max(0.1, other[key]) if key == "memory" else other[key])
    )


def beside(*rows: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The load of what was measured least alone."""
    loads = [row["load"] for row in rows if "load" in row]
    return next((load for load in loads if not load["alone"]), loads[0] if loads else None)


def by_vocabulary(
    above: tuple[str, ...], below: tuple[str, ...], meets: Callable[[float], bool], key: str = "seconds"
) -> Values:
    """Of step.json: one cell against another at every vocabulary, the fastest where several are named.

    Cells are ``objective/head``. The goal counts from V = 32,000 on.
    """

    def values(record: Any) -> Iterator[Value]:
        named = f"in {record['precision']} "
        cells: dict[int, dict[str, Any]] = {}
        for row in record["rows"]:
            cells.setdefault(row["vocabulary"], {})[f"{row['objective']}/{row['head']}"] = row
        for vocabulary, rows in cells.items():
            tried = [[rows[name] for name in names if name in rows] for names in (above, below)]
            if not all(tried):
                continue  # a record from before these cells
            a, b = (min(some, key=lambda row: row["seconds"]) for some in tried)
            found = ratio(a, b, key)
            met = meets(found) if vocabulary >= 32_000 else None
            yield Value(f"{found:.2f}", f"{named}at V = {vocabulary:,}", met, beside(a, b))
            named = ""  # once is enough

    return values


def peers(record: Any) -> Iterator[Value]:
    for cell in record["cells"]:
        found = cell["ratios"].get("faster peer / ours")
        where = f"in {cell['precision']} at V = {cell['vocabulary']:,}"
        if found is not None:
            yield Value(f"{found:.2f}", f"{where} ({cell['ratios']['faster peer']})", found >= 1.3, cell.get("load"))


def replay_of_one(record: Any) -> Iterator[Value]:
    seconds = {k: statistics.median(v) for k, v in record["seconds"].items() if isinstance(v, list)}
    found = seconds["live, one drafter"] / seconds["replay, one drafter"]
    yield Value(f"{found:.1f}", "", found >= 20, record.get("load"))


def replay_of_all(record: Any) -> Iterator[Value]:
    seconds = record["seconds"]
    generate = statistics.median(seconds["generate"])
    found = seconds["live, all drafters"] / (generate + seconds["replay, all drafters"])
    yield Value(f"{found:.1f}", f"for {len(record['drafters'])} drafters", found >= 3, record.get("load"))


def replay_limit(record: Any) -> Iterator[Value]:
    found = record["ratios"].get("limit / replay, one drafter")
    if found is not None:  # a record from before it was measured
        yield Value(f"{100 * found:.0f} %", "", found >= 0.6, record.get("load"))


def ranks(record: Any) -> Iterator[Value]:
    first, *others = record["ranks"].items()
    for count, seconds in others:
        yield Value(f"{first[1] / seconds:.2f}", f"with {count}", None, record.get("load"))


def corpora(record: Any) -> Iterator[Value]:
    rows = {row["gigabytes"]: row for row in record["rows"]}
    if {1.0, 10.0} <= rows.keys():
        small, large = (rows[size]["read, MiB"] for size in (1.0, 10.0))
        found = large / small
        yield Value(f"{found:.2f}", f"({large:,.0f} and {small:,.0f} MiB)", found <= 1.5, beside(rows[10.0]))


def planned(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        yield Value(f"{row['ratio']:.2f}", escape.cell(name), 0.7 <= row["ratio"] <= 1.3, row.get("load"))


def planned_memory(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        grew = row["peak grew by"]
        text = f"{row['planned memory'] / grew:.1f}" if grew > 1 else "nothing grew"
        yield Value(text, escape.cell(name), None, row.get("load"))


def families(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        exact = all(c["outputs"] == c["rounds"] == c["requests"] for c in row["exact"].values())
        whole = exact and all(row["imported"].values()) and "FAIL" not in row["doctor"]
        yield Value("all" if whole else "not all", escape.cell(name), whole, None)


def draws(record: Any) -> Iterator[Value]:
    for name, flips in record["flips"].items():
        yield Value(f"{flips} of {record['draws']:,}", f"by {escape.cell(name)}", None, record.get("load"))


def weights(record: Any) -> Iterator[Value]:
    yield Value(f"{len(record['objectives'])} objectives", "([docs/objectives.md](../docs/objectives.md))", None, None)


def engine(record: Any) -> Iterator[Value]:
    cases = [case for case in record["cases"] if case["expected"] == "equal"]
    equal = sum(case["verdict"] == "equal" for case in cases)
    yield Value(f"{equal} of {len(cases)} servers", "", equal == len(cases), None)
    named = [case for case in record["cases"] if case["expected"] != "equal"]
    right = sum(case["verdict"] == case["expected"] for case in named)
    yield Value(f"{right} of {len(named)}", "with a planted fault told apart", right == len(named), None)


def speed(record: Any) -> Iterator[Value]:
    drafters = sum(method["kind"] == "drafter" for method in record["methods"])
    yield Value(f"{drafters} drafters", "([speed.md](speed.md))", None, record.get("load"))


def share_of_peak(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        where = f"{row['precision']}, {escape.cell(name)}"
        yield Value(f"{100 * row['share of peak']:.0f} %", where, None, row.get("load"))


def gpu_tests(record: Any) -> Iterator[Value]:
    count = record["passed"] + len(record["failed"]) + len(record["skipped"])
    yield Value(f"{record['passed']} of {count}", "passed", record["passed"] == count, None)


def gpu_steps(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        if "error" in row:
            yield Value("failed", escape.cell(name), False, None)
        else:
            share = row["share of peak"]
            yield Value(f"{100 * share:.0f} %", escape.cell(name), share >= 0.45, row["load"])


def gpu_attention(record: Any) -> Iterator[Value]:
    for name, row in record["rows"].items():
        found = f"{row['split / flex']:.2f}" if "split / flex" in row else "failed"
        yield Value(found, escape.cell(name), None, row.get("load"))


def gpu_study(record: Any) -> Iterator[Value]:
    yield Value(f"{len(record.get('records', ()))} drafters", f"({record['status']})", None, None)


FULL, PRUNED, DECAY = ("auf/full",), ("auf/pruned",), ("decay/full", "decay/chunked")
KL_NAIVE, KL_CHUNKED = ("kl/naive",), ("kl/chunked",)
GOALS = (
    Goal(
        "`step.py`",
        "step.json",
        "a step with AUF: full head / pruned head",
        "1.2 from V = 32,000 on",
        by_vocabulary(FULL, PRUNED, lambda x: x >= 1.2),
    ),
    Goal(
        "",
        "step.json",
        "a step, pruned head: decay's faster one / AUF's",
        "1.3 from V = 32,000 on",
        by_vocabulary(DECAY, PRUNED, lambda x: x >= 1.3),
    ),
    Goal(
        "",
        "step.json",
        "memory of logits with AUF: pruned head / full head",
        "at most 1/3 from V = 32,000 on",
        by_vocabulary(PRUNED, FULL, lambda x: x <= 1 / 3, "memory"),
    ),
    Goal(
        "",
        "step.json",
        "a step with soft labels (KL): plain tensor operations / chunked head",
        "1 from V = 32,000 on",
        by_vocabulary(KL_NAIVE, KL_CHUNKED, lambda x: x >= 1),
    ),
    Goal(
        "",
        "step.json",
        "memory of logits with soft labels (KL): chunked head / plain tensor operations",
        "at most 1/3 from V = 32,000 on",
        by_vocabulary(KL_CHUNKED, KL_NAIVE, lambda x: x <= 1 / 3, "memory"),
    ),
    Goal("`peers.py`", "peers.json", "a step with decay: the faster public package / ours, equal loss", "1.3", peers),
    Goal("`replay.py`", "replay.json", "live decoding / replay, one drafter", "20", replay_of_one),
    Goal("", "replay.json", "live decoding / (generation + replay)", "3", replay_of_all),
    Goal(
        "",
        "replay.json",
        "the limit (a pass of the target over all tokens, a draft per round) / replay, one drafter",
        "60 %",
        replay_limit,
    ),
    Goal(
        "`scale.py`",
        "scale.json",
        "speed of several ranks of one thread / one rank ([scale.md](scale.md))",
        None,
        ranks,
    ),
    Goal(
        "`corpus.py`",
        "corpus.json",
        "memory of reading a JSONL of 10 GB / of 1 GB",
        "at most 1.5",
        corpora,
    ),
    Goal("`plan.py`", "plan.json", "seconds of a step: planned / measured", "0.7 to 1.3", planned),
    Goal("", "plan.json", "memory of a step: planned / growth of the peak", None, planned_memory),
    Goal(
        "`families.py`",
        "families.json",
        "fp32 outputs and rounds equal, the doctor content, exports come back, for every family of targets",
        "all",
        families,
    ),
    Goal("`draws.py`", "draws.json", "draws at T = 1 that rounding changes", None, draws),
    Goal("`weights.py`", "weights.json", "share of the weight by slot, early and late in a training", None, weights),
    Goal("`speed.py`", "speed.json", "tokens a second, and what a round costs", None, speed),
    Goal(
        "`make engine`", "engine.json", "a real vLLM against the replay: all answers and accepted counts", "all", engine
    ),
    Goal("`limits.py`", "limits.json", "share of this CPU's peak", None, share_of_peak),
    Goal("`make gpu`", "gpu.json#tests", "tests on a GPU", "all", gpu_tests),
    Goal("", "gpu.json#steps", "share of the GPU's bf16 peak at the paper's sizes", "45 %", gpu_steps),
    Goal("", "gpu.json#attention", "split attention / flex_attention, seconds", None, gpu_attention),
    Goal("", "gpu.json#study", "tables 2 and 4 of profile `h200`", None, gpu_study),
)


def record_of(goal: Goal, folder: Path) -> Any:
    """The record of a goal, or the part of it after a #; None where it was not measured."""
    name, _, part = goal.record.partition("#")
    if not (folder / name).is_file():
        return None
    record = read_json(folder / name)
    found = record["parts"].get(part) if part else record
    return found if found is not None and ("rows" in found or not part or found["status"] != "skipped") else None


def verdict(goal: Goal, values: list[Value]) -> str:
    """``met``, ``missed``, or a dash where there is no goal or nothing that counts."""
    counted = [value.met for value in values if value.met is not None]
    return DASH if goal.goal is None or not counted else "met" if all(counted) else "**missed**"


def origin(record: Any) -> tuple[str, str, str]:
    """Day, commit and machine of a record; of one with cases, those of the newest. Where rows name days and commits of
    their own, all of these."""
    source = max(record["cases"], key=lambda c: c.get("written", "")) if "code" not in record else record
    code, environment = source["code"], source["environment"]
    rows = record["rows"].values() if isinstance(record.get("rows"), dict) else ()
    own = [row for row in rows if isinstance(row, dict) and "code" in row]
    days = sorted({str(row["date"])[:10] for row in own} or {str(source.get("date") or source["written"])[:10]})
    commits = dict.fromkeys(_commit(row["code"]) for row in own) or [_commit(code)]
    threads = environment["threads"]
    instructions = f" with {environment['instructions']}" if environment.get("instructions") else ""
    machine = environment.get("gpu") or f"{environment['cpu']}{instructions}, {threads} thread{'s' * (threads != 1)}"
    return ", ".join(days), ", ".join(commits), str(machine)


def _commit(code: Mapping[str, Any]) -> str:
    return escape.code(str(code["commit"] or "unknown")[:7]) + (" with changes" if code["dirty"] else "")


def alone(record: Any, values: list[Value]) -> str:
    """Whether the machine did nothing else: of the record, or of all its cells; where it was not noted, so."""
    loads = [value.load for value in values if value.load is not None]
    loads = loads or [record["load"]] if record.get("load") else loads
    return "not noted" if not loads else "yes" if all(load["alone"] for load in loads) else "**no**"


def table(folder: Path) -> list[str]:
    """The table, a row for every goal."""
    head = ["command", "question", "goal", "measured", "", "alone", "date", "commit", "machine", "record"]
    lines = [table_row(head), table_row(["---"] * len(head))]
    for goal in GOALS:
        first = [goal.script, goal.question, goal.goal or "none"]
        record = record_of(goal, folder)
        values = [] if record is None else list(goal.values(record))
        if not values:
            lines.append(table_row([*first, "not measured", *[DASH] * 6]))
            continue
        day, commit, machine = origin(record)
        name = goal.record.partition("#")[0]
        shown = "; ".join(value.shown for value in values)
        about = [verdict(goal, values), alone(record, values), day, commit, escape.cell(machine)]
        lines.append(table_row([*first, shown, *about, f"[{name}]({name})"]))
    return lines


def main() -> None:
    """Writes the table into the page."""
    fill_page(PAGE, {"goals": table(FOLDER)})
    print("benchmarks/README.md")


if __name__ == "__main__":
    main()
