"""A target with its data, and what is done on it: train a drafter, measure it, audit it."""

import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specauf_cli.config import names
from specauf_cli.config.overrides import check_folder
from specauf_cli.config.schema import SHARDS_DRAFTER, SHARDS_TARGET, Config
from specauf_cli.config.settings import shared
from specauf_cli.data import benchmarks, conversations
from specauf_cli.data.chat import encode
from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.audit import audit as audit_outputs
from specauf_cli.evaluation.evaluate import Evaluated, evaluate, least_confidence, load_benchmarks, own_answers
from specauf_cli.evaluation.regenerate import check_count, regenerate
from specauf_cli.evaluation.replay import replay
from specauf_cli.models import checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives.terms import is_soft
from specauf_cli.runtime import ranks
from specauf_cli.runtime.machine import use_machine
from specauf_cli.store import layout
from specauf_cli.store.files import lock, write_json
from specauf_cli.store.layout import (
    ABOUT,
    FAILED,
    FINISHED,
    about_of,
    check_same_training,
    curve_of,
    initial,
    intact,
    other_code,
    result_of,
    signature_of,
)
from specauf_cli.store.provenance import code_state, command_line, environment, now, peak_memory_mib
from specauf_cli.store.records import (
    CodeState,
    RunRecord,
    TargetDescription,
    Training,
    load_record,
    record_id,
    run_id,
    save_record,
)
from specauf_cli.training import drafter as training
from specauf_cli.training import pretrain
from specauf_cli.training.features import Features
from specauf_cli.training.state import latest
from specauf_cli.types import Corpus, Example, PromptSet, Trajectory


