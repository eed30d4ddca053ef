"""`mmt index` as a shell calls it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import call
from tiny_media import InThisProcess, save_pixel_checkpoint, write_film, write_picture

from modeling_mmt.search import media_update
from modeling_mmt.search.index import SearchIndex

RUN = """
import sys, mmt
assert mmt.main(sys.argv[1:]) == 0
print(sorted({"torch", "transformers", "datasets"} & {*sys.modules}))
"""


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
    code, out, _ = call(capsys, *command, "--model", checkpoint, "--window", "4", "--stride", "2", "--json")
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


def test_what_did_not_change_is_seen_without_torch_and_what_did_is_not_missed(checkpoint, media, tmp_path, capsys):
    """Importing torch and transformers takes longer than all else."""
    index, model = tmp_path / "index", shutil.copytree(checkpoint, tmp_path / "model")

    def imported(*words):
        command = [sys.executable, "-c", RUN, "index", str(media), "--output_dir", str(index), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    command = ["index", media, "--output_dir", index]
    assert call(capsys, *command, "--model", model, "--num_workers", 1)[1].startswith("2 files added")
    assert imported()[-1] == imported("--model", str(model))[-1] == imported("--status")[-1] == "[]"
    os.utime(model / "model.safetensors", ns=(5, 5))  # of the same content: read once more
    touched, again = imported(), imported()
    assert touched[0] == again[0] == "0 files added, 0 replaced, 0 dropped, 0 recognised by content"
    assert "torch" in touched[-1] and again[-1] == "[]"
    write_picture(media / "b.png", 8)
    assert imported("--status")[-1] == "[]" and call(capsys, *command)[1].startswith("0 files added, 1 replaced")
    save_pixel_checkpoint(model, seed=1)
    assert call(capsys, *command)[0] == 2


def test_a_package_that_is_postponed_is_whole_once_a_name_of_it_is_asked_for():
    code = """
import sys, mmt
mmt.postpone("modeling_mmt")
from modeling_mmt.data import folders
assert "torch" not in sys.modules
from modeling_mmt import MMTModel
import modeling_mmt
from transformers import AutoConfig, AutoModel
assert modeling_mmt.data.folders is folders and modeling_mmt.__version__
assert AutoModel._model_mapping[type(AutoConfig.for_model("mmt"))] is MMTModel
try:
    modeling_mmt.nothing
except AttributeError:
    print("whole")
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "whole\n"


def test_an_engine_is_kept_beside_an_index_and_follows_it(checkpoint, media, tmp_path, capsys):
    pytest.importorskip("lancedb", reason="an optional engine: extra `lancedb`")
    index = tmp_path / "index"
    command = ["index", media, "--output_dir", index, "--engine", "lancedb"]
    assert call(capsys, *command, "--model", checkpoint)[0] == 0
    write_picture(media / "c.png", 9)
    assert call(capsys, *command)[0] == 0
    written = {file: file.stat().st_mtime_ns for file in (index / "engines" / "lancedb").rglob("*.lance")}
    code, out, _ = call(capsys, "search", index, "red dog", "--engine", "lancedb", "--windows", "--json")
    assert code == 0 and len(json.loads(out)[0]["hits"]) == len(SearchIndex.load(index))
    assert written == {file: file.stat().st_mtime_ns for file in written}  # there was nothing left to change
    code, _, err = call(capsys, "index", media, "--output_dir", index, "--engine", "nothing")
    assert code == 2 and "engine is 'nothing'; give exact" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the checkpoint to build it with: --model"),
        (("--status",), "is not a search index"),
        (("--model", "nothing/here/at/all"), "no checkpoint in nothing/here/at/all"),
        (("--model", "MODEL", "--stride", "9"), "window is 4 and stride 9; give 0.1 <= stride <= window"),
        (("--model", "MODEL", "--stride", "nan"), "stride is nan; give more than 0"),
        (("--model", "MODEL", "--stride", "1e-9"), "window is 4 and stride 1e-09; give 0.1 <= stride <= window"),
        (("--model", "MODEL", "--window", "0"), "window is 0.0; give more than 0"),
        (("--model", "MODEL", "--window", "-8"), "window is -8.0; give more than 0"),
        (("--model", "MODEL", "--window", "inf"), "window is inf and stride 4; give 0.1 <= stride <= window"),
        (("--model", "MODEL", "--frames_per_second", "0"), "frames_per_second is 0.0; give more than 0"),
        (("--model", "MODEL", "--frames_per_second", "1e6"), "frames_per_second is 1e+06; give at most 240"),
        (("--model", "MODEL", "--num_workers", "100000"), "num_workers is 100000; give at most 1024"),
        (("--model", "caf\udce9"), "'caf\\udce9' has bytes that are not UTF-8; rename that file or folder"),
        (("--model", "MODEL", "--image_size", "64"), "has its vision encoders inside"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(checkpoint, media, tmp_path, capsys, words, message):
    words = [str(checkpoint) if word == "MODEL" else word for word in words]
    code, out, err = call(capsys, "index", media, "--output_dir", tmp_path / "index", *words)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_an_address_where_nothing_answers_is_one_line_before_anything_is_opened(media, tmp_path, capsys):
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    words = ["--model", "nothing/here/at/all", "--cluster", "127.0.0.1:1"]
    code, out, err = call(capsys, "index", media, "--output_dir", tmp_path / "index", *words)
    assert (code, out) == (2, "") and err.startswith("mmt: --cluster 127.0.0.1:1 cannot be reached (")
    assert err.count("\n") == 1 and not list((tmp_path / "index").glob("*.json"))


def test_the_index_of_another_folder_is_not_changed(checkpoint, media, tmp_path, capsys):
    index = tmp_path / "index"
    assert call(capsys, "index", media, "--model", checkpoint, "--output_dir", index)[0] == 0
    other = shutil.copytree(media, tmp_path / "other")
    code, _, err = call(capsys, "index", other, "--output_dir", index)
    assert code == 2 and f"{index} indexes the media in {media}; give that folder" in err
