"""An extraction without torch, which starts in a second: `python tiny_extraction.py FOLDER LOG NUM_WORKERS SECONDS`.

Clip n has n % 3 + 1 steps of 4 numbers that say n and the step; every clip that is read is written to the log. A clip
whose id says so crashes its reader, hangs, or is bad.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from modeling_mmt.data.video_lists import Video  # noqa: E402
from modeling_mmt.extraction.shards import Extraction, run  # noqa: E402
from modeling_mmt.extraction.workers import CallFailedError, WorkerPool  # noqa: E402

SETTINGS = {"extractor": "tiny", "revision": "1", "rate": 2.0, "dtype": "float16", "source": {"of": "nothing"}}


class Reader:
    """Reads no file."""

    def __init__(self, log, seconds=0.0):
        self.log, self.seconds = str(log), seconds

    def __call__(self, video):
        with open(self.log, "a") as log:
            log.write(f"{video.video_id}\n")
        time.sleep(self.seconds)
        if "crash" in video.video_id:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in video.video_id:
            time.sleep(60)
        if "bad" in video.video_id:
            raise ValueError("bad")
        number = int(video.source)
        return np.array([[number, step, 1, 0] for step in range(number % 3 + 1)], np.float32)


def encode_batches(batches):
    """Twice the numbers; infinity for clip 13."""
    return (np.where(pixels[:, :1] == 13, np.inf, 2 * pixels) for pixels in batches)


def clips(num_clips=11, special=()):
    """Clips by number; `special` gives some of them another id."""
    return [Video(dict(special).get(number, f"clip{number}"), str(number)) for number in range(num_clips)]


class InThisProcess:
    """A pool of no processes, for what is not about them."""

    num_workers = 0

    def __init__(self, read):
        self.read = read

    def map(self, videos, ahead):
        for video in videos:
            try:
                yield self.read(video)
            except ValueError as error:
                yield CallFailedError(str(error))


def extract(folder, videos, log, num_workers=0, seconds=0.0, max_failures=0, timeout=20, rank=0, num_processes=1):
    """One process's part; whether the store is there."""
    read = Reader(log, seconds)
    with (
        Extraction(folder, videos, SETTINGS, 3, rank, num_processes) as extraction,
        WorkerPool(read, num_workers, timeout) if num_workers else nullcontext(InThisProcess(read)) as pool,
    ):
        return run(extraction, pool, encode_batches, 4, max_failures, quiet=True)


if __name__ == "__main__":
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder, log, num_workers, seconds = sys.argv[1:]
    extract(folder, clips(), log, int(num_workers), float(seconds), rank=rank, num_processes=num_processes)
