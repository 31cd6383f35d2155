"""Two serving engines as they speak: what a server says of itself, and one request with the acceptance it reports.

SGLang: POST /generate with ``input_ids``; every answer's ``meta_info`` counts its own rounds. vLLM: POST
/v1/completions with the prompt as token ids; an answer has ``metrics.speculative_decoding`` where the server was
started with ``--per-request-spec-decode-metrics`` (vLLM#48915), else only the server's Prometheus counters know, which
are shared by all requests. Nothing here knows prompts or files; ``server`` drives it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specauf_cli.engines.client import Client, Refused, Unanswered
from specauf_cli.errors import InputError

BACKENDS = ("sglang", "vllm")
START = "start it as `specauf serve-command --run RUN` prints"
PRIVATE = re.compile(
    r"key|secret|password|host|addr|ssl|url|log|(^|_)ports?$|internal_states|cert|endpoint|(^|_)env|_dir$|storage"
)
"""Flags that never enter a record: they may name a machine or open a door."""


@dataclass(frozen=True)
class Served:
    """What a server says of itself. None: it does not say. ``proposals`` draft tokens a round, ``context`` tokens a
    request.

    ``names`` are the names it serves the target by (``name`` is what requests must say), ``dtype`` is that of the
    target's weights (``float32``, ``bfloat16``, ...), ``verification`` the engine's name of how drafts are accepted,
    ``flags`` its settings.
    """

    backend: str
    version: str | None
    name: str
    names: tuple[str, ...]
    drafter: str | None
    algorithm: str | None
    proposals: int | None
    context: int | None
    dtype: str | None
    verification: str | None
    flags: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One answered request. ``completion`` tokens, prefill token included; ``rounds`` verifications, None where
    unreported.

    ``accepted`` draft tokens and the ``histogram`` of rounds by accepted count are None where the server gives none.
    """

    tokens: tuple[int, ...] | None
    text: str
    completion: int
    ended: bool
    rounds: int | None
    accepted: int | None
    histogram: tuple[int, ...] | None


@dataclass(frozen=True)
class Counters:
    """A server's running totals (vLLM's ``/metrics``): drafts, draft and accepted tokens, accepted per slot, finished
    and open requests."""

    drafts: int
    proposed: int
    accepted: int
    per_slot: tuple[int, ...]
    finished: int
    running: int


