"""What is written is whole or not there, has the mode that the umask gives, and two writers do not meet."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.files import (
    apply_umask,
    file_hash,
    file_sha256,
    locked,
    put_in_place,
    write_json,
    writing_file,
    writing_folder,
)
from modeling_mmt.data.weights import load_tensors, save_tensors
from modeling_mmt.search.index import SearchIndex, SearchIndexError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_the_hashes_are_those_of_the_standard_and_of_git(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path) == file_hash(path, "0" * 64) == ABC
    assert file_hash(path, "0" * 40) == "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"  # printf abc | git hash-object


def test_a_written_file_has_the_mode_that_the_umask_gives(tmp_path, umask):
    save_tensors(tmp_path / "run" / "best.safetensors", {"a": torch.ones(2)})
    write_json(tmp_path / "run" / "result.json", {"a": 1})
    SearchIndex(torch.eye(2), Dataset.from_dict({"video_id": ["a", "b"]}), "f", "m").save(tmp_path / "index")
    write_feature_store(tmp_path / "store", [("a", np.ones((1, 2)))], extractor="e", revision="r")
    assert modes(tmp_path) == {0o666 & ~umask}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o777 & ~umask}


def test_weights_that_another_library_wrote_are_for_whoever_may_use_their_folder(tmp_path, umask):
    from safetensors.torch import save_file

    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model" / "model.safetensors")
    apply_umask(tmp_path / "model")
    assert modes(tmp_path) == {0o666 & ~umask}


def test_a_block_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    for writing, path in ((writing_file, "a.safetensors"), (writing_folder, "folder"), (writing_file, "new")):
        with pytest.raises(KeyError), writing(tmp_path / path) as partial:
            assert partial.parent == tmp_path
            raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder"]
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["a"], torch.ones(2))


def test_a_folder_is_replaced_whole_or_refused_if_another_writer_was_faster(tmp_path):
    with writing_folder(tmp_path / "a") as partial:
        (partial / "one").write_text("1")
    with pytest.raises(FileExistsError, match="a already exists"), writing_folder(tmp_path / "a") as partial:
        (partial / "two").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "one"]
    with writing_folder(tmp_path / "a", replace=True) as partial:
        (partial / "two").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "two"]


def test_every_byte_is_on_the_disk_before_the_name_is_given(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: done.append("rename") or replace(old, new))
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "file").write_text("text")
    put_in_place(tmp_path / "a.partial", tmp_path / "a")
    assert done == [f"{tmp_path}/a.partial/file", f"{tmp_path}/a.partial", "rename", str(tmp_path)]


def test_a_lock_that_another_process_holds_is_refused_with_what_is_given_and_left_with_it(tmp_path):
    hold = "import sys, time, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    time.sleep(9)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(ValueError, match="wait for it"), locked(tmp_path / "lock", ValueError("busy; wait for it")):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "lock", ValueError("busy")):
        assert (tmp_path / "lock").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replace", [True, False])
def test_of_writers_at_once_one_s_folder_stays_whole_and_nothing_lies_beside_it(tmp_path, replace):
    def write(name):
        with writing_folder(path, replace) as partial:
            for file in ("a", "b"):
                (partial / file).write_text(name)
            ready.wait(timeout=30)

    for number in range(20):
        path, ready = tmp_path / str(number), threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            failed = [done.exception() for done in [pool.submit(write, name) for name in "123"]]
        assert [type(error) for error in failed if error] == ([] if replace else [FileExistsError] * 2)
        assert (path / "a").read_text() == (path / "b").read_text() in "123"
    assert len(list(tmp_path.iterdir())) == 20


def test_a_folder_whose_successor_cannot_be_placed_is_kept(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modeling_mmt.data.files.put_in_place", full)
    with pytest.raises(OSError, match="No space left"), writing_folder(tmp_path / "data", replace=True):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "old"]


def test_of_indexes_saved_at_once_one_stays_and_what_killed_writers_left_goes(tmp_path):
    def save(number):
        ready.wait(timeout=30)
        SearchIndex(torch.eye(3)[:number], Dataset.from_dict({"video_id": list("abc")[:number]}), "f").save(path)

    for number in range(20):
        path, ready = tmp_path / str(number), threading.Barrier(2)
        (tmp_path / f"{number}.0a1b2c3d.partial").mkdir()
        with ThreadPoolExecutor(2) as pool:
            failed = [done.exception() for done in [pool.submit(save, size) for size in (2, 3)]]
        assert [error for error in failed if not isinstance(error, FileExistsError | SearchIndexError)] == [None]
        assert len(SearchIndex.load(path)) in (2, 3)
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, range(20)))
