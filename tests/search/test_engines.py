"""Engines behind an index: each finds what the exact search finds, whatever was added, replaced or dropped since."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_mmt.data.errors import InputError
from modeling_mmt.search import lance
from modeling_mmt.search.engines import EngineError, FaissSearch, QdrantSearch, open_engine
from modeling_mmt.search.exact import ExactSearch
from modeling_mmt.search.index import SearchIndex, SearchIndexError
from modeling_mmt.search.lance import LanceSearch

SEARCH, LANCEDB = "an optional engine: extra `search`", "an optional engine: extra `lancedb`"
NUM_ROWS, WIDTH = 400, 16
ENGINES = [
    "exact",
    "faiss:Flat",
    "faiss:IVF1,Flat",
    "faiss:HNSW32",
    "faiss:SQ8",
    "lancedb",
    "lancedb:IVF_PQ",
    "lancedb:IVF_HNSW_SQ",
    "qdrant",
]
LIBRARIES = {"faiss": "faiss", "lancedb": "lancedb", "qdrant": "qdrant_client"}


def unit(*shape, seed=0):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture(params=ENGINES)
def opened(request, tmp_path):
    """A function that opens the engine on rows, as a process of its own would."""
    library = LIBRARIES.get(request.param.partition(":")[0])
    if library:
        pytest.importorskip(library, reason=SEARCH)
    last = []

    def close():
        for engine in last:
            if isinstance(engine, QdrantSearch):
                engine.client.close()
        last.clear()

    def reopen(ids, vectors, fingerprint="f"):
        close()
        last.append(open_engine(request.param, tmp_path / "index", ids, vectors, fingerprint))
        return last[0]

    yield reopen
    close()


def ids_of(numbers):
    return [f"clip-{number}" for number in numbers]


def check_agrees(engine, ids, vectors):
    """It finds the exact search's rows, and of each row itself."""
    index = SearchIndex(vectors, Dataset.from_dict({"video_id": ids}), "f", engine=engine)
    exact = SearchIndex(vectors, index.clips, "f")
    queries = unit(8, WIDTH, seed=1)
    truth, found = exact.search(queries, 10), index.search(queries, 10)
    same = [len({hit.video_id for hit in a} & {hit.video_id for hit in b}) for a, b in zip(truth, found, strict=True)]
    assert np.mean(same) >= 9
    assert found[0][0].score == pytest.approx(truth[0][0].score, abs=2e-2)
    own = index.search(vectors, 1)
    assert np.mean([hits[0].video_id == video_id for hits, video_id in zip(own, ids, strict=True)]) >= 0.99


def test_an_engine_follows_rows_that_are_added_replaced_and_dropped(opened):
    ids, vectors = ids_of(range(NUM_ROWS)), unit(NUM_ROWS, WIDTH)
    check_agrees(opened(ids, vectors), ids, vectors)
    check_agrees(opened(ids, vectors), ids, vectors)  # as it was kept
    kept = [number for number in range(NUM_ROWS) if number % 7]  # what stood in the middle is gone
    changed_ids = ids_of([*kept, *range(1000, 1020)])
    changed = torch.cat([vectors[kept], unit(20, WIDTH, seed=2)])
    changed[:30] = unit(30, WIDTH, seed=3)
    order = torch.randperm(len(changed), generator=torch.Generator().manual_seed(0))  # and rows lie elsewhere
    changed_ids, changed = [changed_ids[place] for place in order.tolist()], changed[order]
    engine = opened(changed_ids, changed)
    assert len(engine) == len(changed_ids)
    check_agrees(engine, changed_ids, changed)


