"""Acceptance measured by a running server: the benchmark prompts are sent to it, and its own counts are kept.

Every finished answer is appended to a JSON Lines file at once; a later call reads it first and sends only what is
missing. An answer is identified by its prompt's tokens, so a second turn is sent again only if the first answer
changed, and by the number of concurrent requests, which changes a server's batches and with them its rounding. If only
the server's running counters are available (vLLM without per-request metrics), requests are sent in waves: the counters
are read before and after each wave while nothing else runs, and a disturbed wave is repeated.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from specauf_cli.data.chat import Chat
from specauf_cli.engines.answers import Answer, Answers, Wave
from specauf_cli.engines.client import Client
from specauf_cli.engines.counts import terms
from specauf_cli.engines.sglang import SGLang
from specauf_cli.engines.vllm import VLLM, Counters
from specauf_cli.errors import InputError
from specauf_cli.evaluation.turns import Request, Turns
from specauf_cli.runtime.progress import track
from specauf_cli.store.files import digest
from specauf_cli.store.records import skips
from specauf_cli.types import PromptSet

WAVES = 4
"""How often a disturbed wave is tried before giving up."""

SETTLE = 10.0
"""Seconds that a server's counters may lag behind its answers."""

Timed = tuple[Answer, float]
"""An answer and the seconds it took."""


@dataclass(frozen=True)
class Keyed(Request):
    """A request and the key its answer is kept under."""

    key: str


