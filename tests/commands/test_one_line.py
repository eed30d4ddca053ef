"""Where a traceback was once: each mistake is one line on the standard error stream, and exit code 2."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import build_checkpoint, call
from datasets import load_dataset
from tiny_corpus import write_recipe, write_split

import mmt
from modeling_mmt.commands.errors import BAD_INPUT
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import check_machine

ROOT = Path(__file__).resolve().parents[2]


def recipe(corpus, folder, changes=None):
    return ["train", write_recipe(corpus, folder, {"pretraining": None} | (changes or {}))]


def rewritten(corpus, folder, change):
    argv = recipe(corpus, folder)
    path = Path(argv[1])
    path.write_bytes(change(path.read_bytes()))
    return argv


def null(name):
    return lambda corpus, folder: recipe(corpus, folder, {name: None})


def changed_json(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def store(corpus, folder, change):
    for name in ("colours", "animals"):
        shutil.copytree(corpus / name, folder / name)
    changed_json(folder / "colours" / "manifest.json", change)
    return recipe(corpus, folder, {"data.features": [str(folder / "colours"), str(folder / "animals")]})


def index(corpus, folder, change):
    checkpoint = build_checkpoint(corpus, folder / "checkpoint")
    assert mmt.main(["search", str(checkpoint), "dog", "--index", str(folder / "index")]) == 0
    changed_json(folder / "index" / "index.json", change)
    return ["search", checkpoint, "dog", "--index", folder / "index"]


def pickle_only(corpus, folder):
    checkpoint = build_checkpoint(corpus, folder / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, checkpoint / "pytorch_model.bin")
    return ["evaluate", checkpoint]


def converting(folder, name="a.npz"):
    return ["convert", folder / name, "--output_dir", folder / "store", "--extractor", "x", "--revision", "1"]


def convert(name, content):
    def arguments(corpus, folder):
        (folder / name).write_bytes(content)
        return converting(folder, name)

    return arguments


def build(name, **files):
    def arguments(corpus, folder):
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_bytes(content)
        return ["build", name, "--data_dir", folder, "--output_dir", folder / "out"]

    return arguments


MISTAKES = {
    "a seed that is null": (null("seed"), "seed"),
    "a batch size that is null": (null("finetuning.train_batch_size"), "train_batch_size"),
    "a learning rate that is null": (null("finetuning.learning_rate"), "learning_rate"),
    "a batch of one": (lambda c, f: recipe(c, f, {"finetuning.train_batch_size": 1}), "train_batch_size"),
    "a recipe in Latin-1": (lambda c, f: rewritten(c, f, lambda text: text + b"# caf\xe9\n"), "UTF-8"),
    "a key twice": (lambda c, f: rewritten(c, f, lambda text: text + b"seed: 1\nseed: 2\n"), "seed"),
    "a recipe that is a list": (lambda c, f: rewritten(c, f, lambda text: b"- 1\n"), "recipe"),
    "captions longer than the encoder's positions": (
        lambda c, f: recipe(c, f, {"model.max_text_length": 4096}),
        "max_text_length",
    ),
    "a manifest that is a list": (lambda c, f: store(c, f, lambda content: [content]), "manifest.json"),
    "a manifest whose shards are a number": (lambda c, f: store(c, f, lambda m: m | {"shards": 7}), "manifest.json"),
    "a manifest whose shards are texts": (lambda c, f: store(c, f, lambda m: m | {"shards": ["a"]}), "manifest.json"),
    "a manifest whose width is a text": (lambda c, f: store(c, f, lambda m: m | {"dim": "6"}), "manifest.json"),
    "a manifest whose dtype is a list": (lambda c, f: store(c, f, lambda m: m | {"dtype": []}), "manifest.json"),
    "an index that is a list": (lambda c, f: index(c, f, lambda content: [content]), "index.json"),
    "weights as a pickle": (pickle_only, "safetensors"),
    "features as a pickle": (convert("a.pkl", b"\x80\x04."), "pickle"),
    "features in no format": (convert("a.txt", b"1 2 3"), "unknown"),
    "a torn archive of features": (convert("a.npz", b"PK\x03\x04torn"), "npz"),
    "a torn HDF5 file": (convert("a.h5", b"\x89HDF\r\n\x1a\ntorn"), "HDF5"),
    "a builder without its files": (build("own_clips"), "captions.csv"),
    "a builder whose table has no caption": (
        build("own_clips", captions__csv=b"video_id,split\na,train\n"),
        "caption",
    ),
    "a builder whose JSON is torn": (build("vatex", vatex_training_v1_0__json=b"[{"), "vatex"),
    "a builder that does not exist": (build("nothing"), "no builder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(corpus, tmp_path, capsys, name):
    make, word = MISTAKES[name]
    argv = make(corpus, tmp_path)
    capsys.readouterr()
    code, _, err = call(capsys, *argv)
    last = err.splitlines()[-1]
    assert code == BAD_INPUT and "Traceback" not in err, err
    assert word in last, last


def test_a_dry_run_finds_captions_beyond_the_encoders_positions(corpus, tmp_path, capsys):
    code, out, _ = call(capsys, *recipe(corpus, tmp_path, {"model.max_text_length": 4096}), "--dry_run")
    assert code == 1 and "max_text_length is 4096" in out


def test_a_shard_that_is_removed_while_training_is_one_line(corpus, tmp_path, capsys, monkeypatch):
    for name in ("colours", "animals"):
        shutil.copytree(corpus / name, tmp_path / name)
    features = [str(tmp_path / "colours"), str(tmp_path / "animals")]
    argv = recipe(corpus, tmp_path, {"data.features": features, "model.standardize_inputs": False})
    prepare = RunData.samplers

    def removed(*arguments):
        next((tmp_path / "colours").glob("features-*")).unlink(missing_ok=True)
        return prepare(*arguments)

    monkeypatch.setattr(RunData, "samplers", removed)
    code, _, err = call(capsys, *argv)
    assert code == BAD_INPUT and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "mmt: " in line]
    assert "features-00000.parquet does not exist" in line


def test_a_full_disk_is_one_line_and_leaves_no_half_file(corpus, tmp_path, capsys):
    """The kernel's own limit on a file's size stands in for the disk's."""
    clips = [(f"v{n}", np.random.default_rng(n).standard_normal((50, 64)).astype(np.float32)) for n in range(40)]
    np.savez(tmp_path / "a.npz", **dict(clips))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
        argv = [
            "convert",
            tmp_path / "a.npz",
            "--output_dir",
            tmp_path / "store",
            "--extractor",
            "x",
            "--revision",
            "1",
        ]
        code, _, err = call(capsys, *argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == BAD_INPUT and "Traceback" not in err, err
    assert not (tmp_path / "store").exists()
    assert not list(tmp_path.glob("**/features-*"))


def test_rows_that_lose_their_captions_are_named(corpus, tmp_path, capsys):
    for split in ("train", "validation", "test"):
        rows = load_dataset(str(corpus / "corpus"), split=split).to_list()
        rows[2]["caption_en"] = "\ufeff"
        write_split(tmp_path / "data", split, rows)
    code, _, err = call(capsys, *recipe(corpus, tmp_path, {"data.dataset": str(tmp_path / "data")}))
    assert code == BAD_INPUT and "blank or null, the first of clip" in err.splitlines()[-1]


def test_numbers_too_small_for_float16_are_refused_and_not_zeros(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", a=np.array([[1.0, 1e-9]]), b=np.array([[1e-9, 2e-9]]))
    argv = converting(tmp_path)
    code, _, err = call(capsys, *argv)
    assert code == BAD_INPUT and "clip 'b': its largest number is 2e-09, which is 0 as float16" in err
    assert call(capsys, *argv, "--dtype", "float32")[0] == 0
    write_feature_store(tmp_path / "zeros", [("a", np.zeros((2, 2)))], extractor="x", revision="1")  # as they were


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["recipes"]])
def test_a_terminal_of_one_code_page_shows_what_it_can(words, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    with suppress(SystemExit):  # argparse, after a help text
        assert mmt.main(words) == 0
    terminal.flush()
    shown = terminal.buffer.getvalue()
    assert (b"con m\xe8o" in shown and b"??" in shown) or (words == ["recipes"] and b"emoji9/mmp_en" in shown)


def test_a_query_whose_bytes_are_not_utf8_is_refused_and_not_cut(corpus, tmp_path, capsys):
    """As Python decodes what a shell passes in Latin-1: the byte becomes half of a surrogate pair."""
    checkpoint = build_checkpoint(corpus, tmp_path / "checkpoint")
    code, _, err = call(capsys, "search", checkpoint, b"caf\xe9 dog".decode("utf-8", "surrogateescape"))
    assert code == BAD_INPUT and err.count("\n") == 1, err
    assert "query 1 has bytes that are not UTF-8" in err


def test_a_dataset_revision_of_a_folder_of_videos_is_refused(tmp_path, capsys):
    argv = ["extract", tmp_path, "--output_dir", tmp_path / "store", "--dataset_revision", "v1.0"]
    code, _, err = call(capsys, *argv)
    assert code == BAD_INPUT and "dataset_revision is v1.0, and" in err and "is not a dataset" in err


def test_a_home_that_cannot_be_written_names_the_variable_that_helps(corpus, tmp_path):
    """In /sys not even root may make a folder."""
    checkpoint = build_checkpoint(corpus, tmp_path / "checkpoint")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": "/sys/hf"}
    command = [sys.executable, "-m", "mmt", "evaluate", str(checkpoint)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == BAD_INPUT and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].endswith("; set HF_HOME to a folder that can be written to")


def test_a_folder_of_frozen_states_that_is_null_need_not_be_written(corpus, tmp_path, monkeypatch):
    path = write_recipe(corpus, tmp_path, {"frozen_states_dir": None})
    monkeypatch.chdir("/sys")
    monkeypatch.setattr(os, "access", lambda place, mode: not str(place).startswith("/sys"))  # root may write anywhere
    check_machine(load_recipe([path], ""))
