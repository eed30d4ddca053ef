"""Features that people have, turned into a store: what is taken, and what is refused with its remedy."""

import pickle

import datasets
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_features import SETTINGS, ragged_clips

from datasets_scripts.convert_features import convert
from modeling_mmt.commands.convert import main
from modeling_mmt.data.feature_store import FeatureStore, FeatureStoreError
from modeling_mmt.data.feature_store_writer import FeatureStoreWriter
from modeling_mmt.data.sources import SourceError


def write(kind, folder, clips):
    """The clips as people keep them; returns what is given to the converter."""
    if kind == "npy":
        (folder / "npy").mkdir()
        for video_id, features in clips.items():
            np.save(folder / "npy" / f"{video_id}.npy", features)
        return folder / "npy"
    if kind == "npz":
        np.savez(folder / "clips.npz", **clips)
        return folder / "clips.npz"
    with h5py.File(folder / "clips.h5", "w") as file:
        for video_id, features in clips.items():
            file[video_id] = features
    return folder / "clips.h5"


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
def test_what_goes_in_comes_out(kind, file_format, tmp_path):
    clips = ragged_clips(7)
    source = write(kind, tmp_path, clips)
    flags = ["--output_dir", str(tmp_path / "store"), "--extractor", "s3d", "--revision", "1", "--rate", "1.5"]
    assert main([str(source), *flags, "--file_format", file_format]) == 0
    store = FeatureStore(tmp_path / "store")
    assert store.keys() == clips.keys() and store.manifest["rate"] == 1.5 and store.manifest["extractor"] == "s3d"
    assert all(np.array_equal(store[video_id], clips[video_id]) for video_id in clips)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_one_step_and_a_leading_one_are_understood(shape, tmp_path):
    source = write("npy", tmp_path, {"a": np.arange(4.0).reshape(shape), "b": np.ones((1, 3, 4))})
    store, skipped = convert(source, tmp_path / "store", extractor="x", revision="1", rate=None)
    assert store["a"].tolist() == [[0, 1, 2, 3]] and store["b"].shape == (3, 4) and not skipped


@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((2, 6), np.nan), "clip 'bad': step 0, column 0 is nan"),
        (np.ones((2, 5)), "width 5, the clips before it 6"),
        (np.ones((2, 2, 6)), r"shape \(2, 2, 6\)"),
        (np.ones((0, 6)), r"\(0, 6\)"),
    ],
)
def test_a_clip_that_cannot_be_used_stops_or_is_a_counted_skip_with_a_ceiling(kind, bad, message, tmp_path):
    source = write(kind, tmp_path, {"a1": np.ones((1, 6)), "bad": bad, "c": np.ones((1, 6))})
    settings = {"extractor": "x", "revision": "1", "rate": None}
    with pytest.raises((FeatureStoreError, SourceError), match=message):
        convert(source, tmp_path / "store", **settings)
    with pytest.raises(SourceError, match=rf"1 of 3 clips cannot be used, more than --max_skipped 0.1.*{message}"):
        convert(source, tmp_path / "store", **settings, skip=True, max_skipped=0.1)
    assert not (tmp_path / "store").exists()
    store, skipped = convert(source, tmp_path / "store", **settings, skip=True, max_skipped=0.4)
    assert set(store) == {"a1", "c"} and len(skipped) == 1


def test_a_truncated_file_is_a_clip_that_cannot_be_used(tmp_path):
    source = write("npy", tmp_path, ragged_clips(4))
    path = source / "clip2.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SourceError, match="clip2.npy: not a complete .npy file"):
        convert(source, tmp_path / "store", extractor="x", revision="1", rate=None)
    store, skipped = convert(
        source, tmp_path / "s", extractor="x", revision="1", rate=None, skip=True, max_skipped=0.3
    )
    assert "clip2" not in store and len(store) == 3 and "clip2.npy" in skipped[0]


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_truncated_archive_is_refused(kind, tmp_path):
    source = write(kind, tmp_path, ragged_clips(4))
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(SourceError, match="copy it again|extract this clip again"):
        convert(source, tmp_path / "store", extractor="x", revision="1", rate=None)


class Dangerous:
    def __reduce__(self):
        return (print, ("code was run",))


def test_arrays_in_folders_and_linked_folders_have_ids_with_folders_and_what_is_left_is_said(tmp_path, capsys):
    for name in ("npy/kitchen/cat.npy", "elsewhere/dog.npy"):
        (tmp_path / name).parent.mkdir(parents=True)
        np.save(tmp_path / name, np.ones((2, 3), np.float32))
    (tmp_path / "npy/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "npy/circle").symlink_to(tmp_path / "npy")
    (tmp_path / "npy/list.csv").touch()
    store, _ = convert(tmp_path / "npy", tmp_path / "store", extractor="s3d", revision="1", rate=None)
    assert set(store) == {"kitchen/cat", "linked/dog"}
    assert "taken: 2 npy; left out: 1 csv, 1 link to a folder" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["all.pth", "all.pt", "all.pkl", "clips/a.pickle", "clips/a.npy", "clips.npz"])
