"""Runs all checks and prints one line for each, with its fix."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from specauf_cli.config.schema import Config
from specauf_cli.doctor import drafter, resources, target, text
from specauf_cli.doctor.subject import FAIL, OK, OUT, WARN, Finding, LeftOut, Subject, reason_of

CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "settings": resources.settings,
    "resources": resources.disk_and_memory,
    "data": text.data,
    "benchmarks": text.prompts,
    "overlap": text.overlap,
    "target": resources.target,
    "layers": target.layers,
    "head": target.head,
    "mask row": target.mask_row,
    "vocabulary": target.vocabulary,
    "rendering": text.rendering,
    "stop tokens": text.stop_tokens,
    "control tokens": text.control_tokens,
    "first prompt": text.first_prompt,
    "labels": drafter.labels,
    "leak": drafter.leak,
    "drafter": drafter.belongs,
    "round trip": drafter.round_trip,
}
"""Every check by the name of its line, in the order of the lines."""

OWNERS = {"data": "data", "benchmarks": "prompts", "target": "target", "stop tokens": "examples", "drafter": "drafter"}
"""Checks that fail when their part of the subject cannot be opened; all other checks of that part are skipped."""


def examine(subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Yields every check's name and finding. A check that crashes counts as failed."""
    for name, check in CHECKS.items():
        try:
            yield name, check(subject)
        except LeftOut as error:
            if OWNERS.get(name) == error.part:
                yield name, Finding(FAIL, error.reason)
            else:
                reason = error.reason if error.part == "dry" else f"not checked: {error.reason}"
                yield name, Finding(OUT, reason)
        except Exception as error:
            yield name, Finding(FAIL, f"the check broke off: {reason_of(error)}")


def line(name: str, finding: Finding) -> str:
    """The finding as it is printed: verdict, name, what was found, the fix."""
    fix = f"; fix: {finding.fix}" if finding.fix else ""
    return "\n".join(
        [f"{finding.verdict:<5} {name:<14} {finding.found}{fix}", *(f"{'':20} {s}" for s in finding.shown)]
    )


def summary(findings: Iterable[Finding]) -> str:
    """The number of checks with each verdict."""
    verdicts = [f.verdict for f in findings]
    words = {OK: "ok", WARN: "warnings", FAIL: "failed", OUT: "left out"}
    counted = ", ".join(f"{verdicts.count(v)} {w}" for v, w in words.items() if v == OK or verdicts.count(v))
    return f"{len(verdicts)} checks: {counted}"


def run_checks(config: Config, folder: Path | None = None, *, dry: bool = False, asked: Config | None = None) -> bool:
    """Prints every check of ``config`` (and of the drafter in ``folder``) as it finishes; True when none failed.

    ``dry``: without target or download; the checks that need them are named in one line. ``asked``: settings whose
    benchmarks are checked instead.
    """
    findings: dict[str, Finding] = {}
    for name, finding in examine(Subject(config, folder, dry=dry, asked=asked)):
        findings[name] = finding
        if not (dry and finding.verdict == OUT):
            print(line(name, finding), flush=True)
    if dry:
        out = [n for n, f in findings.items() if f.verdict == OUT]
        print(line("dry run", Finding(OUT, f"skipped, since they need the target or a download: {', '.join(out)}")))
    print(summary(findings.values()))
    return all(f.verdict != FAIL for f in findings.values())
