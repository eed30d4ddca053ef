"""Videos whose frames say their number: two halves of grey, the number's two digits to base 16."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

STEP = 15  # grey levels between digits; what a lossy codec does is far less


def number_frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """`(H, W, 3)` uint8 of frame `number` < 256."""
    frame = np.empty((size[1], size[0], 3), np.uint8)
    frame[:, : size[0] // 2], frame[:, size[0] // 2 :] = STEP * (number // 16), STEP * (number % 16)
    return frame


def numbers_of(frames: torch.Tensor) -> list[int]:
    """What `(F, 3, H, W)` frames say; the middle of each half is read."""
    width = frames.shape[-1]
    middle = frames.float().mean(dim=(1, 2))
    digits = (middle[:, [width // 4, width - width // 4 - 1]] / STEP).round().int()
    return (digits[:, 0] * 16 + digits[:, 1]).tolist()


def write_video(
    path: Path | io.BytesIO,
    frames: Sequence[np.ndarray] | int = 60,
    *,
    codec: str = "libx264",
    rate: int = 25,
    times: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    file_format: str | None = None,
    file_options: dict[str, str] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    source_format: str = "rgb24",
) -> Path | io.BytesIO:
    """Encode frames, or so many that say their number; `times`, in milliseconds, makes their rate vary."""
    frames = [number_frame(number) for number in range(frames)] if isinstance(frames, int) else frames
    target = path if isinstance(path, io.BytesIO) else str(path)
    with av.open(target, "w", format=file_format, options=file_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=source_format)
            frame.pts = number if times is None else times[number]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
