"""A dataset is a stranger's: what its card and rows name outside its folder is refused, and never opened."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset, Features, Image, List, Value, Video
from PIL import Image as Pictures

from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.confinement import ConfinementError, check_media
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.reading import check_hub_name, load_pinned_dataset, read_split, read_splits
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.clips import clips_of_dataset
from modeling_mmt.extraction.packaged_encoders import resolve_encoder


@pytest.fixture
def server():
    """A server on this machine that nothing outside it should be told to ask; the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the library's name
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", asked
        serving.shutdown()


@pytest.fixture
def corpus(tmp_path):
    """A dataset's folder, beside a file that is none of its."""
    (tmp_path / "secret.csv").write_text("video_id,name_en\nsecret,my diary\n")
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "test.csv").write_text("video_id,name_en\na,dog\n")
    return folder


def write_card(folder, configs, name="README.md"):
    content = json.dumps({"configs": configs})  # which is YAML too
    (folder / name).write_text(f"---\n{content}\n---\n# clips\n" if name == "README.md" else content)


def files_of(corpus, kind):
    secret = corpus.parent / "secret.csv"
    return {
        "absolute": str(secret),
        "parent": "../secret.csv",
        "hidden parent": "data/../../secret.csv",
        "address of a file": secret.as_uri(),
        "chained": f"simplecache::{secret.as_uri()}",
        "backslashes": "..\\secret.csv",
        "drive": "C:\\secret.csv",
    }[kind]


KINDS = ("absolute", "parent", "hidden parent", "address of a file", "chained", "backslashes", "drive")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_whose_data_files_lead_out_of_the_folder_is_refused_by_name(corpus, kind, card):
    pattern = files_of(corpus, kind)
    for files in (pattern, ["data/*.csv", pattern], [{"split": "test", "path": ["data/*.csv", pattern]}]):
        write_card(corpus, [{"config_name": "mine", "data_files": files}], card)
        with pytest.raises(ConfinementError) as refused:
            read_split(str(corpus), None, "test")
        for words in (str(corpus / card), "'mine'", "data_files", repr(pattern)):
            assert words in str(refused.value)


def test_a_second_config_and_a_data_dir_are_looked_at_too(corpus):
    write_card(corpus, [{"config_name": "a", "data_files": "data/*.csv"}, {"config_name": "b", "data_dir": "../"}])
    with pytest.raises(ConfinementError, match="config 'b' has data_dir '../'"):
        read_splits(str(corpus), None)


def test_an_address_is_refused_before_anything_is_asked_of_it(corpus, server):
    address, asked = server
    write_card(corpus, [{"config_name": "a", "data_files": f"{address}/admin.csv"}])
    with pytest.raises(ConfinementError, match="127.0.0.1"):
        read_split(str(corpus), None, "test")
    assert asked == []


@pytest.mark.parametrize("files", ["data/*.csv", "data/test.csv", [{"split": "test", "path": ["./data/t*.csv"]}]])
def test_files_inside_the_folder_are_read(corpus, files):
    write_card(corpus, [{"config_name": "default", "data_files": files}])
    (rows,) = read_splits(str(corpus), None).values()
    assert rows["video_id"][:] == ["a"]


def test_a_pinned_dataset_is_held_to_the_same(corpus, monkeypatch):
    monkeypatch.setattr("modeling_mmt.data.reading.pinned_snapshot", lambda *_, **__: corpus)
    write_card(corpus, [{"config_name": "a", "data_files": "../secret.csv"}])
    with pytest.raises(ConfinementError, match="secret"):
        load_pinned_dataset("org/clips", split="train")


# -- pictures and videos ----------------------------------------------------------------------------------------------


def media(kind, paths, nested=False):
    features = Features({"video_id": Value("string"), "media": List(kind) if nested else kind})
    values = [[path] for path in paths] if nested else list(paths)
    return Dataset.from_dict({"video_id": [f"v{i}" for i in range(len(paths))], "media": values}, features)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", [Image(), Video()])
@pytest.mark.parametrize(
    "where", ["secret.png", "/etc/passwd", "../x.png", "http://127.0.0.1:1/x.png", "corpus2/x.png"]
)
def test_a_row_whose_picture_or_video_lies_elsewhere_is_refused_with_its_id(tmp_path, kind, nested, where):
    folder = tmp_path / "corpus"
    path = where if "/" in where and not where.startswith("corpus2") else str(tmp_path / where)
    rows = media(kind, [str(folder / "a.png"), path], nested)
    with pytest.raises(ConfinementError) as refused:
        check_media(rows, folder, "org/clips")
    for words in ("org/clips", "column media", "'v1'", repr(path)):
        assert words in str(refused.value)


def test_a_report_s_pictures_are_refused_where_they_are_read(tmp_path):
    Pictures.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    rows = media(Image(), [str(tmp_path / "secret.png")])
    (tmp_path / "corpus").mkdir()
    rows.to_parquet(str(tmp_path / "corpus" / "test.parquet"))  # the path alone
    assert Dataset.from_parquet(str(tmp_path / "corpus" / "test.parquet"))[0]["media"].size == (4, 4)
    with pytest.raises(ConfinementError, match="'v0' names"):
        read_split(str(tmp_path / "corpus"), None, "test")
    with pytest.raises(ConfinementError, match="'v0' names"):
        clips_of_dataset(str(tmp_path / "corpus"), None)


def test_media_in_the_rows_and_in_the_folder_are_read(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "test" / "a").mkdir(parents=True)
    Pictures.new("RGB", (4, 4)).save(folder / "test" / "a" / "x.png")
    (folder / "test" / "metadata.jsonl").write_text('{"file_name": "a/x.png", "video_id": "x"}\n')
    assert read_split(str(folder), None, "test")[0]["image"].size == (4, 4)
    inside = {
        "bytes": (folder / "test" / "a" / "x.png").read_bytes(),
        "path": "/elsewhere/x.png",
    }  # where it came from
    (tmp_path / "whole").mkdir()
    media(Image(), [inside]).to_parquet(str(tmp_path / "whole" / "test.parquet"))
    assert read_split(str(tmp_path / "whole"), None, "test")[0]["media"].size == (4, 4)


def test_paths_in_a_column_of_texts_may_lead_out_of_a_folder_of_one_s_own_and_not_of_a_hub_dataset(tmp_path):
    rows = Dataset.from_dict({"video_id": ["a", "b"], "clip": ["/videos/a.mp4", "../b.mp4"]})
    assert ClipColumn(rows, "clip", tmp_path)["a"] == "/videos/a.mp4"
    for video_id in ("a", "b"):
        with pytest.raises(ConfinementError, match=f"clip of '{video_id}' names .*{video_id}.mp4'"):
            ClipColumn(rows, "clip", "org/clips")[video_id]


# -- names that read as paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["./clips", "../clips", "/data/clips", "~/clips", "data/my/clips", "here/clips", "a\\b"]
)
def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("modeling_mmt.data.reading.load_pinned_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(InputError) as refused:
        read_split(name, None, "test")
    assert name in str(refused.value) and "correct the path" in str(refused.value)
    with pytest.raises(InputError, match="correct the path"):
        resolve_encoder(name)
    with pytest.raises((InputError, FileNotFoundError), match="correct the path|no checkpoint in"):
        open_checkpoint(name)


def test_a_hub_name_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_hub_name("org/clips") == "org/clips"
