"""A snapshot of the Hub's cache is checked once, again where a file has changed, and never believed without."""

import builtins
import json
import os
from hashlib import sha1, sha256

import datasets
import pytest

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.reading import SnapshotError, load_split, verify_snapshot


@pytest.fixture
def snapshot(tmp_path):
    """A repository as huggingface_hub caches it: weights named by their SHA-256, and a small file by git's name."""
    repository = tmp_path / "models--org--name"
    folder = repository / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, data, digest in (
        ("model.safetensors", b"weights", sha256(b"weights").hexdigest()),
        ("config.json", b"{}", sha1(b"blob 2\0{}").hexdigest()),
    ):
        (repository / "blobs" / digest).write_bytes(data)
        (folder / name).symlink_to(f"../../blobs/{digest}")
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are read from the snapshot."""
    names, whole = [], builtins.open

    def noting(path, *args, **kwargs):
        if "blobs" in str(path):
            names.append(str(path))
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", noting)
    return names


def change(path, data, keep_times=False):
    blob = path.resolve()
    before = blob.stat()
    blob.write_bytes(data)
    if keep_times:
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_snapshot_is_read_once(snapshot, opened):
    verify_snapshot(snapshot)
    assert len(opened) == 2
    verify_snapshot(snapshot)
    assert len(opened) == 2


@pytest.mark.parametrize(("data", "keep_times"), [(b"weightz", False), (b"longer weights", False), (b"weightz", True)])
def test_a_file_that_changed_after_it_was_checked_is_found_and_removed(snapshot, data, keep_times):
    verify_snapshot(snapshot)
    path = snapshot / "model.safetensors"
    blob = path.resolve()
    change(path, data, keep_times)
    with pytest.raises(SnapshotError, match=r"model.safetensors: damaged, .* load it again"):
        verify_snapshot(snapshot)
    assert not blob.exists() and not path.is_symlink()


def test_a_file_that_came_later_is_read_and_the_others_are_not(snapshot, opened):
    verify_snapshot(snapshot)
    digest = sha256(b"more").hexdigest()
    (snapshot.parents[1] / "blobs" / digest).write_bytes(b"mere")
    (snapshot / "more.safetensors").symlink_to(f"../../blobs/{digest}")
    opened.clear()
    with pytest.raises(SnapshotError, match="more.safetensors: damaged"):
        verify_snapshot(snapshot)
    assert len(opened) == 1


def test_a_touched_file_that_is_whole_is_read_again_and_passes(snapshot, opened):
    verify_snapshot(snapshot)
    os.utime(snapshot / "config.json")
    verify_snapshot(snapshot)
    verify_snapshot(snapshot)
    assert len(opened) == 3


@pytest.mark.parametrize("text", ["", "[1]", '{"model.safetensors": 1}', "no json"])
def test_a_torn_note_of_what_was_checked_counts_for_nothing(snapshot, opened, text):
    verify_snapshot(snapshot)
    (stamp,) = (snapshot.parents[1] / ".verified").iterdir()
    right = json.loads(stamp.read_text())
    stamp.write_text(text)
    verify_snapshot(snapshot)
    assert len(opened) == 4 and json.loads(stamp.read_text()) == right


def test_a_cache_that_cannot_be_written_is_checked_every_time(snapshot, opened):
    (snapshot.parents[1] / ".verified").write_text("a file where the folder would be")
    verify_snapshot(snapshot)
    verify_snapshot(snapshot)
    assert len(opened) == 4


def test_a_link_out_of_the_cache_is_refused_although_its_file_was_checked(snapshot, tmp_path):
    verify_snapshot(snapshot)
    (snapshot / "config.json").unlink()
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SnapshotError, match="points out"):
        verify_snapshot(snapshot)


def test_huggingface_hub_finds_no_fault_with_the_note(snapshot):
    from huggingface_hub import scan_cache_dir

    verify_snapshot(snapshot)
    found = scan_cache_dir(snapshot.parents[2])
    assert not found.warnings and [repository.repo_id for repository in found.repos] == ["org/name"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.csv", "video_id,caption_en\n001,a dog\n"), ("train.jsonl", '{"video_id": 1, "caption_en": "a dog"}\n')],
)
def test_ids_that_a_file_format_makes_numbers_of_are_refused_with_column_and_type(name, text, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_text(text)
    with pytest.raises(InputError, match=r"corpus \(train\): column video_id is int64, and ids are texts") as error:
        load_split(str(tmp_path / "corpus"), None, "train", ["caption_en"])
    assert "\n" not in str(error.value)
