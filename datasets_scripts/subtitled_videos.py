"""Your own videos with subtitles, in any languages: what is said beside what is shown becomes pre-training data.

    mmt build subtitled_videos --data_dir my_videos --output_dir data/my_videos --features features/my_videos

`my_videos` is a folder as `mmt extract` takes it; subtitles are files beside a video, or text streams inside it:

    kitchen/kettle.mp4
    kitchen/kettle.en.srt  kitchen/kettle.pt-BR.vtt  kitchen/kettle.sw.ass
    kitchen/kettle.json    Whisper's, which says its language itself; its kettle.en.tsv does as well
    talks/tea.mkv          with text streams that have a language

A row is a video with each language's cues, their texts and seconds, as `multi_howto100m` has them: a source of
pre-training with `clip_seconds` draws windows from it. `--features` lets cues end where a video's features end.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from datasets_scripts import corpus
from datasets_scripts.corpus import About, Clock, CueLists, Row, build, cue_row, cue_schema, options_of
from modeling_mmt.data import cues
from modeling_mmt.data.cluster import ClusterPool, Unread, check_read_here_too, unread
from modeling_mmt.data.cues import Cue, CueCleaner, is_seconds, spoken_cues
from modeling_mmt.data.language_tags import language_tag
from modeling_mmt.data.sources import SourceError, Sources, Tally, checked_language
from modeling_mmt.data.subtitles import (
    MAX_BYTES,
    OTHER_SUFFIXES,
    SUFFIXES,
    language_inside,
    language_of_name,
    read_subtitles,
    read_text_streams,
    text_streams,
)
from modeling_mmt.data.video_lists import Video, find_videos
from modeling_mmt.picture_formats_mmt import PICTURE_SUFFIXES

VIDEOS_A_TASK = 64  # read together, and on a cluster by one call
RULES = {
    "no_subtitles": "a video without subtitles in a language that is taken: not in the dataset",
    "no_language": "subtitles that name no language, and no --language does: left out; name them as in talk.en.srt",
    "other_language": "subtitles in a language that --languages does not name: left out",
    "variety": "subtitles in a variety (pt-BR) of a language that --languages names (pt): taken as in that language",
    "repeated_language": "a video's subtitles in a language that it has already: the first kept, files before streams",
    "forced": "subtitles of what is foreign to a film alone: left out",
    "pictures": "subtitle streams of pictures: left out",
    "other_format": f"a file in a format that is not read ({', '.join(OTHER_SUFFIXES)}): left out; convert it",
    "no_video": "a subtitle file beside no video of its name: left out",
    "no_transcript": "JSON or TSV of a video's name that is no transcript of Whisper: left out",
    "unreadable": "a video's streams or a subtitle file that cannot be read: left out, as was printed",
    **cues.SCREEN_RULES,
    **cues.RULES,
}
ABOUT = About(
    name="subtitled_videos",
    title="Subtitled videos",
    summary="Videos with the cues of their subtitles in any languages, and when each is shown.",
    source="Your own. Say here who filmed, who wrote or recognised the subtitles, and who agreed to what.",
    layout="  videos, in folders or with metadata.jsonl, as `mmt extract` takes them; subtitles beside them\n"
    "  (talk.en.srt, talk.pt-BR.vtt, talk.sw.ass; Whisper's talk.json, talk.en.tsv) or inside mkv and mp4",
    license="other",
    license_text="yours to state.",
    columns={
        "video_id": "the video's path in its folder without the ending, or the id that metadata.jsonl gives it",
        "text_<language>": "the cues, in order; None where the video has none in the language",
        "start_<language>, end_<language>": "seconds of each cue in the video; they do not overlap",
    },
)


class Track(NamedTuple):
    """Subtitles of a video in one language: a file, or by its number a stream of the video's own file."""

    language: str | None
    path: Path
    stream: int | None = None


@dataclass
class Notes:
    """What comes to light while files are read, on a node as well; `read_all` puts together what its groups noted.

    Args:
        tally: of `RULES`.
        sources: the videos' folder; has the hash of each file that was read.
        left_out: lines about what could not be read.
        unread: a file that the node cannot so much as open.
    """

    tally: Tally
    sources: Sources
    left_out: list[str] = field(default_factory=list)
    unread: Unread | None = None

    def leave_out(self, error: Exception, path: Path) -> None:
        """Note a file that cannot be read."""
        self.left_out.append(f"left out: {error}")
        self.tally.count("unreadable")
        self.unread = self.unread or unread(path)

    def add(self, others: "Notes") -> None:
        """Take over what was noted elsewhere; what was left out is printed.

        Raises:
            ClusterError: a node cannot read a file that this machine can.
        """
        check_read_here_too(others.unread)
        print(*others.left_out, sep="\n", end="\n" if others.left_out else "")
        self.tally.counts.update(others.tally.counts)
        self.sources.sha256.update(others.sources.sha256)