@dataclass
class Session:
    """A target with its data, ready to train and measure any drafter that shares them. Encoded lazily, once."""

    config: Config
    target: Target
    conversations: Corpus
    heldout: Corpus
    _examples: tuple[Sequence[Example], dict[str, int]] | None = None
    _other: Target | None = None
    _features: Features | None = None

    def examples(self) -> tuple[Sequence[Example], dict[str, int]]:
        """Training examples and the counts of what they came from."""
        if self._examples is None:
            self._examples = encode(self.target.chat, self.conversations, max_length=self.config.trainer.max_length)
        return self._examples

    def features(self, *, with_last: bool) -> Features:
        """The source of target features for training batches; ``with_last``: with the target's last hidden state."""
        if self._features is None or (with_last and not self._features.with_last):
            folder = layout.features(Path(self.config.runs))
            trainer = self.config.trainer
            keep = 0 if trainer.shard in SHARDS_TARGET else None  # each rank would find other batches among its own
            self._features = Features(self.target, self.examples()[0], trainer, folder, with_last=with_last, keep=keep)
        return self._features

    def at(self, precision: str) -> Target:
        """The target with weights in ``precision``: its own, else it is loaded once more and kept."""
        if self.config.trainer.shard in SHARDS_TARGET:
            raise InputError(
                f"trainer.shard={self.config.trainer.shard} is for training; to measure or regenerate answers leave it "
                "out (target.device_map=auto spreads a target that does not fit over this machine's GPUs)"
            )
        dtype = targets.DTYPES[precision]
        if self.target.model.dtype == dtype:
            return self.target
        if self._other is None:
            self._other = targets.load(self.target.config, device=str(self.target.device), dtype=dtype)
        return self._other

    def serves(self, config: Config) -> bool:
        """True when ``config`` asks for the same target, data and feature settings."""
        mine = self.config
        more = [] if mine.data.source == "offline" else ["benchmark"]  # real data are cleaned of its prompts
        more += ["evaluation"] if mine.data.regenerate is not None else []  # its settings shape the answers
        same = all(getattr(mine, k) == getattr(config, k) for k in more)
        return same and shared(mine) == shared(config)

    def train(self, config: Config, overrides: Sequence[str], *, force: bool = False) -> Path:
        """Trains the drafter of ``config`` unless it is finished, resuming where it stopped; returns its folder."""
        (outcome,) = self.train_together([(config, overrides)], force=force)
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    def train_together(
        self, jobs: Sequence[tuple[Config, Sequence[str]]], *, force: bool = False
    ) -> list[Path | InputError]:
        """Trains every drafter of ``jobs`` that is not finished, a step of each in turn.

        Returns the folder of each, or the error that it failed of, which leaves the others running. ``force``: what is
        there is moved into ``aside/`` first, and training begins anew. Errors: InputError for what stops them all, as a
        full disk does.
        """
        failures: dict[Path, InputError] = {}
        folders: list[Path] = []
        tasks: list[training.Task] = []
        with ExitStack() as stack:
            for config, overrides in jobs:
                start = initial(Path(config.runs), config.init)
                init = start[1] if start else None
                name = run_id(config, target=self.target.fingerprint, data=self.conversations.sha256, init=init)
                folder = Path(config.runs) / name
                folders.append(folder)
                if force and folder.is_dir() and ranks.FIRST:
                    with lock(folder, f"run {name}"):
                        print(f"{name}: moved to {_move_aside(folder)}", file=sys.stderr)
                ranks.wait()
                if (folder / FINISHED).exists():
                    _say_finished(folder)
                    continue
                if ranks.FIRST:
                    stack.enter_context(lock(folder, f"run {name}"))
                tasks.append(self._task(config, overrides, folder, start))
            if tasks:
                failures = self._finish(tasks)
            ranks.wait()
        return [failures.get(f, f) for f in folders]

    def _task(
        self, config: Config, overrides: Sequence[str], folder: Path, start: tuple[Path, str] | None
    ) -> training.Task:
        """The training of one drafter, checked and announced; ``start``: the folder and the hash of its first
        weights."""
        if config.trainer.steps == 0:
            raise InputError("trainer.steps=0 must be at least 1; drafters from elsewhere come in by specauf import")
        if start is not None:
            checkpoint.load(start[0], self.target, config.backbone)  # one that does not fit is found out here
        self._announce(config, overrides, folder, start[1] if start else None)
        return training.Task(config, folder, folder.name, self._probe(config), start[0] if start else None)

    def _announce(self, config: Config, overrides: Sequence[str], folder: Path, init: str | None) -> None:
        """Writes what a run is about to be, and says it. No one commit made a run that goes on with other code."""
        _, counts = self.examples()
        code = code_state()
        if latest(layout.checkpoints_of(folder)) is not None and (folder / ABOUT).is_file():
            began = about_of(folder)["code"]
            code = code if began == code else {**code, "dirty": True, "began": began}
        about = {
            "run": folder.name,
            "overrides": list(overrides),
            "signature": signature_of(folder.name, overrides),
            "command": command_line(["train", *overrides]),
            "config": config.resolved,
            "inputs": self.inputs_of(init),
            "data": {"name": self.conversations.name, **counts},
            "code": code,
            "started": now(),
        }
        if ranks.FIRST:
            write_json(folder / ABOUT, about)
            (folder / FAILED).unlink(missing_ok=True)
        print(
            f"{folder.name}: {counts['examples']} examples, {counts['supervised tokens']} supervised tokens",
            file=sys.stderr,
        )

    def inputs_of(self, init: str | None) -> dict[str, str]:
        """Content hashes of what a run is made from; ``init`` is that of the weights it starts from, where they are
        given."""
        hashes = {"data": self.conversations.sha256, "heldout": self.heldout.sha256, "target": self.target.fingerprint}
        return hashes | ({"init": init} if init else {})

    def _finish(self, tasks: Sequence[training.Task]) -> dict[Path, InputError]:
        """Trains ``tasks`` and writes how each of them ended; returns why some failed, by their folders."""
        examples, _ = self.examples()
        soft = any(is_soft(task.config.objective) for task in tasks)
        try:
            ended = training.train(self.target, examples, self.features(with_last=soft), tasks)
        except InputError as error:  # before the first step, or while saving: it stops them all
            for task in tasks if ranks.FIRST else []:
                write_json(task.folder / FAILED, {"reason": str(error), "at": now()})
            raise
        for task, one in zip(tasks, ended, strict=True):
            if ranks.FIRST and one.failure is not None:
                write_json(task.folder / FAILED, {"reason": str(one.failure), "at": now()})
            elif ranks.FIRST:
                result = {
                    "last": one.line,
                    "seconds": round(one.seconds, 2),
                    "peak_memory_mib": peak_memory_mib(),
                    "environment": environment(str(self.target.device), torch.get_num_threads()),
                    "finished": now(),
                }
                write_json(task.folder / FINISHED, result)
                shutil.rmtree(layout.checkpoints_of(task.folder), ignore_errors=True)
        return {t.folder: one.failure for t, one in zip(tasks, ended, strict=True) if one.failure is not None}

    def _probe(self, config: Config) -> Callable[[DFlash], dict[str, float]]:
        """Measures tau at T = 0 on a few prompts of every benchmark, by replay; their trajectories are generated at
        first use."""
        settings, few = config.evaluation, replace(config.evaluation, prompts=config.trainer.eval_prompts)
        answers: list[list[Trajectory]] = []

        def probe(drafter: DFlash) -> dict[str, float]:
            for prompts in load_benchmarks(replace(config, evaluation=few)) if not answers else []:
                answers.append(list(own_answers(config, self.target, prompts, 0.0, self._cache()).trajectories))
            taus = [tau.mean(replay(self.target, drafter, m, batch_size=settings.batch_size)) for m in answers]
            taus = [t for t in taus if not math.isnan(t)]  # of a benchmark whose answers are all one token long
            return {"tau": sum(taus) / len(taus)} if taus else {}

        return probe

    def measure(self, config: Config, folder: Path, arguments: Sequence[str], *, step: int | None = None) -> RunRecord:
        """Evaluates a finished run with the settings of ``config`` and writes its record; a record that exists is
        returned.

        ``step``: the drafter that was kept at this step instead of the last one; its record is beside it.
        """
        about, code = about_of(folder), code_state()
        training_section = _training_section(folder, about)
        prompts = load_benchmarks(config)
        self._check_trained_for(config, folder, about)
        settings = {
            **about["config"],
            "profile": config.resolved["profile"],  # its text may have been reworded since the run was trained
            "evaluation": config.resolved["evaluation"],
            "benchmark": config.resolved["benchmark"],
        }
        inputs = {**about["inputs"], **{f"prompts of {p.name}": p.sha256 for p in prompts}}
        place = folder if step is None else layout.snapshot(folder, step)
        record_path = layout.record_path(place, record_id(folder.name, settings, step))
        if record_path.is_file():
            return _measured_already(record_path, inputs)
        print(f"{folder.name}{'' if step is None else f', step {step}'}: {len(prompts)} benchmarks", file=sys.stderr)
        evaluated = self._evaluate(config, folder, prompts, step)
        _check_same_training(folder, training_section)
        record = RunRecord(
            run=folder.name,
            profile=config.profile.name,
            backbone=config.backbone.name,
            objective=config.objective.name,
            title=config.objective.title,
            seed=config.seed,
            command=command_line(arguments),
            config=settings,
            code=CodeState(**code),
            environment=environment(str(self.target.device), torch.get_num_threads()),
            inputs=inputs,
            target=self.target_section(config),
            training=training_section,
            heldout=evaluated.heldout,
            benchmarks=evaluated.benchmarks,
            cost=evaluated.cost,
            written=now(),
            step=step,
        )
        if ranks.FIRST:
            save_record(record, layout.records_of(place))
        ranks.wait()
        return record

    def _check_trained_for(self, config: Config, folder: Path, about: Mapping[str, Any]) -> None:
        """InputError unless ``folder`` was trained with these settings, on these data and for this target."""
        check_same_training(config, folder)
        inputs = self.inputs_of(about["inputs"].get("init"))
        if any(about["inputs"].get(k) != inputs[k] for k in ("target", "data")):
            raise InputError(
                f"run {folder.name} was trained on other data or for another target than these settings now give"
            )

    def _evaluate(self, config: Config, folder: Path, prompts: Sequence[PromptSet], step: int | None) -> Evaluated:
        """Measures the drafter of a run, or the one that it kept at ``step``."""
        target = self.at(config.evaluation.precision)
        weights = layout.drafter_of(folder) if step is None else layout.snapshot(folder, step)
        drafter = checkpoint.load(weights, target, config.backbone, run=folder.name).to(target.model.dtype)
        drafter.least_confidence = least_confidence(config, drafter)
        return evaluate(config, target, drafter, self.heldout, prompts, self._cache())

    def target_section(self, config: Config) -> TargetDescription:
        """What a record says of the target."""
        known = pretrain.describe(str(self.target.config.path)) or self.target.describe()
        return TargetDescription(**{"title": config.target.title, **known})

    def audit(self, config: Config, folder: Path) -> int:
        """Prints the losslessness of a finished run per benchmark, in fp32 and bf16; returns how many fp32 outputs
        differ."""
        settings = config.evaluation
        print(f"{folder.name}: T = 0, decoded live")
        exact, low = self.at("fp32"), self.at("bf16")
        weights = layout.drafter_of(folder)
        drafter = checkpoint.load(weights, exact, config.backbone, run=folder.name)
        low_drafter = checkpoint.load(weights, low, config.backbone, run=folder.name).to(torch.bfloat16)
        broken = 0
        for prompts in load_benchmarks(config):
            answers = own_answers(config, exact, prompts, 0.0, self._cache()).trajectories
            fp32 = audit_outputs(exact, exact, drafter, answers, max_new_tokens=settings.max_new_tokens)
            bf16 = audit_outputs(exact, low, low_drafter, answers, max_new_tokens=settings.max_new_tokens)
            print(fp32.line(f"{prompts.title}, fp32"))
            print(bf16.line(f"{prompts.title}, bf16"))
            broken += fp32.requests - fp32.identical
        return broken

    def _cache(self) -> Path:
        """Where the target's trajectories are kept."""
        return layout.trajectories(Path(self.config.runs), self.target.fingerprint)


