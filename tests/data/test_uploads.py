"""Folders that are copied to an object store: fsspec's in memory, and a Hub of the tests' own."""

import sys

import fsspec
import pytest
from huggingface_hub import HfApi

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.uploads import built_for

LAST = "manifest.json"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An object store that is empty; what is built here is built in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def build(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_every_file_is_copied_the_manifest_last_and_nothing_stays_here(memory, tmp_path, monkeypatch, capsys):
    copied = []
    put = type(memory).put_file
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, here, there, **kw: copied.append(there) or put(self, here, there, **kw)
    )
    with built_for("memory://bucket/mine", LAST) as folder:
        build(folder, LAST, "zebra.parquet", "inner/a.parquet")
    assert {name.removeprefix("/bucket/mine/") for name in copied[:-1]} == {"zebra.parquet", "inner/a.parquet"}
    assert copied[-1].endswith(f"/mine/{LAST}")
    assert {name: memory.cat(name).decode() for name in memory.find("/bucket/mine")} == {
        f"/bucket/mine/{name}": name for name in (LAST, "zebra.parquet", "inner/a.parquet")
    }
    assert not list(tmp_path.iterdir()) and "3 files copied" in capsys.readouterr().out


def test_a_block_that_fails_copies_nothing_and_the_next_one_goes_on_in_the_same_folder(memory):
    with pytest.raises(KeyboardInterrupt), built_for("memory://bucket/mine", LAST) as first:
        build(first, "a.parquet")
        raise KeyboardInterrupt
    assert memory.find("/bucket") == []
    with pytest.raises(InputError, match="is not complete"), built_for("memory://bucket/mine", LAST):
        pass
    assert memory.find("/bucket") == []
    with built_for("memory://bucket/mine", LAST) as again:
        assert again == first and (again / "a.parquet").is_file()
        build(again, LAST)
    assert len(memory.find("/bucket/mine")) == 2
    with built_for("memory://other/mine", LAST) as other:
        assert other != first
        build(other, LAST)


def test_a_copy_that_breaks_off_has_no_manifest_and_begins_anew(memory, monkeypatch):
    put = type(memory).put_file

    def breaks(self, here, there, **options):
        if there.endswith("b.parquet"):
            raise OSError("the network is gone")
        put(self, here, there, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", breaks)
        with pytest.raises(InputError, match="memory://bucket/mine: ./mine.* complete, .* the network is gone"):  # noqa: SIM117
            with built_for("memory://bucket/mine", LAST) as folder:
                build(folder, "a.parquet", "b.parquet", LAST)
    assert [name.rpartition("/")[2] for name in memory.find("/bucket/mine")] == ["a.parquet"]
    with built_for("memory://bucket/mine", LAST):
        pass  # all is here already
    assert len(memory.find("/bucket/mine")) == 3


def test_a_whole_one_that_is_there_is_not_replaced(memory):
    memory.pipe(f"/bucket/mine/{LAST}", b"{}")
    with pytest.raises(FileExistsError, match="memory://bucket/mine already has a manifest.json"):  # noqa: SIM117
        with built_for("memory://bucket/mine", LAST):
            raise AssertionError("nothing is to be computed")


def test_a_path_and_a_file_url_are_the_folder_itself(tmp_path):
    with built_for(str(tmp_path / "a b"), LAST) as folder:
        assert folder == tmp_path / "a b"
    with built_for(f"file://{tmp_path}/c", LAST) as folder:
        assert folder == tmp_path / "c"
    assert not list(tmp_path.iterdir())


def test_a_password_is_not_printed(memory, capsys):
    with built_for("memory://bob:secret@bucket/mine", LAST) as folder:
        build(folder, LAST)
    assert "secret" not in (shown := capsys.readouterr().out) and shown.count("memory://bob:***@bucket/mine") == 2


@pytest.mark.parametrize(("url", "words"), [("nowhere://x/y", "nowhere"), ("s3://bucket/x", "s3fs")])
def test_a_store_that_is_unknown_or_lacks_its_package_is_named(url, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=words), built_for(url, LAST):
        raise AssertionError("nothing is to be computed")


def test_a_repository_of_the_hub_is_such_a_store(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/mine", repo_type="dataset")
    with built_for("hf://datasets/org/mine/store", LAST) as folder:
        build(folder, "a.parquet", LAST)
    assert {"store/a.parquet", f"store/{LAST}"} < {*api.list_repo_files("org/mine", repo_type="dataset")}
