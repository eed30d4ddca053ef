"""Your own clips and captions, in any languages: a table of captions becomes a dataset that `train.py` trains on.

    mmt build own_clips --data_dir my_clips --output_dir data/my_clips

The worked example for a builder: copy it. `my_clips/captions.csv` has a line a caption:

    file_name,language,caption,split
    kitchen/kettle.mp4,en,a kettle boils on a stove,train
    kitchen/kettle.mp4,sw,birika linachemka jikoni,train

or a line a clip with a column for each language:

    file_name;start;end;en;sw
    kitchen/kettle.mp4;8;16;a kettle boils on a stove;birika linachemka jikoni
    kitchen/kettle.mp4;0:16;0:21,5;tea is poured;chai inamiminwa

It may come from a spreadsheet or pandas: commas, semicolons or tabs, any encoding, heads in any case. Or it is
`captions.jsonl`, one object a line with the same fields. A file is a video or a picture. With `start` and `end` a clip
is that span of it, in seconds or h:mm:ss, and a film may have several.

An id is what `mmt extract my_clips/captions.csv` makes of the same line: the file's path without the ending, and the
span's seconds, `kitchen/kettle#8.0-16.0`; a column `video_id` gives others. Features are extracted so, or converted
from those that you have by `mmt convert`; `--features` checks that every clip has them. For training from pixels,
`data.video_column: file` reads the files where they lie, and their spans; `--embed_videos` puts the files themselves
into the dataset, as `video`, which `datasets` decodes and the Hub shows.

`split` is train, validation or test. Without it, a hash of the id, of a span the file's, puts 80 / 10 / 10 % there;
spans of one film stay together.
"""

import argparse
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from datasets_scripts import corpus
from datasets_scripts.corpus import About, Clock, Row, build, options_of, schema
from modeling_mmt.data.language_tags import language_tag
from modeling_mmt.data.sources import (
    SourceError,
    Sources,
    Tally,
    as_object,
    checked_id,
    checked_language,
    clean_text,
)
from modeling_mmt.data.tables import read_json_lines, read_table
from modeling_mmt.data.video_lists import clip_id, seconds_of, shown_span

FILES = ("captions.csv", "captions.tsv", "captions.jsonl")
FEW = 100  # clips, of which a tenth by a hash may be none
MAX_EMBEDDED = 2**30  # bytes; Arrow holds 2 GiB in a column's chunk
SPLITS = ("train", "validation", "test")
NO_CAPTIONS = {"video_id", "file_name", "split", "start", "end"}  # what a table has beside a column a language
BARE_LANGUAGE = re.compile(r"[A-Za-z]{2}([-_].+)?")  # any other tag is a word as well: url, tag, age
RULES = {
    "other_column": "a column of a table that is not a language: not read",
    "repeated_caption": "a caption that its clip has already in this language: dropped",
    "no_length": "a clip that ends where it starts: dropped with its captions",
    "missing_file": "a clip whose file is not in the folder: kept, for features that you have",
}
ABOUT = About(
    name="own_clips",
    title="Own clips",
    summary="A folder of clips with captions in any languages.",
    source="Your own. Say here who filmed and who wrote, and who agreed to what.",
    layout="  captions.csv (or .tsv, .jsonl): file_name, language, caption; or file_name and a column a language\n"
    "    (en, pt-BR, caption_fil); video_id beside file_name or in its place; optional: split, start, end",
    license="other",
    license_text="yours to state.",
    columns={
        "video_id": "the clip's id",
        "file": "the clip's file, from the folder of this dataset, where the table has it",
        "video": "that file, under --embed_videos",
        "start, end": "seconds of the clip in its file, where the table has them; null: all of it",
        "caption_<language>": "the clip's captions",
    },
)


