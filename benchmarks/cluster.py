"""A Ray cluster of this machine's cores, against the same number of processes that share a folder.

    python benchmarks/cluster.py --output results/benchmarks/cluster.json    # runs of some minutes on 2 cores
    python benchmarks/cluster.py --quick

N files as in B10 go through EfficientNet-Lite0 into shards of 16: by two processes, as torchrun starts them, or by two
tasks at a time of a cluster, whose results one process writes. Either way a process encodes with one thread and has
another that decodes; all are up before the clock runs. Ray may lose 5 % of the throughput. Its own processes run
beside the others' turn too, idle. Scheduling is measured by calls that do nothing, 20,000 of them, on that cluster.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import b10_extraction as b10
import harness
import torch

from modeling_mmt import EfficientNetLiteConfig
from modeling_mmt.data.cluster import ClusterPool
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.video_lists import find_videos
from modeling_mmt.extraction.encoders import StepEncoder, VideoReader
from modeling_mmt.extraction.remote_shards import ShardEncoder, run_on_cluster
from modeling_mmt.extraction.shards import Extraction, run
from modeling_mmt.extraction.workers import WorkerPool
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

RAY, PLAIN = "Ray, 2 tasks", "2 processes"
PROCESSES, TIMEOUT = 2, 600.0
TASKS, FEW_TASKS = 20_000, 1_000
MAY_LOSE = 0.05

Run = tuple[Callable[[], None], Callable[[], dict[str, Any]]]


def encoder_and_reader() -> tuple[StepEncoder, VideoReader]:
    """Those of B10."""
    torch.manual_seed(0)
    settings = PixelSettings(b10.IMAGE_SIZE, b10.IMAGE_SIZE, b10.IMAGE_SIZE, (0.5,) * 3, (0.5,) * 3)
    encoder = StepEncoder(MMTVisionEncoder(EfficientNetLiteConfig()), settings, "0")
    return encoder, VideoReader(encoder.prepare, FrameSampling(b10.NUM_FRAMES))


class Part:
    """In a process of its own: one of two that share a folder."""

    cached: tuple[StepEncoder, WorkerPool] | None = None

    @classmethod
    def run(cls, rank: int, inputs: Path, folder: Path) -> bool:
        """This process's shards, by an encoder and a worker that stay up."""
        if cls.cached is None:
            torch.set_num_threads(1)
            encoder, reader = encoder_and_reader()
            cls.cached = encoder, WorkerPool(reader, 1, TIMEOUT)
        encoder, pool = cls.cached
        with Extraction(folder, find_videos(inputs), b10.SETTINGS, b10.SHARD_SIZE, rank, PROCESSES) as extraction:
            return run(extraction, pool, encoder.encode_batches, b10.BATCH_SIZE, max_failures=0, quiet=True)


def plain(args: argparse.Namespace) -> Run:
    """Two processes that share a folder."""
    processes = ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))
    folder = Path(tempfile.mkdtemp(dir=args.inputs.parent)) / "store"

    def step() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        ranks = range(PROCESSES)
        parts = [processes.submit(Part.run, rank, args.inputs, folder) for rank in ranks]
        if not any([part.result() for part in parts]):
            raise RuntimeError("the store does not exist")

    step()
    return step, lambda: {"frames": frames_in(folder, args.inputs)}


def on_ray(args: argparse.Namespace) -> Run:
    """Tasks of a cluster, a shard each."""
    encoder, reader = encoder_and_reader()
    function = ShardEncoder(reader, encoder, "cpu", b10.BATCH_SIZE, 1, TIMEOUT, b10.SETTINGS["dtype"])
    pool = ClusterPool("local").__enter__()
    if pool.num_slots != PROCESSES:
        raise RuntimeError(
            f"this machine has {pool.num_slots} cores; pin the benchmark to {PROCESSES}: taskset -c 0,1"
        )
    folder = Path(tempfile.mkdtemp(dir=args.inputs.parent)) / "store"
    scheduling: dict[str, float] = {}

    def step() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with Extraction(folder, find_videos(args.inputs), b10.SETTINGS, b10.SHARD_SIZE) as extraction:
            if not run_on_cluster(extraction, pool, function, max_failures=0, quiet=True):
                raise RuntimeError("the store does not exist")

    def check() -> dict[str, Any]:
        if not scheduling:
            scheduling["seconds a task"] = seconds_a_task(TASKS if args.sizes[0] >= b10.SHARD_SIZE * 8 else FEW_TASKS)
        return {"frames": frames_in(folder, args.inputs)} | scheduling

    step()
    return step, check


def seconds_a_task(number: int) -> float:
    """Of calls that do nothing, on the cluster that this process is connected to."""
    with ClusterPool("local") as pool:
        list(pool.map(abs, range(100)))  # the processes have the function
        start = time.perf_counter()
        for _ in pool.map(abs, range(number)):
            pass
        return (time.perf_counter() - start) / number


def frames_in(folder: Path, inputs: Path) -> int:
    """How many a store has of the videos."""
    store = FeatureStore(folder)
    return sum(store.num_steps(video.video_id) for video in find_videos(inputs))


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Seconds of both; a task's scheduling against a shard's work; every frame must have come out."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        ours, peer = results[RAY, size], results[PLAIN, size]
        limit = 1 / (1 - MAY_LOSE)
        verdicts.append(
            harness.compare(f"N = {size}: seconds, {RAY} against {PLAIN}", ours.median, peer.median, limit, False)
        )
        shard = PROCESSES * peer.median / (size / b10.SHARD_SIZE)
        task = PROCESSES * ours.outcome["seconds a task"]
        verdicts.append(harness.compare(f"N = {size}: core seconds, scheduling a shard", task, shard, MAY_LOSE, False))
        for measured in (ours, peer):
            missing = abs(size * b10.NUM_FRAMES - measured.outcome["frames"])
            verdicts.append(
                harness.Verdict(f"N = {size}: frames not stored, {measured.contestant}", missing, 0, missing, 0, True)
            )
    return verdicts


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=[1024], quick_sizes=[32])
    arguments.set_defaults(threads=1)
    contestants = {PLAIN: plain, RAY: on_ray}
    packages = ["av", "numpy", "ray", "transformers"]
    sys.exit(harness.main(arguments, contestants, judge, packages, make_inputs=b10.make_videos))
