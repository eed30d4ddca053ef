"""Cleaning of subtitle cues: keeps what is said and when, and removes what only serves the screen.

A cue is (start, end, text), in seconds of its video. What is changed or dropped is a rule of `RULES`, and counted.
"""

import html
import math
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from modeling_mmt.data.sources import MAX_CAPTION, Tally, clean_text

Cue = tuple[Any, Any, Any]  # start, end, text, as a file has them; after cleaning float, float, str

RULES = {
    "bad_time": "a cue whose start or end is no number of seconds from 0: dropped",
    "backwards": "a cue that ends before it starts: dropped",
    "no_length": "a cue that ends where it starts: dropped",
    "unordered": "a cue that starts before the one before it: sorted by start",
    "repeated_cue": "a cue with the text of the one before, which it overlaps or touches: joined into one",
    "roll_up": "a cue that begins with the end of the one before (two words or all of it): that beginning is cut off",
    "same_start": "a cue that starts with the one before it: joined into one",
    "overlap": "a cue that the next one starts within: it ends there",
    "beyond": "a cue that starts where the video's features have ended: dropped",
    "cut": "a cue that ends after the video's features: it ends with them",
    "no_cue": "a language of a video without any cue left: None",
}
SCREEN_RULES = {
    "markup": "tags and override codes (<i>, <c.yellow>, {\\an8}), entities (&amp;): taken out of a cue's text",
    "drawing": "a cue that is a drawing: dropped",
    "advert": "a cue with a web address, an e-mail address, or a line that credits subtitlers: dropped",
    "sound": "sounds in square brackets, a line in round brackets, notes of music: cut out",
    "speaker": "a name in capitals before a colon, >>, or the dash of a dialogue, where a line begins: cut off",
    "no_word": "a cue without a letter or digit (left): dropped",
}
TOUCH = 0.05  # seconds between two cues that are taken as one after the other

