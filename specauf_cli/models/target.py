"""The frozen target: a Hugging Face causal LM that gives features, embeddings, logits and verification passes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from specauf_cli.data.chat import Chat
from specauf_cli.records import digest, read_json
from specauf_cli.schema import InputError
from specauf_cli.settings import BackboneConfig, PretrainConfig, TargetConfig


class _AllTapped(Exception):
    """Ends a target pass early: every tapped layer has run."""


class Target:
    """A frozen causal LM with its chat format.

    ``taps`` are decoder layers counted from 0; the feature of a token is the concatenation of their outputs.
    """

    def __init__(self, model: Any, chat: Chat, config: TargetConfig, fingerprint: str) -> None:
        """``fingerprint`` names the weights: a commit hash or a content hash; it ties drafters to their target."""
        check_cache(model.config)
        self.model: Any = model.eval().requires_grad_(False)
        self.chat, self.config, self.fingerprint = chat, config, fingerprint
        self.taps = check_taps(config.taps, model.config.num_hidden_layers)
        self.hidden_size: int = model.config.hidden_size
        self.context_length: int = model.config.max_position_embeddings
        self._head: nn.Linear = model.get_output_embeddings()
        self._embedding: nn.Embedding = model.get_input_embeddings()
        if not 0 <= chat.mask_id < self._embedding.num_embeddings:
            raise InputError(
                f"mask token {config.mask_token!r} has id {chat.mask_id}, outside the {self._embedding.num_embeddings} "
                f"embedding rows of target {config.name}"
            )
        if not bool(self._embedding.weight[chat.mask_id].any()):
            raise InputError(
                f"the embedding row of mask token {config.mask_token!r} (id {chat.mask_id}) of target {config.name} is all "
                "zero; choose a token with a trained or initialised row (target.mask_token=...)"
            )

    @property
    def device(self) -> torch.device:
        """Where the embedding lives; inputs go there."""
        return self._embedding.weight.device

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The frozen input embedding."""
        return self._embedding(tokens)  # type: ignore[no-any-return]

    def head(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """The frozen output head, cut to the tokenizer's length: padded vocabulary rows are never drafted nor emitted."""
        return self._head(hidden)[..., : self.chat.vocab]  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T F"]:
        """Tapped hidden states of right-padded sequences, F = taps * D. Padding is causal, so it changes nothing before it."""
        with self._tapped(stop_after_last=True) as tapped, suppress(_AllTapped):
            self.model.model(input_ids=tokens, use_cache=False)
        return torch.cat(tapped, dim=-1)

    @torch.no_grad()
    def greedy_labels(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Per position, the token the target itself would have put there given the data before it (its argmax)."""
        hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
        return torch.cat([tokens[:, :1], self.head(hidden[:, :-1]).argmax(dim=-1)], dim=1)

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        cache: DynamicCache,
        *,
        attention_mask: Int[Tensor, "B S"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        last_only: bool = False,
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T F"]]:
        """One pass over new tokens on top of ``cache`` (extended in place): logits and tapped features of each."""
        with self._tapped() as tapped:
            out = self.model.model(
                input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
                attention_mask=attention_mask,
                position_ids=position_ids,
            )
        hidden = out.last_hidden_state[:, -1:] if last_only else out.last_hidden_state
        return self.head(hidden), torch.cat(tapped, dim=-1)

    def new_cache(self) -> DynamicCache:
        """An empty KV cache that can be cropped after a rejected draft."""
        return DynamicCache(config=self.model.config)

    @contextmanager
    def _tapped(self, *, stop_after_last: bool = False) -> Iterator[list[Tensor]]:
        """Collects the outputs of the tapped decoder layers during one forward pass, in the order of ``taps``.

        ``stop_after_last`` leaves the pass by ``_AllTapped`` behind the last tapped layer: nothing above it is needed.
        """
        found: dict[int, Tensor] = {}
        result: list[Tensor] = []

        def keep(index: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[index] = output[0] if isinstance(output, tuple) else output
                if stop_after_last and index == self.taps[-1]:
                    result.extend(found[i] for i in self.taps)
                    raise _AllTapped

            return hook

        handles = [self.model.model.layers[i].register_forward_hook(keep(i)) for i in self.taps]
        try:
            yield result
            if not stop_after_last:
                result.extend(found[i] for i in self.taps)
        finally:
            for handle in handles:
                handle.remove()

    def draft_config(self, backbone: BackboneConfig) -> Qwen3Config:
        """Sizes of a draft layer: the target's own, as the public DFlash recipe does, with ``backbone.layers`` layers."""
        source = self.model.config
        head_dim = getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads
        return Qwen3Config(
            vocab_size=source.vocab_size,
            hidden_size=source.hidden_size,
            intermediate_size=source.intermediate_size,
            num_hidden_layers=backbone.layers,
            num_attention_heads=source.num_attention_heads,
            num_key_value_heads=source.num_key_value_heads,
            head_dim=head_dim,
            rms_norm_eps=source.rms_norm_eps,
            max_position_embeddings=source.max_position_embeddings,
            rope_parameters=dict(source.rope_parameters),
            tie_word_embeddings=False,
        )


def check_taps(taps: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The tapped layers, ascending; InputError for an index out of range, repeated, or the last layer.

    The last layer is refused because Hugging Face models report its output after the final norm, so the same index
    would mean different features in different tools.
    """
    valid = f"valid are distinct layers 0..{layers - 2} of a target with {layers} layers"
    if not taps:
        raise InputError(f"target.taps is empty; {valid}")
    for tap in taps:
        if tap == layers - 1:
            raise InputError(f"target.taps={list(taps)} taps the last layer ({tap}); {valid}")
        if not 0 <= tap < layers:
            raise InputError(f"target.taps={list(taps)}: layer {tap} is out of range; {valid}")
    if len(set(taps)) != len(taps):
        raise InputError(f"target.taps={list(taps)} names a layer twice; {valid}")
    return tuple(sorted(taps))


def check_cache(config: Any) -> None:
    """InputError for a target whose cache cannot be rolled back after a rejected draft.

    Recurrent (linear attention, state space) layers fold tokens into one state, and a sliding window has already dropped
    what a shorter sequence would still see; neither live decoding nor replay of it would be lossless.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    # Some say it by another key (Mistral's sliding_window): the cache that would be built tells.
    kinds |= {type(x).__name__ for x in DynamicCache(config=config).layers} - {"DynamicLayer"} if not kinds else set()
    if kinds or config.model_type in ("mamba", "mamba2", "rwkv", "falcon_mamba", "recurrent_gemma"):
        raise InputError(
            f"target of type {config.model_type!r} has {', '.join(sorted(kinds)) or 'recurrent'} layers, whose cache cannot be "
            "rolled back after a rejected draft; choose a target with full attention in every layer"
        )


def create(config: PretrainConfig, chat: Chat) -> Qwen3ForCausalLM:
    """A Qwen3 causal LM with random weights (seeded), embeddings tied, sized for ``chat``'s vocabulary."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=chat.vocab,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=chat.eos_id,
            pad_token_id=chat.pad_id,
        )
    )


logging.disable_progress_bar()


def load(config: TargetConfig, *, device: str, dtype: torch.dtype = torch.float32) -> Target:
    """The target at ``config.path`` (hub id or folder), frozen. Only safetensors weights are read.

    Errors: InputError when nothing can be loaded from there.
    """
    assert config.path is not None, "a target that is trained here has been given its folder by the caller"
    try:
        chat = Chat.load(config)
        model = AutoModelForCausalLM.from_pretrained(
            config.path,
            revision=config.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
        )
    except InputError:
        raise
    except Exception as error:  # whatever a foreign folder makes transformers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"target {config.path!r} cannot be loaded: {reason}") from error
    commit = getattr(model.config, "_commit_hash", None)
    if commit is None and Path(config.path).is_dir():
        commit = content_fingerprint(Path(config.path))
    return Target(model.to(device), chat, config, commit or f"{config.path}@{config.revision}")


def content_fingerprint(folder: Path) -> str:
    """SHA-256 (16 hex digits) over the weights, the tokenizer, the template and the sizes of a local target folder."""
    total = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        if not isinstance(values, dict):
            raise InputError(f"{folder / name} is damaged")
        total.update(
            digest({k: v for k, v in values.items() if k not in ("transformers_version", "_name_or_path")}).encode()
        )
    if (folder / "chat_template.jinja").is_file():
        total.update((folder / "chat_template.jinja").read_bytes())
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("tokenizer.json")):
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                total.update(block)
    return total.hexdigest()[:16]
