"""`experiments/film9_films.py`: films, subtitles, captions and truth; the small corpus is made."""

import csv
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import film9_films as maker  # noqa: E402

from modeling_mmt.commands.build import build  # noqa: E402
from modeling_mmt.data.errors import InputError  # noqa: E402
from modeling_mmt.data.languages import LANGUAGES  # noqa: E402
from modeling_mmt.data.reading import read_split  # noqa: E402
from modeling_mmt.data.video_lists import find_videos  # noqa: E402
from modeling_mmt.frames_mmt import FrameSampling  # noqa: E402
from modeling_mmt.video_decoding_mmt import read_clip  # noqa: E402

IDS = [f"clip{number}" for number in range(400)]
WORDS = [[f"word{row}a", f"word{row}b", f"word{row}c", f"word{row}d"] for row in range(len(IDS))]


@pytest.fixture(scope="module")
def films():
    return maker.plan("train", IDS, copies=3)


def test_every_clip_is_shown_as_often_as_asked_and_at_most_twice_more_to_fill_the_last_film(films):
    times = Counter(showing.video_id for film in films for showing in film.showings)
    assert set(times) == set(IDS) and min(times.values()) == 3
    assert sum(times.values()) - 3 * len(IDS) <= maker.SHORTEST / maker.SHOWN[0]


def test_films_last_3_to_12_minutes_and_clips_3_to_9_seconds_without_a_gap(films):
    assert all(180 <= film.seconds <= 720 for film in films)
    for film in films:
        assert film.showings[0].start == 0.0
        for before, after in pairwise(film.showings):
            assert before.end == after.start
        for showing in film.showings:
            assert 3 - 0.5 / film.rate <= showing.end - showing.start <= 9 + 0.5 / film.rate
            assert showing.end * film.rate == pytest.approx(round(showing.end * film.rate), abs=1e-6)


def test_half_of_a_films_clips_fade_in_and_films_differ_in_size_and_rate(films):
    assert all(abs(2 * sum(one.fades for one in film.showings) - len(film.showings)) <= 1 for film in films)
    assert len({film.size for film in films}) >= 4 and len({film.rate for film in films}) == len(maker.RATES)


def test_the_plan_is_the_seeds_alone(films):
    assert maker.plan("train", IDS, copies=3) == films
    assert maker.plan("train", IDS, copies=3, seed=1) != films


def test_a_cue_says_1_to_3_keywords_of_its_clip_at_most_two_seconds_from_it(films):
    film = films[0]
    by_row = {}
    for showing in film.showings:
        by_row.setdefault(showing.row, []).append(showing)
    for start, end, text in maker.cues_of(film, "sw", WORDS):
        lines = [line.split(", ") for line in text.split("\n")]
        rows = [int(words[0][4:-1]) for words in lines]
        for row, words in zip(rows, lines, strict=True):
            assert 1 <= len(set(words)) == len(words) <= 3 and set(words) <= set(WORDS[row])
        assert any(abs(one.start - start) <= 2 for row in rows for one in by_row[row])
        assert any(abs(one.end - end) <= 2 for row in rows for one in by_row[row])


def test_about_a_tenth_of_the_cues_is_missing_and_another_joined(films):
    cues = [cue for film in films for language in LANGUAGES for cue in maker.cues_of(film, language, WORDS)]
    shown = len(LANGUAGES) * sum(len(film.showings) for film in films)
    joined = sum("\n" in text for *_, text in cues)
    assert 1 - (len(cues) + joined) / shown == pytest.approx(maker.MISSING, abs=0.01)
    assert joined / shown == pytest.approx(maker.JOINED * (1 - maker.MISSING), abs=0.02)
    assert all(0 <= start < end for start, end, _ in cues)


def test_only_the_white_around_a_drawing_is_cut_away():
    frame = Image.new("RGB", (20, 20), "white")
    ImageDraw.Draw(frame).rectangle((5, 5, 14, 14), fill="red")
    ImageDraw.Draw(frame).rectangle((8, 8, 11, 11), fill="white")
    alpha = np.asarray(maker.cut_out(frame))[..., 3]
    assert alpha[0, 0] == alpha[4, 10] == alpha[15, 15] == 0
    assert alpha[5, 5] == alpha[10, 10] == 255


def test_a_background_that_moves_goes_round_without_a_seam():
    moved = maker.background((64, 48), np.random.default_rng(0)).astype(int)
    seam = np.abs(moved[:, 0] - moved[:, -1]).mean()
    assert seam < 3 * np.abs(np.diff(moved, axis=1)).mean()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film9")
    return folder, maker.make_corpus(folder, small=True, jobs=2)