# Every pattern takes time in proportion to the text, whatever the text is.
MARKUP = re.compile(r"\{[^{}]*\}|</?[A-Za-z][^<>]*>|<\d[\d:.]*>")
DRAWING = re.compile(r"\{[^{}]*\\p[1-9]")
ADDRESS = re.compile(r"https?://|\bwww\.|\w@\w|\w\.(?:com|org|net|tv)\b", re.IGNORECASE)
CREDIT = re.compile(
    r"""^[^\w\n]*(?:
    (?:subtitles?|subtitled|subtitling|captions?|captioned|captioning|transcripts?|transcribed|translated|translations?
      |synced|synchroni[sz]ed|corrections)(?:\ (?:and|&)\ \w+)?\ by
    |(?:subtitles|captions)\ ?(?:from|:)
    |(?:untertitel(?:ung)?|übersetzung)\ ?(?:von|im\ auftrag|der|des|:)
    |(?:sous-titr(?:es?|age)|traduction)\ ?(?:par|:|société|st')
    |(?:titulky|překlad|přeložil\w*)\ ?(?:vytvořil\w*|od|pro|:)
    |(?:subtítulos|traducción|traducido|subtitulado)\ ?(?:por|realizados|de|:)
    |(?:субтитры|редактор\ субтитров|перевод)\ ?(?:сделал\w*|создавал\w*|подготов\w*|и\ перевод|:|\w\.)
    |(?:phụ\ đề\ ?(?:bởi|được|:)|(?:biên\ )?dịch\ bởi)
    |(?:manukuu\ ?(?:na|ya|:)|tafsiri\ na)
    |(?:字幕|翻译|翻譯|校对|校對|时间轴|時間軸)(?:由|组|組|志愿者|志願者|提供|制作|製作|[:：])
    )""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
SOUND = re.compile(r"\[[^\[\]]*\]|^[^\S\n]*[(（][^()（）]*[)）][^\S\n]*$|[♩♪♫♬]", re.MULTILINE)
TURN = re.compile(r"^\s*(?:>>+|[-–—]+(?=\s*[^\W\d_]))\s*")
NAME = re.compile(r"^\s*([^:：]{2,30})[:：](?:\s+|$)")


def spoken_text(text: str, tally: Tally) -> str | None:
    """What is said in a cue, on one line; None where a rule drops it.

    Args:
        text: as subtitle files have it, with tags, and line ends or those of SubStation Alpha between its lines.
        tally: of `SCREEN_RULES`.
    """
    if DRAWING.search(text):
        tally.count("drawing")
        return None
    plain = html.unescape(MARKUP.sub("", text))
    if plain != text:
        tally.count("markup")
    plain = plain.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")
    if ADDRESS.search(plain) or CREDIT.search(plain):
        tally.count("advert")
        return None
    heard = SOUND.sub(" ", plain)
    if heard != plain:
        tally.count("sound")
    lines = heard.splitlines()
    words = [without_speaker(line) for line in lines]
    if words != lines:
        tally.count("speaker")
    said = " ".join(" ".join(words).split())
    if not any(map(str.isalnum, said)):
        tally.count("no_word")
        return None
    return said


def spoken_cues(cues: Iterable[Cue], tally: Tally) -> Iterator[Cue]:
    """The cues in which something is said; `CueCleaner` counts those that are not text or far too long."""
    for start, end, text in cues:
        is_readable = isinstance(text, str) and len(text) <= MAX_CAPTION
        said = spoken_text(text, tally) if is_readable else text
        if said is not None or not is_readable:
            yield start, end, said


def without_speaker(line: str) -> str:
    """A line without what says that another speaks now, and who."""
    line = TURN.sub("", line, count=1)
    name = NAME.match(line)
    if name and name[1].isupper() and not line[name.end() :].isupper():
        return line[name.end() :]
    return line


class CueCleaner:
    """Cleans cues of one video and language by the rules, and counts.

    Args:
        tally: of the rules.
    """

    def __init__(self, tally: Tally):
        self.tally = tally

    def clean(self, cues: Iterable[Cue], seconds: float | None) -> tuple[list[str], list[float], list[float]] | None:
        """Texts, starts and ends that do not overlap; None if nothing is left.

        Args:
            cues: in any order.
            seconds: the length of the video's features, or None.
        """
        valid = self._valid(cues)
        if unordered := sum(later[0] < cue[0] for cue, later in pairwise(valid)):
            self.tally.count("unordered", unordered)
            valid.sort(key=lambda cue: cue[0])
        cleaned = self._without_overlap(self._without_roll_up(valid))
        if seconds is not None:
            cleaned = self._within(cleaned, seconds)
        if not cleaned:
            self.tally.count("no_cue")
            return None
        return [cue[2] for cue in cleaned], [cue[0] for cue in cleaned], [cue[1] for cue in cleaned]

    def _valid(self, cues: Iterable[Cue]) -> list[tuple[float, float, str]]:
        valid = []
        for start, end, text in cues:
            if not (is_seconds(start) and is_seconds(end)):
                self.tally.count("bad_time")
            elif end <= start:
                self.tally.count("backwards" if end < start else "no_length")
            elif (cleaned := clean_text(text, self.tally)) is not None:
                valid.append((float(start), float(end), cleaned))
        return valid

    def _without_roll_up(self, cues: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
        """Roll-up subtitles show a line twice: as the new one, then above the next."""
        merged: list[tuple[float, float, str]] = []
        shown = ""  # what the cue before showed, its beginning included
        for start, end, text in cues:
            new = text
            if merged and start <= merged[-1][1] + TOUCH:
                new = without_beginning(shown, text)
            if merged and not new:
                self.tally.count("repeated_cue")
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
            else:
                if new != text:
                    self.tally.count("roll_up")
                merged.append((start, end, new))
            shown = text
        return merged

    def _without_overlap(self, cues: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
        merged: list[tuple[float, float, str]] = []
        for start, end, text in cues:
            if merged and start == merged[-1][0]:
                self.tally.count("same_start")
                merged[-1] = (start, max(end, merged[-1][1]), f"{merged[-1][2]} {text}")
                continue
            if merged and start < merged[-1][1]:
                self.tally.count("overlap")
                merged[-1] = (merged[-1][0], start, merged[-1][2])
            merged.append((start, end, text))
        return merged

    def _within(self, cues: list[tuple[float, float, str]], seconds: float) -> list[tuple[float, float, str]]:
        inside = [cue for cue in cues if cue[0] < seconds]
        self.tally.count("beyond", len(cues) - len(inside))
        if inside and inside[-1][1] > seconds:
            self.tally.count("cut")
            inside[-1] = (inside[-1][0], seconds, inside[-1][2])
        return inside


def is_seconds(value: Any) -> bool:
    """Whether it is a finite number from 0."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def without_beginning(shown: str, text: str) -> str:
    """The text without the part of its beginning that ended the cue before: all that it showed, or two words of it."""
    if text.startswith(shown):
        return text[len(shown) :].lstrip()
    before, words = shown.split(), text.split()
    for count in range(min(len(before), len(words)), 1, -1):
        if before[-count:] == words[:count]:
            return " ".join(words[count:])
    return text
