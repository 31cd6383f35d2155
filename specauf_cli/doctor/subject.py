"""What the checks examine: settings, data, target and drafter, each opened on first use; and the result of a check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Int
from torch import Tensor

from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import Config
from specauf_cli.data import benchmarks
from specauf_cli.data.chat import Chat, encode
from specauf_cli.errors import InputError
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target, create, load, taps_of
from specauf_cli.planning.plan import Plan, estimated, make_plan
from specauf_cli.runtime import machine
from specauf_cli.session import load_data
from specauf_cli.store import layout
from specauf_cli.training import pretrain
from specauf_cli.types import Conversation, Corpus, Example, PromptSet

OK, WARN, FAIL, OUT = "ok", "warn", "FAIL", "-"
SAMPLE = 32
"""Conversations that are rendered and compared token by token."""
WIDTH = 192
"""Tokens of the sequence that target and drafter are tried on."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Finding:
    """The result of one check: ``ok``, ``warn``, ``FAIL``, or ``-`` if it was skipped. ``shown`` lines are printed
    below it."""

    verdict: str
    found: str
    fix: str = ""
    shown: tuple[str, ...] = ()


class LeftOut(Exception):
    """A check cannot run because ``part`` of the subject is not available; ``reason`` says why, in one line."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part, self.reason = part, reason


class Subject:
    """Settings with the data, target and drafter they describe. Nothing is trained: a missing target gets random
    weights.

    ``folder``: a finished run whose drafter is examined (else one is initialised). ``dry``: no target and no download.
    ``asked``: settings whose benchmarks are examined, if not those that were removed from the data.
    ``parts``: parts that are already open: ``data``, ``prompts``, ``target``, ``drafter``.
    """

    def __init__(
        self,
        config: Config,
        folder: Path | None = None,
        *,
        dry: bool = False,
        parts: dict[str, Any] | None = None,
        asked: Config | None = None,
    ) -> None:
        self.asked = asked or config
        self.config, self.folder, self.dry = config, folder, dry
        self.untrained = False
        self.refused = ""
        self._parts: dict[str, Any] = dict(parts or {})

    def _part(self, name: str, make: Callable[[], Part]) -> Part:
        """The part, opened once. Errors: LeftOut, on every call, when it cannot be opened."""
        if name not in self._parts:
            try:
                self._parts[name] = make()
            except LeftOut as error:
                self._parts[name] = error
            except Exception as error:  # checks of other parts still run
                self._parts[name] = LeftOut(name, reason_of(error))
        if isinstance(self._parts[name], LeftOut):
            raise self._parts[name]
        return cast(Part, self._parts[name])

    def data(self) -> tuple[Corpus, Corpus]:
        """Training and held-out conversations, as a training would see them."""
        if self.dry and self.downloads():
            raise LeftOut("dry", f"would be downloaded: {', '.join(self.downloads())}")
        return self._part("data", lambda: load_data(self.config))

    def prompts(self) -> list[tuple[PromptSet, PromptSet]]:
        """Every benchmark's prompts: raw, and in the template they are asked in."""

        def load() -> list[tuple[PromptSet, PromptSet]]:
            root = Path(self.asked.benchmark_root) if self.asked.benchmark_root else None
            return [
                (benchmarks.load_raw(b, root=root), benchmarks.load(b, root=root))
                for b in self.asked.benchmark.values()
            ]

        if self.dry and self.downloads():
            raise LeftOut("dry", f"would be downloaded: {', '.join(self.downloads())}")
        return self._part("prompts", load)

    def downloads(self) -> list[str]:
        """The data sets that these settings fetch from the hub."""
        config = self.config
        names = [f"data {config.data.hub_id}"] if config.data.source == "hub" else []
        for chosen in (config, self.asked):
            if chosen.benchmark_root is None:
                names += [f"benchmark {b.name}" for b in chosen.benchmark.values() if b.source == "hub"]
        return list(dict.fromkeys(names))

    def fetches_target(self) -> bool:
        """True for a target of the hub that this machine has not downloaded."""
        chosen = self.config.target
        if chosen.path is None or is_local(chosen.path):
            return False
        try:
            cached = try_to_load_from_cache(chosen.path, "config.json", revision=chosen.revision)
        except ValueError:  # not a valid hub id: opening it reports that
            return False
        return not isinstance(cached, str)

    def plan(self) -> Plan:
        """The plan of a training with these settings. Lengths are estimated, so neither target nor tokenizer is
        loaded."""
        config, stated = self.config, self.config.data.source == "hub" and self.config.data.known is not None
        known = self._part("sizes", lambda: sizes.of(config.target, local=self.dry))
        lengths = estimated(config, None if stated else self.data()[0])
        on_gpu = machine.use_machine(config).startswith("cuda")
        return self._part("plan", lambda: make_plan(config, known, lengths, on_gpu=on_gpu))

    def target(self) -> Target:
        """The target on its device; one of the same size with random weights if it is not trained yet."""
        if self.dry:
            raise LeftOut("dry", "opens no target")
        return self._part("target", self._target)

    def _target(self) -> Target:
        config = self.config
        device = machine.use_machine(config)
        if config.target.path is not None or config.target.pretrain is None:
            nowhere, none = Path(config.runs), Corpus("", ())
            return load(pretrain.ensure(config.target, none, nowhere, data="", device=device), device=device)
        train, _ = self.data()
        taps_of(config.target.taps, config.target.pretrain.layers)
        place = pretrain.place(config.target, Path(config.runs), data=train.sha256)
        if (place / pretrain.MARKER).is_file():
            located = pretrain.ensure(config.target, train, Path(config.runs), data=train.sha256, device=device)
            return load(located, device=device)
        if self.folder is not None:
            raise InputError(f"the target that run {self.folder.name} was trained for is not there: {place}")
        self.untrained = True
        texts = (m.content for c in train.conversations for m in c.messages)
        chat = Chat.build(texts, config.target.pretrain.vocab_size)
        model = create(config.target.pretrain, chat).to(device)
        return Target(model, chat, config.target, "random weights")

    def drafter(self) -> DFlash:
        """The run's drafter; a freshly initialised one if there is none or it does not load (``refused`` says why)."""
        return self._part("drafter", self._drafter)

    def _drafter(self) -> DFlash:
        target = self.target()
        if self.folder is not None:
            try:
                trained = checkpoint.load(
                    layout.drafter_of(self.folder), target, self.config.backbone, run=self.folder.resolve().name
                )
                return trained.to(target.model.dtype)
            except InputError as error:
                self.refused = str(error)
        drafter = checkpoint.create(target, self.config.backbone)
        drafter.initialise(self.config.seed)
        return drafter.to(target.model.dtype).eval()

    def sample(self) -> tuple[Conversation, ...]:
        """The first training conversations, a quarter of them with several answers if there are any."""
        conversations = self.data()[0].conversations
        several = (c for c in conversations if sum(m.role == "assistant" for m in c.messages) > 1)
        long = list(islice(several, SAMPLE // 4))
        names = {c.id for c in long}
        others = [c for c in conversations[: 2 * SAMPLE] if c.id not in names]
        return (*others[: SAMPLE - len(long)], *long)

    def examples(self) -> Sequence[Example]:
        """The sampled conversations as training encodes them."""
        chat, length = self.target().chat, self.config.trainer.max_length
        corpus = replace(self.data()[0], conversations=self.sample(), dropped={})
        return self._part("examples", lambda: encode(chat, corpus, max_length=length)[0])

    def tokens(self) -> Int[Tensor, "1 T"]:
        """One sequence to try models on: a training example cut to ``WIDTH`` tokens; random tokens if there is none."""
        target = self.target()
        try:
            usable = [e.tokens for e in self.examples() if len(e.tokens) >= 24] or [e.tokens for e in self.examples()]
            chosen: Sequence[int] = min(usable, key=len)[:WIDTH]
        except LeftOut:
            chosen = []
        if len(chosen) < 8:
            rows = min(target.chat.vocab, target.model.get_input_embeddings().num_embeddings)
            chosen = torch.randint(0, rows, (48,), generator=torch.Generator().manual_seed(0)).tolist()
        return torch.tensor([list(chosen)], device=target.device)


def reason_of(error: BaseException) -> str:
    """An exception in one line: an InputError's own text, otherwise its type and first line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, InputError):
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def close(actual: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding: 1e-4 of the largest value in fp32, 2e-2 in lower precision."""
    if actual.shape != expected.shape:
        return False
    share = 1e-4 if expected.dtype == torch.float32 else 2e-2
    return bool((actual.float() - expected.float()).abs().max() <= share * expected.float().abs().max())
