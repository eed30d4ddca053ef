"""Subtitles from files and streams in their official formats, and what is left of them once they are cleaned."""

import json
from itertools import pairwise

import official_files
import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_mmt.data.cues import RULES, SCREEN_RULES, CueCleaner, spoken_cues, spoken_text
from modeling_mmt.data.sources import SourceError, Tally
from modeling_mmt.data.subtitles import (
    language_inside,
    language_of_name,
    read_subtitles,
    read_text_streams,
    text_streams,
)

CUES = [(0.5, 1.25, "a red dog, running"), (1.5, 2.0, "ein grüner Vogel")]


def in_format(ending: str) -> bytes:
    """`CUES` as the format's own library, or Whisper's writer, writes them."""
    if ending == "json":
        segments = [
            {"id": n, "start": start, "end": end, "text": " " + text} for n, (start, end, text) in enumerate(CUES)
        ]
        return json.dumps({"text": "", "segments": segments, "language": "en"}, ensure_ascii=False).encode()
    if ending == "tsv":
        lines = [f"{round(1000 * start)}\t{round(1000 * end)}\t{text}" for start, end, text in CUES]
        return "\n".join(["start\tend\ttext", *lines, ""]).encode()
    subtitles = pysubs2.SSAFile()
    subtitles.extend(pysubs2.SSAEvent(int(1000 * start), int(1000 * end), text) for start, end, text in CUES)
    return subtitles.to_string(ending).encode()


def cleaned(cues, seconds=None):
    tally = Tally(RULES | SCREEN_RULES)
    lists = CueCleaner(tally).clean(spoken_cues(cues, tally), seconds)
    return [] if lists is None else list(zip(*lists, strict=True)), {k: v for k, v in tally.counts.items() if v}


# Files


@pytest.mark.parametrize("ending", ["srt", "vtt", "ass", "ssa", "json", "tsv"])
def test_every_format_gives_the_same_cues(ending):
    cues = read_subtitles(in_format(ending), f"talk.{ending}")
    assert [(start, end, text.strip()) for start, end, text in cues] == CUES
    assert read_subtitles(in_format(ending).replace(b"\n", b"\r\n"), f"TALK.{ending.upper()}") == cues


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_any_encoding_is_read(encoding):
    assert read_subtitles(in_format("srt").decode().encode(encoding), "talk.srt") == CUES


@pytest.mark.parametrize(
    ("language", "encoding", "text"),
    [
        ("ru", "cp1251", "красная собака"),
        ("cs", "cp1250", "červený pes běží"),
        ("zh", "gb18030", "红狗在跑"),
        ("zh-TW", "big5", "紅狗在跑"),
        ("el", "cp1253", "κόκκινος σκύλος"),
    ],
)
def test_a_file_that_is_not_unicode_is_in_the_code_page_of_its_language(language, encoding, text):
    data = f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n".encode(encoding)
    assert read_subtitles(data, "talk.srt", language) == [(1.0, 2.0, text)]


def test_utf8_with_a_damaged_byte_is_refused_and_not_taken_for_a_code_page():
    data = "1\n00:00:01,000 --> 00:00:02,000\nчервоний пес і зелений птах\n".encode().replace(b"\xd0\xb5", b"\xd0", 1)
    with pytest.raises(SourceError, match=r"talk.srt: byte 3\d is not UTF-8, as the rest of the file is"):
        read_subtitles(data, "talk.srt", "uk")


def test_webvtt_has_cues_alone_where_pysubs2_takes_notes_names_and_inner_times_for_text():
    text = (
        "WEBVTT - a title\nKind: captions\n\nSTYLE\n::cue { color: red }\n\n"
        "first cue\n00:01.000 --> 00:02.000 align:left\n"
        "<v Anna>a <c.red>red</c> dog\n\nNOTE\nnot said\n\n2-b\n00:00:02.000 --> 00:00:03.500\n"
        "we<00:00:02.200><c> are</c><00:00:02.800><c> going</c>\n"
    )
    cues = read_subtitles(text.encode(), "talk.vtt")
    assert cleaned(cues)[0] == [("a red dog", 1.0, 2.0), ("we are going", 2.0, 3.5)]
    assert len(pysubs2.SSAFile.from_string(text)) == 3  # what the library alone makes of it


