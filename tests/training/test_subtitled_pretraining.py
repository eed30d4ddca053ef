"""From a folder of films with subtitles to a trained model: the verb builds, a recipe with `clip_seconds` trains."""

import json

import numpy as np
import official_files
import pytest
from command_line import call
from safetensors.torch import load_file
from tiny_corpus import ANIMALS, COLOURS, STREAM_DIM, write_recipe

from modeling_mmt.commands import train
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.video_lists import find_videos


@pytest.fixture
def changes(tmp_path, capsys):
    """A recipe's changes, for eight films with English beside them and German inside; one has no German."""
    for number in range(8):
        path = tmp_path / f"films/film{number}.mkv"
        path.parent.mkdir(exist_ok=True)
        cues = [(language, f"{COLOURS[language][number]} {ANIMALS[language][number]}") for language in ("en", "de")]
        official_files.write_film(path, {"ger": [(0.2, 1.0, cues[1][1])]} if number else {})
        path.with_suffix(".en.srt").write_text(f"1\n00:00:00,200 --> 00:00:01,500\n<i>{cues[0][1]}</i>\n")
    generator = np.random.default_rng(0)
    stores = []
    for name in ("a", "b"):
        clips = ((video.video_id, generator.standard_normal((8, STREAM_DIM))) for video in find_videos(path.parent))
        stores.append(str(write_feature_store(tmp_path / name, clips, extractor="made up", revision="1", rate=4.0)))
    arguments = ["--data_dir", path.parent, "--output_dir", tmp_path / "films_built", "--features", *stores]
    assert call(capsys, "build", "subtitled_videos", *arguments)[0] == 0
    source = {
        "dataset": str(tmp_path / "films_built"),
        "features": stores,
        "text_column": "text",
        "languages": ["en", "de"],
        "clip_seconds": [0.5, 1.5],
    }
    return {"pretraining.sources": [source], "pretraining.train_batch_size": 4, "finetuning": None}


def test_a_recipe_with_clip_seconds_trains_on_subtitled_videos_as_they_are_built(corpus, tmp_path, changes):
    recipe = write_recipe(corpus, tmp_path, changes)
    assert train.main([recipe, "--dry_run"])["problems"] == []
    figures = train.main([recipe])["figures"]["test"]["all"]["t2v"]
    assert set(figures) == {"en", "de"} and (tmp_path / "recipe/model.safetensors").is_file()
    record = json.loads((tmp_path / "films_built/build.json").read_text())
    assert record["rows"] == {"train": 8} and record["rules"]["markup"]["count"] == 8


def test_keeping_the_frozen_layers_output_for_windows_changes_no_loss(corpus, tmp_path, changes):
    """The cues of few videos come again: `cache_windows` has the frozen layers read each text once."""

    def run(kept):
        """The curve of a run, and how many captions the frozen layers' output was kept of."""
        folder = tmp_path / f"kept{kept}"
        more = {"pretraining.evaluations": 3, "cache_windows": kept, "frozen_states_dir": str(folder / "frozen")}
        curve = train.main([write_recipe(corpus, folder, changes | more)])["pretraining"]["curve"]
        shards = [load_file(path) for path in (folder / "frozen").rglob("*.safetensors")]
        return [point["loss"] for point in curve], sum(len(shard["lengths"]) for shard in shards)

    (with_cache, more), (without, fewer) = run(True), run(False)
    np.testing.assert_allclose(with_cache, without, rtol=1e-4)
    assert more > fewer
