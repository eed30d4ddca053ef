"""Folders that are copied to an object store: fsspec's in memory, and a Hub of the tests' own."""

import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
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


class Buckets(MemoryFileSystem):
    """Takes files into a bucket that exists alone; a folder is what files' names begin with, or must be made first."""

    protocol = ("buckets",)
    buckets = ("bucket",)
    made: list[str] = []
    has_folders = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("buckets://"))

    def exists(self, path, **kwargs):
        return path.strip("/") in self.buckets or super().exists(path, **kwargs)

    def makedirs(self, path, exist_ok=False):
        self.made.append(path)

    def pipe_file(self, path, value, **kwargs):
        folder = path.rpartition("/")[0]
        if path.strip("/").partition("/")[0] not in self.buckets or self.has_folders and folder not in self.made:
            raise FileNotFoundError(path)
        self.store[path] = MemoryFile(self, path, value)


def test_a_bucket_that_does_not_exist_is_not_made_and_is_refused_before_the_work(memory, tmp_path, monkeypatch):
    fsspec.register_implementation("buckets", Buckets, clobber=True)
    monkeypatch.setattr(Buckets, "made", [])
    with pytest.raises(InputError, match="buckets://bukket/mine: bukket does not exist or cannot be read; make it"):  # noqa: SIM117
        with built_for("buckets://bukket/mine", LAST):
            pytest.fail("the work began")
    with built_for("buckets://bucket/mine", LAST) as folder:
        assert Buckets.made == [] and not list(tmp_path.iterdir())
        build(folder, LAST)
    monkeypatch.setattr(Buckets, "has_folders", True)
    with built_for("buckets://bucket/other", LAST) as folder:
        assert Buckets.made[-1] == "/bucket/other"
        build(folder, LAST)
    assert memory.find("/bucket") == [f"/bucket/{name}/{LAST}" for name in ("mine", "other")]


@pytest.mark.parametrize("url", ["memory://", "memory:///", "memory://bucket", "memory://bucket/../up"])
def test_a_url_that_names_no_folder_is_refused_before_the_work(url, memory):
    with pytest.raises(InputError, match="give a bucket and a folder in it"), built_for(url, LAST):
        pytest.fail("the work began")


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