def read(
    sources: Sources, tally: Tally, clock: Clock, output_dir: Path | None = None, embed_videos: bool = False
) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
    """A row a clip, in the order of the first captions.

    Args:
        sources: the table, and its files.
        tally: of `RULES`.
        clock: not asked.
        output_dir: of the dataset, from which its files are named; None is the table's folder.
        embed_videos: whether the files go into the rows.
    """
    if len(there := [name for name in FILES if sources.has(name)]) > 1:
        raise SourceError(f"{sources.folder}: {' and '.join(there)} are both there; leave one")
    clips = read_clips(sources, sources.find(*FILES), tally)
    splits = drawn_splits(clip["group"] for clip in clips.values() if clip["split"] is None)
    features = features_of(clips.values(), embed_videos)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for clip in clips.values():
        if clip["start"] == clip["end"] is not None:
            tally.count("no_length")
        elif not any(clip["captions"].values()):
            tally.count("no_caption")
        else:
            rows[clip["split"] or splits[clip["group"]]].append(clip)
            if clip["file_name"] and not sources.has(clip["file_name"]):
                tally.count("missing_file")
    folder = output_dir or sources.folder
    return features, {
        split: (row_of(clip, features, sources, folder) for clip in part) for split, part in rows.items() if part
    }


def read_clips(sources: Sources, name: str, tally: Tally) -> dict[str, dict[str, Any]]:
    """The clips of a table by their ids, in the order of their first captions: facts, and captions by language."""
    clips: dict[str, dict[str, Any]] = {}
    for where, line in read_captions(sources, name, tally):
        times, file_name = span(line, where), file_of(line, where)
        video_id, language = id_of(line, file_name, times, where), language_of(line["language"], where)
        facts: dict[str, Any] = {"file_name": file_name, "split": split_of(line.get("split"), where)}
        facts |= {key: times.get(key) for key in ("start", "end")}
        group = clip_id(file_name) if file_name and times else video_id
        clip = clips.setdefault(video_id, {"video_id": video_id, "group": group, "captions": {}} | facts)
        if before := {key: clip[key] for key in facts if clip[key] != facts[key]}:
            now = {key: facts[key] for key in before}
            raise SourceError(f"{where}: clip {video_id!r} is {now}, before it was {before}; correct one line")
        text = clean_text(line["caption"], tally)
        texts = clip["captions"].setdefault(language, [])
        if text in texts:
            tally.count("repeated_caption")
        elif text is not None:
            texts.append(text)
    return clips


def features_of(clips: Iterable[dict[str, Any]], embed_videos: bool) -> datasets.Features:
    """The columns that these clips need."""
    clips = list(clips)
    languages = dict.fromkeys(language for clip in clips for language, texts in clip["captions"].items() if texts)
    others: dict[str, Any] = {}
    if any(clip["file_name"] for clip in clips):
        others["file"] = datasets.Value("string")
    if embed_videos:
        others["video"] = datasets.Video()
    if any(clip["start"] is not None for clip in clips):
        others |= {key: datasets.Value("float64") for key in ("start", "end")}
    return schema({"caption": list(languages)}, **others)


def row_of(clip: dict[str, Any], features: datasets.Features, sources: Sources, folder: Path) -> Row:
    """A clip's row, which names its file from `folder`; the file is read if it goes into the row.

    Raises:
        SourceError: there is no such file, or it is too large.
    """
    row, name = {key: clip[key] for key in ("video_id", "start", "end") if key in features}, clip["file_name"]
    if "file" in features:
        row["file"] = name and Path(os.path.relpath(sources.folder / name, folder)).as_posix()
    if "video" in features:
        if name is None or not sources.has(name) or (sources.folder / name).stat().st_size > MAX_EMBEDDED:
            raise SourceError(
                f"clip {clip['video_id']!r}: --embed_videos stores its file, but file_name is {name!r}; name a file "
                f"that exists and has at most {MAX_EMBEDDED:,} bytes"
            )
        with sources.open(name) as stream:
            row["video"] = {"bytes": stream.read(), "path": PurePosixPath(name).name}
    columns = (column for column in features if column.startswith("caption_"))
    return row | {column: clip["captions"].get(column.removeprefix("caption_"), []) for column in columns}


