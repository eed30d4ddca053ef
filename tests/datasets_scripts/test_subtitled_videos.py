"""A folder of videos with subtitles becomes what pre-training draws windows from; every choice is counted."""

import json
import os

import datasets
import numpy as np
import official_files
import pyarrow.parquet as pq
import pytest
from command_line import call
from killed_process import files_of

from datasets_scripts import subtitled_videos
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.video_lists import find_videos
from modeling_mmt.data.windows import SampledClips, WindowSampler

SRT = "1\n00:00:00,200 --> 00:00:01,200\n{}\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    official_files.write_film(tmp_path / "videos/talk.mkv", {})
    return tmp_path / "videos"


def build(capsys, folder, *options):
    """Run the verb; returns its exit code, rows by id, counts that are not 0, and what it printed."""
    out = folder.parent / "out"
    code, printed, errors = call(
        capsys, "build", "subtitled_videos", "--data_dir", folder, "--output_dir", out, *options
    )
    if code:
        return code, {}, {}, errors
    rows = {row["video_id"]: row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()}
    rules = json.loads((out / "build.json").read_text())["rules"]
    return code, rows, {name: rule["count"] for name, rule in rules.items() if rule["count"]}, printed


def texts(row):
    return {column.removeprefix("text_"): value for column, value in row.items() if column.startswith("text_")}


def test_ids_are_those_of_extract_and_windows_are_drawn_as_of_multi_howto100m(tmp_path, capsys):
    ids = official_files.subtitled(tmp_path / "videos")
    assert [video.video_id for video in find_videos(tmp_path / "videos")] == ids
    store = write_feature_store(
        tmp_path / "store", ((i, np.ones((4, 3))) for i in ids), extractor="made up", revision="1", rate=2.0
    )
    code, rows, counts, _ = build(capsys, tmp_path / "videos", "--features", store)
    assert code == 0 and [*rows] == ids and counts == {}
    assert texts(rows[ids[1]])["sw"] == [official_files.caption(1, "sw", cue) for cue in range(3)]
    assert rows[ids[0]]["start_pt-BR"] == [0.0, 0.5, 1.0]
    assert rows[ids[0]]["end_en"] == pytest.approx([0.4, 0.9, 1.4], abs=1e-6)
    table = datasets.Dataset.from_list(list(rows.values()))
    clips = SampledClips(
        table, FeatureStores([store]), WindowSampler(["en", "pt-BR", "sw"], shortest=0.5, longest=1.0)
    )
    clip = clips[0, 0, 2]
    assert len(clips) == 4 and clip["video_id"] == ids[2] and len(clip["video_features"]) >= 1


def test_the_card_is_of_these_videos(tmp_path, capsys):
    official_files.subtitled(tmp_path / "videos")
    build(capsys, tmp_path / "videos")
    card = (tmp_path / "out/README.md").read_text()
    assert "# Subtitled videos" in card and "`mmt build subtitled_videos" in card and "HowTo100M" not in card
    assert "film0.en.srt" in card and "film0.mkv" in card


def test_a_file_goes_before_a_stream_and_plain_subtitles_before_those_for_the_deaf(folder, capsys):
    official_files.write_film(folder / "talk.mkv", {"eng": [(0, 1, "of the stream")], "fre": [(0, 1, "du flux")]})
    for name, text in {"talk.en.sdh": "for the deaf", "talk.en": "plain", "talk.en.forced": "foreign"}.items():
        (folder / f"{name}.srt").write_text(SRT.format(text))
    _, rows, counts, _ = build(capsys, folder)
    assert texts(rows["talk"]) == {"en": ["plain"], "fr": ["du flux"]}
    assert counts == {"repeated_language": 2, "forced": 1}


def test_the_longest_name_of_a_video_has_the_file(folder, capsys):
    official_files.write_film(folder / "talk.2.mkv", {})
    (folder / "talk.2.en.srt").write_text(SRT.format("second"))
    (folder / "talk.en.srt").write_text(SRT.format("first"))
    (folder / "other.en.srt").write_text(SRT.format("of no video"))
    _, rows, counts, _ = build(capsys, folder)
    assert {i: texts(row) for i, row in rows.items()} == {"talk": {"en": ["first"]}, "talk.2": {"en": ["second"]}}
    assert counts == {"no_video": 1}


def test_what_names_no_language_is_left_out_unless_one_is_given_which_goes_after_those_that_name_it(folder, capsys):
    (folder / "talk.srt").write_text(SRT.format("unnamed"))
    code, _, _, errors = build(capsys, folder)
    assert code == 2 and "none of its videos (1) has subtitles in the languages asked for; name" in errors
    assert errors.count("\n") == 1
    _, rows, counts, _ = build(capsys, folder, "--language", "EN")
    assert texts(rows["talk"]) == {"en": ["unnamed"]} and counts == {}
    (folder / "talk.en.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nnamed\n")
    _, rows, counts, _ = build(capsys, folder, "--language", "en")
    assert texts(rows["talk"]) == {"en": ["named"]} and counts == {"repeated_language": 1}