def test_comments_and_drawings_of_substation_alpha_are_not_said():
    subtitles = pysubs2.SSAFile()
    for number, text in enumerate(
        [r"{\an8\pos(10,20)}a sign,\Nin two lines", r"{\p1}m 0 0 l 100 0 100 100{\p0}", "no"]
    ):
        subtitles.append(pysubs2.SSAEvent(1000 * number, 1000 * number + 500, text))
    subtitles[-1].is_comment = True
    cues, counts = cleaned(read_subtitles(subtitles.to_string("ass").encode(), "talk.ass"))
    assert cues == [("a sign, in two lines", 0.0, 0.5)] and counts == {"markup": 1, "drawing": 1}


@pytest.mark.parametrize("name", ["talk.info.json", "talk.tsv"])
def test_what_is_no_transcript_of_whisper_is_none(name):
    assert read_subtitles(b'{"title": "x", "segments": 3}' if name.endswith("json") else b"a\tb\n1\t2\n", name) is None


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"hello", "a.srt", "a.srt: no cue of SRT in it"),
        (b"{", "a.json", "a.json: no whole JSON"),
        (b" " * (16 << 20) + b" ", "a.srt", "a.srt: larger than 16 MiB"),
        (b"[" * 100_000, "a.json", "a.json: no whole JSON"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_one_line(data, name, message):
    with pytest.raises(SourceError, match=message) as error:
        read_subtitles(data, name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["srt", "vtt", "ass", "json", "tsv"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_give_cues_or_one_line(ending, data):
    whole = bytearray(in_format(ending))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole)))
        whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        found, _ = cleaned(read_subtitles(bytes(whole), f"a.{ending}") or [])
        assert all(0 <= start < end for _, start, end in found)
        assert all(before[2] <= after[1] for before, after in pairwise(found))
    except SourceError as error:
        assert str(error).startswith(f"a.{ending}") and "\n" not in str(error)


@pytest.mark.parametrize("text", ["<a" * 400_000, "\n" * 800_000, "{" * 800_000, "1 " * 400_000, "x:" * 400_000])
def test_no_text_takes_more_time_than_its_length(text):
    cleaned(read_subtitles(f"1\n00:00:01,000 --> 00:00:02,000\nx{text}x\n".encode(), "a.srt"))
    spoken_text(text[:10_000], Tally(SCREEN_RULES))


# Languages


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("en", ("en", False)),
        ("pt-BR", ("pt-BR", False)),
        ("zh_hans", ("zh-Hans", False)),
        ("eng.sdh", ("en", False)),
        ("swa", ("sw", False)),
        ("ger", ("de", False)),
        ("en-orig", ("en", False)),
        ("forced.fr", ("fr", True)),
        ("hi", ("hi", False)),
        ("en.hi", ("en", False)),
        ("2020", (None, False)),
        ("info", (None, False)),
        ("cz", (None, False)),
        ("und", (None, False)),
    ],
)
def test_a_name_says_the_language_in_bcp_47(words, found):
    assert language_of_name(words.split(".")) == found


def test_whispers_json_says_its_language():
    assert language_inside(in_format("json"), "talk.json") == "en"
    assert language_inside(b'{"segments": [], "language": 3}', "talk.json") is None


# Streams


@pytest.mark.parametrize(("ending", "codec"), [("mkv", "subrip"), ("mkv", "webvtt"), ("mp4", "mov_text")])
def test_text_streams_have_their_language_and_cues(ending, codec, tmp_path):
    path = tmp_path / f"talk.{ending}"
    texts = {"eng": [(0.5, 1.0, "one, two")], "cze": [(0.2, 0.6, "jedna"), (1.0, 1.5, "dvě\ntři")]}
    official_files.write_film(path, texts, codec)
    streams = text_streams(path)
    assert [(stream.language, stream.is_forced, stream.is_text) for stream in streams] == [
        ("en", False, True),
        ("cs", False, True),
    ]
    cues = read_text_streams(path, [stream.number for stream in streams])
    assert cues[streams[0].number] == [(0.5, 1.0, "one, two")]
    assert cleaned(cues[streams[1].number])[0] == [("jedna", 0.2, 0.6), ("dvě tři", 1.0, 1.5)]