def drawn_splits(groups: Iterable[str]) -> dict[str, str]:
    """A split for each clip or film by the hash of its name: 80 / 10 / 10 % of few, and of many about so.

    Of many, a name has its split whatever else is there.
    """
    digests = {group: hashlib.sha256(group.encode()).digest() for group in groups}
    order = sorted(digests, key=lambda group: digests[group])
    if len(order) < FEW:
        share = max(1, round(len(order) / 10)) if len(order) >= len(SPLITS) else 0
        tenths = {group: place // share if share else 9 for place, group in enumerate(order)}
    else:
        tenths = {group: digests[group][0] * 10 // 256 for group in order}
    return {group: {0: "validation", 1: "test"}.get(tenth, "train") for group, tenth in tenths.items()}


def read_captions(sources: Sources, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table's captions with their place; of a table with a column a language, each that is not empty."""
    lines = (read_json_lines if name.endswith(".jsonl") else read_table)(sources, name)
    columns = list(dict.fromkeys(column for _, line in lines for column in line))
    where, header = f"{sources.folder / name}, line 1", f"the header is {', '.join(columns)}"
    if lines and not {"video_id", "file_name"} & {*columns}:
        raise SourceError(f"{where}: no column 'video_id' or 'file_name'; {header}")
    if "caption" in columns:
        if "language" not in columns:
            raise SourceError(f"{where}: no column 'language'; {header}; name each caption's, such as en")
        for place, line in lines:
            yield place, as_object(line, place, ["language", "caption"])
        return
    languages = {
        column: tag for column in columns if column not in NO_CAPTIONS and (tag := language_of_column(column, lines))
    }
    if lines and not languages:
        raise SourceError(f"{where}: no column 'caption', nor one with a language's code, such as 'en'; {header}")
    tally.count("other_column", len({*columns} - NO_CAPTIONS - {*languages}))
    for place, line in lines:
        for column, language in languages.items():
            if line.get(column) not in (None, ""):
                yield place, line | {"language": language, "caption": line[column]}


def language_of_column(column: str, lines: Iterable[tuple[str, dict[str, Any]]]) -> str | None:
    """The language that a column's head names: `en`, `pt_BR`, `caption_fil`; None for numbers, as of a column `id`."""
    name = column.removeprefix("caption_")
    if name == column and not BARE_LANGUAGE.fullmatch(name):
        return None
    values = (line.get(column) for _, line in lines)
    has_words = any(isinstance(value, str) and any(map(str.isalpha, value)) for value in values)
    return language_tag(name) if has_words else None


def file_of(line: dict[str, Any], where: str) -> str | None:
    """The line's file, if it names one."""
    name = line.get("file_name")
    if name in (None, ""):
        return None
    if not isinstance(name, str) or not PurePosixPath(name).name or "\0" in name:
        raise SourceError(f"{where}, column 'file_name': {name!r}; write the path of a video or picture")
    return name


def id_of(line: dict[str, Any], file_name: str | None, times: dict[str, float], where: str) -> str:
    """The line's id; of a file's name and span, the one that `mmt extract` makes of it."""
    if line.get("video_id") not in (None, "") or file_name is None:
        return checked_id(line.get("video_id"), f"{where}, column 'video_id'", in_folders=True)
    video_id = clip_id(file_name, times.get("start", 0.0), times.get("end"))
    return checked_id(video_id, f"{where}, column 'file_name'", in_folders=True)


def language_of(value: Any, where: str) -> str:
    """The BCP 47 tag of a language as people write it: `EN`, `pt_BR`, `swa`."""
    tag = language_tag(value) if isinstance(value, str) else None
    return tag or checked_language(value, f"{where}, column 'language'")


def split_of(split: Any, where: str) -> str | None:
    """The line's split, if it says one."""
    if split is None or split == "":
        return None
    if split not in SPLITS:
        raise SourceError(f"{where}, column 'split': {split!r} is not a split; write one of {', '.join(SPLITS)}")
    return split


def span(line: dict[str, Any], where: str) -> dict[str, float]:
    """The line's start and end in seconds, if it has both."""
    times = seconds_of(line, where)
    if times and not (len(times) == 2 and times["start"] <= times["end"]):
        raise SourceError(f"{where}: {shown_span(times)}; write both, and 0 <= start <= end must hold")
    return times


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all builders, and whether the files go into the dataset."""
    corpus.add_options(parser)
    parser.add_argument(
        "--embed_videos", action="store_true", help="store each clip's media file in the dataset, as `video`"
    )


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    options = options_of(arguments)
    reader = partial(read, output_dir=options.output_dir, embed_videos=arguments.embed_videos)
    return build(ABOUT, reader, options, RULES)
