"""Shards whose clips are read and encoded on the nodes of a cluster, and written here: a task a shard."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from modeling_mmt.data.cluster import ClusterPool, Unread, check_read_here_too, unread
from modeling_mmt.data.video_lists import Video
from modeling_mmt.extraction.encoders import StepEncoder
from modeling_mmt.extraction.shards import Extraction, Fail, clips_at_once, encode_videos, write_shards
from modeling_mmt.extraction.workers import WorkerPool


class FailedClip(NamedTuple):
    """Why a clip has no values, and whether the node could not open its file."""

    reason: str
    unread: Unread | None


class ShardEncoder:
    """On a node: the clips of a shard to their values. A process keeps its encoder, and the processes that decode.

    Args:
        reader: a `Video` to its pixels.
        encoder: of these; it comes with its weights, on the CPU.
        device: where it runs on the node.
        batch_size: steps that go through it together.
        num_workers: processes that decode, and threads that encode.
        timeout: seconds that a clip's decoding may take.
        dtype: of the values.
    """

    def __init__(
        self,
        reader: Callable[[Video], np.ndarray],
        encoder: StepEncoder,
        device: str,
        batch_size: int,
        num_workers: int,
        timeout: float,
        dtype: str,
    ):
        self.reader, self.encoder, self.device, self.batch_size = reader, encoder, device, batch_size
        self.num_workers, self.timeout, self.dtype = num_workers, timeout, dtype
        self._pool: WorkerPool | None = None

    def __call__(self, videos: Sequence[Video]) -> list[np.ndarray | FailedClip]:
        """`(F, D_v)` values of each clip, or why there are none."""
        if self._pool is None:
            torch.set_num_threads(self.num_workers)
            self.encoder.to(self.device)
            self._pool = WorkerPool(self.reader, self.num_workers, self.timeout)
        outcomes: dict[str, np.ndarray | FailedClip] = {}

        def fail(video: Video, reason: str) -> None:
            outcomes[video.video_id] = FailedClip(reason, unread(file_of(video.source)))

        reading = self._pool.map(videos, clips_at_once(self._pool, self.batch_size))
        encode_batches = self.encoder.encode_batches
        for video, values in encode_videos(videos, reading, encode_batches, self.batch_size, self.dtype, fail):
            outcomes[video.video_id] = values
        return [outcomes[video.video_id] for video in videos]


def file_of(source: Any) -> str | os.PathLike | None:
    """The file that a clip lies in; none where its bytes are in the source, as a dataset has them."""
    if isinstance(source, Mapping):
        return None if source.get("bytes") else file_of(source.get("frames") or source.get("path"))
    return source if isinstance(source, str | os.PathLike) else None


def run_on_cluster(
    extraction: Extraction,
    pool: ClusterPool,
    encoder: ShardEncoder,
    max_failures: float,
    load: Callable[[Video], Video] | None = None,
    description: str = "features",
    quiet: bool = False,
) -> bool:
    """As `run`, with nodes that read and encode.

    Args:
        extraction: what is to be done.
        pool: of nodes.
        encoder: what they do.
        max_failures: how many clips may fail.
        load: called here with each clip of a shard before it is sent, for clips that do not lie in files of their own.
        description: for the progress bar.
        quiet: no progress bar.

    Raises:
        TooManyFailuresError: more failed.
        ClusterError: a node cannot read a clip that this machine can, or as `ClusterPool.map`.
    """

    def shard(number: int) -> list[Video]:
        return [_to_send(load(video) if load else video) for video in extraction.clips_of(number)]

    results = pool.map(encoder, map(shard, extraction.own_missing()))

    def of_shard(number: int, fail: Fail) -> Iterator[tuple[Video, np.ndarray]]:
        for video, outcome in zip(extraction.clips_of(number), next(results), strict=True):
            if isinstance(outcome, FailedClip):
                check_read_here_too(outcome.unread)
                fail(video, outcome.reason.replace(str(_to_send(video).source), str(video.source)))
            else:
                yield video, outcome

    return write_shards(extraction, of_shard, max_failures, description, quiet)


def _to_send(video: Video) -> Video:
    """The clip of a file by its absolute path: a node works in another folder."""
    path = isinstance(video.source, str | os.PathLike)
    return video._replace(source=os.path.abspath(video.source)) if path else video
