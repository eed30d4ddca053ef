"""VATEX: ten-second YouTube clips, each with ten English and ten Chinese captions; five of them are translations.

    mmt build vatex --data_dir path/to/vatex --output_dir data/vatex

Captions 0 to 4 of both languages are independent, 5 to 9 are pairs: Chinese caption k translates English caption k.
Validation is split into HGR's halves by their lists of ids, `validation` and `test`, as the paper does.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np

from datasets_scripts import corpus
from datasets_scripts.corpus import About, Clock, Row, build, options_of, schema
from modeling_mmt.data.sources import (
    SourceError,
    Sources,
    Tally,
    as_list,
    as_object,
    checked_id,
    clean_text,
    clean_texts,
    id_list,
)

FIELDS = {"en": "enCap", "zh": "chCap"}
PARALLEL = range(5, 10)  # of the ten captions
TRAIN, VALIDATION = "vatex_training_v1.0.json", "vatex_validation_v1.0.json"
PUBLIC_TEST = "vatex_public_test_english_v1.1.json"
HALVES = {"validation": ("val_names.txt", "val_names.npy"), "test": ("tst_names.txt", "tst_names.npy")}
VIDEO_ID = re.compile(r"(?P<youtube>[A-Za-z0-9_-]{11})_(?P<start>\d{6})_(?P<end>\d{6})")
RULES = {
    "broken_pair": "a parallel pair of which one caption was dropped: dropped from `parallel_<language>` in both",
    "no_length": "a clip whose id says that it ends where it begins, or before: dropped",
    "half_unknown": "a clip of validation that neither of HGR's lists names: dropped",
    "half_missing": "a clip of HGR's lists that validation does not have: left out",
}
ABOUT = About(
    name="vatex",
    title="VATEX",
    summary=__doc__.partition("\n")[0],
    source=(
        "https://eric-xw.github.io/vatex-website/ (Wang et al. 2019); HGR's halves of validation: "
        "https://github.com/cshizhe/hgr_v2t (Chen et al. 2020)"
    ),
    layout=(
        f"  {TRAIN}, {VALIDATION}: [{{videoID, enCap: [10], chCap: [10]}}]\n"
        f"  {PUBLIC_TEST}, if there: English only\n"
        "  val_names.txt and tst_names.txt (one id a line), or HGR's val_names.npy and tst_names.npy: the halves\n"
        "  of validation; without them, --no_halves keeps validation whole and makes no test split"
    ),
    license="cc-by-4.0",
    license_text="captions CC BY 4.0 as the official site says; the videos are YouTube's users'.",
    columns={
        "video_id": "`<YouTube id>_<start>_<end>`, six digits each",
        "start, end": "seconds of the clip in its video",
        "caption_<language>": "ten captions",
        "parallel_<language>": "captions 5 to 9: item k of `parallel_zh` translates item k of `parallel_en`",
    },
    published={"train": 25991, "validation": 1500, "test": 1500, "public_test": 6000},
    published_source=(
        "the official site (25,991 / 3,000 / 6,000) and HGR, which halves the 3,000; clips vanish from YouTube, "
        "captions do not"
    ),
)


def make_reader(halves: bool):
    """The reading function; without `halves`, validation stays whole."""

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        others = {name: datasets.Value("float32") for name in ("start", "end")}
        features = schema({"caption": list(FIELDS), "parallel": list(FIELDS)}, **others)
        splits = {"train": read_file(sources, tally, TRAIN)}
        if halves:
            ids = {split: half(sources, names) for split, names in HALVES.items()}
            both = set(ids["validation"]) & set(ids["test"])
            if both:
                raise SourceError(
                    f"{sources.folder}: clip {min(both)!r} is in both of HGR's halves; correct the lists"
                )
            by_id = {row["video_id"]: row for row in read_file(sources, tally, VALIDATION)}
            for split, names in ids.items():
                tally.count("half_missing", sum(name not in by_id for name in names))
                splits[split] = iter([by_id[name] for name in names if name in by_id])
            tally.count("half_unknown", len(by_id.keys() - set(ids["validation"]) - set(ids["test"])))
        else:
            splits["validation"] = read_file(sources, tally, VALIDATION)
        if sources.has(PUBLIC_TEST):
            splits["public_test"] = read_file(sources, tally, PUBLIC_TEST)
        return features, splits

    return read


def half(sources: Sources, names: Sequence[str]) -> list[str]:
    """One of HGR's lists of ids."""
    name = sources.find(*names)
    if name.endswith(".txt"):
        return id_list(sources, name)
    where = str(sources.folder / name)
    with sources.open(name) as stream:
        stream.read()  # for its hash
    try:
        array = np.load(sources.folder / name, allow_pickle=False)
    except ValueError as error:
        raise SourceError(
            f"{where}: {error}; such a file may run code when it is read: where you trust it, write its ids to "
            f"{names[0]}, one a line"
        ) from error
    return [checked_id(str(value), f"{where}, item {number}") for number, value in enumerate(array.ravel().tolist())]


def read_file(sources: Sources, tally: Tally, name: str) -> Iterator[Row]:
    """A row a clip, in the file's order."""
    where = str(sources.folder / name)
    seen: set[str] = set()
    for number, item in enumerate(as_list(sources.json(name), where)):
        place = f"{where}, item {number}"
        as_object(item, place, ["videoID", "enCap"])
        video_id = checked_id(item["videoID"], place)
        if video_id in seen:
            raise SourceError(f"{place}: {video_id!r} appears twice; remove one of them")
        seen.add(video_id)
        match = VIDEO_ID.fullmatch(video_id)
        if not match:
            raise SourceError(f"{place}: videoID is {video_id!r}; it must be <11 characters>_<6 digits>_<6 digits>")
        start, end = float(match["start"]), float(match["end"])
        if end <= start:
            tally.count("no_length")
            continue
        captions = {
            language: as_list(item.get(field_, []), f"{place}, {field_}") for language, field_ in FIELDS.items()
        }
        row: Row = {"video_id": video_id, "start": start, "end": end}
        row |= {f"caption_{language}": clean_texts(values, tally) for language, values in captions.items()}
        row |= parallel_pairs(captions, tally)
        if row["caption_en"] or row["caption_zh"]:
            yield row
        else:
            tally.count("no_caption")


def parallel_pairs(captions: dict[str, list[Any]], tally: Tally) -> dict[str, list[str]]:
    """Items 5 to 9 of both languages, item k of one with item k of the other."""
    pairs: dict[str, list[str]] = {f"parallel_{language}": [] for language in captions}
    silent = Tally()  # these captions were counted already
    for index in PARALLEL:
        if any(index >= len(values) for values in captions.values()):
            continue
        pair = {language: clean_text(values[index], silent) for language, values in captions.items()}
        if None in pair.values():
            tally.count("broken_pair")
            continue
        for language, text in pair.items():
            pairs[f"parallel_{language}"].append(str(text))
    return pairs


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all builders, and `--no_halves`."""
    corpus.add_options(parser)
    parser.add_argument("--no_halves", action="store_true", help="keep the 3,000 clips of validation together")


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    return build(ABOUT, make_reader(not arguments.no_halves), options_of(arguments), RULES)
