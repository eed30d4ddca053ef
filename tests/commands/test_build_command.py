"""`mmt build` and `mmt convert`: what they list, build and refuse, each in one line."""

import json
import sys

import numpy as np
import official_files
import pytest
from command_line import call

from datasets_scripts import emoji9
from modeling_mmt.commands.build import builders
from modeling_mmt.data.feature_store import FeatureStore

CONVERT = ["--extractor", "x", "--revision", "1"]


def test_without_a_name_the_builders_are_listed_each_with_a_line(capsys):
    for words in (["build"], ["build", "--help"]):
        code, out, _ = call(capsys, *words)
        assert code == 0
        for name, about in builders():
            assert f"  {name} " in out and about in out
    assert {"own_clips", "emoji9", "translate"} <= dict(builders()).keys()
    assert not {"corpus", "convert_features"} & dict(builders()).keys()


@pytest.mark.parametrize("name", dict(builders()))
def test_every_builder_has_a_line_and_help(name, capsys):
    assert dict(builders())[name].endswith(".")
    code, out, _ = call(capsys, "build", name, "--help")
    assert code == 0 and f"usage: mmt build {name}" in out and dict(builders())[name] in out


def test_a_corpus_is_built_from_any_folder(tmp_path, monkeypatch, capsys):
    official_files.own(tmp_path / "source")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = call(capsys, "build", "own_clips", "--data_dir", "../source", "--output_dir", "mine")
    assert code == 0 and "train: 5 rows" in out
    assert json.loads((tmp_path / "elsewhere/mine/build.json").read_text())["builder"] == "own_clips"
    assert "Made by\n`mmt build own_clips --data_dir" in (tmp_path / "elsewhere/mine/README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "elsewhere/mine").iterdir()) == ["README.md", "build.json", "data"]


def own(folder, text):
    folder.mkdir()
    (folder / "captions.csv").write_bytes(text)
    return ["own_clips", "--data_dir", folder, "--output_dir", folder.parent / "out"]


HEADER = b"video_id,language,caption,split\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda folder: ["msrvt", "--data_dir", "x"], "no builder is called 'msrvt'"),
        (lambda folder: ["--data_dir", "x", "own_clips"], "the name comes first"),
        (lambda folder: ["corpus"], "no builder is called 'corpus'"),
        (lambda folder: ["../hub"], "no builder is called '../hub'"),
        (lambda folder: ["own_clips", "--data_dir", folder, "--output_dir", folder / "out"], "does not exist"),
        (lambda folder: own(folder / "a", b"a;b\n1;2\n"), "no column 'video_id'"),
        (lambda folder: own(folder / "a", HEADER + "x,ru,пёс".encode()[:-1] + b",train\n"), "is not UTF-8"),
        (lambda folder: own(folder / "a", HEADER + b"x,en,\x81,train\n"), "is not cp1252"),
        (lambda folder: own(folder / "a", HEADER + b"x,English,dog,train\n"), "language is 'English'"),
        (lambda folder: own(folder / "a", HEADER), "no clip"),
        (lambda folder: ["translate", "--dataset", folder, "--output_dir", folder / "out", "--model", "m",
                         "--languages", "de", "--codes", "en"], "--codes has 'en'"),
        (lambda folder: ["language_report", "--dataset", folder, "--tokenizer", "m"], "{folder}"),
        (lambda folder: ["emoji_motion", "--dataset", folder, "--output_dir", folder / "out"], "{folder}"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_one_line_and_exit_code_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    code, _, err = call(capsys, "build", *words(tmp_path))
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("mmt: ") and message.replace("{folder}", str(tmp_path)) in line, err


def test_a_build_without_a_clip_leaves_the_good_one_of_before(tmp_path, capsys):
    official_files.own(tmp_path / "source")
    build = ["build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
    assert call(capsys, *build)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/data").iterdir()}
    (tmp_path / "source/captions.csv").write_bytes(HEADER + b"x,en, ,train\n")
    assert call(capsys, *build)[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/data").iterdir()} == before


def test_two_builds_into_one_folder_do_not_meet(tmp_path, capsys):
    from filelock import FileLock

    official_files.own(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "build.lock"):
        build = ["build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", tmp_path / "out"]
        code, _, err = call(capsys, *build)
    assert code == 2 and "another process is building this dataset; wait for it" in err


def test_a_package_that_a_builder_needs_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ijson", None)
    monkeypatch.delitem(sys.modules, "datasets_scripts.multi_howto100m", raising=False)
    code, _, err = call(capsys, "build", "multi_howto100m", "--data_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert code == 2 and "pip install 'modeling_mmt[data,video]'" in err


def test_converted_features_are_a_store_and_a_bad_array_is_one_line(tmp_path, capsys):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.ones((2, 4)))
    code, out, _ = call(capsys, "convert", tmp_path / "npy", "--output_dir", tmp_path / "store", *CONVERT)
    assert code == 0 and "1 clip of width 4; 0 left out" in out and list(FeatureStore(tmp_path / "store")) == ["a"]
    for name, data, message in (
        ("b.npy", b"\x93NUMPY\x01\x00cut", "not a complete .npy file"),
        ("c.pth", b"", "a pickle"),
    ):
        (tmp_path / "npy" / name).write_bytes(data)
        code, _, err = call(capsys, "convert", tmp_path / "npy", "--output_dir", tmp_path / name, *CONVERT)
        assert code == 2 and err.strip().splitlines()[-1].startswith("mmt: ") and message in err
    code, _, err = call(capsys, "convert", tmp_path / "npy", "--output_dir", tmp_path / "store", *CONVERT)
    assert code == 2 and "exists; choose another folder" in err


def test_help_names_the_files_of_a_corpus(capsys):
    _, out, _ = call(capsys, "build", "emoji9", "--help")
    assert f"Files in --data_dir:\n{emoji9.ABOUT.layout}".rstrip() in out
