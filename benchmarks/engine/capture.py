"""Captures what vLLM really answers, for tests/engines/test_recorded.py, which replays it through the client.

    python -m benchmarks.engine.capture          needs what `make engine` has made; two minutes

One server counts every request (``--per-request-spec-decode-metrics detailed``), one does not, one has no drafter. Kept
are the exchanges that the client makes, whole but for: folders, of which only the last part stays; /server_info, of
which the client's sections stay; /metrics, of which the client's lines stay.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.case import load_cases, train
from benchmarks.engine.serving import serve
from specauf_cli.config.compose import compose
from specauf_cli.config.schema import Config
from specauf_cli.data.chat import Chat
from specauf_cli.engines.client import Client
from specauf_cli.engines.served import tokenized
from specauf_cli.engines.vllm import RECORDED, VLLM
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.interchange.targets import target_path
from specauf_cli.store.files import write_json
from specauf_cli.types import Message

LINES = re.compile(r"(vllm:(spec_decode_|request_success|num_requests_)|process_start_time_seconds)")
"""What the lines of /metrics begin with that the client reads."""
TOKENS = 48
"""Of an answer at most: a few kilobytes in all."""
FOLDER = re.compile(r"/(?:[\w.-]+/)+([\w.-]+)")


class Recorder(Client):
    """A client that keeps every exchange: path, body and the raw answer."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=120, retries=0)
        self.exchanges: list[dict[str, Any]] = []

    def _answer(self, path: str, body: bytes | None, read: Callable[[bytes], Any]) -> Any:
        def keep(raw: bytes) -> Any:
            sent = json.loads(body) if body is not None else None
            again = any(e["path"] == path for e in self.exchanges)
            reply = reduced(path, raw.decode(), again=again)
            self.exchanges.append({"path": path, "body": without_folders(sent), "reply": reply})
            return read(raw)

        return super()._answer(path, body, keep)


def reduced(path: str, text: str, *, again: bool) -> Any:
    """What is kept of a reply: JSON, or the text of /metrics, ``again`` without the times at which counters began."""
    if path == "/metrics":
        lines = [line for line in text.splitlines() if LINES.match(line) and not (again and "_created{" in line)]
        return "\n".join(map(without_folders, lines))
    reply = json.loads(text)
    if path.startswith("/server_info"):
        config = reply["vllm_config"]
        speculative = config["speculative_config"]
        kept = {k: v for k, v in (speculative or {}).items() if not isinstance(v, dict | list)}
        sections = {s: {k: config[s][k] for k in keys} for s, keys in RECORDED.items()}
        reply = {"vllm_config": {**sections, "speculative_config": None if speculative is None else kept}}
    return without_folders(reply)


def without_folders(value: Any) -> Any:
    """``value`` with every absolute path in it reduced to its last part."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_folders(v) for v in value]
    return FOLDER.sub(r"\1", value) if isinstance(value, str) else value


def ask(client: Recorder, chat: Chat, texts: Sequence[str], *, drafts: bool) -> None:
    """What the client asks a server: what it is, its tokenizer, and each prompt at T = 0 and the first at T = 1."""
    backend = VLLM(client, sorted(chat.stop_ids), plain=not drafts)
    backend.served()
    tokenized(client, backend.model, texts[0])
    prompts = chat.tokens(list(texts))
    if drafts:
        backend.probe(prompts[0])
        if backend.counts == "counters":
            backend.counters()
    for prompt in prompts:
        backend.ask(prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)
        if drafts and backend.counts == "counters":
            backend.counters()
    backend.ask(prompts[0], temperature=1.0, seed=7, max_new_tokens=TOKENS)


def prompts_of(config: Config, chat: Chat) -> list[str]:
    """The first prompt of three benchmarks, as the target's template renders it."""
    first = [b.prompts[0].turns[0] for b in load_benchmarks(config)[:3]]
    return [chat.render([Message("user", turn)], generation=True) for turn in first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--work", type=Path, default=Path(".engine"))
    parser.add_argument("--out", type=Path, default=Path("tests/engines/recorded"))
    options = parser.parse_args()
    plain, drafting = load_cases(["plain", "auf-vllm"])
    ((_, run),) = train([drafting], options.runs).items()
    config = compose(["profile=laptop", f"target.path={target_path(run)}"])
    chat = Chat.load(config.target)
    texts = prompts_of(config, chat)
    servers = {
        "requests": (drafting, ["--per-request-spec-decode-metrics", "detailed"]),
        "counters": (drafting, ["--per-request-spec-decode-metrics", "none"]),
        "plain": (plain, []),
    }
    for name, (case, words) in servers.items():
        python = options.work / "venv" / "bin" / "python"
        with (
            serve(case, run, python=python, work=options.work, timeout=300, options=words) as server,
            Recorder(server.url) as client,
        ):
            ask(client, chat, texts, drafts=case.drafter is not None)
        write_json(options.out / f"vllm-0.32.0-{name}.json", client.exchanges)
        print(f"{name}: {len(client.exchanges)} exchanges")


if __name__ == "__main__":
    main()
