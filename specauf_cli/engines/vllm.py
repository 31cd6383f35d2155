"""vLLM's OpenAI-compatible completions, with its own fields: POST /v1/completions with the prompt as token ids.

An answer has ``metrics.speculative_decoding`` where the server was started with ``--per-request-spec-decode-metrics``
(vLLM#48915), else only the server's Prometheus counters are available, which are shared by all requests.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specauf_cli.engines.answers import Answer
from specauf_cli.engines.client import Client, Refused
from specauf_cli.engines.replies import agrees, as_object, count, integer, text, whole_numbers
from specauf_cli.engines.served import START, Served, dtype_name, metrics, public_flags
from specauf_cli.errors import InputError

EXACT = ("standard", "strict")
"""vLLM's names for the verification that accepts a draft token with its target probability, newest first."""

NGRAM = "ngram"
"""vLLM's name for prompt lookup."""

COUNTS_OTHERWISE = {
    "synthetic": "accepts tokens the target would not emit",
    "typical": "accepts tokens the target would not emit",
    "block": "verifies blocks as a whole and so accepts more tokens of the same drafter",
}

RECORDED = {
    "model_config": ("model", "revision", "dtype", "quantization", "max_model_len"),
    "cache_config": ("cache_dtype", "enable_prefix_caching"),
    "parallel_config": ("tensor_parallel_size", "data_parallel_size"),
    "scheduler_config": ("max_num_seqs",),
}
"""Settings of a server in developer mode that a record keeps."""


@dataclass(frozen=True)
class Counters:
    """A server's running totals (``/metrics``): drafts, draft and accepted tokens, accepted per slot, finished and open
    requests."""

    drafts: int
    proposed: int
    accepted: int
    per_slot: tuple[int, ...]
    finished: int
    running: int


@dataclass(frozen=True)
class OwnCounts:
    """Rounds and accepted draft tokens of one answer, by accepted count, and round by round
    (``--per-request-spec-decode-metrics detailed``)."""

    rounds: int | None
    accepted: int | None
    histogram: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None


