"""MSR-VTT: 10,000 web video clips with 20 English captions each, and their machine translations into eight languages.

    mmt build msrvtt --data_dir path/to/msrvtt --output_dir data/msrvtt9

The paper trains on the official 6,513 clips, chooses on the official 497 and tests on JSFusion's 1,000 pairs
("1k-A"): the default config. Config `full` tests on the official 2,990 with all their captions. Config `9k` trains on
what is left of the 10,000 without 1k-A, as others do: 1,990 of its clips are of the official test set.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets

from datasets_scripts import corpus
from datasets_scripts.corpus import About, Clock, Row, build, options_of, schema
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.sources import (
    SourceError,
    Sources,
    Tally,
    as_list,
    as_object,
    checked_id,
    checked_language,
    clean_texts,
    without_ending,
)
from modeling_mmt.data.tables import read_table

POOLED = "mul"  # ISO 639-2: several languages
JSON_FILES = ("MSRVTT_data.json", "train_val_videodatainfo.json")
TEST_JSON = "test_videodatainfo.json"
CSV_FILES = ("MSRVTT_JSFUSION_test.csv", "msrvtt_jsfusion_test1kA.csv", "msrvtt_test.csv")
TEST_CAPTIONS, TRAIN_CAPTIONS = "multilingual_test/test_{}.json", "multilingual_train/train_{}.json"
POOLED_CAPTIONS = "multilingual_train/ref_captions_all.json"
OFFICIAL = {"train": "train", "validate": "validation", "test": "test"}
RULES = {
    "other_split": "a clip of 1k-A that the official list does not have in its test split: kept, it may be leaked",
    "leak": "a clip that config `9k` trains on and the official test split holds",
    "unknown_clip": "captions in another language of a clip that no split has: dropped",
}
ABOUT = About(
    name="msrvtt",
    title="MSR-VTT in nine languages",
    summary=__doc__.partition("\n")[0],
    source=(
        "MSR-VTT (Xu et al. 2016): `train_val_videodatainfo.json` and `test_videodatainfo.json`, or both in "
        "`MSRVTT_data.json`; 1k-A: JSFusion (Yu et al. 2018), https://github.com/antoine77340/MIL-NCE_HowTo100M; "
        "eight languages: https://github.com/berniebear/Multi-HT100M (machine translated)"
    ),
    layout=(
        "  MSRVTT_data.json, or train_val_videodatainfo.json and test_videodatainfo.json:\n"
        "    {videos: [{video_id, split}], sentences: [{video_id, caption}]}\n"
        "  MSRVTT_JSFUSION_test.csv (or msrvtt_jsfusion_test1kA.csv, msrvtt_test.csv): key,vid_key,video_id,sentence\n"
        "  multilingual_test/test_{lang}.json, if there: {video9770.mp4: [caption, ...]}; the first is 1k-A's\n"
        "  multilingual_train/train_{lang}.json, if there: the same for the training clips\n"
        "  multilingual_train/ref_captions_all.json, if there: {video0.mp4: [captions of all languages]}\n"
        "  With --test_only, the CSV (and multilingual_test) alone."
    ),
    license="other",
    license_text="MSR-VTT: for research, no redistribution of videos; 1k-A's list Apache-2.0.",
    columns={
        "video_id": "`video0` to `video9999`",
        "caption_<language>": (
            "captions; in `test` the one of 1k-A, in other splits all. Other languages than English are machine "
            "translations. `caption_mul`: captions of all languages in one list, which the source does not tell apart"
        ),
    },
    published={"train": 6513, "validation": 497, "test": 1000, "test_rest": 1990, "test_1ka_all": 1000},
    published_source=(
        "MSR-VTT's own splits 6,513 / 497 / 2,990 and JSFusion's 1,000 test pairs, as counted in "
        "https://github.com/albanie/collaborative-experts"
    ),
    configs={
        "full": {"train": ["train"], "validation": ["validation"], "test": ["test_rest", "test_1ka_all"]},
        "9k": {"train": ["train", "validation", "test_rest"], "test": ["test"]},
    },
    notes=(
        '## A leak to know\n\nConfig `9k`, the usual "training-9k", holds the official validation split and the '
        "1,990 clips of the official test split that are not in 1k-A. A model trained on it must not be tested on the "
        "official 2,990, and has no clips left to choose on. The paper does not train on them.\n\n1k-A has 1,000 "
        "clips and 995 different sentences: equal sentences tie."
    ),
)


def make_reader(test_only: bool, languages: Sequence[str]):
    """The reading function; `test_only` needs 1k-A's list alone."""

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        captions, split_of = ({}, {}) if test_only else official(sources, tally)
        pairs = jsfusion(sources, tally)
        translated = {lang: multilingual(sources, tally, TEST_CAPTIONS.format(lang)) for lang in languages}
        trained = {lang: multilingual(sources, tally, TRAIN_CAPTIONS.format(lang)) for lang in languages}
        if not test_only:
            trained[POOLED] = multilingual(sources, tally, POOLED_CAPTIONS)
        others = [lang for lang in (*languages, POOLED) if translated.get(lang) or trained.get(lang)]
        columns = ["en", *(lang for lang in others if lang != "en")]
        for of_language in (*translated.values(), *trained.values()):
            tally.count("unknown_clip", sum(clip not in split_of and clip not in pairs for clip in of_language))

        def row(video_id: str, english: Sequence[str], first: bool) -> Row:
            texts = {"en": list(english)}
            for lang in columns[1:]:
                own = trained.get(lang, {}).get(video_id) or translated.get(lang, {}).get(video_id) or []
                if first:
                    own = translated.get(lang, {}).get(video_id, [])[:1]
                texts[lang] = own
            return {"video_id": video_id} | {f"caption_{lang}": texts[lang] for lang in columns}

        def all_captions(split: str, only: set[str] | None = None) -> Iterator[Row]:
            for video_id, texts in captions.items():
                if split_of[video_id] == split and (only is None or video_id in only):
                    if texts:
                        yield row(video_id, texts, first=False)
                    else:
                        tally.count("no_caption")

        features = schema({"caption": columns})
        test = (row(video_id, [sentence], first=True) for video_id, sentence in pairs.items())
        if test_only:
            return features, {"test": test}
        tally.count("other_split", sum(split_of.get(video_id) != "test" for video_id in pairs))
        held_out = {video_id for video_id, split in split_of.items() if split == "test"}
        tally.count("leak", len(held_out - pairs.keys()))
        return features, {
            "train": all_captions("train"),
            "validation": all_captions("validation"),
            "test": test,
            "test_rest": all_captions("test", held_out - pairs.keys()),
            "test_1ka_all": all_captions("test", held_out & pairs.keys()),
        }

    return read


