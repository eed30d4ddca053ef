"""B7: features of ragged clips in random order; captions of how2-style JSON.

    python benchmarks/b7_features.py --output results/benchmarks/b7_features.json    # 10k clips, 0.2 GiB; minutes
    python benchmarks/b7_features.py --quick

Clips of 5 to 40 steps, 512 wide, float16, each read once in random order: ours from a store of mapped Arrow shards and
of Parquet shards (both verified: SHA-256 and every value, at the first clip of a shard, which is done before the
clock runs), `np.load` of a file a clip, HDF5 with a dataset a clip, rows of `datasets`, and, as the limit, a
copy of the same bytes from one array in memory. All files are in the page cache. In the order of the files: ours and
WebDataset. Parsing: ours (which also checks UTF-8 and hashes), ijson's fastest backend alone, and json.load of it all.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import h5py
import harness
import ijson
import numpy as np
import webdataset

from datasets_scripts.multi_howto100m import videos
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.sources import Sources

WIDTH = 512
COPY, ARROW, PARQUET = "copy in memory", "ours, Arrow", "ours, Parquet"
NPY, HDF5, ROWS = "np.load a file", "HDF5", "datasets rows"
ARROW_ORDER, WEBDATASET = "ours in order", "WebDataset in order"
PARSE, IJSON, JSON = "parse: ours", "parse: ijson", "parse: json.load"
ROWS_READ = 20  # of `datasets`, one in this many: it is slow, its seconds are multiplied

Run = tuple[Callable[[], None], Callable[[], dict[str, Any]]]


def clips(num_clips: int) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and `(F, WIDTH)` float16 features."""
    generator = np.random.default_rng(0)
    for number in range(num_clips):
        steps = int(generator.integers(5, 41))
        yield f"clip{number:06d}", generator.standard_normal((steps, WIDTH), np.float32).astype(np.float16)


def order(num_clips: int) -> list[str]:
    """Every id once, at random."""
    return [f"clip{number:06d}" for number in np.random.default_rng(1).permutation(num_clips)]


def reading(prepare: Callable[[int, Path], Callable[[str], np.ndarray]]) -> harness.Contestant:
    """A contestant of a function that gives a clip by its id."""

    def contestant(args: argparse.Namespace) -> Run:
        (num_clips,) = args.sizes
        folder = tempfile.TemporaryDirectory()
        ids, last = order(num_clips), {"steps": 0, "first": 0.0}
        read = prepare(num_clips, Path(folder.name))
        started = time.perf_counter()
        for video_id in ids:  # the page cache, and what is verified once
            read(video_id)
        last["first_pass_seconds"] = time.perf_counter() - started

        def step() -> None:
            steps, first = 0, 0.0
            for video_id in ids:
                features = read(video_id)
                steps += len(features)
                first += float(features[0, 0])
            last.update(steps=steps, first=round(first, 3))

        def check(folder: Any = folder) -> dict[str, Any]:  # the folder lives as long as the contestant
            return dict(last)

        return step, check

    return contestant


def copying(num_clips: int, folder: Path) -> Callable[[str], np.ndarray]:
    """From one array."""
    parts = dict(clips(num_clips))
    flat = np.concatenate(list(parts.values()))
    ends = np.cumsum([len(part) for part in parts.values()]).tolist()
    spans = dict(zip(parts, pairwise([0, *ends]), strict=True))
    return lambda video_id: flat[slice(*spans[video_id])].copy()


def store(file_format: str) -> Callable[[int, Path], Callable[[str], np.ndarray]]:
    """Ours."""

    def prepare(num_clips: int, folder: Path) -> Callable[[str], np.ndarray]:
        settings: dict[str, Any] = {"extractor": "random", "revision": "0", "file_format": file_format}
        return FeatureStore(write_feature_store(folder / "store", clips(num_clips), **settings)).__getitem__

    return prepare


def npy(num_clips: int, folder: Path) -> Callable[[str], np.ndarray]:
    """A file a clip."""
    for video_id, features in clips(num_clips):
        np.save(folder / f"{video_id}.npy", features)
    return lambda video_id: np.load(folder / f"{video_id}.npy")


def hdf5(num_clips: int, folder: Path) -> Callable[[str], np.ndarray]:
    """A dataset a clip, contiguous."""
    with h5py.File(folder / "clips.h5", "w") as file:
        for video_id, features in clips(num_clips):
            file[video_id] = features
    file = h5py.File(folder / "clips.h5", "r")
    return lambda video_id: file[video_id][()]


def rows(args: argparse.Namespace) -> Run:
    """`datasets` over the Arrow shards, one row in `ROWS_READ`."""
    (num_clips,) = args.sizes
    folder = tempfile.TemporaryDirectory()
    path = write_feature_store(
        Path(folder.name) / "store", clips(num_clips), extractor="random", revision="0", file_format="arrow"
    )
    table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(p)) for p in sorted(path.glob("*.arrow"))])
    table = table.with_format("numpy")
    numbers = [int(video_id[4:]) for video_id in order(num_clips)][::ROWS_READ]
    last: dict[str, Any] = {}

    def step() -> None:
        last["steps_read"] = sum(len(table[number]["video_features"]) for number in numbers)

    def check(folder: Any = folder) -> dict[str, Any]:
        return {**last, "rows": len(numbers)}

    return step, check


def in_order(args: argparse.Namespace) -> Run:
    """Ours in the order of its shards."""
    (num_clips,) = args.sizes
    folder = tempfile.TemporaryDirectory()
    read = store("arrow")(num_clips, Path(folder.name))
    ids, last = sorted(order(num_clips)), {"steps": 0}
    for video_id in ids:
        read(video_id)

    def step() -> None:
        last["steps"] = sum(len(read(video_id)) for video_id in ids)

    return step, lambda folder=folder: dict(last)


