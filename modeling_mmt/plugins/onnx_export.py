"""Both towers as ONNX files that need neither torch nor transformers to run, and an int8 text tower: `mmt export`.

`text_model.onnx`, `video_model.onnx` (features in) and `text_model_int8.onnx` are written beside `config.json` and the
processor's files, and of a model with vision encoders `pixel_model.onnx` (pixels in). Each takes any batch size and
length and gives unit-norm embeddings; the float ones are compared with the checkpoint's before the export ends. Needs
the extra `plugins`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import AutoConfig, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_mmt.data.errors import InputError
from modeling_mmt.modeling_mmt import MMTTextModelWithProjection, MMTVideoModelWithProjection, unit_norm
from modeling_mmt.vision_encoders_mmt import pixels_name

AXES = {"text": "tokens", "video": "steps", "pixel": "steps"}
OUTPUTS = {"text": "text_embeds", "video": "video_embeds", "pixel": "video_embeds"}
TOLERANCE = 1e-4  # of a unit-norm embedding's elements, float32 in both
INT8 = "text_model_int8.onnx"
MAX_WORDS = 300  # characters of an error of ONNX Runtime that are passed on


class UnitNormTower(torch.nn.Module):
    """A tower whose only output is its unit-norm embedding `(B, P)`.

    Args:
        tower: half of a checkpoint.
        names: of its inputs, in the order of `forward`'s.
    """

    def __init__(self, tower: torch.nn.Module, names: Sequence[str]):
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """`(B, N)` token ids, `(B, N, D_v)` features or `(B, N, ...)` pixels, and the mask `(B, N)`, to `(B, P)`."""
        return unit_norm(self.tower(**dict(zip(self.names, inputs, strict=True)))[0])


def export(folder: str | os.PathLike, output: str | os.PathLike, revision: str | None = None) -> Path:
    """Export a checkpoint.

    Args:
        folder: a checkpoint's, or a name on the Hub.
        output: folder to write to; files of the same names are replaced.
        revision: tag or commit, of a name on the Hub.

    Returns:
        `output`.

    Raises:
        ValueError: an exported tower's embeddings are not the checkpoint's, or its vision encoder has no ONNX form.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    hub: dict[str, Any] = {} if revision is None else {"revision": revision}
    config, processor = AutoConfig.from_pretrained(folder, **hub), AutoProcessor.from_pretrained(folder, **hub)
    towers = {"text": MMTTextModelWithProjection, "video": MMTVideoModelWithProjection}
    if config.vision_configs:
        towers["pixel"] = MMTVideoModelWithProjection
    for kind, cls in towers.items():
        # Eager attention has one graph for every mask; sdpa's shortcut for a mask of ones is decided by the example.
        tower = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **hub).eval()
        path = output / f"{kind}_model.onnx"
        pixels = processor.feature_extractor.pixels or ()
        _export_tower(kind, tower, path, pixels)
        try:
            _compare(kind, tower, path, pixels)
        except ValueError:
            path.unlink()
            raise
    _quantize(output / "text_model.onnx", output / INT8)
    config.to_json_file(output / "config.json")
    processor.save_pretrained(output)
    return output


