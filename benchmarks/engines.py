"""The engines of `mmt search --engine` side by side: recall, latency, time to build, bytes a vector.

    python benchmarks/engines.py --output results/benchmarks/engines.json             # a million rows of 256
    python benchmarks/engines.py --rows 20000 --repeats 3                             # that they run

Rows are unit vectors about centres, a hundred rows a centre, with cosine 0.7 to it; queries are drawn alike. Each
engine is built by `open_engine`, as the command builds it, with its own defaults; then all are open, and take turns.
Recall is the part of the exact search's ten best that an engine finds. Bytes are of the files that it keeps: for the
exact search the index's own vectors. Embedded Qdrant compares every row in Python and is meant for trials: it is left
out above `MOST_EMBEDDED` rows, unless it is named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from torch.nn.functional import normalize

from modeling_mmt.search.engines import SearchEngine, open_engine

WIDTH, TOP, COUNTS = 256, 10, (1, 9, 32)
ROWS_A_CENTRE, COSINE = 100, 0.7
MOST_EMBEDDED = 100_000
ROWS_AT_ONCE = 65_536
ENGINES = ("exact", "faiss:HNSW32", "faiss:IVF1024,PQ32", "lancedb", "lancedb:IVF_PQ", "lancedb:IVF_HNSW_SQ", "qdrant")


def make_vectors(count: int, centres: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`(count, WIDTH)` unit vectors, each `COSINE` from a random centre."""
    vectors = torch.empty(count, WIDTH)
    for start in range(0, count, ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE]
        centre = centres[torch.randint(len(centres), (len(block),), generator=generator)]
        noise = torch.randn(block.shape, generator=generator)
        across = normalize(noise - (noise * centre).sum(dim=1, keepdim=True) * centre, dim=1)
        block.copy_(normalize(COSINE * centre + (1 - COSINE**2) ** 0.5 * across, dim=1))
    return vectors


def bytes_below(folder: Path) -> int:
    """Of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def build(name: str, folder: Path, ids: Sequence[str], vectors: torch.Tensor) -> tuple[SearchEngine, dict[str, Any]]:
    """An engine over rows, the seconds that it took to make, and the bytes that it keeps for a row."""
    started = time.perf_counter()
    engine = open_engine(name, folder, ids, vectors, "benchmark")
    seconds = time.perf_counter() - started
    num_bytes = bytes_below(folder) if name != "exact" else vectors.nbytes
    return engine, {"engine": name, "build_seconds": seconds, "bytes_a_vector": num_bytes / len(ids)}


def measure(
    engines: dict[str, SearchEngine], queries: torch.Tensor, truth: torch.Tensor, repeats: int
) -> dict[str, dict[str, Any]]:
    """Recall, and milliseconds of 1, 9 and 32 queries together; the engines take turns."""
    rows = {name: engine.search(queries, TOP)[1] for name, engine in engines.items()}  # which warms them, too
    results: dict[str, dict[str, Any]] = {}
    for name, found in rows.items():
        results[name] = {"recall_at_10": float((found[:, :, None] == truth[:, None, :]).any(dim=2).double().mean())}
    for count in COUNTS:
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(repeats):
            asked = queries[(turn * count) % (len(queries) - count + 1) :][:count]
            for name, engine in engines.items():
                started = time.perf_counter()
                engine.search(asked, TOP)
                seconds[name].append(time.perf_counter() - started)
        for name, taken in seconds.items():
            results[name][f"milliseconds_{count}"] = 1000 * statistics.median(taken)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if the exact engine misses one of its own rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--engines", nargs="+", help=f"of {', '.join(ENGINES)} (all that are fit for the rows)")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    names = args.engines or [name for name in ENGINES if name != "qdrant" or args.rows <= MOST_EMBEDDED]
    load, generator = os.getloadavg()[0], torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(max(1, args.rows // ROWS_A_CENTRE), WIDTH, generator=generator), dim=1)
    vectors, queries = make_vectors(args.rows, centres, generator), make_vectors(256, centres, generator)
    ids = [f"film-{row // 100}.mp4#{row % 100}" for row in range(args.rows)]
    engines, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            engines[name], row = build(name, Path(folder) / str(number), ids, vectors)
            rows.append(row)
            print(f"{name}: built in {row['build_seconds']:.1f} s", file=sys.stderr)
        truth = open_engine("exact", Path(folder), ids, vectors, "benchmark").search(queries, TOP)[1]
        measured = measure(engines, queries, truth, args.repeats)
    rows = [row | measured[row["engine"]] for row in rows]
    print("| engine | recall@10 | ms, 1 query | 9 | 32 | build s | bytes a vector |\n|---|---|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{row[f'milliseconds_{count}']:.1f}" for count in COUNTS)
        print(
            f"| {row['engine']} | {row['recall_at_10']:.3f} | {times} | {row['build_seconds']:.1f} "
            f"| {row['bytes_a_vector']:.0f} |"
        )
    if args.output:
        facts = {
            "benchmark": "engines",
            "command": f"python benchmarks/engines.py --rows {args.rows} --repeats {args.repeats} "
            f"--threads {args.threads} --engines {' '.join(names)}",
            "date": datetime.date.today().isoformat(),
            "machine": harness.machine(load, args.threads),
            "versions": harness.versions(("faiss-cpu", "lancedb", "qdrant-client", "numpy"), None),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", encoding="utf-8")
    return int(measured.get("exact", {"recall_at_10": 1.0})["recall_at_10"] < 1)


if __name__ == "__main__":
    sys.exit(main())
