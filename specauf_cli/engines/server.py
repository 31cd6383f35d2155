"""Acceptance measured by a running server: the benchmark prompts are sent to it, its own counts are kept.

Every finished answer is appended to a JSON Lines file at once; a later call reads it first and asks only what is
missing. An answer is known by its prompt's tokens, so a second turn is asked again only when the first was answered
differently, and by how many requests were asked at once, which changes a server's batches and with them its rounding.
Where only the server's running counters know (vLLM without per-request metrics) requests go out in waves, the counters
are read before and after each while nothing else runs, and a wave that was disturbed is asked again.

    sglang   mean over requests of completion tokens / rounds           (spec_verify_ct)
    vllm     1 + accepted / drafts, all requests together               (its counters, past the end of turn)
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from specauf_cli.data.chat import Chat
from specauf_cli.engines.answers import Answers
from specauf_cli.engines.backends import VLLM, Answer, Backend, Counters
from specauf_cli.engines.client import Client
from specauf_cli.errors import InputError
from specauf_cli.evaluation.turns import Request, Turns, skips
from specauf_cli.runtime.progress import track
from specauf_cli.store.files import digest
from specauf_cli.types import PromptSet

DEFINITIONS = {
    "sglang": "sglang: completion tokens / spec_verify_ct per request, mean over requests; cut at the end, prefill "
    "token counted",
    "vllm": "vllm: 1 + accepted / drafts over all requests together; rounds past the end counted whole",
}
WAVES = 4
"""How often a disturbed wave is asked before giving up."""

SETTLE = 10.0
"""Seconds that a server's counters may lag behind its answers."""


@dataclass(frozen=True)
class Keyed(Request):
    """A request and the key its answer is kept under."""

    key: str


