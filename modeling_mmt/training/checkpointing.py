"""Training checkpoints: whole or not at all, resumed exactly, safetensors and JSON only.

A checkpoint is a folder `step-00000120/` with `trainable.safetensors` (the weights that learn),
`optimizer.safetensors`, one `rng-RANK.safetensors` a process and `state.json` (step, scheduler, optimizer scalars,
what the run was, SHA-256 of every other file). Frozen weights are not stored again: their fingerprint is. The data
order needs no state beyond the step (`data_collator.EpochBatchSampler`).

Accelerate's `save_state` pickles optimizer and random states, hence this module.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from modeling_mmt.data.files import file_sha256, put_in_place
from modeling_mmt.data.weights import CheckpointError, load_tensors

STATE_FILE = "state.json"


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that learn, by name, as detached CPU tensors; sharded ones whole: all processes must ask."""
    return {
        name: _whole(parameter.detach()).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all processes, sharded as the parameter is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def load_trainable_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str = "state"):
    """Copy `state` into the parameters that learn.

    Raises:
        CheckpointError: a name is missing, unknown, or of another shape.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, unknown = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source}: lacks {missing[:3]}, and holds {unknown[:3]} that this model "
            "does not train; it belongs to another model"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"{source}: {name} is {tuple(state[name].shape)}, the model's is {tuple(parameter.shape)}"
                )
            parameter.copy_(_as(state[name], parameter))


def save_checkpoint(
    folder: str | os.PathLike,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    identity: Mapping[str, Any],
    progress: Mapping[str, Any],
    rank: int = 0,
    barrier=lambda: None,
) -> Path:
    """Write `folder/step-XXXXXXXX`, complete or absent, whatever happens meanwhile.

    Args:
        folder: the run's checkpoint folder.
        step: optimizer steps done.
        model: its learning parameters are stored.
        optimizer: of those parameters.
        scheduler: any with `state_dict()` of JSON values.
        identity: what must be equal for a resume to be the same run: recipe, seed, world size, frozen fingerprint.
        progress: JSON values that the run carries along: best score, history.
        rank: this process; 0 writes what all share.
        barrier: waits for every process.

    Returns:
        The checkpoint's folder.
    """
    final = Path(folder) / f"step-{step:08d}"
    if final.exists():  # an interrupted run came back to a step that it had saved: the same state
        return final
    partial = final.with_suffix(".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    save_file(_random_states(), partial / f"rng-{rank}.safetensors")
    weights, (tensors, scalars) = trainable_state(model), _split_optimizer(optimizer.state_dict())
    if rank == 0:
        save_file(weights, partial / "trainable.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
    barrier()
    if rank == 0:
        state = {
            "step": step,
            "identity": dict(identity),
            "progress": dict(progress),
            "scheduler": scheduler.state_dict(),
            "optimizer": scalars,
            "files": {path.name: file_sha256(path) for path in sorted(partial.glob("*.safetensors"))},
        }
        (partial / STATE_FILE).write_text(json.dumps(state, indent=1))
        put_in_place(partial, final)
    barrier()
    return final


def load_checkpoint(
    path: str | os.PathLike,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    identity: Mapping[str, Any],
    rank: int = 0,
) -> tuple[int, dict[str, Any]]:
    """Restore weights, optimizer, scheduler and random states.

    Returns:
        The step and the `progress` that were saved.

    Raises:
        CheckpointError: a file is missing or its SHA-256 differs (torn), or `identity` differs (foreign).
    """
    state = read_state(path)
    path = Path(path)
    saved, wanted = state["identity"], json.loads(json.dumps(dict(identity)))
    differing = sorted(key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key))
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{path}: saved with {key} = {saved.get(key)!r}, this run has {wanted.get(key)!r}; "
            "resume with the same settings, or choose another output folder"
        )
    load_trainable_state(model, load_tensors(path / "trainable.safetensors"), source=str(path))
    joined = _join_optimizer(load_file(path / "optimizer.safetensors"), state["optimizer"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in joined["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value):
                values[name] = _as(value, parameters[index])
    optimizer.load_state_dict(joined)
    scheduler.load_state_dict(state["scheduler"])
    _restore_random_states(load_file(path / f"rng-{rank}.safetensors"))
    return state["step"], state["progress"]


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """`state.json` of a checkpoint whose every file was checked against its SHA-256."""
    path = Path(path)
    try:
        state = json.loads((path / STATE_FILE).read_text())
        files = state["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE_FILE}: missing or torn ({error}); delete the folder") from error
    for name, digest in files.items():
        if not (path / name).is_file() or file_sha256(path / name) != digest:
            raise CheckpointError(
                f"{path / name}: torn (its SHA-256 is not the one in {STATE_FILE}); delete the folder"
            )
    return state


def last_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest complete checkpoint of a run; half-written ones have another name and are never found."""
    return max(Path(folder).glob("step-" + "[0-9]" * 8), default=None)


def prune_checkpoints(folder: str | os.PathLike, keep_last: int, keep: Path | None = None):
    """Remove all but the newest `keep_last` checkpoints and `keep`, and what an interrupted save left."""
    complete = sorted(Path(folder).glob("step-" + "[0-9]" * 8))
    for path in [*complete[: max(len(complete) - keep_last, 0)], *Path(folder).glob("step-*.partial")]:
        if keep is None or path.name != keep.name:
            shutil.rmtree(path)


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{name}"] = _whole(value.detach()).cpu().contiguous()
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, {"state": scalars, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *scalars["state"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": scalars["param_groups"]}


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: Mapping[str, torch.Tensor]):
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
