"""The pre-training sampler over a simulated Multi-HowTo100M: memory, throughput, languages, time to the first clip.

    python benchmarks/simulated_howto100m.py --output_dir runs/simulated --results results/scale/sampling.json
    python benchmarks/simulated_howto100m.py --videos 12000 --output_dir runs/simulated-1pct    # 1 %, as the tests do

What is simulated: 1.2 million videos with 138 million cue times (`video_id`, `start`, `end`, and which seven to nine
languages it has), in Parquet shards, without media. The texts of the cues are made when they are read, from a hash
of video, language and cue. What is real: the Parquet, `datasets`' streaming, `split_dataset_by_node`, the sampler.
One epoch is drawn in one process without workers. Memory is this process's resident set.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.windows import ClipStream, WindowSampler, key_of

VIDEOS, CUES_A_VIDEO = 1_200_000, 115  # 138 million cues
VIDEOS_A_SHARD = 4000
READINGS = 20  # of memory, over the epoch


class CueTexts(Sequence):
    """The texts of one video's cues in one language, made when asked for."""

    def __init__(self, video_id: str, language: str, num_cues: int):
        self.key, self.language, self.num_cues = key_of(video_id)[1], language, num_cues

    def __len__(self) -> int:
        return self.num_cues

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[cue] for cue in range(*index.indices(self.num_cues))]
        state = (self.key * 2654435761 + index * 40503) & 0xFFFFFFFF
        return " ".join(f"{self.language}{(state >> shift) % 997}" for shift in (0, 7, 13, 19))


def generate(folder: Path, num_videos: int, seed: int = 0) -> int:
    """Writes the index in shards; returns the number of cues."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard, first in enumerate(tqdm(range(0, num_videos, VIDEOS_A_SHARD), desc="index", unit="shard")):
        generator = np.random.default_rng((seed, shard))
        size = min(VIDEOS_A_SHARD, num_videos - first)
        counts = np.clip(generator.gamma(2.5, CUES_A_VIDEO / 2.5, size).round().astype(np.int64), 1, 2000)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        gaps = generator.exponential(1.0, offsets[-1]).astype(np.float32)
        lengths = generator.uniform(1.0, 5.1, offsets[-1]).astype(np.float32)
        ends = np.cumsum(gaps.astype(np.float64) + lengths)
        before = np.repeat(np.concatenate([[0.0], ends])[offsets[:-1]], counts)
        ends = (ends - before).astype(np.float32)
        lacking = [generator.choice(9, generator.integers(0, 3), replace=False) for _ in range(size)]
        masks = [0x1FF & ~sum(1 << int(language) for language in gone) for gone in lacking]
        cut = pa.array(offsets, pa.int32())
        table = pa.table(
            {
                "video_id": [f"{first + number:011d}" for number in range(size)],
                "languages": pa.array(masks, pa.int16()),
                "start": pa.ListArray.from_arrays(cut, pa.array(ends - lengths)),
                "end": pa.ListArray.from_arrays(cut, pa.array(ends)),
            }
        )
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=500, compression="zstd")
        total += int(offsets[-1])
    return total


def with_texts(row: Any) -> dict[str, Any]:
    """A row of the index as a row of `multi_howto100m.py`."""
    start, end = np.asarray(row["start"]), np.asarray(row["end"])
    video: dict[str, Any] = {"video_id": row["video_id"]}
    for number, language in enumerate(LANGUAGES):
        if row["languages"] >> number & 1:
            video[f"text_{language}"] = CueTexts(row["video_id"], language, len(start))
            video[f"start_{language}"], video[f"end_{language}"] = start, end
    return video


def resident() -> float:
    """MiB of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def draw(folder: Path, epoch: int = 0) -> dict[str, Any]:
    """Draws an epoch; returns what was measured."""
    started = time.perf_counter()
    rows = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
    clips = ClipStream(rows, WindowSampler(LANGUAGES), prepare=with_texts)
    clips.set_epoch(epoch)
    index = sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
    languages: Counter[str] = Counter()
    seconds, words, drawn, memory = 0.0, 0, 0, []
    first_clip = cpu = 0.0
    for clip in clips:
        if not drawn:
            first_clip, begun, cpu = time.perf_counter() - started, time.perf_counter(), time.process_time()
        drawn += 1
        (column,) = [key for key in clip if key.startswith("text_")]
        languages[column.removeprefix("text_")] += 1
        seconds += clip["end"] - clip["start"]
        words += clip[column].count(" ") + 1
        if drawn % max(1, index // READINGS) == 0:
            memory.append(round(resident()))
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "clips": drawn,
        "videos": index,
        "first_clip_seconds": round(first_clip, 2),
        "clips_per_second": round(drawn / wall),
        "clips_per_cpu_second": round(drawn / cpu),
        "resident_mib": memory,
        "languages": {language: languages[language] / drawn for language in LANGUAGES},
        "mean_clip_seconds": seconds / drawn,
        "mean_words": words / drawn,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Generates the index where it does not exist, draws an epoch, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--output_dir", type=Path, required=True, help="of the index: 1.1 GB at full size")
    parser.add_argument("--results", type=Path, help="JSON file to write what was measured to")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    done = arguments.output_dir / "index.json"
    if done.is_file():
        facts = json.loads(done.read_text())
    else:
        cues = generate(arguments.output_dir, arguments.videos)
        size = sum(path.stat().st_size for path in arguments.output_dir.glob("*.parquet"))
        seconds = round(time.perf_counter() - started, 1)
        facts = {"cues": cues, "index_bytes": size, "generation_seconds": seconds}
        done.write_text(json.dumps(facts))
    found = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the start",
        "versions": {"python": platform.python_version(), "datasets": datasets.__version__, "pyarrow": pa.__version__},
        **facts,
        **draw(arguments.output_dir),
    }
    print(json.dumps(found, indent=1))
    if arguments.results:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
