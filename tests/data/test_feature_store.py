"""The feature store: what goes in comes out, and nothing else does."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_features import SETTINGS, ragged_clips

from modeling_mmt.data.feature_store import MANIFEST, FeatureStore, FeatureStoreError, MissingClipError
from modeling_mmt.data.feature_store_writer import FeatureStoreWriter, write_feature_store
from modeling_mmt.data.files import file_sha256

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("clips_per_shard", [1, 3, 100])
def test_every_clip_comes_back_as_it_was_in_any_order(tmp_path, dtype, clips_per_shard):
    clips = ragged_clips(10)
    with FeatureStoreWriter(tmp_path / "store", **SETTINGS, dtype=dtype, clips_per_shard=clips_per_shard) as writer:
        for video_id, features in clips.items():
            writer.add(video_id, features)
    store = FeatureStore(tmp_path / "store")
    assert list(store) == list(clips) and len(store) == 10 and store.dim == 6
    for video_id in reversed(list(clips)):
        assert store[video_id].dtype == dtype and np.array_equal(store[video_id], clips[video_id])
    assert len(store.manifest["shards"]) == -(-10 // clips_per_shard)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_manifest_says_what_the_features_are(tmp_path):
    source = {"dataset": "emoji9", "image_size": 128}
    write_feature_store(tmp_path / "store", ragged_clips(3).items(), **SETTINGS, source=source)
    manifest = json.loads((tmp_path / "store" / MANIFEST).read_text())
    assert {key: manifest[key] for key in SETTINGS} == SETTINGS and manifest["source"] == source
    assert (manifest["dim"], manifest["dtype"], manifest["num_clips"]) == (6, "float16", 3)
    assert set(manifest["shards"][0]) == {"file", "sha256", "num_bytes", "num_rows"}


def test_a_store_is_known_by_its_values_and_its_rate(tmp_path):
    """Windows of seconds are other steps at another rate, so a stage trained at one is not the other's."""
    stores = [(3, 2.0), (3, 2.0), (3, 4.0), (3, None), (4, 2.0)]
    fingerprints = [
        FeatureStore(
            write_feature_store(tmp_path / str(n), ragged_clips(count).items(), **SETTINGS | {"rate": rate})
        ).fingerprint
        for n, (count, rate) in enumerate(stores)
    ]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 4


def test_a_returned_array_is_the_callers_own(tmp_path):
    clips = ragged_clips(2)
    store = FeatureStore(write_feature_store(tmp_path / "store", clips.items(), **SETTINGS))
    store["clip0"][:] = 0
    assert np.array_equal(store["clip0"], clips["clip0"])


def test_the_shards_are_plain_parquet_for_datasets(tmp_path):
    clips = ragged_clips(4)
    folder = write_feature_store(tmp_path / "store", clips.items(), **SETTINGS)
    rows = datasets.load_dataset("parquet", data_files=str(folder / "features-*.parquet"), cache_dir=tmp_path / "c")
    assert rows["train"]["video_id"][:] == list(clips)
    assert np.array_equal(np.array(rows["train"][2]["video_features"], np.float16), clips["clip2"])


