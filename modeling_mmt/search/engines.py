"""Search beyond one exact pass, behind the interface of `ExactSearch`: FAISS through `datasets`, and Qdrant.

An engine has `len`, and `search(queries, top, allowed)`: `(q, P)` float32 unit vectors in, scores `(q, k')` float64
and rows `(q, k')` int64 out, best first; row -1 with score -inf where it found fewer. What it finds is approximate,
unless the engine says otherwise.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset

from modeling_mmt.search.exact import check_request, check_unit_rows

POINTS_AT_ONCE = 1024


class SearchEngine(Protocol):
    """What `SearchIndex` asks of an engine."""

    def __len__(self) -> int:
        """Number of rows."""

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and rows of the best, as `ExactSearch.search`."""


class FaissSearch:
    """Any FAISS index, built by `datasets.Dataset.add_faiss_index`.

    Args:
        embeddings: `(N, P)` float32 unit vectors.
        factory: FAISS's factory string, such as `"Flat"`, `"IVF256,SQ8"` or `"HNSW32"`.
        train_rows: the first rows, from which an index that must be trained learns; None takes all.
        nprobe: cells that an IVF index visits; None is FAISS's default, one.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: the factory string is none, or FAISS cannot build it from these vectors.
    """

    def __init__(
        self, embeddings: torch.Tensor, factory: str, train_rows: int | None = None, nprobe: int | None = None
    ):
        import faiss

        check_unit_rows("embeddings", embeddings)
        self.width = embeddings.shape[1]
        rows = Dataset.from_dict({"embeddings": embeddings.numpy()}).with_format("numpy")
        try:
            rows.add_faiss_index(
                "embeddings",
                string_factory=factory,
                metric_type=faiss.METRIC_INNER_PRODUCT,
                train_size=len(embeddings) if train_rows is None else train_rows,
            )
        except RuntimeError as error:
            raise ValueError(
                f"factory is {factory!r}, which FAISS cannot build from {len(embeddings)} vectors of width "
                f"{self.width}: {_last_line(error)}"
            ) from error
        self.index = rows.get_index("embeddings").faiss_index
        if nprobe is not None:
            faiss.extract_index_ivf(self.index).nprobe = nprobe

    def __len__(self) -> int:
        return self.index.ntotal

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the module; a filter is FAISS's own, so that an approximate index may find fewer than `top`."""
        check_request(queries, top, len(self), self.width, allowed)
        options = {}
        if allowed is not None:
            top = min(top, int(allowed.sum()))
            options["params"] = self._parameters(allowed)
        scores, rows = self.index.search(np.ascontiguousarray(queries.numpy()), top, **options)
        return torch.from_numpy(scores).double().masked_fill(torch.from_numpy(rows) < 0, -torch.inf), torch.from_numpy(
            rows
        )

    def _parameters(self, allowed: torch.Tensor) -> Any:
        """FAISS's way to say which rows may be found, which differs between kinds of index."""
        import faiss

        library: Any = faiss  # whose type stubs lack these keywords

        selector = faiss.IDSelectorBatch(allowed.nonzero()[:, 0].numpy())
        index = faiss.downcast_index(self.index)
        if isinstance(index, faiss.IndexIVF):
            return library.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
        if isinstance(index, faiss.IndexHNSW):
            return library.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
        if isinstance(index, faiss.IndexFlat | faiss.IndexScalarQuantizer | faiss.IndexPQ):
            return library.SearchParameters(sel=selector)
        raise ValueError(f"a {type(index).__name__} of FAISS takes no filter here; use Flat, SQ, PQ, IVF or HNSW")


class QdrantSearch:
    """A Qdrant collection: embedded in this process, or a server or cluster of any size.

    Args:
        client: a `qdrant_client.QdrantClient`: `QdrantClient(":memory:")`, `QdrantClient(path=...)`, or
            `QdrantClient(url=...)`, which is all that changes for a cluster.
        collection: its name.

    Raises:
        ValueError: no such collection.
    """

    def __init__(self, client: Any, collection: str):
        if not client.collection_exists(collection):
            raise ValueError(f"Qdrant has no collection {collection!r}; upload one with QdrantSearch.upload")
        self.client, self.collection = client, collection
        self.width = client.get_collection(collection).config.params.vectors.size

    @classmethod
    def upload(cls, client: Any, collection: str, embeddings: torch.Tensor, shards: int | None = None) -> QdrantSearch:
        """Make a collection of `(N, P)` float32 unit vectors; a point's id is its row.

        Args:
            client: see the class.
            collection: its name; must not exist.
            embeddings: the vectors.
            shards: over which a cluster spreads them; None leaves that to the server.

        Raises:
            ValueError: the collection exists.
        """
        from qdrant_client import models

        check_unit_rows("embeddings", embeddings)
        if client.collection_exists(collection):
            raise ValueError(f"Qdrant has a collection {collection!r} already; delete it or choose another name")
        vectors = models.VectorParams(size=embeddings.shape[1], distance=models.Distance.DOT)
        client.create_collection(collection, vectors_config=vectors, shard_number=shards)
        for start in range(0, len(embeddings), POINTS_AT_ONCE):
            block = embeddings[start : start + POINTS_AT_ONCE]
            ids: list[Any] = list(range(start, start + len(block)))
            client.upsert(collection, models.Batch(ids=ids, vectors=block.tolist()), wait=True)
        return cls(client, collection)

    def __len__(self) -> int:
        return self.client.count(self.collection, exact=True).count

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the module; a filter travels as a list of ids, so keep it short on a server."""
        from qdrant_client import models

        size = len(self)
        check_request(queries, top, size, self.width, allowed)
        condition = None
        if allowed is not None:
            top = min(top, int(allowed.sum()))
            condition = models.Filter(must=[models.HasIdCondition(has_id=allowed.nonzero()[:, 0].tolist())])
        requests = [models.QueryRequest(query=query.tolist(), limit=top, filter=condition) for query in queries]
        scores = torch.full((len(queries), top), -torch.inf, dtype=torch.float64)
        rows = torch.full((len(queries), top), -1)
        for number, answer in enumerate(self.client.query_batch_points(self.collection, requests)):
            num_hits = len(answer.points)
            scores[number, :num_hits] = torch.tensor([point.score for point in answer.points], dtype=torch.float64)
            rows[number, :num_hits] = torch.tensor([point.id for point in answer.points], dtype=torch.int64)
        return scores, rows


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
