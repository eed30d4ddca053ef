"""Writes a feature store clip by clip and shard by shard; feature_store.py describes the format."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mmt.data.feature_store import (
    DTYPES,
    FILE_FORMATS,
    MANIFEST,
    MAX_SHARD_VALUES,
    FeatureStoreError,
    read_shard,
)
from modeling_mmt.data.files import file_sha256, locked, put_in_place, write_json, writing_file


class FeatureStoreWriter:
    """Writes a store clip by clip, shard by shard, and resumes where an interrupted writer of the same store stopped.

    Use it as a context manager: leaving it without an error finishes the store; leaving it by an error keeps the
    whole shards in `<folder>.partial`. With `resume=True` these are kept, and `stored_ids` names their clips.

    Args:
        folder: where the store will be; must not exist.
        extractor: what makes the features.
        revision: which version of it.
        rate: steps per second of video, or None.
        dtype: `float16` or `float32`, of the stored values.
        source: what the features are made from, anything that JSON can hold.
        file_format: `parquet` or `arrow`.
        clips_per_shard: clips a file.
        resume: whether to go on with the shards of an interrupted writer; they must have been made with the same
            extractor, revision, rate, dtype and source.

    Raises:
        FileExistsError: the folder exists.
        FeatureStoreError: the dtype is unknown, another process is writing this store, or the shards to go on with
            were made in another way.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        extractor: str,
        revision: str,
        rate: float | None = None,
        dtype: str = "float16",
        source: Any = None,
        file_format: str = "parquet",
        clips_per_shard: int = 1024,
        resume: bool = False,
    ):
        if dtype not in DTYPES:
            raise FeatureStoreError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        if file_format not in FILE_FORMATS:
            raise FeatureStoreError(f"file_format is {file_format!r}; choose one of {', '.join(FILE_FORMATS)}")
        if clips_per_shard < 1:
            raise FeatureStoreError(f"clips_per_shard is {clips_per_shard}; it must be at least 1")
        self.folder = Path(folder)
        self._check_is_new()
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.dtype, self.file_format, self.clips_per_shard = dtype, file_format, clips_per_shard
        settings = {"extractor": extractor, "revision": revision, "rate": rate, "dtype": dtype, "source": source}
        self._settings = json.loads(json.dumps(settings))  # as it will be read again: tuples are lists
        self._dim: int | None = None
        self._shards: list[dict[str, Any]] = []
        self.stored_ids: set[str] = set()
        self._waiting: list[tuple[str, np.ndarray]] = []
        self._num_waiting_values, self._is_finished = 0, False

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        busy = FeatureStoreError(f"{self.folder}: another process is writing this store; wait for it")
        self._lock.enter_context(locked(self.folder.with_name(self.folder.name + ".lock"), busy))
        try:
            self._open_partial(resume)
        except BaseException:
            self._lock.close()
            raise

    def _check_is_new(self) -> None:
        if self.folder.exists():  # also one without a name: / and .
            raise FileExistsError(f"{self.folder} exists; choose another folder or delete it")

    def _open_partial(self, resume: bool) -> None:
        self._check_is_new()  # another process may have been writing it until now
        progress = self.partial / MANIFEST
        if not (resume and progress.is_file()):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
            return
        saved = json.loads(progress.read_text(encoding="utf-8"))
        for field, value in self._settings.items():
            if saved[field] != value:
                raise FeatureStoreError(
                    f"{progress}: {field} is {saved[field]!r}, now {value!r}; the interrupted store was written with "
                    f"other settings: finish it with those, or delete {self.partial}"
                )
        self._dim, self._shards = saved["dim"], saved["shards"]
        for shard in self._shards:
            self.stored_ids.update(read_shard(self.partial, shard, saved).index)

    def add(self, video_id: str, features: np.ndarray) -> None:
        """Adds a clip.

        Args:
            video_id: not yet in the store.
            features: `(F, D_v)` numbers, F >= 1, finite in the store's dtype; D_v is that of the first clip.

        Raises:
            FeatureStoreError: one of these does not hold.
        """
        where = f"{self.folder}: clip {video_id!r}"
        if not isinstance(video_id, str) or not video_id:
            raise FeatureStoreError(f"{where}: the id must be a text that is not empty")
        if video_id in self.stored_ids:
            raise FeatureStoreError(f"{where} already exists; give each clip once")
        values = checked_values(where, features, self.dtype, self._dim)
        self._dim = values.shape[1]
        if self._num_waiting_values + values.size > MAX_SHARD_VALUES:
            self._write_shard()
        self.stored_ids.add(video_id)
        self._waiting.append((video_id, values))
        self._num_waiting_values += values.size
        if len(self._waiting) >= self.clips_per_shard:
            self._write_shard()

    def _write_shard(self) -> None:
        if not self._waiting:
            return
        name = f"features-{len(self._shards):05d}.{self.file_format}"
        shard = write_shard(
            self.partial / name, self._waiting, self._settings["extractor"], self._settings["revision"]
        )
        self._shards.append(shard)
        write_manifest(self.partial, self._settings, self._dim, self._shards)
        self._waiting, self._num_waiting_values = [], 0

    def finish(self) -> Path:
        """Writes what is left and puts the store in its place.

        Raises:
            FeatureStoreError: no clip was added.
        """
        self._write_shard()
        if not self._shards:
            raise FeatureStoreError(f"{self.folder}: no clip was given; a store needs at least one")
        own_files = {MANIFEST, *(shard["file"] for shard in self._shards)}
        for file in self.partial.iterdir():  # a shard that was written, but not listed, when a writer was killed
            if file.name not in own_files:
                file.unlink()
        put_in_place(self.partial, self.folder)
        self._is_finished = True
        self._lock.close()
        return self.folder

    def __enter__(self) -> "FeatureStoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if kind is None and not self._is_finished:
                self.finish()