def official(sources: Sources, tally: Tally) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Each clip's English captions, and its split."""
    first = sources.find(*JSON_FILES)
    files = [first] if first == JSON_FILES[0] else [first, sources.find(TEST_JSON)]
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for name in files:
        where = str(sources.folder / name)
        data = as_object(sources.json(name), where, ["videos", "sentences"])
        for number, video in enumerate(as_list(data["videos"], f"{where}, videos")):
            place = f"{where}, videos[{number}]"
            as_object(video, place, ["video_id", "split"])
            video_id = checked_id(video["video_id"], place)
            if not isinstance(video["split"], str) or video["split"] not in OFFICIAL:
                raise SourceError(f"{place}: split is {video['split']!r}; known are {', '.join(OFFICIAL)}")
            if video_id in split_of:
                raise SourceError(f"{place}: {video_id!r} appears twice; remove one of them")
            split_of[video_id], captions[video_id] = OFFICIAL[video["split"]], []
        for number, sentence in enumerate(as_list(data["sentences"], f"{where}, sentences")):
            place = f"{where}, sentences[{number}]"
            as_object(sentence, place, ["video_id", "caption"])
            video_id = checked_id(sentence["video_id"], place)
            if video_id not in captions:
                raise SourceError(f"{place}: clip {video_id!r} is not among the videos; complete the file")
            captions[video_id] += clean_texts([sentence["caption"]], tally)
    return captions, split_of


def jsfusion(sources: Sources, tally: Tally) -> dict[str, str]:
    """1k-A: a sentence a clip, in the list's order."""
    name = sources.find(*CSV_FILES)
    pairs: dict[str, str] = {}
    for place, line in read_table(sources, name, ["video_id", "sentence"]):
        video_id = checked_id(line["video_id"], place)
        if video_id in pairs:
            raise SourceError(f"{place}: {video_id!r} appears twice; 1k-A has one sentence a clip")
        texts = clean_texts([line["sentence"]], tally)
        if texts:
            pairs[video_id] = texts[0]
        else:
            tally.count("no_caption")
    return pairs


def multilingual(sources: Sources, tally: Tally, name: str) -> dict[str, list[str]]:
    """{clip: captions} of a file of the nine-language release; nothing where there is none."""
    if not sources.has(name):
        return {}
    where = str(sources.folder / name)
    texts_of: Mapping[str, list[str]] = as_object(sources.json(name), where)
    return {
        checked_id(without_ending(key), where): clean_texts(as_list(texts, f"{where}, {key!r}"), tally)
        for key, texts in texts_of.items()
    }


def languages_there(data_dir: Path) -> list[str]:
    """The languages of the nine-language files that are there; one that is not of the nine is an error."""
    there = []
    for pattern in (TEST_CAPTIONS, TRAIN_CAPTIONS):
        for path in sorted(data_dir.glob(pattern.format("*"))):
            match = re.fullmatch(r"(?:test|train)_(.+)\.json", path.name)
            if match:
                there.append(checked_language(match[1], str(path), LANGUAGES))
    return [language for language in LANGUAGES if language in there]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all builders, and `--test_only`."""
    corpus.add_options(parser)
    parser.add_argument("--test_only", action="store_true", help="1k-A alone, from its list")


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    reader = make_reader(arguments.test_only, languages_there(arguments.data_dir))
    counts = build(ABOUT, reader, options_of(arguments), RULES)
    if counts.get("test_rest"):
        print(f"config 9k trains on {counts['test_rest']:,} clips of the official test split: do not test on it")
    return counts
