"""emoji9: animated emoji with names and keywords in nine languages.

1,602 concepts, each a clip of 1 or 8 frames with a short name (the caption) and keywords (noisy, loosely aligned text)
in en de fr cs zh ru vi sw es, all written by people. `build` turns the source folder into the bundled Parquet dataset:

    mmt build emoji9 --data_dir path/to/emoji9 --output_dir datasets_scripts/emoji9

The source folder holds `emoji9.jsonl`, one JSON object a line with `emoji`, `split`, `file` (of its film strip),
`source_frames`, `name` {language: text} and `keywords` {language: [text, ...]}, and the strips, 128 px high WebP files
with the frames side by side. The result is read by anything that reads Parquet:

    from datasets import load_dataset
    test = load_dataset("datasets_scripts/emoji9", "sw", split="test")  # or no name: all nine languages
    frames = frames_of(test[0])

Sources: Fluent Emoji by Microsoft (MIT), Unicode CLDR annotations (Unicode-3.0).
"""

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import yaml
from PIL import Image, UnidentifiedImageError

from datasets_scripts.corpus import (
    About,
    Clock,
    Options,
    PlainDumper,
    Publication,
    building,
    options_of,
    with_features,
)
from modeling_mmt.data.files import write_text
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.sources import Sources, Tally
from modeling_mmt.data.wording import counted

SPLITS = ("train", "validation", "test")
FRAME_SIZE = 128  # pixels, height and width
NUM_FRAMES = 8  # of an animated clip: source frames int(j * source_frames / 8)
LICENCE_FILES = ("LICENSE-Fluent-Emoji-MIT.txt", "LICENSE-Unicode-3.0.txt")
ABOUT = About(
    name="emoji9",
    title="emoji9",
    summary="animated emoji with names and keywords in nine languages",
    source="Fluent Emoji by Microsoft (MIT), Unicode CLDR annotations (Unicode-3.0)",
    layout="  emoji9.jsonl: {emoji, split, file, source_frames, name, keywords} a line\n  strips/*.webp",
    license="other",
    license_text="MIT and Unicode-3.0",
    columns={},
    published={"train": 1152, "validation": 150, "test": 300},
    published_source="its card",
)
SHARED_COLUMNS = ("video_id", "emoji", "is_flag", "num_frames", "source_frames", "frames")


def columns_of(languages: Sequence[str]) -> list[str]:
    """The columns of a config with these languages."""
    return [*SHARED_COLUMNS, *(f"{kind}_{language}" for kind in ("name", "keywords") for language in languages)]


def features_of(languages: Sequence[str]) -> datasets.Features:
    """The schema of a config with these languages."""
    features: dict[str, Any] = {
        "video_id": datasets.Value("string"),
        "emoji": datasets.Value("string"),
        "is_flag": datasets.Value("bool"),
        "num_frames": datasets.Value("int32"),
        "source_frames": datasets.Value("int32"),
        "frames": datasets.Image(),
    }
    features |= {f"name_{language}": datasets.Value("string") for language in languages}
    features |= {f"keywords_{language}": datasets.List(datasets.Value("string")) for language in languages}
    return datasets.Features(features)


def is_flag(emoji: str) -> bool:
    """Whether the emoji is a country's flag: two regional indicator letters.

    Their names are country names, easy and unlike captions, so results are also given without them. (The flags of
    parts of a country would be tag sequences; the corpus has none.)
    """
    return len(emoji) == 2 and all(0x1F1E6 <= ord(char) <= 0x1F1FF for char in emoji)