class SGLang:
    """SGLang's native API."""

    name = "sglang"
    counts = "request"

    def __init__(self, client: Client, stop_ids: Sequence[int]) -> None:
        self.client, self.stop_ids = client, sorted(stop_ids)
        self._proposals: int | None = None

    def served(self) -> Served:
        """From /server_info and /model_info (older: /get_server_info, /get_model_info)."""
        flags = _object(self.client.first("/server_info", "/get_server_info"), "SGLang", self.client)
        model = _object(self.client.first("/model_info", "/get_model_info"), "SGLang", self.client)
        names = [n for n in (model.get("model_path"), flags.get("model_path"), flags.get("served_model_name")) if n]
        if not names:
            raise InputError(f"{self.client.url} names no model_path; is it an SGLang server?")
        algorithm, drafted = flags.get("speculative_algorithm"), flags.get("speculative_num_draft_tokens")
        if not algorithm:
            raise InputError(
                f"{self.client.url} decodes without a drafter (its speculative_algorithm is not set), so there is no "
                f"tau; {START}"
            )
        if flags.get("speculative_use_rejection_sampling"):
            raise InputError(
                f"{self.client.url} samples its drafts (speculative_use_rejection_sampling); here drafts are greedy: "
                "restart it without"
            )
        for name in ("speculative_accept_threshold_single", "speculative_accept_threshold_acc"):
            if flags.get(name) not in (None, 1, 1.0):
                raise InputError(
                    f"{self.client.url} accepts tokens the target would not emit ({name}={flags[name]}); restart it "
                    "without"
                )
        self._proposals = drafted - 1 if type(drafted) is int and drafted > 1 else None
        context = flags.get("context_length") or flags.get("max_req_input_len")
        return Served(
            self.name,
            _text(flags.get("version")),
            str(names[0]),
            tuple(dict.fromkeys(map(str, names))),
            _text(flags.get("speculative_draft_model_path")),
            str(algorithm),
            self._proposals,
            context if type(context) is int else None,
            _dtype(flags.get("dtype")),
            "target_only",
            _public({**flags, **model}),
        )

    def probe(self, prompt: Sequence[int]) -> None:
        """Eight tokens: fewer may come from the prompt's own pass alone."""
        self.ask(prompt, temperature=0.0, seed=0, max_new_tokens=8)

    def ask(self, prompt: Sequence[int], *, temperature: float, seed: int, max_new_tokens: int) -> Answer:
        """One request to /generate. SGLang draws by its own seed, ``seed`` is not sent."""
        body = {
            "input_ids": list(prompt),
            "sampling_params": {
                "temperature": temperature,
                "max_new_tokens": max_new_tokens,
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "stop_token_ids": self.stop_ids,
                "skip_special_tokens": True,
            },
        }
        raw = _object(self.client.post("/generate", body), "SGLang", self.client)
        meta = raw.get("meta_info")
        if not isinstance(meta, dict):
            raise self._wrong("has no meta_info")
        completion = _count(meta, "completion_tokens", self._wrong)
        reason = meta.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, dict) else reason
        if kind == "abort":
            raise self._wrong(f"was aborted: {str(reason)[:200]}")
        if completion < 1 or completion > max_new_tokens + (
            self._proposals or 0
        ):  # some versions do not cut the last round
            raise self._wrong(f"has completion_tokens={completion}, asked were 1..{max_new_tokens}")
        tokens = _ids(raw.get("output_ids"))
        if "spec_verify_ct" not in meta and completion > 1:
            raise self._wrong(
                f"has no meta_info.spec_verify_ct: the server decoded it without a drafter, so there is no tau; {START}"
            )
        rounds = _count(meta, "spec_verify_ct", self._wrong) if "spec_verify_ct" in meta else 0
        if rounds < 1 < completion:
            raise self._wrong(f"has spec_verify_ct={rounds} for {completion} completion tokens")
        if rounds > completion:
            raise self._wrong(
                f"has spec_verify_ct={rounds}, more rounds than its {completion} tokens; a round emits at least one"
            )
        if self._proposals is not None and completion - 1 > rounds * (self._proposals + 1):
            raise self._wrong(
                f"has {completion} tokens in {rounds} rounds, at most {self._proposals + 1} tokens each are possible"
            )
        said = meta.get("spec_accept_length")
        if rounds and said is not None and not _close(said, completion / rounds):
            raise self._wrong(f"has spec_accept_length={said}, but {completion} tokens / {rounds} rounds")
        accepted = next((meta[k] for k in ACCEPTED if type(meta.get(k)) is int), None)
        histogram = _ids(meta.get("spec_accept_histogram", meta.get("spec_correct_drafts_histogram")))
        text = raw.get("text")
        if tokens is None and not isinstance(text, str):
            raise self._wrong("has neither output_ids nor text")
        return Answer(
            tokens, text if isinstance(text, str) else "", completion, kind == "stop", rounds, accepted, histogram
        )

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.client.url}: an answer of /generate {what}")


ACCEPTED = ("spec_accept_token_num", "spec_accepted_drafts", "spec_num_correct_drafts")
"""What SGLang has called the accepted draft tokens of a request, oldest first."""