def web(args: argparse.Namespace) -> Run:
    """A tar of .npy, read as a stream."""
    (num_clips,) = args.sizes
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "clips.tar"
    with tarfile.open(path, "w") as tar:
        for video_id, features in clips(num_clips):
            buffer = io.BytesIO()
            np.save(buffer, features)
            member = tarfile.TarInfo(f"{video_id}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    last = {"steps": 0}

    def step() -> None:
        stream = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).decode()
        last["steps"] = sum(len(sample["npy"]) for sample in stream)

    return step, lambda folder=folder: dict(last)


def parsing(parse: Callable[[Path], int]) -> harness.Contestant:
    """A contestant that counts the cues of a how2-style file of as many videos as half the clips."""

    def contestant(args: argparse.Namespace) -> Run:
        (num_clips,) = args.sizes
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "how2_en.json"
        write_how2(path, num_clips // 2)
        last: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6}

        def step() -> None:
            last["cues"] = parse(path)

        return step, lambda folder=folder: dict(last)

    return contestant


def write_how2(path: Path, num_videos: int) -> None:
    """About 115 cues of seven words a video, as in HowTo100M."""
    generator = np.random.default_rng(0)
    words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 9)))) for _ in range(3000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_videos):
            count = int(generator.integers(40, 190))
            times = np.round(np.cumsum(generator.uniform(1, 4, count)), 2)
            chosen = generator.integers(0, len(words), (count, 7))
            texts = [" ".join(words[index] for index in row) for row in chosen]
            video = {"text": texts, "start": times.tolist(), "end": np.round(times + 2.5, 2).tolist()}
            file.write(("{" if number == 0 else ", ") + f'"{number:011d}": {json.dumps(video)}')
        file.write("}")


def parse_ours(path: Path) -> int:
    """As the builder reads it."""
    return sum(len(video["text"]) for _, video in videos(Sources(path.parent), path.name))


def parse_ijson(path: Path) -> int:
    """Its fastest backend, nothing checked."""
    with path.open("rb") as file:
        return sum(len(video["text"]) for _, video in ijson.kvitems(file, "", use_float=True))


def parse_json(path: Path) -> int:
    """All of it in memory."""
    with path.open(encoding="utf-8") as file:
        return sum(len(video["text"]) for video in json.load(file).values())


CONTESTANTS = {
    COPY: reading(copying),
    ARROW: reading(store("arrow")),
    PARQUET: reading(store("parquet")),
    NPY: reading(npy),
    HDF5: reading(hdf5),
    ROWS: rows,
    ARROW_ORDER: in_order,
    WEBDATASET: web,
    PARSE: parsing(parse_ours),
    IJSON: parsing(parse_ijson),
    JSON: parsing(parse_json),
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """All read the same, or it fails; time is reported."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        mine, copy = results[ARROW, size], results[COPY, size]
        for name in (ARROW, PARQUET, NPY, HDF5):
            same = all(results[name, size].outcome[key] == copy.outcome[key] for key in ("steps", "first"))
            verdicts.append(harness.compare(f"{size} clips: {name} reads what the copy copies", 2 - same, 1, 1, True))
        same = results[WEBDATASET, size].outcome["steps"] == copy.outcome["steps"]
        verdicts.append(harness.compare(f"{size} clips: WebDataset reads as much", 2 - same, 1, 1, True))
        cues = {results[name, size].outcome["cues"] for name in (PARSE, IJSON, JSON)}
        verdicts.append(harness.compare(f"{size // 2} videos: all parse the same cues", len(cues), 1, 1, True))
        best = min((results[name, size] for name in (NPY, HDF5)), key=lambda one: one.median)
        what = f"{size} clips at random: seconds, to the best peer ({best.contestant})"
        verdicts.append(harness.compare(what, mine.median, best.median, 1, False))
        what = f"{size} clips at random: seconds, to a copy in memory"
        verdicts.append(harness.compare(what, mine.median, copy.median, 2, False))
        web_seconds = results[WEBDATASET, size].median
        verdicts.append(
            harness.compare(
                f"{size} clips in order: seconds, to WebDataset",
                results[ARROW_ORDER, size].median,
                web_seconds,
                1,
                False,
            )  # noqa: E501
        )
        megabytes = results[PARSE, size].outcome["megabytes"]
        seconds = results[PARSE, size].median
        verdicts.append(harness.compare("parsing: seconds, to 100 MB/s", seconds, megabytes / 100, 1, False))
        verdicts.append(
            harness.compare("parsing: seconds, to ijson alone", seconds, results[IJSON, size].median, 1.5, False)
        )
        slow = results[ROWS, size].median * ROWS_READ
        print(
            f"first pass over {size} clips, verified: Arrow {mine.outcome['first_pass_seconds']:.2f} s, Parquet "
            f"{results[PARQUET, size].outcome['first_pass_seconds']:.2f} s; as `datasets` rows: about {slow:.1f} s; "
            f"parsing {megabytes / seconds:.0f} MB/s, json.load {megabytes / results[JSON, size].median:.0f} MB/s"
        )
    return verdicts


if __name__ == "__main__":
    parser = harness.parser(__doc__, sizes=(10_000,), quick_sizes=(500,))
    packages = ("datasets", "pyarrow", "numpy", "h5py", "webdataset", "ijson")
    sys.exit(harness.main(parser, CONTESTANTS, judge, packages))
