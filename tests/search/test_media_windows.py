"""Windows of a video, its frames in chunks, and which steps are whose."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_media import RATE, write_animation, write_film, write_picture
from tiny_vision import PIXELS, SIDE
from video_files import numbers_of, write_video

from modeling_mmt.data.errors import InputError
from modeling_mmt.extraction.encoders import StepPreparation
from modeling_mmt.search import media_windows
from modeling_mmt.search.media_windows import MediaReader, Plan, WindowRule, chunks_of, clip_id, steps_of


@pytest.mark.parametrize(
    ("duration", "spans"),
    [
        (0.04, [(0, 0.04)]),
        (8, [(0, 8)]),
        (8.5, [(0, 8), (4, 8.5)]),
        (20, [(0, 8), (4, 12), (8, 16), (12, 20)]),
        (21, [(0, 8), (4, 12), (8, 16), (12, 20), (16, 21)]),
    ],
)
def test_windows_begin_every_stride_and_the_last_one_is_the_first_to_reach_the_end(duration, spans):
    assert WindowRule(8, 4).spans(duration) == spans


def test_windows_end_at_shot_changes_and_long_shots_are_cut():
    assert WindowRule(8, 4).spans(30, cuts=[3, 17.25, 30]) == [
        (0, 3),
        *[(3, 11), (7, 15), (11, 17.25)],
        *[(17.25, 25.25), (21.25, 29.25), (25.25, 30)],
    ]


@pytest.mark.parametrize("rule", [(8, 0), (4, 8), (-1, -1), (float("inf"), 1), (float("nan"), 1)])
def test_a_rule_that_leaves_gaps_or_never_ends_is_refused(rule):
    with pytest.raises(InputError, match="give 0.1 <= stride <= window"):
        WindowRule(*rule)


def test_a_window_has_the_steps_whose_middles_lie_in_it():
    generator = np.random.default_rng(0)
    for _ in range(300):
        rate, num_steps = generator.choice([0.25, 1, 2, 3, 25]), int(generator.integers(1, 60))
        start = generator.uniform(0, num_steps / rate)
        span = (start, start + generator.uniform(0.01, 10))
        found = range(num_steps)[steps_of(span, rate, num_steps)]
        inside = [step for step in range(num_steps) if span[0] <= (step + 0.5) / rate < span[1]]
        assert list(found) == inside if inside else len(found) == 1


def test_a_name_tells_a_window_s_file_and_seconds():
    assert clip_id("kitchen/kettle.mp4", (8.0, 16.0)) == "kitchen/kettle.mp4#8.0-16.0"


def reader(rate=2.0, window=8.0, stride=4.0, **rule):
    return MediaReader([StepPreparation(PIXELS)], rate, WindowRule(window, stride, **rule))


def read_whole(read, path, frames_per_step=1):
    """Planned, frames of all chunks side by side, and all thumbnails."""
    planned = read(Plan(str(path)))
    chunks = [read(call) for call in chunks_of(str(path), planned, read.rate, frames_per_step)]
    thumbnails = {number: jpeg for chunk in chunks for number, jpeg in chunk.thumbnails.items()}
    return planned, np.concatenate([chunk.pixels[0] for chunk in chunks]), thumbnails


def test_a_film_s_frames_are_those_shown_at_the_middle_of_each_period(tmp_path):
    film = write_film(tmp_path / "a.mp4", 13)
    planned, frames, thumbnails = read_whole(reader(), film)
    assert (planned.duration, planned.num_frames) == (13, 26)
    assert planned.spans == [(0, 8), (4, 12), (8, 13)]
    assert numbers_of(torch.from_numpy(frames)) == [int((k + 0.5) / 2 * RATE) for k in range(26)]
    assert sorted(thumbnails) == [8, 16, 21]  # at 4, 8 and 10.5 seconds
    picture = Image.open(io.BytesIO(thumbnails[16]))
    assert max(picture.size) <= 160
    assert numbers_of(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]) == [int(8.25 * RATE)]


@pytest.mark.parametrize("seconds", [0.25, 4.0, 12.75, 13.0])
@pytest.mark.parametrize("rate", [2.0, 3.0, 10.0])
def test_what_is_read_of_a_film_does_not_depend_on_its_chunks(tmp_path, monkeypatch, seconds, rate):
    film = write_film(tmp_path / "a.mkv", seconds)
    whole = read_whole(reader(rate), film)
    for size in (1, 4, 7):
        monkeypatch.setattr(media_windows, "CHUNK_FRAMES", size)
        planned, frames, thumbnails = read_whole(reader(rate), film)
        assert planned == whole[0] and len(frames) == planned.num_frames
        np.testing.assert_array_equal(frames, whole[1])
        assert thumbnails == whole[2]


def test_chunks_hold_whole_steps(monkeypatch):
    monkeypatch.setattr(media_windows, "CHUNK_FRAMES", 10)
    planned = media_windows.Planned("", 15.0, 30, [(0.0, 15.0)])
    assert [call.num_frames for call in chunks_of("a", planned, 2.0, 4)] == [8, 8, 8, 6]
    assert [call.num_frames for call in chunks_of("a", planned, 2.0, 16)] == [16, 14]


def test_a_picture_is_one_frame_without_times_and_an_animation_is_a_film(tmp_path):
    planned, frames, thumbnails = read_whole(reader(), write_picture(tmp_path / "a.png", 77))
    assert (planned.duration, planned.spans) == (None, []) and numbers_of(torch.from_numpy(frames)) == [77]
    assert list(thumbnails) == [0]
    planned, frames, _ = read_whole(reader(rate=1.0, window=2, stride=2), write_animation(tmp_path / "a.gif"))
    assert planned.duration == 5 and planned.spans == [(0, 2), (2, 4), (4, 5)]
    assert numbers_of(torch.from_numpy(frames)) == [101, 103, 105, 107, 109]


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_shot_changes_are_found_where_the_picture_changes(tmp_path, ending):
    pytest.importorskip("scenedetect", reason="cutting at shot changes: extra `shots`")
    colours = [(200, 30, 30)] * 24 + [(20, 60, 220)] * 36 + [(30, 200, 60)] * 12  # 12 a second: cuts at 2 and 5
    pictures = [np.full((48, 64, 3), colour, np.uint8) for colour in colours]
    path = tmp_path / f"a.{ending}"
    if ending == "mp4":
        write_video(path, pictures, rate=12)
    else:
        frames = [Image.fromarray(pictures[place]) for place in (0, 24, 60)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=[2000, 3000, 1000])
    assert media_windows.shot_changes(str(path)) == pytest.approx([2, 5], abs=0.5 / media_windows.SHOT_RATE)
    planned = reader(shots=True, window=2, stride=2)(Plan(str(path)))
    assert [len(planned.spans), planned.spans[0][1], planned.spans[-1][0]] == pytest.approx([4, 2, 5], abs=0.1)


def test_without_pyscenedetect_shots_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ImportError, match=r"pip install modeling_mmt\[shots\]"):
        reader(shots=True)


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    path = write_picture(tmp_path / "a.png", 3)
    read = pickle.loads(pickle.dumps(reader()))
    assert read_whole(read, path)[1].shape == (1, 3, SIDE, SIDE)


def test_windows_closer_than_their_times_tell_apart_are_refused():
    with pytest.raises(InputError, match="give 0.1 <= stride <= window"):
        WindowRule(1.0, 0.0004)
    spans = WindowRule(1.0, 0.1).spans(1.5)
    assert len(set(spans)) == len(spans) == 6