def open_session(config: Config, *, precision: str | None = None) -> Session:
    """Loads the data, and the target (training it first where it is one of ours and missing).

    ``precision`` of the target's weights; None: its own, in which it trains drafters. Every setting that can be judged
    without them is checked first: nobody waits minutes for a typing error.
    """
    if config.target.path is None and config.target.pretrain is not None:
        targets.taps_of(config.target.taps, config.target.pretrain.layers)
    elif (
        config.target.path is not None
        and Path(config.target.path).is_absolute()
        and not Path(config.target.path).is_dir()
    ):
        raise InputError(f"target.path={config.target.path}: there is no such folder")
    check_folder(config.runs)
    _check_shard(config)
    device = use_machine(config)
    train, heldout = load_data(config)
    located = pretrain.ensure(config.target, train, Path(config.runs), data=train.sha256, device=device)
    shard = config.trainer.shard in SHARDS_TARGET
    target = targets.load(located, device=device, dtype=targets.DTYPES[precision or located.dtype], shard=shard)
    if config.trainer.max_length > target.context_length:
        raise InputError(
            f"trainer.max_length={config.trainer.max_length} is longer than the context of target "
            f"{config.target.name}, {target.context_length} tokens; lower it"
        )
    session = Session(config, target, train, heldout)
    if config.data.regenerate is not None:
        exact = session.at(config.evaluation.precision)
        answered = regenerate(exact, train, config.data.regenerate, config.evaluation, session._cache())
        _check_batch(config, answered)
        session = replace(session, conversations=answered)
    return session