def read_source(data_dir: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Reads and checks the source folder.

    Returns:
        {split: rows in file order}, each row as `features_of(LANGUAGES)` says, the strip as its unchanged bytes.

    Raises:
        FileNotFoundError: `emoji9.jsonl` or a strip is missing.
        ValueError: a line breaks the layout; the message names the file, line, field, value and remedy.
    """
    index = Path(data_dir) / "emoji9.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{index} does not exist; --data_dir must be the folder that holds emoji9.jsonl")
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    lines_of: dict[str, dict[Any, int]] = {}
    for number, line in enumerate(Sources(data_dir).lines(index.name), start=1):
        where = f"{index}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); write one object a line") from error
        row = _read_record(record, Path(data_dir), where)
        unique = {"file": row["video_id"], "emoji": row["emoji"]}
        unique["picture"] = hashlib.sha256(row["frames"]["bytes"]).hexdigest()
        unique |= {f"name.{language}": row[f"name_{language}"] for language in LANGUAGES}
        for field, value in unique.items():
            first = lines_of.setdefault(field, {}).setdefault(value, number)
            if first != number:
                raise ValueError(f"{where}: field {field!r} repeats {value!r} of line {first}; remove one of them")
        rows[record["split"]].append(row)
    empty = [split for split in SPLITS if not rows[split]]
    if empty:
        raise ValueError(f"{index}: no row of split {empty[0]!r}; each of {', '.join(SPLITS)} needs one")
    return rows


def _read_record(record: Any, data_dir: Path, where: str) -> dict[str, Any]:
    """Checks one line of the index and returns its row."""

    def refuse(field: str, value: Any, remedy: str) -> ValueError:
        return ValueError(f"{where}: field {field!r} is {value!r}; {remedy}")

    if not isinstance(record, dict):
        raise ValueError(f"{where}: {type(record).__name__} instead of an object; write one object a line")
    for field in ("emoji", "split", "file", "source_frames", "name", "keywords"):
        if field not in record:
            raise ValueError(f"{where}: field {field!r} is missing; add it")
    emoji, split, file, source_frames = (record[field] for field in ("emoji", "split", "file", "source_frames"))
    if not isinstance(emoji, str) or not emoji:
        raise refuse("emoji", emoji, "write the emoji's characters")
    if split not in SPLITS:
        raise refuse("split", split, f"write one of {', '.join(SPLITS)}")
    if type(source_frames) is not int or source_frames < 1:
        raise refuse("source_frames", source_frames, "write a whole number from 1; 1 = a still picture")
    path = PurePosixPath(file) if isinstance(file, str) else PurePosixPath()
    if path.parts != ("strips", path.name) or path.suffix != ".webp" or "\\" in path.name:
        raise refuse("file", file, "write strips/<hex code points joined by ->.webp")
    code_points = path.stem.split("-")
    if any(set(point) - set("0123456789abcdef") for point in code_points):
        raise refuse("file", file, "name it by the emoji's lower-case hex code points, joined by -")
    if [point for point in code_points if point != "fe0f"] != [f"{ord(char):x}" for char in emoji if char != "\ufe0f"]:
        raise refuse("file", file, f"it does not spell the field 'emoji', {emoji!r}; correct one of them")

    row: dict[str, Any] = {"video_id": path.stem, "emoji": emoji, "is_flag": is_flag(emoji)}
    strip = data_dir / path
    if not strip.is_file():
        raise FileNotFoundError(f"{where}: field 'file' is {file!r}, and {strip} does not exist; complete the folder")
    data = strip.read_bytes()
    row["num_frames"] = NUM_FRAMES if source_frames > 1 else 1
    row["source_frames"] = source_frames
    row["frames"] = {"bytes": data, "path": None}
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            actual = (picture.format, picture.mode, *picture.size)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}: {strip} is not a readable picture ({error}); copy it again") from error
    expected = ("WEBP", "RGB", row["num_frames"] * FRAME_SIZE, FRAME_SIZE)
    if actual != expected:
        raise ValueError(
            f"{where}: {strip} is {actual}, but field 'source_frames' {source_frames} needs {expected} "
            "(format, mode, width, height); make the strip again"
        )

    for field in ("name", "keywords"):
        if not isinstance(record[field], dict):
            raise refuse(field, record[field], "write {language: ...}")
    for language in LANGUAGES:
        for field in ("name", "keywords"):
            if language not in record[field]:
                raise ValueError(f"{where}: field '{field}.{language}' is missing; every row has all of {LANGUAGES}")
        name, keywords = record["name"][language], record["keywords"][language]
        if not _is_text(name):
            raise refuse(f"name.{language}", name, "write a text without outer spaces or control characters")
        if not isinstance(keywords, list) or not keywords or not all(map(_is_text, keywords)):
            raise refuse(f"keywords.{language}", keywords, "write a list of texts, at least one")
        row[f"name_{language}"], row[f"keywords_{language}"] = name, keywords
    return row


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value != ""
        and value == value.strip()
        and not any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in value)
    )


class Emoji9(datasets.GeneratorBasedBuilder):
    """The same dataset straight from the source folder, for those who have it and want no Parquet in between.

    `Emoji9(config_name="sw", data_dir=...)`, then `download_and_prepare()` and `as_dataset("test")`. `load_dataset`
    no longer runs scripts: from the bundled Parquet it gives the same rows.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [datasets.BuilderConfig(name=name) for name in ("default", *LANGUAGES)]
    DEFAULT_CONFIG_NAME = "default"

    def _languages(self) -> Sequence[str]:
        return LANGUAGES if self.config.name == "default" else (self.config.name,)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=features_of(self._languages()))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self.config.data_dir is None:
            raise ValueError("Emoji9 needs data_dir=..., the folder that holds emoji9.jsonl")
        rows = read_source(self.config.data_dir)
        return [datasets.SplitGenerator(name=split, gen_kwargs={"rows": rows[split]}) for split in SPLITS]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        columns = columns_of(self._languages())
        for index, row in enumerate(rows):
            yield index, {column: row[column] for column in columns}


