"""B8: twelve frames of each of N H.264 files, by two workers.

    python benchmarks/b8_decoding.py --repeats 2 --output results/benchmarks/b8_decoding.json    # 10 s to 10 min
    python benchmarks/b8_decoding.py --quick                                         # 4 s to 20 s, to 480p

The files are made by PyAV: 240p to 1080p, keyframes every 12 or every 250 frames, three lengths, of which ten minutes
are one minute's packets ten times; N of these kinds, in turn. Every contestant gets the same files in the same order,
two processes of one thread each, and gives the frames that are shown at the centres of twelve equal parts, full size:
ours with PyAV and, where it loads, with torchcodec; PyAV as most code uses it (decode all, keep twelve), torchcodec,
decord and OpenCV where they are installed. Beside them `ffmpeg -f null`, which decodes everything, keeping nothing
(PyAV doing the same where there is no ffmpeg): the only way to save more is to decode fewer frames. Memory: ours on
the longest file of a kind against the shortest.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import harness
import numpy as np
import torch

from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.video_decoding_mmt import read_clip

NUM_FRAMES, RATE, WORKERS = 12, 25, 2
SIZES = {"240p": (426, 240), "480p": (854, 480), "1080p": (1920, 1080)}
GOPS = (12, 250)
SECONDS, QUICK_SECONDS = (10, 60, 600), (4, 8, 20)
QUICK_FILES = 8  # at most this many files are made short and small
MINUTE = 60
OURS, OURS_TORCHCODEC, RAW = "ours, PyAV", "ours, torchcodec", "PyAV, all frames"
EVERYTHING = "ffmpeg -f null" if shutil.which("ffmpeg") else "decode everything"
TORCHCODEC, DECORD, OPENCV = "torchcodec", "decord", "OpenCV"
OURS_LONG, OURS_SHORT = "ours, longest file", "ours, shortest file"

Run = tuple[Callable[[], None], Callable[[], dict[str, Any]]]


def moving(width: int, height: int, count: int) -> Iterator[np.ndarray]:
    """A window that wanders over a smooth picture with a little noise: `(H, W, 3)` uint8."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.integers(0, 256, (1, 3, 24, 40)).astype(np.float32))
    size = (height + 128, width + 128)
    large = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
    picture = (large.numpy() * 0.9 + generator.integers(0, 25, large.shape)).astype(np.uint8)
    for number in range(count):
        left, top = int(64 + 60 * np.sin(number / 40)), int(64 + 60 * np.cos(number / 31))
        yield np.ascontiguousarray(picture[top : top + height, left : left + width])


