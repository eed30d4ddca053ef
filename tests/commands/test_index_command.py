"""`mmt index` as a shell calls it."""

import json
import shutil

import pytest
from command_line import call
from tiny_media import InThisProcess, save_pixel_checkpoint, write_film, write_picture

from modeling_mmt.search import media_update
from modeling_mmt.search.index import SearchIndex


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_pixel_checkpoint(tmp_path_factory.mktemp("index_command") / "model")


@pytest.fixture
def media(tmp_path, monkeypatch):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    write_film(tmp_path / "media" / "a.mp4", 9)
    write_picture(tmp_path / "media" / "b.png", 7)
    (tmp_path / "media" / "bad\x1b[2J.mp4").write_bytes(b"nothing")
    return tmp_path / "media"


def test_a_folder_is_indexed_told_about_and_followed(checkpoint, media, tmp_path, capsys):
    index = tmp_path / "index"
    command = ["index", media, "--output_dir", index]
    code, out, _ = call(capsys, *command, "--model", checkpoint, "--window", "4", "--json")
    told = json.loads(out)
    assert code == 0 and (told["files"], told["rows"]) == (2, 5)
    assert (told["done"]["added"], told["done"]["failed"]) == (2, 1)
    assert told["failed"] == {
        "bad\x1b[2J.mp4": "bad\x1b[2J.mp4 is not a supported video or picture: it begins with "
        "b'nothing'. Convert it to mp4 or webm"
    }
    assert SearchIndex.load(index).clips["video_id"][:] == [
        "a.mp4#0.0-4.0",
        "a.mp4#2.0-6.0",
        "a.mp4#4.0-8.0",
        "a.mp4#6.0-9.0",
        "b.png",
    ]
    write_picture(media / "c.png", 9)
    (media / "b.png").unlink()
    code, out, _ = call(capsys, *command, "--status")
    assert code == 0 and "to do: 1 new, 0 changed, 1 gone" in out and "\x1b" not in out
    code, out, _ = call(capsys, *command)
    assert code == 0 and out.startswith("1 file added, 0 replaced, 1 dropped, 0 recognised by content")
    code, out, _ = call(capsys, *command, "--status", "--json")
    assert json.loads(out)["new"] == [] and json.loads(out)["model"] == str(checkpoint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the checkpoint to build it with: --model"),
        (("--status",), "is not a search index"),
        (("--model", "nothing/here/at/all"), "no checkpoint in nothing/here/at/all"),
        (("--model", "MODEL", "--stride", "9"), "window is 8 and stride 9; give 0.1 <= stride <= window"),
        (("--model", "MODEL", "--frames_per_second", "0"), "frames_per_second is 0.0; give more than 0"),
        (("--model", "MODEL", "--image_size", "64"), "has its vision encoders inside"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(checkpoint, media, tmp_path, capsys, words, message):
    words = [str(checkpoint) if word == "MODEL" else word for word in words]
    code, out, err = call(capsys, "index", media, "--output_dir", tmp_path / "index", *words)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_the_index_of_another_folder_is_not_changed(checkpoint, media, tmp_path, capsys):
    index = tmp_path / "index"
    assert call(capsys, "index", media, "--model", checkpoint, "--output_dir", index)[0] == 0
    other = shutil.copytree(media, tmp_path / "other")
    code, _, err = call(capsys, "index", other, "--output_dir", index)
    assert code == 2 and f"{index} indexes the media in {media}; give that folder" in err
