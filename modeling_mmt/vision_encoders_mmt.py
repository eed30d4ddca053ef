"""Vision encoders under the video tower: pixels in, the features that the TP head pools out.

Any picture encoder that `AutoModel` builds gives one vector a frame; the video encoders in `VIDEO_ENCODERS` give one
for each step of several frames. Several encoders side by side are experts, whose vectors a step concatenates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .dual_encoder_mmt import features_of, leave_half_out
from .efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from .freezing_mmt import keep_in_eval, learns
from .sentence_encoder_mmt import load_pretrained
from .vision_configuration_mmt import numbered

logger = logging.get_logger(__name__)

# model_type of each video encoder, and the field that says how many frames it takes at once
VIDEO_ENCODERS = {
    "videomae": "num_frames",
    "timesformer": "num_frames",
    "vivit": "num_frames",
    "vjepa2": "frames_per_clip",
}
# Halves of an encoder that gives no feature: a predictor of hidden patches.
UNUSED_PARTS = ("predictor",)
LAYER_STACKS = ("layers", "layer", "blocks", "stages")

# A checkpoint with this encoder loads in a process that has these files and no package.
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)


class MMTVisionEncoder(nn.Module):
    """One vision encoder: normalised pixels to one vector a picture, or a step of a video encoder.

    Args:
        config: of the encoder, any that `AutoModel` builds.
        pooling: `"pooler"` takes the encoder's own pooled vector, and without one the mean over its positions;
            `"mean"` always takes the mean, and the encoder's pooler is left out; `"features"` takes a whole dual
            encoder's `get_image_features`, and its text half is left out.
        encoder: a model of this configuration; `None` builds one with random weights.
    """

    def __init__(self, config: PreTrainedConfig, pooling: str = "pooler", encoder: PreTrainedModel | None = None):
        super().__init__()
        self.pooling = pooling
        self.encoder: Any = build_encoder(config) if encoder is None else encoder
        if pooling == "features":
            leave_half_out(self.encoder, "vision")
        for name in (*UNUSED_PARTS, *(("pooler",) if pooling == "mean" else ())):
            if getattr(self.encoder, name, None) is not None:
                setattr(self.encoder, name, None)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        cache_dir=None,
        pooling: str = "pooler",
        frames_per_step: int | None = None,
    ) -> "MMTVisionEncoder":
        """A pretrained encoder, in float32 and in eval mode.

        Args:
            name: name on the Hub, or a folder; of a model of pictures and text (CLIP, SigLIP) the vision half.
            revision: tag, branch or commit of it.
            cache_dir: where downloads are kept.
            pooling: as above.
            frames_per_step: of a video encoder, where it shall not be the number that its configuration says.

        Raises:
            ValueError: the weights lack a tensor that the encoder needs.
        """
        hub = {"revision": revision, "cache_dir": cache_dir}
        config = vision_half(AutoConfig.from_pretrained(name, **hub))
        set_frames_per_step(config, frames_per_step)
        encoder, info = load_pretrained(name, config=config, **hub)
        vision = cls(config, pooling, encoder)
        missing = sorted(set(info["missing_keys"]) & set(encoder.state_dict()))
        if missing:
            hint = "; with pooling 'mean' it needs no pooler" if missing[0].startswith("pooler.") else ""
            raise ValueError(f"{name}: the checkpoint lacks {missing[:5]}, which the encoder needs{hint}")
        return vision.eval()

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's."""
        return self.encoder.config

    @property
    def frames_per_step(self) -> int | None:
        """Frames of one step of a video encoder; `None` for a picture encoder."""
        return frames_per_step(self.config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode steps.

        Args:
            pixel_values: `(N, 3, H, W)` float, normalised as the encoder wants; of a video encoder
                `(N, T, 3, H, W)`.

        Returns:
            `(N, D)` float.

        Raises:
            ValueError: a wrong number of axes.
        """
        wanted = 4 if self.frames_per_step is None else 5
        if pixel_values.ndim != wanted:
            axes = "(N, 3, H, W)" if wanted == 4 else "(N, T, 3, H, W)"
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; {self.config.model_type} expects {axes}"
            )
        inputs: dict[str, Any] = {self.encoder.main_input_name: pixel_values}
        if self.config.model_type == "vjepa2":
            inputs["skip_predictor"] = True
        elif self.config.model_type == "siglip2_vision_model":
            inputs = naflex_inputs(pixel_values, self.config.patch_size)
        elif self.pooling == "features":
            return features_of(self.encoder.get_image_features(pixel_values=pixel_values))
        output = self.encoder(**inputs)
        pooled = getattr(output, "pooler_output", None) if self.pooling == "pooler" else None
        if pooled is None:
            hidden = output.last_hidden_state  # (N, C, H, W) of a convolutional network, (N, L, D) of a transformer
            pooled = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        return pooled.flatten(1)

    def frozen_parts(self, learning_layers: int | None) -> tuple[list[nn.Module], list[nn.Parameter]]:
        """What does not learn, where the last `learning_layers` layers and all that follows them do.

        Args:
            learning_layers: 0 freezes everything, `None` nothing.

        Returns:
            Whole modules, and parameters that stand outside them.

        Raises:
            ValueError: the encoder has no such stack of layers, or fewer.
        """
        if learning_layers is None:
            return [], []
        if learning_layers == 0:
            return [self], []
        layers = self._layers(learning_layers)
        first = layers[-learning_layers]
        modules: list[nn.Module] = []
        parameters: list[nn.Parameter] = []
        for module in self.modules():  # in the order of registration, which is the order of computation
            if module is first:
                break
            if any(inner is first for inner in module.modules()):
                parameters += module.parameters(recurse=False)
            else:
                modules.append(module)
        return modules, parameters

    def _layers(self, at_least: int) -> nn.ModuleList | nn.Sequential:
        depth = getattr(self.config, "num_hidden_layers", None)
        stacks = [
            module
            for name, module in self.encoder.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            and (len(module) == depth if isinstance(depth, int) else name.rpartition(".")[2] in LAYER_STACKS)
        ]
        if not stacks or len(stacks[0]) < at_least:
            stack = f"a stack of {len(stacks[0])} layers" if stacks else "no stack of layers found"
            raise ValueError(
                f"learn_vision_layers is {at_least}, but {self.config.model_type} has {stack}; 0 freezes the encoder, "
                "None trains all of it"
            )
        return stacks[0]


class MMTVisionModel(nn.Module):
    """The experts side by side: `pixel_values` of clips to the features that the TP head pools.

    Args:
        configs: of the experts, as `MMTConfig.vision_configs` has them.
        pooling: of `MMTVisionEncoder`.
        learning_layers: last layers of each expert that learn; 0 none, `None` all.
        batch_size: steps that go through an expert at a time.
    """

    def __init__(
        self, configs: Sequence[PreTrainedConfig], pooling: str, learning_layers: int | None, batch_size: int
    ):
        super().__init__()
        self.learning_layers, self.batch_size = learning_layers, batch_size
        self.experts = nn.ModuleList(MMTVisionEncoder(config, pooling) for config in configs)

    def encoders(self) -> list[MMTVisionEncoder]:
        """The experts, in order."""
        return [expert for expert in self.experts if isinstance(expert, MMTVisionEncoder)]

    def freeze(self):
        """Exclude from learning, and put in eval mode, what `learning_layers` leaves out."""
        for expert in self.encoders():
            modules, parameters = expert.frozen_parts(self.learning_layers)
            for parameter in (*parameters, *(p for module in modules for p in module.parameters())):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but frozen parts stay in eval mode, and so does every BatchNorm.

        A BatchNorm that learned from the frames of a batch would give a clip another embedding beside other clips.
        """
        super().train(mode)
        for expert in self.encoders():
            for module in expert.frozen_parts(self.learning_layers)[0]:
                keep_in_eval(module, mode)
            for module in expert.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, pixel_values: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Encode the real steps of clips.

        Args:
            pixel_values: of each expert, `(B, F, 3, H, W)` float, or `(B, F, T, 3, H, W)` of a video encoder.
            mask: `(B, F)` bool, True = real; the others are not encoded.

        Returns:
            `(B, F, D_v)` float, the experts' vectors side by side; zeros where `mask` is False.

        Raises:
            ValueError: a wrong number of experts, or a shape that is not the mask's.
        """
        if len(pixel_values) != len(self.experts):
            raise ValueError(
                f"pixels are given for {len(pixel_values)} vision encoders; vision_config has {len(self.experts)}"
            )
        streams = []
        for number, (expert, pixels) in enumerate(zip(self.encoders(), pixel_values, strict=True)):
            if pixels.shape[:2] != mask.shape:
                raise ValueError(
                    f"{pixels_name(number)} has shape {tuple(pixels.shape)}; expected {tuple(mask.shape)} before the "
                    "pixels, as video_mask"
                )
            if (
                torch.compiler.is_compiling()
            ):  # every shape is known: padding is encoded with the rest, and then dropped
                features = self._encode(expert, pixels.flatten(0, 1)).unflatten(0, mask.shape)
                streams.append(features.masked_fill(~mask.unsqueeze(-1), 0))
                continue
            features = self._encode(expert, pixels[mask])
            stream = features.new_zeros(*mask.shape, features.shape[-1])
            stream[mask] = features
            streams.append(stream)
        return torch.cat(streams, dim=-1)

    def _encode(self, expert: MMTVisionEncoder, steps: torch.Tensor) -> torch.Tensor:
        """Steps in micro-batches; where layers learn, a micro-batch's inner states are computed again backwards."""
        steps = steps.to(expert.encoder.device, expert.encoder.dtype)
        parts = [steps] if torch.compiler.is_compiling() else steps.split(self.batch_size)
        if not learns(expert):
            with torch.no_grad():
                return torch.cat([expert(part) for part in parts])
        if len(parts) > 1 and torch.is_grad_enabled():
            return torch.cat([checkpoint(expert, part, use_reentrant=False) for part in parts])
        return torch.cat([expert(part) for part in parts])


def build_encoder(config: PreTrainedConfig) -> Any:
    """An encoder with random weights, in the precision that the model around it is built in, not `config`'s old one.

    The halves of several dual encoders are no `AutoModel`s; their classes are named as their configurations are. Where
    the attention that the whole model is asked for is not one of its kinds, it keeps its own and says so.
    """
    # ours by name: a checkpoint's code may have been loaded several times, and so the class of its configuration
    is_ours = config.model_type == EfficientNetLiteConfig.model_type
    half = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if is_ours:
        build = EfficientNetLiteModel._from_config
    elif type(config) in MODEL_MAPPING or half is None:
        build = AutoModel.from_config
    else:
        build = half._from_config
    try:
        return build(config, dtype=torch.get_default_dtype())
    except ValueError:
        if config._attn_implementation in (None, "eager"):
            raise
        logger.warning(f"encoder {config.model_type} has no {config._attn_implementation!r} attention; it uses eager")
        config._attn_implementation = "eager"
        return build(config, dtype=torch.get_default_dtype())


def pixels_name(expert: int) -> str:
    """The name of an expert's pixels among the model's inputs: `pixel_values`, `pixel_values_1`, ..."""
    return numbered("pixel_values", expert)


def vision_half(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the vision encoder inside one of pictures and text; another one as it is."""
    return getattr(config, "vision_config", config)


def frames_per_step(config: PreTrainedConfig) -> int | None:
    """Frames that a video encoder of this configuration takes at once; `None` of a picture encoder."""
    field = VIDEO_ENCODERS.get(config.model_type)
    return None if field is None else getattr(config, field)


def set_frames_per_step(config: PreTrainedConfig, number: int | None) -> int | None:
    """Write `number` (`None`: leave it) into a video encoder's configuration; the frames of a step after that."""
    if number is not None and config.model_type in VIDEO_ENCODERS:
        setattr(config, VIDEO_ENCODERS[config.model_type], number)
    return frames_per_step(config)


def naflex_inputs(pixel_values: torch.Tensor, patch_size: int) -> dict[str, torch.Tensor]:
    """Pictures as SigLIP 2's NaFlex encoder takes them: patches, those of a picture's own shape first.

    Args:
        pixel_values: `(N, 3, H, W)` float; where a picture is smaller than the others, NaN below it and to its right.
        patch_size: side of a patch in pixels; what is left over at the right and below is cut off.
    """
    num, _, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values[..., : rows * patch_size, : columns * patch_size]
    patches = patches.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))  # (N, 3, R, p, C, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(num, rows, columns, -1)
    is_real = ~patches[..., 0].isnan()  # (N, R, C)
    order = is_real.flatten(1).int().argsort(dim=1, descending=True, stable=True)
    patches = patches.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, patches.shape[-1]))
    return {
        "pixel_values": patches.nan_to_num(0),
        "pixel_attention_mask": is_real.flatten(1).gather(1, order).long(),
        "spatial_shapes": torch.stack([is_real.any(2).sum(1), is_real.any(1).sum(1)], dim=1),
    }
