"""photo9: 2,404 real photographs of 122 things, with their names in up to nine languages.

    mmt build photo9 --data_dir ../shared/data/photo9 --output_dir runs/data/photo9

A photo's caption is the name of what it shows, so that a query has many right answers: every photo of its `concept`.
The photos are not the project's to pass on; the builder and the figures are.

Splits. A concept whose nine names are all CLDR's and whose emoji emoji9 trains or validates on is split by photo, 60 /
20 / 20 %, near-duplicates together. Those that emoji9 tests on, or has not, are `test_unseen`: neither their names nor
their photos are trained on. Concepts with names from elsewhere are `validation_unseen`: hyper-parameters are chosen on
it, by English names.
"""

import argparse
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import datasets
import numpy as np
from PIL import Image

from datasets_scripts.corpus import About, Clock, Row, build, options_of
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
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

Keywords = Mapping[str, Sequence[str]]  # language -> keywords

INDEX = "photo9.jsonl"
FIELDS = ("id", "file", "source", "licence", "concept", "emoji", "emoji9_split", "name", "name_source")
COLUMNS = ("concept", "source", "licence", "emoji", "emoji9_split")  # that a row keeps as they are
EMOJI9_SPLITS = ("train", "validation", "test")
LEARNED = EMOJI9_SPLITS[:2]  # whose concepts are learned from and chosen on
SPLITS = ("train", "validation", "test", "test_unseen", "validation_unseen")
HELD_OUT = 0.2  # of a concept's photos, in each of validation and test
NEAR = 6  # of the 64 bits in which the hashes of near-duplicates differ
RULES = {
    "near_duplicate": f"a photo whose difference hash is within {NEAR} of 64 bits of another's of its concept: in one "
    "split with it",
    "named": "a keyword that is a name of the concept: dropped",
}
ABOUT = About(
    name="photo9",
    title="photo9",
    summary=__doc__.partition("\n")[0],
    source=(
        "Caltech-101 (CC BY 4.0), Grocery Store Dataset (MIT), clothing dataset (CC0-1.0), Oxford-IIIT Pets (CC BY-SA "
        "4.0), raccoon dataset (MIT); names: Unicode CLDR (Unicode-3.0), Open Multilingual Wordnet with Wiktionary "
        "(CC BY-SA), Babel-ImageNet (BabelNet, non-commercial)"
    ),
    layout="  photo9.jsonl: {id, file, source, licence, concept, emoji, emoji9_split, name, name_source} a line\n"
    "  images/*.jpg",
    license="other",
    license_text="each photo's is in its row; keep the dataset to yourself.",
    columns={
        "video_id": "as in the source",
        "concept": "what the photo shows: every photo of a concept answers its name",
        "source, licence": "the collection that the photo is from, and its licence",
        "emoji, emoji9_split": "that means the concept, and its split in emoji9; or None",
        "frames, num_frames": "the photo, bytes unchanged; always 1",
        "name_<language>": "the concept's name, or None",
        "keywords_<language>": "CLDR keywords of its emoji without its name; none where emoji9 does not train on it",
    },
    task="text-to-image",
    notes="## Use\n\nTo measure and train on, not to publish. Average a language over the concepts named in it.",
)


def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
    """The photos that no rule drops, by split."""
    photos: dict[str, list[Row]] = defaultdict(list)
    for number, line in enumerate(sources.lines(INDEX), start=1):
        photo = read_photo(line, f"{sources.folder / INDEX}, line {number}", tally)
        picture = sources.picture(photo.pop("file"))
        photos[photo["concept"]].append(photo | {"frames": {"bytes": picture, "path": None}})
    keywords = emoji9_keywords()
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for alike in photos.values():
        splits = splits_of(alike, tally)
        for photo, split in zip(alike, splits, strict=True):
            rows[split].append(with_keywords(photo, keywords_of(photo, keywords), tally))
    texts = {f"name_{language}": datasets.Value("string") for language in LANGUAGES}
    texts |= {f"keywords_{language}": datasets.List(datasets.Value("string")) for language in LANGUAGES}
    plain = {name: datasets.Value("string") for name in ("video_id", *COLUMNS)}
    features = plain | {"num_frames": datasets.Value("int32"), "frames": datasets.Image()} | texts
    return datasets.Features(features), {split: iter(part) for split, part in rows.items() if part}