def test_a_missing_clip_is_an_error_that_names_clip_and_folder(tmp_path):
    store = FeatureStore(write_feature_store(tmp_path / "store", ragged_clips(2).items(), **SETTINGS))
    with pytest.raises(MissingClipError, match="clip 'other' is not in the feature store .*store.*extract") as error:
        store["other"]
    assert isinstance(error.value, KeyError) and "other" not in store and "clip1" in store


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0, np.nan]], "step 0, column 1 is nan"),
        ([[1.0, 2.0], [np.inf, 0.0]], "step 1, column 0 is inf"),
        ([[1.0, 70000.0]], "70000.0, not finite as float16.*dtype='float32'"),
        ([[1.0, 2.0, 3.0]], "width 3, the clips before it 2"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
        (np.zeros(2), r"\(2,\)"),
        (np.zeros((1, 2, 2)), r"\(1, 2, 2\)"),
        ([["a", "b"]], "give numbers"),
    ],
)
def test_bad_features_are_refused_and_leave_nothing(tmp_path, features, message):
    clips = [("good", np.zeros((1, 2))), ("bad", np.asarray(features))]
    with pytest.raises(FeatureStoreError, match=f"(?s)clip 'bad'.*{message}"):
        write_feature_store(tmp_path / "store", clips, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_large_number_fits_into_float32(tmp_path):
    write_feature_store(tmp_path / "store", [("a", np.array([[70000.0]]))], **SETTINGS, dtype="float32")
    assert FeatureStore(tmp_path / "store")["a"].tolist() == [[70000.0]]


def test_repeated_and_empty_ids_no_clips_and_unknown_types_are_refused(tmp_path):
    one = np.zeros((1, 2))
    with pytest.raises(FeatureStoreError, match="already exists"):
        write_feature_store(tmp_path / "store", [("a", one), ("a", one)], **SETTINGS)
    with pytest.raises(FeatureStoreError, match="not empty"):
        write_feature_store(tmp_path / "store", [("", one)], **SETTINGS)
    with pytest.raises(FeatureStoreError, match="no clip was given"):
        write_feature_store(tmp_path / "store", [], **SETTINGS)
    with pytest.raises(FeatureStoreError, match="bfloat16"):
        write_feature_store(tmp_path / "store", [("a", one)], **SETTINGS, dtype="bfloat16")
    assert not (tmp_path / "store").exists()


def test_an_existing_store_is_not_overwritten(tmp_path):
    clips = ragged_clips(2)
    write_feature_store(tmp_path / "store", clips.items(), **SETTINGS)
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_feature_store(tmp_path / "store", ragged_clips(3).items(), **SETTINGS)
    assert len(FeatureStore(tmp_path / "store")) == 2


@pytest.mark.parametrize("folder", [".", "/", ".."])
def test_a_folder_without_a_name_exists(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_feature_store(folder, ragged_clips(1).items(), **SETTINGS)
    assert not list(tmp_path.iterdir())


# Interruption


def interrupt_after(folder, clips, num_clips):
    with pytest.raises(KeyboardInterrupt), FeatureStoreWriter(folder, **SETTINGS, clips_per_shard=2) as writer:
        for video_id in list(clips)[:num_clips]:
            writer.add(video_id, clips[video_id])
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_no_store_and_resumes_at_the_last_whole_shard(tmp_path):
    clips = ragged_clips(7)
    interrupt_after(tmp_path / "store", clips, 5)
    with pytest.raises(FileNotFoundError, match="not a finished feature store"):
        FeatureStore(tmp_path / "store")
    (tmp_path / "store.partial" / "features-00002.parquet").write_bytes(b"half a shard of a killed writer")
    with FeatureStoreWriter(tmp_path / "store", **SETTINGS, clips_per_shard=2, resume=True) as writer:
        assert writer.stored_ids == {"clip0", "clip1", "clip2", "clip3"}
        for video_id in clips.keys() - writer.stored_ids:
            writer.add(video_id, clips[video_id])
    store = FeatureStore(tmp_path / "store")
    store.verify()
    assert store.keys() == clips.keys()
    assert all(np.array_equal(store[video_id], clips[video_id]) for video_id in clips)


def test_shards_made_in_another_way_are_not_gone_on_with(tmp_path):
    interrupt_after(tmp_path / "store", ragged_clips(4), 4)
    with pytest.raises(FeatureStoreError, match="revision is 'abc', now 'def'.*delete"):
        FeatureStoreWriter(tmp_path / "store", **(SETTINGS | {"revision": "def"}), resume=True)


def test_without_resume_an_interrupted_writer_is_forgotten(tmp_path):
    interrupt_after(tmp_path / "store", ragged_clips(4), 4)
    write_feature_store(tmp_path / "store", ragged_clips(2, dim=3).items(), **SETTINGS)
    assert FeatureStore(tmp_path / "store").dim == 3


def _try_to_write(folder, queue):
    try:
        FeatureStoreWriter(folder, **SETTINGS)
    except FeatureStoreError as error:
        queue.put(str(error))


def test_a_second_process_does_not_write_the_same_store(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with FeatureStoreWriter(tmp_path / "store", **SETTINGS) as writer:
        writer.add("a", np.zeros((1, 2)))
        process = context.Process(target=_try_to_write, args=(tmp_path / "store", queue))
        process.start()
        assert "another process is writing" in queue.get(timeout=30)
        process.join()
    assert len(FeatureStore(tmp_path / "store")) == 1


# Damage


@pytest.fixture
def store_folder(tmp_path):
    return write_feature_store(tmp_path / "store", ragged_clips(4).items(), **SETTINGS)


def test_a_truncated_shard_is_refused_when_the_store_is_opened(store_folder):
    shard = store_folder / "features-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FeatureStoreError, match=r"features-00000.parquet: \d+ bytes, the manifest says \d+"):
        FeatureStore(store_folder)


def test_a_changed_value_is_refused_when_the_shard_is_read(store_folder):
    shard = store_folder / "features-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[150] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FeatureStoreError, match="SHA-256|no readable shard"):
        FeatureStore(store_folder).verify()


FLIPS = """
import sys
from pathlib import Path
from modeling_mmt.data.feature_store import FeatureStore, FeatureStoreError
for shard in map(Path, sys.argv[1:]):
    whole = shard.read_bytes()
    for bit in range(0, 8 * len(whole), 17):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        try:
            FeatureStore(shard.parent).verify()
        except FeatureStoreError:
            continue
        raise SystemExit(f"{shard}: bit {bit} passed")
"""


def test_a_flipped_bit_anywhere_is_refused_and_does_not_end_the_process(tmp_path):
    """In a process of its own: an offset out of bounds was a bus error, which no test survives."""
    shards = []
    for file_format in ("arrow", "parquet"):
        write_feature_store(tmp_path / file_format, ragged_clips(2).items(), **SETTINGS, file_format=file_format)
        shards.append(tmp_path / file_format / f"features-00000.{file_format}")
    done = subprocess.run([sys.executable, "-c", FLIPS, *shards], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_stranger_s_shard_whose_hash_is_right_and_offsets_are_wrong_is_refused(tmp_path):
    write_feature_store(tmp_path / "store", ragged_clips(2).items(), **SETTINGS, file_format="arrow")
    shard, manifest = tmp_path / "store" / "features-00000.arrow", tmp_path / "store" / MANIFEST
    table = pa.ipc.open_stream(shard.read_bytes()).read_all()
    ids = pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 2**30, 2]).tobytes()), pa.py_buffer(b"ab"))
    table = table.set_column(0, "video_id", ids)
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = json.loads(manifest.read_text())
    content["shards"][0] |= {"sha256": file_sha256(shard), "num_bytes": shard.stat().st_size}
    manifest.write_text(json.dumps(content))
    with pytest.raises(FeatureStoreError, match="features-00000.arrow: no readable shard"):
        FeatureStore(tmp_path / "store")


