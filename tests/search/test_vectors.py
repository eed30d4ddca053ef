"""An index of vectors that were made elsewhere."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import call

from modeling_mmt.data.errors import InputError
from modeling_mmt.search.index import SearchIndex, SearchIndexError
from modeling_mmt.search.vectors import index_of_vectors

ROWS = [
    {"file": "a.mp4", "start": "0", "end": "8", "place": "kitchen"},
    {"file": "a.mp4", "start": "4", "end": "12", "place": "kitchen"},
    {"file": "b.jpg", "start": "", "end": "", "place": "garden"},
]
IDS = ["a.mp4#0.0-8.0", "a.mp4#4.0-12.0", "b.jpg"]


@pytest.fixture
def vectors(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 5)) * 7
    np.save(tmp_path / "vectors.npy", values)
    return values


def write(folder, ending, rows=ROWS):
    path = folder / f"clips.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_vectors_are_found_by_cosine_with_the_table_s_places_and_columns(tmp_path, vectors, ending, capsys):
    words = ["--embeddings", tmp_path / "vectors.npy", "--model", "somebody's", "--output_dir", tmp_path / "index"]
    code, out, _ = call(capsys, "index", write(tmp_path, ending), *words)
    assert code == 0 and out == f"{tmp_path / 'index'}: 3 rows of 5 numbers, by somebody's\n"
    index = SearchIndex.load(tmp_path / "index")
    assert index.clips["video_id"][:] == IDS
    assert index.clips[1]["start"] == 4 and index.clips[2]["end"] is None and index.clips[2]["place"] == "garden"
    queries = torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1)
    assert [hits[0].video_id for hits in index.search(queries, 1)] == IDS
    (hits,) = index.search(queries[:1], 3, {"place": "garden"})
    cosine = vectors[0] @ vectors[2] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[2])
    assert [hit.video_id for hit in hits] == ["b.jpg"] and hits[0].score == pytest.approx(cosine, abs=1e-6)


def test_a_model_of_ours_may_not_ask_somebody_else_s_vectors(tmp_path, vectors, make_model):
    index = index_of_vectors(write(tmp_path, "csv"), tmp_path / "vectors.npy", "somebody's")
    with pytest.raises(SearchIndexError, match="was made by somebody's with fingerprint vectors of"):
        index.check_model(make_model())


@pytest.mark.parametrize(
    ("values", "rows", "words"),
    [
        (np.ones((2, 5)), ROWS, "has 3 rows, .* 2; give one line a vector"),
        (np.ones(3), ROWS, r"float64 \(3,\); give a matrix"),
        (np.ones((3, 5), int), ROWS, "give a matrix of real numbers"),
        (np.array([[1.0], [0.0], [np.nan]]), ROWS, "row 1 is zero or not finite"),
        (np.array([[1, {}]] * 3, dtype=object), ROWS, "vectors.npy: damaged, or no array of numbers"),
        (np.ones((3, 5)), [{**ROWS[0], "end": ""}, *ROWS[1:]], "line 2: start is 0.0 and end None; write both"),
        (np.ones((3, 5)), [{**ROWS[0], "start": "9"}, *ROWS[1:]], "line 2: start is 9.0 and end 8.0; write both"),
        (np.ones((3, 5)), [{**ROWS[0], "start": "soon"}, *ROWS[1:]], "line 2: start is 'soon'; write seconds"),
        (np.ones((3, 5)), [{"place": "kitchen"}] * 3, "line 2: neither video_id nor file names the clip"),
        (np.ones((3, 5)), [ROWS[0]] * 3, "video_id 'a.mp4#0.0-8.0' appears twice"),
    ],
)
def test_what_is_wrong_with_vectors_or_table_is_named(tmp_path, values, rows, words):
    np.save(tmp_path / "vectors.npy", values)
    with pytest.raises(InputError, match=words):
        index_of_vectors(write(tmp_path, "csv", rows), tmp_path / "vectors.npy", "somebody's")


@pytest.mark.parametrize("names", [["video_id"], ["file"], ["file", "start", "end"]])
def test_a_table_may_lack_any_of_the_places(tmp_path, vectors, names):
    rows = [{name: {"start": 0, "end": 8}.get(name, f"c{number}") for name in names} for number in range(3)]
    index_of_vectors(write(tmp_path, "jsonl", rows), tmp_path / "vectors.npy", "m").save(tmp_path / "index")
    ids = [f"c{number}#0.0-8.0" if "start" in names else f"c{number}" for number in range(3)]
    assert SearchIndex.load(tmp_path / "index").clips["video_id"][:] == ids


def test_columns_are_those_of_any_row_and_of_one_type_each(tmp_path, vectors):
    rows = [{"video_id": "a"}, {"video_id": "b", "color": "red"}, {"video_id": "c", "count": 3}]
    index = index_of_vectors(write(tmp_path, "jsonl", rows), tmp_path / "vectors.npy", "m")
    assert index.clips["color"][:] == [None, "red", None] and index.clips["count"][:] == [None, None, 3]
    for values in ([1, "red", [1]], [10**23, 1, 1], [{}, {}, {}]):
        mixed = [{"video_id": name, "kind": value} for name, value in zip("abc", values, strict=True)]
        with pytest.raises(InputError, match="clips.jsonl: kind has"):
            index_of_vectors(write(tmp_path, "jsonl", mixed), tmp_path / "vectors.npy", "m")


def test_rows_of_any_magnitude_are_divided_by_their_norm(tmp_path, vectors):
    np.save(tmp_path / "vectors.npy", vectors * np.array([[1e200], [1e-200], [1]]))
    index = index_of_vectors(write(tmp_path, "csv"), tmp_path / "vectors.npy", "m")
    wanted = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(index.embeddings.numpy(), wanted, rtol=1e-6)


def test_rows_of_few_bits_lose_no_more_of_them(tmp_path, vectors):
    few = vectors.astype(np.float16)
    np.save(tmp_path / "vectors.npy", few)
    index = index_of_vectors(write(tmp_path, "csv"), tmp_path / "vectors.npy", "m")
    wanted = few.astype(np.float64) / np.linalg.norm(few.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(index.embeddings.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["archive", "shape"])
def test_a_file_that_is_cut_or_lies_about_its_size_is_one_line(tmp_path, vectors, kind):
    path = tmp_path / "vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(b"PK\x03\x04 cut" if kind == "archive" else whole.replace(b"(3, 5)", b"(3, 5" + b"0" * 14 + b")"))
    with pytest.raises(InputError, match="vectors.npy") as error:
        index_of_vectors(write(tmp_path, "csv"), path, "m")
    assert "\n" not in str(error.value)


def test_several_arrays_in_one_file_are_refused(tmp_path, vectors):
    np.savez(tmp_path / "several.npz", a=vectors, b=vectors)
    (tmp_path / "several.npz").rename(tmp_path / "vectors.npy")
    with pytest.raises(InputError, match="vectors.npy: several arrays; save the matrix by itself"):
        index_of_vectors(write(tmp_path, "csv"), tmp_path / "vectors.npy", "m")


@pytest.mark.parametrize("more", [["--engine", "nonsense"], ["--status"], ["--model", ""]])
def test_what_is_wrong_with_the_command_is_said_before_anything_is_written(tmp_path, vectors, capsys, more):
    words = ["--embeddings", tmp_path / "vectors.npy", "--model", "m", "--output_dir", tmp_path / "index", *more]
    code, _, err = call(capsys, "index", write(tmp_path, "csv"), *words)
    assert code == 2 and err.count("\n") == 1 and more[0] in err.replace("engine is", "--engine")
    assert not (tmp_path / "index").exists()
