"""Clips of long videos: the window, the language, the nearest cues; the same for any workers; resumed exactly."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import official_files
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_mmt.commands.build import build as build_corpus
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.windows import ClipStream, SampledClips, WindowSampler, nearest_cues, steps_of

LANGUAGES = ("en", "de", "sw")
NUM_VIDEOS = 48


def video(number: int, languages=LANGUAGES, num_cues: int = 10) -> dict:
    """Cues of two seconds, three seconds apart; sw is missing in every third video."""
    row = {"video_id": f"v{number}"}
    for language in languages:
        there = language != "sw" or number % 3
        row[f"text_{language}"] = [f"{language} {number} {cue}" for cue in range(num_cues)] if there else None
        row[f"start_{language}"] = [3.0 * cue for cue in range(num_cues)] if there else None
        row[f"end_{language}"] = [3.0 * cue + 2 for cue in range(num_cues)] if there else None
    return row


@pytest.fixture(scope="module", autouse=True)
def no_sleep_after_a_stream():
    """`datasets` sleeps for five seconds at a stream's end, so that Arrow's threads are gone when the process ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve shards of four videos."""
    folder = tmp_path_factory.mktemp("videos")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = [video(number) for number in range(NUM_VIDEOS)]
    for shard in range(12):
        Dataset.from_list(rows[4 * shard : 4 * shard + 4]).to_parquet(str(folder / f"train-{shard:05d}.parquet"))
    return folder


def stream(folder, **settings):
    rows = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
    return ClipStream(rows, WindowSampler(LANGUAGES, seed=3), **settings)


# The window and its cues


@pytest.mark.parametrize(
    ("window", "cues"),
    [
        ((0, 30), (0, 10)),
        ((3, 5), (1, 2)),
        ((3.9, 7.5), (1, 3)),
        ((2, 3), (0, 1)),
        ((5.2, 5.4), (1, 2)),
        ((99, 120), (9, 10)),
    ],
)
def test_the_nearest_cues_are_those_that_lie_in_the_window_by_half_else_the_one_next_to_it(window, cues):
    assert nearest_cues(video(1)["start_en"], video(1)["end_en"], *window) == cues


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0.01, 9), min_size=2, max_size=24),
    start=st.floats(0, 60),
    length=st.floats(0.1, 40),
)
def test_the_nearest_cues_are_what_a_loop_finds(gaps, start, length):
    times = np.cumsum(gaps)[: len(gaps) // 2 * 2].reshape(-1, 2)
    starts, ends, end = times[:, 0].tolist(), times[:, 1].tolist(), start + length
    first, last = nearest_cues(starts, ends, start, end)
    middles = [(a + b) / 2 for a, b in zip(starts, ends, strict=True)]
    inside = [cue for cue, middle in enumerate(middles) if start <= middle < end]
    nearest = min(range(len(middles)), key=lambda cue: abs(middles[cue] - (start + end) / 2))
    assert list(range(first, last)) == (inside or [nearest])


def test_a_clip_is_a_window_within_the_video_of_the_lengths_asked_for():
    sampler = WindowSampler(LANGUAGES, shortest=4, longest=10)
    clips = [sampler.sample(video(1), epoch, seconds=29.0) for epoch in range(400)]
    lengths = np.array([clip["end"] - clip["start"] for clip in clips])
    starts = np.array([clip["start"] for clip in clips])
    assert starts.min() >= 0 and max(clip["end"] for clip in clips) <= 29
    assert 4 <= lengths.min() < 4.3 and 9.7 < lengths.max() <= 10 and abs(lengths.mean() - 7) < 0.3
    assert starts.max() > 20
    short = sampler.sample(video(1), 0, seconds=3.0)
    assert (short["start"], short["end"]) == (0, 3)
    assert sampler.sample(video(1), 0)["end"] <= 29  # without features, the last cue's end


def test_one_language_of_those_available_is_drawn_evenly():
    sampler = WindowSampler(LANGUAGES)
    drawn = Counter()
    for epoch in range(900):
        (column,) = [key for key in sampler.sample(video(1), epoch) if key.startswith("text_")]
        drawn[column] += 1
    assert set(drawn) == {"text_en", "text_de", "text_sw"} and min(drawn.values()) > 240
    without = {key for epoch in range(50) for key in sampler.sample(video(3), epoch) if key.startswith("text_")}
    assert without == {"text_en", "text_de"}
    assert WindowSampler(["sw"]).sample(video(3), 0) is None
    pair = WindowSampler(LANGUAGES, languages_per_clip=2).sample(video(3), 0)
    assert {"text_en", "text_de"} <= pair.keys()


def test_the_text_is_the_joined_cues_of_the_window():
    clip = WindowSampler(["de"], shortest=6, longest=6).sample(video(5), 2)
    first, last = nearest_cues(video(5)["start_de"], video(5)["end_de"], clip["start"], clip["end"])
    assert clip["text_de"] == " ".join(f"de 5 {cue}" for cue in range(first, last)) and last - first == 2


def test_a_draw_depends_on_seed_epoch_and_video_and_nothing_else():
    one = WindowSampler(LANGUAGES, seed=1)
    assert one.sample(video(1), 4) == WindowSampler(LANGUAGES, seed=1).sample(video(1), 4)
    others = [one.sample(video(1), 5), one.sample(video(2), 4), WindowSampler(LANGUAGES, seed=2).sample(video(1), 4)]
    assert len({clip["start"] for clip in [one.sample(video(1), 4), *others]}) == 4


@pytest.mark.parametrize(
    ("window", "steps"), [((0, 1), (0, 2)), ((1.2, 2.1), (2, 5)), ((9.9, 10), (19, 20)), ((5, 5.1), (10, 11))]
)
def test_the_steps_of_a_window_cover_it_and_are_at_least_one(window, steps):
    assert steps_of(*window, rate=2.0, num_steps=20) == steps


def test_bad_bounds_are_refused():
    with pytest.raises(ValueError, match="0 < shortest <= longest"):
        WindowSampler(LANGUAGES, shortest=9, longest=3)
    with pytest.raises(ValueError, match="languages_per_clip is 4; choose 1 to 3"):
        WindowSampler(LANGUAGES, languages_per_clip=4)


# Streams


@pytest.fixture(scope="module")
def alone(folder):
    """What one process without workers draws in epoch 1."""
    clips = stream(folder)
    clips.set_epoch(1)
    return list(clips)


def test_an_epoch_has_every_video_once_in_a_new_order_across_shards(folder, alone):
    assert sorted(clip["video_id"] for clip in alone) == sorted(f"v{n}" for n in range(NUM_VIDEOS))
    clips = stream(folder)
    first, again = list(clips), list(clips)
    assert first == again
    assert [clip["video_id"] for clip in first] != [clip["video_id"] for clip in alone]
    neighbours = [int(a["video_id"][1:]) // 4 == int(b["video_id"][1:]) // 4 for a, b in pairwise(first)]
    assert sum(neighbours) < 5  # of one shard, side by side


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 2), (5, 0)])
def test_any_number_of_processes_and_workers_draws_the_same_clips(folder, alone, world_size, num_workers):
    found = []
    for rank in range(world_size):
        clips = stream(folder, rank=rank, world_size=world_size)
        clips.set_epoch(1)
        found.append(
            [clip for batch in DataLoader(clips, 3, num_workers=num_workers, collate_fn=list) for clip in batch]
        )
    everything = sorted((clip for part in found for clip in part), key=lambda clip: clip["video_id"])
    assert everything == sorted(alone, key=lambda clip: clip["video_id"])
    assert max(map(len, found)) - min(map(len, found)) <= 8


@pytest.mark.parametrize("taken", [1, 30, 47])
def test_a_stream_resumes_in_the_middle_of_an_epoch_at_the_next_clip(folder, alone, taken):
    clips = stream(folder)
    clips.set_epoch(1)
    iterator = iter(clips)
    before = [next(iterator) for _ in range(taken)]
    state = clips.state_dict()
    resumed = stream(folder)
    resumed.load_state_dict(state)
    assert before + list(resumed) == alone


def test_videos_without_the_language_are_left_out_and_counted(folder):
    rows = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)
    clips = ClipStream(rows, WindowSampler(["sw"]))
    assert len(list(clips)) == 32 and clips.left_out == 16


# With features, by index


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Multi-HowTo100M as the builder writes it, and features of 12 seconds at two steps a second."""
    folder = tmp_path_factory.mktemp("howto")
    ids = official_files.how2(folder / "source", num_videos=14)
    for name in ("a", "b"):
        clips = ((video_id, np.arange(24)[:, None] + np.zeros((1, 2))) for video_id in ids)
        write_feature_store(folder / name, clips, extractor=name, revision="1", rate=2.0, file_format="arrow")
    features = [str(folder / name) for name in ("a", "b")]
    places = ["--data_dir", str(folder / "source"), "--output_dir", str(folder / "out")]
    build_corpus("multi_howto100m", [*places, "--features", *features])
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    return folder / "out", features


