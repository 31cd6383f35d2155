"""Checkpoints of a training job: everything that a bit-identical continuation needs, in safetensors and JSON.

All randomness of training is keyed by (seed, step), so there is no generator state to keep.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specauf_cli.errors import InputError, first_line
from specauf_cli.runtime import sharding
from specauf_cli.store import layout
from specauf_cli.store.files import atomic_folder, digest, file_sha256, remove_leftovers

Files = dict[str, dict[str, Tensor]]
"""The tensors of a checkpoint by file."""


def content(module: nn.Module, optimizer: torch.optim.Optimizer) -> Files:
    """Weights and optimiser state, whole. All ranks must call it where layers are spread over them."""
    weights = {name: sharding.whole(tensor).contiguous() for name, tensor in _tensors(module).items()}
    moments = {
        f"{i}.{key}": sharding.whole(value).contiguous()
        for i, p in enumerate(_parameters(optimizer))
        for key, value in optimizer.state[p].items()
    }
    return {"model.safetensors": weights, "optimizer.safetensors": moments}


def save(folder: Path, files: Files, step: int, extra: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes ``folder/step-NNNNNN`` atomically (all or nothing) and keeps the last ``keep``. ``extra`` is JSON.

    Errors: InputError when it cannot be written; earlier checkpoints stay untouched.
    """
    final = layout.checkpoint(folder, step)
    remove_leftovers(final)
    try:
        with atomic_folder(final) as partial:
            sums = {}
            for name, tensors in files.items():
                save_file(tensors, partial / name)
                sums[name] = file_sha256(partial / name)
            about = {"step": step, "sha256": sums, **extra}
            (partial / "state.json").write_text(json.dumps({**about, "digest": digest(about)}, indent=1))
    except InputError as error:
        last = latest(folder)
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise InputError(f"{error}; {kept}") from error
    for old in layout.checkpoint_steps(folder)[:-keep]:
        shutil.rmtree(layout.checkpoint(folder, old), ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    steps = layout.checkpoint_steps(folder)
    return layout.checkpoint(folder, steps[-1]) if steps else None


def restore(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads weights and optimiser state in place and returns the saved JSON.

    Errors: InputError for a truncated, altered or foreign checkpoint, naming the file.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text("utf-8"))
        if state.pop("digest") != digest(state) or checkpoint != layout.checkpoint(checkpoint.parent, state["step"]):
            raise InputError(
                f"{checkpoint / 'state.json'} is damaged (its content is not what was saved); delete {checkpoint} to "
                "go on from the one before"
            )
        for name, expected in state["sha256"].items():
            if file_sha256(checkpoint / name) != expected:
                raise InputError(
                    f"{checkpoint / name} is damaged (its content is not what was saved); delete {checkpoint} to go on "
                    "from the one before"
                )
        weights = load_file(checkpoint / "model.safetensors")
        own = _tensors(module)
        if set(weights) != set(own):
            raise InputError(
                f"{checkpoint / 'model.safetensors'} holds other tensors than this model; move {checkpoint} aside"
            )
        parts = {name: sharding.part(tensor, own[name]) for name, tensor in weights.items()}
        module.load_state_dict(parts, strict=False)  # tied tensors are stored once
        moments = load_file(checkpoint / "optimizer.safetensors")
        groups, known = optimizer.state_dict()["param_groups"], {int(name.partition(".")[0]) for name in moments}
        parameters = _parameters(optimizer)
        kept = {
            i: {key: sharding.part(moments[f"{i}.{key}"], parameters[i]) for key in ("step", "exp_avg", "exp_avg_sq")}
            for i in sorted(known)
        }
        optimizer.load_state_dict({"state": kept, "param_groups": groups})  # knows on which device each of them belongs
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"checkpoint {checkpoint} cannot be read ({reason}); delete it to go on from the one before"
        ) from error
    return state


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors, tied ones once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if sharding.is_sharded(tensor):  # a draft layer's own; this rank's part may be empty, and have no place
            tensors[name] = tensor
        elif tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor
    return tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
