"""Other search engines with the interface of `ExactSearch`: FAISS through `datasets`, LanceDB (`lance.py`), Qdrant.

An engine has `len`, and `search(queries, top, allowed)`: `(q, P)` float32 unit vectors in, scores `(q, k')` float64
and rows `(q, k')` int64 out, best first; row -1 with score -inf where it found fewer. What it finds is approximate,
unless the engine says otherwise.

`open_engine` gives an index the engine that its name says, kept beside the index, and in step with its rows: what was
kept of other rows is built again (FAISS) or changed where they differ (LanceDB, Qdrant), so that rows that were added,
replaced or dropped are found, or not, as by the exact search.

    exact                    the default
    faiss:IVF256,SQ8         a factory string of FAISS
    lancedb                  on disk, every row compared
    lancedb:IVF_PQ           with an index, or IVF_HNSW_SQ
    qdrant                   embedded, beside the index
    qdrant:http://host:6333  a server or cluster, whose key is in QDRANT_API_KEY where it wants one; the collection is
                             called as the index's folder
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.files import file_sha256, write_text, writing_file
from modeling_mmt.search.exact import ExactSearch, check_request, check_unit_rows
from modeling_mmt.search.lance import KINDS, LanceSearch

ENGINES = "engines"  # folder beside an index's segments
POINTS_AT_ONCE = 1024
LIBRARIES = {"faiss": "faiss", "lancedb": "lancedb", "qdrant": "qdrant_client"}


class EngineError(InputError):
    """An engine cannot serve an index; the message says which and what helps."""


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

    @classmethod
    def cached(
        cls, path: Path, embeddings: torch.Tensor, factory: str, rows: str, train_rows: int | None = None
    ) -> FaissSearch:
        """The index stored in a file, if it is of these rows; else one that is built and stored there.

        Args:
            path: of the file; beside it, `.json` says what it holds.
            embeddings: as above.
            factory: as above.
            rows: what tells these rows from others, by `rows_digest`.
            train_rows: as above.
        """
        import faiss

        note, says = (
            path.with_name(f"{path.name}.json"),
            {"factory": factory, "rows": rows, "faiss": faiss.__version__},
        )
        if (
            path.is_file()
            and note.is_file()
            and note.read_bytes() == _noted(says | {"sha256": file_sha256(path)}).encode()
        ):
            engine = cls.__new__(cls)
            engine.index, engine.width = faiss.read_index(str(path)), embeddings.shape[1]
            return engine
        engine = cls(embeddings, factory, train_rows)
        with writing_file(path) as partial:
            faiss.write_index(engine.index, str(partial))
        write_text(note, _noted(says | {"sha256": file_sha256(path)}))
        return engine

    def __len__(self) -> int:
        return self.index.ntotal

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the module.

        A filter is FAISS's own, so that an approximate index may find fewer than `top`; a kind of index that has none
        (PQ, and those behind a transform) ranks all rows, and those that are not allowed are left out.
        """
        check_request(queries, top, len(self), self.width, allowed)
        asked, options = np.ascontiguousarray(queries.numpy()), {}
        if allowed is not None:
            top = min(top, int(allowed.sum()))
            options["params"] = self._parameters(allowed, top)
            if options["params"] is None:
                return self._search_all(asked, top, allowed)
        scores, rows = map(torch.from_numpy, self.index.search(asked, top, **options))
        return scores.double().masked_fill(rows < 0, -torch.inf), rows

    def _search_all(self, queries: np.ndarray, top: int, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, rows = map(torch.from_numpy, self.index.search(queries, len(self)))
        refused = (rows < 0) | ~allowed[rows.clamp(min=0)]
        best, places = scores.double().masked_fill(refused, -torch.inf).topk(top, dim=1)
        return best, rows.gather(1, places).masked_fill(best == -torch.inf, -1)

    def _parameters(self, allowed: torch.Tensor, top: int) -> Any:
        """FAISS's way to say which rows may be found, which differs between kinds of index; None where it has none."""
        import faiss

        library: Any = faiss  # whose type stubs lack these keywords

        selector = faiss.IDSelectorBatch(allowed.nonzero()[:, 0].numpy())
        index = faiss.downcast_index(self.index)
        if isinstance(index, faiss.IndexIVF):
            return library.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
        if isinstance(index, faiss.IndexHNSW):
            seen = top * len(allowed) // int(allowed.sum())  # so that `top` of them may be found among these
            return library.SearchParametersHNSW(sel=selector, efSearch=max(index.hnsw.efSearch, seen))
        if isinstance(index, faiss.IndexFlat | faiss.IndexScalarQuantizer):
            return library.SearchParameters(sel=selector)
        return None


class QdrantSearch:
    """A Qdrant collection of an index's rows: embedded in this process, or a server or cluster of any size.

    A point's payload has the row's `video_id`, which says whose point it is whatever was added or dropped since; the
    collection's metadata has the model's fingerprint.

    Args:
        client: a `qdrant_client.QdrantClient`: `QdrantClient(":memory:")`, `QdrantClient(path=...)`, or
            `QdrantClient(url=...)`, which is all that changes for a cluster.
        collection: its name.
        ids: `video_id` of each row.
        fingerprint: of the model that made the rows.

    Raises:
        EngineError: there is no such collection, it is another model's, or it does not hold these rows.
    """

    def __init__(self, client: Any, collection: str, ids: Sequence[str], fingerprint: str):
        if not client.collection_exists(collection):
            raise EngineError(f"Qdrant has no collection {collection!r}; make one with QdrantSearch.sync")
        config = client.get_collection(collection).config
        theirs = (config.metadata or {}).get("fingerprint")
        if theirs != fingerprint:
            whose = f"another model's, with fingerprint {theirs[:12]}..." if theirs else "no index's"
            raise EngineError(f"Qdrant's collection {collection!r} is {whose}; name another one, or delete it")
        self.client, self.collection, self.width = client, collection, config.params.vectors.size
        self.rows = {video_id: row for row, video_id in enumerate(ids)}
        self.points = [_point_of(video_id) for video_id in ids]
        count = client.count(collection, exact=True).count
        if count != len(ids):
            raise EngineError(
                f"Qdrant's collection {collection!r} has {count} points, the index {len(ids)} rows; bring it in step "
                "with QdrantSearch.sync"
            )

    @classmethod
    def sync(
        cls,
        client: Any,
        collection: str,
        ids: Sequence[str],
        embeddings: torch.Tensor,
        fingerprint: str,
        shards: int | None = None,
    ) -> QdrantSearch:
        """Make a collection hold these rows: what is new or differs is sent, what is gone is deleted.

        Args:
            client: see the class.
            collection: its name; made if it does not exist.
            ids: see the class.
            embeddings: `(N, P)` float32 unit vectors.
            fingerprint: see the class.
            shards: over which a cluster spreads a new one; None leaves that to the server.

        Raises:
            EngineError: the collection is another model's, or nobody's.
        """
        from qdrant_client import models

        check_unit_rows("embeddings", embeddings)
        if not client.collection_exists(collection):
            vectors = models.VectorParams(size=embeddings.shape[1], distance=models.Distance.DOT)
            marks = {"fingerprint": fingerprint}
            client.create_collection(collection, vectors_config=vectors, shard_number=shards, metadata=marks)
        elif (client.get_collection(collection).config.metadata or {}).get("fingerprint") != fingerprint:
            return cls(client, collection, ids, fingerprint)  # which refuses it
        theirs = _payloads(client, collection)
        ours = {_point_of(video_id): row for row, video_id in enumerate(ids)}
        marks_of = [sha256(row.tobytes()).hexdigest() for row in embeddings.numpy()]
        changed = [row for point, row in ours.items() if theirs.get(point) != marks_of[row]]
        if gone := [point for point in theirs if point not in ours]:
            client.delete(collection, models.PointIdsList(points=gone), wait=True)
        for start in range(0, len(changed), POINTS_AT_ONCE):
            rows = changed[start : start + POINTS_AT_ONCE]
            payloads = [{"video_id": ids[row], "sha256": marks_of[row]} for row in rows]
            points = models.Batch(
                ids=[_point_of(ids[row]) for row in rows], vectors=embeddings[rows].tolist(), payloads=payloads
            )
            client.upsert(collection, points, wait=True)
        return cls(client, collection, ids, fingerprint)

    def __len__(self) -> int:
        return len(self.points)

    def search(
        self, queries: torch.Tensor, top: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the module; a filter travels as a list of ids, so keep it short on a server."""
        from qdrant_client import models

        check_request(queries, top, len(self), self.width, allowed)
        condition = None
        if allowed is not None:
            top = min(top, int(allowed.sum()))
            points: list[Any] = [self.points[row] for row in allowed.nonzero()[:, 0].tolist()]
            condition = models.Filter(must=[models.HasIdCondition(has_id=points)])
        requests = [
            models.QueryRequest(query=query.tolist(), limit=top, filter=condition, with_payload=["video_id"])
            for query in queries
        ]
        scores = torch.full((len(queries), top), -torch.inf, dtype=torch.float64)
        rows = torch.full((len(queries), top), -1)
        with _naming_server(self.collection):
            answers = self.client.query_batch_points(self.collection, requests)
        for number, answer in enumerate(answers):
            found = [point for point in answer.points if (point.payload or {}).get("video_id") in self.rows]
            scores[number, : len(found)] = torch.tensor([point.score for point in found], dtype=torch.float64)
            rows[number, : len(found)] = torch.tensor([self.rows[point.payload["video_id"]] for point in found])
        return scores, rows


def _payloads(client: Any, collection: str) -> dict[str, str]:
    """The points of a collection, and the SHA-256 of each one's vector."""
    found, offset = {}, None
    while True:
        points, offset = client.scroll(collection, limit=POINTS_AT_ONCE, offset=offset, with_payload=["sha256"])
        found.update({str(point.id): point.payload.get("sha256", "") for point in points})
        if offset is None:
            return found


def _point_of(video_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, video_id))


def open_engine(
    name: str, folder: Path, ids: Sequence[str], embeddings: torch.Tensor, fingerprint: str
) -> SearchEngine:
    """The engine of a name, as the module has them, over an index's rows.

    Args:
        name: of the engine.
        folder: of the index.
        ids: `video_id` of each row.
        embeddings: `(N, P)` float32 unit vectors.
        fingerprint: of the model that made them.

    Raises:
        EngineError: no such engine, its library is not installed, its server is not there, or it cannot be built.
    """
    check_engine(name)
    kind, _, detail = name.partition(":")
    if kind == "exact":
        return ExactSearch(embeddings)
    try:
        if kind == "faiss":
            path = folder / ENGINES / f"faiss-{re.sub(r'[^A-Za-z0-9]+', '_', detail)}.index"
            return FaissSearch.cached(path, embeddings, detail, rows_digest(ids, embeddings))
        if kind == "lancedb":
            return LanceSearch(folder / ENGINES / "lancedb", ids, embeddings, fingerprint, detail)
        from qdrant_client import QdrantClient

        rows, own = (folder.resolve().name, ids, embeddings, fingerprint), folder / ENGINES / "qdrant"
        if detail:
            client = QdrantClient(detail, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
            with _naming_server(detail):
                return QdrantSearch.sync(client, *rows)
        with naming_input(f"{own} (delete it, and it is made again)"):
            return QdrantSearch.sync(QdrantClient(path=str(own)), *rows)
    except ValueError as error:
        raise EngineError(f"engine {name!r}: {error}") from error


def check_engine(name: str) -> None:
    """Refuse a name before there is anything to search.

    Raises:
        EngineError: no such engine, or its library is not installed.
    """
    kind, _, detail = name.partition(":")
    if name == "exact":
        return
    is_known = kind in LIBRARIES and (detail or kind != "faiss")
    if not is_known or (kind == "lancedb" and detail not in ("", *KINDS)):
        raise EngineError(
            f"engine is {name!r}; give exact, faiss:FACTORY such as faiss:IVF256,SQ8, lancedb, "
            f"{', '.join(f'lancedb:{kind}' for kind in KINDS)}, qdrant or qdrant:URL"
        )
    if find_spec(LIBRARIES[kind]) is None:
        extra = "lancedb" if kind == "lancedb" else "search"
        raise EngineError(f"engine {name!r} needs {LIBRARIES[kind]}: pip install modeling_mmt[{extra}]")


@contextmanager
def _naming_server(place: str) -> Iterator[None]:
    """Let what Qdrant's client raises name a server or collection, in one line.

    Raises:
        EngineError: the server is not there, or does not do what it was asked.
    """
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise EngineError(f"Qdrant, {place}: {' '.join(str(error).split())}; is its server there?") from error


def rows_digest(ids: Sequence[str], embeddings: torch.Tensor) -> str:
    """SHA-256 of rows: their ids and vectors, in order."""
    digest = sha256(json.dumps(list(ids)).encode())
    digest.update(embeddings.contiguous().numpy().data)
    return digest.hexdigest()


def _noted(says: dict[str, str]) -> str:
    return json.dumps(says, indent=1)


def _last_line(error: Exception) -> str:
    """What FAISS says, without the function and the line of its source."""
    return re.sub(r"^Error in .* at \S+\.cpp:\d+: ", "", str(error).strip().splitlines()[-1])