def test_windows_of_features_are_those_of_the_clip(built):
    folder, stores = built
    rows = load_dataset(str(folder), split="train")
    clips = SampledClips(rows, FeatureStores(stores), WindowSampler(official_files.NINE, shortest=2, longest=5))
    clip = clips[7, 1, 3]
    first, last = steps_of(clip["start"], clip["end"], 2.0, 24)
    assert clip["video_features"].shape == (last - first, 4) and clip["draw"] == (7, 1, 3)
    assert clip["video_features"][:, 0].tolist() == list(range(first, last))
    assert clips[7, 1, 3]["start"] == clip["start"] != clips[8, 1, 3]["start"]
    assert clip["video_id"] == rows[3]["video_id"]


def test_by_index_and_by_stream_a_video_gives_the_same_clip(built):
    folder, stores = built
    sampler = WindowSampler(official_files.NINE, seed=5)
    by_index = SampledClips(load_dataset(str(folder), split="train"), FeatureStores(stores), sampler)
    streamed = ClipStream(load_dataset(str(folder), split="train", streaming=True), sampler, FeatureStores(stores))
    streamed.set_epoch(2)
    wanted = {clip["video_id"]: clip for clip in (by_index[5, 2, row] for row in range(len(by_index)))}
    for clip in streamed:
        want = wanted.pop(clip["video_id"])
        assert np.array_equal(clip.pop("video_features"), want.pop("video_features"))
        assert clip | {"draw": want["draw"]} == want
    assert not wanted


