"""Exact top-k over unit vectors, faster than a float32 pass: screen in few bits, settle the survivors in float64.

Letters: `q` queries, `N` corpus rows, `P` width, `k` results. *Exact* means the order of the float64 inner products of
the given float32 vectors, equal ones in the order of their rows.

**The bound.** A screen replaces a corpus row `v` by `w` (float32, float16, bfloat16 or int8 times a scale) and a query
`x` by `y`, and computes `z`, nearly `y . w`. Since

    x . v  =  y . w  +  y . (v - w)  +  (x - y) . v ,

Cauchy and Schwarz give, with `a` for what the computation of `y . w` itself can lose,

    | x . v - z |  <=  e  :=  |y| |v - w|  +  |x - y| |v|  +  a .

All four norms are computed from the vectors at hand and rounded up; those of the corpus are kept as the largest of
each group of 64 rows. For `a`: a sum of `P` products in float32, in any order, loses at most
`g |y| |w|`, `g = P u / (1 - P u)`, `u = 2^-24` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1);
float16 and bfloat16 products are summed in float32 and the result is rounded once more, `2^-11` or `2^-8` of it; int8
products are summed in int32 without error (`P < 133,000`) and then scaled, which is two roundings. Without error only
where none is larger than `L = LARGEST`: without VNNI (AMD before Zen 4, Intel before Cascade Lake) oneDNN adds 128 to
one factor and sums two products in 16 bits, which hold them if `2 (L + 128) L < 2^15`.

**Why nothing is lost.** `z - e` is a lower bound of a row's score and `z + e` an upper one. Let `t` be the k-th
largest lower bound among distinct rows (we take at most one of a group). Then k rows score at least `t`, so the k-th
best score is at least `t`, and a row whose upper bound is below `t` is no result, nor tied with one. All others are
scored again in float64. A coarse screen costs survivors, never a result; `last_survivors` counts them.

**Many queries** spend their time in the products, so float32 serves: FAISS's flat search where it is installed, else
torch's product and top-k, a block of rows at a time, give the `k + SPARE` largest `z`. With one `e` for all rows,
those that reach the k-th `z - 2 e` are the survivors, and all of them are there if the last of the list does not reach
it; a query with more ties is screened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

GROUP = 64  # rows that share a scale and a bound
LARGEST = 79  # integer of an int8 screen
SCREENS = ("float32", "float16", "bfloat16", "int8")
# Chosen by measurement (benchmarks/b5_search.py): below this many rows a float32 pass is over before it matters;
# above, int8 for a few queries, whose cost is reading the corpus, float32 for many, whose cost is the products.
SMALL_CORPUS = 16_384
MANY_QUERIES = 128
SCORES_AT_ONCE = 1 << 21  # of a block of rows with all queries
PRODUCTS_AT_ONCE = 1 << 25  # likewise, of many queries: 128 MiB
QUERIES_AT_ONCE = 1024  # of many
FAISS_COUNT = 100  # rows a query from which FAISS sorts otherwise, and slower
SPARE = 16  # rows beyond k that many queries keep
PAIRS_AT_ONCE = 1 << 14  # settled together: each two float64 rows

_UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 2.0**-24}
UNIT_TOLERANCE = 1e-3  # how far a norm may be from 1
_SLACK = 1.001  # for the float32 rounding of the norms and of the bounds themselves


@dataclass
class _Screen:
    """The corpus in few bits: `values` `(N, P)`; for each group of rows `scale`, largest `|v - w|` and `|v|`."""

    values: torch.Tensor
    scale: torch.Tensor
    residual: torch.Tensor
    norm: torch.Tensor


class ExactSearch:
    """Top-k of a corpus of unit vectors.

    Args:
        embeddings: `(N, P)` float32 on the CPU, finite, of unit norm (up to `UNIT_TOLERANCE`). If it is
            memory-mapped, a search reads the survivors alone, and the screen stays in memory; many queries read all.
        screen: one of `SCREENS`, or `"auto"`, the fastest for the corpus' size and the number of queries. Screens are
            made when first needed: int8 takes a quarter of the corpus' memory, float16 and bfloat16 half, float32
            nothing. The results are the same.

    Raises:
        ValueError: no matrix of float32, a row that is not finite or not of unit norm (names it), an unknown screen.
    """

    def __init__(self, embeddings: torch.Tensor, screen: str = "auto"):
        if screen not in ("auto", *SCREENS):
            raise ValueError(f"screen is {screen!r}; choose auto, {', '.join(SCREENS)}")
        if embeddings.ndim != 2 or 0 in embeddings.shape or embeddings.dtype != torch.float32:
            raise ValueError(
                f"embeddings are {tuple(embeddings.shape)} {embeddings.dtype}; give a float32 matrix, a row a clip"
            )
        self.embeddings, self.screen = embeddings, screen
        self.last_survivors = 0
        self._screens: dict[str, _Screen] = {}
        check_unit_rows("embeddings", embeddings)

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best rows of each query.

        Args:
            queries: `(q, P)` float32 unit vectors.
            top: k, from 1 to N.
            allowed: `(N,)` bool, True for rows that may be found; None allows all.

        Returns:
            Scores `(q, k')` float64, best first, and rows `(q, k')` int64; k' is k, or the number of allowed rows if
            that is smaller.

        Raises:
            ValueError: `top` outside the corpus, another width, a query that is not finite or not of unit norm, or
                nothing allowed.
        """
        num_rows, width = self.embeddings.shape
        queries = queries.float()
        check_request(queries, top, num_rows, width, allowed)
        if allowed is None:
            return self._search(queries, top, None)
        num_allowed = int(allowed.sum())
        top = min(top, num_allowed)
        if num_allowed * 8 > num_rows:
            return self._search(queries, top, allowed)
        places = allowed.nonzero()[:, 0]
        subset = ExactSearch(self.embeddings[places], "float32")
        scores, rows = subset._search(queries, top, None)
        self.last_survivors = subset.last_survivors
        return scores, places[rows]

    def choose_screen(self, num_queries: int) -> str:
        """What `"auto"` screens with."""
        if self.screen != "auto":
            return self.screen
        if len(self) < SMALL_CORPUS:
            return "float32"
        return "int8" if num_queries < MANY_QUERIES else "float32"

    def _search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind = self.choose_screen(len(queries))
        if kind != "float32" or len(queries) < MANY_QUERIES:
            return self._search_screen(queries, top, allowed, kind)
        parts = [self._search_products(part, top, allowed) for part in queries.split(QUERIES_AT_ONCE)]
        self.last_survivors = sum(survivors for _, _, survivors in parts)
        return torch.cat([scores for scores, _, _ in parts]), torch.cat([rows for _, rows, _ in parts])

    def _search_products(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Scores, rows and the number of survivors by float32 products."""
        largest, rows = _largest_products(queries, self.embeddings, top + SPARE, allowed)
        threshold = largest[:, top - 1].double() - 2 * _product_error(queries.shape[1])
        keep = largest >= threshold[:, None]
        query, place = keep.nonzero(as_tuple=True)
        scores, found = self._settle(queries, query, rows[query, place], top)
        survivors = self.last_survivors
        if largest.shape[1] < len(self):
            left = keep[:, -1].nonzero()[:, 0]  # whose list may have ended too early
            if len(left):
                scores[left], found[left] = self._search_screen(queries[left], top, allowed, "float32")
                survivors += self.last_survivors
        return scores, found, survivors

    def _search_screen(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None, kind: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if kind not in self._screens:
            self._screens[kind] = _make_screen(self.embeddings, kind)
        survivors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        best = torch.full((len(queries), top), -torch.inf)  # lower bounds of k distinct rows
        for found in _blocks(queries, self._screens[kind], kind, top, allowed):
            best = torch.cat([best, found.lower.topk(min(top, found.lower.shape[1]), dim=1).values], dim=1)
            best = best.topk(top, dim=1).values
            survivors.append(found.above(best[:, -1]))
        query, row, upper = (torch.cat(parts) for parts in zip(*survivors, strict=True))
        keep = upper >= best[query, -1]
        if allowed is not None:
            keep &= allowed[row]
        return self._settle(queries, query[keep], row[keep], top)

    def _settle(
        self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score pairs in float64 and sort each query's: best first, equal ones by row."""
        self.last_survivors = len(query)
        scores = torch.empty(len(query), dtype=torch.float64)
        exact_queries = queries.double()
        for start in range(0, len(query), PAIRS_AT_ONCE):
            here = slice(start, start + PAIRS_AT_ONCE)
            pair = self.embeddings[row[here]].double().numpy(), exact_queries[query[here]].numpy()
            scores[here] = torch.from_numpy(np.einsum("ij,ij->i", *pair))  # adds each row up alike, however many
        order = row.argsort(stable=True)
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        first = torch.searchsorted(query[order], torch.arange(len(queries)))
        chosen = order[first[:, None] + torch.arange(top)]
        return scores[chosen], row[chosen]


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A float32 product as `_product_error` bounds it, not in bfloat16 as on some processors if a program allows it.

    What a program allows holds for all its threads, which is why NumPy, that never does it, multiplies then.
    """
    if torch.get_float32_matmul_precision() == "highest":
        return torch.mm(left, right, out=out)
    product = np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy())
    return torch.from_numpy(product) if out is None else out


def _sum_loss(width: int) -> float:
    """`g` of the module: what a float32 sum of this many products can lose, of the product of the norms."""
    return width * 2.0**-24 / (1 - width * 2.0**-24)


def _product_error(width: int) -> float:
    """How far the float32 product of two unit vectors may be from the true one."""
    return _sum_loss(width) * (1 + UNIT_TOLERANCE) ** 2 * _SLACK + 2.0**-24


@cache
def _faiss() -> Any:
    """The library, if it may be used; elsewhere than on Linux its OpenMP beside torch's can end the program."""
    if sys.platform != "linux" or find_spec("faiss") is None:
        return None
    return import_module("faiss")


def _largest_products(
    queries: torch.Tensor, embeddings: torch.Tensor, count: int, allowed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest float32 products of each query, largest first, and their rows: no other row has a larger."""
    if allowed is None and count < FAISS_COUNT and (faiss := _faiss()) is not None:
        count = min(count, len(embeddings))
        found = faiss.knn(queries.numpy(), embeddings.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    size = max(GROUP, PRODUCTS_AT_ONCE // len(queries) // GROUP * GROUP)
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    memory = torch.empty(len(queries) * min(size, len(embeddings)))
    for start in range(0, len(embeddings), size):
        block = embeddings[start : start + size]
        scores = memory[: len(queries) * len(block)].view(len(queries), len(block))
        _multiply(queries, block.T, out=scores)
        if allowed is not None:
            scores.masked_fill_(~allowed[start : start + size], -torch.inf)
        place = torch.arange(len(block)).expand_as(scores)
        if len(block) % GROUP == 0 and len(block) > GROUP * count:  # the largest are in the groups of largest maxima
            grouped = scores.unflatten(1, (-1, GROUP))
            group = grouped.amax(dim=2).topk(count, dim=1, sorted=False).indices
            scores = grouped.gather(1, group[:, :, None].expand(-1, -1, GROUP)).flatten(1)
            place = (group[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
        here = scores.topk(min(count, scores.shape[1]), dim=1, sorted=False)
        best = torch.cat([best, here.values], dim=1)
        rows = torch.cat([rows, place.gather(1, here.indices) + start], dim=1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


@dataclass
class _Block:
    """Bounds of a block of rows for every query: `scores` `(q, G, group)` of the screen, `error` and `lower` `(q, G)`.

    `lower` bounds the best row of each group.
    """

    scores: torch.Tensor
    scale: torch.Tensor  # (q, G)
    error: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor
    start: int
    num_rows: int

    def above(self, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, row and upper bound of all pairs whose upper bound reaches the query's threshold."""
        query, group = (self.upper >= threshold[:, None]).nonzero(as_tuple=True)
        upper = (
            self.scores[query, group].float() * self.scale[query, group][:, None] + self.error[query, group][:, None]
        )
        place, member = (upper >= threshold[query][:, None]).nonzero(as_tuple=True)
        row = group[place] * self.scores.shape[2] + member
        real = row < self.num_rows  # the last group may be padded
        place, member, row = place[real], member[real], row[real]
        return query[place], row + self.start, upper[place, member]


def _blocks(
    queries: torch.Tensor, screen: _Screen, kind: str, top: int, allowed: torch.Tensor | None
) -> Iterator[_Block]:
    """Screen the corpus, a block of rows at a time."""
    num_rows, width = screen.values.shape
    size = max(GROUP, SCORES_AT_ONCE // len(queries) // GROUP * GROUP)
    group = GROUP
    while group > 1 and min(size, num_rows) < 32 * top * group:
        group //= 2  # enough groups that k of them are few
    # what the computation itself can lose, of |y| |w|
    sum_loss = _sum_loss(width)
    loss = {"float32": sum_loss, "int8": 3 * 2.0**-24}.get(kind, sum_loss + _UNIT_ROUNDOFF[kind]) + width * 2.0**-53
    values, scale = _quantize(queries, kind, queries.abs().amax(dim=1, keepdim=True))
    exact = values.double() * scale
    norm = exact.norm(dim=1, keepdim=True)  # (q, 1) |y|
    residual = (queries.double() - exact).norm(dim=1, keepdim=True)
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        scores = _product(values, screen.values[start:stop], kind)  # (q, rows)
        lowest = -torch.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
        if allowed is not None:
            scores = scores.masked_fill(~allowed[start:stop], lowest)
        if (stop - start) % group:
            scores = torch.nn.functional.pad(scores, (0, -(stop - start) % group), value=lowest)
        scores = scores.unflatten(1, (-1, group))  # (q, G, group)
        groups = torch.arange(start, stop, group) // GROUP
        product_scale = (scale * screen.scale[groups]).float()  # (q, G)
        far, long = screen.residual[groups], screen.norm[groups]
        error = ((norm * far + residual * long + loss * norm * (long + far) + 2.0**-24) * _SLACK).float()
        centre = scores.amax(dim=2).float() * product_scale
        yield _Block(scores, product_scale, error, centre + error, centre - error, start, stop - start)


def _product(queries: torch.Tensor, rows: torch.Tensor, kind: str) -> torch.Tensor:
    """`(q, rows)` inner products: int32 of int8, else in the type of the screen."""
    if kind == "int8":
        if queries.shape[1] == 1:  # torch 2.13's integer product of width 1 is what was in memory before
            return queries.int() * rows.T.int()
        if len(queries) == 1:  # the faster order, whose result is a row only then
            return torch._int_mm(rows, queries.T).T
        return torch._int_mm(queries, rows.T)
    if kind == "float32" and len(queries) > 1:
        return _multiply(rows, queries.T).T  # the order in which a tall matrix is read once
    if kind == "float32":
        return _multiply(queries, rows.T)
    return queries @ rows.T


def _quantize(vectors: torch.Tensor, kind: str, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors in the screen's type, and the float64 scale to multiply them with; `largest` bounds their entries."""
    if kind != "int8":
        return vectors.to(getattr(torch, kind)), torch.ones(largest.shape, dtype=torch.float64)
    scale = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (vectors / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale.double()


def _make_screen(embeddings: torch.Tensor, kind: str) -> _Screen:
    """Read the corpus once, a block of rows at a time."""
    num_rows, width = embeddings.shape
    values = embeddings if kind == "float32" else torch.empty(embeddings.shape, dtype=getattr(torch, kind))
    num_groups = -(-num_rows // GROUP)
    scale, residual, norm = (torch.empty(num_groups, dtype=torch.float64) for _ in range(3))
    size = 32 * GROUP  # which stay in the cache
    for start in range(0, num_rows, size):
        rows = embeddings[start : start + size]
        here = slice(start // GROUP, -(-(start + len(rows)) // GROUP))
        rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % GROUP)).view(-1, GROUP, width)
        coarse, scale_here = _quantize(rows, kind, rows.abs().amax(dim=(1, 2), keepdim=True))
        norm[here] = torch.linalg.vector_norm(rows, dim=2).amax(dim=1)
        difference = rows - coarse.float() * scale_here.float()  # two float32 roundings, of |v - w| and of |v|
        residual[here] = torch.linalg.vector_norm(difference, dim=2).amax(dim=1) + 2.0**-23 * norm[here]
        scale[here] = scale_here[:, 0, 0]
        if kind != "float32":
            values[start : start + size] = coarse.flatten(0, 1)[: len(embeddings[start : start + size])]
    return _Screen(values, scale, residual, norm)


def check_request(queries: torch.Tensor, top: int, size: int, width: int, allowed: torch.Tensor | None) -> None:
    """Refuse a search that no engine can answer: `queries` `(q, P)`, `top` and the filter `allowed` `(N,)`.

    Raises:
        ValueError: `top` outside the corpus, another width, a query that is not finite or not of unit norm, or
            nothing allowed.
    """
    if not 1 <= top <= size:
        raise ValueError(f"top is {top}; there are {size} clips, so choose from 1 to {size}")
    if queries.ndim != 2 or queries.shape[1] != width or len(queries) == 0:
        raise ValueError(f"queries have shape {tuple(queries.shape)}; expected (at least one, {width})")
    check_unit_rows("queries", queries)
    if allowed is not None and not allowed.any():
        raise ValueError("the filter leaves no clip; widen it")


def check_unit_rows(name: str, vectors: torch.Tensor) -> None:
    """Refuse rows that are not finite or not of unit norm, reading a block at a time."""
    for start in range(0, len(vectors), 1 << 16):
        norms = torch.linalg.vector_norm(vectors[start : start + (1 << 16)], dim=1)
        if not norms.isfinite().all():
            row = start + int((~norms.isfinite()).int().argmax())
            raise ValueError(f"{name} row {row} holds a NaN or an infinity; find where the model or its input broke")
        if ((norms - 1).abs() > UNIT_TOLERANCE).any():
            row = int(((norms - 1).abs() > UNIT_TOLERANCE).int().argmax())
            raise ValueError(
                f"{name} row {start + row} has norm {norms[row]:.4g}; divide by it first: search is by cosine"
            )
