"""The bundled corpus, and the builder on a small source folder that the test makes."""

import hashlib
import io
import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_scripts.emoji9 import (
    FRAME_SIZE,
    LANGUAGES,
    LICENCE_FILES,
    SPLITS,
    Emoji9,
    build,
    columns_of,
    features_of,
    is_flag,
    read_source,
)
from modeling_mmt.commands.build import build as build_corpus
from modeling_mmt.data.clips import frames_of

FOLDER = Path(__file__).parents[2] / "datasets_scripts" / "emoji9"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


@pytest.fixture(scope="module")
def tables():
    return {split: pq.read_table(FOLDER / "data" / f"{split}-00000-of-00001.parquet") for split in SPLITS}


@pytest.mark.parametrize(
    ("split", "clips", "animated", "flags"),
    [("train", 1152, 455, 135), ("validation", 150, 57, 25), ("test", 300, 118, 49)],
)
def test_the_bundled_splits_have_their_published_counts(tables, split, clips, animated, flags):
    table = tables[split]
    assert table.num_rows == clips
    assert sum(count == 8 for count in table["num_frames"].to_pylist()) == animated
    assert sum(table["is_flag"].to_pylist()) == flags
    assert set(table["num_frames"].to_pylist()) == {1, 8}


def test_no_clip_is_in_two_splits_neither_by_id_nor_by_picture(tables):
    ids = [video_id for table in tables.values() for video_id in table["video_id"].to_pylist()]
    pictures = [
        hashlib.sha256(frame["bytes"]).digest() for table in tables.values() for frame in table["frames"].to_pylist()
    ]
    assert len(set(ids)) == len(set(pictures)) == len(ids) == 1602


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_clip_has_keywords_and_a_name_of_its_own_in_each_language(tables, language):
    names = [name for table in tables.values() for name in table[f"name_{language}"].to_pylist()]
    keywords = [words for table in tables.values() for words in table[f"keywords_{language}"].to_pylist()]
    assert all(names) and len(set(names)) == 1602
    assert all(words and all(words) for words in keywords)


def test_every_strip_splits_into_its_frames(tables):
    for table in tables.values():
        for row in table.select(["video_id", "num_frames", "frames"]).to_pylist():
            frames = frames_of(row)
            assert len(frames) == row["num_frames"]
            assert {frame.size for frame in frames} == {(FRAME_SIZE, FRAME_SIZE)}


def test_the_folder_is_small_and_carries_its_licences():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 20_000_000
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for licence, owner in zip(LICENCE_FILES, ("Microsoft", "Unicode, Inc."), strict=True):
        assert owner in (FOLDER / licence).read_text(encoding="utf-8") and licence in card


@pytest.mark.parametrize("config", ["default", *LANGUAGES])
def test_every_config_of_the_card_loads_its_columns(config):
    part = datasets.load_dataset(str(FOLDER), config, split="validation")
    languages = LANGUAGES if config == "default" else [config]
    assert part.column_names == columns_of(languages) and part.features == features_of(languages)
    assert len(part) == 150 and frames_of(part[0])[0].mode == "RGB"


def test_the_default_config_is_the_one_without_a_name():
    front = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == ["default", *LANGUAGES]
    assert front["language"] == list(LANGUAGES)
    assert datasets.load_dataset(str(FOLDER), split="test").column_names == columns_of(LANGUAGES)


def test_a_language_streams_the_rows_that_loading_gives():
    streamed = datasets.load_dataset(str(FOLDER), "zh", split="test", streaming=True)
    loaded = datasets.load_dataset(str(FOLDER), "zh", split="test")
    row = next(iter(streamed))
    assert list(row) == columns_of(["zh"])
    assert {k: v for k, v in row.items() if k != "frames"} == {k: v for k, v in loaded[0].items() if k != "frames"}


@pytest.mark.parametrize(("emoji", "flag"), [("🇨🇿", True), ("🏁", False), ("🏴", False), ("🐕", False), ("🇨", False)])
def test_flags_are_pairs_of_regional_indicators(emoji, flag):
    assert is_flag(emoji) is flag


# The builder on three rows


