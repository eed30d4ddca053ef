"""Tables of captions as spreadsheets save them, and what is wrong with a table told in one line."""

import json

import pyarrow.parquet as pq
import pytest
from command_line import call

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
    assert counts == {"other_column": 1}


def test_texts_and_ids_that_look_like_other_things_stay_texts(tmp_path, capsys):
    text = "video_id,language,caption\n001,en,null\n1,en,NA\n1e3,en,nan\n"
    rows = build(capsys, tmp_path, text.encode())[1]
    assert {i: row["caption_en"] for i, row in rows.items()} == {"001": ["null"], "1": ["NA"], "1e3": ["nan"]}


def test_seconds_may_have_a_decimal_comma(tmp_path, capsys):
    text = "video_id;language;caption;start;end\r\na;en;x;0,5;1,25\r\n"
    row = build(capsys, tmp_path, text.encode())[1]["a"]
    assert (row["start"], row["end"]) == (0.5, 1.25)


def test_blank_lines_of_jsonl_are_left_out(tmp_path, capsys):
    line = '{"video_id": "kitchen/cat", "language": "EN", "caption": "a cat"}'
    rows = build(capsys, tmp_path, f"{line}\n\n  \n".encode(), "captions.jsonl")[1]
    assert rows["kitchen/cat"]["caption_en"] == ["a cat"]


HEADER = "video_id;language;caption\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "captions.csv: no clip|source: no clip"),
        ("a;b\r\n1;2\r\n", "captions.csv, line 1: no column 'video_id' or 'file_name'; the header is a, b"),
        ("video_id;title\r\n1;2\r\n", "captions.csv, line 1: no column 'caption', nor one of a language such as 'en'"),
        ("video_id;caption\r\n1;2\r\n", "captions.csv, line 1: no column 'language'; the header is video_id, caption"),
        ("video_id;en;EN\r\n1;2;3\r\n", "captions.csv, line 1: column 'en' is there twice"),
        (HEADER + 'a;en;"two\r\nlines"\r\nb;en\r\n', "captions.csv, line 4: column 'caption' is missing"),
        (HEADER + "a;en;x;y\r\n", "captions.csv, line 2: column 4 is 'y', which has no head"),
        (HEADER + 'a;en;x\r\nb;en;"open\r\n', "captions.csv, line 3: unexpected end of data; close every quote"),
        (HEADER + "a;english;x\r\n", "captions.csv, line 2, column 'language': language is 'english'"),
        (HEADER + "../a;en;x\r\n", "captions.csv, line 2, column 'video_id': '../a' is not a valid clip id"),
        (HEADER + "a//b;en;x\r\n", "captions.csv, line 2, column 'video_id': 'a//b' is not a valid clip id"),
        (HEADER + ";en;x\r\n", "captions.csv, line 2, column 'video_id': '' is not a valid clip id"),
        ("file_name;en\r\n/a.mp4;x\r\n", "captions.csv, line 2, column 'file_name': '/a' is not a valid clip id"),
        (HEADER.replace("\r", ";start;end\r") + "a;en;x;1;soon\r\n", "captions.csv, line 2: start and end are"),
    ],
)
def test_every_bad_table_is_one_line_that_names_file_line_and_column(text, message, tmp_path, capsys):
    code, _, _, errors = build(capsys, tmp_path, text.encode())
    assert code == 2 and errors.count("\n") == 1
    assert any(part in errors for part in message.split("|"))


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