def checked_values(where: str, features: np.ndarray, dtype: str, dim: int | None = None) -> np.ndarray:
    """A clip's features as they are stored.

    Args:
        where: begins the message of an error.
        features: `(F, D_v)` numbers, F >= 1, finite in `dtype`. In float16, numbers below 3e-8 beside larger ones
            become 0; a clip of nothing else is refused.
        dtype: `float16` or `float32`, of the stored values.
        dim: what `D_v` must be, if that is known.

    Raises:
        FeatureStoreError: one of these does not hold.
    """
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise FeatureStoreError(
            f"{where}: features are {features.dtype} {features.shape}; give numbers (steps, width), neither 0"
        )
    if dim is not None and features.shape[1] != dim:
        raise FeatureStoreError(
            f"{where}: width {features.shape[1]}, the clips before it {dim}; put features of another "
            "extractor into a store of their own"
        )
    with np.errstate(over="ignore"):
        values = features.astype(dtype)
    if not np.isfinite(values).all():
        step, column = np.argwhere(~np.isfinite(values))[0]
        raise FeatureStoreError(
            f"{where}: step {step}, column {column} is {features[step, column]}, not finite as {dtype}; "
            "correct the extractor, or choose dtype='float32' if the number itself is finite"
        )
    if features.any() and not values.any():
        raise FeatureStoreError(
            f"{where}: its largest number is {abs(features).max():g}, which is 0 as {dtype}: nothing would be left; "
            "choose dtype='float32', or scale the features"
        )
    return values


def write_shard(path: Path, clips: Sequence[tuple[str, np.ndarray]], extractor: str, revision: str) -> dict[str, Any]:
    """Writes clips, of checked values of one width, to a file that appears whole or not at all.

    Args:
        path: `features-<number>.parquet` or `.arrow`.
        clips: (video_id, `(F, D_v)` values) pairs, at least one.
        extractor: goes into the file.
        revision: likewise.

    Returns:
        The manifest's entry: file, sha256, num_bytes, num_rows.
    """
    steps = np.cumsum([0, *(len(values) for _, values in clips)], dtype=np.int32)
    flat = np.concatenate([values for _, values in clips]).reshape(-1)
    rows = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, clips[0][1].shape[1], dtype=np.int32), pa.array(flat))
    ids = [video_id for video_id, _ in clips]
    table = pa.table({"video_id": ids, "video_features": pa.ListArray.from_arrays(steps, rows)})
    table = table.replace_schema_metadata({"extractor": extractor, "revision": revision})
    with writing_file(path) as partial:
        if path.suffix == ".arrow":
            with pa.ipc.new_stream(partial, table.schema) as writer:  # as datasets' own files
                writer.write_table(table)
        else:
            pq.write_table(table, partial, compression="zstd", use_dictionary=False)
        sha256, num_bytes = file_sha256(partial), partial.stat().st_size
    return {"file": path.name, "sha256": sha256, "num_bytes": num_bytes, "num_rows": len(clips)}


def write_manifest(
    folder: Path, settings: Mapping[str, Any], dim: int | None, shards: Sequence[Mapping[str, Any]]
) -> None:
    """Writes a store's manifest at once.

    Args:
        folder: that holds the shards.
        settings: extractor, revision, rate, dtype, source; anything else is left aside.
        dim: D_v.
        shards: entries by `write_shard`, in order.
    """
    manifest = {
        "extractor": settings["extractor"],
        "revision": settings["revision"],
        "rate": settings["rate"],
        "dim": dim,
        "dtype": settings["dtype"],
        "num_clips": sum(shard["num_rows"] for shard in shards),
        "shards": list(shards),
        "source": settings["source"],
    }
    write_json(folder / MANIFEST, manifest)


def write_feature_store(
    folder: str | Path,
    clips: Iterable[tuple[str, np.ndarray]],
    *,
    extractor: str,
    revision: str,
    rate: float | None = None,
    dtype: str = "float16",
    source: Any = None,
    file_format: str = "parquet",
) -> Path:
    """Writes a whole store from (video_id, `(F, D_v)` features) pairs; the arguments are `FeatureStoreWriter`'s.

    If it fails, nothing is left.

    Raises:
        FileExistsError, FeatureStoreError: as `FeatureStoreWriter` and its `add`.
    """
    settings: dict[str, Any] = {"extractor": extractor, "revision": revision, "rate": rate, "file_format": file_format}
    with FeatureStoreWriter(folder, **settings, dtype=dtype, source=source) as writer:
        try:
            for video_id, features in clips:
                writer.add(video_id, features)
            return writer.finish()
        except BaseException:
            shutil.rmtree(writer.partial, ignore_errors=True)
            raise