def test_a_missing_shard_or_manifest_field_is_refused(store_folder):
    (store_folder / "features-00000.parquet").rename(store_folder / "elsewhere.parquet")
    with pytest.raises(FileNotFoundError, match="features-00000.parquet does not exist"):
        FeatureStore(store_folder)
    manifest = json.loads((store_folder / MANIFEST).read_text())
    del manifest["dim"]
    (store_folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FeatureStoreError, match="field 'dim' is missing"):
        FeatureStore(store_folder)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[[1.0, np.nan]]], pa.list_(pa.list_(pa.float16()))), "not all values are finite"),
        (pa.array([[[1.0]]], pa.list_(pa.list_(pa.float16()))), r"width \[1\], expected 2"),
        (pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32()))), "expected list"),
    ],
)
def test_a_shard_of_others_is_checked_too(tmp_path, column, message):
    import hashlib

    path = tmp_path / "features-00000.parquet"
    pq.write_table(pa.table({"video_id": ["a"], "video_features": column}), path)
    data = path.read_bytes()
    shard = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data), "num_rows": 1}
    manifest = SETTINGS | {"dim": 2, "dtype": "float16", "num_clips": 1, "shards": [shard], "source": None}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FeatureStoreError, match=message):
        FeatureStore(tmp_path)["a"]


@pytest.mark.parametrize("name", ["../other.parquet", "/tmp/other.parquet", "sub/features-00000.parquet", ""])
def test_a_manifest_cannot_name_a_file_outside_its_store(store_folder, name):
    path = store_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["file"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(FeatureStoreError, match="no name of a shard"):
        FeatureStore(store_folder)