def _check_shard(config: Config) -> None:
    """InputError for settings with which ranks would make different passes of a model that they have only parts of."""
    trainer = config.trainer
    if trainer.shard == "none":
        return
    said = f"trainer.shard={trainer.shard}"
    if ranks.WORLD == 1:
        raise InputError(
            f"{said} spreads layers over several ranks: torchrun --nproc-per-node N -m specauf_cli train ..."
        )
    if trainer.eval_every is not None:
        raise InputError(f"trainer.eval_every={trainer.eval_every} measures in the first rank alone; {said} needs null")
    if trainer.shard in SHARDS_TARGET:
        other = {
            "trainer.features": (trainer.features, "online"),
            "data.regenerate": (config.data.regenerate, None),
            "target.device_map": (config.target.device_map, None),
        }
        for key, (value, needed) in other.items():
            if value != needed:
                raise InputError(f"{key}={value} and {said} do not go together; {said} needs {needed or 'null'}")
    if trainer.shard in SHARDS_DRAFTER and not names.backbone(config.backbone).layered:
        raise InputError(f"{said}: backbone={config.backbone.name} has no draft layers; use target or none")


def _training_section(folder: Path, about: Mapping[str, Any]) -> Training:
    """What a record says of how a run was trained. Errors: InputError when it is not finished, or its files are
    damaged."""
    finished = result_of(folder)
    with intact(folder, f"{ABOUT} or {FINISHED}"):
        return Training(
            **{key: finished[key] for key in ("last", "seconds", "peak_memory_mib")},
            **{key: about[key] for key in ("data", "code", "command")},
            **({"imported": about["imported"]} if "imported" in about else {}),
            curve={name: tuple(column) for name, column in curve_of(folder).items()},
        )


