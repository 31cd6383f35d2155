"""``specauf speed``: finished drafters timed beside plain decoding and prompt lookup, a record and a page of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.evaluation import speed as timing
from specauf_cli.evaluation.decode import Drafted, Nothing, PromptLookup, Proposer
from specauf_cli.evaluation.evaluate import load_benchmarks, own_answers
from specauf_cli.evaluation.lookup import LookupRule, repeated_grams, replay_lookup
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.planning.plan import gpu_of
from specauf_cli.planning.roofline import roofline
from specauf_cli.reporting.speed import Projection, markdown
from specauf_cli.runtime import ranks
from specauf_cli.session import Session, open_session
from specauf_cli.store import layout
from specauf_cli.store.files import digest, write_text
from specauf_cli.store.provenance import Watch, code_state, command_line, environment, now
from specauf_cli.store.records import CodeState
from specauf_cli.store.speed import LOOKUP, PLAIN, SPEED, Repetition, SpeedRecord, TimedMethod
from specauf_cli.store.trust import configs
from specauf_cli.types import Trajectory


@dataclass(frozen=True)
class SpeedOptions:
    """What is timed: ``prompts`` per benchmark, ``repeats`` of each request, ``repetitions`` of each single round.

    ``proposals``: numbers of draft tokens to time, None: powers of two and the run's own. ``lookup``: the longest and
    the shortest n-gram of prompt lookup. Errors: InputError for what cannot be.
    """

    prompts: int
    repeats: int
    repetitions: int
    batch_sizes: tuple[int, ...]
    proposals: tuple[int, ...] | None
    lookup: tuple[int, int]

    def __post_init__(self) -> None:
        counts = {"--prompts": self.prompts, "--repeats": self.repeats, "--repetitions": self.repetitions}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} {value} must be at least 1")
        for name, values in (("--batch-sizes", self.batch_sizes), ("--proposals", self.proposals)):
            if values is not None and (not values or min(values) < 1 or len(set(values)) < len(values)):
                raise InputError(f"{name} {','.join(map(str, values))}: give different counts from 1 on, as in 1,4,8")
        LookupRule(*self.lookup, 1)


@dataclass(frozen=True)
class Elsewhere:
    """Other machines that a page tells of: ``ratio`` is the user's R; or a named card and a ``target`` of ``conf``.

    Errors: InputError for an unknown card or target, or a ratio that cannot be.
    """

    ratio: float | None = None
    gpu: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < float("inf"):
            raise InputError(f"--ratio {self.ratio:g}: R is a positive number, what a round costs in plain steps")
        if (self.gpu is None) != (self.target is None):
            raise InputError("--gpu and --target belong together, as in --gpu h100 --target qwen3_8b")
        if self.gpu is not None:
            gpu_of(self.gpu)
            target = compose.compose(["profile=paper", f"target={self.target}"]).target
            if target.sizes is None and target.pretrain is None:
                raise InputError(f"--target {self.target}: its yaml states no sizes; choose another of conf/target")


def measure_speed(folders: Sequence[Path], options: SpeedOptions, extra: Sequence[str], benchmarks: str) -> SpeedRecord:
    """Times the drafters of some finished runs beside plain decoding and prompt lookup.

    Errors: InputError for runs that cannot be timed together, or settings that cannot be.
    """
    if ranks.WORLD > 1:
        raise InputError("torchrun shares one training or evaluation; speed is timed in one process")
    names = [folder.name for folder in folders]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--run {repeated} is there twice; --repeats times it more often")
    both = [configs(folder, extra, benchmarks) for folder in folders]
    measured = [replace(c, evaluation=replace(c.evaluation, prompts=options.prompts)) for _, c in both]
    config = max(measured, key=lambda c: c.backbone.block_size)  # the others' rounds fit into its answers' tails
    most = max(c.backbone.proposals for c in measured)
    if options.proposals is not None and max(options.proposals) > most:
        raise InputError(f"--proposals {max(options.proposals)}: the drafters propose {most} at most")
    session, drafters = _loaded(folders, [as_trained for as_trained, _ in both], measured)
    target = session.at(config.evaluation.precision)
    requests, repetition, inputs = _requests(config, target)
    methods = _methods(target, drafters, measured, options, requests)
    rule = LookupRule(*options.lookup, most)
    proposers: dict[str, Proposer] = {PLAIN: Nothing(), LOOKUP: PromptLookup(rule)}
    proposers |= {key: Drafted(target, drafter) for key, drafter in drafters.items()}
    settings, watch = config.evaluation, Watch()
    timed, different = timing.time_requests(
        target,
        proposers,
        requests,
        temperature=settings.temperatures[0],
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        repeats=options.repeats,
        draw=settings.draw,
    )
    contexts = timing.context_rows([t for _, t in requests], max(options.batch_sizes), options.repetitions)
    rounds = timing.time_rounds(
        target,
        drafters,
        contexts.to(target.device),
        batch_sizes=options.batch_sizes,
        proposals={key: _counts(options, drafter) for key, drafter in drafters.items()},
        repetitions=options.repetitions,
        seed=settings.seed,
    )
    return SpeedRecord(
        runs=tuple(drafters),
        profile=config.profile.name,
        temperature=settings.temperatures[0],
        seed=settings.seed,
        context=contexts.shape[1] - options.repetitions,
        command=command_line(_arguments(folders, options, extra, benchmarks)),
        config={k: config.resolved[k] for k in ("evaluation", "benchmark", "backbone", "target")},
        code=CodeState(**code_state()),
        environment=environment(str(target.device), torch.get_num_threads()),
        inputs=inputs,
        target=session.target_section(config),
        methods=methods,
        requests=tuple(timed),
        rounds=tuple(rounds),
        repetition=repetition,
        different=different,
        written=now(),
        load=watch.load(),
    )


def write_record(record: SpeedRecord, folder: Path) -> Path:
    """Writes a record into the folder of a run and returns the file; nothing there is overwritten."""
    name = digest([record.runs, record.command, record.written], 8)
    path = layout.speed_of(folder) / f"{name}.json"
    SPEED.save(record, path)
    return path


def write_page(record: SpeedRecord, record_path: Path, elsewhere: Elsewhere) -> Path:
    """Writes the page of a record beside it and returns the file."""
    path = record_path.with_suffix(".md")
    write_text(path, markdown(record, projections(record, elsewhere)))
    return path


def projections(record: SpeedRecord, elsewhere: Elsewhere) -> list[Projection]:
    """R of every drafter elsewhere: as the user gives it, or its floor on a named card and target."""
    drafters = [m for m in record.methods if m.kind == "drafter"]
    found = []
    if elsewhere.ratio is not None:
        note = "R as it was given."
        ratios = {m.key: elsewhere.ratio for m in drafters}
        found.append(Projection("Where R is known", note, ratios, floor=False))
    if elsewhere.gpu is not None:
        floors = {}
        for method in drafters:
            words = [f"backbone.block_size={method.block_size}", f"backbone.proposals={method.proposals}"]
            words += ["profile=paper", f"target={elsewhere.target}", f"backbone={method.backbone}"]
            config = compose.compose(words)
            floors[method.key] = roofline(
                elsewhere.gpu,
                sizes.of(config.target, local=True),
                config.target.taps,
                config.backbone,
                proposals=method.proposals,
                batch=1,
            )
        first = next(iter(floors.values()))
        note = (
            "an upper bound, from the data sheet and nothing measured. Batch size 1; weights in bf16 are read once "
            f"per pass: plain step {1e3 * first.plain:.2f} ms, verification {1e3 * first.verify:.2f} ms, draft "
            f"{1e3 * first.draft:.2f} ms with a drafter of the paper's size. Not counted: KV cache, launches, "
            "sampling, scheduler."
        )
        place = f"{config.target.title} on {elsewhere.gpu}"
        found.append(Projection(place, note, {key: floor.ratio for key, floor in floors.items()}, floor=True))
    return found


def _loaded(
    folders: Sequence[Path], as_trained: Sequence[Config], measured: Sequence[Config]
) -> tuple[Session, dict[str, DFlash]]:
    """The target's session, and the drafters by run. Errors: InputError for runs that do not share their target."""
    precision = measured[0].evaluation.precision
    session = open_session(as_trained[0], precision=precision)
    for folder, config in zip(folders, as_trained, strict=True):
        if not session.serves(config):
            raise InputError(f"{folder.name} has another target or other data than {folders[0].name}: time it apart")
    target = session.at(precision)
    drafters = {}
    for folder, config in zip(folders, measured, strict=True):
        drafter = checkpoint.load(layout.drafter_of(folder), target, config.backbone, run=folder.name)
        drafters[folder.name] = drafter.to(target.model.dtype)
    return session, drafters