def _quantize(path: Path, output: Path):
    """Words' embeddings and weights to int8; what flows between them is rounded for each token alone.

    A rounding over the whole batch (`quantize_dynamic`'s of products) would give a caption another embedding beside
    other captions.
    """
    quantize_dynamic(path, output, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
    products = MatMulNBitsQuantizer(onnx.load(output), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    products.process()
    products.model.save_model_to_file(str(output))


def _names(kind: str, config: Any) -> list[str]:
    if kind == "text":
        return ["input_ids", "attention_mask"]
    pixels = [pixels_name(number) for number in range(len(config.vision_configs))]
    return [*(pixels if kind == "pixel" else ["video_features"]), "video_mask"]


Pixels = Sequence[Mapping[str, Any]]  # the processor's settings of each vision encoder


def _example(kind: str, tower: Any, pixels: Pixels, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """A batch for a tower, by the names of its inputs."""
    generator = torch.Generator().manual_seed(batch_size)
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    values: list[torch.Tensor] = []
    if kind == "text":
        words = tower.config.text_config.vocab_size
        values = [torch.randint(words, (batch_size, length), generator=generator)]
    elif kind == "video":
        values = [torch.randn(batch_size, length, tower.config.video_feature_dim, generator=generator)]
    else:
        for each in pixels:
            frames = [each["frames_per_step"]] if each["frames_per_step"] else []
            shape = (batch_size, length, *frames, 3, each["height"], each["width"])
            values.append(torch.randn(shape, generator=generator))
    return dict(zip(_names(kind, tower.config), [*values, mask], strict=True))


def _export_tower(kind: str, tower: Any, path: Path, pixels: Pixels = ()):
    batch, axis = torch.export.Dim("batch"), torch.export.Dim(AXES[kind])
    example = _example(kind, tower, pixels, 2, min(6, tower.config.max_video_length))
    try:
        program = torch.onnx.export(
            UnitNormTower(tower, list(example)).eval(),
            tuple(example.values()),
            input_names=list(example),
            output_names=[OUTPUTS[kind]],
            dynamic_shapes=(tuple({0: batch, 1: axis} for _ in example),),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        encoders = ", ".join(config.model_type for config in tower.config.vision_configs)
        if kind != "pixel":
            raise
        raise ValueError(f"{path.name}: the vision encoder ({encoders}) has no ONNX form: {error}") from error
    assert program is not None  # `dynamo=True` gives one
    program.save(path, external_data=False)


def _compare(kind: str, tower: Any, path: Path, pixels: Pixels = ()):
    session = _session(path)
    longest = min(11, tower.config.max_video_length)
    for batch_size, length in ((1, 2), (3, longest)):
        inputs = _example(kind, tower, pixels, batch_size, length)
        with torch.inference_mode():
            expected = UnitNormTower(tower, list(inputs))(*inputs.values()).numpy()
        feed = {name: value.numpy() for name, value in inputs.items()}
        try:
            output = session.run(None, feed)[0]
        except (Fail, InvalidArgument, RuntimeException) as error:
            raise InputError(f"{path} does not run at {batch_size} x {length}: {error}") from error
        difference = float(np.abs(output - expected).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: an embedding is {difference:.2g} off the checkpoint's at {batch_size} x {length}"
            )


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _naming_file(path):
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Let what ONNX Runtime says of a file be one line that names it.

    Raises:
        InputError: in place of any of ONNX Runtime's errors, which have no class in common.
    """
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())[:MAX_WORDS]
        raise InputError(f"{path}: ONNX Runtime refuses it ({words}); export the checkpoint again") from error


class OnnxModel:
    """An exported folder in the place of a model: `retrieval.embed_texts` and `embed_videos` take it.

    Args:
        folder: written by `export`.
        int8: whether captions go through the int8 text tower.
    """

    device = torch.device("cpu")
    training = False

    def __init__(self, folder: str | os.PathLike, int8: bool = False):
        files = {"text": INT8 if int8 else "text_model.onnx", "video": "video_model.onnx", "pixel": "pixel_model.onnx"}
        self.paths = {kind: Path(folder, name) for kind, name in files.items()}
        self.sessions = {kind: _session(path) for kind, path in self.paths.items() if kind != "pixel" or path.exists()}

    def get_text_features(self, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        """`input_ids` and `attention_mask` `(B, L)` to a unit-norm `pooler_output` `(B, P)`."""
        return self._run("text", inputs)

    def get_video_features(self, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        """As `MMTModel.get_video_features`: features or pixels, and `video_mask` `(B, F)`; unit norm."""
        return self._run("pixel" if "pixel_values" in inputs else "video", inputs)

    def eval(self) -> "OnnxModel":
        """Nothing to do: it is never in training."""
        return self

    def train(self, mode: bool = True) -> "OnnxModel":
        """Nothing to do."""
        return self

    def _run(self, kind: str, inputs: dict[str, torch.Tensor]) -> BaseModelOutputWithPooling:
        session = self.sessions[kind]
        feed = {node.name: inputs[node.name].numpy() for node in session.get_inputs() if node.name in inputs}
        with _naming_file(self.paths[kind]):
            return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(session.run(None, feed)[0]))
