"""Multi-HowTo100M: subtitles of 1.2 million instructional videos in nine languages.

    mmt build multi_howto100m --data_dir path/to/how2 --output_dir data/multi_howto100m \
        --features data/features/howto100m-r2plus1d data/features/howto100m-s3d

A row is a video with each language's cues: texts, and their seconds. The files `how2_<language>.json`, gigabytes each
and in orders of their own, are parsed as streams and joined by way of temporary files, so that memory holds a part
of them: a video goes to the part that a hash of its id says, and rows come out part by part, in an order of their own.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import ijson
import pyarrow as pa

from datasets_scripts import corpus
from datasets_scripts.corpus import About, Clock, Row, build, cue_row, cue_schema, options_of
from modeling_mmt.data import cues
from modeling_mmt.data.cues import Cue, CueCleaner
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.sources import (
    SourceError,
    Sources,
    Tally,
    checked_id,
    checked_language,
)

PART_BYTES = 64 << 20  # of the source a part, about
MAX_PARTS = 512  # files open at a time
RULES = {
    "bad_video": "a video without texts, starts and ends as lists of one length: dropped in that language",
    "repeated_video": "a video that a file has again: the first is kept",
    **cues.RULES,
}
ABOUT = About(
    name="multi_howto100m",
    title="Multi-HowTo100M",
    summary=__doc__.partition("\n")[0],
    source=(
        "https://github.com/berniebear/Multi-HT100M (Huang et al. 2021), over HowTo100M (Miech et al. 2019); "
        "user-made subtitles where present, else speech recognition and translation by YouTube, crawled in May 2020. "
        "Early versions of its README gave the Spanish file the name `sw`"
    ),
    layout="  how2_{en,de,fr,cs,zh,ru,vi,sw,es}.json, or .json.gz; those that are there:\n"
    "    {video_id: {text: [str], start: [seconds], end: [seconds]}}",
    license="other",
    license_text="the repository states none; videos and subtitles are YouTube's users'. For research.",
    columns={
        "video_id": "YouTube's id",
        "text_<language>": "the cues, in order; None where the video has none in the language",
        "start_<language>, end_<language>": "seconds of each cue in the video; they do not overlap",
    },
    published={"train": 1_200_000},
    published_source=(
        '"1.2 million" videos and 138 million clips; of the crawl about 1.1 million with 7 to 9 languages each'
    ),
)


def cues_of(video: Any, tally: Tally) -> list[Cue]:
    """A video's cues in one file; none where its lists do not fit each other."""
    names = ("start", "end", "text")
    fields: list[Any] = [video.get(name) for name in names] if isinstance(video, dict) else [None]
    if not all(isinstance(values, list) for values in fields) or len({len(values) for values in fields}) != 1:
        tally.count("bad_video")
        return []
    return list(zip(*fields, strict=True))


def videos(sources: Sources, name: str) -> Iterator[tuple[str, Any]]:
    """The (id, cues) pairs of one file, in its order; memory holds one video.

    Raises:
        SourceError: the file is cut short, no JSON object, or not UTF-8.
    """
    where = str(sources.folder / name)
    with sources.open(name) as stream:
        first = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
        if not first.lstrip(b" \t\r\n").startswith(b"{"):
            raise SourceError(f"{where}: no JSON object; it must be {{video_id: {{text, start, end}}}}")
        last = "the first"
        try:
            for video_id, video in ijson.kvitems(_Joined(first, stream), "", use_float=True, buf_size=1 << 18):
                yield video_id, video
                last = repr(video_id)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError) or "utf" in str(error).lower():
                raise SourceError(f"{where}: not UTF-8 after video {last}; save it as UTF-8") from error
            raise SourceError(
                f"{where}: incomplete or invalid JSON after video {last} ({error}); download it again"
            ) from error


