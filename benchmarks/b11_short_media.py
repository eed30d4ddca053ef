"""B11: extraction of photographs and of short clips on all cores, against decoding alone and encoding alone.

    python benchmarks/b11_short_media.py --output results/benchmarks/b11_short_media.json    # 5 minutes on 2 cores
    python benchmarks/b11_short_media.py --quick

N photographs of 1024 x 768 (JPEG), and N / 4 clips of two seconds of 640 x 360 at 25 a second (H.264), of which 8
frames are decoded, go through EfficientNet-Lite0 with random weights at 128 pixels, as in B10. But here a worker
decodes on every core, and as many threads encode, as `mmt extract` does it: the cores are shared, and what never waits
takes as long as decoding alone and encoding alone together. Ours has to reach 0.9 of that speed.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import av
import b10_extraction as b10
import harness
import numpy as np
from PIL import Image

PHOTOGRAPHS, CLIPS = "photographs", "short clips"
PHOTO, CLIP = (1024, 768), (640, 360)
CLIP_SECONDS, PHOTOS_A_CLIP = 2, 4
SHARD_SIZE = 256  # as `mmt extract` has it: batches of a shard are encoded side by side
TARGET = 0.9


def make_media(args: argparse.Namespace, folder: Path) -> None:
    """A photograph and a clip of coarse noise that was smoothed, under many names."""
    (count,) = args.sizes
    generator = np.random.default_rng(0)
    for kind in (PHOTOGRAPHS, CLIPS):
        (folder / kind).mkdir(parents=True)
    noise = Image.fromarray(generator.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    link(folder / PHOTOGRAPHS / "00000.jpg", count, lambda path: noise.resize(PHOTO).save(path, quality=90))
    texture = np.asarray(noise.resize((CLIP[0] * 2, CLIP[1] * 2)))

    def make_clip(path: Path) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=b10.RATE, options={"crf": "23", "g": str(b10.KEYFRAMES)})
            (stream.width, stream.height), stream.pix_fmt = CLIP, "yuv420p"
            for number in range(CLIP_SECONDS * b10.RATE):
                frame = np.ascontiguousarray(texture[number : number + CLIP[1], 2 * number : 2 * number + CLIP[0]])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode(None))

    link(folder / CLIPS / "00000.mp4", max(1, count // PHOTOS_A_CLIP), make_clip)


def link(path: Path, count: int, make: Callable[[Path], None]) -> None:
    """Make a file, and give it as many names in all."""
    make(path)
    for number in range(1, count):
        os.link(path, path.with_name(f"{number:05d}{path.suffix}"))


def of_kind(kind: str, contestant: harness.Contestant) -> harness.Contestant:
    """A contestant of B10, on media of a kind, with a worker for every core."""

    def prepare(args: argparse.Namespace) -> b10.Run:
        own = {"inputs": args.inputs / kind, "threads": 0, "shard_size": SHARD_SIZE}
        return contestant(argparse.Namespace(**vars(args) | own))

    return prepare


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Seconds end to end against both parts one after the other; every frame must have come out."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        for kind in (PHOTOGRAPHS, CLIPS):
            decoded, encoded, whole = (results[f"{kind}, {name}", size] for name in PARTS)
            what = f"N = {size}: seconds, {kind}, end to end against decoding + encoding: {TARGET} of the speed"
            both = decoded.median + encoded.median
            verdicts.append(harness.compare(what, whole.median, both, 1 / TARGET, fails=False))
            missing = abs(decoded.outcome["frames"] - whole.outcome["frames"])
            verdicts.append(harness.Verdict(f"N = {size}: {kind} not stored", missing, 0, missing, 0, fails=True))
    return verdicts


PARTS = {b10.DECODE: b10.decoding, b10.ENCODE: b10.encoding, b10.OURS: b10.ours}

if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=[512], quick_sizes=[32])
    contestants = {
        f"{kind}, {name}": of_kind(kind, contestant)
        for kind in (PHOTOGRAPHS, CLIPS)
        for name, contestant in PARTS.items()
    }
    packages = ["av", "pillow", "transformers", "numpy"]
    sys.exit(harness.main(arguments, contestants, judge, packages, make_inputs=make_media))