def test_videos_without_enough_languages_have_no_index(built):
    folder, stores = built
    rows = load_dataset(str(folder), split="train")
    assert len(SampledClips(rows, FeatureStores(stores), WindowSampler(["es"]))) == 12
    assert len(SampledClips(rows, FeatureStores(stores), WindowSampler(["es", "en"]))) == 14
    assert len(SampledClips(rows, FeatureStores(stores), WindowSampler(["es", "en"], languages_per_clip=2))) == 12


def test_stores_without_a_clock_are_refused(built, tmp_path):
    folder, stores = built
    write_feature_store(tmp_path / "still", [("a", np.ones((1, 2)))], extractor="x", revision="1")
    with pytest.raises(ValueError, match="every store needs the same rate"):
        SampledClips(
            load_dataset(str(folder), split="train"), FeatureStores([str(tmp_path / "still")]), WindowSampler(["en"])
        )


# The simulated Multi-HowTo100M, at 1 % (by hand at full size: benchmarks/simulated_howto100m.py, docs/scale.md)


def test_one_percent_of_a_simulated_howto100m_is_drawn_in_little_memory_and_all_languages(tmp_path, monkeypatch):
    """In a process of its own: the tests before it leave memory behind in this one."""
    root = Path(__file__).resolve().parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import simulated_howto100m as simulated

    code = "import sys, datasets, torch, simulated_howto100m\n"  # torch, as in training
    code += "datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05\nsimulated_howto100m.main(sys.argv[1:])"
    options = {"videos": simulated.VIDEOS // 100, "output_dir": tmp_path / "index", "results": tmp_path / "found.json"}
    words = [f"--{name}={value}" for name, value in options.items()]
    path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
    subprocess.run([sys.executable, "-c", code, *words], env=os.environ | path, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["clips"] == found["videos"] == 12_000 and abs(found["cues"] / 1_380_000 - 1) < 0.02
    assert max(found["resident_mib"]) < 2048 and found["resident_mib"][-1] - found["resident_mib"][4] < 100
    # every video has 7 to 9 of nine, drawn evenly: a share of 1/9 each, give or take what 12,000 draws do
    assert all(abs(share - 1 / 9) < 5 * (1 / 9 * 8 / 9 / 12_000) ** 0.5 for share in found["languages"].values())
    assert 4 < found["mean_clip_seconds"] < 32
    texts = simulated.CueTexts("00000000001", "sw", 9)
    assert texts[2:4] == [texts[2], texts[3]] and texts[2] != texts[3] and texts[2].startswith("sw")
