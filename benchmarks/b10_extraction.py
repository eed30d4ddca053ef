"""B10: extraction end to end, against decoding alone and encoding alone.

    python benchmarks/b10_extraction.py --output results/benchmarks/b10_extraction.json    # a few minutes on 2 cores
    python benchmarks/b10_extraction.py --quick

N files of H.264, 10 seconds of 854 x 480 at 25 frames a second with a keyframe every 50, of which 8 frames are decoded
at even times, go through EfficientNet-Lite0 with random weights at 128 pixels. `--threads` cores encode, a worker on
each of the others decodes: what overlaps perfectly is as fast as the slower of the two alone, and ours has to reach
0.85 of that. Decoding alone is the workers' pool without anyone who encodes; encoding alone has all pixels in memory;
end to end is `modeling_mmt.extraction.shards.run`, with shards written and the store put together. The workers are up
before the clock runs. On a machine with one core, or where others work, the two share a core, and none can overlap.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import harness
import numpy as np
import torch

from modeling_mmt import EfficientNetLiteConfig
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.video_lists import Video, find_videos
from modeling_mmt.extraction.encoders import StepEncoder, VideoReader
from modeling_mmt.extraction.shards import Extraction, encode_clips, run
from modeling_mmt.extraction.workers import WorkerPool
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

DECODE, ENCODE, OURS = "decoding alone", "encoding alone", "end to end"
WIDTH, HEIGHT, SECONDS, RATE, KEYFRAMES = 854, 480, 10, 25, 50
IMAGE_SIZE, NUM_FRAMES, BATCH_SIZE, SHARD_SIZE = 128, 8, 16, 16
TARGET = 0.85
# float32: features of random weights are too small for float16
SETTINGS = {"extractor": "random", "revision": "0", "rate": None, "dtype": "float32", "source": None}

Run = tuple[Callable[[], None], Callable[[], dict[str, Any]]]


def make_videos(args: argparse.Namespace, folder: Path) -> None:
    """One file, drifting textures, under N names."""
    (num_videos,) = args.sizes
    folder.mkdir()
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (HEIGHT // 8 + 40, WIDTH // 8 + 80, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(folder / "video00000.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "g": str(KEYFRAMES)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * RATE):
            top, left = number % 300, 2 * number % 600
            frame = np.ascontiguousarray(texture[top : top + HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    for number in range(1, num_videos):
        os.link(folder / "video00000.mp4", folder / f"video{number:05d}.mp4")


def prepared(args: argparse.Namespace) -> tuple[list[Video], WorkerPool, StepEncoder]:
    """The videos, workers that are up, and an encoder that is warm."""
    torch.manual_seed(0)
    settings = PixelSettings(IMAGE_SIZE, IMAGE_SIZE, IMAGE_SIZE, (0.5,) * 3, (0.5,) * 3)
    encoder = StepEncoder(MMTVisionEncoder(EfficientNetLiteConfig()), settings, "0")
    reader = VideoReader(encoder.prepare, FrameSampling(NUM_FRAMES))
    workers = max(1, (os.cpu_count() or 1) - args.threads)
    pool, videos = WorkerPool(reader, workers, timeout=600), find_videos(args.inputs)
    list(pool.map(videos[: 2 * workers], ahead=workers))
    encoder.encode(np.zeros((BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8))
    return videos, pool, encoder


def decoding(args: argparse.Namespace) -> Run:
    """The pool alone."""
    videos, pool, _ = prepared(args)
    last = {"frames": 0}

    def step() -> None:
        last["frames"] = sum(len(pixels) for pixels in pool.map(videos, ahead=2 * pool.num_workers + BATCH_SIZE // 4))

    return step, lambda: dict(last)


def encoding(args: argparse.Namespace) -> Run:
    """The encoder alone, on pixels in memory."""
    videos, pool, encoder = prepared(args)
    (pixels,) = pool.map(videos[:1], ahead=1)
    pool.__exit__(None, None, None)
    last = {"frames": 0}

    def step() -> None:
        clips = ((video, pixels) for video in videos)
        encoded = encode_clips(clips, encoder.encode_batches, BATCH_SIZE)
        last["frames"] = sum(len(features) for _, features in encoded)

    return step, lambda: dict(last)


def ours(args: argparse.Namespace) -> Run:
    """All of it."""
    videos, pool, encoder = prepared(args)
    folder = Path(tempfile.mkdtemp(dir=args.inputs.parent)) / "store"

    def step() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with Extraction(folder, videos, SETTINGS, getattr(args, "shard_size", SHARD_SIZE)) as extraction:
            if not run(extraction, pool, encoder.encode_batches, BATCH_SIZE, max_failures=0, quiet=True):
                raise RuntimeError("the store does not exist")

    return step, lambda: {"frames": sum(FeatureStore(folder).num_steps(video.video_id) for video in videos)}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Seconds end to end against those of the slower part; every frame must have come out."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        alone = max((results[name, size] for name in (DECODE, ENCODE)), key=lambda measured: measured.median)
        whole = results[OURS, size]
        what = f"N = {size}: seconds, {OURS} against {alone.contestant}: {TARGET} of its speed"
        verdicts.append(harness.compare(what, whole.median, alone.median, 1 / TARGET, fails=False))
        missing = abs(size * NUM_FRAMES - whole.outcome["frames"])
        verdicts.append(harness.Verdict(f"N = {size}: frames not stored", missing, 0, missing, 0, fails=True))
    return verdicts


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=[64], quick_sizes=[16])
    arguments.set_defaults(threads=1)
    contestants = {DECODE: decoding, ENCODE: encoding, OURS: ours}
    packages = ["av", "transformers", "numpy"]
    sys.exit(harness.main(arguments, contestants, judge, packages, make_inputs=make_videos))