class VLLM:
    """vLLM's OpenAI-compatible completions, with its own fields."""

    name = "vllm"

    def __init__(self, client: Client, stop_ids: Sequence[int], served_name: str | None = None) -> None:
        """``served_name``: which of the models it lists is meant (default: the first)."""
        self.client, self.stop_ids, self.counts = client, sorted(stop_ids), "request"
        self.model = served_name or ""

    def served(self) -> Served:
        """From /v1/models and /version; its settings only where the developer's /server_info is open."""
        listed = _object(self.client.first("/v1/models"), "vLLM", self.client).get("data")
        cards = (
            [c for c in listed if isinstance(c, dict) and isinstance(c.get("id"), str)]
            if isinstance(listed, list)
            else []
        )
        if not cards:
            raise InputError(f"{self.client.url}/v1/models lists no model; is it a vLLM server?")
        card = next((c for c in cards if self.model in (c["id"], c.get("root"))), cards[0])
        self.model = card["id"]
        try:
            version = _object(self.client.first("/version"), "vLLM", self.client).get("version")
        except Refused:
            version = None
        flags = self._flags()
        spec = flags.get("speculative_config") or {}
        if spec.get("draft_sample_method") not in (None, "greedy"):
            raise InputError(
                f"{self.client.url} samples its drafts (draft_sample_method={spec['draft_sample_method']}); here "
                "drafts are greedy: restart it without"
            )
        verification = _text(spec.get("rejection_sample_method"))
        if verification is not None and verification not in EXACT:
            what = COUNTS_OTHERWISE.get(verification, "accepts drafts by a rule that is unknown here")
            raise InputError(
                f"{self.client.url} {what} "
                f"(rejection_sample_method={verification}); valid: {', '.join(EXACT)}; restart it without"
            )
        proposals, context = spec.get("num_speculative_tokens"), card.get("max_model_len")
        if not flags:  # its counters have one number per draft token, in developer mode or not
            proposals = len(self._totals()[1]) or None
        return Served(
            self.name,
            _text(version),
            self.model,
            tuple(dict.fromkeys(str(n) for n in (card["id"], card.get("root")) if n)),
            _text(spec.get("model")),
            _text(spec.get("method")),
            proposals if type(proposals) is int else None,
            context if type(context) is int else None,
            _dtype(flags.get("model_config", {}).get("dtype")),
            verification,
            flags,
        )

    def _flags(self) -> dict[str, Any]:
        """The few settings that matter of a server in developer mode; empty for any other."""
        try:
            config = _object(self.client.first("/server_info?config_format=json"), "vLLM", self.client).get(
                "vllm_config"
            )
        except Refused:
            return {}
        kept = {
            "model_config": ("model", "revision", "dtype", "quantization", "max_model_len"),
            "cache_config": ("cache_dtype", "enable_prefix_caching"),
            "parallel_config": ("tensor_parallel_size", "data_parallel_size"),
            "scheduler_config": ("max_num_seqs",),
        }
        if not isinstance(config, dict):
            return {}
        parts = {s: config[s] for s in kept if isinstance(config.get(s), dict)}
        found = {s: {k: v for k, v in part.items() if k in kept[s]} for s, part in parts.items()}
        spec = config.get("speculative_config")
        if not isinstance(spec, dict):
            raise InputError(
                f"{self.client.url} decodes without a drafter (no speculative_config), so there is no tau; {START}"
            )
        if spec.get("num_speculative_tokens_per_batch_size"):
            raise InputError(
                f"{self.client.url} drafts more or fewer tokens as it is busy (num_speculative_tokens_per_batch_size): "
                "restart it without"
            )
        return {**found, "speculative_config": _public(spec)}

    def probe(self, prompt: Sequence[int]) -> None:
        """Whether answers carry their own counts; else the counters must be there."""
        self.counts = "request"
        if self.ask(prompt, temperature=0.0, seed=0, max_new_tokens=8).rounds is None:
            self.counts = "counters"
            self.counters()

    def ask(self, prompt: Sequence[int], *, temperature: float, seed: int, max_new_tokens: int) -> Answer:
        """One request to /v1/completions; a sampled one gets ``seed``."""
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": self.stop_ids,
            "return_token_ids": True,
            **({"seed": seed} if temperature > 0 else {}),
        }
        raw = _object(self.client.post("/v1/completions", body), "vLLM", self.client)
        choices, usage = raw.get("choices"), raw.get("usage")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._wrong("has no single choice")
        if not isinstance(usage, dict):
            raise self._wrong("has no usage")
        completion = _count(usage, "completion_tokens", self._wrong)
        if completion < 1 or completion > max_new_tokens:
            raise self._wrong(f"has completion_tokens={completion}, asked were 1..{max_new_tokens}")
        if usage.get("prompt_tokens", len(prompt)) != len(prompt):
            raise self._wrong(f"counts {usage['prompt_tokens']} prompt tokens, sent were {len(prompt)}")
        text, tokens = choices[0].get("text"), _ids(choices[0].get("token_ids"))
        if tokens is None and not isinstance(text, str):
            raise self._wrong("has neither token_ids nor text")
        own = raw.get("metrics")
        spec = own.get("speculative_decoding") if isinstance(own, dict) else None
        rounds, accepted, histogram = None, None, None
        if isinstance(spec, dict):
            rounds, accepted = (_count(spec, k, self._wrong) for k in ("num_spec_steps", "num_accepted_draft_tokens"))
            histogram = _ids(spec.get("acceptance_histogram"))
            drafted = _count(spec, "num_draft_tokens", self._wrong) if "num_draft_tokens" in spec else accepted
            if rounds > completion or accepted > drafted:  # steps without a draft are not counted, so no lower bound
                raise self._wrong(
                    f"counts {rounds} steps with {accepted} of {drafted} draft tokens accepted for its {completion} "
                    "tokens"
                )
            said = spec.get("mean_acceptance_length")
            if rounds and said is not None and not _close(said, 1 + accepted / rounds):
                raise self._wrong(f"has mean_acceptance_length={said}, but 1 + {accepted} / {rounds}")
        elif self.counts == "request" and completion == 1:
            rounds, accepted = 0, 0
        return Answer(
            tokens, text or "", completion, choices[0].get("finish_reason") == "stop", rounds, accepted, histogram
        )

    def counters(self) -> Counters:
        """The totals of /metrics, all engines together. Errors: InputError when speculative decoding counts nothing
        there."""
        totals, slots = self._totals()
        if "spec_decode_num_drafts" not in totals or "spec_decode_num_accepted_tokens" not in totals:
            raise InputError(
                f"{self.client.url}: neither its answers nor its /metrics (vllm:spec_decode_num_drafts) count drafts, "
                f"so it decodes without a drafter or with --disable-log-stats, and there is no tau; {START}"
            )
        if "request_success" not in totals:
            raise InputError(
                f"{self.client.url}/metrics has no vllm:request_success, so foreign requests would go unseen"
            )
        names = (
            "spec_decode_num_drafts",
            "spec_decode_num_draft_tokens",
            "spec_decode_num_accepted_tokens",
            "request_success",
        )
        drafts, proposed, accepted, finished = (round(totals.get(n, 0.0)) for n in names)
        running = round(totals.get("num_requests_running", 0.0) + totals.get("num_requests_waiting", 0.0))
        return Counters(drafts, proposed, accepted, tuple(round(slots[k]) for k in sorted(slots)), finished, running)

    def _totals(self) -> tuple[dict[str, float], dict[int, float]]:
        """The counters of /metrics by name, and accepted tokens by slot; empty where there are none."""
        totals: dict[str, float] = {}
        slots: dict[int, float] = {}
        for line in _metrics(self.client).splitlines():
            found = re.fullmatch(r"vllm:(\w+?)(?:_total)?(?:\{(.*)\})?\s+([-+0-9.eE]+|NaN)(?:\s+\d+)?", line.strip())
            if found is None or found[3] == "NaN":
                continue
            name, labels, value = found[1], found[2] or "", float(found[3])
            if name == "spec_decode_num_accepted_tokens_per_pos":
                slot = re.search(r'position="(\d+)"', labels)
                slots[int(slot[1]) if slot else 0] = slots.get(int(slot[1]) if slot else 0, 0.0) + value
            totals[name] = totals.get(name, 0.0) + value
        return totals, slots

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.client.url}: an answer of /v1/completions {what}")


