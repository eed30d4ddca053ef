"""Frames of pictures and animations (GIF, WebP, APNG, AVIF): Pillow."""

import bisect
import io
import struct
from typing import Any

import torch

from .frames_mmt import (
    NUDGE,
    Frames,
    FrameSampling,
    VideoDecodingError,
    check_size,
    first_line,
    on_background,
    span_of,
)

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = None  # type: ignore[assignment]

MAX_PICTURE_BYTES = 2**28
MAX_ANIMATION_PIXELS = 2**33
"""Of an animation: its frames times their pixels, each of which must be decoded to know how long it lasts."""

_PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# What Pillow raises where a picture is cut short or damaged; a GIF's reader indexes into what is not there.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")


def is_picture(source: Any) -> bool:
    """Whether it is an image of Pillow."""
    return Image is not None and isinstance(source, Image.Image)


def picture_bytes(file: Any, name: str) -> bytes:
    """All of a binary file.

    Raises:
        VideoDecodingError: it is too large for a picture.
    """
    file.seek(0)
    content = file.read(MAX_PICTURE_BYTES + 1)
    if len(content) > MAX_PICTURE_BYTES:
        raise VideoDecodingError(f"{name} is a picture of more than {MAX_PICTURE_BYTES} bytes. Shrink it first")
    return content


def open_picture(file: io.BytesIO, name: str) -> Any:
    """The image of Pillow, not yet decoded.

    Raises:
        VideoDecodingError: it is none, or Pillow is not installed.
    """
    if Image is None:
        raise VideoDecodingError(f"{name} is a picture, and Pillow is not installed: pip install pillow")
    Image.init()
    try:
        return Image.open(file, formats=[one for one in _PICTURES if one in Image.OPEN])  # AVIF: from Pillow 11.3
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise VideoDecodingError(f"{name} cannot be read as a picture: {first_line(error)}") from error


def picture_pixels(image: Any, name: str) -> torch.Tensor:
    """`(H, W, 3)` uint8 of the frame that a Pillow image is at."""
    check_size(image.width, image.height, name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
            image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        has_alpha = image.has_transparency_data
        image = image.convert("RGBA" if has_alpha else "RGB")
        width, height = image.size
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, -1)
    except DAMAGED as error:
        raise VideoDecodingError(f"{name} cannot be decoded: {first_line(error)}") from error
    return on_background(pixels) if has_alpha else pixels


def picture_frames(
    image: Any, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float | None, Frames]:
    """A picture, or an animation by the times that its frames are shown for."""
    check_size(image.width, image.height, name)
    first = int(bool(image.info.get("default_image")))  # of an APNG: what is shown where APNG is not understood
    try:
        count = getattr(image, "n_frames", 1) if image.format in _ANIMATIONS else 1
    except DAMAGED as error:
        raise VideoDecodingError(f"{name}: its frames cannot be counted: {first_line(error)}") from error
    if count - first < 2:
        return None, iter([(0.0, picture_pixels(image, name))])
    if count * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise VideoDecodingError(
            f"{name} declares {count} frames of {image.width} x {image.height} pixels; the limit is "
            f"{MAX_ANIMATION_PIXELS} in all. Convert it to mp4 or webm"
        )
    begins, now = [], 0.0
    for number in range(first, count):
        _go_to(image, number, name)
        begins.append(now)
        now += (image.info.get("duration") or 100) / 1000  # browsers give a frame without a duration 100 ms
    span = span_of(start, end, now, name)
    times = [span.start + time for time in sampling.times(span.duration)]
    numbers = sorted({bisect.bisect_right(begins, time + NUDGE) - 1 for time in times})

    def sampled() -> Frames:
        for number in range(numbers[-1] + 1):
            _go_to(image, first + number, name)
            if number in numbers:
                yield max(begins[number] - span.start, 0.0), picture_pixels(image, name)

    return span.duration, sampled()


def _go_to(image: Any, number: int, name: str) -> None:
    try:
        image.seek(number)
        image.load()
    except DAMAGED as error:
        raise VideoDecodingError(f"{name}, frame {number}: cannot be decoded: {first_line(error)}") from error
