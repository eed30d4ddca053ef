"""Subtitles of videos: files beside a video, and text streams inside it.

    talk.en.srt, talk.pt-BR.vtt, talk.eng.sdh.ass        the language stands in the name
    talk.json, talk.tsv                                  Whisper's; the JSON says its language itself
    talk.mkv, talk.mp4                                   text streams; a tag says their language

What a cue says is given as it is written, markup included: `cues.py` cleans it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import pysubs2
from av.codec.codec import Properties
from av.stream import Discard, Disposition

from modeling_mmt.data.cues import Cue
from modeling_mmt.data.encodings import decode
from modeling_mmt.data.errors import naming_input
from modeling_mmt.data.language_tags import language_tag
from modeling_mmt.data.sources import SourceError
from modeling_mmt.frames_mmt import first_line

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa", ".tsv", ".json")  # where two say the same, the first is taken
OTHER_SUFFIXES = (".sub", ".idx", ".sup", ".sbv", ".smi", ".sami", ".ttml", ".dfxp", ".stl", ".scc", ".lrc")
MAX_BYTES = 16 << 20  # of a file: twenty times a long film's subtitles
# Words of a file's name that say what else subtitles are; `hi` (hard of hearing) is Hindi where no language stands.
WORDS = frozenset("forced sdh cc hi default full orig auto sub subs subtitle subtitles caption captions".split())
TIMING = re.compile(r"^.*-->", re.MULTILINE)
CONTAINERS = {"matroska": slice(0, 4), "mov": slice(4, 8)}  # where a file says which it is
SIGNATURES = {b"\x1aE\xdf\xa3": "matroska", b"ftyp": "mov", b"moov": "mov", b"wide": "mov", b"mdat": "mov"}


class TextStream(NamedTuple):
    """Subtitles inside a video file.

    Args:
        number: of the stream in its file.
        language: its BCP 47 tag, or None where the file does not say.
        is_forced: whether it only has what is foreign to the film's language.
        is_text: whether it holds text; else pictures of it.
    """

    number: int
    language: str | None
    is_forced: bool
    is_text: bool


def language_of_name(words: Sequence[str]) -> tuple[str | None, bool]:
    """What the words between a video's name and a subtitle file's ending say: the language, and whether it is forced.

    >>> language_of_name(["pt-BR", "forced"])
    ('pt-BR', True)
    """
    lower = [word.lower() for word in words]
    tags = [tag for word in words if word.lower() not in WORDS and (tag := language_tag(word))]
    language = tags[0] if tags else "hi" if "hi" in lower else None
    return language, "forced" in lower


def language_inside(data: bytes, where: str) -> str | None:
    """The language that Whisper's JSON says its text is in, or None."""
    value = _json(data, where)
    language = value.get("language") if isinstance(value, dict) else None
    return language_tag(language) if isinstance(language, str) else None


def read_subtitles(data: bytes, where: str, language: str | None = None) -> list[Cue] | None:
    """The cues of a subtitle file, in its order; None for JSON and TSV that are no transcript of Whisper.

    Args:
        data: the file.
        where: its path, whose ending says the format.
        language: of its text, for files that are not Unicode.

    Raises:
        SourceError: it is larger than 16 MiB, no text, or not in its format.
    """
    if len(data) > MAX_BYTES:
        raise SourceError(f"{where}: larger than {MAX_BYTES >> 20} MiB, which no subtitles are; remove it")
    suffix = Path(where).suffix.lower()
    if suffix == ".json":
        return _whisper_json(_json(data, where))
    text = decode(data, where, language)[0].replace("\r\n", "\n").replace("\r", "\n")
    if suffix == ".tsv":
        return _whisper_tsv(text)
    if suffix == ".vtt":
        text = _cues_alone(text)
    text = re.sub(r"\n{3,}", "\n\n", text)  # pysubs2 takes quadratic time for them
    with naming_input(where, SourceError):
        events = pysubs2.SSAFile.from_string(text, format_=suffix[1:], keep_html_tags=True).events
    if text.strip() and not events:
        raise SourceError(f"{where}: no cue of {suffix[1:].upper()} in it; is it what its ending says?")
    return [(event.start / 1000, event.end / 1000, event.text) for event in events if not event.is_comment]


