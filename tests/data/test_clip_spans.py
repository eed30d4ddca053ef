"""Rows that say which seconds of a video are the clip: the same frames in training, in search and in extraction."""

import datasets
import pytest
import torch
from PIL import Image
from video_files import number_frame, numbers_of

from modeling_mmt.data.clips import ClipColumn, FrameReader
from modeling_mmt.extraction.clips import clips_of_dataset
from modeling_mmt.extraction.encoders import StepPreparation, VideoReader
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.processing_mmt import MMTVideoFeatureExtractor

SETTINGS = PixelSettings(48, 64, (48, 64), (0.0,) * 3, (1.0,) * 3)
TEN_A_SECOND = FrameSampling(None, 10.0)
SPANS = {"a": (0.2, 0.5), "b": (0.5, None), "c": (None, None)}
FRAMES = {"a": [2, 3, 4], "b": [5, 6, 7], "c": list(range(8))}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A dataset of one animation of eight numbered frames, three spans of it; the folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    frames = [Image.fromarray(number_frame(number)) for number in range(8)]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    film = {"bytes": (tmp_path / "film.webp").read_bytes(), "path": "film.webp"}
    starts, ends = zip(*SPANS.values(), strict=True)
    columns = {"video_id": list(SPANS), "file": ["../film.webp"] * 3, "video": [film] * 3}
    rows = datasets.Dataset.from_dict(
        columns | {"start": starts, "end": ends},
        datasets.Features(
            {"video_id": datasets.Value("string"), "file": datasets.Value("string"), "video": datasets.Video()}
            | {key: datasets.Value("float64") for key in ("start", "end")}
        ),
    )
    (tmp_path / "corpus").mkdir()
    rows.to_parquet(str(tmp_path / "corpus" / "train.parquet"))
    return tmp_path / "corpus"


def rows_of(corpus):
    return datasets.Dataset.from_parquet(str(corpus / "train.parquet"), cache_dir=str(corpus.parent / "cache"))


@pytest.mark.parametrize("column", ["file", "video"])
def test_a_column_of_clips_gives_the_frames_of_each_span(column, corpus):
    clips = ClipColumn(rows_of(corpus), column, corpus)
    extractor = MMTVideoFeatureExtractor(4, 8, [SETTINGS], TEN_A_SECOND)
    read = FrameReader(clips, extractor.read)
    assert {clip: numbers_of(read(clip)[0]) for clip in clips} == FRAMES


@pytest.mark.parametrize("column", ["file", "video"])
def test_another_span_is_another_clip_for_a_stage(column, corpus):
    rows = rows_of(corpus)
    other = rows.map(lambda row: {"end": 0.4} if row["video_id"] == "a" else {})
    same = rows.map(lambda row: {"video_id": row["video_id"]})
    prints = [ClipColumn(each, column, corpus).fingerprint() for each in (rows, other, same)]
    assert prints[0] == prints[2] != prints[1]


def test_extraction_of_a_dataset_reads_the_spans(corpus):
    clips = clips_of_dataset(str(corpus), None)
    reader = VideoReader(StepPreparation(SETTINGS), TEN_A_SECOND)
    found = {video.video_id: numbers_of(torch.from_numpy(reader(clips.load(video)))) for video in clips.videos}
    assert found == FRAMES
    rows = rows_of(corpus).map(lambda row: {"end": 0.4} if row["video_id"] == "a" else {})
    rows.to_parquet(str(corpus / "train.parquet"))
    assert clips_of_dataset(str(corpus), None).source["fingerprints"] != clips.source["fingerprints"]


def test_seconds_that_are_texts_are_refused(corpus):
    rows = rows_of(corpus).cast_column("start", datasets.Value("string"))
    with pytest.raises(ValueError, match="columns start and end are {'start': 'string', 'end': 'float64'}"):
        ClipColumn(rows, "file", corpus)


def test_seconds_that_are_lists_belong_to_cues(corpus):
    rows = rows_of(corpus).remove_columns(["start", "end"]).add_column("start", [[0.1], [0.2], None])
    rows = rows.add_column("end", [[0.2], [0.3], None])
    assert rows["start"][0] == [0.1] and ClipColumn(rows, "file", corpus)["a"] == str(corpus / "../film.webp")