def test_a_forced_stream_says_so_and_a_file_of_another_kind_has_none(tmp_path):
    official_files.write_film(tmp_path / "a.mkv", {"eng": [(0, 1, "x")]}, forced=True)
    assert [stream.is_forced for stream in text_streams(tmp_path / "a.mkv")] == [True]
    (tmp_path / "b.mkv").write_bytes(b"RIFF....AVI nothing")
    assert text_streams(tmp_path / "b.mkv") == []


def test_a_torn_container_is_one_line_that_names_it(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"x" * 100)
    with pytest.raises(SourceError, match="a.mp4") as error:
        text_streams(tmp_path / "a.mp4")
    assert "\n" not in str(error.value)


# What is said


@pytest.mark.parametrize(
    ("text", "said", "rules"),
    [
        ("a dog", "a dog", ()),
        ("<i>a</i> {\\an8}dog &amp; a <b>cat", "a dog & a cat", ("markup",)),
        ("3 < 5 and 6 > 2", "3 < 5 and 6 > 2", ()),
        (r"two\Nlines\hhere", "two lines here", ()),
        ("JOHN: hello", "hello", ("speaker",)),
        ("DR. SMITH 2:\nhello", "hello", ("speaker",)),
        ("- Come in.\n- No.", "Come in. No.", ("speaker",)),
        (">> ANNA: &gt;&gt; look", ">> look", ("markup", "speaker")),
        ("Ingredients: two eggs", "Ingredients: two eggs", ()),
        ("INGREDIENTS: TWO EGGS", "INGREDIENTS: TWO EGGS", ()),
        ("-5 degrees at 10:30", "-5 degrees at 10:30", ()),
        ("ИВАН: привет", "привет", ("speaker",)),
        ("[applause] thank you", "thank you", ("sound",)),
        ("(laughs)\nyes (I think)", "yes (I think)", ("sound",)),
        ("♪ la la ♪", "la la", ("sound",)),
        ("♪♪", None, ("sound", "no_word")),
        ("...", None, ("no_word",)),
        ("\u200b\ufeff", None, ("no_word",)),
        ("红狗", "红狗", ()),
        ("Subtitles by the Amara.org community", None, ("advert",)),
        ("Download from www.opensubtitles.org", None, ("advert",)),
        ("write to me@example.de", None, ("advert",)),
        ("Untertitel im Auftrag des ZDF für funk, 2017", None, ("advert",)),
        ("Sous-titrage Société Radio-Canada", None, ("advert",)),
        ("Субтитры сделал DimaTorzok", None, ("advert",)),
        ("字幕由志愿者提供", None, ("advert",)),
        ("the subtitles by Anna were good", "the subtitles by Anna were good", ()),
    ],
)
def test_what_is_said_is_kept_and_every_rule_is_counted(text, said, rules):
    tally = Tally(SCREEN_RULES)
    assert spoken_text(text, tally) == said
    assert {rule for rule, count in tally.counts.items() if count} == set(rules)


def test_roll_up_captions_say_each_word_once():
    cues = [(0, 2, "\nwe are going"), (2, 2.01, "we are going\n "), (2.01, 4, "we are going\nto the kitchen")]
    found, counts = cleaned(cues)
    assert [text for text, _, _ in found] == ["we are going", "to the kitchen"]
    assert counts == {"repeated_cue": 1, "roll_up": 1}


def test_overlaps_end_where_the_next_begins_and_times_that_are_none_are_dropped():
    cues = [(0, 3, "one"), (2, 4, "two"), (None, 5, "three"), (5, "6", "four"), (7, 7, "five"), (8, 9, 3)]
    found, counts = cleaned(cues)
    assert found == [("one", 0.0, 2.0), ("two", 2.0, 4.0)]
    assert counts == {"overlap": 1, "bad_time": 2, "no_length": 1, "not_text": 1}
