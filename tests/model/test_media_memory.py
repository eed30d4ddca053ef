"""Small files of frames as large as are allowed: none takes more than 1 GB over its decoded need.

That are the frames that it gives, and of a video those that its codec's level lets every decoder hold at that size.

`data/bomb.webp` and `data/bomb.avif` are two frames of 7680 x 4320 in one colour, written by Pillow 12 with
`save(..., save_all=True, lossless=True, quality=0, method=0)` and `save(..., save_all=True, speed=10)`.
"""

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import write_video

CEILING = 1024  # MiB over the need
DECODER_NEEDS = {"video.mp4": 6 * 7680 * 4320 * 3 // 2}  # bytes: H.264's level 6 has 5 references, and the one at work
DATA = Path(__file__).parents[1] / "data"
MEASURE = """
import json, sys, warnings
from pathlib import Path
import av, torch
from PIL import Image
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.video_decoding_mmt import VideoDecodingError, read_clip
warnings.simplefilter("ignore")
Image.init()
torch.nn.functional.interpolate(torch.zeros(1, 3, 9, 9, dtype=torch.uint8), (4, 4), mode="bilinear", antialias=True)

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

Path("/proc/self/clear_refs").write_text("5")
before, needed, message = kib("VmRSS:"), 0, ""
try:
    needed = read_clip(sys.argv[1], FrameSampling(num_frames=2), decoder="pyav").frames.numel()
except VideoDecodingError as error:
    message = str(error)
print(json.dumps([(kib("VmHWM:") - before) / 1024 - needed / 2**20, needed, message]))
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, num_frames: int = 1) -> bytes:
    """Clear pixels throughout, of a picture or an animation."""
    pack = zlib.compressobj(9)
    row = bytes(1 + 4 * width)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))]
    if num_frames > 1:
        parts.append(chunk(b"acTL", struct.pack(">II", num_frames, 0)))
    for number in range(num_frames):
        if num_frames > 1:
            control = struct.pack(">IIIIIHHBB", max(2 * number - 1, 0), width, height, 0, 0, 1, 10, 2, 1)
            parts.append(chunk(b"fcTL", control))
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number) + data) if number else chunk(b"IDAT", data))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def bmp(width: int, height: int) -> bytes:
    """Run lengths that end before the first pixel."""
    palette, data = bytes(1024), b"\x00\x01"
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def turned(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(path, Image.new("L", (8192, 8192), 7), exif=exif)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def animated_gif(path: Path) -> Path:
    frames = [Image.new("P", (7680, 4320), number) for number in range(3)]
    return saved(path, frames[0], save_all=True, append_images=frames[1:], duration=100, optimize=False)


def video(path: Path, codec: str, size: tuple[int, int], count: int = 20, **options: str) -> Path:
    return write_video(path, [np.zeros((size[1], size[0], 3), np.uint8)] * count, codec=codec, options=options)


EVERY_REFERENCE = "ref=16:bframes=0:rc-lookahead=0:sync-lookahead=0:scenecut=0"
BOMBS = {  # name -> what writes it to a path, and the width of its frames, or what the error says
    "picture.png": (lambda path: written(path, png(8192, 8192)), 8192),
    "animation.png": (lambda path: written(path, png(7680, 4320, 3)), 7680),
    "grey.png": (lambda path: saved(path, Image.new("L", (8192, 8192), 7)), 8192),
    "progressive.jpg": (
        lambda path: saved(path, Image.new("RGB", (8192, 8192), 7), progressive=True, subsampling=0),
        8192,
    ),
    "turned.jpg": (turned, 8192),
    "picture.tif": (lambda path: saved(path, Image.new("RGBA", (8192, 8192), 7), compression="tiff_deflate"), 8192),
    "picture.bmp": (lambda path: written(path, bmp(8192, 8192)), "cannot be decoded"),
    "animation.gif": (animated_gif, 7680),
    "animation.webp": (lambda path: written(path, (DATA / "bomb.webp").read_bytes()), 7680),
    "animation.avif": (lambda path: written(path, (DATA / "bomb.avif").read_bytes()), 7680),
    "video.mp4": (
        lambda path: video(path, "libx264", (7680, 4320), preset="ultrafast", **{"x264-params": EVERY_REFERENCE}),
        7680,
    ),
    "video.webm": (
        lambda path: video(path, "libvpx-vp9", (7680, 4320), deadline="realtime", **{"cpu-used": "8"}),
        7680,
    ),
    "video.mkv": (lambda path: video(path, "ffv1", (7680, 4320), 3), 7680),
    "large.mkv": (lambda path: video(path, "ffv1", (9000, 9000), 2), "9000 x 9000|cannot be decoded"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_at_most_1_gb_over_its_frames(tmp_path, name):
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc, which only Linux has")
    write, wanted = BOMBS[name]
    path = write(tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=300
    )
    over, needed, message = json.loads(result.stdout)
    over -= DECODER_NEEDS.get(name, 0) / 2**20
    print(f"{name}: {path.stat().st_size:,} bytes, {over:.0f} MiB over {needed / 2**20:.0f} {message}")
    assert over < CEILING
    if isinstance(wanted, int):
        assert needed >= wanted * 4320 * 3 and not message
    else:
        assert str(path) in message and re.search(wanted, message) and len(message.splitlines()) == 1
