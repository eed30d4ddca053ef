"""Files to the embeddings of their windows, by processes that decode and an encoder beside them; here or on a node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from modeling_mmt.data.cluster import Unread, unread
from modeling_mmt.extraction.workers import CallFailedError, WorkerPool
from modeling_mmt.picture_formats_mmt import PICTURE_SUFFIXES
from modeling_mmt.search.media_encoder import MediaEncoder
from modeling_mmt.search.media_files import MediaFile
from modeling_mmt.search.media_windows import Chunk, MediaReader, Plan, Planned, chunks_of, middle_frame

FILES_A_GROUP, VIDEO_BYTES_A_GROUP = 64, 2**26  # whichever is reached first: a group fills batches


class EncodedFile(NamedTuple):
    """What became of a file.

    Attributes:
        planned: what is in it; None where it could not be looked into.
        embeddings: `(W, P)` of its windows, or of the whole; None where its content is known, or there is a reason.
        thumbnails: JPEGs of the rows.
        reason: why it cannot be read or embedded.
        unread: on a node: that the node could not so much as open it.
    """

    planned: Planned | None
    embeddings: torch.Tensor | None = None
    thumbnails: Sequence[bytes] = ()
    reason: str | None = None
    unread: Unread | None = None


Done = Callable[[MediaFile, EncodedFile], None]


@dataclass
class _Job:
    """A file that is being decoded, of a group by its number."""

    group: int
    media: MediaFile
    planned: Planned
    num_chunks: int
    features: list[np.ndarray] = field(default_factory=list)
    thumbnails: dict[int, bytes] = field(default_factory=dict)
    failed: bool = False


class FilesEncoder:
    """Decodes and embeds groups of files in their order.

    Args:
        pool: of a `MediaReader`.
        encoder: of its pixels.
        rate: frames a second.
        known: SHA-256 of the contents that need no decoding.
        done: told of each file as it is finished: one that is known or cannot be read at once, the others in order.
    """

    def __init__(self, pool: WorkerPool, encoder: MediaEncoder, rate: float, known: Collection[str], done: Done):
        self.pool, self.encoder, self.rate, self.known, self.done = pool, encoder, rate, known, done

    def run(self, groups: Sequence[Sequence[MediaFile]]) -> Iterator[int]:
        """Do all of them (`groups_of`); decoding goes on over their bounds, batches do not.

        Yields:
            How many groups are finished.
        """
        for group, chunks in groupby(self._chunks(groups), key=lambda pair: pair[0].group):
            for job, features in self.encoder.features(chunks):
                job.features.append(features)
                if not job.failed and len(job.features) == job.num_chunks:
                    self.done(job.media, self._embedded(job))
            yield group + 1
        yield len(groups)  # the last ones may have had nothing to decode

    def _chunks(self, groups: Sequence[Sequence[MediaFile]]) -> Iterator[tuple[_Job, Chunk]]:
        """The pieces of the files that must be decoded, in order; the others are finished on the way."""
        files = [(number, media) for number, group in enumerate(groups) for media in group]
        reading: deque[_Job] = deque()
        ahead = 2 * self.pool.num_workers

        def calls() -> Iterator[Any]:
            plans = self.pool.map((Plan(media.path) for _, media in files), ahead)
            for (group, media), planned in zip(files, plans, strict=True):
                if isinstance(planned, CallFailedError):
                    self.done(media, EncodedFile(None, reason=str(planned)))
                elif planned.sha256 in self.known:
                    self.done(media, EncodedFile(planned))
                else:
                    wanted = chunks_of(media.path, planned, self.rate, self.encoder.frames_per_step)
                    job = _Job(group, media, planned, len(wanted))
                    reading.extend([job] * len(wanted))
                    yield from wanted

        for chunk in self.pool.map(calls(), ahead):
            job = reading.popleft()
            if job.failed:
                continue
            if isinstance(chunk, CallFailedError):
                job.failed = True
                self.done(job.media, EncodedFile(job.planned, reason=str(chunk)))
                continue
            job.thumbnails |= chunk.thumbnails
            yield job, chunk

    def _embedded(self, job: _Job) -> EncodedFile:
        steps, spans = np.concatenate(job.features), job.planned.spans
        try:
            embeddings = self.encoder.embed(steps, spans, self.rate / self.encoder.frames_per_step)
        except ValueError as error:
            return EncodedFile(job.planned, reason=str(error))
        frames = [middle_frame(span, self.rate, job.planned.num_frames) for span in spans] or [0]
        return EncodedFile(job.planned, embeddings, [job.thumbnails[frame] for frame in frames])


class GroupEncoder:
    """On a node of a cluster: a group of files to what became of each. A process keeps its model and its readers.

    Args:
        reader: of the files.
        encoder: with its model, on the CPU.
        device: where they run on the node.
        known: as in `FilesEncoder`.
        num_workers: processes that decode, and threads that encode.
        timeout: seconds that a call of the reader may take.
    """

    def __init__(
        self,
        reader: MediaReader,
        encoder: MediaEncoder,
        device: str,
        known: Collection[str],
        num_workers: int,
        timeout: float,
    ):
        self.reader, self.encoder, self.device, self.known = reader, encoder, device, frozenset(known)
        self.num_workers, self.timeout = num_workers, timeout
        self._pool: WorkerPool | None = None

    def __call__(self, files: Sequence[MediaFile]) -> list[EncodedFile]:
        """In the order of the files."""
        if self._pool is None:
            torch.set_num_threads(self.num_workers)
            self.encoder.to(self.device)
            self._pool = WorkerPool(self.reader, self.num_workers, self.timeout)
        finished: dict[str, EncodedFile] = {}

        def done(media: MediaFile, encoded: EncodedFile) -> None:
            finished[media.file] = encoded._replace(unread=unread(media.path)) if encoded.reason else encoded

        for _ in FilesEncoder(self._pool, self.encoder, self.reader.rate, self.known, done).run([files]):
            pass
        return [finished[media.file] for media in files]


def groups_of(files: Iterable[MediaFile]) -> Iterator[list[MediaFile]]:
    """The files in their order, those whose steps share batches together.

    On some processors (MKL's products with AVX2) the last bits of a step's features depend on its place in its batch.
    So batches begin anew with a group, a group is written whole, and a cluster has a task for each: then what a run
    writes depends neither on where the one before was killed, nor on who encodes.
    """
    group: list[MediaFile] = []
    num_bytes = 0
    for media in files:
        of_video = 0 if Path(media.file).suffix.lower() in PICTURE_SUFFIXES else media.size
        if group and (len(group) == FILES_A_GROUP or num_bytes + of_video > VIDEO_BYTES_A_GROUP):
            yield group
            group, num_bytes = [], 0
        group.append(media)
        num_bytes += of_video
    if group:
        yield group