def _cues_alone(text: str) -> str:
    """WebVTT without what pysubs2 takes for text or cues: names of cues, notes, styles, and the times inside cues."""
    blocks = [block[match.start() :] for block in re.split(r"\n[^\S\n]*\n", text) if (match := TIMING.search(block))]
    return "\n\n".join(re.sub(r"<\d[\d:.]*>", "", block) for block in blocks)


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(decode(data, where)[0])
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{where}: no whole JSON ({error}); make it again, or remove it") from error


def _whisper_json(value: Any) -> list[Cue] | None:
    segments = value.get("segments") if isinstance(value, dict) else value
    if not isinstance(segments, list) or not all(isinstance(one, Mapping) and "text" in one for one in segments):
        return None
    return [(one.get("start"), one.get("end"), one["text"]) for one in segments]


def _whisper_tsv(text: str) -> list[Cue] | None:
    head, *lines = text.rstrip("\n").split("\n")
    if head.split("\t") != ["start", "end", "text"]:
        return None
    rows = (line.split("\t", 2) for line in lines)
    return [(_seconds(cells[0]), _seconds(cells[1]), cells[2]) for cells in rows if len(cells) == 3]


def _seconds(milliseconds: str) -> float | None:
    return int(milliseconds) / 1000 if re.fullmatch(r"\d{1,12}", milliseconds) else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The container of a Matroska or mp4 file; None for any other, which has no text streams."""
    with path.open("rb") as file:
        head = file.read(8)
    kind = next((kind for kind, place in CONTAINERS.items() if SIGNATURES.get(head[place]) == kind), None)
    if kind is None:
        yield None
        return
    with naming_input(str(path), SourceError):
        try:
            with av.open(f"file:{path}", format=kind, metadata_errors="replace") as container:
                yield container
        except av.FFmpegError as error:
            raise SourceError(
                f"{path} cannot be read as a video: {first_line(error)}. "
                "It may be damaged or cut short: fetch it again"
            ) from error


def text_streams(path: Path) -> list[TextStream]:
    """The subtitle streams of a video file, in their order.

    Raises:
        SourceError: the file cannot be opened.
    """
    with _opened(path) as container:
        return [
            TextStream(
                stream.index,
                language_tag(stream.language or ""),
                bool(stream.disposition & Disposition.forced),
                stream.codec_context is not None
                and bool(stream.codec_context.codec.properties & Properties.TEXT_SUB.value),
            )
            for stream in (container.streams.subtitles if container else ())
        ]


def read_text_streams(path: Path, numbers: Sequence[int]) -> dict[int, list[Cue]]:
    """The cues of a video file's text streams by number, in seconds from its first picture; the file is read once.

    Raises:
        SourceError: the file cannot be read.
    """
    cues: dict[int, list[Cue]] = {number: [] for number in numbers}
    with _opened(path) as container:
        for stream in container.streams:
            stream.discard = Discard.default if stream.index in cues else Discard.all
        pictures = next((s for s in container.streams.video if s.start_time is not None), None)
        begin = pictures.start_time * pictures.time_base if pictures else 0
        for packet in container.demux([container.streams[number] for number in numbers]):
            if packet.size and packet.pts is not None:
                start = packet.pts * packet.time_base - begin
                end = start + (packet.duration or 0) * packet.time_base
                lines = [rect.dialogue.decode("utf-8", "replace") for rect in _rects(packet)]
                cues[packet.stream_index] += [(max(float(start), 0.0), float(end), line) for line in lines if line]
    return cues


def _rects(packet: Any) -> list[Any]:
    """A packet's texts; mp4 has empty ones, where nothing is shown."""
    decoded = packet.stream.codec_context.decode2(packet)
    return list(decoded.rects) if decoded else []