def _requests(
    config: Config, target: Target
) -> tuple[list[tuple[str, Trajectory]], tuple[Repetition, ...], dict[str, str]]:
    """The requests by benchmark, how much the target's answers to them repeat themselves, and what they came from."""
    requests: list[tuple[str, Trajectory]] = []
    repetition = []
    inputs = {"target": target.fingerprint}
    cache = layout.trajectories(Path(config.runs), target.fingerprint)
    for prompts in load_benchmarks(config):
        answers = own_answers(config, target, prompts, config.evaluation.temperatures[0], cache).trajectories
        requests += [(prompts.name, t) for t in answers]
        counts = [repeated_grams(t.tokens[: t.length]) for t in answers]
        repetition.append(Repetition(prompts.name, prompts.title, sum(a for a, _ in counts), sum(b for _, b in counts)))
        inputs[f"prompts of {prompts.name}"] = prompts.sha256
    return requests, tuple(repetition), inputs


def _methods(
    target: Target,
    drafters: Mapping[str, DFlash],
    measured: Sequence[Config],
    options: SpeedOptions,
    requests: Sequence[tuple[str, Trajectory]],
) -> tuple[TimedMethod, ...]:
    """Plain decoding, prompt lookup and the drafters, these with tau at every number of proposals."""
    most = max(c.backbone.proposals for c in measured)
    named = [replace(t, prompt_id=f"{benchmark}/{t.prompt_id}") for benchmark, t in requests]
    rule = LookupRule(*options.lookup, most)
    title = f"prompt lookup, {rule.longest} to {rule.shortest} tokens"
    looked_up = {str(most): timing.curve_of_traces(replay_lookup(rule, named))}
    methods = [
        TimedMethod(PLAIN, "plain decoding", "plain", 0),
        TimedMethod(LOOKUP, title, "lookup", most, lookup=options.lookup, curve=looked_up),
    ]
    titles = [f"{c.backbone.title} {c.objective.title}" for c in measured]
    for (key, drafter), config, title in zip(drafters.items(), measured, titles, strict=True):
        curve = timing.curve_of_drafter(target, drafter, named, batch_size=config.evaluation.batch_size)
        methods.append(
            TimedMethod(
                key,
                title if titles.count(title) == 1 else f"{title} ({key})",
                "drafter",
                drafter.backbone.proposals,
                backbone=config.backbone.name,
                block_size=config.backbone.block_size,
                curve={str(proposals): sums for proposals, sums in curve.items()},
            )
        )
    return tuple(methods)


def _arguments(folders: Sequence[Path], options: SpeedOptions, extra: Sequence[str], benchmarks: str) -> list[str]:
    """The command that times the same again."""
    words = ["speed", *(word for folder in folders for word in ("--run", folder.name)), "--benchmarks", benchmarks]
    for name, value in (("prompts", options.prompts), ("repeats", options.repeats)):
        words += [f"--{name}", str(value)]
    words += ["--repetitions", str(options.repetitions)]
    lists = {"batch-sizes": options.batch_sizes, "proposals": options.proposals, "lookup": options.lookup}
    for name, values in lists.items():
        words += [] if values is None else [f"--{name}", ",".join(map(str, values))]
    return [*words, *extra]


def _counts(options: SpeedOptions, drafter: DFlash) -> list[int]:
    """Numbers of proposals at which the rounds of a drafter are timed, its own among them."""
    most = drafter.backbone.proposals
    asked = options.proposals or tuple(2**i for i in range(most.bit_length()))
    return sorted({most, *(count for count in asked if count <= most)})