@dataclass
class Measured:
    """One benchmark at one temperature. ``requests`` are rows of ``COLUMNS`` in prompt and turn order.

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


COLUMNS = ["prompt id", "turn", "prompt tokens", "completion tokens", "ended", "rounds", "accepted", "histogram"]


@dataclass(frozen=True)
class Asking:
    """How a server is asked: who, with which chat, and how much at once."""

    backend: Backend
    client: Client
    chat: Chat
    answers: Answers
    concurrency: int
    max_new_tokens: int
    seed: int
    context: int | None


def measure(asking: Asking, prompts: PromptSet, *, column: str, temperature: float) -> Measured:
    """Asks what is missing of one benchmark, turn after turn, and returns all of it.

    Errors: InputError when the server stops answering, lies, or no prompt fits its context; what was answered is kept.
    """
    began = time.perf_counter()
    result = Measured(
        prompts.name, prompts.title, column, temperature, prompts.sha256, len(prompts.prompts), prompts.origin
    )
    done: dict[tuple[str, int], tuple[Keyed, Answer]] = {}
    longest = None if asking.context is None else asking.context - asking.max_new_tokens
    turns = Turns(prompts.prompts, asking.chat, longest, "server")
    for turn, some in enumerate(turns):
        requests = []
        for r in some:
            settings = [temperature, asking.max_new_tokens, asking.concurrency]
            identity = [prompts.name, r.prompt_id, turn, *settings, list(r.prompt)]
            key = digest([*identity, asking.seed if temperature > 0 else None], 24)
            requests.append(Keyed(r.id, r.prompt_id, turn, r.prompt, key))
        name = f"{prompts.title}, T={temperature:g}" + (f", turn {turn + 1}" if turn else "")
        for request in _ask_missing(asking, requests, temperature, name):
            answer = asking.answers.found[request.key][0]
            done[request.prompt_id, turn] = request, answer
            turns.answer(request, asking.chat.text(answer.tokens) if answer.tokens is not None else answer.text)
    result.skipped = turns.skipped
    if not done:
        raise InputError(
            f"{prompts.title}: no prompt can be asked ({skips(turns.skipped)}); the server's context holds "
            f"{asking.context} tokens, evaluation.max_new_tokens={asking.max_new_tokens} among them"
        )
    ordered = [done[p.id, t] for p in prompts.prompts for t in range(len(p.turns)) if (p.id, t) in done]
    for r, a in ordered:
        counts = [a.rounds, a.accepted, list(a.histogram) if a.histogram else None]
        result.requests.append([r.prompt_id, r.turn, len(r.prompt), a.completion, a.ended, *counts])
    ids, waves = {r.key: r.prompt_id for r, _ in ordered}, list[dict[str, Any]]()
    for request, answer in ordered:
        wave = asking.answers.wave(request.key, ids) if answer.rounds is None else None
        assert wave is not None or answer.rounds is not None, "every answer was counted"
        waves += [wave] if wave is not None and not any(wave is w for w in waves) else []
    result.waves = [[sorted(ids[k] for k in w["wave"]), *w["counts"]] for w in waves]
    result.seconds = round(time.perf_counter() - began, 2)
    return result


def _ask_missing(asking: Asking, requests: Sequence[Keyed], temperature: float, name: str) -> Sequence[Keyed]:
    """Asks those of ``requests`` that have no counted answer yet; returns all of them."""
    keys = {r.key for r in requests}
    missing = [r for r in requests if asking.answers.get(r.key, keys) is None]
    if not missing:
        return requests

    def ask(request: Keyed) -> tuple[Answer, float]:
        clock = time.perf_counter()
        # A request's own seed: the answer must not depend on the order of requests.
        seed = int(digest([asking.seed, request.prompt_id, request.turn], 7), 16)
        found = asking.backend.ask(
            request.prompt, temperature=temperature, seed=seed, max_new_tokens=asking.max_new_tokens
        )
        return found, time.perf_counter() - clock

    with track(name, len(requests), start=len(requests) - len(missing)) as show:
        done, top, bottom = len(requests) - len(missing), 0.0, 0.0  # tau of what is asked now
        if asking.backend.counts == "request":
            for request, found in _pool(asking.client, missing, ask, asking.concurrency):
                asking.answers.add(request.key, *found)
                a, b = terms(asking.backend.name, found[0])
                done, top, bottom = done + 1, top + a, bottom + b
                show(done, f"tau {top / bottom:.2f}" if bottom else "")
            return requests
        assert isinstance(asking.backend, VLLM)
        for begin in range(0, len(missing), asking.concurrency):
            wave = missing[begin : begin + asking.concurrency]
            drafts, _, accepted, _ = _wave(asking, asking.backend, wave, ask)
            done, top, bottom = done + len(wave), top + drafts + accepted, bottom + drafts
            show(done, f"tau {top / bottom:.2f}" if bottom else "")
    return requests


def _wave(
    asking: Asking,
    backend: VLLM,
    requests: Sequence[Keyed],
    ask: Callable[[Keyed], tuple[Answer, float]],
) -> list[Any]:
    """Asks ``requests`` at once between two readings of an idle server's counters; keeps and returns what they
    counted."""
    for _ in range(WAVES):
        before, failures = _idle(backend), asking.client.failures
        found = list(_pool(asking.client, requests, ask, asking.concurrency))
        after = _idle(backend, finished=before.finished + len(requests))
        finished_here = after.finished - before.finished
        counts = _difference(before, after)
        if asking.client.failures > failures or counts is None:
            continue  # a try that was given up, or a restart, has left its drafts among the counts
        if finished_here != len(requests):
            raise InputError(
                f"{asking.client.url} finished {finished_here} requests while {len(requests)} were asked here: others "
                "use it too, and its counters cannot tell whose drafts they count; wait until it is alone, or start "
                "it with --per-request-spec-decode-metrics"
            )
        emitted = sum(answer.completion for _, (answer, _) in found)
        if counts[0] > emitted or counts[2] > counts[1] or (counts[0] == 0 and emitted > len(requests)):
            raise InputError(
                f"{asking.client.url}/metrics counted {counts[0]} drafts with {counts[2]} of {counts[1]} draft tokens "
                f"accepted for {len(requests)} answers of {emitted} tokens, which cannot be"
            )
        for request, answer in found:
            asking.answers.add(request.key, *answer)
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
                    f"{backend.client.url} works on {now.running} requests of others; its counters cannot tell them "
                    "from ours: wait until it is alone, or start it with --per-request-spec-decode-metrics"
                )
            return now
        time.sleep(delay)
        delay = min(2 * delay, 0.5)


def _difference(before: Counters, after: Counters) -> list[Any] | None:
    """Drafts, draft tokens, accepted tokens, accepted per slot of what happened in between; None after a restart."""
    slots = [b - a for a, b in zip(before.per_slot, after.per_slot, strict=False)]
    found = [after.drafts - before.drafts, after.proposed - before.proposed, after.accepted - before.accepted]
    if min([*found, *slots, after.finished - before.finished]) < 0:
        return None
    return [*found, slots]


def _pool(
    client: Client, requests: Sequence[Keyed], ask: Callable[[Keyed], Any], concurrency: int
) -> Iterator[tuple[Keyed, Any]]:
    """Yields requests with what ``ask`` gave, as they finish. After a failure what is under way is still yielded, then
    it is raised.

    The threads are daemons: an interrupt leaves at once, whatever the server is doing.
    """
    todo, results = deque(requests), queue.SimpleQueue[tuple[Keyed, Any] | None]()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                request = todo.popleft()
            except IndexError:
                break
            try:
                results.put((request, ask(request)))
            except Exception as error:  # raised again below, in the thread that can say it
                stop.set()
                client.stop.set()
                results.put((request, error))
        results.put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    client.stop.clear()
    failed: Exception | None = None
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            while (found := results.get()) is not None:
                if isinstance(found[1], Exception):
                    failed = failed or found[1]
                else:
                    yield found
    finally:
        stop.set()
        client.stop.set()
    client.stop.clear()
    if failed is not None:
        raise failed


def terms(definition: str, row: Answer) -> tuple[float, float]:
    """Numerator and denominator of tau of one request by a server's definition; (0, 0) without a round."""
    if not row.rounds:
        return 0.0, 0.0
    if definition == "sglang":
        return row.completion / row.rounds, 1.0
    return float(row.rounds + (row.accepted or 0)), float(row.rounds)