class OfGroup:
    """Reads the files of some videos; it can be sent to another process.

    Args:
        read: of one video, and where it notes what else it finds.
        folder: of the videos.
    """

    def __init__(self, read: Callable[[Any, Notes], Any], folder: Path):
        self.read, self.folder = read, folder

    def __call__(self, videos: Sequence[Any]) -> tuple[list[Any], Notes]:
        """What was read of each, and the notes."""
        notes = Notes(Tally(RULES), Sources(self.folder))
        return [self.read(video, notes) for video in videos], notes


def read_all(
    read: Callable[[Any, Notes], Any], videos: Iterable[Any], notes: Notes, pool: ClusterPool | None
) -> Iterator[Any]:
    """What `read` makes of each video, in order; by the nodes of a cluster if there is one."""
    left = iter(videos)
    groups = iter(lambda: list(islice(left, VIDEOS_A_TASK)), [])
    of_group = OfGroup(read, notes.sources.folder)
    for values, noted in pool.map(of_group, groups) if pool else map(of_group, groups):
        notes.add(noted)
        yield from values


class TrackFinder:
    """Finds the subtitles of a video, by names and tags; it can be sent to another process.

    Args:
        default: language of subtitles that name none, or None.
        wanted: the languages to take; all where it is empty.
    """

    def __init__(self, default: str | None = None, wanted: Sequence[str] = ()):
        self.default, self.wanted = default, wanted

    def __call__(self, video: tuple[Path, list[tuple[Path, list[str]]]], notes: Notes) -> dict[str, Track]:
        """A video's tracks by language.

        Args:
            video: its path, and the subtitle files beside it with the words between its name and their ending.
            notes: what is left out, and why.
        """
        path, beside = video
        found = [*self._files(beside, notes), *self._streams(path, notes)]
        return self._one_a_language(found, notes.tally)

    def _files(self, files: Iterable[tuple[Path, list[str]]], notes: Notes) -> Iterator[Track]:
        for path, words in sorted(files, key=lambda file: SUFFIXES.index(file[0].suffix.lower())):
            language, is_forced = language_of_name(words)
            if is_forced:
                notes.tally.count("forced")
            elif path.suffix.lower() not in (".json", ".tsv"):
                yield Track(language, path)
            else:
                yield from self._transcript(path, language, notes)

    def _transcript(self, path: Path, language: str | None, notes: Notes) -> Iterator[Track]:
        """Whisper's, if it is one."""
        try:
            data = read_file(path)
            if read_subtitles(data, str(path)) is None:
                notes.tally.count("no_transcript")
            else:
                inside = language_inside(data, str(path)) if path.suffix.lower() == ".json" else None
                yield Track(language or inside, path)
        except SourceError as error:
            notes.leave_out(error, path)

    def _streams(self, path: Path, notes: Notes) -> Iterator[Track]:
        try:
            streams = text_streams(path)
        except SourceError as error:
            notes.leave_out(error, path)
            return
        for stream in streams:
            if stream.is_text and not stream.is_forced:
                yield Track(stream.language, path, stream.number)
            else:
                notes.tally.count("forced" if stream.is_text else "pictures")

    def _one_a_language(self, found: Iterable[Track], tally: Tally) -> dict[str, Track]:
        """Those that name a language itself go before its varieties, and before those that `default` is taken for."""
        named: list[tuple[str, Track]] = []
        others: list[tuple[str, Track]] = []
        for track in found:
            language = track.language or self.default
            base = language.partition("-")[0] if language else ""
            if language is None:
                tally.count("no_language")
            elif not self.wanted or language in self.wanted:
                (named if track.language else others).append((language, track))
            elif base in self.wanted:
                tally.count("variety")
                others.append((base, track))
            else:
                tally.count("other_language")
        tracks: dict[str, Track] = {}
        for language, track in [*named, *others]:
            tally.count("repeated_language", language in tracks)
            tracks.setdefault(language, track)
        return tracks


def files_beside(paths: Iterable[Path], tally: Tally) -> dict[Path, list[tuple[Path, list[str]]]]:
    """The subtitle files beside each video, with the words between its name and their ending."""
    beside: dict[Path, list[tuple[Path, list[str]]]] = {path: [] for path in paths}
    videos = {path.with_suffix(""): path for path in beside}
    for folder in dict.fromkeys(path.parent for path in beside):
        for file in sorted(folder.iterdir(), key=lambda file: (len(file.name), file.name)):
            suffix = file.suffix.lower()
            tally.count("other_format", suffix in OTHER_SUFFIXES)
            if suffix not in SUFFIXES or not file.is_file():
                continue
            words = file.stem.split(".")
            counts = range(len(words), 0, -1)  # talk.2.en.srt is of talk.2.mp4 before talk.mp4
            names = ((folder / ".".join(words[:count]), words[count:]) for count in counts)
            name, rest = next(((name, rest) for name, rest in names if name in videos), (None, []))
            if name is not None:
                beside[videos[name]].append((file, rest))
            else:
                tally.count("no_video", suffix not in (".json", ".tsv"))
    return beside