def encode(file: Path, size: str, gop: int, seconds: int) -> None:
    """Makes an H.264 file, if it does not exist."""
    if file.exists():
        return
    with av.open(str(file), "w") as container:
        options = {"g": str(gop), "preset": "veryfast", "crf": "26"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height = SIZES[size]
        stream.pix_fmt = "yuv420p"
        for pixels in moving(*SIZES[size], seconds * RATE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def repeat(short: Path, file: Path, times: int) -> None:
    """Makes a file of the packets of another one, `times` over, if it does not exist."""
    if file.exists():
        return
    with av.open(str(file), "w") as container:
        copied = None
        for number in range(times):
            with av.open(str(short)) as source:
                stream = source.streams.video[0]
                copied = copied or container.add_stream_from_template(stream)
                later = number * (stream.duration or 0)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts = (packet.pts or 0) + later
                        packet.dts = (packet.dts or 0) + later
                        packet.stream = copied
                        container.mux(packet)


def make_files(args: argparse.Namespace, path: Path) -> None:
    """N files, and the list of them at `path`."""
    (count,) = args.sizes
    quick = count <= QUICK_FILES
    sizes = list(SIZES)[: 2 if quick else 3]
    kinds = list(itertools.product(QUICK_SECONDS if quick else SECONDS, sizes, GOPS))
    made = []
    for number in range(count):
        seconds, size, gop = kinds[number % len(kinds)]
        file = path.parent / f"{size}-{seconds}s-gop{gop}.mp4"
        if seconds > MINUTE:
            minute = path.parent / f"{size}-{MINUTE}s-gop{gop}.mp4"
            encode(minute, size, gop, MINUTE)
            repeat(minute, file, seconds // MINUTE)
        encode(file, size, gop, seconds)
        made.append(str(file))
    path.write_text(json.dumps(made))


def frame_numbers(count: int) -> list[int]:
    """Which of `count` frames at a constant rate are shown at the centres of equal parts."""
    return sorted({count * (2 * k + 1) // (2 * NUM_FRAMES) for k in range(NUM_FRAMES)})


def by_ours(path: str, decoder: str = "pyav") -> torch.Tensor:
    """`(F, 3, H, W)` uint8, as all of them."""
    return read_clip(path, FrameSampling(num_frames=NUM_FRAMES), decoder=decoder).frames


def by_ours_with_torchcodec(path: str) -> torch.Tensor:
    """The same through torchcodec."""
    return by_ours(path, "torchcodec")


def by_pyav(path: str) -> torch.Tensor:
    """Decode all frames in order, convert the twelve."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = set(frame_numbers(stream.frames))
        frames = [
            torch.from_numpy(frame.to_ndarray(format="rgb24"))
            for number, frame in enumerate(container.decode(stream))
            if number in wanted
        ]
    return torch.stack(frames).permute(0, 3, 1, 2)


def by_decoding_everything(path: str) -> torch.Tensor:
    """Every frame decoded, none converted."""
    count = 0
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", path, "-f", "null", "-"]
        subprocess.run(command, check=True)
    else:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            count = sum(1 for _ in container.decode(stream))
    return torch.full((1, 1, 1, 1), count % 256, dtype=torch.uint8)


def by_torchcodec(path: str) -> torch.Tensor:
    """By numbers, in one call."""
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path)
    return video.get_frames_at(frame_numbers(len(video))).data


def by_decord(path: str) -> torch.Tensor:
    """By numbers, in one call."""
    import decord

    video = decord.VideoReader(path, num_threads=1)
    return torch.from_numpy(video.get_batch(frame_numbers(len(video))).asnumpy()).permute(0, 3, 1, 2)


def by_opencv(path: str) -> torch.Tensor:
    """A seek to each number, as CLIP4Clip does."""
    import cv2

    cv2.setNumThreads(1)
    video, frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
    for number in frame_numbers(int(video.get(cv2.CAP_PROP_FRAME_COUNT))):
        video.set(cv2.CAP_PROP_POS_FRAMES, number)
        frames.append(torch.from_numpy(np.ascontiguousarray(video.read()[1][..., ::-1])))
    return torch.stack(frames).permute(0, 3, 1, 2)


def summary(read: Callable[[str], torch.Tensor], path: str) -> tuple[int, list[float], float]:
    """How many frames, the mean of each, and the seconds on a processor: what goes back from a worker."""
    before = os.times()[:4]  # of the process, and of ffmpeg where it is run
    frames = read(path)
    seconds = sum(os.times()[:4]) - sum(before)
    return len(frames), [round(float(frame.float().mean()), 2) for frame in frames], seconds


def workers(read: Callable[[str], torch.Tensor]) -> harness.Contestant:
    """All files by two processes."""

    def contestant(args: argparse.Namespace) -> Run:
        files = json.loads(args.inputs.read_text())
        context = get_context("spawn")
        pool = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
        list(pool.map(summary, itertools.repeat(read), [min(files)] * WORKERS))  # both have imported what they need
        last: dict[str, Any] = {}

        def step() -> None:
            found = list(pool.map(summary, itertools.repeat(read), files))
            counts, means, seconds = zip(*found, strict=True)
            last.update(frames=sum(counts), means=means, worker_cpu_seconds=sum(seconds))

        return step, lambda: last

    return contestant


def alone(choose: Callable[[list[str]], str]) -> harness.Contestant:
    """Ours in the contestant's own process, whose memory is measured, shrunk to 224 as for an encoder."""

    def contestant(args: argparse.Namespace) -> Run:
        torch.set_num_threads(1)
        files = json.loads(args.inputs.read_text())
        path = choose([file for file in files if f"gop{GOPS[-1]}" in file and "480p" in file] or files)
        last: dict[str, Any] = {"file": Path(path).name}
        sampling = FrameSampling(num_frames=NUM_FRAMES)

        def step() -> None:
            last["frames"] = len(read_clip(path, sampling, max_side=224, decoder="pyav").frames)

        step()  # libraries are loaded, threads are there
        return step, lambda: last

    return contestant


def length(path: str) -> int:
    """Seconds, from a file's name."""
    return int(Path(path).name.split("-")[1].removesuffix("s"))


CONTESTANTS = {
    OURS: workers(by_ours),
    RAW: workers(by_pyav),
    EVERYTHING: workers(by_decoding_everything),
    OURS_SHORT: alone(lambda files: min(files, key=length)),
    OURS_LONG: alone(lambda files: max(files, key=length)),
}
PEERS = {TORCHCODEC: by_torchcodec, DECORD: by_decord, OPENCV: by_opencv}
MODULES = {TORCHCODEC: "torchcodec", DECORD: "decord", OPENCV: "cv2"}
PACKAGES = ["av", "numpy"]
for peer, module in MODULES.items():
    if importlib.util.find_spec(module):
        CONTESTANTS[peer] = workers(PEERS[peer])
if TORCHCODEC in CONTESTANTS:
    CONTESTANTS[OURS_TORCHCODEC] = workers(by_ours_with_torchcodec)
    PACKAGES.append("torchcodec")
if DECORD in CONTESTANTS:
    PACKAGES.append("decord")
if OPENCV in CONTESTANTS:
    PACKAGES.append("opencv-python-headless")


def cpu_seconds(measurement: harness.Measurement) -> float:
    """Of the workers, in the last repeat: a busy machine changes them less than the time on the wall."""
    return measurement.outcome["worker_cpu_seconds"]


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """The frames and the memory are right, or it fails; time is reported."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        raw = results[RAW, size]
        mine = results[OURS, size]  # what decoder=None takes
        difference = np.abs(np.concatenate(mine.outcome["means"]) - np.concatenate(raw.outcome["means"])).max()
        what = f"{size} files: our frames are those of decoding everything (1 + largest difference of a mean)"
        verdicts.append(harness.compare(what, 1 + float(difference), 1, 1, True))
        peers = [results[name, size] for name in (RAW, *PEERS) if (name, size) in results]
        best = min(peers, key=lambda one: one.median)
        frugal = min(peers, key=cpu_seconds)
        what = f"{size} files: CPU seconds of the workers, {mine.contestant} to the best peer, {frugal.contestant}"
        verdicts.append(harness.compare(what, cpu_seconds(mine), cpu_seconds(frugal), 1.05, False))
        verdicts.append(
            harness.compare(
                f"{size} files: seconds, {mine.contestant} to the best peer, {best.contestant}",
                mine.median,
                best.median,
                1.05,
                False,
            )
        )
        limit = results[EVERYTHING, size]
        verdicts.append(
            harness.compare(f"{size} files: seconds, to {EVERYTHING}", mine.median, limit.median, 1, False)
        )
        if (OURS_TORCHCODEC, size) in results:
            seconds = results[OURS_TORCHCODEC, size].median
            what = f"{size} files: seconds, {OURS_TORCHCODEC} to the best peer, {best.contestant}"
            verdicts.append(harness.compare(what, seconds, best.median, 1.05, False))
        long, short = results[OURS_LONG, size], results[OURS_SHORT, size]
        what = f"MiB + 64: {long.outcome['file']} to {short.outcome['file']}"
        verdicts.append(harness.compare(what, long.peak_mib + 64, short.peak_mib + 64, 1.25, True))
        for one in peers:
            same = len(one.outcome["means"][0]) == len(raw.outcome["means"][0])
            apart = (
                np.abs(np.concatenate(one.outcome["means"]) - np.concatenate(raw.outcome["means"]))
                if same
                else [np.inf]
            )
            print(
                f"{one.contestant}: {cpu_seconds(one):.1f} CPU seconds; means of its frames are at most "
                f"{max(apart):.2f} from those of {RAW}"
            )
    return verdicts


if __name__ == "__main__":
    parser = harness.parser(__doc__, sizes=(18,), quick_sizes=(8,))
    sys.exit(harness.main(parser, CONTESTANTS, judge, PACKAGES, make_inputs=make_files))
