"""storybook8: pages of African Storybook picture books, a picture and its sentences in up to eight languages.

    mmt build storybook8 --data_dir path/to/storybook8 --output_dir data/storybook8

Split by story, never by page: a story's pages show the same people. Which split a story is in follows from a hash of
its number, about 70 / 10 / 20 %. There is no Czech.
"""

import argparse
import hashlib
import re
import shutil
from collections.abc import Iterator

import datasets

from datasets_scripts.corpus import About, Clock, Row, build, options_of
from modeling_mmt.data.sources import SourceError, Sources, Tally, as_object, checked_language, clean_text, json_object

LANGUAGES = ("en", "sw", "fr", "zh", "de", "es", "vi", "ru")
INDEX, CREDITS = "storybook8.jsonl", "IMAGEBANK_CREDITS.md"
LICENSES = ("[CC-BY]",)
SHARES = (("test", 0.2), ("validation", 0.1), ("train", 0.7))
RULES = {
    "no_picture": "a page without its picture: dropped",
    "repeated_picture": "a page of a story with a picture that an earlier page has, byte for byte: kept, and a tie",
}
ABOUT = About(
    name="storybook8",
    title="storybook8",
    summary=__doc__.partition("\n")[0],
    source=(
        "African Storybook, https://africanstorybook.org: texts from https://github.com/global-asp/asp-source and "
        "https://github.com/global-asp/global-asp, pictures from https://github.com/global-asp/asp-imagebank; the "
        "stories that are CC BY. Authors and illustrators: `IMAGEBANK_CREDITS.md`"
    ),
    layout=(
        "  storybook8.jsonl: {story, page, file, license, text: {language: sentences}} a line\n"
        "  images/SSSS_NN.jpg\n"
        "  IMAGEBANK_CREDITS.md"
    ),
    license="cc-by-4.0",
    license_text="CC BY, story by story (the source says CC-BY without a version); credits are in the folder.",
    columns={
        "video_id": "`<story>_<page>`",
        "story, page": "four digits, and the page's number in the story",
        "frames, num_frames": "the picture, bytes unchanged; always 1",
        "caption_<language>": "the page's sentences, or None",
        "nearby_<language>": "the sentences of the pages before and after: loosely aligned text, as subtitles are",
    },
    task="text-to-image",
    notes="## Use\n\nThe captions tell a story; they do not all describe their picture. Report results by story.",
)


def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
    """The pages that have a picture, by split."""
    if not sources.text(sources.find(CREDITS)).strip():
        raise SourceError(f"{sources.folder / CREDITS} is empty; CC BY asks for credits: complete the folder")
    pages: dict[tuple[str, int], Row] = {}
    for number, line in enumerate(sources.lines(INDEX), start=1):
        where = f"{sources.folder / INDEX}, line {number}"
        page = read_page(line, where, tally)
        if (page["story"], page["page"]) in pages:
            raise SourceError(f"{where}: story {page['story']} has page {page['page']} already; remove one of them")
        pages[page["story"], page["page"]] = page
    rows: dict[str, list[Row]] = {split: [] for split in ("train", "validation", "test")}
    seen: dict[str, str] = {}
    for (story, number), page in pages.items():
        texts, file = page.pop("text"), page.pop("file")
        if file is None:
            tally.count("no_picture")
        elif not texts:
            tally.count("no_caption")
        else:
            around = [
                pages[story, other].get("text") or {} for other in (number - 1, number + 1) if (story, other) in pages
            ]
            page["frames"] = {"bytes": sources.picture(file), "path": None}
            page |= {f"caption_{language}": texts.get(language) for language in LANGUAGES}
            page |= {f"nearby_{lang}": [texts[lang] for texts in around if lang in texts] for lang in LANGUAGES}
            first = seen.setdefault(hashlib.sha256(page["frames"]["bytes"]).hexdigest(), page["video_id"])
            tally.count("repeated_picture", int(first != page["video_id"]))
            rows[split_of(story)].append(page)
        page["text"] = texts
    for split in rows.values():
        for page in split:
            del page["text"]
    features = {
        "video_id": datasets.Value("string"),
        "story": datasets.Value("string"),
        "page": datasets.Value("int32"),
        "num_frames": datasets.Value("int32"),
        "frames": datasets.Image(),
    }
    features |= {f"caption_{language}": datasets.Value("string") for language in LANGUAGES}
    features |= {f"nearby_{language}": datasets.List(datasets.Value("string")) for language in LANGUAGES}
    return datasets.Features(features), {split: iter(part) for split, part in rows.items()}


def read_page(line: str, where: str, tally: Tally) -> Row:
    """A line, checked: its story, page, file or None, and the texts that no rule drops."""
    record = json_object(line, where, ["story", "page", "file", "license", "text"])
    story, page, file = record["story"], record["page"], record["file"]
    if not isinstance(story, str) or not re.fullmatch(r"\d{4}", story):
        raise SourceError(f"{where}: story is {story!r}; write its four digits")
    if type(page) is not int or page < 0:
        raise SourceError(f"{where}: page is {page!r}; write its number")
    if record["license"] not in LICENSES:
        raise SourceError(f"{where}: license is {record['license']!r}; only {', '.join(LICENSES)} may be passed on")
    if file is not None and (not isinstance(file, str) or not re.fullmatch(rf"images/{story}_\d+\.jpg", file)):
        raise SourceError(f"{where}: file is {file!r}; write images/{story}_NN.jpg or null")
    texts = as_object(record["text"], f"{where}, text")
    for language in texts:
        checked_language(language, f"{where}, text", LANGUAGES)
    cleaned = {language: clean_text(text, tally) for language, text in texts.items()}
    captions = {language: text for language, text in cleaned.items() if text is not None}
    row: Row = {"video_id": f"{story}_{page:02d}", "story": story, "page": page, "num_frames": 1}
    return row | {"file": file, "text": captions}


def split_of(story: str) -> str:
    """The split of a story: the same for all its pages, and for any set of stories."""
    share = int.from_bytes(hashlib.sha256(story.encode()).digest()[:8], "big") / 2**64
    for split, size in SHARES:
        if share < size:
            return split
        share -= size
    return SHARES[-1][0]


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of rows of each split."""
    options = options_of(arguments)
    counts = build(ABOUT, read, options, RULES)
    if (options.data_dir / CREDITS).is_file():
        shutil.copyfile(options.data_dir / CREDITS, options.output_dir / CREDITS)
    return counts
