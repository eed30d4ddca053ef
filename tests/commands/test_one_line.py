"""Where a traceback was once: each mistake is one line on the standard error stream, and exit code 2."""

import json
import resource
import shutil
import signal
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
    "an index whose model is a number": (lambda c, f: index(c, f, lambda i: i | {"fingerprint": 5}), "index"),
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
    assert "features-00000.parquet does not exist" in err.splitlines()[-1]


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
    assert code == BAD_INPUT and "clip 'b': step 0 is 2e-09 at most, which is all zeros as float16" in err
    assert call(capsys, *argv, "--dtype", "float32")[0] == 0
    write_feature_store(tmp_path / "zeros", [("a", np.zeros((2, 2)))], extractor="x", revision="1")  # as they were
