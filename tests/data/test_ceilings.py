"""Small files that unpack to large ones are refused by name, before they take the memory; sound ones are read."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_scripts import convert_features
from datasets_scripts.convert_features import UnreadableClipError, read_arrays
from modeling_mmt.data import limits, sources, tables
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.parquet import MAX_TABLE_BYTES, read_parquet
from modeling_mmt.data.sources import SourceError, Sources

MIB = 2**20


def write_bomb(path):
    """A text of 2 MB in each of 4,000 rows, in a file of some kilobytes."""
    schema = pa.schema([("video_id", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", dictionary_pagesize_limit=2**30) as writer:
        for _ in range(8):
            rows = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["x" * 2 * 10**6]))
            writer.write_batch(pa.record_batch([rows.cast(pa.large_string()).cast(pa.string())], schema=schema))
    return path


def test_a_parquet_file_that_spreads_one_text_over_its_rows_is_refused_before_it_does(tmp_path):
    path = write_bomb(tmp_path / "bomb.parquet")
    assert path.stat().st_size < MIB
    pool = pa.system_memory_pool()
    before, standing = pa.default_memory_pool(), pool.bytes_allocated()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(
            pa.ArrowInvalid, match=f"8,000,.* bytes once it is unpacked, of at most {MAX_TABLE_BYTES:,}"
        ):
            read_parquet(path)
        assert pool.max_memory() - standing < 512 * MIB
    finally:
        pa.set_memory_pool(before)


def test_a_parquet_file_whose_footer_says_too_many_numbers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mmt.data.parquet.MAX_TABLE_BYTES", MIB)
    for kind in (pa.float16(), pa.float64(), pa.list_(pa.float32())):
        values = pa.array([[1.0]] * MIB if pa.types.is_list(kind) else np.ones(MIB, np.float16).astype(object), kind)
        pq.write_table(pa.table({"a": values, "b": pa.array(["x"] * MIB)}), tmp_path / "a.parquet")
        with pytest.raises(pa.ArrowInvalid, match="once it is unpacked"):
            read_parquet(tmp_path / "a.parquet", ["a"])


@pytest.mark.parametrize("columns", [None, ["text"], ["number", "lists"]])
def test_a_sound_parquet_file_is_read_as_pyarrow_reads_it(tmp_path, columns):
    count = 3000
    table = pa.table(
        {
            "text": [None if row % 7 == 0 else f"row {row // 3}" for row in range(count)],
            "large": pa.array(["same"] * count, pa.large_string()),
            "number": np.arange(count) * 0.5,
            "lists": [["a", "b"][: row % 3] for row in range(count)],
            "bytes": [b"\xff" * (row % 5) for row in range(count)],
        }
    ).replace_schema_metadata({"extractor": "x"})
    for rows in (table, table.slice(0, 0)):
        pq.write_table(rows, tmp_path / "a.parquet", row_group_size=500)
        found = read_parquet(tmp_path / "a.parquet", columns)
        assert found.equals(pq.read_table(tmp_path / "a.parquet", columns=columns))
        assert found.schema.metadata[b"extractor"] == b"x"


@pytest.mark.parametrize("name", ["captions.csv", "captions.csv.gz"])
def test_a_table_that_unpacks_beyond_the_ceiling_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", MIB)
    content = b"file_name,caption\n" + b"a.mp4,x\n" * (MIB // 8)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(SourceError, match=f"{name}: more than 1,048,576 bytes; split it"):
        tables.read_table(Sources(tmp_path), name)
    content = content[: MIB // 2].rpartition(b"\n")[0]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert tables.read_table(Sources(tmp_path), name)[0][1] == {"file_name": "a.mp4", "caption": "x"}


@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
def test_an_array_beyond_the_ceiling_is_left_out_by_name_and_the_others_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(convert_features, "MAX_CLIP_BYTES", MIB)
    clips = {"bomb": np.zeros((MIB // 16, 8), np.float32), "sound": np.ones((3, 8), np.float32)}
    source = tmp_path / f"clips.{kind}"
    if kind == "npz":
        np.savez_compressed(source, **clips)
    elif kind == "h5":
        h5py = pytest.importorskip("h5py", reason="an optional reader: extra `data`")
        with h5py.File(source, "w") as file:
            for name, clip in clips.items():
                file.create_dataset(name, data=clip, compression="gzip")
    else:
        source.mkdir()
        for name, clip in clips.items():
            np.save(source / f"{name}.npy", clip)
    found = dict(read_arrays(source))
    assert isinstance(found["bomb"], UnreadableClipError)
    assert "bomb" in str(found["bomb"]) and "a clip has at most 1,048,576" in str(found["bomb"])
    np.testing.assert_array_equal(found["sound"], clips["sound"])


@pytest.mark.parametrize("value", [0, -1, float("nan"), 241])
def test_a_number_that_is_none_or_too_large_names_its_field(value):
    with pytest.raises(InputError, match=rf"{json.dumps('x.json')}: frames_per_second is {value}; give"):
        limits.check_numbers({"image_size": None, "frames_per_second": value}, '"x.json": ')
    limits.check_numbers({"frames_per_second": 240, "batch_size": 10**9, "window": 0.1})
