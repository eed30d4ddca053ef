"""Clips that only time tells apart: what is rendered, what a mean over frames cannot know, how answers are counted."""

import json
import sys
from collections import Counter
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datasets_scripts import emoji_motion
from datasets_scripts.emoji9 import LANGUAGES
from modeling_mmt.training.recipe_reading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import temporal_truth  # noqa: E402

EMOJI9 = ROOT / "datasets_scripts" / "emoji9"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji_motion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
        assert emoji_motion.build(folder, EMOJI9, max_pairs=1) == {"train": 6, "validation": 6, "test": 6}
    return folder


def rows_of(folder, kind, split="test"):
    return [json.loads(line) for line in (folder / kind / split / "metadata.jsonl").read_text("utf-8").splitlines()]


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", emoji_motion.KINDS)
def test_a_twin_has_the_same_decoded_frames_to_the_bit_and_in_another_order(folder, kind):
    clip, twin = rows_of(folder, kind)
    assert clip["twin"] == twin["video_id"] and twin["twin"] == clip["video_id"]
    frames, others = (decoded(folder / kind / "test" / row["file_name"]) for row in (clip, twin))
    assert len(frames) == len(others) == emoji_motion.NUM_FRAMES
    assert frames[0].shape == (emoji_motion.SIZE, emoji_motion.SIZE, 3)
    count = [Counter(frame.tobytes() for frame in side) for side in (frames, others)]
    assert count[0] == count[1] and not all(np.array_equal(a, b) for a, b in zip(frames, others, strict=True))
    if kind == "order":
        half = len(frames) // 2
        others = others[half:] + others[:half]
    else:
        others = others[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(frames, others, strict=True))
    paths = [folder / kind / "test" / row["file_name"] for row in (clip, twin)]
    sampled = [Counter(frame.tobytes() for frame in temporal_truth.decoded_frames(path)) for path in paths]
    assert sampled[0] == sampled[1] and sampled[0].total() == temporal_truth.NUM_SAMPLES


def test_an_emoji_moves_where_its_caption_says(folder):
    for row in rows_of(folder, "motion") + rows_of(folder, "motion", "train"):
        frames = decoded(
            folder / "motion" / ("test" if row in rows_of(folder, "motion") else "train") / row["file_name"]
        )
        centres = []
        for frame in (frames[0], frames[-1]):
            y, x = np.nonzero(frame.min(axis=-1) < 200)
            centres.append((x.mean(), y.mean()))
        (x0, y0), (x1, y1) = centres
        way = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}[row["video_id"].rsplit("_")[-1]]
        assert emoji_motion.MIN_DISTANCE - 2 < way <= emoji_motion.SIZE - emoji_motion.MOVING_SIZE + 2


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(folder, tmp_path):
    for seed in (0, 1):
        emoji_motion.build(tmp_path / str(seed), EMOJI9, seed=seed, max_pairs=1)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    same = {
        path.relative_to(tmp_path / "0"): path.read_bytes() for path in (tmp_path / "0").rglob("*.*") if path.is_file()
    }
    assert same == files and len(files) > 18
    assert rows_of(folder, "order") != rows_of(tmp_path / "1", "order")


def test_a_splits_clips_show_its_own_concepts_and_no_flag(folder):
    for split in ("train", "validation", "test"):
        rows = datasets.load_dataset(str(EMOJI9), split=split)
        own = {video_id for video_id, is_flag in zip(rows["video_id"], rows["is_flag"], strict=True) if not is_flag}
        for kind in emoji_motion.KINDS:
            assert {concept for row in rows_of(folder, kind, split) for concept in row["concepts"]} <= own


def test_captions_hold_names_as_they_are_and_fixed_words_that_agree_with_nothing(folder):
    rows = datasets.load_dataset(str(EMOJI9), split="test").remove_columns("frames")
    named = {row["video_id"]: row for row in rows}
    assert all(set(words) == set(LANGUAGES) for words in emoji_motion.WORDS.values())
    for language in LANGUAGES:
        assert len({words[language] for words in emoji_motion.WORDS.values()}) == len(emoji_motion.WORDS)
        for row in rows_of(folder, "order"):
            first, second = (named[concept][f"name_{language}"] for concept in row["concepts"])
            assert row[f"caption_{language}"] == f"1. {first} 2. {second}"
        for row in rows_of(folder, "motion") + rows_of(folder, "playback"):
            name, word = named[row["concepts"][0]][f"name_{language}"], row["video_id"].rsplit("_")[-1]
            dash = "——" if language == "zh" else " — "
            assert row[f"caption_{language}"] == f"{name}{dash}{emoji_motion.WORDS[word][language]}"


def test_datasets_loads_each_kind_as_videos(folder):
    rows = datasets.load_dataset(str(folder / "motion"), split="validation")
    assert isinstance(rows.features["video"], datasets.Video) and len(rows) == 2
    paths = rows.cast_column("video", datasets.Video(decode=False))["video"]
    assert [Path(path["path"]).stem for path in paths] == rows["video_id"][:]
    assert "nine languages" in (folder / "README.md").read_text("utf-8")