def test_languages_that_are_named_take_their_varieties(folder, capsys):
    for tag, text in {"pt-BR": "um", "zh-Hans": "红", "zh": "狗", "de": "eins"}.items():
        (folder / f"talk.{tag}.srt").write_text(SRT.format(text))
    _, rows, counts, _ = build(capsys, folder, "--languages", "pt", "zh")
    assert texts(rows["talk"]) == {"pt": ["um"], "zh": ["狗"]}
    assert counts == {"variety": 2, "repeated_language": 1, "other_language": 1}
    assert build(capsys, folder, "--languages", "portuguese")[0] == 2


def test_whispers_files_are_read_and_other_json_of_the_video_is_not(folder, capsys):
    segments = [{"start": 0.2, "end": 1.0, "text": " mbwa"}]
    (folder / "talk.json").write_text(json.dumps({"segments": segments, "language": "sw"}))
    (folder / "talk.en.tsv").write_text("start\tend\ttext\n200\t1000\tdog\n")
    (folder / "talk.info.json").write_text('{"title": "from a video site"}')
    _, rows, counts, _ = build(capsys, folder)
    assert texts(rows["talk"]) == {"en": ["dog"], "sw": ["mbwa"]} and counts == {"no_transcript": 1}


def test_what_cannot_be_read_is_printed_counted_and_left_out(folder, capsys):
    (folder / "talk.en.srt").write_text(SRT.format("here"))
    (folder / "talk.de.srt").write_text("no subtitles")
    (folder / "torn.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"x" * 100)
    (folder / "talk.fr.sub").write_bytes(b"pictures")
    code, rows, counts, printed = build(capsys, folder)
    assert code == 0 and texts(rows["talk"]) == {"de": None, "en": ["here"]}
    assert counts == {"unreadable": 2, "other_format": 1, "no_subtitles": 1}
    assert f"left out: {folder / 'talk.de.srt'}: no cue of SRT" in printed
    assert f"left out: {folder / 'torn.mp4'} cannot be read as a video: Invalid data found" in printed
    assert "file:" not in printed and ".py, line" not in printed


def test_a_span_of_metadata_has_its_cues_in_its_own_seconds(folder, capsys):
    (folder / "talk.en.srt").write_text(
        "1\n00:00:00,000 --> 00:00:00,500\nbefore\n\n2\n00:00:00,800 --> 00:00:01,300\nacross\n\n"
        "3\n00:00:01,400 --> 00:00:01,900\ninside, cut\n"
    )
    (folder / "metadata.jsonl").write_text('{"file_name": "talk.mkv", "video_id": "a", "start": 1.0, "end": 1.8}\n')
    _, rows, _, _ = build(capsys, folder)
    assert rows["a"]["text_en"] == ["across", "inside, cut"]
    assert rows["a"]["start_en"] == pytest.approx([0, 0.4]) and rows["a"]["end_en"] == pytest.approx([0.3, 0.8])


def test_a_build_without_any_cue_leaves_the_earlier_data(folder, capsys):
    (folder / "talk.en.srt").write_text(SRT.format("here"))
    build(capsys, folder)
    before = {p: p.read_bytes() for p in (folder.parent / "out").rglob("*") if p.is_file()}
    (folder / "talk.en.srt").write_text(SRT.format("www.example.org"))
    code, _, _, errors = build(capsys, folder)
    assert code == 2 and errors.count("\n") == 1 and "split 'train' has no clip" in errors
    assert before == {p: p.read_bytes() for p in (folder.parent / "out").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_nodes_of_a_cluster_read_what_one_process_reads(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    for number in range(4):
        texts = {"eng": [(0, 1, f"of stream {number}")], "fre": [(0, 1, "du flux")]}
        official_files.write_film(folder / f"film{number}.mkv", texts)
    (folder / "talk.de.srt").write_text(SRT.format("der Datei"))
    (folder / "film0.de.srt").write_bytes(b"\xff\xfe\xff")
    (folder / "broken.mp4").write_bytes(b"no film at all")
    code, rows, counts, printed = build(capsys, folder)
    assert code == 0 and len(rows) == 5 and counts["unreadable"] >= 1 and "left out: " in printed
    plain = files_of(tmp_path / "out")
    monkeypatch.setattr(subtitled_videos, "VIDEOS_A_TASK", 2)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    code, _, again, printed_again = build(capsys, folder, "--cluster", "local")
    assert (code, again, printed_again) == (0, counts, printed)
    assert files_of(tmp_path / "out") == plain
