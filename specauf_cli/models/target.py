"""The frozen target: a Hugging Face causal LM that gives features, embeddings, logits and verification passes."""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, Mxfp4Config, Qwen3Config
from transformers.utils import CONFIG_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash

from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import BackboneConfig, PretrainConfig, TargetConfig
from specauf_cli.data.chat import Chat, free_tokens
from specauf_cli.errors import InputError, first_line
from specauf_cli.models import sizes, structure
from specauf_cli.runtime import sharding
from specauf_cli.runtime.products import prepare
from specauf_cli.store.files import digest, read_json


class _AllTapped(Exception):
    """Ends a target pass early: every tapped layer has run."""


def _keep(outputs: dict[int, Tensor], index: int, _layer: nn.Module, _inputs: Any, output: Any) -> None:
    """A forward hook that stores the output of the decoder layer ``index``."""
    outputs[index] = output[0] if isinstance(output, tuple) else output


def _stop(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
    """A forward hook that ends the pass."""
    raise _AllTapped


class Target:
    """A frozen causal LM with its chat format.

    ``taps`` are decoder layers counted from 0; the feature of a token is the concatenation of their outputs. With
    ``target.taps=last`` it is the last hidden state, after the final norm, and ``taps`` is the last layer.
    """

    def __init__(self, model: Any, chat: Chat, config: TargetConfig, fingerprint: str) -> None:
        """``fingerprint`` names the weights: a commit hash or a content hash; it ties drafters to their target."""
        structure.check_cache(model.config)
        structure.check_parts(model)
        if config.sizes is not None:
            sizes.check(config, sizes.of_model(model.config))
        text = structure.text_config(model.config)
        self.model: Any = model.eval().requires_grad_(False)
        self.depth: int = text.num_hidden_layers
        self.taps = taps_of(config.taps, self.depth)
        self.hidden_size: int = text.hidden_size
        self.context_length: int = text.max_position_embeddings
        self._decoder = structure.decoder(model)
        self._layers = structure.layers(model)
        self._after_head = structure.after_head(model.config)
        self._embedding: nn.Embedding = model.get_input_embeddings()
        self._embedding_factor = structure.embedding_factor(model.config)
        # A drafter uses the head in every step: if the target is on several devices, a copy is kept next to the
        # embedding.
        head = model.get_output_embeddings()
        self._weight: Tensor = head.weight.to(self.device)
        self._low: Tensor | None = None
        self._bias: Tensor | None = None if head.bias is None else head.bias.to(self.device)
        chat = chat.within(head.weight.shape[0])
        if chat.mask_id < 0:
            chat = chat.changed(mask_id=free_row(chat, self._embedding.weight))
        self.chat, self.config, self.fingerprint = chat, config, fingerprint
        if not 0 <= chat.mask_id < self._embedding.num_embeddings:
            raise InputError(
                f"mask token {config.mask_token!r} has id {chat.mask_id}, outside the {self._embedding.num_embeddings} "
                f"embedding rows of target {config.name}"
            )
        if not bool(self._embedding.weight[chat.mask_id].any()):
            raise InputError(
                f"the embedding row of mask token {config.mask_token!r} (id {chat.mask_id}) of target {config.name} is "
                "all zero; choose a token with a trained or initialised row (target.mask_token=...)"
            )

    def describe(self) -> dict[str, Any]:
        """The entry in a record for a target that was not trained here; the fingerprint of a hub model is its
        commit."""
        hub = {} if is_local(str(self.config.path)) else {"path": self.config.path, "revision": self.config.revision}
        return {
            **hub,
            "fingerprint": self.fingerprint,
            "type": self.model.config.model_type,
            "taps": list(self.taps),
            "mask id": self.chat.mask_id,
            "attention": self.model.config._attn_implementation,
            "device map": self.config.device_map,
            "thinking": False,
        }

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where inputs go."""
        return self._embedding.weight.device

    def embed(self, tokens: Int[Tensor, "*X"]) -> Float[Tensor, "*X D"]:
        """The frozen input embedding, scaled where the target scales it: what its first layer reads."""
        embedded: Tensor = self._embedding(tokens)
        return embedded if self._embedding_factor == 1.0 else embedded * self._embedding_factor

    def head(self, hidden: Float[Tensor, "*X D"]) -> Float[Tensor, "*X V"]:
        """The frozen output head and what the target does after it (scaling, soft-capping), cut to the tokenizer's
        length: padded vocabulary rows are never drafted nor emitted."""
        weight, kind = self._weight, self.device.type
        if torch.is_autocast_enabled(kind):  # which would round the frozen weight again in every call
            weight = self._rounded(torch.get_autocast_dtype(kind))
        elif weight.dtype != torch.float32:  # a drafter in fp32 on a target in bf16
            hidden = hidden.to(weight.dtype)
        return self._after_head(F.linear(hidden.to(self.device), weight, self._bias)[..., : self.chat.vocab])

    def _rounded(self, dtype: torch.dtype) -> Tensor:
        """The head's weight in the precision of its products, cached."""
        if self._low is None or self._low.dtype != dtype:
            self._low = self._weight.to(dtype)
        return self._low

    @torch.no_grad()
    def features(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T F"]:
        """Tapped hidden states of right-padded sequences, F = taps * D. Attention is causal, so padding has no
        effect."""
        if self.config.taps == "last":
            return self._features({}, self._decoder(input_ids=tokens, use_cache=False).last_hidden_state)
        with self._tapped(stop_after_last=True) as outputs, suppress(_AllTapped):
            self._decoder(input_ids=tokens, use_cache=False)
        return self._joined(outputs)

    @torch.no_grad()
    def features_and_last(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """``features``, and after them the last hidden state, whose product with the head is the next token's
        logits."""
        with self._tapped() as outputs:
            last = self._decoder(input_ids=tokens, use_cache=False).last_hidden_state
        return torch.cat([self._features(outputs, last), last.to(self.device)], dim=-1)

    @torch.no_grad()
    def greedy_labels(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Per position, the target's own token given the data before it (its argmax)."""
        hidden = self._decoder(input_ids=tokens, use_cache=False).last_hidden_state
        return torch.cat([tokens[:, :1], self.head(hidden[:, :-1]).argmax(dim=-1)], dim=1)

    @torch.no_grad()
    def logits(
        self,
        tokens: Int[Tensor, "B T"],
        cache: DynamicCache,
        *,
        attention_mask: Int[Tensor, "B C"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "B L V"]:
        """``forward`` without the features: all that plain decoding needs. Rows of several lengths come left-padded."""
        hidden = self._decoder(
            input_ids=tokens,
            past_key_values=cache,
            use_cache=True,
            attention_mask=attention_mask,
            position_ids=position_ids,
        ).last_hidden_state
        return self.head(hidden[:, -1:] if last_only else hidden)

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        cache: DynamicCache,
        *,
        last_only: bool = False,
    ) -> tuple[Float[Tensor, "B L V"], Float[Tensor, "B T F"]]:
        """One pass over new tokens on top of ``cache`` (extended in place): logits and tapped features of each.

        ``last_only``: logits of the last token alone (L = 1, else T).
        """
        with self._tapped() as outputs:
            out = self._decoder(input_ids=tokens, past_key_values=cache, use_cache=True)
        hidden = out.last_hidden_state[:, -1:] if last_only else out.last_hidden_state
        return self.head(hidden), self._features(outputs, out.last_hidden_state)

    def new_cache(self) -> DynamicCache:
        """An empty KV cache that can be cropped after a rejected draft.

        Layers with a sliding window keep all of their keys too (the mask hides the old ones): a cropped window would
        lack keys that a shorter sequence still sees.
        """
        return DynamicCache()

    @contextmanager
    def _tapped(self, *, stop_after_last: bool = False) -> Iterator[dict[int, Tensor]]:
        """Collects the outputs of the tapped decoder layers, by layer, during one forward pass.

        ``stop_after_last`` ends the pass with ``_AllTapped`` after the last tapped layer: later layers are not needed.
        """
        outputs: dict[int, Tensor] = {}
        handles = [self._tapped_module(i).register_forward_hook(partial(_keep, outputs, i)) for i in self.taps]
        if stop_after_last:
            handles.append(self._tapped_module(self.taps[-1]).register_forward_hook(_stop))
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def _tapped_module(self, index: int) -> nn.Module:
        """A decoder layer; the embedding for -1, which only a target with the taps of a faulty server has."""
        module: nn.Module = self._embedding if index < 0 else self._layers[index]
        return module

    def _features(self, outputs: dict[int, Tensor], last: Tensor) -> Tensor:
        """The features of a pass that gave ``outputs`` of the tapped layers and the ``last`` hidden state."""
        return last.to(self.device) if self.config.taps == "last" else self._joined(outputs)

    def _joined(self, outputs: dict[int, Tensor]) -> Tensor:
        """The features: outputs of the tapped layers in the order of ``taps``."""
        return torch.cat([outputs[i].to(self.device) for i in self.taps], dim=-1)

    def draft_config(self, backbone: BackboneConfig) -> Qwen3Config:
        """Sizes of a draft layer: the target's own, as the public DFlash recipe does, with ``backbone.layers``
        layers."""
        source = self.model.config
        return sizes.draft_layer(
            sizes.of_model(source),
            backbone,
            rms_norm_eps=structure.norm_eps(source),
            max_position_embeddings=self.context_length,
            rope_parameters=structure.rope(source),
        )


def taps_of(taps: tuple[int, ...] | int | str, layers: int) -> tuple[int, ...]:
    """``target.taps`` as layers of a target with ``layers`` layers: a list is kept, a number means the public rule."""
    if isinstance(taps, str):  # last, whose feature is that layer's output after the final norm
        return (layers - 1,)
    return check_taps(spread(layers, taps) if isinstance(taps, int) else taps, layers)


def spread(layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers by the public rule round(1 + i (L-4)/(n-1)); the middle one for n = 1 (z-lab/dflash, SpecForge).

    36 layers and 5 taps: 1, 9, 17, 25, 33. Errors: InputError where the rule names a layer twice.
    """
    if count < 1:
        raise InputError(f"target.taps={count} must be at least 1, or a list of layers")
    if count == 1:
        return (layers // 2,)
    taps = tuple(round(1 + i * (layers - 4) / (count - 1)) for i in range(count))
    if len(set(taps)) < count or min(taps) < 0:
        raise InputError(
            f"target.taps={count}: the rule round(1 + i (L-4)/(n-1)) finds no {count} different layers in a target "
            f"with {layers} layers; give fewer, or a list of them: target.taps=[0,1]"
        )
    return taps


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
            raise InputError(
                f"target.taps={list(taps)} taps the last layer ({tap}); {valid}; its output after the final norm is "
                "target.taps=last"
            )
        if not 0 <= tap < layers:
            raise InputError(f"target.taps={list(taps)}: layer {tap} is out of range; {valid}")
    if len(set(taps)) != len(taps):
        raise InputError(f"target.taps={list(taps)} names a layer twice; {valid}")
    return tuple(sorted(taps))


@torch.no_grad()
def check_head(target: Target) -> None:
    """InputError for a model whose logits are not ``Target.head`` of its last hidden state: it changes them in a way
    that is not known here."""
    tokens = torch.tensor([[target.chat.eos_id, target.chat.pad_id]], device=target.device)
    theirs = target.model(input_ids=tokens, use_cache=False).logits[..., : target.chat.vocab].to(target.device)
    ours, _ = target.forward(tokens, target.new_cache())
    if not bool(theirs.isfinite().all()):
        raise InputError(
            f"target {target.config.name} gives logits that are not finite: its weights are damaged, or too large for "
            f"{str(target.model.dtype).removeprefix('torch.')}"
        )
    if not torch.allclose(ours.float(), theirs.float(), rtol=0.02, atol=0.02 * float(theirs.float().abs().max())):
        raise InputError(
            f"target of type {target.model.config.model_type!r} changes its logits after the head in a way that is not "
            "known here (known: logit_scale, logits_scaling, final_logit_softcapping), and a drafter, which shares the "
            "head, would not; choose another target"
        )


def free_row(chat: Chat, weight: Float[Tensor, "rows D"]) -> int:
    """An embedding row for the mask token: the first padding row after the vocabulary, else a reserved token; not
    all zero.

    No row is added: serving engines load the target as published. Errors: InputError when there is no such row.
    """
    rows: list[int] = [*range(chat.vocab, len(weight)), *free_tokens(chat.tokenizer)]
    for row in rows:
        if row < len(weight) and bool(weight[row].any()):
            return row
    raise InputError(
        f"tokenizer {chat.tokenizer.name_or_path!r} has no mask token and no reserved token, and its embedding no "
        "spare row; name a token that occurs in no text, or its id: target.mask_token=TOKEN"
    )


def create(config: PretrainConfig, chat: Chat) -> Any:
    """A causal LM of ``config.architecture`` with random weights (seeded), sized for ``chat``'s vocabulary.

    Errors: as ``sizes.recipe_config``.
    """
    torch.manual_seed(config.seed)
    architecture = sizes.recipe_config(
        config,
        vocab_size=chat.vocab,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=chat.eos_id,
        pad_token_id=chat.pad_id,
    )
    return AutoModelForCausalLM.from_config(architecture)


logging.disable_progress_bar()
logging.set_verbosity_error()  # errors of a checkpoint are reported here, in one line


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(config: TargetConfig, *, device: str, dtype: torch.dtype | None = None, shard: bool = False) -> Target:
    """The target at ``config.path`` (hub id or folder), frozen, in ``dtype`` (None: ``target.dtype``).

    ``shard``: its layers are spread over the ranks, which must then make the same passes.

    Only safetensors weights are read. Errors: InputError when it cannot be loaded, or cannot serve as a target.
    """
    assert config.path is not None, "a target that is trained here has been given its folder by the caller"
    spread_out = {} if config.device_map is None else {"device_map": config.device_map}
    if spread_out and importlib.util.find_spec("accelerate") is None:
        raise InputError(
            f"target.device_map={config.device_map!r} needs the package accelerate: pip install accelerate; or leave "
            "it null"
        )
    if config.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise InputError("target.attention='flash_attention_2' needs the package flash-attn; use target.attention=sdpa")
    dtype = dtype or DTYPES[config.dtype]
    prepare(dtype)
    try:
        # A branch is resolved to a commit once: tokenizer, template and weights all come from it.
        stored = cached_file(config.path, CONFIG_NAME, revision=config.revision)
        commit = extract_commit_hash(stored, None)
        pinned = commit or config.revision
        values = _config_json(config, stored)
        chat = Chat.load(replace(config, revision=pinned))
        model, report = AutoModelForCausalLM.from_pretrained(
            config.path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, in one line
            revision=pinned,
            dtype=dtype,
            attn_implementation=None if config.attention == "auto" else config.attention,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            **spread_out,
            **_unpacked(values),
        )
    except InputError:
        raise
    except Exception as error:  # any error of transformers in a foreign folder
        raise InputError(f"target {config.path!r} cannot be loaded: {first_line(error)}") from error
    _check_whole(config, report)
    away = sorted({str(x) for x in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk", "meta"})
    if spread_out and away and device != "cpu":
        raise InputError(
            f"target.device_map={config.device_map!r} leaves parts of target {config.name} on {', '.join(away)}: the "
            "GPUs are too small for it, and every step would be slow; choose a smaller target"
        )
    if commit is None and Path(config.path).is_dir():
        commit = content_fingerprint(Path(config.path))
    fingerprint = commit or f"{config.path}@{config.revision}"
    if config.chat_template is not None:  # the file may change, or move
        fingerprint = f"{fingerprint}+{digest(chat.tokenizer.chat_template, 8)}"
    if shard:
        sharding.shard(structure.layers(model), device)
    target = Target(model if spread_out else model.to(device), chat, config, fingerprint)
    check_head(target)
    return target


def _config_json(config: TargetConfig, file: str | None) -> dict[str, Any]:
    """What the ``config.json`` of a target says. Errors: InputError for a model with an encoder."""
    values = read_json(Path(file)) if file is not None else {}
    if not isinstance(values, dict):
        raise InputError(f"target {config.path!r} cannot be loaded: its {CONFIG_NAME} is damaged")
    if values.get("is_encoder_decoder"):
        raise InputError(
            f"target of type {values.get('model_type')!r} reads prompts with an encoder, and a drafter continues the "
            "hidden states of one stack of decoder layers; choose a decoder-only target"
        )
    return values


def _unpacked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that unpacks weights in MXFP4 (gpt-oss) to the target's dtype, from its ``config.json``.

    Left to itself, transformers keeps them packed where the packages kernels, triton and accelerate are installed, and
    unpacks or refuses them elsewhere: hidden states would depend on what is installed.
    """
    packing = values.get("quantization_config")
    mxfp4 = isinstance(packing, dict) and packing.get("quant_method") == "mxfp4"
    return {"quantization_config": Mxfp4Config(dequantize=True)} if mxfp4 else {}


def _check_whole(config: TargetConfig, report: Mapping[str, Any]) -> None:
    """InputError for weights that are missing from the files or have another shape: they would silently be random."""
    for what, names in (
        ("hold no", sorted(report["missing_keys"])),
        ("hold another shape of", sorted(str(m[0]) for m in report["mismatched_keys"])),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"target {config.path!r} cannot be loaded: its files {what} {names[0]}{more}; get the whole "
                "checkpoint, or the config.json that belongs to it"
            )


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
    vocabulary = [
        p for n in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model") if (p := folder / n).is_file()
    ]
    vocabulary = vocabulary[:1] if (folder / "tokenizer.json").is_file() else vocabulary  # the whole of it
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if isinstance(settings, dict):
        total.update(digest([settings.get(k) for k in ("chat_template", "eos_token", "pad_token")]).encode())
    for path in [*sorted(folder.glob("*.safetensors")), *vocabulary]:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                total.update(block)
    return total.hexdigest()[:16]