def read_photo(line: str, where: str, tally: Tally) -> Row:
    """A line, checked: the row without its picture, with `file` and `is_cldr` beside."""
    record = json_object(line, where, FIELDS)
    video_id, file = checked_id(record["id"], f"{where}, id"), record["file"]
    if file != f"images/{video_id}.jpg":
        raise SourceError(f"{where}: file is {file!r}; write images/{video_id}.jpg")
    row: Row = {"video_id": video_id, "file": file, "num_frames": 1}
    for field in ("source", "licence", "concept"):
        row[field] = clean_text(record[field], tally)
        if row[field] is None:
            raise SourceError(f"{where}: {field} is {record[field]!r}; write a text")
    if not (record["emoji"] is None or isinstance(record["emoji"], str)):
        raise SourceError(f"{where}: emoji is {record['emoji']!r}; write the emoji's characters or null")
    if record["emoji9_split"] not in (None, *EMOJI9_SPLITS):
        raise SourceError(
            f"{where}: emoji9_split is {record['emoji9_split']!r}; write null or one of {', '.join(EMOJI9_SPLITS)}"
        )
    names, origins = (as_object(record[field], f"{where}, {field}") for field in ("name", "name_source"))
    for language in names:
        checked_language(language, f"{where}, name", LANGUAGES)
    row |= {
        f"name_{language}": clean_text(names[language], tally) if language in names else None for language in LANGUAGES
    }
    is_cldr = all(origins.get(language) == "cldr" for language in LANGUAGES)
    return row | {"emoji": record["emoji"], "emoji9_split": record["emoji9_split"], "is_cldr": is_cldr}


def splits_of(alike: Sequence[Row], tally: Tally) -> list[str]:
    """The split of each photo of a concept; `is_cldr` is taken out of the rows."""
    seen = {(photo.pop("is_cldr"), photo["emoji9_split"]) for photo in alike}
    if len(seen) > 1:
        raise SourceError(
            f"{INDEX}: photos of {alike[0]['concept']!r} differ in emoji9_split or name_source; correct them"
        )
    is_cldr, emoji9_split = seen.pop()
    if not is_cldr:
        return ["validation_unseen"] * len(alike)
    if emoji9_split not in LEARNED:
        return ["test_unseen"] * len(alike)
    groups = near_duplicates(alike)
    tally.count("near_duplicate", sum(len(group) for group in groups if len(group) > 1))
    splits, filled = ["train"] * len(alike), Counter[str]()
    for group in sorted(groups, key=lambda group: hashlib.sha256(alike[group[0]]["video_id"].encode()).digest()):
        for split in ("test", "validation"):
            if filled[split] + len(group) <= round(HELD_OUT * len(alike)):
                filled[split] += len(group)
                for place in group:
                    splits[place] = split
                break
    return splits


def near_duplicates(alike: Sequence[Row]) -> list[list[int]]:
    """The places of photos in groups: near-duplicates, and what is near to one of them, together."""
    hashes = np.stack([difference_hash(photo["frames"]["bytes"]) for photo in alike])
    near = (hashes[:, None] != hashes[None]).sum(axis=2) <= NEAR
    while (wider := near @ near).sum() > near.sum():
        near = wider
    return [list(group) for group in dict.fromkeys(tuple(np.flatnonzero(row).tolist()) for row in near)]


def difference_hash(picture: bytes) -> np.ndarray:
    """`(64,)` bool: of a picture shrunk to 9 x 8 greys, whether each is darker than its right neighbour."""
    with Image.open(io.BytesIO(picture)) as image:
        grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return (grey[:, :-1] < grey[:, 1:]).ravel()


def emoji9_keywords() -> dict[str, Keywords]:
    """Emoji, as `unvaried` spells it, -> language -> keywords, of the emoji that emoji9 trains or validates on."""
    columns = [f"keywords_{language}" for language in LANGUAGES]
    found: dict[str, Keywords] = {}
    for split in LEARNED:
        for row in read_split("emoji9", None, split).select_columns(["emoji", *columns]):
            found[unvaried(row["emoji"])] = {language: row[f"keywords_{language}"] or [] for language in LANGUAGES}
    return found


def keywords_of(photo: Row, keywords: Mapping[str, Keywords]) -> Keywords:
    """The keywords of a photo's emoji in each language; none where emoji9 does not learn from it.

    Raises:
        SourceError: its `emoji9_split` says that emoji9 does, and emoji9 has no such emoji there.
    """
    emoji, split = photo["emoji"], photo["emoji9_split"]
    found = keywords.get(unvaried(emoji or ""), {})
    if split in LEARNED and not found:
        raise SourceError(
            f"{INDEX}: {photo['video_id']!r}: emoji9_split is {split!r}, and emoji9's {' and '.join(LEARNED)} have no "
            f"emoji {emoji!r}; correct one of them"
        )
    return found


def unvaried(emoji: str) -> str:
    """An emoji without U+FE0F, which asks for it in colour and which some lists write and others leave out."""
    return emoji.replace("\ufe0f", "")


def with_keywords(photo: Row, keywords: Keywords, tally: Tally) -> Row:
    """The photo with its emoji's keywords, its name left out in each language."""
    for language in LANGUAGES:
        name, words = photo[f"name_{language}"], keywords.get(language, [])
        others = [word for word in words if name is None or word.casefold() != name.casefold()]
        tally.count("named", len(words) - len(others))
        photo[f"keywords_{language}"] = others
    return photo


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    return build(ABOUT, read, options_of(arguments), RULES)
