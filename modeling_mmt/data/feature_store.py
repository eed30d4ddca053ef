"""The feature store: frozen features of clips of different lengths, in Parquet or Arrow, with a manifest.

A store is a folder with `features-*.parquet` or `features-*.arrow` (`video_id` string, `video_features` list of steps
of lists of numbers, that is `(F, D_v)` a clip, F differing between clips) and `manifest.json`:

    extractor, revision   what made the features (a model's name, and its commit or SHA-256)
    rate                  steps per second of video; null where the clips have no clock
    dim, dtype            D_v, and float16 or float32
    num_clips, shards     how many clips, and each file's name, SHA-256, size in bytes and number of rows
    source                what they were made from and how: anything that JSON can hold

A store appears whole or not at all: it is written beside its place, as `<folder>.partial`, and renamed at the end.
Values are checked when written, a shard's SHA-256 and values once more when it is first read. A missing clip is an
error, never a row of zeros.

Parquet is what the Hub shows; its shards are decoded into memory. Arrow shards are mapped, not read: a store of any
size takes the memory that the system has to spare, and a clip costs one copy. `datasets` loads and streams both.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.extractors import Extractor
from modeling_mmt.data.parquet import read_parquet
from modeling_mmt.data.reading import check_hub_name, pinned_snapshot

DTYPES = {"float16": pa.float16(), "float32": pa.float32()}
FILE_FORMATS = ("parquet", "arrow")
MANIFEST = "manifest.json"
SHARD_FIELDS = {"file": str, "sha256": str, "num_bytes": int}
ABSENT = "absent:"  # begins the name of a stream that clips lack
MAX_SHARD_VALUES = 2**28  # Arrow's list offsets have 32 bits; half a gigabyte of float16 is a fair file


class FeatureStoreError(InputError):
    """A store, or what should go into one, is invalid; the message says where and what to do."""


class MissingClipError(InputError, KeyError):
    """A store does not hold the clip that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