def test_an_engine_obeys_a_filter_and_gives_what_it_leaves(opened):
    engine = opened(ids_of(range(NUM_ROWS)), unit(NUM_ROWS, WIDTH))
    allowed = torch.zeros(NUM_ROWS, dtype=torch.bool)
    allowed[[3, 50, 399]] = True
    scores, rows = engine.search(unit(2, WIDTH, seed=1), 10, allowed)
    assert rows.shape[1] == 3 and set(rows[rows >= 0].tolist()) <= {3, 50, 399} and (rows[:, 0] >= 0).all()
    assert (scores[rows < 0] == -torch.inf).all() and (scores.diff(dim=1).nan_to_num(-1) <= 0).all()
    with pytest.raises(ValueError, match="leaves no clip"):
        engine.search(unit(2, WIDTH), 10, torch.zeros(NUM_ROWS, dtype=torch.bool))


@pytest.mark.parametrize("factory", ["PQ4x2", "PCA8,Flat"])
def test_a_faiss_index_that_takes_no_filter_ranks_all_and_leaves_out(factory):
    pytest.importorskip("faiss", reason=SEARCH)
    engine, queries = FaissSearch(unit(100, WIDTH), factory), unit(3, WIDTH, seed=1)
    everything, order = engine.search(queries, 100)
    allowed = torch.zeros(100, dtype=torch.bool)
    allowed[[1, 8, 20, 77]] = True
    scores, rows = engine.search(queries, 10, allowed)
    for query in range(3):
        place = {row: number for number, row in enumerate(order[query].tolist())}
        assert sorted(rows[query].tolist()) == [1, 8, 20, 77]
        torch.testing.assert_close(scores[query], everything[query][[place[row] for row in rows[query].tolist()]])
        assert (scores[query].diff() <= 0).all()


def test_an_engine_names_bad_requests(opened):
    engine = opened(ids_of(range(NUM_ROWS)), unit(NUM_ROWS, WIDTH))
    with pytest.raises(ValueError, match="top is 401; there are 400 clips"):
        engine.search(unit(1, WIDTH), 401)
    with pytest.raises(ValueError, match="expected"):
        engine.search(unit(1, 15), 1)
    with pytest.raises(ValueError, match="queries row 0 holds a NaN"):
        engine.search(torch.full((1, WIDTH), torch.nan), 1)
    with pytest.raises(SearchIndexError, match="the engine holds 400 rows, the index 2"):
        SearchIndex(unit(2, WIDTH), Dataset.from_dict({"video_id": ["a", "b"]}), "f", engine=engine)


def test_a_kept_faiss_index_is_built_again_only_for_other_rows_or_where_it_was_damaged(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason=SEARCH)
    built, build = [], FaissSearch.__init__
    monkeypatch.setattr(FaissSearch, "__init__", lambda self, *words: built.append(1) or build(self, *words))
    ids, vectors = ids_of(range(50)), unit(50, WIDTH)

    def count(ids, vectors, name="faiss:Flat"):
        built.clear()
        open_engine(name, tmp_path, ids, vectors, "f")
        return len(built)

    assert [count(ids, vectors), count(ids, vectors), count(ids, vectors, "faiss:SQ8")] == [1, 0, 1]
    (path,) = tmp_path.glob("engines/faiss-Flat.index")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert [count(ids, vectors), count(ids, vectors)] == [1, 0]
    assert [count(ids, vectors.flip(0)), count(ids[::-1], vectors.flip(0)), count(ids, vectors)] == [1, 1, 1]


def test_a_qdrant_collection_of_another_model_or_of_nobody_is_refused():
    qdrant = pytest.importorskip("qdrant_client", reason=SEARCH)
    client, ids, vectors = qdrant.QdrantClient(":memory:"), ids_of(range(5)), unit(5, WIDTH)
    with pytest.raises(EngineError, match="no collection 'clips'; make one with QdrantSearch.sync"):
        QdrantSearch(client, "clips", ids, "f")
    QdrantSearch.sync(client, "clips", ids, vectors, "f")
    for use in (QdrantSearch.sync, lambda *words: QdrantSearch(*words[:3], words[-1])):
        with pytest.raises(EngineError, match=r"is another model's, with fingerprint f\.\.\.; name another one"):
            use(client, "clips", ids, vectors, "g")
    with pytest.raises(EngineError, match="has 5 points, the index 4 rows; bring it in step"):
        QdrantSearch(client, "clips", ids[1:], "f")
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.DOT)
    client.create_collection("theirs", vectors_config=params)
    with pytest.raises(EngineError, match="'theirs' is no index's; name another one, or delete it"):
        QdrantSearch.sync(client, "theirs", ids, vectors, "f")


