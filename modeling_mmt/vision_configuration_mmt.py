"""Configurations of vision encoders: the allowed values of `MMTConfig.vision_config`, and the widths of features."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

MAX_LAYERS, MAX_SIZE = 1024, 2**20  # a config.json may come from anywhere: what it asks for is bounded

# Where configurations say how wide an encoder's vector is; timm's and the convolutional families have other names.
VISION_WIDTHS = ("hidden_size", "hidden_sizes", "num_features", "hidden_dim")
UNTOLD_WIDTHS = ("align_vision_model",)  # its hidden_dim is EfficientNet's, whose last layer it leaves out
# Keys of a saved encoder that say where it came from and in which precision, and nothing about it.
PROVENANCE = (
    *("_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version"),
    *("dtype", "torch_dtype"),
)


def numbered(name: str, expert: int) -> str:
    """What belongs to a vision encoder, by its place: `name`, `name_1`, `name_2`, ..."""
    return f"{name}_{expert}" if expert else name


def vision_encoder_config(config: Any, whole: bool = False) -> PreTrainedConfig:
    """A vision encoder's configuration, with the defaults of the installed transformers written out.

    Args:
        config: its `config.json` as a dict or a `PreTrainedConfig`; of a model of pictures and text, the vision half.
        whole: whether such a model stays whole instead.

    Raises:
        ValueError: it is neither, has no `model_type`, or a size that no encoder has.
    """
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    if isinstance(fields, dict) and isinstance(fields.get("vision_config"), dict) and not whole:
        fields = fields["vision_config"]
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(
            f"vision_config: no `model_type` in {fields!r:.100}; give the encoder's config.json as a dict"
        )
    _check_vision_sizes(fields)
    return AutoConfig.for_model(**{key: value for key, value in fields.items() if key not in PROVENANCE})


def vision_width(config: PreTrainedConfig) -> int | None:
    """The width of the vector that a vision encoder makes; `None` if its configuration does not say it."""
    if config.model_type in UNTOLD_WIDTHS:
        return None
    fields = config.to_dict()
    for name in VISION_WIDTHS:
        value = fields.get(name)
        value = value[-1] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int):
            return value
    return None


def _check_vision_sizes(fields: dict[str, Any]):
    for name, value in fields.items():
        if isinstance(value, dict) and name.endswith("_config"):  # half of a dual encoder
            _check_vision_sizes(value)
        sizes = value if isinstance(value, list | tuple) else [value]
        longest = MAX_LAYERS if "layers" in name or "depth" in name else MAX_SIZE
        if any(isinstance(size, int) and abs(size) > longest for size in sizes) or len(sizes) > MAX_SIZE:
            raise ValueError(f"vision_config.{name} is {value!r:.60}; allowed: up to {longest}")


def vision_parameters(config: PreTrainedConfig) -> int:
    """About the parameters of a transformer of these sizes; a convolutional network's are few."""
    names = ("num_hidden_layers", "hidden_size", "intermediate_size")
    depth, width, inner = (size if isinstance(size := getattr(config, name, None), int) else 0 for name in names)
    return depth * width * (4 * width + 2 * (inner or 4 * width))
