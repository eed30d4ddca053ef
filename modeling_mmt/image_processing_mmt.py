"""Turns frames into a vision encoder's pixels with torch alone: no torchvision, PIL or numpy.

What an encoder wants stands in its own `preprocessor_config.json` (or a timm `pretrained_cfg`), and `PixelSettings` is
the part of it that matters. Resizing works on uint8 with antialiasing, first across and then down, as Pillow's did
until 12: the result is within two levels of 255 of the encoder's own processor, at 99 of 100 pixels the same. Pillow
13 takes frames that shrink most in height down first, which on pure noise is up to 17 levels apart.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

try:
    from PIL import Image
except ImportError:  # torch resizes in its place
    Image = None  # type: ignore[assignment]
from torch.nn.functional import interpolate, pad
from transformers.utils import cached_file

# PIL's numbers, in which the files of the Hub say how frames are resized, and torch's names.
RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
SETTINGS_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json", "config.json")
MAX_SIDE, MAX_FRAMES_PER_STEP = 4096, 1024  # a settings file may come from anywhere


@dataclass(frozen=True)
class PixelSettings:
    """How frames become the input of one vision encoder.

    Args:
        height: of what the encoder sees, in pixels; cut from the middle, or filled up with black around it.
        width: the same across.
        resize: before the cut: `(height, width)`, or one number for the shorter side; `None` does not resize.
        resample: `"bicubic"`, `"bilinear"` or `"nearest-exact"`; the first two are antialiased.
        scale: what a pixel's 0 to 255 is multiplied by.
        mean: of each channel, taken away after that.
        std: of each channel, then divided by.
        frames_per_step: frames that a video encoder turns into one step; `None` for a picture encoder.
        resize_by: `"torch"`, or `"pillow"` for the very pixels of transformers' processors (where Pillow is missing,
            torch's).
        max_patches: of an encoder that takes pictures of any shape (SigLIP 2's NaFlex): a picture keeps its own, and
            is resized to at most this many patches; `height` and `width` are then a square one's. `None` for others.
        patch_size: side of such a patch in pixels.

    Raises:
        ValueError: a value is outside its range; names the field.
    """

    height: int
    width: int
    resize: int | tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bicubic"
    scale: float = 1 / 255
    frames_per_step: int | None = None
    resize_by: str = "torch"
    max_patches: int | None = None
    patch_size: int = 16

    def __post_init__(self):
        """Lists, as JSON has them, to tuples; ranges."""
        for name in ("resize", "mean", "std"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        rules = {
            "height": (_is_side(self.height), f"1 to {MAX_SIDE}"),
            "width": (_is_side(self.width), f"1 to {MAX_SIDE}"),
            "resize": (
                self.resize is None or (len(sides) <= 2 and all(map(_is_side, sides))),
                f"one side or two of 1 to {MAX_SIDE}, or None",
            ),
            "resample": (self.resample in RESAMPLING.values(), f"one of {', '.join(RESAMPLING.values())}"),
            "scale": (_is_number(self.scale) and self.scale > 0, "a positive number"),
            "mean": (len(self.mean) == 3 and all(map(_is_number, self.mean)), "three numbers"),
            "std": (len(self.std) == 3 and all(_is_number(x) and x > 0 for x in self.std), "three positive numbers"),
            "frames_per_step": (
                self.frames_per_step is None or _is_side(self.frames_per_step, MAX_FRAMES_PER_STEP),
                f"None or 1 to {MAX_FRAMES_PER_STEP}",
            ),
            "resize_by": (self.resize_by in ("torch", "pillow"), "'torch' or 'pillow'"),
            "max_patches": (self.max_patches is None or _is_side(self.max_patches), f"None or 1 to {MAX_SIDE}"),
            "patch_size": (_is_side(self.patch_size), f"1 to {MAX_SIDE}"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ValueError(f"PixelSettings.{name} is {getattr(self, name)!r}; allowed: {allowed}")

    @classmethod
    def from_processor(cls, settings: Mapping[str, Any], frames_per_step: int | None = None) -> "PixelSettings":
        """From what an image or video processor saves, or a timm `pretrained_cfg`.

        Args:
            settings: the content of a `preprocessor_config.json` or `config.json`.
            frames_per_step: of a video encoder.

        Raises:
            ValueError: it does not say size, mean or standard deviation, or asks for what is not supported.
        """
        if "pretrained_cfg" in settings:
            return cls(**_timm_settings(settings["pretrained_cfg"]), frames_per_step=frames_per_step)
        return cls(**_processor_settings(settings), frames_per_step=frames_per_step)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, cache_dir=None, frames_per_step: int | None = None
    ) -> "PixelSettings":
        """Of an encoder on the Hub or in a folder.

        Args:
            name: the encoder's name or folder.
            revision: tag, branch or commit of it.
            cache_dir: where downloads are kept.
            frames_per_step: of a video encoder.

        Raises:
            ValueError: no file of it says how frames are prepared.
        """
        for file in SETTINGS_FILES:
            path = cached_file(
                str(name), file, revision=revision, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False
            )
            settings = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
            if file == "processor_config.json":
                settings = settings.get("video_processor") or settings.get("image_processor") or {}
            says = {"image_mean", "pretrained_cfg", "max_num_patches"} & set(settings)
            if says or settings.get("do_normalize") is False:
                try:
                    return cls.from_processor(settings, frames_per_step)
                except ValueError as error:
                    raise ValueError(f"{name}: {file}: {error}") from error
        raise ValueError(
            f"{name}: no image_mean and image_std in {', '.join(SETTINGS_FILES[:3])}; save its image processor there, "
            "or give PixelSettings"
        )

    def at(self, side: int) -> "PixelSettings":
        """The same for squares of another `side`; what is cut off stays the same share of a frame."""
        resize = self.resize
        if isinstance(resize, int):
            resize = round(resize * side / min(self.height, self.width))
        elif resize is not None:
            resize = (round(resize[0] * side / self.height), round(resize[1] * side / self.width))
        patches = None if self.max_patches is None else (side // self.patch_size) ** 2
        return replace(self, height=side, width=side, resize=resize, max_patches=patches)

    def resized(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `(F, 3, H, W)` uint8 to `(F, 3, height, width)` uint8; with `max_patches` they keep their shape.

        Raises:
            ValueError: `frames` is no such tensor.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}; expected uint8 (F, 3, H, W)")
        height, width = frames.shape[-2:]
        if self.max_patches is not None:
            return self._resize(frames, naflex_size(height, width, self.patch_size, self.max_patches))
        if self.resize is not None:
            if isinstance(self.resize, tuple):
                size = self.resize
            elif height <= width:
                size = (self.resize, self.resize * width // height)
            else:
                size = (self.resize * height // width, self.resize)
            frames = self._resize(frames, size)
        return center_crop(frames, self.height, self.width)

    def _resize(self, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if size == tuple(frames.shape[-2:]):
            return frames
        if self.resize_by == "torch" or Image is None:
            return interpolate(frames, size, mode=self.resample, antialias=self.resample != "nearest-exact")
        number = next(number for number, name in RESAMPLING.items() if name == self.resample)
        pictures = [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).contiguous().numpy()]
        resized = b"".join(picture.resize(size[::-1], number).tobytes() for picture in pictures)
        return torch.frombuffer(bytearray(resized), dtype=torch.uint8).view(-1, *size, 3).permute(0, 3, 1, 2)

    def normalized(self, frames: torch.Tensor) -> torch.Tensor:
        """`(..., 3, height, width)` uint8 to float32: times `scale`, less `mean`, over `std`."""
        mean = torch.tensor(self.mean, device=frames.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=frames.device).view(3, 1, 1)
        return (frames.float() * self.scale - mean) / std

    def prepare(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames to steps.

        Args:
            frames: `(F, 3, H, W)` uint8 RGB.

        Returns:
            `(F, 3, height, width)` float32; with `frames_per_step` T, `(ceil(F / T), T, 3, height, width)`, where the
            last frame is repeated to fill the last step.
        """
        pixels = self.normalized(self.resized(frames))
        return pixels if self.frames_per_step is None else in_steps(pixels, self.frames_per_step)


def in_steps(frames: torch.Tensor, length: int) -> torch.Tensor:
    """`(F, ...)` frames to `(ceil(F / length), length, ...)`; the last one is repeated to fill the last step."""
    filling = frames[-1:].expand(-len(frames) % length, *frames.shape[1:])
    return torch.cat([frames, filling]).unflatten(0, (-1, length))


def center_crop(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle `(..., height, width)` of frames; what is missing is black. An odd pixel is cut at the end."""
    missing = [max(size - have, 0) for size, have in ((height, frames.shape[-2]), (width, frames.shape[-1]))]
    if any(missing):
        (top, left), (bottom, right) = [-(-size // 2) for size in missing], [size // 2 for size in missing]
        frames = pad(frames, (left, right, top, bottom))
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def _is_side(value: Any, largest: int = MAX_SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def _resampling(number: Any) -> str:
    if number not in RESAMPLING:
        raise ValueError(
            f"resample is {number!r}; supported: {', '.join(f'{k} ({v})' for k, v in RESAMPLING.items())}"
        )
    return RESAMPLING[number]


def _height_width(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= {key for key, value in size.items() if value}:
        return size["height"], size["width"]
    raise ValueError(f"{name} is {size!r}; expected {{'height': ..., 'width': ...}}")


def _processor_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields from what an image processor of transformers saves."""
    if "max_num_patches" in settings:
        return _naflex_settings(settings)
    size, crop = settings.get("size"), settings.get("crop_size")
    crops = settings.get("do_center_crop") and crop is not None
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size if crops else None
    resize: int | tuple[int, int] | None = None
    if not settings.get("do_resize", True):
        target = _height_width(crop if crops else size, "crop_size" if crops else "size")
    elif shortest and "crop_pct" in settings and not crops:  # ConvNeXt: cut only where small
        target = (shortest, shortest)
        resize = target if shortest >= 384 else int(shortest / settings["crop_pct"])
    elif shortest:
        if not crops:
            raise ValueError(f"size is {size!r} without a center crop: shapes would differ; give crop_size")
        target, resize = _height_width(crop, "crop_size"), shortest
    else:
        resize = _height_width(size, "size")
        target = _height_width(crop, "crop_size") if crops else resize
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        if "image_mean" not in settings or "image_std" not in settings:
            raise ValueError("no image_mean and image_std")
        mean, std = _channels(settings["image_mean"]), _channels(settings["image_std"])
        if settings.get("include_top"):  # EfficientNet divides twice
            std = _channels([x**2 for x in std])
    if settings.get("rescale_offset", settings.get("offset")):  # EfficientNet and ViViT: from -1 to 1
        mean = _channels([x + 1 for x in mean])
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    resample = _resampling(settings.get("resample", 2)) if resize is not None else "bicubic"
    return dict(
        height=target[0], width=target[1], resize=resize, resample=resample, scale=scale, mean=mean, std=std
    )  # fmt: skip


def _naflex_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields from what SigLIP 2's NaFlex processor saves: its patches are cut from pictures of any shape."""
    patch, patches = settings.get("patch_size", 16), settings["max_num_patches"]
    if not (_is_side(patch) and _is_side(patches, MAX_SIDE**2)):
        raise ValueError(f"max_num_patches is {patches!r} and patch_size {patch!r}; expected whole numbers")
    side = patch * math.isqrt(patches)
    rest = {name: value for name, value in settings.items() if name not in ("max_num_patches", "crop_size")}
    square = _processor_settings(rest | {"size": {"height": side, "width": side}, "do_center_crop": False})
    return square | {"max_patches": patches, "patch_size": patch}


def naflex_size(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """The `(height, width)` that SigLIP 2's NaFlex processor resizes a picture to.

    The largest scale, to 1e-5, at which the picture's sides, rounded up to whole patches, have `most` patches.
    """

    def at(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows * patch, columns * patch

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = (side // patch for side in at(middle))
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    return at(low)


def _channels(values: Any) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,) * 3


def _timm_settings(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """The fields from a timm `pretrained_cfg`, as `timm.data.create_transform` reads it for evaluation."""
    lacking = [name for name in ("input_size", "mean", "std") if name not in pretrained]
    if lacking:
        raise ValueError(f"pretrained_cfg has no {lacking[0]}")
    height, width = pretrained["input_size"][-2:]
    mode, share = pretrained.get("crop_mode", "center"), pretrained.get("crop_pct", 0.875)
    if mode == "squash":
        resize: Any = (int(height / share), int(width / share))
    elif mode == "center" and height == width:
        resize = int(height / share)
    else:
        raise ValueError(f"pretrained_cfg.crop_mode is {mode!r} at {height} x {width}; supported: 'center' of squares")
    resample = {"bicubic": "bicubic", "bilinear": "bilinear"}.get(pretrained.get("interpolation", "bilinear"))
    if resample is None:
        raise ValueError(f"pretrained_cfg.interpolation is {pretrained['interpolation']!r}; bicubic or bilinear")
    mean, std = _channels(pretrained["mean"]), _channels(pretrained["std"])
    return dict(height=height, width=width, resize=resize, resample=resample, mean=mean, std=std)