def strip_bytes(num_frames: int, shade: int, size: int = FRAME_SIZE) -> bytes:
    strip = Image.new("RGB", (num_frames * size, size), (shade, shade, shade))
    for frame in range(num_frames):
        strip.paste((shade, 30 * frame, 0), (frame * size, 0, frame * size + size, 40))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def make_source(folder: Path) -> list[dict]:
    rows = []
    for number, (emoji, split, frames) in enumerate([("🐕", "train", 72), ("🇨🇿", "validation", 1), ("☀", "test", 33)]):
        points = "-".join(f"{ord(char):x}" for char in emoji) + ("-fe0f" if emoji == "☀" else "")
        record = {"emoji": emoji, "split": split, "file": f"strips/{points}.webp", "source_frames": frames}
        record["name"] = {language: f"name {number} {language}" for language in LANGUAGES}
        record["keywords"] = {language: [f"one {number}", language] for language in LANGUAGES}
        (folder / "strips").mkdir(parents=True, exist_ok=True)
        (folder / record["file"]).write_bytes(strip_bytes(8 if frames > 1 else 1, 60 * number))
        rows.append(record)
    write_index(folder, rows)
    return rows


def write_index(folder: Path, rows: list) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "emoji9.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_builder_gives_exactly_the_schema_and_the_strips_unchanged(tmp_path):
    rows = make_source(tmp_path / "source")
    flags = ["--data_dir", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out")]
    assert build_corpus("emoji9", flags) == dict.fromkeys(SPLITS, 1)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert list(loaded) == list(SPLITS) and loaded["train"].features == features_of(LANGUAGES)
    for row in rows:
        stored = loaded[row["split"]].cast_column("frames", datasets.Image(decode=False))[0]
        assert stored["video_id"] == Path(row["file"]).stem and stored["emoji"] == row["emoji"]
        assert stored["frames"]["bytes"] == (tmp_path / "source" / row["file"]).read_bytes()
        assert stored["source_frames"] == row["source_frames"] and stored["name_sw"] == row["name"]["sw"]
        assert stored["keywords_cs"] == row["keywords"]["cs"]
    assert loaded["validation"][0]["is_flag"] is True and loaded["test"][0]["video_id"] == "2600-fe0f"
    assert datasets.load_dataset(str(tmp_path / "out"), "sw", split="test").column_names == columns_of(["sw"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted([*LICENCE_FILES, "README.md", "data"])


def test_building_again_replaces_the_data(tmp_path):
    make_source(tmp_path / "source")
    build(tmp_path / "source", tmp_path / "out")
    first = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    build(tmp_path / "source", tmp_path / "out")
    assert first == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}


def test_the_builder_class_gives_the_same_rows_as_the_parquet(tmp_path):
    make_source(tmp_path / "source")
    build(tmp_path / "source", tmp_path / "out")
    builder = Emoji9(config_name="vi", data_dir=str(tmp_path / "source"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    row = builder.as_dataset("train")[0]
    loaded = datasets.load_dataset(str(tmp_path / "out"), "vi", split="train")[0]
    assert list(row) == list(loaded)
    assert row["frames"].tobytes() == loaded["frames"].tobytes() and row["name_vi"] == loaded["name_vi"]


def without(row: dict, field: str, language: str | None = None) -> dict:
    if language is None:
        return {key: value for key, value in row.items() if key != field}
    return row | {field: {key: value for key, value in row[field].items() if key != language}}


BAD_ROWS = {
    "a missing field": (lambda row: without(row, "split"), "field 'split' is missing"),
    "a missing language": (lambda row: without(row, "name", "sw"), "field 'name.sw' is missing"),
    "missing keywords": (lambda row: without(row, "keywords", "cs"), "field 'keywords.cs' is missing"),
    "an empty keyword list": (lambda row: row | {"keywords": row["keywords"] | {"de": []}}, "keywords.de' is \\[\\]"),
    "a text for keywords": (lambda row: row | {"keywords": row["keywords"] | {"de": "x"}}, "keywords.de' is 'x'"),
    "an empty name": (lambda row: row | {"name": row["name"] | {"fr": ""}}, "name.fr' is ''"),
    "a name with outer spaces": (lambda row: row | {"name": row["name"] | {"fr": "x "}}, "name.fr' is 'x '"),
    "a name with a tab": (lambda row: row | {"name": row["name"] | {"fr": "x\ty"}}, "name.fr' is 'x"),
    "names that are a list": (lambda row: row | {"name": ["x"]}, "field 'name' is"),
    "an unknown split": (lambda row: row | {"split": "dev"}, "'split' is 'dev'; write one of train, validation, test"),
    "a path out of the folder": (lambda row: row | {"file": "strips/../../1f415.webp"}, "field 'file' is"),
    "an absolute path": (lambda row: row | {"file": "/etc/1f415.webp"}, "field 'file' is"),
    "a file of another emoji": (lambda row: row | {"file": "strips/1f416.webp"}, "does not spell the field 'emoji'"),
    "a file that is a number": (lambda row: row | {"file": 3}, "field 'file' is 3"),
    "frames below one": (lambda row: row | {"source_frames": 0}, "'source_frames' is 0"),
    "frames that are a text": (lambda row: row | {"source_frames": "72"}, "'source_frames' is '72'"),
    "a still picture with a wide strip": (lambda row: row | {"source_frames": 1}, "'source_frames' 1 needs"),
    "an emoji that is empty": (lambda row: row | {"emoji": ""}, "field 'emoji' is ''"),
    "a list for a row": (lambda row: [row], "list instead of an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_by_file_line_field_and_value(tmp_path, case):
    change, message = BAD_ROWS[case]
    rows = make_source(tmp_path)
    write_index(tmp_path, [rows[1], rows[2], change(rows[0])])
    with pytest.raises(ValueError, match=message) as error:
        read_source(tmp_path)
    assert f"{tmp_path / 'emoji9.jsonl'}, line 3" in str(error.value)


def test_a_row_that_repeats_an_id_a_name_or_a_picture_is_refused(tmp_path):
    rows = make_source(tmp_path)
    write_index(tmp_path, [*rows, rows[0] | {"split": "test"}])
    with pytest.raises(ValueError, match=r"line 4: field 'file' repeats '1f415' of line 1"):
        read_source(tmp_path)
    write_index(tmp_path, [*rows[:2], rows[2] | {"name": rows[2]["name"] | {"zh": rows[0]["name"]["zh"]}}])
    with pytest.raises(ValueError, match=r"line 3: field 'name.zh' repeats 'name 0 zh' of line 1"):
        read_source(tmp_path)
    (tmp_path / rows[2]["file"]).write_bytes((tmp_path / rows[0]["file"]).read_bytes())
    write_index(tmp_path, rows)
    with pytest.raises(ValueError, match=r"line 3: field 'picture' repeats"):
        read_source(tmp_path)


def test_a_missing_or_damaged_strip_is_refused(tmp_path):
    rows = make_source(tmp_path)
    strip = tmp_path / rows[0]["file"]
    strip.write_bytes(strip.read_bytes()[:60])
    with pytest.raises(ValueError, match="not a readable picture"):
        read_source(tmp_path)
    strip.write_bytes(strip_bytes(8, 0, size=64))
    with pytest.raises(ValueError, match="'RGB', 512, 64.* needs .*1024, 128"):
        read_source(tmp_path)
    strip.unlink()
    with pytest.raises(FileNotFoundError, match="line 1: field 'file'"):
        read_source(tmp_path)


def test_a_folder_without_index_a_broken_line_and_an_empty_split_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data_dir must be the folder"):
        read_source(tmp_path)
    rows = make_source(tmp_path)
    write_index(tmp_path, rows[:2])
    with pytest.raises(ValueError, match="no row of split 'test'"):
        read_source(tmp_path)
    (tmp_path / "emoji9.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_source(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["emoji", "split", "file", "source_frames", "name", "keywords"]), inner)
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_index_gives_rows_or_an_error_that_names_it(tmp_path, data):
    (tmp_path / "emoji9.jsonl").write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError), match="emoji9.jsonl"):  # a whole row needs its strip
        read_source(tmp_path)


def test_a_single_picture_may_have_any_shape():
    (frame,) = frames_of({"video_id": "x", "frames": Image.new("L", (20, 30)), "num_frames": 1})
    assert frame.size == (20, 30) and frame.mode == "RGB"


def test_a_strip_that_does_not_hold_its_frames_is_not_split(tmp_path):
    with pytest.raises(ValueError, match="'x'.*8 square frames"):
        frames_of({"video_id": "x", "frames": Image.new("RGB", (256, 128)), "num_frames": 8})
