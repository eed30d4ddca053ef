"""Frames of pictures and animations (GIF, WebP, APNG, AVIF), read with Pillow.

Where formats leave it open, what a picture shows is decided as browsers and FFmpeg decide it:

- A frame of an animation that lasts 10 ms or less, or does not say how long, lasts 100 ms, as in browsers
  (FFmpeg keeps 10 ms); a GIF counts in 10 ms, so that 20 ms is its shortest.
- The densities that a picture may declare for its two sides (JFIF, pHYs, TIFF's resolutions) are of its print: a pixel
  is square, as in browsers. A video's pixels may not be (`with_square_pixels`).
- A file of several pictures (TIFF, HEIC, a camera's JPEG) shows its first, or the one that it calls its primary one.
- 16-bit grey is 0 to 65535. A TIFF of 32-bit integers or of floats says nowhere which of its values is white, and
  neither browsers nor FFmpeg show one: it is refused.
"""

import bisect
import io
import struct
import zlib
from typing import Any

import torch

from .frames_mmt import (
    BAND_PIXELS,
    MAX_PIXELS,
    NUDGE,
    Frames,
    FrameSampling,
    VideoDecodingError,
    check_size,
    first_line,
    on_background,
    span_of,
)
from .picture_formats_mmt import picture_formats

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = None  # type: ignore[assignment]
    BOMBS: tuple[type[Exception], ...] = ()
else:
    BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

MAX_PICTURE_BYTES = 2**28
MAX_COMPOSED_PIXELS = 2**25
"""Of one frame of an animation, and of a GIF, WebP or AVIF, whose readers hold several copies. An 8K picture is below
it."""
MAX_ANIMATION_PIXELS = 2**33
"""Of an animation: its frames times their pixels, each of which must be decoded to know how long it lasts."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
"""What HEIC files call themselves at bytes 8 to 12; AVIF may have the last one too."""
DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, ArithmeticError, RuntimeError),
    *(MemoryError, struct.error, zlib.error),
    *BOMBS,
)
"""What Pillow raises where a picture is cut short, damaged or too large."""
_ORIENTATION = 0x0112  # of EXIF
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
        VideoDecodingError: it is none, or Pillow or what Pillow needs for it is not installed.
    """
    if Image is None:
        raise VideoDecodingError(f"{name} is a picture, and Pillow is not installed: pip install pillow")
    formats = picture_formats()
    try:
        image = Image.open(file, formats=formats)
    except DAMAGED as error:
        is_heic = file.getvalue()[8:12] in HEIC_BRANDS and "HEIF" not in formats
        remedy = ". It is HEIC: pip install pillow-heif" if is_heic else ""
        reason = first_line(error).replace(f" {file!r}", "")  # whose address is another each time
        raise VideoDecodingError(f"{name} cannot be read as a picture: {reason}{remedy}") from error
    if image.format == "PNG":
        _check_png(file.getbuffer(), name)
    return image


def _check_png(content: memoryview, name: str) -> None:
    """Compare the checksums of a PNG's pixels, which Pillow does not.

    Raises:
        VideoDecodingError: one is another.
    """
    place = 8
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if kind in (b"IDAT", b"fdAT") and end + 4 <= len(content):
            if zlib.crc32(content[place + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
                raise VideoDecodingError(f"{name} is damaged: a checksum of its pixels is wrong. Fetch it again")
        place = end + 4


def picture_pixels(image: Any, name: str) -> torch.Tensor:
    """`(H, W, 3)` uint8 of the frame that a Pillow image is at.

    Raises:
        VideoDecodingError: it is damaged or too large, or nothing says which of its values is white.
    """
    _check_picture(image, name)
    try:
        image.load()
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
            raise VideoDecodingError(
                f"{name} is a picture of {'floats' if image.mode == 'F' else '32-bit integers'}, which does not say "
                "which value is white. Save it with 8 or 16 bits"
            )
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        (width, height), has_alpha = image.size, image.has_transparency_data
        pixels = torch.empty(height, width, 3, dtype=torch.uint8)
        rows = max(1, BAND_PIXELS // width)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            pixels[top : top + rows] = _shown(band, has_alpha)
    except DAMAGED as error:
        if isinstance(error, VideoDecodingError):
            raise
        raise VideoDecodingError(f"{name} cannot be decoded: {first_line(error)}") from error
    return pixels


def _shown(image: Any, has_alpha: bool) -> torch.Tensor:
    """`(H, W, 3)` uint8 of an upright image."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    image = image.convert("RGBA" if has_alpha else "RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, -1)
    return on_background(pixels) if has_alpha else pixels


def _check_picture(image: Any, name: str) -> None:
    composed = image.format in ("GIF", "WEBP", "AVIF") or (image.format == "PNG" and image.is_animated)
    check_size(image.width, image.height, name, MAX_COMPOSED_PIXELS if composed else MAX_PIXELS)


def picture_frames(
    image: Any, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float | None, Frames]:
    """A picture, or an animation by the times that its frames are shown for."""
    _check_picture(image, name)
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
        milliseconds = image.info.get("duration") or 0
        now += (milliseconds if milliseconds > 10 else 100) / 1000
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
        _check_picture(image, name)  # a GIF may grow
        image.load()
    except VideoDecodingError:
        raise
    except DAMAGED as error:
        raise VideoDecodingError(f"{name}, frame {number}: cannot be decoded: {first_line(error)}") from error
