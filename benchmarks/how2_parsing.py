"""Parsing and building Multi-HowTo100M: speed beside the parsers, memory over a file of 10 GiB.

    python benchmarks/how2_parsing.py --folder runs/how2 --output results/benchmarks/how2_parsing.json
    python benchmarks/how2_parsing.py --folder runs/how2 --build_gib 0.1 --repeats 2

Files are generated in the official layout, `how2_en.json`: {video_id: {text, start, end}}, 115 cues a video as the
corpus has on average, of seeded words; 2,000 videos' cues come again under new ids. Parsers take turns on a file of
100 MB in one process: ours (`multi_howto100m.videos`), ijson's fastest backend alone, and `json.load`, which holds
the whole file and is no peer at gigabytes. Then the builder itself runs as a user runs it, on the big file, in a
process whose peak resident size is read when it ends: more than 1 GiB fails.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import harness
import ijson
from tqdm import tqdm

from datasets_scripts.multi_howto100m import videos
from modeling_mmt.data.sources import Sources

ROOT = Path(__file__).resolve().parents[1]

CUES = 115
WORDS, VIDEOS = 20_000, 2000
MOST_MIB = 1024


def main() -> int:
    """Returns 1 if the builder took more memory than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the generated files and what is built")
    parser.add_argument("--build_gib", type=float, default=10.0, help="size of the file that is built")
    parser.add_argument("--parse_mb", type=float, default=100.0, help="size of the file that parsers take turns on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    arguments = parser.parse_args()
    small, big = arguments.folder / "parse", arguments.folder / "build"
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/how2_parsing.py", *(Path(word).name for word in sys.argv[1:])]),
        "date": date.today().isoformat(),
        "machine": harness.cpu(),
        "versions": harness.versions(("ijson", "pyarrow", "datasets"), None),
        "parsing": race(small, generate(small, arguments.parse_mb * 1e6), arguments.repeats),
    }
    results["building"] = building = build(big, generate(big, arguments.build_gib * 2**30))
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return int(building["peak_mib"] > MOST_MIB)


def generate(folder: Path, size: float) -> int:
    """Write `how2_en.json` of about `size` bytes; returns how many it has."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    bodies = []
    for _ in range(VIDEOS):
        starts = [round(4.0 * cue + draw.random(), 2) for cue in range(CUES)]
        video: dict[str, Any] = {
            "text": [" ".join(draw.choices(words, k=draw.randint(3, 14))) for _ in starts],
            "start": starts,
            "end": [round(start + 1 + 2 * draw.random(), 2) for start in starts],
        }
        bodies.append(json.dumps(video))
    written = 0
    with (folder / "how2_en.json").open("wb") as file, tqdm(total=size, unit="B", unit_scale=True) as bar:
        number = 0
        while written < size:
            opening = "{" if number == 0 else ", "
            done = file.write(f'{opening}"v{number:010d}": {bodies[number % VIDEOS]}'.encode())
            written, number = written + done, number + 1
            bar.update(done)
        written += file.write(b"}")
    return written


def race(folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """MB/s of processor time, medians; each parser counts the cues."""

    def ours() -> int:
        return sum(len(video["text"]) for _, video in videos(Sources(folder), "how2_en.json"))

    def streamed() -> int:
        with (folder / "how2_en.json").open("rb") as file:
            return sum(len(video["text"]) for _, video in ijson.kvitems(file, "", use_float=True, buf_size=1 << 18))

    def whole() -> int:
        with (folder / "how2_en.json").open("rb") as file:
            return sum(len(video["text"]) for video in json.load(file).values())

    parsers: dict[str, Callable[[], int]] = {"ours": ours, f"ijson ({ijson.backend})": streamed, "json.load": whole}
    speeds: dict[str, list[float]] = {name: [] for name in parsers}
    counted = set()
    for _ in range(repeats):
        for name, parse in parsers.items():
            start = time.process_time()
            counted.add(parse())
            speeds[name].append(size / 1e6 / (time.process_time() - start))
    assert len(counted) == 1, f"the parsers disagree on the number of cues: {counted}"
    return {
        "bytes": size,
        "cues": counted.pop(),
        "mb_per_cpu_second": {name: {"median": statistics.median(v), "all": v} for name, v in speeds.items()},
    }


def build(folder: Path, size: int) -> dict[str, Any]:
    """Run the builder on the file."""
    output_dir = folder / "dataset"
    command = [sys.executable, str(ROOT / "datasets_scripts" / "multi_howto100m.py")]
    command += ["--data_dir", str(folder), "--output_dir", str(output_dir), "--temporary", str(folder)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    seconds, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return {
        "bytes": size,
        "seconds": seconds,
        "mb_per_cpu_second": size / 1e6 / cpu_seconds,
        "peak_mib": usage.ru_maxrss / 1024,  # of the largest child: the builder is the only one
        "built_bytes": sum(path.stat().st_size for path in output_dir.rglob("*.parquet")),
    }


if __name__ == "__main__":
    sys.exit(main())