def test_a_table_on_disk_is_changed_where_rows_differ_and_written_anew_for_another_model(tmp_path, monkeypatch, capfd):
    pytest.importorskip("lancedb", reason=LANCEDB)
    ids, vectors, written = ids_of(range(300)), unit(300, WIDTH), []
    batches = LanceSearch._batches
    monkeypatch.setattr(
        LanceSearch, "_batches", lambda self, rows, *rest: written.extend(rows) or batches(self, rows, *rest)
    )

    def sent(ids, vectors, fingerprint="f"):
        written.clear()
        engine = LanceSearch(tmp_path, ids, vectors, fingerprint)
        scores, rows = engine.search(vectors, 1)
        assert rows[:, 0].tolist() == list(range(len(ids)))  # each row is nearest to itself
        torch.testing.assert_close(scores, torch.ones(len(ids), 1).double(), atol=1e-5, rtol=0)
        return len(written)

    assert [
        sent(ids, vectors),
        sent(ids, vectors),
        sent(ids, vectors, "g"),
        sent(ids[::-1], vectors.flip(0), "g"),
    ] == [*(300, 0, 300, 0)]
    vectors[7] = -vectors[7]
    assert sent([*ids[1:], "it's new"], torch.cat([vectors[1:], unit(1, WIDTH, seed=9)]), "g") == 2
    assert capfd.readouterr().err == ""  # nor does LanceDB warn that a new table is new


@pytest.mark.parametrize("most_named", [0, 1000])
def test_a_table_s_filter_finds_the_same_however_many_rows_it_leaves(tmp_path, monkeypatch, most_named):
    pytest.importorskip("lancedb", reason=LANCEDB)
    monkeypatch.setattr(lance, "MOST_NAMED", most_named)
    vectors, queries = unit(NUM_ROWS, WIDTH), unit(4, WIDTH, seed=1)
    engine = LanceSearch(tmp_path, ids_of(range(NUM_ROWS)), vectors, "f")
    for allowed in (torch.arange(NUM_ROWS) % 2 == 0, (queries[0] @ vectors.T) < -0.3):  # the second: all far from one
        scores, rows = engine.search(queries, 12, allowed)
        truth, best = ExactSearch(vectors).search(queries, 12, allowed)
        assert rows.tolist() == best.tolist()
        torch.testing.assert_close(scores, truth, atol=1e-5, rtol=0)


def test_a_table_that_is_damaged_is_named_in_one_line(tmp_path):
    pytest.importorskip("lancedb", reason=LANCEDB)
    ids, vectors = ids_of(range(20)), unit(20, WIDTH)
    open_engine("lancedb", tmp_path, ids, vectors, "f")
    for file in (tmp_path / "engines" / "lancedb").rglob("*.manifest"):
        file.write_bytes(b"torn")
    with pytest.raises(EngineError, match="engines/lancedb: .*; delete that folder if it is damaged") as raised:
        open_engine("lancedb", tmp_path, ids, vectors, "f")
    assert "\n" not in str(raised.value)


