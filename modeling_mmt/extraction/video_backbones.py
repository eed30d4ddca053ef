"""The two video networks whose features the paper used, for the weight files that their authors published.

    S3D, text-video, HowTo100M         s3d_howto100m.pth of antoine77340/S3D_HowTo100M (commit b8cd0bb): Miech et al.
                                       2020 (MIL-NCE), after S3D-G, Xie et al. 2018
    R(2+1)D-34, IG-65M                 r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth and its siblings of
                                       moabitcoin/ig65m-pytorch (commit fc749e2): Ghadiyaram et al. 2019, after
                                       Tran et al. 2018

Written from those descriptions; parameters carry the files' names, so that a file loads strictly, and through
`torch.load(weights_only=True)` alone. What has been checked: the names and shapes, which follow from the cited code,
and the arithmetic on random weights. What has not: equal outputs on the real files, which were not at hand.

Both take `(B, T, 3, S, S)`, as the other video encoders of this package, and give one vector for each run of T frames.
"""

import warnings
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for anything but tensors; nothing here unpickles

import torch
from torch import nn
from torch.nn import functional

from modeling_mmt.data.errors import InputError


class BackboneError(InputError):
    """A weight file is not what it must be; the message says where and what helps."""


class VideoBackbone(nn.Module):
    """A video network, and how its input is made.

    Attributes:
        image_size: side in pixels that it was trained with, or near it.
        frames_per_step: T.
        mean, std: per channel, of pixels in [0, 1].
    """

    image_size: int
    frames_per_step: int = 32
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, T, 3, H, W)` float, normalised, to `(B, D_v)`."""
        raise NotImplementedError


# --- S3D


def _same_pool(hidden: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    """Max pooling as TensorFlow pads it for sizes that the stride divides; zeros do, since all follows a ReLU."""
    padding: list[int] = []
    for size, step in zip(reversed(kernel), reversed(stride), strict=True):
        total = max(size - step, 0)
        padding += [total // 2, total - total // 2]
    return functional.max_pool3d(functional.pad(hidden, padding), kernel, stride, ceil_mode=True)


class _SeparableConv(nn.Module):
    """A convolution, batch normalisation and ReLU; separable: over space, and then the same again over time."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], padding=0, separable: bool = False):
        super().__init__()
        first = (1, *kernel[1:]) if separable else kernel
        self.conv1 = nn.Conv3d(dim_in, dim_out, first, padding=(0, 1, 1) if separable else padding, bias=False)
        self.bn1 = nn.BatchNorm3d(dim_out)
        if separable:
            self.conv2 = nn.Conv3d(dim_out, dim_out, (kernel[0], 1, 1), padding=(1, 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(dim_out)
        self.separable = separable

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.bn1(self.conv1(hidden)).relu()
        return self.bn2(self.conv2(hidden)).relu() if self.separable else hidden


class _Gate(nn.Module):
    """Channels weighted by a sigmoid of a linear map of their means over space and time."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.fc(hidden.mean(dim=(2, 3, 4))).sigmoid()[:, :, None, None, None]


class _Inception(nn.Module):
    """Four gated branches, side by side: 1x1, 1x1 then 3x3x3, 1x1 then 3x3x3, and pooled then 1x1."""

    def __init__(self, dim_in: int, b0: int, b1_a: int, b1_b: int, b2_a: int, b2_b: int, b3_b: int):
        super().__init__()
        one, three = (1, 1, 1), (3, 3, 3)
        self.conv_b0 = _SeparableConv(dim_in, b0, one)
        self.conv_b1_a = _SeparableConv(dim_in, b1_a, one)
        self.conv_b1_b = _SeparableConv(b1_a, b1_b, three, separable=True)
        self.conv_b2_a = _SeparableConv(dim_in, b2_a, one)
        self.conv_b2_b = _SeparableConv(b2_a, b2_b, three, separable=True)
        self.conv_b3_b = _SeparableConv(dim_in, b3_b, one)
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = map(_Gate, (b0, b1_b, b2_b, b3_b))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        branches = [
            self.gating_b0(self.conv_b0(hidden)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(hidden))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(hidden))),
            self.gating_b3(self.conv_b3_b(functional.max_pool3d(hidden, 3, stride=1, padding=1))),
        ]
        return torch.cat(branches, dim=1)


class S3D(VideoBackbone):
    """S3D-G with a space-to-depth stem; gives the video's embedding in the text-video space of MIL-NCE.

    Args:
        num_classes: width of that space.
    """

    image_size = 224

    def __init__(self, num_classes: int = 512):
        super().__init__()
        self.conv1 = _SeparableConv(24, 64, (2, 4, 4), padding=(1, 2, 2))
        self.conv_2b = _SeparableConv(64, 64, (1, 1, 1))
        self.conv_2c = _SeparableConv(64, 192, (3, 3, 3), separable=True)
        self.gating = _Gate(192)
        self.mixed_3b = _Inception(192, 64, 96, 128, 16, 32, 32)
        self.mixed_3c = _Inception(256, 128, 128, 192, 32, 96, 64)
        self.mixed_4b = _Inception(480, 192, 96, 208, 16, 48, 64)
        self.mixed_4c = _Inception(512, 160, 112, 224, 24, 64, 64)
        self.mixed_4d = _Inception(512, 128, 128, 256, 24, 64, 64)
        self.mixed_4e = _Inception(512, 112, 144, 288, 32, 64, 64)
        self.mixed_4f = _Inception(528, 256, 160, 320, 32, 128, 128)
        self.mixed_5b = _Inception(832, 256, 160, 320, 32, 128, 128)
        self.mixed_5c = _Inception(832, 384, 192, 384, 48, 128, 128)
        self.fc = nn.Linear(1024, num_classes)

    def mixed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, T, 3, H, W)`, T, H and W even, to `(B, 1024)`: the last block's mean."""
        pixel_values = pixel_values.transpose(1, 2)
        batch, channels, time, height, width = pixel_values.shape
        # space to depth: a 2 x 2 x 2 block of pixels becomes channels, the place in it before the colour
        hidden = pixel_values.reshape(batch, channels, time // 2, 2, height // 2, 2, width // 2, 2)
        hidden = hidden.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(
            batch, 8 * channels, time // 2, height // 2, width // 2
        )
        hidden = self.conv1(hidden)[:, :, 1:, 1:, 1:]  # an even kernel, padded on one side more
        hidden = self.conv_2b(_same_pool(hidden, (1, 3, 3), (1, 2, 2)))
        hidden = _same_pool(self.gating(self.conv_2c(hidden)), (1, 3, 3), (1, 2, 2))
        hidden = _same_pool(self.mixed_3c(self.mixed_3b(hidden)), (3, 3, 3), (2, 2, 2))
        for block in (self.mixed_4b, self.mixed_4c, self.mixed_4d, self.mixed_4e, self.mixed_4f):
            hidden = block(hidden)
        hidden = _same_pool(hidden, (2, 2, 2), (2, 2, 2))
        return self.mixed_5c(self.mixed_5b(hidden)).mean(dim=(2, 3, 4))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, T, 3, H, W)` in [0, 1], T, H and W even, to `(B, 512)`."""
        return self.fc(self.mixed(pixel_values))


# --- R(2+1)D


def _two_plus_one(dim_in: int, dim_between: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """A convolution over space, and one over time."""
    return nn.Sequential(
        nn.Conv3d(dim_in, dim_between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(dim_between),
        nn.ReLU(),
        nn.Conv3d(dim_between, dim_out, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


def _dim_between(dim_in: int, dim_out: int) -> int:
    """What gives the pair of convolutions the number of weights of a full 3 x 3 x 3 one."""
    return 27 * dim_in * dim_out // (9 * dim_in + 3 * dim_out)


class _ResidualBlock(nn.Module):
    """Two (2+1)D convolutions and a skip.

    The width inside its second one comes from that convolution's own channels, as in the Caffe2 network that the
    weights are of; torchvision takes the first one's, which differs where a stage begins.
    """

    def __init__(self, dim_in: int, dim_out: int, stride: int):
        super().__init__()
        first, second = _dim_between(dim_in, dim_out), _dim_between(dim_out, dim_out)
        self.conv1 = nn.Sequential(_two_plus_one(dim_in, first, dim_out, stride), nn.BatchNorm3d(dim_out), nn.ReLU())
        self.conv2 = nn.Sequential(_two_plus_one(dim_out, second, dim_out), nn.BatchNorm3d(dim_out))
        self.downsample = None
        if stride != 1 or dim_in != dim_out:
            self.downsample = nn.Sequential(nn.Conv3d(dim_in, dim_out, 1, stride, bias=False), nn.BatchNorm3d(dim_out))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        skip = hidden if self.downsample is None else self.downsample(hidden)
        return (skip + self.conv2(self.conv1(hidden))).relu()


class R2Plus1D34(VideoBackbone):
    """R(2+1)D with 34 layers; gives the mean of the last stage over space and time, before the classifier.

    Args:
        num_classes: of the classifier, which the file has and features do not need: 359 for the weights trained on
            IG-65M with runs of 32 frames, 487 with runs of 8, 400 for those fine-tuned on Kinetics.
    """

    image_size = 112
    mean = (0.43216, 0.394666, 0.37645)
    std = (0.22803, 0.22145, 0.216989)

    def __init__(self, num_classes: int = 359):
        super().__init__()
        self.frames_per_step = 8 if num_classes == 487 else 32
        self.stem = nn.Sequential(
            nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(45),
            nn.ReLU(),
            nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(),
        )
        dim_in = 64
        for number, (depth, dim_out) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
            stride = 1 if number == 1 else 2
            blocks = [_ResidualBlock(dim_in, dim_out, stride)]
            blocks += [_ResidualBlock(dim_out, dim_out, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            dim_in = dim_out
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = 1e-3  # Caffe2's

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, T, 3, H, W)`, normalised, to `(B, 512)`."""
        hidden = self.stem(pixel_values.transpose(1, 2))
        for number in range(1, 5):
            hidden = self.get_submodule(f"layer{number}")(hidden)
        return hidden.mean(dim=(2, 3, 4))


# --- the files

_TEXT = "text_module."  # of s3d_howto100m.pth: word vectors and two layers, which a video does not need


def load_backbone(path: str | Path) -> VideoBackbone:
    """The network of a published weight file, which its names tell apart, with those weights.

    Args:
        path: of a state dict. Nothing but tensors is read of it.

    Raises:
        FileNotFoundError: the file is missing.
        BackboneError: it holds more than tensors, is of neither network, or a weight is missing, left over or of
            another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; download the weight file that its authors published")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's old format
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, UnpicklingError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"{path}: no file of tensors alone ({first}); download it again, and never load it in another way"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BackboneError(f"{path}: no state dict; give the file that its authors published")
    model: VideoBackbone
    num_classes = len(weights["fc.weight"]) if "fc.weight" in weights else 0
    with torch.device("meta"):  # no random weights, which take longer than the file's
        if num_classes and "conv_2c.conv2.weight" in weights:
            model = S3D(num_classes)
            weights = {name: value for name, value in weights.items() if not name.startswith(_TEXT)}
        elif num_classes and "stem.3.weight" in weights:
            model = R2Plus1D34(num_classes)
        else:
            raise BackboneError(
                f"{path}: neither S3D's weights (conv_2c.conv2.weight, fc.weight) nor R(2+1)D's (stem.3.weight, "
                "fc.weight)"
            )
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise BackboneError(f"{path}: not the weights of {type(model).__name__}: {error}") from error
    return model.eval()
