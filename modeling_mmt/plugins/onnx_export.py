"""Both towers as ONNX files that need neither torch nor transformers to run, and an int8 text tower: `mmt export`.

`text_model.onnx`, `video_model.onnx` and `text_model_int8.onnx` are written beside the processor's files. Each takes
any batch size and length and gives unit-norm embeddings; the float ones are compared with the checkpoint's before the
export ends. Needs the extra `plugins`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_mmt.modeling_mmt import MMTTextModelWithProjection, MMTVideoModelWithProjection, unit_norm

INPUTS = {"text": ("input_ids", "attention_mask"), "video": ("video_features", "video_mask")}
AXES = {"text": "tokens", "video": "steps"}
TOLERANCE = 1e-4  # of a unit-norm embedding's elements, float32 in both
INT8 = "text_model_int8.onnx"


class UnitNormTower(torch.nn.Module):
    """A tower whose only output is its unit-norm embedding `(B, P)`."""

    def __init__(self, tower: torch.nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(B, N)` token ids or `(B, N, D_v)` features, and their mask `(B, N)`, to `(B, P)`."""
        names = INPUTS["text" if self.tower.main_input_name == "input_ids" else "video"]
        return unit_norm(self.tower(**dict(zip(names, (sequence, mask), strict=True)))[0])


def export(folder: str | os.PathLike, output: str | os.PathLike, revision: str | None = None) -> Path:
    """Export a checkpoint.

    Args:
        folder: a checkpoint's, or a name on the Hub.
        output: folder to write to; files of the same names are replaced.
        revision: tag or commit, of a name on the Hub.

    Returns:
        `output`.

    Raises:
        ValueError: an exported tower's embeddings are not the checkpoint's.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    for kind, cls in (("text", MMTTextModelWithProjection), ("video", MMTVideoModelWithProjection)):
        # Eager attention has one graph for every mask; sdpa's shortcut for a mask of ones is decided by the example.
        tower = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **hub).eval()
        path = output / f"{kind}_model.onnx"
        _export_tower(kind, tower, path)
        _compare(kind, tower, path)
    # Each output column has a scale of its own.
    quantize_dynamic(output / "text_model.onnx", output / INT8, per_channel=True, weight_type=QuantType.QInt8)
    AutoProcessor.from_pretrained(folder, **hub).save_pretrained(output)
    return output


def _example(kind: str, tower: Any, batch_size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch_size)
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    if kind == "text":
        words = tower.config.text_config.vocab_size
        return torch.randint(words, (batch_size, length), generator=generator), mask
    return torch.randn(batch_size, length, tower.config.video_feature_dim, generator=generator), mask


def _export_tower(kind: str, tower: Any, path: Path):
    batch, axis = torch.export.Dim("batch"), torch.export.Dim(AXES[kind])
    program = torch.onnx.export(
        UnitNormTower(tower).eval(),
        _example(kind, tower, 2, min(6, tower.config.max_video_length)),
        input_names=list(INPUTS[kind]),
        output_names=[f"{kind}_embeds"],
        dynamic_shapes=({0: batch, 1: axis}, {0: batch, 1: axis}),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # `dynamo=True` gives one
    program.save(path, external_data=False)


def _compare(kind: str, tower: Any, path: Path):
    session = _session(path)
    longest = min(11, tower.config.max_video_length)
    for batch_size, length in ((1, 2), (3, longest)):
        inputs = _example(kind, tower, batch_size, length)
        with torch.inference_mode():
            wanted = UnitNormTower(tower)(*inputs).numpy()
        feed = {name: value.numpy() for name, value in zip(INPUTS[kind], inputs, strict=True)}
        apart = float(np.abs(session.run(None, feed)[0] - wanted).max())
        if not apart <= TOLERANCE:
            raise ValueError(f"{path}: an embedding is {apart:.2g} off the checkpoint's at {batch_size} x {length}")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxModel:
    """An exported folder in the place of a model: `retrieval.embed_texts` and `embed_videos` take it.

    Args:
        folder: written by `export`.
        int8: whether captions go through the int8 text tower.
    """

    device = torch.device("cpu")
    training = False

    def __init__(self, folder: str | os.PathLike, int8: bool = False):
        self.sessions = {
            "text": _session(Path(folder, INT8 if int8 else "text_model.onnx")),
            "video": _session(Path(folder, "video_model.onnx")),
        }

    def get_text_features(self, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        """`input_ids` and `attention_mask` `(B, L)` to a unit-norm `pooler_output` `(B, P)`."""
        return self._run("text", inputs)

    def get_video_features(self, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        """`video_features` `(B, F, D_v)` and `video_mask` `(B, F)` to a unit-norm `pooler_output` `(B, P)`."""
        return self._run("video", inputs)

    def eval(self) -> "OnnxModel":
        """Nothing to do: it is never in training."""
        return self

    def train(self, mode: bool = True) -> "OnnxModel":
        """Nothing to do."""
        return self

    def _run(self, kind: str, inputs: dict[str, torch.Tensor]) -> BaseModelOutputWithPooling:
        feed = {name: inputs[name].numpy() for name in INPUTS[kind]}
        return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(self.sessions[kind].run(None, feed)[0]))
