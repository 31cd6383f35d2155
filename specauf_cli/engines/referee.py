"""The referee: a running server is held to the exact replay, request by request.

runs/servers/<id>/referee/<hash>.json         the record
runs/servers/<id>/referee/<hash>.md, .html    the page
runs/servers/<id>/referee/<hash>-first.html   the first difference, round by round

It asks every benchmark's prompts, compares answers and counts with the target's trajectories and the drafter's rounds
(``verdict.py``), and looks for the fault that explains a difference (``diagnosis.py``).
"""

import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from specauf_cli.config.identity import upgraded
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.config.settings import validated
from specauf_cli.engines.along import Along
from specauf_cli.engines.checks import weights_sha256
from specauf_cli.engines.client import Client
from specauf_cli.engines.diagnosis import Case, Diagnosis, Trying, chosen, diagnose
from specauf_cli.engines.faults import known_faults
from specauf_cli.engines.judging import Judging, first_difference, judge_benchmark
from specauf_cli.engines.measure import Asked, Asking, ask_benchmark
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.server import (
    KEY,
    Server,
    Task,
    ask_all,
    command_words,
    open_server,
    print_notes,
    server_folder,
    task_of,
    template_sha256,
    without_folders,
)
from specauf_cli.engines.verdict import OWN_DEFINITION, averages, worst
from specauf_cli.errors import InputError
from specauf_cli.evaluation.evaluate import least_confidence, own_answers
from specauf_cli.evaluation.lookup import LookupRule
from specauf_cli.models import checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.reporting import referee as page
from specauf_cli.reporting import view
from specauf_cli.runtime.machine import use_machine
from specauf_cli.store import layout
from specauf_cli.store.files import digest, lock, write_text
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.records import CodeState
from specauf_cli.store.referee import REFEREE, VERDICTS, First, Judged, RefereeRecord, Subject, Verdict

OTHERS = 8
"""Drafters of other runs that are tried, those with the nearest names first."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}
"""The engines' dtypes as precisions whose rounding is allowed for; float16 rounds less than bfloat16."""


@dataclass(frozen=True)
class Outcome:
    """What the referee found and where it is written; ``view`` is None where no request differs."""

    record: RefereeRecord
    record_path: Path
    page: Path
    view: Path | None


def judge(
    options: ServerOptions,
    runs: Sequence[str],
    *,
    benchmarks: str = "all",
    overrides: Sequence[str] = (),
    no_drafter: bool = False,
    lookup: LookupRule | None = None,
) -> Outcome:
    """Asks the server, compares it with the replay of a run's drafter, and writes record and pages.

    The settings are those of a run (the latest finished one by default), or with ``target=...`` those given.
    ``no_drafter``: the server must decode plainly, and only answers are compared. ``lookup``: it drafts by vLLM's
    ``ngram`` method (found by itself where the server says so). Errors: InputError for bad settings, a server of
    another target or one that cannot be judged, or one that stops answering (what it answered is kept).
    """
    began = time.perf_counter()
    subject: Subject = "plain" if no_drafter else "lookup" if lookup is not None else "drafter"
    _check_subject(options, no_drafter, lookup)
    with Client(options.base_url, timeout=options.timeout, retries=options.retries, key=os.environ.get(KEY)) as client:
        task = task_of(runs, benchmarks, overrides)
        server = open_server(options, client, task, subject=subject, strict=False)
        subject = server.subject
        if subject == "drafter" and task.run is None:
            raise InputError(
                f"{client.url} uses a drafter, and no run is given to compare it with: --run RUN, or --lookup for "
                "prompt lookup"
            )
        rule = _lookup_rule(server, lookup) if subject == "lookup" else None
        for difference in server.reported:
            print(f"note: {difference}", file=sys.stderr)
        target, drafter = _models(task, subject)
        folder = server_folder(server, task)
        print_notes(server, folder.name)
        with lock(folder, f"server record {folder.name}"):
            asked = ask_all(server, task, folder, partial(_ask, task=task))
            words = command_words("referee", server, task, benchmarks)
            words += ["--no-drafter"] if no_drafter else []
            words += [f"--lookup={lookup.longest},{lookup.shortest},{lookup.proposals}"] if lookup is not None else []
            referee = Referee(task, server, target, drafter, rule, asked)
            judged = referee.judged(command_line([*words, *overrides]), began)
            return _write(judged, layout.referee_of(folder))