def _check_same_training(folder: Path, measured: Training) -> None:
    """InputError when another training took the run's place meanwhile: its record would be of a drafter that has
    gone."""
    try:
        same = _training_section(folder, about_of(folder)).seconds == measured.seconds  # no two trainings take the same
    except InputError:
        same = False
    if not same:
        raise InputError(f"{folder.name} was trained anew while it was measured; nothing was written, measure it again")


def _measured_already(record_path: Path, inputs: Mapping[str, str]) -> RunRecord:
    """The record that is there. Errors: InputError when it was made from other inputs."""
    record = load_record(record_path)
    if record.inputs != inputs:
        other = [k for k, v in inputs.items() if record.inputs.get(k) != v]
        raise InputError(f"{record_path} was measured with other {', '.join(other)}; move it aside to measure again")
    print(f"{record.run}: measured already", file=sys.stderr)
    return record


def load_data(config: Config) -> tuple[Corpus, Corpus]:
    """Training and held-out conversations, without the prompts of the benchmarks chosen.

    Errors: InputError for data that cannot be used, or that do not fill one batch.
    """
    exclude = []
    if config.data.source != "offline":  # the offline corpus is disjoint from its own prompts by construction
        root = Path(config.benchmark_root) if config.benchmark_root else None
        exclude = [benchmarks.load_raw(b, root=root) for b in config.benchmark.values()]
    train, heldout = conversations.load(config.data, exclude=exclude)
    _check_batch(config, train)
    if config.data.regenerate is not None:
        check_count(config.data.regenerate, train)
    return train, heldout


def _check_batch(config: Config, train: Corpus) -> None:
    if len(train.conversations) < config.trainer.batch_size:
        raise InputError(
            f"{len(train.conversations)} training conversations are fewer than "
            f"trainer.batch_size={config.trainer.batch_size}; lower it or give more data"
        )


def _say_finished(folder: Path) -> None:
    """Says that a run is finished, and makes it the latest one. Errors: InputError when its files are damaged."""
    result_of(folder)
    print(f"{folder.name}: finished already{other_code(about_of(folder)['code'])}", file=sys.stderr)
    with suppress(OSError):  # the latest run is only a default; the folder may be read-only
        os.utime(folder / FINISHED)


def _move_aside(folder: Path) -> Path:
    """Moves a run out of the way, under a number that is free."""
    aside = layout.aside(folder.parent)
    aside.mkdir(exist_ok=True)
    goal = next(g for i in range(1, 10**6) if not (g := aside / f"{folder.name}.{i}").exists())
    return folder.rename(goal)