def test_the_small_corpus_is_media_subtitles_and_captions_alone(corpus):
    folder, films = corpus
    endings = Counter(path.suffix for path in (folder / "films").rglob("*") if path.is_file())
    assert set(endings) == {".mp4", ".mkv", ".srt", ".vtt", ".csv"} and endings[".csv"] == 1
    assert endings[".srt"] + endings[".vtt"] == len(LANGUAGES) * endings[".mp4"]
    assert sorted(path.name for path in folder.iterdir()) == ["films", "truth.json"]


def test_the_files_last_as_long_as_planned_with_h264_and_sound(corpus):
    folder, films = corpus
    for film in films:
        with av.open(str(folder / "films" / film.name)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height) == film.size and video.average_rate == film.rate
            assert container.duration / 1e6 == pytest.approx(film.seconds, abs=0.2)


def test_no_clip_is_in_the_films_of_two_splits(corpus):
    folder, films = corpus
    truth = json.loads((folder / "truth.json").read_text())["films"]
    shown = {film.split: {one["video_id"] for one in truth[film.name]["showings"]} for film in films}
    for split, clips in shown.items():
        assert clips == set(read_split("emoji9", None, split)["video_id"][: maker.SMALL_CLIPS])


def test_what_is_on_screen_is_what_the_truth_says(corpus):
    """The pixels of a drawing that are most its own colour are in the film in the middle of its showing."""
    folder, films = corpus
    film = films[0]
    clips = read_split("emoji9", None, "train")
    showing = film.showings[3]
    path = folder / "films" / film.name
    middle = (showing.start + showing.end) / 2
    frames = read_clip(str(path), FrameSampling(num_frames=1), start=middle, end=middle + 1 / film.rate)[0]
    shown = frames[0].permute(1, 2, 0).numpy()
    scene = maker.Scene(
        [maker.cut_out(frame) for frame in maker.frames_of(clips[showing.row])], film.size, film.generator(2, 3)
    )
    wanted = [scene.pixels(middle - showing.start + shift / film.rate).astype(int) for shift in (-1, 0, 1, 2)]
    assert min(np.abs(shown.astype(int) - pixels).mean() for pixels in wanted) < 8


def test_the_subtitles_are_built_in_nine_languages_and_the_captions_become_clips(corpus, tmp_path, capsys):
    folder, _ = corpus
    for split in ("train", "validation"):  # mp4 with files beside it, mkv with streams inside it
        words = ["--data_dir", folder / "films" / split, "--output_dir", tmp_path / split]
        build("subtitled_videos", list(map(str, words)))
        (row,) = read_split(str(tmp_path / split), None, "train")
        assert all(len(row[f"text_{language}"]) > 15 for language in LANGUAGES)
    build("own_clips", ["--data_dir", str(folder / "films"), "--output_dir", str(tmp_path / "captions")])
    videos = find_videos(folder / "films" / "captions.csv")
    spans = {
        row["video_id"]: (row["start"], row["end"])
        for split in ("train", "validation")
        for row in read_split(str(tmp_path / "captions"), None, split)
    }
    assert len(videos) == len(spans) == 2 * maker.SMALL_CLIPS
    assert all((one.start, one.end) == pytest.approx(spans[one.video_id], abs=1e-3) for one in videos)


def test_the_captions_are_english_names_of_what_their_spans_show(corpus):
    folder, films = corpus
    names = {split: read_split("emoji9", None, split)["name_en"][:] for split in maker.SPLITS}
    showings = {(film.name, f"{one.start:.3f}"): (film, one) for film in films for one in film.showings}
    with (folder / "films" / "captions.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            film, showing = showings[line["file_name"], line["start"]]
            assert film.split != "test" and line["language"] == "en"
            assert line["caption"] == names[film.split][showing.row]


def test_a_film_is_made_again_byte_for_byte(corpus, tmp_path):
    folder, films = corpus
    film = next(film for film in films if film.name.endswith(".mkv"))
    maker.make(film, tmp_path)
    assert (tmp_path / film.name).read_bytes() == (folder / "films" / film.name).read_bytes()


def test_a_film_that_is_there_is_kept(corpus, monkeypatch):
    folder, films = corpus
    monkeypatch.setattr(maker, "write_film", None)
    assert maker.make(films[0], folder / "films") == films[0].name


def test_films_of_another_seed_are_not_taken_for_these(corpus):
    folder, _ = corpus
    with pytest.raises(InputError, match="truth.json: of films of another seed, size or share"):
        maker.make_corpus(folder, small=True, seed=1)