def build(data_dir: str | Path, output_dir: str | Path, options: Options | None = None) -> dict[str, int]:
    """Writes the Parquet dataset and its card; the licence texts are copied from the bundled folder.

    Strips are stored once, byte for byte; the configs of single languages are column selections in the card.

    Args:
        data_dir: the source folder.
        output_dir: made if need be; its `data/` and `README.md` are replaced.
        options: what else the command line says: feature stores that every clip must be in.

    Returns:
        {split: number of rows}.

    Raises:
        FileNotFoundError, ValueError: as `read_source`, or a clip has no features.
    """
    options = options or Options(Path(data_dir), Path(output_dir))
    rows, output_dir = read_source(data_dir), Path(output_dir)
    clock, tally = Clock(options.features), Tally()
    with building(output_dir):
        with Publication(output_dir, features_of(LANGUAGES)) as publication:
            for split in SPLITS:
                rows[split] = list(with_features(rows[split], split, clock, options, tally, set()))
                publication.write(split, rows[split])
        for licence in LICENCE_FILES:
            text = (Path(__file__).parent / "emoji9" / licence).read_text(encoding="utf-8")
            write_text(output_dir / licence, text)
        write_text(output_dir / "README.md", card(rows, source_hashes(data_dir, rows)))
    return {split: len(rows[split]) for split in SPLITS}


def source_hashes(data_dir: str | Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """SHA-256 of the index, and one over all strips, as `sha256sum strips/*.webp | sha256sum` in byte order."""
    index = (Path(data_dir) / "emoji9.jsonl").read_bytes()
    strips = {row["video_id"]: row["frames"]["bytes"] for split in SPLITS for row in rows[split]}
    sums = [
        f"{hashlib.sha256(data).hexdigest()}  {file}\n"
        for file, data in sorted((f"strips/{video_id}.webp", data) for video_id, data in strips.items())
    ]
    return {
        "emoji9.jsonl": hashlib.sha256(index).hexdigest(),
        "strips": hashlib.sha256("".join(sums).encode()).hexdigest(),
    }


def card(rows: Mapping[str, Sequence[Mapping[str, Any]]], hashes: Mapping[str, str]) -> str:
    """The dataset card: YAML with the configs, then what is inside, counted from the rows."""
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS]
    configs: list[dict[str, Any]] = [{"config_name": "default", "data_files": data_files, "default": True}]
    for language in LANGUAGES:
        configs.append({"config_name": language, "data_files": data_files, "columns": columns_of([language])})
    metadata = {
        "pretty_name": "emoji9: animated emoji named in nine languages",
        "language": list(LANGUAGES),
        "license": "other",
        "license_name": "mit-and-unicode-3.0",
        "license_link": "LICENSE-Unicode-3.0.txt",
        "task_categories": ["text-to-video", "image-to-text"],
        "task_ids": ["image-captioning"],
        "multilinguality": ["multilingual"],
        "annotations_creators": ["expert-generated"],
        "size_categories": ["1K<n<10K"],
        "tags": ["text-to-video-retrieval", "emoji", "cldr", "zero-shot-cross-lingual"],
        "configs": configs,
    }
    front = yaml.dump(metadata, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=1000)

    counts = ["| split | clips | animated (8 frames) | country flags |", "| --- | ---: | ---: | ---: |"]
    for split in SPLITS:
        animated = sum(row["num_frames"] > 1 for row in rows[split])
        counts.append(
            f"| {split} | {len(rows[split]):,} | {animated:,} | {sum(r['is_flag'] for r in rows[split]):,} |"
        )
    languages = [
        "| language | " + " | ".join(f"names, {split}" for split in SPLITS) + " | "
        + " | ".join(f"keywords, {split}" for split in SPLITS) + " | characters a name |",
        "| --- " + "| ---: " * 7 + "|",
    ]  # fmt: skip
    for language in LANGUAGES:
        names = Counter({split: len(rows[split]) for split in SPLITS})
        keywords = {split: sum(len(row[f"keywords_{language}"]) for row in rows[split]) for split in SPLITS}
        mean = sum(len(row[f"name_{language}"]) for split in SPLITS for row in rows[split]) / names.total()
        cells = [*(f"{names[split]:,}" for split in SPLITS), *(f"{keywords[split]:,}" for split in SPLITS)]
        languages.append(f"| {language} | " + " | ".join(cells) + f" | {mean:.1f} |")
    return CARD.format(
        front=front, counts="\n".join(counts), languages="\n".join(languages), total=sum(map(len, rows.values())),
        index_sha256=hashes["emoji9.jsonl"], strips_sha256=hashes["strips"],
    )  # fmt: skip