def strip(*frames):
    picture = Image.new("RGB", (len(frames) * 8, 8))
    for place, shade in enumerate(frames):
        picture.paste((shade, shade, shade), (place * 8, 0, place * 8 + 8, 8))
    return {"video_id": "loop", "num_frames": len(frames), "frames": picture}


def test_a_pendulum_and_a_still_emoji_have_no_direction_of_time_and_a_ramp_has_one():
    assert emoji_motion.asymmetry(strip(0, 40, 80, 120, 160, 120, 80, 40)) == 0
    assert emoji_motion.asymmetry(strip(80, 120, 160, 120, 80, 40, 0, 40)) == 0  # the same, begun elsewhere
    assert emoji_motion.asymmetry(strip(50)) == 0
    assert emoji_motion.asymmetry(strip(0, 0, 0, 200, 100, 100, 100, 50)) > emoji_motion.ASYMMETRY


def test_samples_lie_as_far_from_the_start_as_from_the_end():
    for number in (1, 2, 4, 8):
        steps = emoji_motion.sample_steps(number)
        mirrored = [emoji_motion.NUM_FRAMES - 1 - step for step in reversed(steps)]
        assert len(steps) == number and (number < 8 or steps == mirrored)
    assert emoji_motion.sample_steps(8) == [1, 4, 7, 10, 13, 16, 19, 22]


def embeds_of(model, clips):
    features = torch.stack(clips)
    return model.get_video_features(video_features=features, video_mask=torch.ones(features.shape[:2])).pooler_output


def test_mean_pooling_cannot_tell_a_clip_from_its_reverse_and_temporal_heads_can(make_model):
    clip = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shuffled = clip[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    clips = [clip, clip.flip(0), shuffled]
    mean = make_model(num_hidden_layers=0, pooling="mean").double().eval()
    apart = embeds_of(mean, clips)
    assert (apart - apart[:1]).abs().max() < 1e-12
    for head in ({"pooling": "first"}, {"pooling": "mean"}, {"pooling": "mean", "norm_placement": "pre"}):
        with_order = embeds_of(make_model(num_hidden_layers=2, **head).double().eval(), clips)
        assert (with_order[0] - with_order[1]).abs().max() > 1e-3
    # Why the recipe of mean pooling is post-norm: pre-norm normalises each step with its position before the mean.
    normalised = embeds_of(
        make_model(num_hidden_layers=0, pooling="mean", norm_placement="pre").double().eval(), clips
    )
    assert (normalised[0] - normalised[1]).abs().max() > 1e-6


def test_answers_are_counted_as_if_ties_were_drawn_by_lot():
    twins = np.array([1, 0, 3, 2])
    similarity = np.array([[9, 1, 0, 0], [5, 5, 0, 0], [0, 0, 3, 4], [7, 0, 2, 2]], dtype=float)
    found = temporal_truth.answers(similarity, twins)
    assert found["pair"].tolist() == [100, 50, 0, 50]
    assert found["R@1"].tolist() == [100, 50, 0, 0]
    assert found["R@1 of the pair"].tolist() == [100, 100, 100, 0]
    nearly = similarity + np.diag([0, 1e-7, 0, 0])
    assert temporal_truth.answers(nearly, twins)["pair"].tolist() == [100, 50, 0, 50]


def test_a_model_that_does_not_see_order_has_exactly_half_of_the_pairs():
    generator = np.random.default_rng(0)
    twins = np.arange(20) ^ 1
    clips = np.repeat(generator.normal(size=(10, 6)), 2, axis=0)
    found = temporal_truth.answers(generator.normal(size=(20, 6)) @ clips.T, twins)
    assert (found["pair"] == 50).all() and (found["R@1"] <= 50).all()
    assert found["R@1"].tolist() == (found["R@1 of the pair"] / 2).tolist()


def test_equal_frames_are_encoded_once_and_twins_have_equal_features(folder):
    class Encoder:
        seen = 0

        def prepare(self, frames):
            return frames

        def encode(self, pixels):
            self.seen += len(pixels)
            return pixels.reshape(len(pixels), -1)[:, ::997].astype(np.float32)

    encoder = Encoder()
    names = [row["file_name"] for row in rows_of(folder, "motion")]
    found = dict(temporal_truth.encoded_clips([folder / "motion" / "test" / name for name in names], encoder))
    clip, twin = (found[Path(name).stem] for name in names)
    assert encoder.seen == temporal_truth.NUM_SAMPLES and np.array_equal(clip, twin[::-1])


def test_the_recipes_differ_in_their_heads_alone():
    folder, recipes = ROOT / "modeling_mmt" / "recipes" / "emoji_motion", {}
    for name in temporal_truth.RECIPES:
        recipe = load_recipe([str(folder / f"{name}.yaml")])
        assert recipe.data.test_split is None
        recipes[name] = yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
    heads = {
        name: [recipe["model"]["config"].pop(key) for key in ("num_hidden_layers", "norm_placement", "pooling")]
        for name, recipe in recipes.items()
    }
    assert heads == {"mean_en": [0, "post", "mean"], "temporal_en": [2, "pre", "first"]}
    assert recipes["mean_en"] == recipes["temporal_en"]