def test_pickles_are_refused_with_the_remedy_and_never_run(name, tmp_path, capsys):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".npz"):
        np.savez(path, a=np.array([Dangerous()], object))
    elif name.endswith(".npy"):
        np.save(path, np.array([Dangerous()], object), allow_pickle=True)
    elif name.endswith((".pth", ".pt")):
        torch.save({"a": Dangerous()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Dangerous()}))
    source = path.parent if "/" in name else path
    with pytest.raises(SourceError, match="(?s)can run any code.*weights_only=True.*numpy.save"):
        convert(source, tmp_path / "store", extractor="x", revision="1", rate=None)
    assert "code was run" not in capsys.readouterr().out and not (tmp_path / "store").exists()


def test_what_is_no_source_is_refused(tmp_path):
    settings = {"extractor": "x", "revision": "1", "rate": None}
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        convert(tmp_path / "nowhere", tmp_path / "store", **settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no .npy file"):
        convert(tmp_path / "empty", tmp_path / "store", **settings)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(SourceError, match="kind '.csv' is unknown"):
        convert(tmp_path / "x.csv", tmp_path / "store", **settings)
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file["a/b"] = np.ones((1, 2))
    with pytest.raises(SourceError, match="'a' is not a dataset"):
        convert(tmp_path / "groups.h5", tmp_path / "store", **settings)
    np.savez(tmp_path / "paths.npz", **{"../x": np.ones((1, 2))})
    with pytest.raises(SourceError, match="'../x' is not a valid clip id"):
        convert(tmp_path / "paths.npz", tmp_path / "store", **settings)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), cut=st.integers(0, 200), where=st.integers(0, 200))
def test_any_bytes_for_an_array_give_a_clip_or_an_error_that_names_the_file(tmp_path, data, cut, where):
    folder = tmp_path / "npy"
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", np.ones((3, 4), np.float32))
    whole = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(whole[:where] + data + whole[where + cut :])
    from datasets_scripts.convert_features import UnreadableClipError, read_arrays

    try:
        ((_, array),) = read_arrays(folder)
        assert isinstance(array, (np.ndarray, UnreadableClipError))
    except SourceError as error:
        assert "a.npy" in str(error)


# What the store itself does about formats, identity and windows


def arrow_and_parquet(tmp_path, clips):
    for file_format in ("arrow", "parquet"):
        settings = SETTINGS | {"file_format": file_format, "clips_per_shard": 3}
        with FeatureStoreWriter(tmp_path / file_format, **settings) as writer:
            for video_id, features in clips.items():
                writer.add(video_id, features)
    return FeatureStore(tmp_path / "arrow"), FeatureStore(tmp_path / "parquet")


def test_arrow_and_parquet_stores_hold_the_same_and_give_windows_of_it(tmp_path):
    clips = ragged_clips(10)
    for store in arrow_and_parquet(tmp_path, clips):
        store.verify()
        for video_id, features in clips.items():
            assert np.array_equal(store[video_id], features) and store.num_steps(video_id) == len(features)
            assert np.array_equal(store.window(video_id, len(features) - 1, len(features)), features[-1:])
            for window in ((0, 0), (0, len(features) + 1), (-1, 1)):
                with pytest.raises(ValueError, match=r"give 0 <= start < stop <= F"):
                    store.window(video_id, *window)
            store[video_id][:] = 0  # the caller's own
            assert np.array_equal(store[video_id], features)


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_datasets_loads_and_streams_the_shards_as_they_are(file_format, tmp_path):
    clips = ragged_clips(5)
    arrow_and_parquet(tmp_path, clips)
    files = str(tmp_path / file_format / "features-*")
    for streaming in (False, True):
        cache = tmp_path / "cache"
        rows = datasets.load_dataset(
            file_format, data_files=files, split="train", streaming=streaming, cache_dir=cache
        )
        found = {row["video_id"]: np.array(row["video_features"], np.float16) for row in rows}
        assert all(np.array_equal(found[video_id], clips[video_id]) for video_id in clips) and len(found) == 5


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_a_flipped_bit_in_a_shard_is_found_at_its_first_clip_and_not_before(file_format, tmp_path):
    clips = ragged_clips(6, dim=400)
    arrow_and_parquet(tmp_path, clips)
    shard = tmp_path / file_format / f"features-00001.{file_format}"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    store = FeatureStore(tmp_path / file_format)
    assert np.array_equal(store["clip0"], clips["clip0"])
    with pytest.raises(FeatureStoreError, match="features-00001.*SHA-256 is"):
        store["clip3"]


