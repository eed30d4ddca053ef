"""Mutated tables, recipes, stores, checkpoints, indexes and ONNX folders: an answer, or one line; nothing else.

Media have a test of their own (`tests/model/test_media_fuzz.py`).
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import build_checkpoint
from datasets import Dataset
from fuzzing import faults, fuzz
from tiny_corpus import VOCABULARY, write_recipe
from tiny_features import ragged_clips

from datasets_scripts import convert_features, own_clips
from datasets_scripts.corpus import Clock
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.sources import Sources, Tally
from modeling_mmt.data.subtitles import read_subtitles
from modeling_mmt.data.video_lists import find_videos
from modeling_mmt.data.weights import load_tensors
from modeling_mmt.evaluation.checkpoint_recipe import searched_data
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.training.recipe_reading import load_recipe

pytestmark = pytest.mark.slow
REFUSALS = (InputError, OSError)
TABLE = "video_id,language,caption,split,start,end\n" + "".join(
    f'kitchen/v{n},{language},"a ""kettle"", boils {n}",{split},0.5,{n + 1}\n'
    for n, split in enumerate(["train", "validation", "test"] * 3)
    for language in ("en", "sw")
)


def digest(*arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def captions(folder):
    sources, tally = Sources(folder), Tally(own_clips.RULES)
    _, splits = own_clips.read(sources, tally, Clock([]))
    return {split: list(rows) for split, rows in splits.items()}


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "captions.jsonl"])
def test_tables_of_captions(tmp_path, name):
    sound = tmp_path / name.replace(".", "-")
    sound.mkdir()
    text = TABLE.replace(",", "\t") if name.endswith("tsv") else TABLE
    if name.endswith("jsonl"):
        text = '{"video_id": "a/b", "language": "en", "caption": "a kettle", "start": 0, "end": 2.5}\n' * 3
    (sound / name).write_text(text)
    assert faults(fuzz(sound, captions, REFUSALS, detects=lambda name: False)) == []


def test_lists_of_videos(tmp_path):
    sound = tmp_path / "lists"
    sound.mkdir()
    lines = "".join(f"kitchen/{n}.mp4,v{n},0.5,{n + 1}\n" for n in range(9))
    (sound / "videos.csv").write_text("file_name,video_id,start,end\n" + lines)

    def read(folder):
        return [(video.video_id, Path(video.source).name) for video in find_videos(folder / "videos.csv")]

    assert faults(fuzz(sound, read, REFUSALS, detects=lambda name: False)) == []


def test_subtitles(tmp_path):
    sound = tmp_path / "subtitles"
    sound.mkdir()
    cues = [(n, f"00:00:0{n},500 --> 00:00:0{n},900", f"<i>cue</i> {n}") for n in range(9)]
    (sound / "a.srt").write_text("".join(f"{n + 1}\n{times}\n{text}\n\n" for n, times, text in cues))
    vtt = "WEBVTT\n\n" + "".join(f"{times.replace(',', '.')}\n{text}\n\n" for _, times, text in cues)
    (sound / "a.vtt").write_text(vtt)

    def read(folder):
        return [read_subtitles(path.read_bytes(), path.name) for path in sorted(folder.iterdir())]

    assert faults(fuzz(sound, read, REFUSALS, detects=lambda name: False)) == []


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_feature_stores(tmp_path, file_format):
    """Every changed byte of a shard is found; what a manifest says of extractor and source is compared elsewhere."""
    sound = tmp_path / f"store-{file_format}"
    clips = ragged_clips(12)
    write_feature_store(sound, clips.items(), extractor="x", revision="1", rate=2.0, file_format=file_format)

    def read(folder):
        store = FeatureStore(folder)
        return [(video_id, digest(store[video_id])) for video_id in store]

    assert faults(fuzz(sound, read, REFUSALS)) == []


def test_features_of_other_people(tmp_path):
    h5py = pytest.importorskip("h5py", reason="an extra: `data`")
    for name in ("npy", "npz", "hdf5"):
        sound = tmp_path / name
        sound.mkdir()
        clips = ragged_clips(5)
        if name == "npy":
            for video_id, values in clips.items():
                np.save(sound / f"{video_id}.npy", values)
        elif name == "npz":
            np.savez(sound / "all.npz", **clips)
        else:
            with h5py.File(sound / "all.h5", "w") as file:
                for video_id, values in clips.items():
                    file[video_id] = values

        def read(folder, name=name):
            place = folder if name == "npy" else next(folder.iterdir())
            return [
                (video_id, str(array) if isinstance(array, Exception) else digest(array))
                for video_id, array in convert_features.read_arrays(place)
            ]

        assert faults(fuzz(sound, read, REFUSALS, detects=lambda name: False)) == []


def test_recipes(corpus, tmp_path):
    sound = tmp_path / "recipe"
    sound.mkdir()
    path = write_recipe(corpus, tmp_path, name="one")
    shutil.copy(path, sound / "one.yaml")
    assert (
        faults(fuzz(sound, lambda folder: load_recipe([str(folder / "one.yaml")], ""), REFUSALS, lambda name: False))
        == []
    )


def test_checkpoints(corpus, tmp_path):
    """safetensors has no checksum: other weights are read as such, unless they are not finite or do not fit."""
    sound = build_checkpoint(corpus, tmp_path / "checkpoint")

    def read(folder):
        torch.set_num_threads(1)
        searched_data(folder / "recipe.json")
        model, processor = open_checkpoint(str(folder))
        with torch.no_grad():
            text = processor(text=["red dog"])
            return digest(model.get_text_features(**text).pooler_output.numpy())

    assert faults(fuzz(sound, read, (*REFUSALS, ValueError), detects=lambda name: False)) == []


def test_weights(tmp_path):
    from modeling_mmt.data.weights import save_tensors

    sound = tmp_path / "weights"
    tensors = {f"layer.{n}": torch.randn(4, 4) for n in range(4)}
    save_tensors(sound / "a.safetensors", tensors)

    def read(folder):
        return {name: digest(value.numpy()) for name, value in load_tensors(folder / "a.safetensors").items()}

    assert faults(fuzz(sound, read, REFUSALS, detects=lambda name: False)) == []


def test_indexes(tmp_path):
    """Every changed byte of embeddings and clips is found."""
    sound = tmp_path / "index"
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(20, 4, generator=generator), dim=-1)
    clips = Dataset.from_dict({"video_id": [f"v{n}" for n in range(20)], "name_en": ["a dog"] * 20})
    SearchIndex(embeddings, clips, "f" * 64, "model").save(sound, {"dataset": "d"})

    def read(folder):
        index = SearchIndex.load(folder)
        return digest(index.embeddings.numpy()), index.clips[:]

    assert faults(fuzz(sound, read, REFUSALS)) == []


def test_onnx_folders(corpus, tmp_path):
    onnx_export = pytest.importorskip("modeling_mmt.plugins.onnx_export", reason="an optional peer: extra `plugins`")
    from conftest import build_model, build_text_config, build_tokenizer

    from modeling_mmt import MMTProcessor, MMTVideoFeatureExtractor

    model = build_model(build_text_config(vocab_size=len(VOCABULARY)), video_feature_dims=[6, 6])
    model.save_pretrained(tmp_path / "model")
    MMTProcessor(MMTVideoFeatureExtractor(12, 12), build_tokenizer(VOCABULARY)).save_pretrained(tmp_path / "model")
    sound = onnx_export.export(tmp_path / "model", tmp_path / "onnx")
    for path in sound.iterdir():  # the rest is the checkpoint's test
        if path.suffix != ".onnx":
            path.unlink()
    inputs = {"input_ids": torch.tensor([[0, 6, 2]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}

    def read(folder):
        torch.set_num_threads(1)
        return [
            digest(onnx_export.OnnxModel(folder, int8).get_text_features(**inputs).pooler_output.numpy())
            for int8 in (False, True)
        ]

    assert faults(fuzz(sound, read, REFUSALS, detects=lambda name: False)) == []
