"""Drafters in public layouts: the Hugging Face folders of DFlash, Domino and DSpark, the speculators layout, and
vLLM's of Medusa heads.

Two conventions name the tapped layers. ``target_layer_ids`` (Hugging Face) count decoder layers from 0, the feature is
the output of that layer; that is how this tool counts. ``aux_hidden_state_layer_ids`` (speculators) count hidden
states, 0 being the embedding, so each is one larger. Sources: z-lab/dflash, SpecForge, speculators 0.9, vLLM pull
request 40727; for Medusa, vLLM 0.32.0 (``model_executor/models/medusa.py``, ``transformers_utils/configs/medusa.py``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.models import checkpoint, structure
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target, check_taps
from specauf_cli.store.files import atomic, file_sha256, read_json, write_json

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LAYOUTS = ("hf", "vllm")
MEDUSA = "MedusaModel"
ARCHITECTURES = ("DFlashDraftModel", "DominoDraftModel", "Qwen3DSparkModel", MEDUSA)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OTHER = "{} was not made for target {}: its {} is {!r}, the target's {!r}; give its profile"
NOT_WRITTEN = {
    ("vllm", "DominoDraftModel"): "Domino drafter, and neither the speculators layout nor vLLM knows Domino (vLLM pull "
    "request 46707 is not merged); --format hf is what SGLang and SpecForge read",
    ("vllm", "Qwen3DSparkModel"): "DSpark drafter, which vLLM and SGLang read in the layout of DeepSpec: --format hf",
    ("hf", MEDUSA): "Medusa drafter, which vLLM reads in a layout of its own: --format vllm",
}
"""Why a drafter cannot be written in a layout, by layout and architecture."""
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
)
KNOBS = ("gru_hidden_dim", "emb_dim", "pure_draft_prefix_len")
PREFIXES = ("model.", "logit_head.", "medusa_heads.")
"""Prefixes of tensor names that public loaders take off."""


@dataclass(frozen=True)
class Located:
    """A folder with a checkpoint; ``repository`` and ``commit`` if it came from the hub."""

    folder: Path
    repository: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The configuration of a drafter from elsewhere. ``taps`` count decoder layers from 0 in either layout; ``last``:
    the target's last hidden state.

    ``mask_id``: None for a drafter that needs no mask token; ``knobs``: those of its backbone here; ``sizes``: of a
    draft layer, with its rotary embedding as ``rope``; ``target_layers`` and ``verifier`` where the file names them;
    ``ignored``: keys that have no meaning here; ``heads``: tensors that must be copies of the target's head.
    """

    folder: Path
    layout: str
    backbone: str
    block_size: int
    layers: int
    taps: tuple[int, ...] | Literal["last"]
    mask_id: int | None
    proposals: int
    knobs: dict[str, int | str]
    sizes: dict[str, Any]
    target_layers: int | None
    verifier: str | None
    ignored: tuple[str, ...]
    heads: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """The settings that describe this drafter."""
        taps = self.taps if isinstance(self.taps, str) else f"[{','.join(map(str, self.taps))}]"
        return [
            f"backbone={self.backbone}",
            f"backbone.block_size={self.block_size}",
            f"backbone.layers={self.layers}",
            f"backbone.proposals={self.proposals}",
            *(f"backbone.knobs.{k}={v}" for k, v in self.knobs.items()),
            f"target.taps={taps}",
        ]


