"""`train.py` from pixels, on the tiny corpus whose clips are files: colours and shapes, encoded here."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_corpus import SPLITS, write_recipe
from tiny_pixels import FRAMES, PIXELS, frames_of_clip, write_clip
from train_process import Group

from mmt import main as mmt
from modeling_mmt import EfficientNetLiteModel, MMTModel, MMTProcessor
from modeling_mmt.commands import train
from modeling_mmt.data.augmentation import VideoAugmentation
from modeling_mmt.data.clip_cache import CachedClips, ClipSequence, MemoryBudget
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.collator import ClipDataset, MMTDataCollator
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.evaluation.embedding import embed_videos
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.training import corpora
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.video_decoding_mmt import read_clip

ROOT = Path(__file__).resolve().parents[2]

AUGMENTATION = {"scale": 0.2, "translate": 0.1, "brightness": 0.2, "saturation": 0.2, "temporal_jitter": 2}
LAST_LAYER = {"finetuning.learn_vision_layers": 1, "finetuning.vision_learning_rate": 0.003}


@pytest.fixture
def run(corpus, pixels, tmp_path):
    def run(changes=None, name="model", *options):
        told = PIXELS | {"data.dataset": str(pixels), "model.vision_model": [str(corpus / "lite")]} | (changes or {})
        return train.main([write_recipe(corpus, tmp_path, told, name), *options])

    return run


@pytest.fixture(scope="module")
def stored(corpus, pixels):
    """The features of the same clips, extracted beforehand."""
    processor = MMTProcessor.from_encoders(
        str(corpus / "encoder"), str(corpus / "lite"), sampling=FrameSampling(FRAMES)
    )
    lite = EfficientNetLiteModel.from_pretrained(corpus / "lite").eval()
    clips = {}
    for split in SPLITS:
        column = ClipColumn(datasets.load_dataset(str(pixels), split=split), "video", pixels)
        for name in column:
            with torch.no_grad():
                clips[name] = lite(processor(videos=[column[name]])["pixel_values"][0]).pooler_output.numpy()
    write_feature_store(corpus / "lite_features", clips.items(), extractor="lite", revision="1", dtype="float32")
    return {"data.features": [str(corpus / "lite_features")], "data.video_column": None, "model.vision_model": []}


def points(metrics):
    stages = [metrics[name]["curve"] for name in ("pretraining", "finetuning") if name in metrics]
    return torch.tensor([[point["loss"], point["validation_mrr"]] for curve in stages for point in curve])


def test_a_frozen_encoder_from_pixels_learns_what_features_teach(run, stored):
    from_pixels = run()
    from_features = run(stored, "features")
    torch.testing.assert_close(points(from_pixels), points(from_features), rtol=1e-3, atol=1e-3)
    for split in ("validation", "test"):
        a, b = (m["figures"][split]["all"]["t2v"]["en"]["MRR"] for m in (from_pixels, from_features))
        assert a == pytest.approx(b, abs=1e-6)


def test_pixels_of_a_frozen_encoder_are_as_good_as_its_kept_features(run, tmp_path):
    """An augmentation of nothing takes the path through the encoder at every step."""
    sources = [{"text_column": "caption", "languages": ["en"], "noise_probability": 0.0}]
    kept = run({"pretraining": None, "finetuning.sources": sources})
    through = [source | {"augmentation": {}} for source in sources]
    pixels = run({"pretraining": None, "finetuning.sources": through}, "through")
    torch.testing.assert_close(points(kept), points(pixels), rtol=1e-3, atol=1e-3)
    little = run(
        {"pretraining": None, "finetuning.sources": sources, "clip_memory": 0.0, "work_dir": str(tmp_path / "no")},
        "little",
    )
    assert torch.equal(points(kept), points(little))


def test_the_last_layers_learn_and_no_other(run, corpus, tmp_path):
    metrics = run(LAST_LAYER)
    before = load_file(corpus / "lite" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    prefix = "video_model.vision_model.experts.0.encoder."
    changed = {name for name, value in before.items() if not torch.equal(after[prefix + name], value)}
    assert changed and all(name.startswith(("blocks.2.", "head.")) for name in changed)
    assert not any("running" in name for name in changed)
    assert {name.split(".")[0] for name in changed} == {"blocks", "head"}
    assert MMTModel.from_pretrained(tmp_path / "model").config.learn_vision_layers == 1
    # A whole encoder learns too, and its curve is another one.
    other = run(LAST_LAYER | {"finetuning.learn_vision_layers": None}, "whole")
    assert not torch.equal(points(other), points(metrics))


@pytest.mark.parametrize(
    ("file", "change"),
    [("preprocessor_config.json", {"image_mean": [0.1] * 3}), ("config.json", {"batch_norm_eps": 1.0})],
)
def test_a_stage_is_trained_anew_where_the_encoders_files_say_something_else(run, corpus, tmp_path, file, change):
    """The weights alone do not say what is made of a frame."""
    lite = shutil.copytree(corpus / "lite", tmp_path / "lite")
    changes = {"pretraining": None, "model.vision_model": [str(lite)]}
    before = run(changes)
    (lite / file).write_text(json.dumps(json.loads((lite / file).read_text()) | change))
    assert not torch.equal(points(run(changes, "other")), points(before))


def test_the_checkpoint_finds_again_from_files_alone(run, tmp_path, pixels, capsys):
    metrics = run(LAST_LAYER)
    assert mmt(["evaluate", str(tmp_path / "model"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["figures"]["all"]["t2v"]
    assert told["en"]["R@1"] == pytest.approx(metrics["figures"]["test"]["all"]["t2v"]["en"]["R@1"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "The vision encoder was trained too (last 1 layers)" in card and 'videos=["clip.mp4"]' in card
    command = ["search", str(tmp_path / "model"), "red dog", "--top", "2", "--json", "--index", str(tmp_path / "i")]
    for _ in range(2):  # built, then read
        assert mmt(command) == 0
        assert len(json.loads(capsys.readouterr().out)[0]["hits"]) == 2


EVERY_STEP = LAST_LAYER | {
    "pretraining.save_steps": 3,
    "pretraining.evaluations": 10,
    "finetuning.save_steps": 3,
    "finetuning.evaluations": 10,
    "finetuning.sources": [
        {"text_column": "caption", "languages": ["en"], "noise_probability": 0.2, "augmentation": AUGMENTATION}
    ],
}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_from_pixels_that_is_killed_goes_on_as_if_nothing_had_been(corpus, pixels, tmp_path, world_size):
    told = EVERY_STEP | PIXELS
    told |= {"data.dataset": str(pixels), "model.vision_model": [str(corpus / "lite")]}
    found = []
    for name, kills in (("whole", ()), ("killed", (("pretraining", 5), ("finetuning", 5)))):
        recipe = write_recipe(corpus, tmp_path / name, told)
        for stage, step in kills:
            with Group([recipe], world_size) as group:
                group.wait_for(stage, step)
                group.kill()
                assert [process.exitcode for process in group.processes] == [-signal.SIGKILL] * world_size
        with Group([recipe], world_size) as group:
            assert group.join() == [0] * world_size, Path(f"{recipe}.0.log").read_text()[-3000:]
        folder = Path(recipe).with_suffix("")
        metrics = json.loads((folder / "metrics.json").read_text())
        found.append((points(metrics), load_file(folder / "model.safetensors")))
    (whole, weights), (killed, others) = found
    assert torch.equal(whole, killed)
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


@pytest.mark.slow  # each start of a worker imports torch
def test_a_run_whose_workers_decode_is_the_run_that_decodes_itself_though_it_is_killed(corpus, pixels, tmp_path):
    """No room to keep clips: every batch is decoded anew, some of it ahead of the step that is killed."""
    changes = EVERY_STEP | PIXELS | {"pretraining": None, "clip_memory": 0.0}
    changes = {key: value for key, value in changes.items() if not key.startswith("pretraining.")}
    changes |= {"data.dataset": str(pixels), "model.vision_model": [str(corpus / "lite")]}
    found = []
    for name, num_workers, kill_at in (("own", 0, None), ("workers", 2, 5)):
        recipe = write_recipe(corpus, tmp_path / name, changes | {"num_workers": num_workers})
        if kill_at:
            with Group([recipe]) as group:
                group.wait_for("finetuning", kill_at)
                group.kill()
        with Group([recipe]) as group:
            assert group.join() == [0], Path(f"{recipe}.0.log").read_text()[-3000:]
        folder = Path(recipe).with_suffix("")
        metrics = json.loads((folder / "metrics.json").read_text())
        found.append((points(metrics), load_file(folder / "model.safetensors")))
    (own, weights), (workers, others) = found
    assert len(own) == 10 and torch.equal(own, workers)
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def test_the_draws_are_the_same_for_any_number_of_processes(corpus, pixels, tmp_path):
    no_dropout = {f"model.config.{kind}_dropout_prob": 0.0 for kind in ("hidden", "attention_probs")}
    told = EVERY_STEP | PIXELS | no_dropout | {"pretraining": None}
    told |= {"data.dataset": str(pixels), "model.vision_model": [str(corpus / "lite")]}
    found = []
    for world_size in (1, 2):
        recipe = write_recipe(corpus, tmp_path / str(world_size), {k: v for k, v in told.items() if "pretr" not in k})
        with Group([recipe], world_size) as group:
            assert group.join() == [0] * world_size, Path(f"{recipe}.0.log").read_text()[-3000:]
        found.append(points(json.loads((Path(recipe).with_suffix("") / "metrics.json").read_text()))[:, 0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


# Parts


def colours(frames=5, side=12, seed=0):
    return [torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (frames, 3, side, side), dtype=np.uint8))]


def test_an_augmentation_is_its_generators_and_of_nothing_is_nothing():
    augmentation, clip = VideoAugmentation(**AUGMENTATION, contrast=0.3), colours()
    one, same, other = (augmentation(clip, np.random.default_rng(seed), 2)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (2, 3, 12, 12) and one.dtype == torch.uint8
    assert torch.equal(VideoAugmentation()(clip, np.random.default_rng(0), 5)[0], clip[0])


def test_every_frame_of_a_clip_is_changed_alike_and_every_encoders_frames_too():
    still = [colours(1)[0].expand(4, -1, -1, -1), colours(1, 24)[0].expand(4, -1, -1, -1)]
    changed = VideoAugmentation(scale=0.2, translate=0.2, brightness=0.3, contrast=0.3, saturation=0.3)(
        still, np.random.default_rng(3), 4
    )
    for part in changed:
        assert (part == part[:1]).all() and not torch.equal(part[0], still[0][0])


def test_a_shift_by_whole_pixels_moves_the_picture_and_repeats_the_border():
    class Fixed:
        def random(self, size):
            return np.full(size, 0.5)

        def uniform(self, low, high, size):
            return np.array([0.0, 1.0, 0.0])

    (clip,) = colours(2, 10)
    (moved,) = VideoAugmentation(translate=0.2)([clip], Fixed(), 2)
    assert torch.equal(moved[..., 2:], clip[..., :-2])
    assert torch.equal(moved[..., :2], clip[..., :1].expand(-1, -1, -1, 2))


def test_temporal_jitter_draws_one_frame_of_each_part_in_order():
    numbered = [torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(-1, 3, 4, 4)]
    seen = set()
    for seed in range(40):
        (drawn,) = VideoAugmentation(temporal_jitter=2)(numbered, np.random.default_rng(seed), 3)
        numbers = drawn[:, 0, 0, 0].tolist()
        assert [number // 2 for number in numbers] == [0, 1, 2]
        seen.add(tuple(numbers))
    assert len(seen) == 8
    (short,) = VideoAugmentation(temporal_jitter=2)([numbered[0][:2]], np.random.default_rng(0), 3)
    assert short[:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(VideoAugmentation)])
def test_an_augmentation_out_of_range_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} is -1"):
        VideoAugmentation(**{field: -1})


def test_clips_are_made_once_while_there_is_room():
    made = []

    def make(name):
        made.append(name)
        return torch.zeros(4, dtype=torch.uint8)

    room = MemoryBudget(8)
    clips = CachedClips(["a", "b", "c"], make, room)
    for _ in range(2):
        assert [len(clips[name]) for name in "abc"] == [4, 4, 4]
    assert made == ["a", "b", "c", "c"] and room.num_bytes == 0
    clips.clear()
    assert room.num_bytes == 8 and list(clips) == ["a", "b", "c"] and len(clips) == 3
    with pytest.raises(KeyError):
        clips["d"]
    assert list(ClipSequence({"a": 1, "b": 2}, ["b", "a"])) == [2, 1]


class Numbered:
    """Clips of two encoders, made in the process that says so; picklable."""

    def __init__(self, made_by):
        self.made_by = made_by

    def __call__(self, name):
        with open(self.made_by, "a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if name == "bad":
            raise ValueError(f"{name}: torn")
        return [torch.full((int(name), 2), int(name)), torch.full((1, 3), float(name))]


def test_workers_make_what_is_not_kept_ahead_within_the_bound_and_errors_are_this_processs_own(tmp_path):
    made_by = tmp_path / "made"
    clips = CachedClips([*"1234", "bad"], Numbered(made_by), MemoryBudget(8 * 2 + 12))  # room for the first alone
    clips["1"]
    batches = [["1", "2"], ["3", "2", "3"], ["1"], ["bad", "4"]]
    for batch, _ in zip(batches, clips.prefetch(batches, num_workers=2), strict=True):
        for name in batch:
            if name == "bad":
                with pytest.raises(ValueError, match=r"^bad: torn$"):
                    clips[name]
            else:
                whole, other = clips[name]
                assert torch.equal(whole, torch.full((int(name), 2), int(name)))
                assert torch.equal(other, torch.full((1, 3), float(name)))
    lines = [line.split() for line in made_by.read_text().splitlines()]
    own, theirs = ([name for name, pid in lines if (pid == str(os.getpid())) == mine] for mine in (True, False))
    assert own == ["1", "bad"]
    assert sorted(theirs) == ["2", "2", "3", "4", "bad"]
    assert clips._prefetched == {} and list(clips._cache) == ["1"]


def test_no_workers_are_started_where_all_clips_are_kept(tmp_path):
    clips = CachedClips(["1"], Numbered(tmp_path / "made"), MemoryBudget(100))
    clips["1"]
    assert [list(clips["1"][0].shape) for _ in clips.prefetch([["1"], ["1"]], num_workers=2)] == [[1, 2]] * 2
    assert len((tmp_path / "made").read_text().splitlines()) == 1


def test_two_revisions_of_a_dataset_have_frames_of_their_own(monkeypatch):
    read = {kind: datasets.Dataset.from_dict({"video_id": ["a"], "clip": [f"{kind}.mp4"]}) for kind in ("v1", "v2")}
    monkeypatch.setattr(corpora, "read_split", lambda name, revision, split: read[revision])
    recipe = SimpleNamespace(data=SimpleNamespace(video_column="clip"), clip_memory=1.0, comes_from={})
    recipe.alignment = recipe.pretraining = recipe.finetuning = None
    processor = SimpleNamespace(
        feature_extractor=SimpleNamespace(read=lambda source, _: [torch.tensor([ord(source[-5])])])
    )
    data = RunData(corpora.Corpora(recipe), None, None, processor)
    for kind in ("v1", "v2", "v1"):
        (frames,) = data.frames(SimpleNamespace(dataset="org/clips", revision=kind), "train")["a"]
        assert chr(frames.item()) == kind[1]


def test_columns_of_videos_pictures_film_strips_and_paths(tmp_path):
    frames = colours(3)[0].permute(0, 2, 3, 1).numpy()
    strip = Image.fromarray(np.concatenate(list(frames), axis=1))
    strip.save(tmp_path / "strip.png")
    given = {"video_id": ["a"], "clip": [str(tmp_path / "strip.png")]}
    rows = datasets.Dataset.from_dict(given | {"num_frames": [3]}).cast_column("clip", datasets.Image())
    rows = rows.rename_column("clip", "frames")
    assert [np.array_equal(a, b) for a, b in zip(ClipColumn(rows, "frames")["a"], frames, strict=True)] == [True] * 3
    picture = ClipColumn(rows.remove_columns("num_frames"), "frames")["a"]
    assert read_clip(picture, FrameSampling(2)).frames.shape == (1, 3, 12, 36)
    paths = datasets.Dataset.from_dict({"video_id": ["a"], "clip": ["strip.png"]})
    assert ClipColumn(paths, "clip", tmp_path)["a"] == str(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="no column film to read clips from; found video_id, clip"):
        ClipColumn(paths, "film")
    with pytest.raises(ValueError, match="column number is .*clips are of Video, Image or paths"):
        ClipColumn(datasets.Dataset.from_dict({"video_id": ["a"], "number": [1]}), "number")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.features": ["colours"]}, "data.video_column is 'video' and data.features .*leave one out"),
        ({"model.vision_model": []}, r"data.video_column is 'video' and model.vision_model \[\].*needs both"),
        ({"data.video_column": None}, "training from pixels needs both"),
        ({"model.config.learn_vision_layers": 1}, "model.config has 'learn_vision_layers'"),
        ({"data.video_column": None, "model.vision_model": [], "finetuning.learn_vision_layers": 1},
         "finetuning.learn_vision_layers is 1, but model.vision_model is empty"),
        ({"data.video_column": None, "model.vision_model": [], "finetuning.sources.0.augmentation": {"scale": 0.1}},
         r"finetuning.sources\[0\].augmentation changes pixels"),
        ({"data.video_column": None, "model.vision_model": []},
         "no column video_features; found .* or name feature stores, or a video_column"),
        ({"data.video_column": "film"}, "no column film"),
    ],
)  # fmt: skip
def test_clips_given_twice_or_not_at_all_are_refused_by_the_fields(run, changes, words):
    with pytest.raises(ValueError, match=words):
        run(changes)


def test_a_row_with_neither_or_both_is_refused_by_its_id(make_processor):
    rows = [{"video_id": "a", "caption_en": "red", "draw": (0, 0, 0)}]
    collate = MMTDataCollator(make_processor(), noise_probability=0.0)
    with pytest.raises(ValueError, match="clip 'a' has no video_features, and no video_frames"):
        collate(rows)
    both = {"video_features": np.zeros((1, 8)), "video_frames": colours()}
    with pytest.raises(ValueError, match="clip 'a' has .*video_features.*video_frames"):
        collate([rows[0] | both])
    with pytest.raises(ValueError, match="leave one out"):
        ClipDataset(rows, {}, {})


def test_videos_without_a_vision_encoder_are_refused_with_the_remedy(make_model, make_processor):
    with pytest.raises(ValueError, match="no vision encoder: extract their features .mmt extract"):
        embed_videos(make_model(), make_processor(), ["clip.mp4"])


# Search in files


def test_files_are_searched_by_a_model_that_was_trained_from_pixels(run, tmp_path):
    run({"pretraining": None})
    for number in (0, 1):  # an mp4 and a GIF
        write_clip(tmp_path, number, frames_of_clip(number, (number, number)))
    files = [str(tmp_path / name) for name in ("0.mp4", "1.gif")]
    model, processor = MMTModel.from_pretrained(tmp_path / "model"), MMTProcessor.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        found = model(**processor(text=["red dog"], videos=files))
    scores = (found.text_embeds @ found.video_embeds.T)[0]
    index = SearchIndex.build(model, processor, datasets.Dataset.from_dict({"video_id": files}), {f: f for f in files})
    (hits,) = index.search_texts(model, processor, ["red dog"], 2)
    assert [hit.score for hit in hits] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
    assert [hit.row for hit in hits] == scores.argsort(descending=True).tolist()


def test_a_dry_run_says_which_column_is_missing(run, capsys):
    told = run({"data.video_column": "film"}, "dry", "--dry_run")
    assert any("no column film" in problem for problem in told["problems"])
    assert run(None, "whole", "--dry_run")["problems"] == []


def test_recipes_of_pixels_parse():
    for path in sorted((ROOT / "modeling_mmt" / "recipes" / "emoji9").glob("pixels_*.yaml")):
        recipe = load_recipe([str(path)])
        assert recipe.data.video_column == "frames"