def _check_subject(options: ServerOptions, no_drafter: bool, lookup: LookupRule | None) -> None:
    if no_drafter and lookup is not None:
        raise InputError("--no-drafter and --lookup say different things about the server; give one of them")
    if lookup is not None and options.backend != "vllm":
        raise InputError("--lookup is vLLM's ngram method; SGLang's NGRAM proposes by another rule")


def _lookup_rule(server: Server, lookup: LookupRule | None) -> LookupRule:
    """The rule that the server says it drafts by, else the one given. Errors: InputError when they differ."""
    flags = server.served.flags.get("speculative_config") or {}
    told = [flags.get("prompt_lookup_max"), flags.get("prompt_lookup_min"), server.served.proposals]
    if not all(type(n) is int for n in told):
        if lookup is None:
            raise InputError(f"{server.client.url} drafts by ngram and does not say how; give --lookup MAX,MIN,TOKENS")
        return lookup
    rule = LookupRule(*told)  # type: ignore[arg-type]
    if lookup not in (None, rule):
        given = "--lookup {0.longest},{0.shortest},{0.proposals}"
        raise InputError(f"{server.client.url} says that it drafts by {given.format(rule)}, not {given.format(lookup)}")
    return rule


def _models(task: Task, subject: Subject) -> tuple[Target, DFlash | None]:
    """The target in the precision of the evaluation, and the run's drafter where it is compared."""
    dtype = targets.DTYPES[task.config.evaluation.precision]
    target = targets.load(task.target, device=use_machine(task.config), dtype=dtype)
    if subject != "drafter" or task.run is None:
        return target, None
    weights = layout.drafter_of(task.run)
    drafter = checkpoint.load(weights, target, task.config.backbone, run=task.run.name).to(dtype)
    drafter.least_confidence = least_confidence(task.config, drafter)
    return target, drafter


def _ask(asking: Asking, task: Task) -> dict[tuple[float, str], Asked]:
    """Every benchmark at every temperature."""
    return {
        (temperature, prompts.name): ask_benchmark(asking, prompts, temperature)
        for temperature in task.config.evaluation.temperatures
        for prompts in task.prompts
    }


@dataclass(frozen=True)
class Referee:
    """A server's answers, and what they are compared with."""

    task: Task
    server: Server
    target: Target
    drafter: DFlash | None
    rule: LookupRule | None
    asked: Mapping[tuple[float, str], Asked]

    @property
    def precision(self) -> str:
        """The precision of the server, as far as it says it."""
        return PRECISIONS.get(str(self.server.served.dtype), self.task.config.evaluation.precision)

    def judged(self, command: str, began: float) -> "Judgement":
        """Compares everything, and looks for the cause of a difference."""
        along = Along(self.target, self.drafter, self.rule, self.task.config.evaluation.batch_size)
        judged, cases = self._compared(along)
        verdict = worst([b.verdict for b in judged], VERDICTS)
        diagnosis = self._diagnosed(cases) if verdict == "differs" else Diagnosis((), None)
        first = first_difference(cases, along, diagnosis.cause) if verdict != "equal" else None
        record = self._record(command, judged, verdict, diagnosis, first.first if first else None, began)
        return Judgement(record, first.viewed if first else ())

    def _compared(self, along: Along) -> tuple[list[Judged], list[Case]]:
        """Every benchmark at every temperature, and every request."""
        task, settings = self.task, self.task.config.evaluation
        widest = max(task.config.backbone.block_size, self.rule.proposals if self.rule else 0)
        config = replace(task.config, backbone=replace(task.config.backbone, block_size=widest))
        cache = layout.trajectories(Path(task.config.runs), self.target.fingerprint)
        judging = Judging(along, self.server.backend.name, self.precision, settings.seed, self.server.subject)
        judged, cases = list[Judged](), list[Case]()
        for (temperature, name), asked in self.asked.items():
            prompts = next(p for p in task.prompts if p.name == name)
            own = own_answers(config, self.target, prompts, temperature, cache)
            one, its_cases = judge_benchmark(judging, prompts, temperature, asked, own)
            judged.append(one)
            cases += its_cases
        return judged, cases

    def _record(
        self,
        command: str,
        judged: Sequence[Judged],
        verdict: Verdict,
        diagnosis: Diagnosis,
        first: First | None,
        began: float,
    ) -> RefereeRecord:
        task, server = self.task, self.server
        definition = OWN_DEFINITION[server.backend.name]
        return RefereeRecord(
            run=task.run.name if task.run else None,
            subject=server.subject,
            backend=server.options.backend,
            profile=task.config.profile.name,
            concurrency=server.options.concurrency,
            command=command,
            config={"target": task.config.resolved["target"], **task.settings, **self._drafting()},
            code=CodeState(**code_state()),
            environment=environment(str(self.target.device), torch.get_num_threads()),
            inputs=self._inputs(),
            server=without_folders({**asdict(server.served), "tokenizer": server.tokenizer}),
            unchecked=tuple(server.unchecked),
            reported=tuple(_public(text, server) for text in server.reported),
            benchmarks=tuple(judged),
            averages=averages(judged, definition, seed=task.config.evaluation.seed),
            verdict=verdict,
            first=first,
            tried=diagnosis.tried,
            cause=diagnosis.title,
            seconds=round(time.perf_counter() - began, 2),
            written=now(),
        )

    def _drafting(self) -> dict[str, object]:
        """What is replayed, for the record."""
        if self.rule is not None:
            return {"lookup": asdict(self.rule)}
        if self.drafter is None:
            return {}
        return {"backbone": self.task.config.resolved["backbone"], "confidence": self.drafter.least_confidence}

    def _inputs(self) -> dict[str, str | None]:
        drafter = None if self.drafter is None or self.task.run is None else layout.drafter_of(self.task.run)
        return {
            "template": template_sha256(self.task.chat),
            "target": self.target.fingerprint,
            "drafter": None if drafter is None else weights_sha256(str(drafter)),
            **{f"prompts of {p.name}": p.sha256 for p in self.task.prompts},
        }

    def _diagnosed(self, cases: Sequence[Case]) -> Diagnosis:
        examined = chosen(cases)
        if not any(c.differs for c in examined):
            return Diagnosis((), None)
        longest = max(len(c.prompt) + len(c.tokens) for c in examined)
        others = other_drafters(self.task.run, self.target) if self.task.run and self.drafter is not None else {}
        cuts = self.server.options.backend == "sglang"
        batch_size = self.task.config.evaluation.batch_size
        replayed = Trying(self.target, self.drafter, self.precision, cuts, batch_size)
        return diagnose(cases, known_faults(self.drafter, others, longest=longest), replayed)


