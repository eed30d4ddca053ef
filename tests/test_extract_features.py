"""Frames through an image encoder into a store, with tiny random encoders."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

import extract_features
from datasets_scripts.features import FeatureStore
from extract_features import FrameEncoder, encode_clips, main

SIZE = 32
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


def clip_row(number: int, num_frames: int) -> dict:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, num_frames * SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    strip = {"bytes": buffer.getvalue(), "path": None}
    return {"video_id": f"clip{number}", "frames": strip, "num_frames": num_frames, "name_en": "a name"}


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "data").mkdir()
    rows = [clip_row(number, num_frames) for number, num_frames in enumerate([1, 8, 3, 1, 1, 5])]
    for split, part in (("train", rows[:4]), ("test", rows[4:])):
        columns = {key: [row[key] for row in part] for key in part[0]}
        table = datasets.Dataset.from_dict(columns).cast_column("frames", datasets.Image())
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    return folder


def arguments(clips_folder, encoder_folder, output_dir, *more):
    flags = ["--dataset", clips_folder, "--encoder", encoder_folder, "--image_size", SIZE, "--output_dir", output_dir]
    return [str(flag) for flag in [*flags, *more]]


def test_a_frames_features_are_the_pooled_output_of_its_normalised_pixels(clips_folder, encoder_folder, tmp_path):
    store = main(arguments(clips_folder, encoder_folder, tmp_path / "store", "--batch_size", 3))
    assert {video_id: len(store[video_id]) for video_id in store} == {
        "clip0": 1, "clip1": 8, "clip2": 3, "clip3": 1, "clip4": 1, "clip5": 5,
    }  # fmt: skip
    assert store.dim == 12 and store.manifest["source"]["image_size"] == SIZE
    model = ResNetModel.from_pretrained(encoder_folder).eval()
    strip = Image.open(io.BytesIO(clip_row(1, 8)["frames"]["bytes"]))
    for step in range(8):
        pixels = torch.from_numpy(np.array(strip.crop((step * SIZE, 0, step * SIZE + SIZE, SIZE)))).permute(2, 0, 1)
        mean, std = (torch.tensor(STATISTICS[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        with torch.no_grad():
            pooled = model(((pixels / 255 - mean) / std)[None]).pooler_output.flatten()
        assert np.allclose(store["clip1"][step], pooled.numpy(), atol=2e-3)


def test_the_batch_size_changes_no_feature(clips_folder, encoder_folder):
    encoder = FrameEncoder(str(encoder_folder), SIZE)
    clips = [(f"c{n}", [Image.new("RGB", (40, 40), (n, 9 * step, 50)) for step in range(n)]) for n in (3, 1, 7, 2)]
    alone = dict(encode_clips(clips, encoder, 1))
    for batch_size in (2, 5, 100):
        together = list(encode_clips(clips, encoder, batch_size))
        assert [video_id for video_id, _ in together] == ["c3", "c1", "c7", "c2"]
        assert all(np.allclose(features, alone[video_id], atol=1e-5) for video_id, features in together)


def test_a_finished_store_is_kept_and_another_setting_is_refused(clips_folder, encoder_folder, tmp_path, capsys):
    command = arguments(clips_folder, encoder_folder, tmp_path / "store")
    main(command)
    before = (tmp_path / "store" / "manifest.json").stat().st_mtime_ns
    assert len(main(command)) == 6 and "already holds" in capsys.readouterr().out
    assert (tmp_path / "store" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        main([*command, "--image_size", "64"])
    assert "holds other features: source" in capsys.readouterr().err


def test_an_interrupted_run_encodes_only_what_is_missing(clips_folder, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_features, "CLIPS_PER_SHARD", 2)
    whole = FrameEncoder.encode
    calls = []

    def stops(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 14:
            raise KeyboardInterrupt
        return whole(self, pixels)

    monkeypatch.setattr(FrameEncoder, "encode", stops)
    command = arguments(clips_folder, encoder_folder, tmp_path / "store", "--batch_size", 1)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert not (tmp_path / "store").exists()
    num_calls = len(calls)
    store = main(command)
    assert len(store) == 6 and len(calls) - num_calls == 19 - 13  # clips 0 to 3, of 13 frames, were stored
    monkeypatch.setattr(FrameEncoder, "encode", whole)
    fresh = main(arguments(clips_folder, encoder_folder, tmp_path / "fresh", "--batch_size", 1))
    assert all(np.array_equal(store[video_id], fresh[video_id]) for video_id in fresh)


def test_limit_takes_the_first_clips_of_each_split(clips_folder, encoder_folder, tmp_path):
    store = main(arguments(clips_folder, encoder_folder, tmp_path / "store", "--limit", 1))
    assert set(store) == {"clip0", "clip4"}
    assert set(FeatureStore(tmp_path / "store")) == set(store)


def test_an_encoder_without_pooled_output_is_averaged_over_positions(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(**sizes, image_size=SIZE, patch_size=16), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    encoder = FrameEncoder(str(tmp_path), SIZE)
    encoder.model.pooler = None
    frame = Image.new("RGB", (SIZE, SIZE), (200, 100, 0))
    pixel_values = (encoder.prepare([frame]) / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state.mean(1)
    assert np.allclose(encoder.encode(encoder.prepare([frame])), expected.numpy(), atol=1e-5)


def test_an_encoder_that_does_not_say_its_statistics_is_refused(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_mean and image_std"):
        FrameEncoder(str(tmp_path), SIZE)


def test_bad_flags_and_absent_columns_are_refused(clips_folder, encoder_folder, tmp_path, capsys):
    for flags, message in [(["--batch_size", 0], "--batch_size is 0"), (["--limit", -1], "--limit is -1")]:
        with pytest.raises(SystemExit):
            main(arguments(clips_folder, encoder_folder, tmp_path / "store", *flags))
        assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict({"video_id": ["a"]}).to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(SystemExit):
        main(arguments(tmp_path / "other", encoder_folder, tmp_path / "store"))
    assert "has no column 'frames'" in capsys.readouterr().err