def test_bringing_a_collection_in_step_sends_only_what_differs(monkeypatch):
    client = pytest.importorskip("qdrant_client", reason=SEARCH).QdrantClient(":memory:")
    ids, vectors = ids_of(range(50)), unit(50, WIDTH)
    QdrantSearch.sync(client, "clips", ids, vectors, "f")
    sent, upsert = [], client.upsert
    monkeypatch.setattr(client, "upsert", lambda name, points, **rest: sent.extend(points.ids) or upsert(name, points))
    QdrantSearch.sync(client, "clips", ids, vectors, "f")
    assert sent == []
    vectors[7] = -vectors[7]
    QdrantSearch.sync(client, "clips", [*ids[1:], "new"], torch.cat([vectors[1:], unit(1, WIDTH, seed=9)]), "f")
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "engine is 'nothing'; give exact, faiss:FACTORY such as"),
        ("faiss", "engine is 'faiss'; give exact"),
        ("lancedb:HNSW", "engine is 'lancedb:HNSW'; give .*, lancedb:IVF_PQ, lancedb:IVF_HNSW_SQ,"),
        (
            "faiss:Nonsense",
            "factory is 'Nonsense', which FAISS cannot build from 50 vectors of width .*: could not parse",
        ),
    ],
)
def test_an_engine_that_is_none_is_named(tmp_path, name, words):
    if ":" in name:
        pytest.importorskip(LIBRARIES[name.partition(":")[0]], reason=SEARCH)
    with pytest.raises(EngineError, match=words):
        open_engine(name, tmp_path, ids_of(range(50)), unit(50, WIDTH), "f")


class Broken(BaseHTTPRequestHandler):
    """A server that is not Qdrant."""

    def do_GET(self):
        self.send_error(500)

    log_message = print


def test_a_server_that_is_not_there_or_not_qdrant_is_named_in_one_line(tmp_path):
    pytest.importorskip("qdrant_client", reason=SEARCH)
    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for url, words in (
        (f"http://127.0.0.1:{server.server_port}", "500 .Internal Server Error."),
        ("http://127.0.0.1:1", "Connection refused"),
    ):
        with pytest.raises(EngineError, match=f"Qdrant, {url}: .*{words}.*; is its server there") as raised:
            open_engine(f"qdrant:{url}", tmp_path, ids_of(range(50)), unit(50, WIDTH), "f")
        assert "\n" not in str(raised.value)
    server.shutdown()


def test_a_saved_index_is_opened_with_an_engine_beside_it(tmp_path):
    pytest.importorskip("faiss", reason=SEARCH)
    ids, vectors = ids_of(range(50)), unit(50, WIDTH)
    folder = SearchIndex(vectors, Dataset.from_dict({"video_id": ids}), "f").save(tmp_path / "index")
    index = SearchIndex.load(folder, engine="faiss:Flat")
    assert isinstance(index.engine, FaissSearch) and isinstance(SearchIndex.load(folder).engine, ExactSearch)
    assert [hits[0].video_id for hits in index.search(vectors, 1)] == ids


def test_a_lancedb_index_whose_first_build_was_killed_is_built_by_the_next_opening(tmp_path, monkeypatch):
    pytest.importorskip("lancedb", reason=LANCEDB)
    ids, vectors = ids_of(range(NUM_ROWS)), unit(NUM_ROWS, WIDTH)

    def killed(self, table):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LanceSearch, "_build", killed)
        open_engine("lancedb:IVF_PQ", tmp_path, ids, vectors, "f")
    assert open_engine("lancedb:IVF_PQ", tmp_path, ids, vectors, "f").table.list_indices()


@pytest.mark.parametrize("name", ["lancedb:IVF_HNSW_SQ", "qdrant", "faiss:Flat"])
def test_damaged_files_of_an_engine_are_named_with_the_remedy_or_made_again(tmp_path, name):
    pytest.importorskip(LIBRARIES[name.partition(":")[0]], reason=SEARCH)
    ids, vectors = ids_of(range(NUM_ROWS)), unit(NUM_ROWS, WIDTH)
    engine = open_engine(name, tmp_path, ids, vectors, "f")
    if isinstance(engine, QdrantSearch):
        engine.client.close()
    for pattern in ("*.idx", "storage.sqlite", "*.index.json"):
        for file in tmp_path.rglob(pattern):
            file.write_bytes(b"\xff" * 100)
    try:
        found = open_engine(name, tmp_path, ids, vectors, "f").search(vectors[:1], 1)[1]
    except InputError as error:
        words = str(error)
        assert str(tmp_path / "engines") in words and "delete" in words and "made again" in words and "\n" not in words
        assert name != "faiss:Flat"
    else:
        assert found.tolist() == [[0]]