CARD = """---
{front}---

# emoji9

{total:,} concepts, each a short clip (an animated or still emoji) with a name and keywords in nine languages, all
written by people: a small corpus, free to redistribute, for multilingual text-to-video search. Names play the
captions; keywords, noisy and loosely aligned, play the transcriptions of a pre-training corpus.

```python
from datasets import load_dataset
test = load_dataset("datasets_scripts/emoji9", split="test")           # all nine languages
swahili = load_dataset("datasets_scripts/emoji9", "sw", split="test")  # one language; the same clips
```

## What is inside

{counts}

A clip belongs to one split. Country flags (`is_flag`: two regional indicator letters) have country names, which are
easy and unlike captions: report results with and without them.

| column | type | meaning |
| --- | --- | --- |
| `video_id` | string | code points of the emoji in hex, joined by `-` |
| `emoji` | string | the emoji itself, without U+FE0F; no skin tones |
| `is_flag` | bool | a country's flag |
| `num_frames` | int32 | frames in `frames`: 1 or 8 |
| `source_frames` | int32 | frames of the animation behind it; frame j is its frame int(j * source_frames / 8) |
| `frames` | image | film strip on white: 128 x 128 pixel RGB frames side by side, WebP at quality 80 |
| `name_<language>` | string | short name, unique within its language |
| `keywords_<language>` | list of string | at least one |

{languages}

Config `default` has all columns, config `en`, `de`, `fr`, `cs`, `zh`, `ru`, `vi`, `sw` or `es` the columns of one
language. The frames are stored once.

## Where it comes from

- Frames: [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), (c) Microsoft Corporation, MIT
  (`LICENSE-Fluent-Emoji-MIT.txt`), from the npm packages `@lobehub/fluent-emoji-anim-1` to `-4` 1.0.0 (LobeHub, MIT),
  resized to 128 pixels.
- Names and keywords: [Unicode CLDR](https://cldr.unicode.org) annotations, (c) Unicode, Inc., Unicode-3.0
  (`LICENSE-Unicode-3.0.txt`), from the npm packages `cldr-annotations-full` and `cldr-annotations-derived-full`
  48.2.0.

Made by `mmt build emoji9 --data_dir <source> --output_dir <this folder>` from a folder with one JSON
line a concept and one WebP strip a clip, which are stored here byte for byte:

| input | SHA-256 |
| --- | --- |
| `emoji9.jsonl` | `{index_sha256}` |
| `sha256sum strips/*.webp`, hashed again | `{strips_sha256}` |

## Limits

The clips are drawings, the texts are short, and names in different languages are translations of one list. Numbers on
it compare methods; they do not say how well a model searches real videos. Swahili and Czech stand for languages with
less text in the encoders' training, no more.
"""


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Converts the source folder into the Parquet dataset and prints the number of rows of each split."""
    counts = build(arguments.data_dir, arguments.output_dir, options_of(arguments))
    for split, count in counts.items():
        print(f"{split}: {counted(count, 'row')}")
    return counts
