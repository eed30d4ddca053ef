"""B5: exact top-10 in 200k and 2M unit vectors of width 512, for 1, 9, 32 and 1024 queries.

    python benchmarks/b5_search.py --output results/benchmarks/b5_search.json
    python benchmarks/b5_search.py --quick      # 20k vectors, to see that it runs

In one process, taking turns (ours, peers, limits, ours, ...), the median of the repeats, and the processor seconds
beside it, which other jobs on the machine disturb less:

- ours: `modeling_mmt.search.exact.ExactSearch`, as it chooses by itself, and with each screen; for many queries it
  chooses the last but one of these, torch's product and top-k, a block of rows at a time, settled in float64;
- FAISS: `faiss.knn` by inner product, which is what `IndexFlatIP.search` calls, without its copy of the corpus;
- usearch: `search(..., exact=True)`, float32, and int8 without scoring again, whose recall is printed;
- sentence-transformers: `semantic_search` with `dot_score`, so that it need not normalise the corpus every time;
- torch: the whole score matrix and `topk`, where it fits in 2 GB;
- limits: reading the corpus once, and the matrix products alone.

The corpus is a file that all contestants map, so 2M vectors take 4 GB once. Exits with 1 if a rank is wrong or a
recall too low; never because of time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import harness
import numpy as np
import torch
from sentence_transformers.util import dot_score, semantic_search
from usearch.index import MetricKind
from usearch.index import search as usearch_search

from modeling_mmt.search.exact import ExactSearch

WIDTH, TOP = 512, 10
PACKAGES = ("faiss-cpu", "usearch", "sentence-transformers", "numpy")
PEERS = ("FAISS flat", "usearch float32", "sentence-transformers", "torch mm + topk")
MATRIX_BYTES = 2 << 30
USEARCH_QUERIES = 32  # it answers one query after the other: minutes for more
Ids = np.ndarray


def corpus(num_rows: int, path: Path) -> torch.Tensor:
    """Random directions, in a file, memory-mapped; every hundredth row a copy of its neighbour, so that ties occur."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="w+", shape=(num_rows, WIDTH)))
    for start in range(0, num_rows, 1 << 16):
        block = vectors[start : start + (1 << 16)]
        block.copy_(torch.nn.functional.normalize(torch.randn(block.shape, generator=generator), dim=1))
    vectors[1::100] = vectors[::100][: len(vectors[1::100])]
    return vectors


def contestants(vectors: torch.Tensor, queries: torch.Tensor, ours: dict[str, ExactSearch]) -> dict[str, Any]:
    """Functions that search once, and return the rows that they found, or None."""
    threads = torch.get_num_threads()
    corpus_array, query_array = vectors.numpy(), queries.numpy()
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours["auto"].search(queries, TOP)[1].numpy(),
        "FAISS flat": lambda: faiss.knn(query_array, corpus_array, TOP, metric=faiss.METRIC_INNER_PRODUCT)[1],
    }
    for screen in ("float32", "bfloat16", "int8"):
        runs[f"ours, {screen} screen"] = partial(screened, ours[screen], queries)
    if len(queries) <= USEARCH_QUERIES:
        runs["usearch float32"] = lambda: usearch_ids(corpus_array, query_array, threads)
        eighths = ours["int8"]._screens["int8"].values.numpy()
        coarse = (queries / queries.abs().amax(dim=1, keepdim=True) * 127).round().to(torch.int8).numpy()
        runs["usearch int8, not scored again"] = lambda: usearch_ids(eighths, coarse, threads)
    runs["sentence-transformers"] = lambda: np.array(
        [
            [hit["corpus_id"] for hit in hits]
            for hits in semantic_search(queries, vectors, top_k=TOP, score_function=dot_score)
        ]
    )
    if 4 * len(queries) * len(vectors) <= MATRIX_BYTES:
        runs["torch mm + topk"] = lambda: (queries @ vectors.T).topk(TOP, dim=1).indices.numpy()
    runs["limit: read once"] = lambda: read_once(vectors)
    runs["limit: products"] = lambda: products(vectors, queries)
    return runs


