"""Tables of captions as spreadsheets save them, and what is wrong with a table told in one line."""

import csv
import json
from collections import Counter

import datasets
import pandas
import pyarrow.parquet as pq
import pytest
from command_line import call
from PIL import Image
from video_files import write_video

from datasets_scripts.own_clips import drawn_splits
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.video_lists import find_videos

LONG = (
    "Video_ID;Language;Caption;Split\r\n"
    'kitchen/cat;EN;"a cat,\r\na dish";train\r\nkitchen/cat;de;eine Katze säuft;train\r\n'
)
WIDE = "file_name;EN;sw;Notes\r\nkitchen/cat.mp4;a cat;paka;x\r\ndog.mp4;;mbwa;\r\n"


def build(capsys, tmp_path, data, name="captions.csv"):
    """Run the verb over a table; returns its exit code, rows by id, counts that are not 0, and the error."""
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source" / name).write_bytes(data)
    out = tmp_path / "out"
    code, _, errors = call(capsys, "build", "own_clips", "--data_dir", tmp_path / "source", "--output_dir", out)
    if code:
        return code, {}, {}, errors
    rows = {row["video_id"]: row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()}
    rules = json.loads((out / "build.json").read_text())["rules"]
    return code, rows, {key: rule["count"] for key, rule in rules.items() if rule["count"]}, errors


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("tail", ["", ";;;\r\n;;;\r\n", "\r\n\r\n"], ids=["whole", "empty cells", "empty lines"])
def test_what_excel_saves_is_read(encoding, tail, tmp_path, capsys):
    code, rows, counts, _ = build(capsys, tmp_path, (LONG + tail).encode(encoding))
    assert code == 0 and counts == {"spaces": 1}
    assert rows["kitchen/cat"]["caption_en"] == ["a cat, a dish"]
    assert rows["kitchen/cat"]["caption_de"] == ["eine Katze säuft"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_the_headers(delimiter, tmp_path, capsys):
    text = LONG.replace('"a cat,\r\na dish"', "a cat").replace(";", delimiter)
    assert build(capsys, tmp_path, text.encode())[1]["kitchen/cat"]["caption_en"] == ["a cat"]
    said = f"sep={delimiter}\r\n{text}".encode()
    assert build(capsys, tmp_path, said)[1]["kitchen/cat"]["caption_en"] == ["a cat"]


def test_a_column_a_language_is_a_caption_a_language(tmp_path, capsys):
    _, rows, counts, _ = build(capsys, tmp_path, WIDE.encode())
    assert rows["kitchen/cat"]["caption_en"] == ["a cat"] and rows["kitchen/cat"]["caption_sw"] == ["paka"]
    assert rows["dog"]["caption_en"] == [] and rows["dog"]["caption_sw"] == ["mbwa"]
    assert counts == {"other_column": 1, "missing_file": 2}


def test_a_clip_whose_file_is_not_there_is_kept_and_counted(tmp_path, capsys):
    (tmp_path / "source" / "kitchen").mkdir(parents=True)
    (tmp_path / "source" / "kitchen" / "cat.mp4").touch()
    _, rows, counts, _ = build(capsys, tmp_path, WIDE.encode())
    assert sorted(rows) == ["dog", "kitchen/cat"] and counts["missing_file"] == 1


def test_texts_and_ids_that_look_like_other_things_stay_texts(tmp_path, capsys):
    text = "video_id,language,caption\n001,en,null\n1,en,NA\n1e3,en,nan\n"
    rows = build(capsys, tmp_path, text.encode())[1]
    assert {i: row["caption_en"] for i, row in rows.items()} == {"001": ["null"], "1": ["NA"], "1e3": ["nan"]}


def test_seconds_may_have_a_decimal_comma(tmp_path, capsys):
    text = "video_id;language;caption;start;end\r\na;en;x;0,5;1,25\r\n"
    row = build(capsys, tmp_path, text.encode())[1]["a"]
    assert (row["start"], row["end"]) == (0.5, 1.25)


def test_what_pandas_writes_is_read(tmp_path, capsys):
    """Row numbers have no head; numbers and addresses are no captions in Indonesian (id) or Urali (url)."""
    table = pandas.DataFrame(
        {"id": [1, 2], "file_name": ["a.mp4", "b.jpg"], "url": ["x", "y"], "EN": ["a cat, a dish", 'a "dog"']}
    )
    _, rows, counts, _ = build(capsys, tmp_path, table.to_csv().encode())
    assert {i: row["caption_en"] for i, row in rows.items()} == {"a": ["a cat, a dish"], "b": ['a "dog"']}
    assert counts == {"other_column": 2, "missing_file": 2}
    assert "caption_id" not in rows["a"] and "caption_url" not in rows["a"]
    _, rows, _, _ = build(capsys, tmp_path, table.to_csv(sep=";", index=False).encode("utf-16"))
    assert rows["b"]["caption_en"] == ['a "dog"']


@pytest.mark.parametrize("dialect", ["excel", "excel-tab", "unix"])
def test_every_dialect_of_pythons_csv_is_read(dialect, tmp_path, capsys):
    with open(tmp_path / "table", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, dialect=dialect)
        writer.writerows([["File_Name", "en", "caption_fil"], ["a;b.mp4", 'a, "b"\tc;\nd', "isang pusa"]])
    rows = build(capsys, tmp_path, (tmp_path / "table").read_bytes())[1]
    assert rows["a;b"]["caption_en"] == ['a, "b" c; d'] and rows["a;b"]["caption_fil"] == ["isang pusa"]


SPANS = (
    "file_name;start;end;en;sw\r\nfilms/tea.mp4;8;16;a kettle;birika\r\n"
    "films/tea.mp4;0:16;0:21,5;tea;chai\r\ncat.jpg;;;a cat;\r\n"
)


def test_spans_of_a_film_are_clips_of_their_own_with_the_ids_of_extract(tmp_path, capsys):
    _, rows, _, _ = build(capsys, tmp_path, SPANS.encode("utf-8-sig"))
    found = find_videos(tmp_path / "source" / "captions.csv")
    assert {video.video_id: (video.start, video.end) for video in found} == {
        "films/tea#8.0-16.0": (8.0, 16.0), "films/tea#16.0-21.5": (16.0, 21.5), "cat": (0.0, None)
    }  # fmt: skip
    assert {i: (row["start"], row["end"]) for i, row in rows.items()} == {
        "films/tea#8.0-16.0": (8.0, 16.0), "films/tea#16.0-21.5": (16.0, 21.5), "cat": (None, None)
    }  # fmt: skip
    assert rows["films/tea#8.0-16.0"]["caption_sw"] == ["birika"]
    assert {row["file"] for row in rows.values()} == {"../source/films/tea.mp4", "../source/cat.jpg"}


def test_spans_of_a_film_stay_in_one_split_and_no_split_is_empty():
    many = Counter(drawn_splits(f"film{number}" for number in range(2000)).values())
    assert 0.75 < many["train"] / 2000 < 0.85 and 0.05 < many["test"] / 2000 < 0.15
    for number in range(3, 100):
        names = [f"{number} {part}" for part in range(number)]
        tenth = max(1, round(number / 10))
        sizes = {"train": number - 2 * tenth, "validation": tenth, "test": tenth}
        assert Counter(drawn_splits(names).values()) == sizes
        assert drawn_splits(names) == drawn_splits(reversed(names))
    assert drawn_splits(["a", "a", "b"]) == {"a": "train", "b": "train"}


def test_a_films_spans_are_drawn_together(tmp_path, capsys):
    lines = [f"film{number}.mp4,{second},{second + 1},x" for number in range(12) for second in range(4)]
    build(capsys, tmp_path, "\n".join(["file_name,start,end,en", *lines]).encode())
    split_of = {}
    for path in (tmp_path / "out" / "data").iterdir():
        for row in pq.read_table(path).to_pylist():
            split_of.setdefault(row["file"], set()).add(path.name.partition("-")[0])
    assert len(split_of) == 12 and all(len(splits) == 1 for splits in split_of.values())
    assert set().union(*split_of.values()) == {"train", "validation", "test"}


def test_a_clip_of_two_files_or_two_spans_is_refused_with_both(tmp_path, capsys):
    for text in ("a,x.mp4,0,1,en,b\na,x.mp4,1,2,en,b\n", "a,x.mp4,0,1,en,b\na,y.mp4,0,1,en,b\n"):
        code, _, _, errors = build(capsys, tmp_path, f"video_id,file_name,start,end,language,caption\n{text}".encode())
        assert code == 2 and "line 3: clip 'a' is {" in errors and "before it was {" in errors


def test_embedded_videos_are_what_datasets_decodes_and_their_files_are_hashed(tmp_path, capsys):
    source = tmp_path / "source"
    (source / "films").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(source / "cat.jpg")
    write_video(source / "films" / "tea.mp4", 12)
    (source / "captions.csv").write_text("file_name,en,split\nfilms/tea.mp4,tea,train\ncat.jpg,a cat,train\n")
    arguments = ["--data_dir", source, "--output_dir", tmp_path / "out", "--embed_videos"]
    assert call(capsys, "build", "own_clips", *arguments)[0] == 0
    rows = read_split(str(tmp_path / "out"), None, "train")
    assert isinstance(rows.features["video"], datasets.Video)
    film, cat = (row["video"] for row in rows.cast_column("video", datasets.Video(decode=False)))
    assert film["bytes"] == (source / "films" / "tea.mp4").read_bytes()
    assert ClipColumn(rows, "video")["cat"]["bytes"] == cat["bytes"] != b""
    sources = json.loads((tmp_path / "out" / "build.json").read_text())["sources"]
    assert sources.keys() == {"captions.csv", "films/tea.mp4", "cat.jpg"}
    (source / "cat.jpg").unlink()
    code, _, errors = call(capsys, "build", "own_clips", *arguments)
    assert code == 2 and "clip 'cat': --embed_videos stores its file, but file_name is 'cat.jpg'" in errors


def test_blank_lines_of_jsonl_are_left_out(tmp_path, capsys):
    line = '{"video_id": "kitchen/cat", "language": "EN", "caption": "a cat"}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        rows = build(capsys, tmp_path, f"{line}\r\n\n  \n".encode(encoding), "captions.jsonl")[1]
        assert rows["kitchen/cat"]["caption_en"] == ["a cat"]


HEADER = "video_id;language;caption\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "captions.csv: no clip|source: no clip"),
        ("a;b\r\n1;2\r\n", "captions.csv, line 1: no column 'video_id' or 'file_name'; the header is a, b"),
        (
            "video_id;title\r\n1;2\r\n",
            "line 1: no column 'caption', nor one with a language's code, such as 'en'",
        ),
        ("video_id;caption\r\n1;2\r\n", "captions.csv, line 1: no column 'language'; the header is video_id, caption"),
        ("video_id;en;EN\r\n1;2;3\r\n", "captions.csv, line 1: column 'en' appears twice"),
        (HEADER + 'a;en;"two\r\nlines"\r\nb;en\r\n', "captions.csv, line 4: column 'caption' is missing"),
        (HEADER + "a;en;x;y\r\n", "captions.csv, line 2: column 4 is 'y', which has no head"),
        (HEADER + 'a;en;x\r\nb;en;"open\r\n', "captions.csv, line 3: unexpected end of data; close every quote"),
        (HEADER + "a;english;x\r\n", "captions.csv, line 2, column 'language': language is 'english'"),
        (HEADER + "../a;en;x\r\n", "captions.csv, line 2, column 'video_id': '../a' is not a valid clip id"),
        (HEADER + "a//b;en;x\r\n", "captions.csv, line 2, column 'video_id': 'a//b' is not a valid clip id"),
        (HEADER + ";en;x\r\n", "captions.csv, line 2, column 'video_id': '' is not a valid clip id"),
        ("file_name;en\r\n/a.mp4;x\r\n", "captions.csv, line 2, column 'file_name': '/a' is not a valid clip id"),
        ("file_name;en\r\n/;x\r\n", "captions.csv, line 2, column 'file_name': '/'; write the path"),
        ("video_id;id\r\na;12\r\n", "captions.csv, line 1: no column 'caption', nor one with a language's code"),
        ("video_id;en;start\r\na;x;1\r\n", "captions.csv, line 2: start is 1.0, end missing; write both"),
        (HEADER.replace("\r", ";start;end\r") + "a;en;x;1;soon\r\n", "captions.csv, line 2: start is '1', end 'soon'"),
    ],
)
def test_every_bad_table_is_one_line_that_names_file_line_and_column(text, message, tmp_path, capsys):
    code, _, _, errors = build(capsys, tmp_path, text.encode())
    assert code == 2 and errors.count("\n") == 1
    assert any(part in errors for part in message.split("|"))


def test_two_tables_are_refused_and_neither_left_out_without_a_word(tmp_path, capsys):
    build(capsys, tmp_path, LONG.encode())
    code, _, _, errors = build(capsys, tmp_path, LONG.encode(), "captions.tsv")
    assert code == 2 and "captions.csv and captions.tsv are both there; leave one" in errors


def test_a_table_with_one_damaged_byte_says_which(tmp_path, capsys):
    data = (HEADER + "a;uk;червоний пес\r\n").encode().replace(b"\xd0\xb5", b"\xd0", 1)
    code, _, _, errors = build(capsys, tmp_path, data)
    assert code == 2 and "captions.csv: byte 3" in errors and "is not UTF-8, as the rest of the file is" in errors


def test_a_build_in_which_every_caption_was_dropped_leaves_the_earlier_data(tmp_path, capsys):
    build(capsys, tmp_path, LONG.encode())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for text in ("", HEADER, HEADER + "a;en; \r\n"):
        code, _, _, errors = build(capsys, tmp_path, text.encode())
        assert code == 2 and "no clip" in errors and errors.count("\n") == 1
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
