"""LanceDB as a search engine: a table on disk beside the index, which may be larger than the memory.

Without an index of its own it compares a query with every row, as the exact search does; `IVF_PQ` and `IVF_HNSW_SQ`
visit a part of them, and rank what they found by the whole vectors.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from modeling_mmt.data.errors import InputError
from modeling_mmt.search.exact import check_request, check_unit_rows

ROWS_AT_ONCE = 65_536
MOST_NAMED = (
    10_000  # rows that a filter names one by one; of more, those that it refuses are left out of what is found
)
RERANKED = 10  # times `top` candidates that are ranked by their whole vectors
KEPT = timedelta(hours=1)  # versions of the table, for processes that read one
KINDS = ("IVF_PQ", "IVF_HNSW_SQ")  # LanceDB's names; "" is none


class LanceSearch:
    """A LanceDB table that holds an index's rows, brought in step with them.

    What is new or differs is written, what is gone is deleted; another model's table is written anew.

    Args:
        folder: of the database.
        ids: `video_id` of each row.
        embeddings: `(N, P)` float32 unit vectors.
        fingerprint: of the model that made them.
        kind: of its index, one of `KINDS`; empty for none.

    Raises:
        ImportError: LanceDB is not installed.
        ValueError: `kind` is none of these, or LanceDB cannot build it of these rows or read what is there.
    """

    def __init__(self, folder: Path, ids: Sequence[str], embeddings: torch.Tensor, fingerprint: str, kind: str = ""):
        import lancedb

        check_unit_rows("embeddings", embeddings)
        if kind and kind not in KINDS:
            raise ValueError(f"LanceDB's index is {kind!r}; give {' or '.join(KINDS)}, or none")
        self.folder, self.width, self.kind = folder, embeddings.shape[1], kind
        self.keys = [uuid.uuid5(uuid.NAMESPACE_URL, video_id).hex for video_id in ids]
        self.rows = {key: row for row, key in enumerate(self.keys)}
        with _naming_folder(folder):
            self.table = self._synced(lancedb.connect(folder), embeddings, fingerprint)

    def _synced(self, database: Any, embeddings: torch.Tensor, fingerprint: str) -> Any:
        name = self.kind or "rows"
        marks = [sha256(row.tobytes()).hexdigest() for row in embeddings.numpy()]
        vector = pa.list_(pa.float32(), self.width)
        schema = pa.schema(
            {"key": pa.string(), "sha256": pa.string(), "vector": vector}, metadata={"fingerprint": fingerprint}
        )
        table = database.open_table(name) if name in database.list_tables().tables else None
        if table is None or table.schema != schema or table.schema.metadata != schema.metadata:
            everything = pa.RecordBatchReader.from_batches(schema, self._batches(range(len(marks)), marks, embeddings))
            table = database.create_table(name, everything, mode="create" if table is None else "overwrite")
        else:
            self._bring_in_step(table, schema, marks, embeddings)
        if self.kind and not table.list_indices():  # nor has one whose first build was killed
            self._build(table)
        return table

    def _bring_in_step(self, table: Any, schema: pa.Schema, marks: Sequence[str], embeddings: torch.Tensor) -> None:
        """Write rows that are new or differ, and delete those that are gone."""
        theirs = table.search().select(["key", "sha256"]).to_arrow()
        known = dict(zip(theirs["key"].to_pylist(), theirs["sha256"].to_pylist(), strict=True))
        gone = [key for key in known if key not in self.rows]
        changed = [row for row, key in enumerate(self.keys) if known.get(key) != marks[row]]
        for start in range(0, len(gone), MOST_NAMED):
            table.delete(_among(gone[start : start + MOST_NAMED]))
        for batch in self._batches(changed, marks, embeddings):
            rows = pa.Table.from_batches([batch], schema)
            table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        if gone or changed:
            table.optimize(cleanup_older_than=KEPT)

    def _batches(
        self, rows: Sequence[int], marks: Sequence[str], embeddings: torch.Tensor
    ) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = list(rows[start : start + ROWS_AT_ONCE])
            vectors = pa.FixedSizeListArray.from_arrays(np.ravel(embeddings[chosen].numpy()), self.width)
            columns = {"key": [self.keys[row] for row in chosen], "sha256": [marks[row] for row in chosen]}
            yield pa.RecordBatch.from_pydict({**columns, "vector": vectors})

    def _build(self, table: Any) -> None:
        """Make the table's index."""
        from lancedb.index import HnswSq, IvfPq

        config = {"IVF_PQ": IvfPq, "IVF_HNSW_SQ": HnswSq}[self.kind](distance_type="dot")
        table.create_index("vector", config=config)

    def __len__(self) -> int:
        return self.table.count_rows()

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `engines`; a filter of many rows searches deeper, until it has found `top` of them."""
        check_request(queries, top, len(self), self.width, allowed)
        if allowed is None:
            return self._best(queries, top)
        free = int(allowed.sum())
        top = min(top, free)
        if free <= MOST_NAMED:
            return self._best(queries, top, _among([self.keys[row] for row in allowed.nonzero()[:, 0].tolist()]))
        depth = top * len(self) // free
        while True:
            depth = min(2 * depth, len(self))
            scores, rows = self._best(queries, depth)
            refused = (rows < 0) | ~allowed[rows.clamp(min=0)]
            best, places = scores.masked_fill(refused, -torch.inf).topk(top, dim=1)
            if depth == len(self) or (best > -torch.inf).all():
                return best, rows.gather(1, places).masked_fill(best == -torch.inf, -1)

    def _best(self, queries: torch.Tensor, top: int, where: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        asked = self.table.search(queries.numpy()).distance_type("dot").select(["key", "_distance"]).limit(top)
        if self.kind:
            asked = asked.refine_factor(RERANKED)
        with _naming_folder(self.folder):
            found = (asked.where(where, prefilter=True) if where else asked).to_arrow()
        scores = torch.full((len(queries), top), -torch.inf, dtype=torch.float64)
        rows = torch.full((len(queries), top), -1)
        numbers = found["query_index"].to_pylist() if len(queries) > 1 else [0] * len(found)
        place = [0] * len(queries)
        for number, key, distance in zip(
            numbers, found["key"].to_pylist(), found["_distance"].to_pylist(), strict=True
        ):
            scores[number, place[number]], rows[number, place[number]] = 1 - distance, self.rows[key]
            place[number] += 1
        return scores, rows


def _among(keys: Sequence[str]) -> str:
    """A condition of LanceDB's; keys are hexadecimal, whatever the ids are."""
    return f"key IN ({', '.join(repr(key) for key in keys)})"


@contextmanager
def _naming_folder(folder: Path) -> Iterator[None]:
    """Let what LanceDB raises name the folder, in one line."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: {words}; delete that folder if it is damaged: it is made again") from error
