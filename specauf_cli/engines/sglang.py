"""SGLang's native API: POST /generate with ``input_ids``; every answer's ``meta_info`` counts its own rounds."""

from collections.abc import Sequence

from specauf_cli.engines.answers import Answer
from specauf_cli.engines.client import Client
from specauf_cli.engines.replies import agrees, as_object, count, integer, text, whole_numbers
from specauf_cli.engines.served import START, Served, dtype_name, public_flags
from specauf_cli.errors import InputError

ACCEPTED = ("spec_accept_token_num", "spec_accepted_drafts", "spec_num_correct_drafts")
"""SGLang's names for the accepted draft tokens of a request, oldest first."""

THRESHOLDS = ("speculative_accept_threshold_single", "speculative_accept_threshold_acc")
"""Settings that, below 1, accept tokens the target would not emit."""


class SGLang:
    """One SGLang server. Each method raises InputError for impossible or missing values."""

    name = "sglang"
    counts = "request"

    def __init__(self, client: Client, stop_ids: Sequence[int], *, plain: bool = False) -> None:
        """``plain``: it must decode without a drafter."""
        self.client, self.stop_ids, self.plain = client, sorted(stop_ids), plain
        self._proposals: int | None = None

    def served(self) -> Served:
        """From /server_info and /model_info (older: /get_server_info, /get_model_info)."""
        flags = as_object(self.client.first("/server_info", "/get_server_info"), "SGLang", self.client)
        model = as_object(self.client.first("/model_info", "/get_model_info"), "SGLang", self.client)
        names = [n for n in (model.get("model_path"), flags.get("model_path"), flags.get("served_model_name")) if n]
        if not names:
            raise InputError(f"{self.client.url} names no model_path; is it an SGLang server?")
        algorithm, draft_tokens = flags.get("speculative_algorithm"), integer(flags.get("speculative_num_draft_tokens"))
        if self.plain and algorithm:
            raise InputError(
                f"{self.client.url} decodes with a drafter ({algorithm}); --no-drafter is for a server without one: "
                "leave it out, or restart the server without --speculative-algorithm"
            )
        if not (algorithm or self.plain):
            raise InputError(
                f"{self.client.url} decodes without a drafter (its speculative_algorithm is not set), so there is no "
                f"tau; {START}"
            )
        if flags.get("speculative_use_rejection_sampling"):
            raise InputError(
                f"{self.client.url} samples its drafts (speculative_use_rejection_sampling); here drafts are greedy: "
                "restart it without"
            )
        for name in THRESHOLDS:
            if flags.get(name) not in (None, 1, 1.0):
                raise InputError(
                    f"{self.client.url} accepts tokens the target would not emit ({name}={flags[name]}); restart it "
                    "without"
                )
        # SGLang counts the anchor as a draft token.
        self._proposals = draft_tokens - 1 if draft_tokens is not None and draft_tokens > 1 else None
        return Served(
            backend=self.name,
            version=text(flags.get("version")),
            name=str(names[0]),
            names=tuple(dict.fromkeys(map(str, names))),
            drafter=text(flags.get("speculative_draft_model_path")),
            algorithm=text(algorithm),
            proposals=self._proposals,
            context=integer(flags.get("context_length") or flags.get("max_req_input_len")),
            dtype=dtype_name(flags.get("dtype")),
            verification="target_only",
            flags=public_flags({**flags, **model}),
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
        reply = as_object(self.client.post("/generate", body), "SGLang", self.client)
        meta = reply.get("meta_info")
        if not isinstance(meta, dict):
            raise self._impossible("has no meta_info")
        completion = count(meta, "completion_tokens", self._impossible)
        reason = meta.get("finish_reason")
        finish = reason.get("type") if isinstance(reason, dict) else reason
        if finish == "abort":
            raise self._impossible(f"was aborted: {str(reason)[:200]}")
        most = max_new_tokens + (self._proposals or 0)  # some versions do not cut the last round
        if not 1 <= completion <= most:
            raise self._impossible(f"has completion_tokens={completion}, valid: 1..{max_new_tokens}")
        if "spec_verify_ct" not in meta and completion > 1 and not self.plain:
            raise self._impossible(
                f"has no meta_info.spec_verify_ct: the server decoded it without a drafter, so there is no tau; {START}"
            )
        rounds = count(meta, "spec_verify_ct", self._impossible) if "spec_verify_ct" in meta else 0
        if not self.plain:
            self._check_rounds(rounds, completion, meta.get("spec_accept_length"))
        tokens, words = whole_numbers(reply.get("output_ids")), reply.get("text")
        if tokens is None and not isinstance(words, str):
            raise self._impossible("has neither output_ids nor text")
        return Answer(
            tokens=tokens,
            text=words if isinstance(words, str) else "",
            completion=completion,
            ended=finish == "stop",
            rounds=rounds,
            accepted=next((meta[k] for k in ACCEPTED if type(meta.get(k)) is int), None),
            histogram=whole_numbers(meta.get("spec_accept_histogram", meta.get("spec_correct_drafts_histogram"))),
        )

    def _check_rounds(self, rounds: int, completion: int, accept_length: object) -> None:
        """InputError for a number of rounds in which ``completion`` tokens cannot have been emitted."""
        if rounds < 1 < completion:
            raise self._impossible(f"has spec_verify_ct={rounds} for {completion} completion tokens")
        if rounds > completion:
            raise self._impossible(
                f"has spec_verify_ct={rounds}, more rounds than its {completion} tokens; a round emits at least one"
            )
        if self._proposals is not None and completion - 1 > rounds * (self._proposals + 1):
            raise self._impossible(
                f"has {completion} tokens in {rounds} rounds, at most {self._proposals + 1} tokens each are possible"
            )
        if rounds and accept_length is not None and not agrees(accept_length, completion / rounds):
            raise self._impossible(f"has spec_accept_length={accept_length}, but {completion} tokens / {rounds} rounds")

    def _impossible(self, reason: str) -> InputError:
        return InputError(f"{self.client.url}: an answer of /generate {reason}")