def read_file(path: Path) -> bytes:
    """A file's bytes; of one that is too large for subtitles, one more than they may have."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def read_cues(video: tuple[Video, Mapping[str, Track], float | None], notes: Notes) -> dict[str, CueLists]:
    """The cleaned cues of a video by language.

    Args:
        video: with its tracks, and its features' seconds.
        notes: what is left out, and why.
    """
    clip, tracks, seconds = video
    cleaner, tally = CueCleaner(notes.tally), notes.tally
    cleaned: dict[str, CueLists] = {}
    for language, found in cues_by_language(tracks, notes).items():
        lists = cleaner.clean(spoken_cues(cues_of_span(found, clip), tally), seconds)
        if lists is not None:
            cleaned[language] = lists
    return cleaned


def cues_by_language(tracks: Mapping[str, Track], notes: Notes) -> dict[str, list[Cue]]:
    """The cues of a video's tracks as they are written; every file that is read is hashed."""
    sources = notes.sources
    found: dict[str, list[Cue]] = {}
    streams: dict[Path, dict[int, str]] = defaultdict(dict)
    for language, track in tracks.items():
        if track.stream is not None:
            streams[track.path][track.stream] = language
            continue
        try:
            with sources.open(name_of(track.path, sources)) as stream:
                data = stream.read(MAX_BYTES + 1)
            found[language] = read_subtitles(data, str(track.path), language) or []
        except SourceError as error:
            notes.leave_out(error, track.path)
    for path, languages in streams.items():
        try:
            read = read_text_streams(path, list(languages))
        except SourceError as error:
            notes.leave_out(error, path)
            continue
        with sources.open(name_of(path, sources)):  # to its end, for its hash
            found |= {languages[index]: lines for index, lines in read.items()}
    return found


def name_of(path: Path, sources: Sources) -> str:
    """A file's name in the folder of the sources."""
    return Path(os.path.relpath(path, sources.folder)).as_posix()


def cues_of_span(found: Iterable[Cue], video: Video) -> Iterator[Cue]:
    """The cues of a clip that is a span of its file, in seconds of the clip."""
    for start, end, text in found:
        if is_seconds(start) and is_seconds(end):
            if 0 < video.start >= end or (video.end is not None and start >= video.end):
                continue
            start, end = (max(time, video.start) - video.start for time in (start, min(end, video.end or end)))
        yield start, end, text


def make_read(default: str | None = None, wanted: Sequence[str] = (), pool: ClusterPool | None = None):
    """The reading function for `--language`, `--languages` and `--cluster`."""

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        if pool is not None:
            sources.folder = sources.folder.absolute()  # a node works in another folder
        notes = Notes(tally, sources)
        found = find_videos(sources.folder)
        videos = [video for video in found if Path(video.source).suffix.lower() not in PICTURE_SUFFIXES]
        beside = files_beside(dict.fromkeys(Path(video.source) for video in videos), tally)
        finder = TrackFinder(default, wanted)
        tracks = dict(zip(beside, read_all(finder, beside.items(), notes, pool), strict=True))
        languages = sorted({language for found in tracks.values() for language in found})
        if not languages:
            raise SourceError(
                f"{sources.folder}: none of its videos ({len(videos):,}) has subtitles in the languages asked for; "
                "name subtitle files like talk.en.srt, or give their --language"
            )
        with_tracks = [video for video in videos if tracks[Path(video.source)]]
        tally.count("no_subtitles", len(videos) - len(with_tracks))
        to_read = ((video, tracks[Path(video.source)], clock.seconds(video.video_id)) for video in with_tracks)
        cues = zip(with_tracks, read_all(read_cues, to_read, notes, pool), strict=True)
        return cue_schema(languages), {"train": rows(cues, languages, tally)}

    return read


def rows(
    cues: Iterable[tuple[Video, Mapping[str, CueLists]]], languages: Sequence[str], tally: Tally
) -> Iterator[Row]:
    """A row for each video that has a cue in any language."""
    for video, cleaned in cues:
        if cleaned:
            yield cue_row(video.video_id, cleaned, languages)
        else:
            tally.count("no_caption")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all builders, and which languages there are."""
    corpus.add_options(parser)
    parser.add_argument("--language", metavar="CODE", help="language of subtitles that name none, such as en")
    parser.add_argument(
        "--languages", nargs="*", default=[], metavar="CODE", help="languages to use, such as en pt sw (all)"
    )
    cluster = "let the nodes of a Ray cluster read the files; as in `mmt extract`"
    parser.add_argument("--cluster", metavar="ADDRESS", help=cluster)


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    named = [language for language in (arguments.language, *arguments.languages) if language]
    tags = {name: language_tag(name) or checked_language(name, "--language or --languages") for name in named}
    wanted = [tags[name] for name in arguments.languages]
    with ClusterPool(arguments.cluster) if arguments.cluster else nullcontext() as pool:
        reader = make_read(tags.get(arguments.language), wanted, pool)
        return build(ABOUT, reader, options_of(arguments), RULES)