def test_features_of_another_extractor_than_asked_for_are_refused(tmp_path):
    arrow_and_parquet(tmp_path, ragged_clips(3))
    assert FeatureStore(tmp_path / "arrow", extractor="lite0", revision="abc").dim == 6
    with pytest.raises(FeatureStoreError, match="extractor is 'lite0', but 's3d' was requested"):
        FeatureStore(tmp_path / "arrow", extractor="s3d")
    with pytest.raises(FeatureStoreError, match="revision is 'abc', but 'def' was requested"):
        FeatureStore(tmp_path / "arrow", extractor="lite0", revision="def")


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_a_shard_of_another_extractor_is_refused_even_if_the_manifest_lists_it(file_format, tmp_path):
    import json

    clips = ragged_clips(2)
    for name, extractor in (("ours", "lite0"), ("theirs", "s3d")):
        settings = SETTINGS | {"extractor": extractor, "file_format": file_format}
        with FeatureStoreWriter(tmp_path / name, **settings) as writer:
            for video_id, features in clips.items():
                writer.add(f"{name}-{video_id}", features)
    (tmp_path / "theirs" / f"features-00000.{file_format}").rename(tmp_path / "ours" / f"features-00001.{file_format}")
    manifest = json.loads((tmp_path / "ours/manifest.json").read_text())
    (shard,) = json.loads((tmp_path / "theirs/manifest.json").read_text())["shards"]
    manifest["shards"].append(shard | {"file": f"features-00001.{file_format}"})
    (tmp_path / "ours/manifest.json").write_text(json.dumps(manifest | {"num_clips": 4}))
    store = FeatureStore(tmp_path / "ours")
    assert np.array_equal(store["ours-clip0"], clips["clip0"])
    with pytest.raises(FeatureStoreError, match="extractor is 's3d', the manifest says 'lite0'; shards of two stores"):
        store["theirs-clip0"]


def test_an_unknown_file_format_is_refused(tmp_path):
    with pytest.raises(FeatureStoreError, match="file_format is 'csv'; choose one of parquet, arrow"):
        FeatureStoreWriter(tmp_path / "store", **SETTINGS, file_format="csv")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_one_value_that_is_not_finite_is_found_wherever_it_stands(dtype, value):
    from modeling_mmt.data.feature_store import all_finite

    values = np.random.default_rng(0).standard_normal((700, 400)).astype(dtype)
    values[0, 0], values[1, 1] = np.finfo(dtype).max, np.finfo(dtype).tiny
    assert all_finite(values)
    for place in ((0, 3), (699, 399), (655, 144)):
        broken = values.copy()
        broken[place] = value
        assert not all_finite(broken)


@pytest.fixture
def secret(tmp_path):
    """32 bytes that are somebody's own: four numbers of 64 bits, to whoever reads them as such."""
    path = tmp_path / "home" / "secret.txt"
    path.parent.mkdir()
    path.write_bytes(b"0123456789abcdef0123456789abcdef")
    return path


def external_bytes(file, secret):
    file.create_dataset("a", (1, 4), "float64", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(file, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["a"] = np.ones((1, 4))
    file["a"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/a")


def soft_link_over_an_external_one(file, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["inside/a"] = np.ones((1, 4))
    file["z"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/inside")
    file["a"] = h5py.SoftLink("/z/a")


def virtual(file, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["a"] = np.ones((1, 4))
    layout = h5py.VirtualLayout((1, 4), "float64")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "a", (1, 4))
    file.create_virtual_dataset("a", layout)


@pytest.mark.parametrize("kind", [external_bytes, external_link, soft_link_over_an_external_one, virtual])
def test_hdf5_whose_numbers_lie_in_another_file_is_refused(kind, secret, tmp_path):
    with h5py.File(tmp_path / "clips.h5", "w") as file:
        kind(file, secret)
    with h5py.File(tmp_path / "clips.h5") as file:
        assert file["a"][()].shape == (1, 4)  # HDF5 would read it
    for skip in (False, True):
        with pytest.raises(SourceError, match="clips.h5, 'a' .*nothing from outside is read"):
            convert(tmp_path / "clips.h5", tmp_path / "s", extractor="x", revision="1", rate=None, skip=skip)
    assert not (tmp_path / "s").exists()


def test_a_soft_link_inside_the_file_is_read_and_a_broken_one_named(tmp_path):
    settings = {"extractor": "x", "revision": "1", "rate": None}
    with h5py.File(tmp_path / "clips.h5", "w") as file:
        file["a"] = np.ones((1, 4))
        file["b"] = h5py.SoftLink("/a")
    assert list(convert(tmp_path / "clips.h5", tmp_path / "store", **settings)[0]) == ["a", "b"]
    with h5py.File(tmp_path / "clips.h5", "a") as file:
        file["c"] = h5py.SoftLink("/nowhere")
    with pytest.raises(SourceError, match="'c' is not a dataset"):
        convert(tmp_path / "clips.h5", tmp_path / "other", **settings)
