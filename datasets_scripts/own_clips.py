"""Your own clips and captions, in any languages: a table of captions becomes a dataset that `train.py` trains on.

    mmt build own_clips --data_dir my_clips --output_dir data/my_clips

The worked example for a builder: copy it. `my_clips/captions.csv` has a line a caption:

    video_id,language,caption,split
    kitchen/kettle,en,a kettle boils on a stove,train
    kitchen/kettle,sw,birika linachemka jikoni,train

or a line a clip with a column for each language:

    file_name;en;sw
    kitchen/kettle.mp4;a kettle boils on a stove;birika linachemka jikoni

It may come from a spreadsheet: commas, semicolons or tabs, any encoding, heads in any case. An id is a clip's path in
its folder without the ending, as `mmt extract` makes it. `split` is train, validation or test; without that column, a
hash of the id puts 80 / 10 / 10 % there. With columns `start` and `end`, a clip is that span of a longer video, in
seconds. `captions.jsonl`, one object a line with the same fields, does as well. Features are extracted from the clips'
files by `mmt extract`, or converted from those that you have by `mmt convert`; `--features` checks that every clip has
them.
"""

import argparse
import hashlib
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import datasets

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
    json_object,
)
from modeling_mmt.data.tables import read_table

FILES = ("captions.csv", "captions.tsv", "captions.jsonl")
SPLITS = ("train", "validation", "test")
NO_CAPTIONS = {
    "video_id",
    "file_name",
    "split",
    "start",
    "end",
}  # what a table with a column a language may have beside
RULES = {
    "other_column": "a column of a table that is no language: not read",
    "repeated_caption": "a caption that its clip has already in this language: dropped",
    "no_length": "a clip that ends where it starts: dropped with its captions",
}
ABOUT = About(
    name="own_clips",
    title="Own clips",
    summary="A folder of clips with captions in any languages.",
    source="Your own. Say here who filmed and who wrote, and who agreed to what.",
    layout="  captions.csv (or .tsv, .jsonl): video_id, language, caption; or video_id and a column a language;\n"
    "    file_name in place of video_id; optional: split, start, end",
    license="other",
    license_text="yours to state.",
    columns={
        "video_id": "the clip's id",
        "start, end": "seconds of the clip in its video, where the table has them",
        "caption_<language>": "the clip's captions",
    },
)


def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
    """A row a clip, in the order of the first captions."""
    name = sources.find(*FILES)
    clips: dict[str, Row] = {}
    languages: dict[str, None] = {}
    timed = False
    for where, line in read_captions(sources, name, tally):
        video_id = id_of(line, where)
        language = language_of(line["language"], where)
        facts = {"split": split_of(line.get("split"), video_id, where)} | span(line, where)
        timed |= "start" in facts
        clip = clips.setdefault(video_id, {"facts": facts, "captions": {}})
        if clip["facts"] != facts:
            raise SourceError(
                f"{where}: clip {video_id!r} is {facts}, before it was {clip['facts']}; correct one line"
            )
        text = clean_text(line["caption"], tally)
        texts = clip["captions"].setdefault(language, [])
        if text in texts:
            tally.count("repeated_caption")
        elif text is not None:
            languages[language] = None
            texts.append(text)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for video_id, clip in clips.items():
        facts = clip["facts"]
        if timed and facts.get("start") == facts.get("end") is not None:
            tally.count("no_length")
        elif not any(clip["captions"].values()):
            tally.count("no_caption")
        else:
            times = {key: facts.get(key) for key in ("start", "end")} if timed else {}
            texts = {f"caption_{language}": clip["captions"].get(language, []) for language in languages}
            rows[facts["split"]].append({"video_id": video_id} | times | texts)
    others = {key: datasets.Value("float32") for key in ("start", "end")} if timed else {}
    features = schema({"caption": list(languages)}, **others)
    return features, {split: iter(part) for split, part in rows.items() if part}


def read_captions(sources: Sources, name: str, tally: Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table's captions with their place; of a table with a column a language, each that is not empty."""
    lines = read_jsonl(sources, name) if name.endswith(".jsonl") else read_table(sources, name)
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
    languages = {column: tag for column in columns if (tag := language_tag(column.removeprefix("caption_")))}
    languages = {column: tag for column, tag in languages.items() if column not in NO_CAPTIONS}
    if lines and not languages:
        raise SourceError(f"{where}: no column 'caption', nor one of a language such as 'en'; {header}")
    tally.count("other_column", len({*columns} - NO_CAPTIONS - {*languages}))
    for place, line in lines:
        for column, language in languages.items():
            if line.get(column) not in (None, ""):
                yield place, line | {"language": language, "caption": line[column]}


def read_jsonl(sources: Sources, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The file's objects with their places; blank lines are left out."""
    objects = []
    for number, text in enumerate(sources.lines(name), start=1):
        where = f"{sources.folder / name}, line {number}"
        if not text.strip():
            continue
        objects.append((where, json_object(text, where)))
    return objects


def id_of(line: dict[str, Any], where: str) -> str:
    """The line's id; of a file's name, the one that `mmt extract` makes of it."""
    if line.get("video_id") not in (None, "") or not isinstance(name := line.get("file_name"), str):
        return checked_id(line.get("video_id"), f"{where}, column 'video_id'", in_folders=True)
    path = PurePosixPath(name)
    video_id = path.with_suffix("").as_posix() if path.name else name
    return checked_id(video_id, f"{where}, column 'file_name'", in_folders=True)


def language_of(value: Any, where: str) -> str:
    """The BCP 47 tag of a language as people write it: `EN`, `pt_BR`, `swa`."""
    tag = language_tag(value) if isinstance(value, str) else None
    return tag or checked_language(value, f"{where}, column 'language'")


def split_of(split: Any, video_id: str, where: str) -> str:
    """The line's split, or one by a hash of the id."""
    if split is None or split == "":
        tenth = hashlib.sha256(video_id.encode()).digest()[0] * 10 // 256
        return {0: "validation", 1: "test"}.get(tenth, "train")
    if split not in SPLITS:
        raise SourceError(f"{where}, column 'split': {split!r} is no split; write one of {', '.join(SPLITS)}")
    return split


def span(line: dict[str, Any], where: str) -> dict[str, float]:
    """The line's start and end in seconds, if it has both."""
    fields = {key: line[key] for key in ("start", "end") if line.get(key) not in (None, "")}
    if not fields:
        return {}
    try:
        times = {key: float(str(fields[key]).replace(",", ".")) for key in ("start", "end")}
    except (KeyError, ValueError) as error:
        raise SourceError(f"{where}: start and end are {fields}; write both, in seconds") from error
    if not all(map(math.isfinite, times.values())) or not 0 <= times["start"] <= times["end"]:
        raise SourceError(f"{where}: start and end are {fields}; 0 <= start <= end must hold")
    return times


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    return build(ABOUT, read, options_of(arguments), RULES)
