"""Your own clips and captions, in any languages: a table of captions becomes a dataset that `train.py` trains on.

    mmt build own_clips --data_dir my_clips --output_dir data/my_clips

The worked example for a builder: copy it. `my_clips/captions.csv` has a line a caption:

    video_id,language,caption,split
    kettle-01,en,a kettle boils on a stove,train
    kettle-01,sw,birika linachemka jikoni,train

`split` is train, validation or test; without that column, a hash of the id puts 80 / 10 / 10 % there. With columns
`start` and `end`, a clip is that span of a longer video, in seconds. `captions.jsonl`, one object a line with the same
fields, does as well. Features are extracted from the clips' files by `extract_features.py`, or converted from those
that you have by `mmt convert`; `--features` checks that every clip has them.
"""

import argparse
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import datasets

from datasets_scripts.corpus import About, Clock, Row, build, options_of, schema
from modeling_mmt.data.sources import (
    SourceError,
    Sources,
    Tally,
    checked_id,
    checked_language,
    clean_text,
    json_object,
)

FILES = ("captions.csv", "captions.tsv", "captions.jsonl")
SPLITS = ("train", "validation", "test")
RULES = {
    "repeated_caption": "a caption that its clip has already in this language: dropped",
    "no_length": "a clip that ends where it starts: dropped with its captions",
}
ABOUT = About(
    name="own_clips",
    title="Own clips",
    summary="A folder of clips with captions in any languages.",
    source="Your own. Say here who filmed and who wrote, and who agreed to what.",
    layout="  captions.csv (or .tsv, .jsonl): video_id, language, caption; optional: split, start, end",
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
    for where, line in read_lines(sources, name):
        video_id = checked_id(line["video_id"], where)
        language = checked_language(line["language"], where)
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


def read_lines(sources: Sources, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table's lines with their place."""
    path, fields = sources.folder / name, ["video_id", "language", "caption"]
    if not name.endswith(".jsonl"):
        table = sources.table(name, fields, "\t" if name.endswith(".tsv") else ",")
        yield from ((f"{path}, row {number}", line) for number, line in enumerate(table, start=2))
        return
    for number, text in enumerate(sources.lines(name), start=1):
        where = f"{path}, line {number}"
        yield where, json_object(text, where, fields)


def split_of(split: Any, video_id: str, where: str) -> str:
    """The line's split, or one by a hash of the id."""
    if split is None or split == "":
        tenth = hashlib.sha256(video_id.encode()).digest()[0] * 10 // 256
        return {0: "validation", 1: "test"}.get(tenth, "train")
    if split not in SPLITS:
        raise SourceError(f"{where}: split is {split!r}; write one of {', '.join(SPLITS)}")
    return split


def span(line: dict[str, Any], where: str) -> dict[str, float]:
    """The line's start and end in seconds, if it has both."""
    fields = {key: line[key] for key in ("start", "end") if line.get(key) not in (None, "")}
    if not fields:
        return {}
    try:
        times = {key: float(fields[key]) for key in ("start", "end")}
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"{where}: start and end are {fields}; write both, in seconds") from error
    if not all(map(math.isfinite, times.values())) or not 0 <= times["start"] <= times["end"]:
        raise SourceError(f"{where}: start and end are {fields}; 0 <= start <= end must hold")
    return times


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    return build(ABOUT, read, options_of(arguments), RULES)