def screened(search: ExactSearch, queries: torch.Tensor) -> Ids:
    """Rows, one line a query."""
    return search.search(queries, TOP)[1].numpy()


def usearch_ids(corpus_array: np.ndarray, query_array: np.ndarray, threads: int) -> Ids:
    """Rows, one line a query."""
    found = usearch_search(corpus_array, query_array, TOP, MetricKind.IP, exact=True, threads=threads)
    return np.atleast_2d(found.keys.astype(np.int64))


def read_once(vectors: torch.Tensor) -> None:
    """Every byte of the corpus."""
    vectors.sum()


def products(vectors: torch.Tensor, queries: torch.Tensor) -> None:
    """All inner products, none kept."""
    rows = max(1024, (1 << 22) // len(queries))
    for start in range(0, len(vectors), rows):
        vectors[start : start + rows] @ queries.T


def exact_ids(vectors: torch.Tensor, queries: torch.Tensor) -> Ids:
    """By float64, a block of rows at a time; equal scores by row."""
    best = torch.zeros(len(queries), 0, dtype=torch.float64)
    ids = torch.zeros(len(queries), 0, dtype=torch.int64)
    wide = queries.double()
    for start in range(0, len(vectors), 1 << 15):
        scores = wide @ vectors[start : start + (1 << 15)].double().T
        best = torch.cat([best, scores], dim=1)
        ids = torch.cat([ids, torch.arange(start, start + scores.shape[1]).expand(len(queries), -1)], dim=1)
        keep = best.argsort(dim=1, descending=True, stable=True)[:, : 2 * TOP]
        best, ids = best.gather(1, keep), ids.gather(1, keep)
    return ids[:, :TOP].numpy()


def wrong_queries(vectors: torch.Tensor, queries: torch.Tensor, truth: Ids, found: Ids) -> int:
    """How many queries got other scores than the best ones: ids may differ where float32 cannot tell them apart."""
    wide = queries.double().numpy()
    array = vectors.numpy()
    wrong = 0
    for query, right, ids in zip(wide, truth, found, strict=True):
        scores = array[right].astype(np.float64) @ query, array[ids].astype(np.float64) @ query
        wrong += len(set(ids.tolist())) != len(ids) or not np.allclose(*scores, rtol=0, atol=1e-6)
    return wrong


def race(
    vectors: torch.Tensor, num_queries: int, repeats: int, ours: dict[str, ExactSearch]
) -> tuple[dict[str, harness.Measurement], list[str]]:
    """Time every contestant in turns, check what it found."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.nn.functional.normalize(torch.randn(num_queries, WIDTH, generator=generator), dim=1)
    truth = exact_ids(vectors, queries)
    runs = contestants(vectors, queries, ours)
    timed = {name: harness.Measurement(f"{name}, {len(vectors)} vectors", num_queries) for name in runs}
    complaints = []
    for repeat in range(repeats):
        for name, run in runs.items():
            processor, start = time.process_time(), time.perf_counter()
            found = run()
            timed[name].seconds.append(time.perf_counter() - start)
            timed[name].cpu_seconds.append(time.process_time() - processor)
            if repeat or found is None:
                continue
            outcome = timed[name].outcome
            outcome["recall_at_10"] = float(
                np.mean([len(set(a) & set(b)) / TOP for a, b in zip(truth.tolist(), found.tolist(), strict=True)])
            )
            outcome["same_ids"] = bool(np.array_equal(truth, found))
            if name.startswith("ours") and not outcome["same_ids"]:
                complaints.append(f"{name}: ids differ from the float64 ones, {num_queries} queries")
            if "int8, not" not in name and wrong_queries(vectors, queries, truth, found):
                complaints.append(f"{name}: scores differ from the best ones, {num_queries} queries")
    return timed, complaints


def judge(num_rows: int, num_queries: int, timed: dict[str, harness.Measurement]) -> list[harness.Verdict]:
    """What must be reached."""
    median = {name: measurement.median for name, measurement in timed.items()}
    where = f"{num_queries} in {num_rows}"
    limits = {9: 0.65, 32: 0.5}
    best = min((peer for peer in PEERS if peer in median), key=lambda peer: median[peer])
    verdicts = []
    if num_queries in limits:
        limit = limits[num_queries]
        verdicts.append(harness.compare(f"{where}: FAISS", median["ours"], median["FAISS flat"], limit, False))
    verdicts.append(harness.compare(f"{where}: best peer, {best}", median["ours"], median[best], 1.1, False))
    if num_queries == 1:
        pair = median["ours, int8 screen"], median["ours, float32 screen"]
        verdicts.append(harness.compare(f"{where}: int8 and float32 screens", *pair, 0.5, False))
        recall = timed["ours, int8 screen"].outcome["recall_at_10"]
        verdicts.append(harness.compare(f"{where}: missed by the int8 screen", 1 - recall, 1, 0.001, True))
    return verdicts


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000], help="sizes of the corpus")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 9, 32, 1024])
    parser.add_argument("--repeats", type=int, default=7, help="of up to 32 queries in 200k; a third of it for more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="20k vectors, up to 32 queries")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    parser.add_argument("--work_dir", type=Path, help="where the corpus is put while it runs (a temporary folder)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rows, arguments.queries, arguments.repeats = [20_000], [1, 9, 32], 3
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    measurements: list[harness.Measurement] = []
    verdicts: list[harness.Verdict] = []
    complaints: list[str] = []
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
            vectors = corpus(num_rows, Path(folder) / "corpus.f32")
            ours = {screen: ExactSearch(vectors, screen) for screen in ("auto", "float32", "bfloat16", "int8")}
            one = vectors[:1].clone()
            for screen in ("float32", "bfloat16", "int8"):
                ours[screen].search(one, 1)  # makes the screen, once
                ours["auto"]._screens[screen] = ours[screen]._screens[screen]
            for num_queries in arguments.queries:
                large = num_queries > 32 or num_rows > 200_000
                repeats = max(1, arguments.repeats // 3) if large else arguments.repeats
                timed, wrong = race(vectors, num_queries, repeats, ours)
                measurements += timed.values()
                verdicts += judge(num_rows, num_queries, timed)
                complaints += [f"{num_rows} vectors: {complaint}" for complaint in wrong]
                print_table(num_rows, num_queries, timed)
            del vectors, ours
    facts = {
        "benchmark": "b5_search",
        "command": f"python benchmarks/b5_search.py --rows {' '.join(map(str, arguments.rows))} "
        f"--queries {' '.join(map(str, arguments.queries))} --repeats {arguments.repeats} "
        f"--threads {arguments.threads}",
        "date": datetime.date.today().isoformat(),
        "machine": harness.machine(load, arguments.threads),
        "versions": harness.versions(PACKAGES, None),
        "complaints": complaints,
    }
    harness.print_markdown(__doc__ or "", facts, [], verdicts)
    for complaint in complaints:
        print(f"WRONG: {complaint}")
    if arguments.output:
        harness.write_json(arguments.output, facts, measurements, verdicts)
    return int(bool(complaints) or any(verdict.fails and not verdict.reached for verdict in verdicts))


def print_table(num_rows: int, num_queries: int, timed: dict[str, harness.Measurement]) -> None:
    """One line a contestant."""
    print(f"\n{num_queries} queries in {num_rows} vectors; load {os.getloadavg()[0]:.1f}\n")
    print("| contestant | ms, median (lowest to highest) | processor ms | recall@10 |\n|---|---|---|---|", flush=True)
    for name, m in timed.items():
        low, middle, high = (1e3 * value for value in (min(m.seconds), m.median, max(m.seconds)))
        busy = 1e3 * m.cpu_median
        recall = m.outcome.get("recall_at_10")
        shown = "" if recall is None else f"{recall:.4f}"
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {busy:.0f} | {shown} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
