"""Writes a feature store with any number of processes and machines; each shard is complete or absent.

Nothing is sent from process to process: all that they share is the folder `<store>.partial`. Clips are cut into shards
of `shard_size` in their order; process r of W does the shards r, r + W, r + 2W, ... A shard is done when its record is
there, which is written after its features, each by a rename. So a process may be killed at any point, a run may be
gone on with by more processes or fewer, and whoever finds all records there makes the store of them. What the store
holds depends on the clips and the settings alone.

    <store>.partial/progress/plan.json             the settings, which all processes must share
    <store>.partial/progress/00012.json            the record of shard 12
    <store>.partial/progress/00012.failures.json   the same with clips that failed, and why; delete it to try again
    <store>.partial/features-00012.parquet         its features
    <store>/failures.jsonl                         in the end, all clips that failed, if any did
"""

import glob
import json
import os
import platform
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import MANIFEST, MAX_SHARD_VALUES, FeatureStoreError
from modeling_mmt.data.feature_store_writer import checked_values, write_manifest, write_shard
from modeling_mmt.data.files import locked, put_in_place, write_text
from modeling_mmt.data.video_lists import Video
from modeling_mmt.extraction.workers import CallFailedError, WorkerPool

FAILURES = "failures.jsonl"
RECORD = re.compile(r"(\d+)(\.failures)?\.json")

EncodeBatches = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
Fail = Callable[[Video, str], None]  # what is told of a clip that failed, and why
OfShard = Callable[[int, Fail], Iterator[tuple[Video, np.ndarray]]]  # a shard's clips, with values that can be stored


class TooManyFailuresError(InputError, RuntimeError):
    """More clips failed than may; the message lists some with their reasons."""