def other_drafters(run: Path, target: Target) -> dict[str, Callable[[], DFlash]]:
    """How to load the drafters of the other finished runs of a run's folder, by name, the nearest names first."""
    names = {f.parent.name: f.parent for f in run.parent.glob(f"*/{layout.FINISHED}") if f.parent.name != run.name}
    order = sorted(names, key=lambda n: -difflib.SequenceMatcher(None, run.name, n).ratio())
    same_target = [n for n in order if _target_of(names[n]) == target.fingerprint]
    return {n: partial(_drafter_of, names[n], target) for n in same_target[:OTHERS]}


def _target_of(folder: Path) -> str | None:
    try:
        return str(layout.about_of(folder)["inputs"].get("target"))
    except InputError:  # a damaged run serves nobody
        return None


def _drafter_of(folder: Path, target: Target) -> DFlash:
    """The drafter of a run. Errors: InputError when it is damaged, or its backbone is code of the user's own."""
    settings = upgraded(layout.about_of(folder)["config"])["backbone"]
    if "." in str(settings.get("kind")):
        raise InputError(f"run {folder.name} has a backbone of the user's own, which is not loaded from a run's folder")
    backbone = validated(BackboneConfig, settings, "backbone")
    drafter = checkpoint.load(layout.drafter_of(folder), target, backbone, run=folder.name)
    return drafter.to(target.model.dtype)


def _public(text: str, server: Server) -> str:
    """A message without the server's address, and with only the last part of each folder."""
    shown = text.replace(server.options.base_url, "the server").replace(server.client.url, "the server")
    return re.sub(r"(?<![\w.:/])(?:/|~/|\.\.?/)[^\s,;]+", lambda m: Path(m[0]).name, shown)


@dataclass(frozen=True)
class Judgement:
    """A record, and the answers of the first difference as they are viewed (ours, the server's)."""

    record: RefereeRecord
    viewed: tuple[view.Viewed, ...]


def _write(judgement: Judgement, folder: Path) -> Outcome:
    """Writes record and pages."""
    record = judgement.record
    name = digest([record.config, record.concurrency, record.subject], 8)
    record_path, view_path = folder / f"{name}.json", None
    REFEREE.save(record, record_path)
    if judgement.viewed:
        view_path = folder / f"{name}-first.html"
        write_text(view_path, view.html(judgement.viewed, notes=page.view_notes(record)))
    link = view_path.name if view_path else None
    write_text(folder / f"{name}.md", page.markdown(record, first=link))
    write_text(folder / f"{name}.html", page.html(record, first=link))
    return Outcome(record, record_path, folder / f"{name}.html", view_path)
