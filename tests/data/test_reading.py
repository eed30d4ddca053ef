"""A snapshot of the Hub's cache is checked once, again where a file has changed, and never believed without."""

import builtins
import json
import os
from hashlib import sha1, sha256

import datasets
import pytest

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.reading import SnapshotError, load_split, read_split, read_splits, verify_snapshot


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


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_ids_that_a_file_format_makes_numbers_of_are_refused_with_column_and_type(tmp_path, own_cache):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"video_id": 1, "caption_en": "a dog"}\n')
    for read in (read_split, lambda *arguments: load_split(*arguments, ["caption_en"])):
        with pytest.raises(
            InputError, match=r"corpus \(train\): column video_id is int64, and ids are texts"
        ) as error:
            read(str(tmp_path / "corpus"), None, "train")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="column video_id is int64"):
        read_splits(str(tmp_path / "corpus"), None)


WORDS = ["null", "None", "NA", "nan", "n/a", "NULL", "#N/A", "-nan", "1.0", "007", "True", "1e5", " a dog "]


def test_ids_and_captions_of_csv_files_are_the_texts_that_stand_there(tmp_path, own_cache):
    (tmp_path / "corpus").mkdir()
    lines = [f"{number:03},{word},{word},{number},{number % 2 == 0}," for number, word in enumerate(WORDS)]
    head = "video_id,caption_en,caption_pt-BR,seconds,is_flag,start"
    (tmp_path / "corpus" / "train.csv").write_text("\n".join([head, *lines]) + "\n")
    rows = read_split(str(tmp_path / "corpus"), None, "train")
    assert rows["video_id"][:] == [f"{number:03}" for number in range(len(WORDS))]
    assert rows["caption_en"][:] == rows["caption_pt-BR"][:] == WORDS
    assert rows["seconds"][:3] == [0, 1, 2] and rows["is_flag"][:2] == [True, False]  # numbers stay numbers
    assert rows["start"][:2] == [None, None]


def test_numbers_alone_are_captions_too(tmp_path, own_cache):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "test.csv").write_text("video_id,caption_en\n01,5\n2,\n")
    rows = read_split(str(tmp_path / "corpus"), None, "test")
    assert rows["video_id"][:] == ["01", "2"] and rows["caption_en"][:] == ["5", None]


@pytest.mark.parametrize("folder", ["clips [2024]", "what?", "a*b", "[a-z]"])
@pytest.mark.parametrize("card", [False, True])
def test_a_datasets_folder_is_no_pattern(folder, card, tmp_path, own_cache):
    for name, caption in ((folder, "own"), ("clips 2", "another's"), ("whatx", "another's"), ("axxb", "another's")):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.csv").write_text(f"video_id,caption_en\n1,{caption} {split}\n")
    if card:
        files = "data_files: [{split: train, path: 'tr*.csv'}]"
        configs = ["{config_name: other, data_files: 'x.csv'}", f"{{config_name: default, {files}}}"]
        (tmp_path / folder / "README.md").write_text("\n- ".join(["---\nconfigs:", *configs]) + "\n---\n")
    splits = read_splits(str(tmp_path / folder), None)
    found = {split: rows["caption_en"][:] for split, rows in splits.items()}
    expected = {"train": ["own train"], "test": ["own test"]}
    assert found == ({"train": ["own train"]} if card else expected)
    assert read_split(str(tmp_path / folder), None, "train")["caption_en"][:] == ["own train"]


def test_a_card_with_a_data_dir_in_a_folder_that_reads_as_a_pattern_is_refused_by_name(tmp_path, own_cache):
    (tmp_path / "[x]" / "data").mkdir(parents=True)
    (tmp_path / "[x]" / "data" / "train.csv").write_text("video_id\na\n")
    (tmp_path / "[x]" / "README.md").write_text("---\nconfigs:\n- {config_name: default, data_dir: data}\n---\n")
    with pytest.raises(InputError, match=r"\[x\]: `datasets` takes a folder's .* rename it"):
        read_splits(str(tmp_path / "[x]"), None)


def test_a_corpus_built_again_and_another_of_its_name_are_read_as_they_are_now(tmp_path, monkeypatch):
    """The cache of `datasets` knows a folder with a card by its name: it would give the rows of the first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n---\n"
    )

    def write(folder, caption):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(card)
        rows = datasets.Dataset.from_dict({"video_id": ["clip"], "caption_en": [caption]})
        rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        return str(folder)

    first, second = write(tmp_path / "a" / "mine", "a cat"), write(tmp_path / "b" / "mine", "a dog")
    assert read_split(first, None, "train")["caption_en"][:] == ["a cat"]
    assert read_split(second, None, "train")["caption_en"][:] == ["a dog"]
    write(tmp_path / "a" / "mine", "a bird")
    assert read_split(first, None, "train")["caption_en"][:] == ["a bird"]