class FeatureStore(Mapping[str, np.ndarray]):
    """A store, read: `store[video_id]` is the clip's `(F, D_v)` array, in the store's dtype and yours to change.

    Opening reads the ids of all shards; a shard's values are read (Arrow: mapped) and checked against its SHA-256 when
    the first of its clips is asked for. `verify()` does this for all shards.

    Args:
        folder: of the store.
        extractor: whose features these must be, or None for anyone's.
        revision: of the extractor.

    Raises:
        FileNotFoundError: the folder holds no manifest, or a shard is missing.
        FeatureStoreError: the manifest or a shard is invalid.
        MissingClipError: on access, the clip is not in the store.
    """

    def __init__(self, folder: str | Path, extractor: str | None = None, revision: str | None = None):
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; {self.folder} is not a finished feature store: write it (again)"
            )
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise FeatureStoreError(f"{path}: not JSON ({error}); write the store again") from error
        _check_manifest(self.manifest, path)
        for field, wanted in (("extractor", extractor), ("revision", revision)):
            if wanted is not None and self.manifest[field] != wanted:
                raise FeatureStoreError(
                    f"{path}: {field} is {self.manifest[field]!r}, but {wanted!r} was requested; features of "
                    "different extractors cannot be mixed: extract again, or request these"
                )
        self._rows: dict[str, tuple[int, int]] = {}
        self._open: dict[int, _Shard] = {}
        for number, shard in enumerate(self.manifest["shards"]):
            ids = _read_ids(self.folder, shard)
            self._rows.update({video_id: (number, row) for row, video_id in enumerate(ids)})
        if len(self._rows) != self.manifest["num_clips"]:
            raise FeatureStoreError(
                f"{path}: num_clips is {self.manifest['num_clips']}, the shards hold {len(self._rows)} different ids; "
                "write the store again"
            )

    @property
    def dim(self) -> int:
        """D_v, the width of a step."""
        return self.manifest["dim"]

    @property
    def extractors(self) -> list[Extractor]:
        """What made the features, as `FeatureStores` has it: one stream."""
        return [Extractor.of_manifest(self.manifest)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shards' SHA-256 and the rate: two stores with the same one hold the same values and times."""
        rate = [] if self.manifest["rate"] is None else [f" {self.manifest['rate']}"]
        parts = [*(shard["sha256"] for shard in self.manifest["shards"]), *rate]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def mean(self) -> np.ndarray:
        """`(D_v,)` float32: the mean over clips of each one's mean step."""
        return np.mean([features.mean(axis=0, dtype=np.float32) for features in self.values()], axis=0)

    def num_steps(self, video_id: str) -> int:
        """F of a clip.

        Raises:
            MissingClipError: it is not in the store.
        """
        shard, row = self._find(video_id)
        return int(shard.offsets[row + 1] - shard.offsets[row])

    def verify(self) -> None:
        """Reads every shard and checks its SHA-256, its widths and that its values are finite."""
        for number in range(len(self.manifest["shards"])):
            self._shard(number)

    def _shard(self, number: int) -> "_Shard":
        if number not in self._open:
            self._open[number] = read_shard(self.folder, self.manifest["shards"][number], self.manifest)
        return self._open[number]

    def __getitem__(self, video_id: str) -> np.ndarray:
        shard, row = self._find(video_id)
        return shard.values[shard.offsets[row] : shard.offsets[row + 1]].copy()

    def window(self, video_id: str, start: int, stop: int) -> np.ndarray:
        """Steps `start` to `stop` of a clip, `(stop - start, D_v)`; nothing else of it is read from a mapped shard."""
        shard, row = self._find(video_id)
        first, last = shard.offsets[row], shard.offsets[row + 1]
        if not 0 <= start < stop <= last - first:
            raise ValueError(
                f"clip {video_id!r}: steps {start} to {stop} of {last - first}; give 0 <= start < stop <= F"
            )
        return shard.values[first + start : first + stop].copy()

    def _find(self, video_id: str) -> tuple["_Shard", int]:
        if video_id not in self._rows:
            raise MissingClipError(
                f"clip {video_id!r} is not in the feature store {self.folder} ({len(self)} clips by "
                f"{self.manifest['extractor']}); extract its features, or take the clip out of the dataset"
            )
        number, row = self._rows[video_id]
        return self._shard(number), row

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _check_manifest(manifest: Any, path: Path) -> None:
    """Refuses a manifest of another shape; it may be a stranger's."""
    checks: dict[str, tuple[Any, Callable[[Any], bool]]] = {
        "extractor": ("a text", lambda value: isinstance(value, str)),
        "revision": ("a text", lambda value: isinstance(value, str)),
        "rate": ("null or a number above 0", lambda value: value is None or _is_number(value) and 0 < value < 1e9),
        "dim": ("a whole number above 0", lambda value: _is_count(value) and value > 0),
        "dtype": (f"one of {', '.join(DTYPES)}", lambda value: isinstance(value, str) and value in DTYPES),
        "num_clips": ("a whole number", _is_count),
        "shards": (f"a list of objects with {', '.join(SHARD_FIELDS)}", lambda value: all(map(_is_entry, value))),
    }
    for field, (kind, fits) in checks.items():
        if not isinstance(manifest, dict) or field not in manifest:
            raise FeatureStoreError(f"{path}: field {field!r} is missing; write the store again")
        value = manifest[field]
        if (field == "shards" and not isinstance(value, list)) or not fits(value):
            raise FeatureStoreError(f"{path}: {field} is {str(value)[:80]!r}, not {kind}; write the store again")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_entry(shard: Any) -> bool:
    return isinstance(shard, dict) and all(isinstance(shard.get(name), kind) for name, kind in SHARD_FIELDS.items())


class _Shard:
    """One file in memory: `(steps of all clips, D_v)` values, where each clip begins, and its row by id."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray, index: dict[str, int]):
        self.values, self.offsets, self.index = values, offsets, index


def _check_size(folder: Path, shard: Mapping[str, Any]) -> Path:
    if not re.fullmatch(
        rf"features-\d+\.({'|'.join(FILE_FORMATS)})", shard["file"]
    ):  # the manifest may be a stranger's
        raise FeatureStoreError(f"{folder / MANIFEST}: no name of a shard: {shard['file']!r}; write the store again")
    path = folder / shard["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but {folder / MANIFEST} lists it; write the store again")
    if path.stat().st_size != shard["num_bytes"]:
        raise FeatureStoreError(
            f"{path}: {path.stat().st_size} bytes, the manifest says {shard['num_bytes']}; the file was cut short or "
            "changed: copy or write the store again"
        )
    return path


def _read_ids(folder: Path, shard: Mapping[str, Any]) -> list[str]:
    """A shard's ids; its values, and with them its SHA-256, are read when a clip of it is asked for."""
    path = _check_size(folder, shard)
    return _read_table(path, pa.memory_map(str(path)), ["video_id"])["video_id"].to_pylist()


def _read_table(path: Path, source: Any, columns: list[str]) -> pa.Table:
    """Columns of a shard, every offset and text of them within bounds: what follows trusts them, and would crash.

    Raises:
        FeatureStoreError: it cannot be read; names `path`, which `source` is the bytes of.
    """
    try:
        if path.suffix == ".arrow":
            fields = pa.ipc.open_stream(source).schema
            options = pa.ipc.IpcReadOptions(included_fields=[fields.get_field_index(name) for name in columns])
            source.seek(0)
            table = pa.ipc.open_stream(source, options=options).read_all()
        else:
            table = read_parquet(source, columns)
        table.validate(full=True)
    except Exception as error:  # a damaged file leads the readers anywhere
        raise FeatureStoreError(f"{path}: no readable shard ({error}); copy or write the store again") from error
    for name in columns:
        if name not in table.column_names:
            raise FeatureStoreError(f"{path}: no readable shard (no column {name}); copy or write the store again")
    kind = table["video_id"].type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise FeatureStoreError(f"{path}: no readable shard (video_id is {kind}); write the store again, ids as texts")
    return table


def read_shard(folder: Path, shard: Mapping[str, Any], manifest: Mapping[str, Any]) -> _Shard:
    """A shard's values, checked against its SHA-256 and the manifest.

    Raises:
        FileNotFoundError: the shard does not exist.
        FeatureStoreError: it is not as the manifest says, or a value is not finite.
    """
    path = _check_size(folder, shard)
    data = pa.memory_map(str(path)).read_buffer()
    got = hashlib.sha256(data).hexdigest()
    if got != shard["sha256"]:
        raise FeatureStoreError(
            f"{path}: SHA-256 is {got}, the manifest says {shard['sha256']}; the file was changed or damaged: copy or "
            "write the store again"
        )
    table = _read_table(path, pa.BufferReader(data), ["video_id", "video_features"])
    for field in ("extractor", "revision"):  # a shard of ours says whose it is; one of others need not
        value = (table.schema.metadata or {}).get(field.encode(), manifest[field].encode()).decode()
        if value != manifest[field]:
            raise FeatureStoreError(
                f"{path}: {field} is {value!r}, the manifest says {manifest[field]!r}; shards of two stores were mixed"
            )
    wanted = pa.list_(pa.list_(DTYPES[manifest["dtype"]]))
    column = table["video_features"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if not column.type.equals(wanted):
        raise FeatureStoreError(f"{path}: video_features has type {column.type}, expected {wanted}")
    steps, offsets = column.flatten(), column.offsets.to_numpy()
    widths = np.diff(steps.offsets.to_numpy())
    if column.null_count or steps.null_count or (widths != manifest["dim"]).any():
        raise FeatureStoreError(f"{path}: steps of width {sorted(set(widths.tolist()))}, expected {manifest['dim']}")
    values = steps.flatten().to_numpy(zero_copy_only=False).reshape(len(steps), manifest["dim"])
    if not all_finite(values):
        raise FeatureStoreError(f"{path}: not all values are finite; extract the features again")
    ids = table["video_id"].to_pylist()
    return _Shard(values, offsets - offsets[0], {video_id: row for row, video_id in enumerate(ids)})


def all_finite(values: np.ndarray) -> bool:
    """Whether float16 or float32 values are finite: their exponents' bits are not all set. Takes a megabyte or so."""
    kind, exponent = {2: (np.uint16, 0x7C00), 4: (np.uint32, 0x7F800000)}[values.itemsize]
    bits = values.reshape(-1).view(kind)
    return not any(((bits[i : i + 2**18] & exponent) == exponent).any() for i in range(0, len(bits), 2**18))


class FeatureStores(Mapping[str, Any]):
    """Several feature stores as one: a clip's streams side by side, step by step.

    Args:
        folders: of the stores, or `org/name@revision` on the Hub. `absent:512` in place of one is a stream that the
            model has, 512 wide, and these clips lack, as pictures lack a video network's: zeros, from which the input
            layer's part for it learns nothing.

    Raises:
        FeatureStoreError: no folder is a store, or an absent stream has no width.
    """

    def __init__(self, folders: Sequence[str]):
        self.streams: list[int | FeatureStore] = [
            _absent(name) if name.startswith(ABSENT) else FeatureStore(store_folder(name))
            for name in map(str, folders)
        ]
        self.stores = [stream for stream in self.streams if isinstance(stream, FeatureStore)]
        if not self.stores:
            raise FeatureStoreError(f"features are {list(folders)}; at least one must be a feature store")
        self.dims = [stream if isinstance(stream, int) else stream.dim for stream in self.streams]
        self.fingerprints = [ABSENT + str(s) if isinstance(s, int) else s.fingerprint for s in self.streams]

    @property
    def extractors(self) -> list[Extractor]:
        """What made the features of each stream."""
        return [Extractor(s) if isinstance(s, int) else s.extractors[0] for s in self.streams]

    def __getitem__(self, video_id: str) -> np.ndarray:
        """`(F, D_v)` float: `D_v` is the sum of the streams' widths."""
        streams = [store[video_id] for store in self.stores]
        if len({len(stream) for stream in streams}) > 1:
            raise ValueError(
                f"clip {video_id!r} has {[len(s) for s in streams]} steps in its stores; extract at one rate"
            )
        return self._side_by_side(streams)

    def problems(self, video_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
        """For each store that lacks clips, its folder and a sentence: how many, which, and what to do."""
        for store in self.stores:
            missing = [video_id for video_id in video_ids if video_id not in store]
            if missing:
                yield (
                    str(store.folder),
                    (
                        f"{len(missing):,} of {len(video_ids):,} clips are not in {store.folder}, the first "
                        f"{missing[0]!r}: extract them, or build the dataset with --missing_features skip"
                    ),
                )

    def num_steps(self, video_id: str) -> int:
        """F of a clip: of its shortest stream, since extractors differ by a step at a video's end."""
        return min(store.num_steps(video_id) for store in self.stores)

    def window(self, video_id: str, start: int, stop: int) -> np.ndarray:
        """Steps `start` to `stop` of a clip, `(stop - start, D_v)`."""
        return self._side_by_side([store.window(video_id, start, stop) for store in self.stores])

    def _side_by_side(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        if len(self.streams) == 1:
            return arrays[0]
        values = iter(arrays)
        parts = [
            np.zeros((len(arrays[0]), s), arrays[0].dtype) if isinstance(s, int) else next(values)
            for s in self.streams
        ]
        return np.concatenate(parts, axis=1)

    def __iter__(self) -> Iterator[str]:
        """The first store's clips."""
        return iter(self.stores[0])

    def __len__(self) -> int:
        """Clips of the first store."""
        return len(self.stores[0])


def store_folder(name: str) -> Path:
    """The folder of a store: as it is named, or the snapshot of `org/name@revision`, a dataset on the Hub.

    A name without a revision is a folder's, so that a mistyped one is never looked for at a stranger's.

    Raises:
        InputError: there is no such repository or revision; or as `pinned_snapshot`.
    """
    repository, at, revision = name.rpartition("@")
    if not at or Path(name).exists():
        return Path(name)
    with naming_input(name):
        return pinned_snapshot(check_hub_name(repository), revision=revision, repo_type="dataset")


def _absent(name: str) -> int:
    """The width of a stream that clips lack."""
    width = name.removeprefix(ABSENT)
    if not width.isdigit() or int(width) < 1:
        raise FeatureStoreError(f"features has {name!r}; write absent:<width>, such as absent:512")
    return int(width)