class VLLM:
    """One vLLM server. ``counts`` is ``request``, or ``counters`` if only the server's running totals are available.

    Each method raises InputError for impossible or missing values.
    """

    name = "vllm"

    def __init__(
        self, client: Client, stop_ids: Sequence[int], served_name: str | None = None, *, plain: bool = False
    ) -> None:
        """``served_name``: which of the models it lists is meant (default: the first). ``plain``: it must decode
        without a drafter."""
        self.client, self.stop_ids, self.counts, self.plain = client, sorted(stop_ids), "request", plain
        self.model = served_name or ""

    def served(self) -> Served:
        """From /v1/models and /version; its settings only where the developer's /server_info is open."""
        card = self._model_card()
        self.model = card["id"]
        try:
            version = as_object(self.client.first("/version"), "vLLM", self.client).get("version")
        except Refused:
            version = None
        flags = self._flags()
        speculative = flags.get("speculative_config") or {}
        self._check_decoding(speculative)
        proposals = speculative.get("num_speculative_tokens")
        if not flags:  # its counters have one number per draft token, in developer mode or not
            proposals = len(self._totals()[1]) or None
        if self.plain and (speculative or proposals):
            raise self._drafts(text(speculative.get("model")))
        return Served(
            backend=self.name,
            version=text(version),
            name=self.model,
            names=tuple(dict.fromkeys(str(n) for n in (card["id"], card.get("root")) if n)),
            drafter=text(speculative.get("model")),
            algorithm=text(speculative.get("method")),
            proposals=integer(proposals),
            context=integer(card.get("max_model_len")),
            dtype=dtype_name(flags.get("model_config", {}).get("dtype")),
            verification=text(speculative.get("rejection_sample_method")),
            flags=flags,
        )

    def _model_card(self) -> dict[str, Any]:
        """The model that is meant, as /v1/models lists it."""
        listed = as_object(self.client.first("/v1/models"), "vLLM", self.client).get("data")
        models = listed if isinstance(listed, list) else []
        cards = [c for c in models if isinstance(c, dict) and isinstance(c.get("id"), str)]
        if not cards:
            raise InputError(f"{self.client.url}/v1/models lists no model; is it a vLLM server?")
        return next((c for c in cards if self.model in (c["id"], c.get("root"))), cards[0])

    def _flags(self) -> dict[str, Any]:
        """The few settings that matter of a server in developer mode; empty for any other."""
        try:
            info = as_object(self.client.first("/server_info?config_format=json"), "vLLM", self.client)
        except Refused:
            return {}
        config = info.get("vllm_config")
        if not isinstance(config, dict):
            return {}
        sections = {s: config[s] for s in RECORDED if isinstance(config.get(s), dict)}
        recorded = {s: {k: v for k, v in values.items() if k in RECORDED[s]} for s, values in sections.items()}
        speculative = config.get("speculative_config")
        if not isinstance(speculative, dict):
            if self.plain:
                return {**recorded, "speculative_config": {}}
            raise InputError(
                f"{self.client.url} decodes without a drafter (no speculative_config), so there is no tau; {START}"
            )
        if speculative.get("num_speculative_tokens_per_batch_size"):
            raise InputError(
                f"{self.client.url} drafts more or fewer tokens depending on its load "
                "(num_speculative_tokens_per_batch_size): restart it without"
            )
        return {**recorded, "speculative_config": public_flags(speculative)}

    def _check_decoding(self, speculative: dict[str, Any]) -> None:
        """InputError for sampled drafts, or a verification that accepts other tokens than the standard one."""
        method = speculative.get("draft_sample_method")
        if method not in (None, "greedy"):
            raise InputError(
                f"{self.client.url} samples its drafts (draft_sample_method={method}); here drafts are greedy: restart "
                "it without"
            )
        verification = text(speculative.get("rejection_sample_method"))
        if verification is not None and verification not in EXACT:
            rule = COUNTS_OTHERWISE.get(verification, "accepts drafts by a rule that is unknown here")
            raise InputError(
                f"{self.client.url} {rule} (rejection_sample_method={verification}); valid: {', '.join(EXACT)}; "
                "restart it without"
            )

    def probe(self, prompt: Sequence[int]) -> None:
        """Whether answers carry their own counts; else the counters must be there."""
        self.counts = "request"
        answer = self.ask(prompt, temperature=0.0, seed=0, max_new_tokens=8)
        if self.plain and answer.rounds:
            raise self._drafts(None)
        if answer.rounds is None:
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
        reply = as_object(self.client.post("/v1/completions", body), "vLLM", self.client)
        choices, usage = reply.get("choices"), reply.get("usage")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._impossible("has no single choice")
        if not isinstance(usage, dict):
            raise self._impossible("has no usage")
        completion = count(usage, "completion_tokens", self._impossible)
        if not 1 <= completion <= max_new_tokens:
            raise self._impossible(f"has completion_tokens={completion}, valid: 1..{max_new_tokens}")
        if usage.get("prompt_tokens", len(prompt)) != len(prompt):
            raise self._impossible(f"counts {usage['prompt_tokens']} prompt tokens, {len(prompt)} were sent")
        words, tokens = choices[0].get("text"), whole_numbers(choices[0].get("token_ids"))
        if tokens is None and not isinstance(words, str):
            raise self._impossible("has neither token_ids nor text")
        own = self._own_counts(reply.get("metrics"), completion)
        return Answer(
            tokens=tokens,
            text=words or "",
            completion=completion,
            ended=choices[0].get("finish_reason") == "stop",
            rounds=own.rounds,
            accepted=own.accepted,
            histogram=own.histogram,
            steps=own.steps,
        )

    def _own_counts(self, own: object, completion: int) -> OwnCounts:
        """The counts of an answer's own ``metrics``; None where it has none."""
        speculative = own.get("speculative_decoding") if isinstance(own, dict) else None
        if not isinstance(speculative, dict):
            no_round = self.plain or (self.counts == "request" and completion == 1)
            return OwnCounts(0, 0) if no_round else OwnCounts(None, None)
        rounds = count(speculative, "num_spec_steps", self._impossible)
        accepted = drafted = count(speculative, "num_accepted_draft_tokens", self._impossible)
        if "num_draft_tokens" in speculative:
            drafted = count(speculative, "num_draft_tokens", self._impossible)
        if rounds > completion or accepted > drafted:  # steps without a draft are not counted, so no lower bound
            raise self._impossible(
                f"counts {rounds} steps with {accepted} of {drafted} draft tokens accepted for its {completion} tokens"
            )
        length = speculative.get("mean_acceptance_length")
        if rounds and length is not None and not agrees(length, 1 + accepted / rounds):
            raise self._impossible(f"has mean_acceptance_length={length}, but 1 + {accepted} / {rounds}")
        steps = whole_numbers(speculative.get("per_step_accepted"))
        if steps is not None and (len(steps) != rounds or sum(steps) != accepted):
            raise self._impossible(
                f"counts {rounds} steps with {accepted} draft tokens accepted, but per step {list(steps)}"
            )
        return OwnCounts(rounds, accepted, whole_numbers(speculative.get("acceptance_histogram")), steps)

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
        return Counters(
            drafts=round(totals["spec_decode_num_drafts"]),
            proposed=round(totals.get("spec_decode_num_draft_tokens", 0.0)),
            accepted=round(totals["spec_decode_num_accepted_tokens"]),
            per_slot=tuple(round(slots[k]) for k in sorted(slots)),
            finished=round(totals["request_success"]),
            running=round(totals.get("num_requests_running", 0.0) + totals.get("num_requests_waiting", 0.0)),
        )

    def _totals(self) -> tuple[dict[str, float], dict[int, float]]:
        """The counters of /metrics by name, and accepted tokens by slot; empty where there are none."""
        totals: dict[str, float] = {}
        slots: dict[int, float] = {}
        for line in metrics(self.client).splitlines():
            sample = re.fullmatch(r"vllm:(\w+?)(?:_total)?(?:\{(.*)\})?\s+([-+0-9.eE]+|NaN)(?:\s+\d+)?", line.strip())
            if sample is None or sample[3] == "NaN":
                continue
            name, labels, value = sample[1], sample[2] or "", float(sample[3])
            if name == "spec_decode_num_accepted_tokens_per_pos":
                position = re.search(r'position="(\d+)"', labels)
                slot = int(position[1]) if position else 0
                slots[slot] = slots.get(slot, 0.0) + value
            totals[name] = totals.get(name, 0.0) + value
        return totals, slots

    def _drafts(self, drafter: str | None) -> InputError:
        return InputError(
            f"{self.client.url} decodes with a drafter ({drafter or 'unnamed'}); --no-drafter is for a server without "
            "one: leave it out, or restart the server without --speculative-config"
        )

    def _impossible(self, reason: str) -> InputError:
        return InputError(f"{self.client.url}: an answer of /v1/completions {reason}")