def locate(source: str, revision: str | None = None) -> Located:
    """The folder that ``source`` names: a local one, or ``ORG/NAME`` fetched from the hub (config and safetensors
    only).

    Errors: InputError when it is neither, or the hub does not give it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"--revision {revision}: {source} is a local folder; a revision is one of the hub's")
        return Located(folder)
    if not HUB_ID.fullmatch(source):
        raise InputError(f"{source!r} is neither a folder nor a hub id; give a folder with config.json, or ORG/NAME")
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            source,
            revision=revision,
            allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"],
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # any error of the network or the hub
        raise InputError(
            f"{source}{f' at {revision}' if revision else ''} cannot be fetched from the hub: {first_line(error)}"
        ) from error
    return Located(Path(snapshot), source, Path(snapshot).name)  # the hub's cache names a snapshot by its commit


def read(folder: Path) -> Checkpoint:
    """The drafter in ``folder`` as its ``config.json`` describes it, in either layout.

    Errors: InputError for a file that is not a DFlash, Domino, DSpark or Medusa drafter's, or that cannot be
    represented here.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        if "speculators_model_type" in config:
            return _read_speculators(folder, config)
        if config.get("model_type") == "medusa":
            return _read_medusa(folder, config)
        if "dflash_config" not in config and "markov_rank" not in config:
            raise InputError(
                f"{path} is not a drafter's: it has neither dflash_config (public DFlash and Domino) nor markov_rank "
                "(DSpark) nor speculators_model_type nor model_type medusa (vLLM's Medusa heads)"
            )
        is_dspark = "markov_rank" in config
        return _read_dspark(folder, config) if is_dspark else _read_public(folder, config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is not a drafter's configuration: {reason}") from error


def _read_public(folder: Path, config: dict[str, Any]) -> Checkpoint:
    path, special = folder / "config.json", config["dflash_config"]
    architectures, projector = config.get("architectures") or [], special.get("projector_type")
    domino = projector == "domino" or "DominoDraftModel" in architectures
    if projector not in (None, "", "none", "dflash", "domino") or (
        not domino and "DFlashDraftModel" not in architectures
    ):
        raise InputError(
            f"{path}: architectures {architectures}, projector_type {projector!r}; valid are DFlashDraftModel without "
            "a projector and DominoDraftModel with projector_type domino"
        )
    if bool(special.get("shift_label", False)) is not domino:
        raise InputError(
            f"{path}: dflash_config.shift_label must be {'true for Domino' if domino else 'false for DFlash'}"
        )
    known = {"mask_token_id", "target_layer_ids", "block_size", "projector_type", "shift_label", *KNOBS}
    given = {"pure_draft_prefix_len": 0} | config | special  # an absent prefix is none, as in SpecForge
    layers = config.get("num_target_layers")
    block_size = _whole(config.get("block_size", special.get("block_size")), "block_size", path)
    return Checkpoint(
        folder=folder,
        layout="hf",
        backbone="domino" if domino else "dflash",
        block_size=block_size,
        proposals=block_size - 1,  # as serving engines do, for Domino too
        layers=_whole(config["num_hidden_layers"], "num_hidden_layers", path),
        taps=_ids(special["target_layer_ids"], "dflash_config.target_layer_ids", path),
        mask_id=_whole(special["mask_token_id"], "mask_token_id", path),
        knobs={k: _whole(given[k], k, path) for k in KNOBS} if domino else {},
        sizes=_sizes(config, path),
        target_layers=None if layers is None else _whole(layers, "num_target_layers", path),
        verifier=None,
        ignored=tuple(sorted(f"dflash_config.{k}" for k in set(special) - known)),
    )


def _read_dspark(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """DeepSpec's keys, which lie beside ``dflash_config`` where there is one."""
    path, given = folder / "config.json", {**config, **(config.get("dflash_config") or {})}
    architectures, kind = config.get("architectures") or [], config.get("markov_head_type", "vanilla")
    for what, wrong in (
        (f"architectures {architectures}", not {"Qwen3DSparkModel", "DSparkDraftModel"} & set(architectures)),
        (f"markov_head_type={kind!r}", kind not in ("vanilla", "gated")),
        ("a draft vocabulary of its own", config.get("draft_vocab_size") not in (None, config["vocab_size"])),
        ("no confidence head", not config.get("enable_confidence_head")),
        ("a confidence head that does not read the Markov head", not config.get("confidence_head_with_markov")),
        ("a block whose anchor is no slot", config.get("sample_from_anchor") is False),
    ):
        if wrong:
            raise InputError(
                f"{path}: {what} cannot be read here; a DSpark drafter is a Qwen3DSparkModel with a vanilla or gated "
                "Markov head over the whole vocabulary and a confidence head that reads it"
            )
    layers, block_size = config.get("num_target_layers"), _whole(config["block_size"], "block_size", path)
    return Checkpoint(
        folder=folder,
        layout="hf",
        backbone="dspark",
        block_size=block_size,
        proposals=block_size,  # engines draft whole blocks: slots see each other
        layers=_whole(config["num_hidden_layers"], "num_hidden_layers", path),
        taps=_ids(given["target_layer_ids"], "target_layer_ids", path),
        mask_id=_whole(given["mask_token_id"], "mask_token_id", path),
        knobs={"markov_rank": _whole(config["markov_rank"], "markov_rank", path), "markov_head_type": kind},
        sizes=_sizes(config, path),
        target_layers=None if layers is None else _whole(layers, "num_target_layers", path),
        verifier=None,
        ignored=(),
    )


def _read_speculators(folder: Path, config: dict[str, Any]) -> Checkpoint:
    path, inner = folder / "config.json", config["transformer_layer_config"]
    kind = config["speculators_model_type"]
    if kind != "dflash":
        raise InputError(f"{path}: speculators_model_type {kind!r} cannot be read here; valid: dflash")
    sizes = _sizes(inner, path)
    for key, valid in (
        ("draft_vocab_size", (sizes["vocab_size"],)),
        ("target_hidden_size", (None, sizes["hidden_size"])),
        ("sample_from_anchor", (False,)),
    ):
        if config.get(key, valid[0]) not in valid:
            raise InputError(f"{path}: {key}={config[key]} cannot be read here; valid: {valid[-1]}")
    ids = _ids(config["aux_hidden_state_layer_ids"], "aux_hidden_state_layer_ids", path)
    if min(ids) < 1:
        raise InputError(
            f"{path}: aux_hidden_state_layer_ids={list(ids)} taps hidden state 0, the embedding, which is no layer's "
            "output"
        )
    return Checkpoint(
        folder=folder,
        layout="vllm",
        backbone="dflash",
        block_size=(block_size := _whole(config["block_size"], "block_size", path)),
        proposals=block_size - 1,
        layers=_whole(inner["num_hidden_layers"], "num_hidden_layers", path),
        taps=tuple(i - 1 for i in ids),
        mask_id=_whole(config["mask_token_id"], "mask_token_id", path),
        knobs={},
        sizes=sizes,
        target_layers=None,
        verifier=((config.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path"),
        ignored=(),
    )


def _read_medusa(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """vLLM's ``MedusaConfig``; its default where ``num_hidden_layers`` or ``truncated_vocab_size`` is absent."""
    path, vocabulary = folder / "config.json", config["vocab_size"]
    layers, kept = config.get("num_hidden_layers", 1), config.get("truncated_vocab_size")
    for what, wrong in (
        (f"num_hidden_layers={layers}", layers != 1),
        (f"truncated_vocab_size={kept}", kept not in (None, vocabulary)),
        ("medusa_fc_bias=true", bool(config.get("medusa_fc_bias"))),
    ):
        if wrong:
            raise InputError(
                f"{path}: {what} cannot be read here; a block of Medusa heads has one layer without bias, and the "
                "target's head over its whole vocabulary"
            )
    heads = _whole(config["num_heads"], "num_heads", path)
    shared = bool(config.get("original_lm_head"))
    return Checkpoint(
        folder=folder,
        layout="vllm",
        backbone="medusa",
        block_size=heads + 1,
        proposals=heads,
        layers=1,
        taps="last",
        mask_id=None,
        knobs={},
        sizes={k: _whole(config[k], k, path) for k in ("hidden_size", "vocab_size")},
        target_layers=None,
        verifier=None,
        # A factor changes no greedy choice, and neither vLLM nor this tool drafts trees.
        ignored=tuple(k for k in ("logit_scale", "max_paths", "topk") if k in config),
        heads=("lm_head.weight",) if shared else tuple(f"lm_heads.{i}.weight" for i in range(heads)),
    )


def _sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Sizes of a draft layer. Errors: InputError for layers of another kind than those built here."""
    kinds = set(config.get("layer_types") or []) - {"full_attention"}
    for what, wrong in (
        (f"layer_types with {', '.join(sorted(kinds))}", bool(kinds)),
        ("use_sliding_window=true", bool(config.get("use_sliding_window")) and not config.get("layer_types")),
        ("attention_bias=true", bool(config.get("attention_bias"))),
        (f"hidden_act={config.get('hidden_act')!r}", config.get("hidden_act", "silu") != "silu"),
    ):
        if wrong:
            raise InputError(
                f"{path}: {what} cannot be read here; drafters have full attention without biases, and silu"
            )
    return {k: config[k] for k in SIZES} | {"rope": _rope(config)}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding, whichever of its three spellings a configuration uses."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = given["rope_theta"] if "rope_theta" in given else config["rope_theta"]
    kind = given.get("rope_type") or given.get("type") or "default"
    rest = {k: v for k, v in given.items() if k not in ("type", "rope_type", "rope_theta") and v is not None}
    return {"rope_type": kind, "rope_theta": float(theta), **rest}


def _whole(value: Any, key: str, path: Path) -> int:
    if type(value) is not int:
        raise InputError(f"{path}: {key}={value!r} must be a whole number")
    return value


def _ids(value: Any, key: str, path: Path) -> tuple[int, ...]:
    """Layer ids in ascending order: the columns of ``fc`` follow their order."""
    if (
        not isinstance(value, list)
        or not value
        or any(type(i) is not int for i in value)
        or sorted(set(value)) != value
    ):
        raise InputError(f"{path}: {key}={value!r} must be a list of different layers in ascending order")
    return tuple(value)


def drafter(foreign: Checkpoint, target: Target, backbone: BackboneConfig) -> tuple[DFlash, list[str]]:
    """The drafter of ``foreign`` for ``target``, in fp32, and what was left out because the target has it already.

    ``backbone`` is what ``foreign.overrides`` describe. Errors: InputError, one line, when it is for another target,
    or for tensors that are missing, unknown, misshapen or not finite.
    """
    _check_target(foreign, target, backbone)
    model = checkpoint.create(target, backbone)
    tensors = _tensors(foreign.folder)
    if "lm_head.weight" in foreign.heads and "lm_head.weight" not in tensors and "lm_heads.0.weight" in tensors:
        tensors["lm_head.weight"] = tensors.pop("lm_heads.0.weight")  # vLLM takes either name for the shared head
    copies = _drop_copies(tensors, foreign, target)
    _check_tensors(tensors, model.state_dict(), foreign)
    model.load_state_dict(tensors)
    return model.eval(), copies


def _drop_copies(tensors: dict[str, Tensor], foreign: Checkpoint, target: Target) -> list[str]:
    """Removes from ``tensors`` those that older speculators files, and Medusa's, repeat from the target; returns the
    names.

    Errors: InputError for one that differs from the target's own, or a head that is missing.
    """
    head, norm = target.model.get_output_embeddings().weight, structure.final_norm(target.model)
    owned: dict[str, Tensor] = {
        "embed_tokens.weight": target.model.get_input_embeddings().weight,
        "lm_head.weight": head,
        "verifier_lm_head.weight": head,
        **dict.fromkeys(foreign.heads, head),
    }
    if norm is not None:
        owned["verifier_norm.weight"] = norm.weight
    if missing := [n for n in foreign.heads if n not in tensors]:
        raise InputError(
            f"{foreign.folder}: its tensors are not those of this {foreign.backbone}: missing {_few(missing)}"
        )
    copies = [n for n in tensors if n in owned]
    for name in copies:
        copy = tensors.pop(name)
        own = owned[name].to("cpu", copy.dtype)
        if own.shape != copy.shape or not torch.equal(own, copy):
            raise InputError(
                f"{foreign.folder}: {name} is not that of target {target.config.name}; drafters here use the target's "
                "own"
            )
    return copies


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], foreign: Checkpoint) -> None:
    """InputError for names, shapes, dtypes or values that the drafter cannot have."""
    missing, unknown = [n for n in expected if n not in tensors], [n for n in tensors if n not in expected]
    shapes = [
        f"{n} {list(tensors[n].shape)} instead of {list(e.shape)}"
        for n, e in expected.items()
        if n in tensors and tensors[n].shape != e.shape
    ]
    problems = [
        f"{problem} {_few(names)}"
        for problem, names in (("missing", missing), ("unknown", unknown), ("misshapen", shapes))
        if names
    ]
    if problems:
        hint = nearest(unknown[0], missing) if unknown and missing else ""
        raise InputError(
            f"{foreign.folder}: its tensors are not those of this {foreign.backbone}: {'; '.join(problems)}.{hint}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"{foreign.folder}: {name} is {tensor.dtype}; valid: float32, bfloat16, float16")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{foreign.folder}: {name} has values that are not finite")


def _check_target(foreign: Checkpoint, target: Target, backbone: BackboneConfig) -> None:
    """InputError when ``foreign`` is for a target of other sizes, depth or mask token than ``target``."""
    sizes = target.draft_config(backbone)
    ours: dict[str, Any] = {k: getattr(sizes, k) for k in SIZES} | {"rope": _rope(sizes.to_dict())}
    for key, value in foreign.sizes.items():
        if value != ours[key]:
            raise InputError(OTHER.format(foreign.folder, target.config.name, key, value, ours[key]))
    check_layers(foreign, target.config.name, target.depth)
    if foreign.mask_id not in (None, target.chat.mask_id):
        raise InputError(
            f"{foreign.folder} was trained with mask token id {foreign.mask_id}, target {target.config.name} has "
            f"{target.chat.mask_id}; give target.mask_token={foreign.mask_id}"
        )


def check_layers(foreign: Checkpoint, target: str, layers: int) -> None:
    """InputError when ``foreign`` is for a target of another depth than ``layers``, or taps what cannot be tapped
    there."""
    if foreign.target_layers is not None and foreign.target_layers != layers:
        raise InputError(OTHER.format(foreign.folder, target, "num_target_layers", foreign.target_layers, layers))
    if isinstance(foreign.taps, str):  # the last hidden state, which every target has
        return
    if foreign.taps[-1] >= layers - 1:
        written = (
            "target_layer_ids count decoder layers from 0"
            if foreign.layout == "hf"
            else ("aux_hidden_state_layer_ids count hidden states, 0 being the embedding")
        )
        raise InputError(
            f"{foreign.folder} taps layer {foreign.taps[-1]} of 0..{layers - 1}; {written}, and the last layer cannot "
            "be tapped (its output is stored after the final norm); a file that counts otherwise must be corrected"
        )
    check_taps(foreign.taps, layers)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of ``folder`` under its public name, prefixes taken off."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        held = read_json(index)
        names = held.get("weight_map") if isinstance(held, dict) else None
        files = sorted({folder / str(f) for f in names.values()}) if isinstance(names, dict) else []
    else:
        files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no *.safetensors; other files of weights are not read, they can hold code")
    tensors_by_name: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        for name, tensor in tensors.items():
            public = name
            for prefix in PREFIXES:
                public = public.removeprefix(prefix)
            if public in tensors_by_name:
                raise InputError(f"{path}: {public} occurs twice, with and without a prefix or in two files")
            tensors_by_name[public] = tensor
    return tensors_by_name


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def not_written(config: Mapping[str, Any], layout: str) -> str | None:
    """Why the drafter that ``checkpoint.public_config`` describes cannot be written in ``layout``; None if it can."""
    architecture, taps = config["architectures"][0], config["dflash_config"]["target_layer_ids"]
    if architecture == MEDUSA and taps != [config["num_target_layers"] - 1]:
        return (
            f"Medusa drafter on the outputs of layers {', '.join(map(str, taps))}, and the heads that vLLM runs read "
            "the target's last hidden state; train one with target.taps=last"
        )
    return NOT_WRITTEN.get((layout, architecture))


def own_head(target: Target) -> Float[Tensor, "V D"]:
    """The weight of the target's head, which Medusa's layout repeats. Errors: InputError for a head with a bias."""
    head = target.model.get_output_embeddings()
    if head.bias is not None:
        raise InputError(
            f"the head of target {target.config.name} has a bias, which vLLM's layout of Medusa heads cannot hold"
        )
    weight: Tensor = head.weight.detach()
    return weight


def write(
    saved: Path,
    out: Path,
    *,
    layout: str,
    dtype: str,
    verifier: str | None = None,
    architectures: Sequence[str] = (),
    head: Float[Tensor, "V D"] | None = None,
) -> None:
    """Writes the drafter that ``checkpoint.save`` put into ``saved`` to ``out``, for public loaders: config and weights
    only.

    ``verifier`` (hub id or folder) and its ``architectures`` are named in the speculators layout; ``head`` is
    ``own_head`` of the target, which Medusa's layout has in the file. Errors: InputError for an unknown layout or
    dtype, for a drafter that the layout cannot hold, or for one that was altered.
    """
    if layout not in LAYOUTS or dtype not in DTYPES:
        raise InputError(
            f"format {layout!r} with dtype {dtype!r}: valid formats {', '.join(LAYOUTS)}; dtypes {', '.join(DTYPES)}"
        )
    config, weights = read_json(saved / "config.json"), saved / "model.safetensors"
    own = config.pop("specauf")
    if (why := not_written(config, layout)) is not None:
        raise InputError(f"--format {layout}: {saved.parent.name} is a {why}")
    if not weights.is_file() or own["weights"] != file_sha256(weights):
        raise InputError(f"{weights} cannot be read: it is not what was saved, but altered or damaged")
    tensors = load_file(weights)
    config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    if config["architectures"] == [MEDUSA]:
        assert head is not None, "the caller gives the target's head"
        tensors["lm_head.weight"] = head.cpu()
        config = medusa_config(config)
    elif layout == "vllm":
        config = speculators_config(config, verifier, architectures)
    tensors = {k: v.to(DTYPES[dtype]).contiguous() for k, v in tensors.items()}
    with atomic(out / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(out / "config.json", config)


def medusa_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` (public Hugging Face keys) as vLLM's ``MedusaConfig``, which takes any key with ``num`` and ``heads``
    in its name for the number of heads."""
    return {
        "architectures": [MEDUSA],
        "model_type": "medusa",
        "hidden_size": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "truncated_vocab_size": config["vocab_size"],
        "num_heads": config["block_size"] - 1,
        "num_hidden_layers": 1,  # of a block
        "medusa_fc_bias": False,
        "original_lm_head": True,  # one head for all blocks, in the file
        "dtype": config["dtype"],
    }


def speculators_config(config: Mapping[str, Any], verifier: str | None, architectures: Sequence[str]) -> dict[str, Any]:
    """``config`` (public Hugging Face keys) in the speculators layout, as vLLM's ``update_dflash`` reads it."""
    outer = ("architectures", "block_size", "dflash_config", "num_target_layers", "dtype")
    special, size = config["dflash_config"], config["block_size"]
    greedy = {
        "proposal_type": "greedy",
        "speculative_tokens": size - 1,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": "dflash",
        "speculators_version": "0.9.0",
        "block_size": size,
        "mask_token_id": special["mask_token_id"],
        "aux_hidden_state_layer_ids": [i + 1 for i in special["target_layer_ids"]],
        "draft_vocab_size": config["vocab_size"],
        "sample_from_anchor": False,
        # Slots of a block see each other. vLLM reads it for layers without a window too: false makes a block causal.
        "sliding_window_non_causal": True,
        "tie_word_embeddings": False,
        "dtype": config["dtype"],
        "transformer_layer_config": {k: v for k, v in config.items() if k not in outer}
        | {"rope_parameters": _rope(config)},
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
    }