def tau_terms(definition: str, measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of tau per prompt of a record's benchmark, turns added up (a conversation is one
    cluster).

    Where only waves were counted each wave is one entry: its sums are exact, but it says nothing of single prompts.
    """
    found: dict[str, tuple[float, float]] = {}
    rows = [
        (w[0][0] if len(w[0]) == 1 else f"wave {i}", float(w[1] + w[3]), float(w[1]))
        for i, w in enumerate(measured["waves"])
    ]
    for prompt_id, _, _, completion, ended, rounds, accepted, _ in measured["requests"]:
        if rounds is not None:
            rows.append((prompt_id, *terms(definition, Answer(None, "", completion, ended, rounds, accepted, None))))
    for name, a, b in rows:
        x, y = found.get(name, (0.0, 0.0))
        if b:
            found[name] = (x + a, y + b)
    return found


def by_prompt(measured: Mapping[str, Any]) -> bool:
    """Whether every prompt was counted by itself, so that an interval over prompts exists."""
    return all(len(w[0]) == 1 for w in measured["waves"])


def histogram(measured: Mapping[str, Any]) -> list[int]:
    """Rounds with 0, 1, ... accepted draft tokens, where the server gives them; empty where a request has none."""
    rows = [r[7] for r in measured["requests"] if r[5]]
    for _, drafts, _, _, per_slot in measured["waves"]:
        rows.append([a - b for a, b in pairwise([drafts, *per_slot, 0])])
    if not rows or any(h is None for h in rows):
        return []
    return [sum(h[k] for h in rows if k < len(h)) for k in range(max(map(len, rows)))]