@dataclass
class Measured:
    """One benchmark at one temperature. ``requests`` are rows of ``counts.COLUMNS`` in prompt and turn order.

    ``waves`` (counters only) hold prompt ids, drafts, draft tokens, accepted tokens and accepted per slot of one wave
    each; ``skipped`` counts requests left out, by reason.
    """

    benchmark: str
    title: str
    column: str
    temperature: float
    prompts_sha256: str
    prompts: int
    origin: str
    skipped: dict[str, int] = field(default_factory=dict)
    requests: list[list[Any]] = field(default_factory=list)
    waves: list[list[Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Asking:
    """How a server is asked: who, with which chat, and how much at once."""

    backend: SGLang | VLLM
    client: Client
    chat: Chat
    answers: Answers
    concurrency: int
    max_new_tokens: int
    seed: int
    context: int | None


@dataclass(frozen=True)
class Asked:
    """One benchmark at one temperature, asked completely. ``answered``: requests with their answers in prompt and turn
    order; ``waves`` and ``skipped`` as in ``Measured``."""

    answered: tuple[tuple[Keyed, Answer], ...]
    waves: tuple[tuple[frozenset[str], list[Any]], ...]
    skipped: dict[str, int]


def measure(asking: Asking, prompts: PromptSet, *, column: str, temperature: float) -> Measured:
    """Asks what is missing of one benchmark, turn after turn, and returns all of it as a record keeps it.

    Errors: as ``ask_benchmark``.
    """
    began = time.perf_counter()
    asked = ask_benchmark(asking, prompts, temperature)
    prompt_ids = {request.key: request.prompt_id for request, _ in asked.answered}
    requests: list[list[Any]] = []
    for r, a in asked.answered:
        counts = [a.rounds, a.accepted, list(a.histogram) if a.histogram else None]
        requests.append([r.prompt_id, r.turn, len(r.prompt), a.completion, a.ended, *counts])
    return Measured(
        prompts.name,
        prompts.title,
        column,
        temperature,
        prompts.sha256,
        len(prompts.prompts),
        prompts.origin,
        asked.skipped,
        requests,
        [[sorted(prompt_ids[k] for k in keys), *counts] for keys, counts in asked.waves],
        round(time.perf_counter() - began, 2),
    )


def ask_benchmark(asking: Asking, prompts: PromptSet, temperature: float) -> Asked:
    """Asks what is missing of one benchmark, turn after turn, and returns all of it.

    Errors: InputError when the server stops answering, contradicts itself, or no prompt fits its context; what was
    answered is kept.
    """
    answered: dict[tuple[str, int], tuple[Keyed, Answer]] = {}
    longest = None if asking.context is None else asking.context - asking.max_new_tokens
    turns = Turns(prompts.prompts, asking.chat, longest, "server")
    for turn, open_requests in enumerate(turns):
        requests = [_keyed(asking, prompts.name, r, turn, temperature) for r in open_requests]
        label = f"{prompts.title}, T={temperature:g}" + (f", turn {turn + 1}" if turn else "")
        _ask_missing(asking, requests, temperature, label)
        for request in requests:
            answer, _ = asking.answers.kept[request.key]
            answered[request.prompt_id, turn] = request, answer
            turns.answer(request, asking.chat.text(answer.tokens) if answer.tokens is not None else answer.text)
    if not answered:
        raise InputError(
            f"{prompts.title}: no prompt can be asked ({skips(turns.skipped)}); the server's context holds "
            f"{asking.context} tokens, evaluation.max_new_tokens={asking.max_new_tokens} among them"
        )
    ordered = [answered[p.id, t] for p in prompts.prompts for t in range(len(p.turns)) if (p.id, t) in answered]
    return Asked(tuple(ordered), tuple(_waves(asking.answers, ordered)), turns.skipped)


def _keyed(asking: Asking, benchmark: str, request: Request, turn: int, temperature: float) -> Keyed:
    """``request`` with the key of its answer: a digest of all that the answer depends on."""
    settings = [temperature, asking.max_new_tokens, asking.concurrency]
    identity = [benchmark, request.prompt_id, turn, *settings, list(request.prompt)]
    key = digest([*identity, asking.seed if temperature > 0 else None], 24)
    return Keyed(request.id, request.prompt_id, turn, request.prompt, key)


def _waves(answers: Answers, ordered: Sequence[tuple[Keyed, Answer]]) -> list[tuple[frozenset[str], list[Any]]]:
    """Keys and counts of every wave that counted one of the answers, once."""
    keys = {request.key for request, _ in ordered}
    waves: list[Wave] = []
    for request, answer in ordered:
        if answer.rounds is not None:
            continue
        wave = answers.wave(request.key, keys)
        assert wave is not None, "every answer was counted"
        if not any(wave is w for w in waves):
            waves.append(wave)
    return [(w.keys, w.counts) for w in waves]


def _ask_missing(asking: Asking, requests: Sequence[Keyed], temperature: float, label: str) -> None:
    """Asks those of ``requests`` that have no counted answer yet."""
    keys = {r.key for r in requests}
    missing = [r for r in requests if asking.answers.get(r.key, keys) is None]
    if not missing:
        return

    def ask(request: Keyed) -> Timed:
        began = time.perf_counter()
        # A request's own seed: the answer must not depend on the order of requests.
        seed = int(digest([asking.seed, request.prompt_id, request.turn], 7), 16)
        answer = asking.backend.ask(
            request.prompt, temperature=temperature, seed=seed, max_new_tokens=asking.max_new_tokens
        )
        return answer, time.perf_counter() - began

    with track(label, len(requests), start=len(requests) - len(missing)) as show:
        done, top, bottom = len(requests) - len(missing), 0.0, 0.0  # tau of what is asked now
        if asking.backend.counts == "request":
            for request, (answer, seconds) in _pool(asking.client, missing, ask, asking.concurrency):
                asking.answers.add(request.key, answer, seconds)
                numerator, denominator = terms(asking.backend.name, answer)
                done, top, bottom = done + 1, top + numerator, bottom + denominator
                show(done, f"tau {top / bottom:.2f}" if bottom else "")
            return
        assert isinstance(asking.backend, VLLM)
        for begin in range(0, len(missing), asking.concurrency):
            together = missing[begin : begin + asking.concurrency]
            drafts, _, accepted, _ = _ask_wave(asking, asking.backend, together, ask)
            done, top, bottom = done + len(together), top + drafts + accepted, bottom + drafts
            show(done, f"tau {top / bottom:.2f}" if bottom else "")


def _ask_wave(asking: Asking, backend: VLLM, requests: Sequence[Keyed], ask: Callable[[Keyed], Timed]) -> list[Any]:
    """Asks ``requests`` at once between two readings of an idle server's counters; keeps and returns what they
    counted."""
    for _ in range(WAVES):
        before, failures = _idle(backend), asking.client.failures
        answers = list(_pool(asking.client, requests, ask, asking.concurrency))
        after = _idle(backend, finished=before.finished + len(requests))
        finished = after.finished - before.finished
        counts = _difference(before, after)
        if asking.client.failures > failures or counts is None:
            continue  # an abandoned try or a restart has changed the counts
        if finished != len(requests):
            raise InputError(
                f"{asking.client.url} finished {finished} requests while {len(requests)} were asked here: others "
                "use it too, and its counters cannot tell whose drafts they count; wait until it is alone, or start "
                "it with --per-request-spec-decode-metrics"
            )
        emitted = sum(answer.completion for _, (answer, _) in answers)
        if counts[0] > emitted or counts[2] > counts[1] or (counts[0] == 0 and emitted > len(requests)):
            raise InputError(
                f"{asking.client.url}/metrics counted {counts[0]} drafts with {counts[2]} of {counts[1]} draft tokens "
                f"accepted for {len(requests)} answers of {emitted} tokens, which cannot be"
            )
        for request, (answer, seconds) in answers:
            asking.answers.add(request.key, answer, seconds)
        asking.answers.close_wave([r.key for r in requests], counts)
        return counts
    raise InputError(
        f"{asking.client.url}: {WAVES} tries of the same {len(requests)} requests were each disturbed by a timeout, an "
        "error or a restart, so its counters say nothing of them; raise --timeout or lower --concurrency"
    )


def _idle(backend: VLLM, finished: int | None = None) -> Counters:
    """The counters once nothing runs and ``finished`` requests are counted. Errors: InputError when it stays busy."""
    limit = time.monotonic() + SETTLE
    delay = 0.02
    while True:
        now = backend.counters()
        late = finished is not None and now.finished < finished
        if not now.running and not late:
            return now
        if time.monotonic() > limit:
            if now.running:
                raise InputError(
                    f"{backend.client.url} is working on {now.running} requests of others; its counters cannot tell "
                    "them from ours: wait until it is idle, or start it with --per-request-spec-decode-metrics"
                )
            return now
        time.sleep(delay)
        delay = min(2 * delay, 0.5)


def _difference(before: Counters, after: Counters) -> list[Any] | None:
    """Drafts, draft tokens, accepted tokens, accepted per slot between two readings; None after a restart."""
    slots = [b - a for a, b in zip(before.per_slot, after.per_slot, strict=False)]
    sums = [after.drafts - before.drafts, after.proposed - before.proposed, after.accepted - before.accepted]
    if min([*sums, *slots, after.finished - before.finished]) < 0:
        return None
    return [*sums, slots]


def _pool(
    client: Client, requests: Sequence[Keyed], ask: Callable[[Keyed], Timed], concurrency: int
) -> Iterator[tuple[Keyed, Timed]]:
    """Yields requests with the result of ``ask``, as they finish. After a failure the pending ones are still yielded,
    then it is raised.

    The threads are daemons: an interrupt ends the process at once.
    """
    waiting = deque(requests)
    outcomes = queue.SimpleQueue[tuple[Keyed, Timed] | Exception | None]()  # None: one thread has ended
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                request = waiting.popleft()
            except IndexError:
                break
            try:
                outcomes.put((request, ask(request)))
            except Exception as error:  # raised again below, in the caller's thread
                stop.set()
                client.stop.set()
                outcomes.put(error)
        outcomes.put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    client.stop.clear()
    failure: Exception | None = None
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            while (outcome := outcomes.get()) is not None:
                if isinstance(outcome, Exception):
                    failure = failure or outcome
                else:
                    yield outcome
    finally:
        stop.set()
        client.stop.set()
    client.stop.clear()
    if failure is not None:
        raise failure