EXACT = ("standard", "strict")
"""What vLLM has called the verification that accepts a draft token with its target probability, newest first."""

COUNTS_OTHERWISE = {
    "synthetic": "accepts tokens the target would not emit",
    "typical": "accepts tokens the target would not emit",
    "block": "verifies blocks as a whole and so accepts more tokens of the same drafter",
}


Backend = SGLang | VLLM
"""``counts`` is ``request``, or ``counters`` where only the server's running totals know. ``served`` asks it who it is,
``probe`` how it counts, ``ask`` is one request; each raises InputError for what cannot be true or is not there."""


def started(client: Client) -> str | None:
    """When the process that answers was started, as its /metrics say; None where they do not."""
    found = re.findall(r"^process_start_time_seconds(?:\{.*\})?\s+(\S+)", _metrics(client), re.MULTILINE)
    return " ".join(found) or None


def _metrics(client: Client) -> str:
    """The server's Prometheus metrics, empty where it has none."""
    try:
        return client.text("/metrics")
    except Refused:
        return ""


def tokenized(client: Client, model: str, text: str) -> tuple[int, ...] | None:
    """``text`` as the server's own tokenizer cuts it, None where it has no /tokenize."""
    try:
        raw = client.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
    except (Refused, Unanswered):
        return None
    return _ids(raw.get("tokens")) if isinstance(raw, dict) else None


def _object(raw: Any, kind: str, client: Client) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InputError(f"{client.url} answers {json.dumps(raw)[:80]} where {kind} gives an object")
    return raw


def _count(values: Mapping[str, Any], key: str, wrong: Any) -> int:
    value = values.get(key)
    if type(value) is not int or value < 0:
        raise wrong(f"has {key}={value!r}, a count was expected" if key in values else f"has no {key}")
    return value


def _close(a: Any, b: float) -> bool:
    return type(a) in (int, float) and math.isclose(a, b, rel_tol=0.01, abs_tol=0.01)  # some versions round it


def _ids(value: Any) -> tuple[int, ...] | None:
    """A list of ids or counts as a tuple, None for anything else or an empty one."""
    whole = isinstance(value, list) and value and all(type(v) is int and 0 <= v < 2**31 for v in value)
    return tuple(value) if whole else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _dtype(value: Any) -> str | None:
    """An engine's name of a dtype, without what it is called in Python; None for ``auto``, which names none."""
    name = str(value or "auto").removeprefix("torch.")
    return {"auto": None, "float": "float32", "half": "float16"}.get(name, name)


def _public(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings that were set, without what names a machine."""
    plain = (str, int, float, bool)
    return {k: v for k, v in sorted(flags.items()) if isinstance(v, plain) and v != "" and not PRIVATE.search(k)}
