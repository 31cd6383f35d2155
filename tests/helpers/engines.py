"""Servers that speak as SGLang and vLLM do, for tests: the target's own trajectories with a seeded acceptance pattern.

They answer only prompts they know, token for token, so a prompt rendered in another way fails. What they must report is
computed apart, from the same ``Trace``s, by ``evaluation.metrics``.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers.commands import Done, specauf
from specauf_cli.data.chat import Chat
from specauf_cli.types import Trace, Trajectory

PROPOSALS = 15
Fault = Callable[[int, dict[str, Any]], Any]
"""Number of this request to generate, and its answer -> the answer to give, or what goes wrong: a status, ``reset``,
text that is no JSON, ``("slow", seconds, answer)``, ``("drip", seconds, answer)`` (so long between two bytes),
``("moved", address)``, ``("large", bytes)``."""


def trace(trajectory: Trajectory) -> Trace:
    """Rounds with seeded accepted counts over a trajectory; the last one may overshoot."""
    draw = random.Random(repr((trajectory.prompt_id, trajectory.turn, trajectory.tokens)))
    accepted, emitted = [], 1
    while emitted < trajectory.length:
        accepted.append(min(PROPOSALS, int(draw.expovariate(0.4))))
        emitted += accepted[-1] + 1
    t = trajectory
    return Trace(t.prompt_id, t.turn, tuple(accepted), PROPOSALS, t.length, t.ended)


TOKENS = 20
SETTINGS = ["profile=smoke", "evaluation.prompts=4", f"evaluation.max_new_tokens={TOKENS}", "target=tiny"]
CHOSEN = "offline_algebra,offline_chat"
DRAFTER = "/models/drafter"
Known = dict[float, dict[str, list[Trajectory]]]


class Engine(ABC):
    """What both fakes share: known prompts, faults, and a log of what was asked."""

    def __init__(self, chat: Chat, known: dict[float, Sequence[Trajectory]], model: str, drafter: str) -> None:
        self.chat, self.model, self.drafter = chat, model, drafter
        self.known = {(t, x.prompt): x for t, found in known.items() for x in found}
        self.fault: Fault = lambda _, answer: answer
        self.lock, self.bodies = threading.Lock(), list[dict[str, Any]]()
        self.info: dict[str, Any] = {}
        self.tokenizes, self.port = True, 0
        self.started: float | None = 1.79569817272e09

    @property
    def asked(self) -> int:
        """Requests to generate so far, probes left out."""
        return sum(self.limit(b) != 8 for b in self.bodies)

    @abstractmethod
    def limit(self, body: dict[str, Any]) -> int: ...

    @abstractmethod
    def get(self, path: str) -> Any: ...

    @abstractmethod
    def generate(self, body: dict[str, Any]) -> Any: ...

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            return {"tokens": self.chat.tokens([body["prompt"]])[0]} if self.tokenizes else None
        if path != self.path:
            return None
        with self.lock:
            self.bodies.append(body)
            number = self.asked - 1
        answer = self.generate(body)
        return answer if self.limit(body) == 8 else self.fault(number, answer)

    path = ""


class FakeSGLang(Engine):
    path = "/generate"

    def limit(self, body: dict[str, Any]) -> int:
        return int(body["sampling_params"]["max_new_tokens"])

    def get(self, path: str) -> Any:
        flags = {
            "model_path": self.model,
            "served_model_name": self.model,
            "speculative_algorithm": "DFLASH",
            "version": "0.6.1",
            "speculative_draft_model_path": self.drafter,
            "speculative_num_draft_tokens": PROPOSALS + 1,
            "context_length": 512,
            "dtype": "float32",
            "random_seed": random.randrange(10**9),
            "host": "10.0.0.7",
            "port": 30000,
            "api_key": "sesame",
            "internal_states": [{}],
        }
        if path == "/get_server_info":
            return {k: v for k, v in (flags | self.info).items() if v is not None}
        return {"model_path": self.model, "is_generation": True} if path == "/get_model_info" else None

    def generate(self, body: dict[str, Any]) -> Any:
        params = body["sampling_params"]
        found = self.known.get((params["temperature"], tuple(body["input_ids"])))
        if self.limit(body) == 8:
            return {"output_ids": [5, 6], "text": "x", "meta_info": {"completion_tokens": 2, "spec_verify_ct": 1}}
        if found is None:
            return 400
        rounds = trace(found)
        meta = {
            "completion_tokens": found.length,
            "prompt_tokens": len(found.prompt),
            "finish_reason": {"type": "stop" if found.ended else "length"},
        }
        if rounds.accepted:
            count, accepted = len(rounds.accepted), sum(rounds.accepted)
            histogram = [sum(a == k for a in rounds.accepted) for k in range(PROPOSALS + 1)]
            meta |= {
                "spec_verify_ct": count,
                "spec_accept_length": found.length / count,
                "spec_accept_histogram": histogram,
                "spec_accept_token_num": accepted,
            }
        tokens = list(found.tokens[: found.length])
        return {"text": self.chat.text(tokens), "output_ids": tokens, "meta_info": meta}


class FakeVLLM(Engine):
    path = "/v1/completions"

    def __init__(self, *given: Any, per_request: bool) -> None:
        super().__init__(*given)
        self.per_request, self.spec = per_request, True
        self.totals = {"drafts": 70, "draft_tokens": 70 * PROPOSALS, "accepted": 99, "success": 7}
        self.slots = [9] * PROPOSALS

    def limit(self, body: dict[str, Any]) -> int:
        return int(body["max_tokens"])

    def get(self, path: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": self.model, "root": self.model, "max_model_len": 512}]}
        if path == "/version":
            return {"version": "0.29.0"}
        if path.startswith("/server_info"):
            return self.info or None
        return self.metrics() if path == "/metrics" else None

    def metrics(self) -> str:
        with self.lock:
            t, label = self.totals, f'engine="0",model_name="{self.model}"'
            lines = ["# HELP vllm:num_requests_running x", f"vllm:num_requests_running{{{label}}} 0.0"]
            lines += [f'vllm:request_success_total{{{label},finished_reason="stop"}} {t["success"]}.0']
            lines += [f"process_start_time_seconds {self.started}"] if self.started is not None else []
            if self.spec:
                lines += [
                    f"vllm:spec_decode_num_{k}_total{{{label}}} {float(t[n])}"
                    for k, n in (
                        ("drafts", "drafts"),
                        ("draft_tokens", "draft_tokens"),
                        ("accepted_tokens", "accepted"),
                    )
                ]
                lines += [
                    f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{label},position="{i}"}} {float(n)}'
                    for i, n in enumerate(self.slots)
                ]
            return "\n".join(lines) + "\n"

    def generate(self, body: dict[str, Any]) -> Any:
        if self.limit(body) == 8:
            answer = {"choices": [{"text": "x", "token_ids": [5, 6]}], "usage": {"completion_tokens": 2}}
            own = {"num_spec_steps": 1, "num_accepted_draft_tokens": 0, "num_draft_tokens": PROPOSALS}
            return answer | ({"metrics": {"speculative_decoding": own}} if self.per_request and self.spec else {})
        found = self.known.get((body["temperature"], tuple(body["prompt"])))
        if found is None or body["model"] != self.model:
            return 400
        rounds = trace(found).accepted
        tokens = list(found.tokens[: found.length])
        with self.lock:
            self.totals["drafts"] += len(rounds)
            self.totals["draft_tokens"] += PROPOSALS * len(rounds)
            self.totals["accepted"] += sum(rounds)
            self.totals["success"] += 1
            self.slots = [n + sum(a > i for a in rounds) for i, n in enumerate(self.slots)]
        choice = {
            "text": self.chat.text(tokens),
            "token_ids": tokens,
            "finish_reason": "stop" if found.ended else "length",
        }
        usage = {"completion_tokens": found.length, "prompt_tokens": len(found.prompt)}
        answer: dict[str, Any] = {"choices": [choice], "usage": usage}
        if self.per_request:
            own = {
                "num_spec_steps": len(rounds),
                "num_accepted_draft_tokens": sum(rounds),
                "num_draft_tokens": PROPOSALS * len(rounds),
                "acceptance_histogram": [sum(a == k for a in rounds) for k in range(PROPOSALS + 1)],
            }
            answer["metrics"] = {"speculative_decoding": own}
        return answer


@contextmanager
def running(engine: Engine) -> Iterator[str]:
    """Serves ``engine`` on a free port of this machine, the same one every time; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.give(engine.get(self.path))

        def do_POST(self) -> None:
            self.give(engine.post(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def give(self, answer: Any) -> None:
            drip = 0.0
            if isinstance(answer, tuple) and answer[0] in ("moved", "large"):
                self.special(*answer)
                return
            if isinstance(answer, tuple):
                kind, seconds, answer = answer
                time.sleep(seconds if kind == "slow" else 0.0)
                drip = seconds if kind == "drip" else 0.0
            if answer == "reset":  # the connection is cut in the middle of an answer
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            status = answer if isinstance(answer, int) else 404 if answer is None else 200
            if status != 200:
                answer = {"error": {"message": f"no such thing ({status})"}}
            text = answer if isinstance(answer, str) else json.dumps(answer)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                for part in text.encode() if drip else ():
                    self.wfile.write(bytes([part]))
                    time.sleep(drip)
                self.wfile.write(b"" if drip else text.encode())
            except OSError:
                pass  # it was not waited for

        def special(self, kind: str, value: Any) -> None:
            """A redirection to the address ``value``, or an answer of ``value`` bytes."""
            self.send_response(307 if kind == "moved" else 200)
            if kind == "moved":
                self.send_header("Location", value)
            self.send_header("Content-Length", "0" if kind == "moved" else str(value))
            self.end_headers()
            try:
                for _ in range(0 if kind == "moved" else value // 2**20):
                    self.wfile.write(b" " * 2**20)
            except OSError:
                pass  # it was not read to its end

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", engine.port), Handler)
    engine.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{engine.port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(folder: Path, engine: Engine, *words: str, check: bool = True, on: str | None = None) -> Done:
    """The command against ``engine``, T=0 unless told otherwise, one retry."""
    backend = "sglang" if isinstance(engine, FakeSGLang) else "vllm"
    temperatures = [] if any("temperatures" in w for w in words) else ["evaluation.temperatures=[0.0]"]
    with running(engine) as url:
        return specauf(
            folder,
            "eval",
            "--backend",
            backend,
            "--base-url",
            on or url,
            "--benchmarks",
            CHOSEN,
            "--retries",
            "1",
            *SETTINGS,
            "target.path=model",
            *temperatures,
            *words,
            check=check,
        )


def record(folder: Path) -> dict[str, Any]:
    (path,) = (p for p in folder.glob("runs/servers/*/*.json"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def lines(folder: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in folder.glob("runs/servers/*/answers.jsonl"))


def traces(known: Known, temperature: float, name: str) -> list[Trace]:
    return [trace(t) for t in known[temperature][name]]


def printed(text: str, title: str, temperature: float) -> float:
    found = re.search(rf"{re.escape(title)} +T={temperature:g} +tau +([\d.]+)", text)
    assert found, text
    return float(found[1])
