"""Tensors in safetensors files: written whole or not at all, and read with the torn one named."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import writing_file


class CheckpointError(InputError):
    """A checkpoint is torn, foreign or of another run; the message says which file and what to do."""


def load_tensors(path: str | os.PathLike, remedy: str = "delete the folder") -> dict[str, torch.Tensor]:
    """A safetensors file's tensors.

    Raises:
        CheckpointError: it is torn, or a tensor is not finite; the message ends with the `remedy`.
    """
    with naming_torn_weights(path, remedy):
        tensors = load_file(path)
    check_finite(tensors, path, remedy)
    return tensors


@contextmanager
def naming_torn_weights(source: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Let safetensors' errors name the file: `source`, or the first torn one in it where it is a folder.

    Raises:
        CheckpointError: in place of what safetensors raised, and of transformers' refusal of weights of other shapes.
    """
    try:
        yield
    except SafetensorError as error:
        path = Path(source)
        torn = next((file for file in sorted(path.glob("*.safetensors")) if not _has_header(file)), path)
        raise CheckpointError(f"{torn}: torn ({error}); {remedy}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        # transformers has listed the tensors by now
        raise CheckpointError(f"{source}: config.json does not fit the weights, as listed; {remedy}") from error


def _has_header(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def check_finite(tensors: Mapping[str, torch.Tensor], source: str | os.PathLike, remedy: str):
    """Refuse weights that would make every score NaN.

    A finite sum has finite terms, and is quicker than looking at each (by 20 times on one core); one that is not may
    have overflown, so then each is looked at.

    Raises:
        CheckpointError: a tensor holds NaN or infinity; names `source`, the tensor and the `remedy`.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} holds NaN or infinity; {remedy}")


def save_tensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all."""
    with writing_file(path) as partial:
        save_file(tensors, partial, metadata)
