"""EfficientNet-Lite, a small frame encoder that runs anywhere torch does.

timm has the same network (`tf_efficientnet_lite0`) but needs torchvision, whose PyPI wheel does not import beside the
CPU build of torch; transformers' `EfficientNetModel` always has squeeze-and-excitation, which the Lite family drops.
Written from the architecture: Tan & Le 2019 (B0), and the "Lite" changes: no squeeze-and-excitation, ReLU6 for SiLU,
a stem and head of fixed width.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Architecture of an EfficientNet-Lite; the defaults are Lite0.

    Args:
        num_channels: channels of a picture.
        stem_dim: output channels of the first convolution.
        stage_dims: output channels of each stage.
        stage_depths: blocks of each stage.
        stage_strides: stride of the first block of each stage.
        stage_kernels: depthwise kernel size of each stage.
        expand_ratios: width multiplier inside the blocks of each stage; 1 = no expansion convolution.
        hidden_size: width of `pooler_output`.
        head_dim: channels of the last convolution; `None`: `hidden_size`.
        num_classes: with classes, `pooler_output` is the mean of their vectors, weighted by the classifier's softmax
            (ConSE, Norouzi et al. 2014, section 3.2, over all classes); 0: the mean of the last feature map.
        temperature: that the classifier's logits are divided by.
        num_directions: with classes, the last so many numbers of `pooler_output` are the mean of the last feature map
            along as many directions.
        batch_norm_eps: TensorFlow's epsilon, which the published weights were trained with.
        image_size: native side in pixels; any size runs.
        image_mean: per-channel mean that the input is normalised with.
        image_std: per-channel standard deviation that the input is normalised with.
    """

    model_type = "efficientnet_lite"

    num_channels: int = 3
    stem_dim: int = 32
    stage_dims: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    stage_depths: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    stage_strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    stage_kernels: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    hidden_size: int = 1280
    head_dim: int | None = None
    num_classes: int = 0
    temperature: float = 1.0
    num_directions: int = 0
    batch_norm_eps: float = 1e-3
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)


class SamePaddingConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd pixel goes to the bottom and the right."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, C', ceil(H / stride), ceil(W / stride))`."""
        padding = []
        for size, kernel, stride in zip(reversed(hidden.shape[-2:]), self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(hidden, padding) if any(padding) else hidden)


def _convolution(dim_in: int, dim_out: int, kernel: int, config: EfficientNetLiteConfig, stride=1, groups=1):
    return [
        SamePaddingConv2d(dim_in, dim_out, kernel, stride=stride, groups=groups, bias=False),
        nn.BatchNorm2d(dim_out, eps=config.batch_norm_eps),
    ]


class EfficientNetLiteBlock(nn.Module):
    """Inverted residual: expand, depthwise, project; a skip where the shape is kept."""

    def __init__(
        self, config: EfficientNetLiteConfig, dim_in: int, dim_out: int, kernel: int, stride: int, expand: int
    ):
        super().__init__()
        dim = dim_in * expand
        layers = [*_convolution(dim_in, dim, 1, config), nn.ReLU6()] if expand != 1 else []
        layers += [*_convolution(dim, dim, kernel, config, stride, groups=dim), nn.ReLU6()]
        layers += _convolution(dim, dim_out, 1, config)
        self.layers = nn.Sequential(*layers)
        self.has_skip = stride == 1 and dim_in == dim_out

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`."""
        output = self.layers(hidden)
        return hidden + output if self.has_skip else output


class ClassMeans(nn.Module):
    """Pooled features to the mean of the classes' vectors, weighted by how likely a picture shows each.

    Args:
        config: says how many classes and directions there are and how wide everything is.
    """

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__()
        self.temperature = config.temperature
        head_dim = config.head_dim or config.hidden_size
        self.classifier = nn.Linear(head_dim, config.num_classes)
        self.vectors = nn.Linear(config.num_classes, config.hidden_size - config.num_directions, bias=False)
        self.directions = nn.Linear(head_dim, config.num_directions, bias=False)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(B, head_dim)` to `(B, hidden_size)`."""
        likely = (self.classifier(pooled) / self.temperature).softmax(dim=-1)
        return torch.cat([self.vectors(likely), self.directions(pooled)], dim=-1)


class EfficientNetLiteModel(PreTrainedModel):
    """Pictures in; a vector each in `pooler_output`: the mean of the last feature map, or of classes' vectors."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = nn.Sequential(*_convolution(config.num_channels, config.stem_dim, 3, config, stride=2), nn.ReLU6())
        blocks, dim_in = [], config.stem_dim
        stages = zip(
            config.stage_dims,
            config.stage_depths,
            config.stage_strides,
            config.stage_kernels,
            config.expand_ratios,
            strict=True,
        )
        for dim_out, depth, stride, kernel, expand in stages:
            for index in range(depth):
                blocks.append(
                    EfficientNetLiteBlock(config, dim_in, dim_out, kernel, stride if index == 0 else 1, expand)
                )
                dim_in = dim_out
        self.blocks = nn.Sequential(*blocks)
        head_dim = config.head_dim or config.hidden_size
        self.head = nn.Sequential(*_convolution(dim_in, head_dim, 1, config), nn.ReLU6())
        self.class_means = ClassMeans(config) if config.num_classes else None
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs):
        """Encode pictures.

        Args:
            pixel_values: `(B, 3, H, W)` float, normalised with the config's `image_mean` and `image_std`.
            return_dict: `False` for a tuple.
            kwargs: ignored; callers may pass what other encoders take.

        Returns:
            `last_hidden_state` `(B, head_dim, H / 32, W / 32)` and `pooler_output` `(B, hidden_size)`.
        """
        hidden = self.head(self.blocks(self.stem(pixel_values)))
        pooled = hidden.mean(dim=(-2, -1))
        if self.class_means is not None:
            pooled = self.class_means(pooled)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
        return output if return_dict is None or return_dict else output.to_tuple()
