"""Multi30K: 31,014 Flickr pictures with captions in English, German, French and Czech, all written by people.

    mmt build multi30k --data_dir path/to/multi30k/dataset --output_dir data/multi30k

Task 1 is one English caption a picture and its translations; task 2 is five English and five German captions a
picture, written independently. Line i of a text file belongs to line i of its split's list of images. Task 1's
English caption is one of task 2's five on the training set, so `caption_en` is the union, `parallel_<language>`
task 1 alone.
"""

import argparse
from collections.abc import Iterator, Sequence

import datasets

from datasets_scripts.corpus import About, Clock, Row, build, options_of, schema
from modeling_mmt.data.sources import SourceError, Sources, Tally, checked_id, clean_text, without_ending

TASK1, TASK2 = ("en", "de", "fr", "cs"), ("en", "de")
CAPTIONS = 5  # of task 2, a picture and language
# split: (task 1's name, its languages, task 2's name of texts, of images), as in the repository's data folder
SPLITS = {
    "train": ("train", TASK1, "train", "train_images"),
    "validation": ("val", TASK1, "val", "val_images"),
    "test": ("test_2016_flickr", TASK1, "test_2016", "test_2016_images"),
    "test_2017_flickr": ("test_2017_flickr", ("en", "de", "fr"), None, None),
    "test_2017_mscoco": ("test_2017_mscoco", ("en", "de", "fr"), None, None),
    "test_2018_flickr": ("test_2018_flickr", TASK1, None, None),
}
NEEDED = ("train", "validation", "test")
RULES = {
    "same_in_both": "task 1's caption that is one of task 2's as well: stored once in `caption_<language>`",
    "repeated_image": "a picture whose list has it more than once: its captions are gathered in one row",
}
ABOUT = About(
    name="multi30k",
    title="Multi30K",
    summary=__doc__.partition("\n")[0],
    source="https://github.com/multi30k/dataset (Elliott et al. 2016, Elliott et al. 2017, Barrault et al. 2018)",
    layout=(
        "  data/task1/raw/{train,val,test_2016_flickr}.{en,de,fr,cs}.gz\n"
        "  data/task1/image_splits/{train,val,test_2016_flickr}.txt\n"
        "  data/task2/raw/{train,val,test_2016}.{1..5}.{en,de}.gz\n"
        "  data/task2/image_splits/{train,val,test_2016}_images.txt\n"
        "  and, if there, task 1's test_2017_flickr, test_2017_mscoco and test_2018_flickr"
    ),
    license="other",
    license_text="the repository states none; the pictures, which are not in it, are on Flickr's terms. For research.",
    columns={
        "video_id": "the picture's file name without its ending",
        "caption_<language>": "all captions: five (English: with task 1's), German six, French and Czech one",
        "parallel_<language>": "task 1: one caption, a translation of `parallel_en`",
    },
    published={
        "train": 29000,
        "validation": 1014,
        "test": 1000,
        "test_2017_flickr": 1000,
        "test_2017_mscoco": 461,
        "test_2018_flickr": 1071,
    },
    published_source="the repository's README, and the files' own lines",
    task="text-to-image",
    notes=(
        "## Use\n\nThe paper trains on 29,000, chooses on 1,014 and tests on 1,000 (`test`, task 1's "
        "`test_2016_flickr`). French and Czech exist in task 1 alone; `test_2017_*` have no Czech."
    ),
)


def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
    """The splits that are there; train, validation and test must be."""
    here = {
        split: names
        for split, names in SPLITS.items()
        if split in NEEDED or sources.has(f"data/task1/image_splits/{names[0]}.txt")
    }
    features = schema({"caption": TASK1, "parallel": TASK1})
    return features, {split: read_split(sources, tally, *names) for split, names in here.items()}


def read_split(
    sources: Sources, tally: Tally, task1: str, languages: Sequence[str], task2: str | None, images2: str | None
) -> Iterator[Row]:
    """A row a picture, in the order of task 1's list."""
    rows: dict[str, Row] = {}
    images = image_list(sources, f"data/task1/image_splits/{task1}.txt")
    for image in images:
        if image in rows:
            tally.count("repeated_image")
        rows[image] = {"video_id": image} | {f"{k}_{lang}": [] for k in ("caption", "parallel") for lang in TASK1}
    for language in languages:
        for image, text in zip(images, aligned(sources, f"data/task1/raw/{task1}.{language}.gz", images), strict=True):
            cleaned = clean_text(text, tally)
            if cleaned is not None:
                rows[image][f"parallel_{language}"].append(cleaned)
                rows[image][f"caption_{language}"].append(cleaned)
    if task2 is not None:
        listed = image_list(sources, f"data/task2/image_splits/{images2}.txt")
        unknown = next((image for image in listed if image not in rows), None)
        if unknown is not None:
            raise SourceError(
                f"{sources.folder}/data/task2/image_splits/{images2}.txt: picture {unknown!r} is not in task 1's "
                f"{task1}.txt; both lists must be of one release"
            )
        for language in TASK2:
            for number in range(1, CAPTIONS + 1):
                texts = aligned(sources, f"data/task2/raw/{task2}.{number}.{language}.gz", listed)
                for image, text in zip(listed, texts, strict=True):
                    cleaned = clean_text(text, tally)
                    if cleaned in rows[image][f"parallel_{language}"]:
                        tally.count("same_in_both")
                    elif cleaned is not None:
                        rows[image][f"caption_{language}"].append(cleaned)
    for row in rows.values():
        if any(row[f"caption_{language}"] for language in TASK1):
            yield row
        else:
            tally.count("no_caption")


def image_list(sources: Sources, name: str) -> list[str]:
    """The ids of a list of images; MS-COCO's lines name the caption after a `#`, which is no part of the picture."""
    return [
        checked_id(without_ending(line.partition("#")[0].strip()), f"{sources.folder / name}, line {number}")
        for number, line in enumerate(sources.lines(name), start=1)
    ]


def aligned(sources: Sources, name: str, images: Sequence[str]) -> list[str]:
    """A text file's lines, as many as there are images."""
    lines = sources.lines(name)
    if len(lines) != len(images):
        raise SourceError(
            f"{sources.folder / name}: {len(lines)} lines, its list of images has {len(images)}; line i must belong "
            "to image i: download both again"
        )
    return lines


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    return build(ABOUT, read, options_of(arguments), RULES)