class _Joined:
    """The bytes that were looked at, then the rest of the stream."""

    def __init__(self, first: bytes, rest: BinaryIO):
        self.first, self.rest = first, rest

    def read(self, size: int = -1) -> bytes:
        if size == 0 or not self.first:
            return self.rest.read(size)
        data, self.first = self.first, b""
        return data


def make_reader(languages: Sequence[str], temporary: Path | None = None):
    """The reading function for these languages."""

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        names = {lang: sources.find(f"how2_{lang}.json", f"how2_{lang}.json.gz") for lang in languages}
        return cue_schema(languages), {"train": join(sources, names, tally, clock, temporary)}

    return read


def join(
    sources: Sources, names: dict[str, str], tally: Tally, clock: Clock, temporary: Path | None = None
) -> Iterator[Row]:
    """The rows of all languages' files."""
    total = sum((sources.folder / name).stat().st_size * (5 if name.endswith(".gz") else 1) for name in names.values())
    num_parts = max(1, min(MAX_PARTS, -(-total // PART_BYTES)))
    cleaner = CueCleaner(tally)
    with tempfile.TemporaryDirectory(dir=temporary, prefix="howto100m-") as folder:
        for language, name in names.items():
            with ExitStack() as stack:
                paths = [f"{folder}/{language}-{part}.zst" for part in range(num_parts)]
                parts = [stack.enter_context(pa.output_stream(path, compression="zstd")) for path in paths]
                for video_id, video in videos(sources, name):
                    checked_id(video_id, f"{sources.folder / name}")
                    cleaned = cleaner.clean(cues_of(video, tally), clock.seconds(video_id))
                    if cleaned is not None:
                        line = (
                            f"{json.dumps(video_id)}\t{json.dumps(cleaned, ensure_ascii=False)}\n"  # JSON has no tab
                        )
                        parts[part_of(video_id, num_parts)].write(line.encode())
        for part in range(num_parts):
            lines: dict[str, dict[str, bytes]] = {}
            for language in names:
                for data in read_lines(f"{folder}/{language}-{part}.zst"):
                    video_id = json.loads(data.partition(b"\t")[0])
                    if language in lines.setdefault(video_id, {}):
                        tally.count("repeated_video")
                    else:
                        lines[video_id][language] = data
            for video_id in sorted(lines, key=lambda key: blake2b(key.encode()).digest()):
                yield row_of(video_id, lines.pop(video_id), list(names))


def read_lines(path: str) -> Iterator[bytes]:
    """The lines of a compressed temporary file."""
    with pa.input_stream(path, compression="zstd") as stream:
        rest = b""
        while data := stream.read(1 << 20):
            *whole, rest = (rest + data).split(b"\n")
            yield from whole


def row_of(video_id: str, lines: dict[str, bytes], languages: Sequence[str]) -> Row:
    """A video's row from its line in each language."""
    return cue_row(video_id, {lang: json.loads(line.partition(b"\t")[2]) for lang, line in lines.items()}, languages)


def part_of(video_id: str, num_parts: int) -> int:
    """The part that a video belongs to, the same on every machine."""
    return int.from_bytes(blake2b(video_id.encode(), digest_size=8).digest(), "big") % num_parts


def languages_there(data_dir: Path) -> list[str]:
    """The languages whose files are there, in the paper's order; one that is not of the nine is an error."""
    there = set()
    for path in sorted(data_dir.glob("how2_*.json*")):
        match = re.fullmatch(r"how2_(.+)\.json(\.gz)?", path.name)
        if match:
            there.add(checked_language(match[1], str(path), LANGUAGES))
    return [language for language in LANGUAGES if language in there]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all builders, and `--temporary`."""
    corpus.add_options(parser)
    parser.add_argument("--temporary", type=Path, help="folder for temporary files, about as large as the source")


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    languages = languages_there(arguments.data_dir)
    if not languages:
        raise FileNotFoundError(f"{arguments.data_dir}: no how2_<language>.json; --data_dir holds:\n{ABOUT.layout}")
    return build(ABOUT, make_reader(languages, arguments.temporary), options_of(arguments), RULES)