class Extraction:
    """One process's part in writing a store. Use it as a context manager.

    Args:
        folder: where the store will be.
        videos: all clips, in their order; every process gives the same ones.
        settings: extractor, revision, rate, dtype and source, as a store's manifest has them.
        shard_size: clips a shard.
        rank: of this process.
        num_processes: how many there are.

    Raises:
        FileExistsError: the folder exists.
        FeatureStoreError: what was begun there was made in another way, or a process with this rank runs already.
    """

    def __init__(
        self,
        folder: str | Path,
        videos: Sequence[Video],
        settings: Mapping[str, Any],
        shard_size: int = 256,
        rank: int = 0,
        num_processes: int = 1,
    ):
        self.folder, self.videos, self.shard_size = Path(folder), videos, shard_size
        if self.folder.exists():  # also one without a name: / and .
            raise FileExistsError(f"{self.folder} exists; choose another folder or delete it")
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.progress = self.partial / "progress"
        self.settings = json.loads(json.dumps(dict(settings)))  # as it will be read again: tuples are lists
        self.num_shards = -(-len(videos) // shard_size)
        self._own_shards = range(rank, self.num_shards, num_processes)
        self._records: dict[int, dict[str, Any]] = {}
        self._make_plan(self.settings | {"num_clips": len(videos), "shard_size": shard_size})
        self._lock = ExitStack()
        name = f"process {rank} of {num_processes}"
        busy = FeatureStoreError(f"{self.folder}: {name} is already running; wait for it, or stop it first")
        self._lock.enter_context(locked(self.progress / f"{name.replace(' ', '-')}.lock", busy))

    def _make_plan(self, plan: Mapping[str, Any]) -> None:
        """The first process writes the plan, with the folder, at once; the others find it."""
        if not self.partial.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            begun = self.partial.with_name(f"{self.partial.name}.{platform.node()}-{os.getpid()}")
            (begun / "progress").mkdir(parents=True)
            (begun / "progress" / "plan.json").write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
            try:
                put_in_place(begun, self.partial)
            except OSError:  # another process was faster
                shutil.rmtree(begun)
        path = self.progress / "plan.json"
        if not path.is_file():
            raise FeatureStoreError(
                f"{self.partial} was not started by an extraction; delete it, or choose another folder"
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        for field, value in plan.items():
            if saved.get(field) != value:
                raise FeatureStoreError(
                    f"{path}: {field} is {saved.get(field)!r}, now {value!r}; the interrupted extraction used "
                    f"other settings: finish it with those, or delete {self.partial}"
                )

    def records(self) -> dict[int, dict[str, Any]]:
        """The records of all finished shards, of all processes, by number."""
        for path in self.progress.iterdir():
            matched = RECORD.fullmatch(path.name)
            if matched and int(matched[1]) not in self._records:
                record = json.loads(path.read_text(encoding="utf-8"))
                shard = record["shard"]
                file = self.partial / shard["file"] if shard else None
                if file is None or (file.is_file() and file.stat().st_size == shard["num_bytes"]):
                    self._records[int(matched[1])] = record
        return self._records

    def own_missing(self) -> list[int]:
        """Numbers of this process's shards that are not done."""
        done = self.records()
        return [number for number in self._own_shards if number not in done]

    def num_own_clips(self, numbers: Iterable[int] | None = None) -> int:
        """How many clips some of the shards hold; this process's by default."""
        return sum(len(self.clips_of(number)) for number in (self._own_shards if numbers is None else numbers))

    def clips_of(self, number: int) -> Sequence[Video]:
        """The clips of a shard."""
        return self.videos[number * self.shard_size : (number + 1) * self.shard_size]

    def write(
        self, number: int, clips: Sequence[tuple[str, np.ndarray]], failures: Sequence[Mapping[str, str]]
    ) -> None:
        """Writes a shard and then its record.

        Args:
            number: of the shard.
            clips: (video_id, `(F, D_v)` checked values) pairs.
            failures: video_id, source and reason of each clip that failed.

        Raises:
            FeatureStoreError: the shard is too large.
        """
        if sum(values.size for _, values in clips) > MAX_SHARD_VALUES:
            raise FeatureStoreError(f"{self.folder}: shard {number} has too many values; give a smaller shard_size")
        path = self.partial / f"features-{number:05d}.parquet"
        shard = write_shard(path, clips, self.settings["extractor"], self.settings["revision"]) if clips else None
        record = {"shard": shard, "dim": clips[0][1].shape[1] if clips else None, "failures": list(failures)}
        names = [f"{number:05d}.json", f"{number:05d}.failures.json"]
        write_text(self.progress / names[bool(failures)], json.dumps(record, ensure_ascii=False) + "\n")
        (self.progress / names[not failures]).unlink(missing_ok=True)  # of a file that was lost
        self._records[number] = record

    def failures(self) -> list[dict[str, str]]:
        """All that is recorded of clips that failed, in the clips' order."""
        records = self.records()
        return [failure for number in sorted(records) for failure in records[number]["failures"]]

    def list_failures(self, failures: Iterable[Mapping[str, str]]) -> Path:
        """Writes failures, an object a line; returns the file."""
        path = self.partial / FAILURES
        write_text(path, "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures))
        return path

    def finish(self) -> bool:
        """Makes the store, if all shards of all processes are done; says whether it is there.

        Raises:
            FeatureStoreError: not one clip could be read.
        """
        with locked(self.folder.with_name(self.folder.name + ".lock")):
            if not self.folder.exists():  # else another process was the last
                if len(self.records()) < self.num_shards:
                    return False
                self._put_together()
        self.clean(self.folder)
        return True

    def _put_together(self) -> None:
        records = [self._records[number] for number in range(self.num_shards)]
        shards = [record["shard"] for record in records if record["shard"]]
        failures = self.failures()
        if not shards:
            raise FeatureStoreError(f"{self.folder}: every clip failed: {_listing(failures)}")
        files = {MANIFEST, self.progress.name, *(shard["file"] for shard in shards)}
        if failures:
            files.add(self.list_failures(failures).name)
        write_manifest(self.partial, self.settings, next(r["dim"] for r in records if r["shard"]), shards)
        for file in self.partial.iterdir():
            if file.name not in files:  # a killed process had not renamed it yet
                file.unlink()
        put_in_place(self.partial, self.folder)

    @staticmethod
    def clean(folder: Path) -> None:
        """Removes what a finished store does not need; a killed process may have left it."""
        folder = Path(os.path.abspath(folder))  # `.` has no name to go by
        shutil.rmtree(folder / "progress", ignore_errors=True)
        folder.with_name(folder.name + ".lock").unlink(missing_ok=True)
        for begun in folder.parent.glob(f"{glob.escape(folder.name)}.partial.*"):
            shutil.rmtree(begun, ignore_errors=True)

    def __enter__(self) -> "Extraction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.close()


def run(
    extraction: Extraction,
    pool: WorkerPool,
    encode_batches: EncodeBatches,
    batch_size: int,
    max_failures: float,
    load: Callable[[Video], Video] | None = None,
    description: str = "features",
    quiet: bool = False,
) -> bool:
    """Does this process's missing shards; the workers read clips ahead, over the bounds of shards, while this encodes.

    Args:
        extraction: what is to be done.
        pool: reads: a `Video` to its pixels, `(F, ...)`, a row for each step.
        encode_batches: batches `(B, ...)` of such rows to the `(B, D_v)` of each, in order.
        batch_size: steps that are encoded together.
        max_failures: how many clips may fail, of all processes together.
        load: called here with a clip before a worker reads it, for clips that do not lie in files of their own.
        description: for the progress bar.
        quiet: no progress bar.

    Returns:
        Whether the store is there; if not, other processes have shards to do.

    Raises:
        TooManyFailuresError: more failed.
    """
    clips_ahead = chain.from_iterable(extraction.clips_of(number) for number in extraction.own_missing())
    reading = pool.map(clips_ahead if load is None else map(load, clips_ahead), clips_at_once(pool, batch_size))

    def of_shard(number: int, fail: Fail) -> Iterator[tuple[Video, np.ndarray]]:
        dtype = extraction.settings["dtype"]
        return encode_videos(extraction.clips_of(number), reading, encode_batches, batch_size, dtype, fail)

    return write_shards(extraction, of_shard, max_failures, description, quiet)


def clips_at_once(pool: WorkerPool, batch_size: int) -> int:
    """How many clips are read ahead: they have some steps, so this is a batch's worth and some more."""
    return 2 * pool.num_workers + max(2, batch_size // 4)


def write_shards(
    extraction: Extraction, of_shard: OfShard, max_failures: float, description: str, quiet: bool = False
) -> bool:
    """Writes this process's missing shards as their clips come, and makes the store once all shards are there.

    Args:
        extraction: what is to be done.
        of_shard: asked for the missing shards in order.
        max_failures: as in `run`.
        description: likewise.
        quiet: likewise.

    Returns:
        Whether the store is there.

    Raises:
        TooManyFailuresError: more failed.
    """
    missing = extraction.own_missing()
    _check(extraction, [], max_failures)
    done = extraction.num_own_clips() - extraction.num_own_clips(missing)
    with tqdm(
        total=extraction.num_own_clips(), initial=done, desc=description, unit="video", disable=quiet, smoothing=0.05
    ) as progress:
        for number in missing:
            failures: list[dict[str, str]] = []

            def fail(video: Video, reason: str, failures: list[dict[str, str]] = failures) -> None:
                failures.append({"video_id": video.video_id, "source": str(video.source), "reason": reason})
                progress.update()
                _check(extraction, failures, max_failures)

            clips = []
            for video, values in of_shard(number, fail):
                clips.append((video.video_id, values))
                progress.update()
            extraction.write(number, clips, failures)
    return extraction.finish()


def encode_videos(
    videos: Iterable[Video],
    reading: Iterable[Any],
    encode_batches: EncodeBatches,
    batch_size: int,
    dtype: str,
    fail: Fail,
) -> Iterator[tuple[Video, np.ndarray]]:
    """Clips with their values, in order; `fail` hears at once of one that cannot be read, encoded or stored.

    Args:
        videos: the clips.
        reading: the pixels of each, or its `CallFailedError`.
        encode_batches: as in `encode_clips`.
        batch_size: likewise.
        dtype: of the values.
        fail: gets the clip and the reason.
    """
    read = zip(videos, reading, strict=False)  # what is read ahead of these videos is for the next
    for video, features in encode_clips(_good(read, fail), encode_batches, batch_size):
        try:
            values = checked_values("features", features, dtype)
        except FeatureStoreError as error:
            fail(video, str(error))
            continue
        yield video, values


def encode_clips(
    clips: Iterable[tuple[Any, np.ndarray]], encode_batches: EncodeBatches, batch_size: int
) -> Iterator[tuple[Any, np.ndarray]]:
    """Runs clips through the encoder, in order: `(F, D_v)` for a clip of `(F, ...)` pixels.

    Batches hold exactly `batch_size` steps, across clips; the last one is filled up. For a batch of another shape the
    kernels add in another order, and on CPU they are set up anew: so a clip's features depend on no other clip, to the
    last bit; on some processors (MKL's products with AVX2) on its place, which is why a shard begins a batch. On CPU a
    small batch, whose activations stay in the cache, is the fastest.

    Args:
        clips: each with its pixels.
        encode_batches: batches `(B, ...)` of them to the `(B, D_v)` of each, in order.
        batch_size: B.
    """
    lengths: deque[tuple[Any, int]] = deque()

    def batches() -> Iterator[np.ndarray]:
        rows: list[np.ndarray] = []
        for clip, pixels in clips:
            lengths.append((clip, len(pixels)))
            rows.extend(pixels)
            while len(rows) >= batch_size:
                yield np.stack(rows[:batch_size])
                del rows[:batch_size]
        if rows:
            yield np.stack(rows + [rows[-1]] * (batch_size - len(rows)))

    features: list[np.ndarray] = []
    for encoded in encode_batches(batches()):
        features.extend(encoded)
        while lengths and len(features) >= lengths[0][1]:
            clip, num_steps = lengths.popleft()
            yield clip, np.stack(features[:num_steps])
            del features[:num_steps]


def _good(clips: Iterable[tuple[Video, Any]], fail: Fail) -> Iterator[tuple[Video, np.ndarray]]:
    """The clips that could be read; the others fail."""
    for video, pixels in clips:
        if isinstance(pixels, CallFailedError):
            fail(video, str(pixels))
        elif not len(pixels):
            fail(video, "it has no frames")
        else:
            yield video, pixels


def _check(extraction: Extraction, new: Sequence[Mapping[str, str]], max_failures: float) -> None:
    """Stops at too many failures, those of other processes included."""
    failures = [*extraction.failures(), *new]
    if len(failures) > max_failures:
        listed = extraction.list_failures(failures)
        raise TooManyFailuresError(
            f"{len(failures)} of {len(extraction.videos)} clips failed, more than --max_failures {max_failures:g}: "
            f"{_listing(failures)}\n"
            f"{listed} has them all. Finished shards are kept. Raise --max_failures, or remove the cause and delete "
            f"{extraction.progress}/*.failures.json to have those shards done again"
        )


def _listing(failures: Sequence[Mapping[str, str]], most: int = 5) -> str:
    """Some failures in words."""
    lines = [f"\n  {failure['video_id']}: {failure['reason']}" for failure in islice(failures, most)]
    return "".join(lines) + (f"\n  and {len(failures) - most} more" if len(failures) > most else "")
