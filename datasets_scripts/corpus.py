"""What every builder shares: files read and hashed, rules counted, one schema, Parquet and a card.

One schema: a row is a clip, with `video_id` and, for each kind of text and language, a column `<kind>_<language>`: a
text or a list of texts, None or empty where the clip has none. Where a clip is a span of a longer video, `start` and
`end` are its seconds. Frozen features are stored in feature stores (`feature_store.py`), found by `video_id`;
pictures are a column `frames` with `num_frames` of them side by side.

A builder gives `build` an `About`, which the card prints, and a function that reads its official files:

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterable[Row]]]: ...

`mmt build NAME` finds a module here by its name, and calls its `add_options(parser)`, or the one below where it has
none, and its `run(arguments)`.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.files import locked, remove_partials, write_json, write_text, writing_folder
from modeling_mmt.data.sources import Row, SourceError, Sources, Tally
from modeling_mmt.data.wording import counted

ROWS_PER_GROUP = 1000  # of a Parquet row group, unless its values are large
BYTES_PER_GROUP = 64 << 20
BYTES_PER_SHARD = 256 << 20  # in memory; Parquet is smaller
BUILD_FILE, CARD = "build.json", "README.md"
REPORT_MARK = "<!-- language report -->"  # where `mmt build language_report` puts its table


@dataclass(frozen=True)
class About:
    """What a card says that the data do not.

    Args:
        name: of the builder's module.
        title: of the card.
        summary: a paragraph: what the clips and texts are.
        source: where to get the official files.
        layout: the files that `--data_dir` holds.
        license: a Hub licence id.
        license_text: what it covers, in words.
        columns: meaning of each column; `<language>` stands for every language.
        published: rows by split, as published, and where.
        published_source: who says so.
        configs: further configs: name to {split: the files' splits}.
        task: of the Hub's list.
        notes: what a user must know: leaks, limits.
    """

    name: str
    title: str
    summary: str
    source: str
    layout: str
    license: str
    license_text: str
    columns: Mapping[str, str]
    published: Mapping[str, int] = field(default_factory=dict)
    published_source: str = ""
    configs: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    task: str = "text-to-video"
    notes: str = ""


@dataclass
class Options:
    """What the command line says, for all builders.

    Args:
        data_dir: the official files.
        output_dir: of the dataset.
        features: feature stores that every clip must be in.
        missing_features: `error`, or `skip` to leave such clips out and count them.
        max_missing: largest share of clips to leave out.
    """

    data_dir: Path
    output_dir: Path
    features: Sequence[Path] = ()
    missing_features: str = "error"
    max_missing: float = 0.05


Reader = Callable[[Sources, Tally, "Clock"], tuple[datasets.Features, Mapping[str, Iterable[Row]]]]


class Clock:
    """The clips that have features in all stores, and for how long."""

    def __init__(self, folders: Sequence[str | Path] = ()):
        self.stores = [FeatureStore(folder) for folder in folders]
        rates = {store.manifest["rate"] for store in self.stores}
        if len(rates) > 1:
            raise SourceError(
                f"--features: rates {sorted(rates, key=str)} steps per second; the streams of a clip are concatenated "
                "step by step: extract them at one rate"
            )
        self.rate: float | None = rates.pop() if rates else None

    def has(self, video_id: str) -> bool:
        """Whether every store holds the clip; true without stores."""
        return all(video_id in store for store in self.stores)

    def seconds(self, video_id: str) -> float | None:
        """Length of the shortest stream, or None where features have no clock or the clip has none."""
        if self.rate is None or not self.has(video_id):
            return None
        return min(store.num_steps(video_id) for store in self.stores) / self.rate

    def unused(self, used: set[str]) -> int:
        """Clips with features that are not in `used`."""
        return len(set().union(*self.stores) - used)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all builders share; a builder may add its own."""
    parser.add_argument("--data_dir", required=True, type=Path, help="folder of the official files")
    output = "folder to write the dataset to; a dataset in it is replaced"
    parser.add_argument("--output_dir", required=True, type=Path, help=output)
    stores = "feature stores, each with every clip"
    parser.add_argument("--features", nargs="*", default=[], type=Path, metavar="FOLDER", help=stores)
    missing = "what to do with a clip that a store lacks (%(default)s)"
    parser.add_argument("--missing_features", choices=("error", "skip"), default="error", help=missing)
    most = "largest fraction of clips that may be skipped (%(default)s)"
    parser.add_argument("--max_missing", type=float, default=0.05, metavar="FRACTION", help=most)
    add_publishing_options(parser)


def add_publishing_options(parser: argparse.ArgumentParser) -> None:
    """Options for the verb, `mmt build`, which publishes what was built."""
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="publish to this dataset repository")
    parser.add_argument("--tag", help="name of the published version, such as v1.0; a tag never moves")
    parser.add_argument("--private", action="store_true", help="make the repository private")


def options_of(arguments: argparse.Namespace) -> Options:
    """What `add_options` asked for."""
    return Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})


def build(about: About, reader: Reader, options: Options, rules: Mapping[str, str]) -> dict[str, int]:
    """Reads the official files, and writes the dataset and its card.

    Args:
        about: the card's text.
        reader: the builder's reading function; its rows may be made on the fly.
        options: the command line.
        rules: the builder's own rules, beside those of `sources.RULES`.

    Returns:
        {split: number of rows}.

    Raises:
        FileNotFoundError: a file is missing.
        SourceError: a file, id or value is not as the layout says and no rule covers it.
    """
    sources, tally, clock = Sources(options.data_dir, about.layout), Tally(rules), Clock(options.features)
    features, splits = reader(sources, tally, clock)
    used: set[str] = set()
    with_clips = {split: with_features(rows, split, clock, options, tally, used) for split, rows in splits.items()}
    with building(options.output_dir) as folder:
        with Publication(folder, features) as publication:
            counts = {split: publication.write(split, rows) for split, rows in with_clips.items()}
            if not counts:
                raise SourceError(f"{options.data_dir}: no clip; the files are empty, or a rule dropped every caption")
            if clock.stores:
                tally.count("features_unused", clock.unused(used))
        languages = languages_of(features)
        record = {
            "builder": about.name,
            "sources": dict(sorted(sources.sha256.items())),
            "rows": counts,
            "published": dict(about.published),
            "rules": {rule: {"meaning": tally.rules[rule], "count": count} for rule, count in tally.counts.items()},
            "features": [
                {name: store.manifest[name] for name in ("extractor", "revision", "rate")} for store in clock.stores
            ],
            "languages": languages,
            "made_with": {"datasets": datasets.__version__, "pyarrow": pa.__version__},
        }
        write_json(folder / BUILD_FILE, record)
        write_text(folder / CARD, card(about, features, record))
    for split, count in counts.items():
        published = about.published.get(split)
        print(f"{split}: {counted(count, 'row')}" + (f" (published: {published:,})" if published else ""))
    for line in tally.lines():
        print(line)
    return counts


def with_features(
    rows: Iterable[Row], split: str, clock: Clock, options: Options, tally: Tally, used: set[str]
) -> Iterator[Row]:
    """The rows whose clips have features; `used` gathers their ids, where there are stores to compare with."""
    seen = missing = 0
    for row in rows:
        seen += 1
        if not clock.has(row["video_id"]):
            if options.missing_features == "error":
                lacking = next(store.folder for store in clock.stores if row["video_id"] not in store)
                raise SourceError(
                    f"{split}: clip {row['video_id']!r} has captions, but {lacking} has no features of it; extract "
                    "them, or leave such clips out with --missing_features skip"
                )
            missing += 1
            tally.count("no_features")
            continue
        if clock.stores:
            used.add(row["video_id"])
        yield row
    if missing > options.max_missing * seen:
        raise SourceError(
            f"{split}: {missing:,} of {seen:,} clips have no features, more than --max_missing {options.max_missing}; "
            "extract them, or raise the ceiling if that is what you want"
        )


@contextmanager
def building(folder: str | Path) -> Iterator[Path]:
    """Let one process at a time build a dataset, from its data to its card.

    Raises:
        SourceError: another one is at it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    busy = SourceError(f"{folder}: another process is building this dataset; wait for it")
    with locked(folder / "build.lock", busy):
        for name in ("data", CARD, BUILD_FILE):
            remove_partials(folder / name)
        yield folder


class Publication:
    """Writes `data/<split>-NNNNN-of-NNNNN.parquet` shard by shard; the old data stay until the new are whole."""

    def __init__(self, folder: str | Path, features: datasets.Features):
        self.folder, self.features = Path(folder), features

    def __enter__(self) -> "Publication":
        self._writing = writing_folder(self.folder / "data", replace=True)
        self.partial = self._writing.__enter__()
        return self

    def write(self, split: str, rows: Iterable[Row]) -> int:
        """Writes a split and returns its number of rows; memory holds one row group.

        Raises:
            SourceError: two rows have one id, or there is no row.
        """
        shards: list[Path] = []
        writer: pq.ParquetWriter | None = None
        ids: set[str] = set()
        written = 0
        try:
            for table in self._tables(rows, split, ids):
                if writer is None:
                    shards.append(self.partial / f"{split}-{len(shards):05d}")
                    writer = pq.ParquetWriter(shards[-1], table.schema, compression="zstd")
                    written = 0
                writer.write_table(table)
                written += table.nbytes
                if written >= BYTES_PER_SHARD:
                    writer.close()
                    writer = None
        finally:
            if writer is not None:
                writer.close()
        if not ids:
            raise SourceError(f"split {split!r} has no clip; --data_dir lacks its files, or a rule dropped all of it")
        for number, shard in enumerate(shards):
            shard.rename(self.partial / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
        return len(ids)

    def _tables(self, rows: Iterable[Row], split: str, ids: set[str]) -> Iterator[pa.Table]:
        schema = self.features.arrow_schema
        group: list[Row] = []
        num_bytes = 0
        for row in rows:
            if row["video_id"] in ids:
                raise SourceError(f"split {split!r}: clip {row['video_id']!r} appears twice; remove one of its rows")
            ids.add(row["video_id"])
            group.append(row)
            num_bytes += size_of(row)
            if len(group) == ROWS_PER_GROUP or num_bytes > BYTES_PER_GROUP:
                yield pa.Table.from_pylist(group, schema=schema)
                group, num_bytes = [], 0
        if group:
            yield pa.Table.from_pylist(group, schema=schema)

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:  # what tells of the old data goes before they do; without a card nothing is published
            for name in (CARD, BUILD_FILE):
                (self.folder / name).unlink(missing_ok=True)
        self._writing.__exit__(*error)


def size_of(row: Row) -> int:
    """Bytes of a row in memory, about: its picture's or video's, and a hundred for each thing in its lists."""
    media = sum(len(row[column]["bytes"]) for column in ("frames", "video") if column in row)
    return media + sum(100 * len(value) for value in row.values() if isinstance(value, list))


def schema(kinds: Mapping[str, Sequence[str]], **others: Any) -> datasets.Features:
    """The columns `video_id`, `others`, and a list of texts for every kind and language."""
    texts = {
        f"{kind}_{language}": datasets.List(datasets.Value("string")) for kind in kinds for language in kinds[kind]
    }
    return datasets.Features({"video_id": datasets.Value("string"), **others, **texts})


CueLists = Sequence[Sequence[Any]]  # texts, starts and ends of a video's cues in one language


def cue_schema(languages: Sequence[str]) -> datasets.Features:
    """The columns of long videos with cues: `video_id`, and texts, starts and ends for every language."""
    times = datasets.List(datasets.Value("float32"))
    return datasets.Features(
        {"video_id": datasets.Value("string")}
        | {f"text_{language}": datasets.List(datasets.Value("string")) for language in languages}
        | {f"{name}_{language}": times for name in ("start", "end") for language in languages}
    )


def cue_row(video_id: str, cues: Mapping[str, CueLists], languages: Sequence[str]) -> Row:
    """A row of `cue_schema`, None in languages that the video has no cues in."""
    row: Row = {"video_id": video_id}
    for index, kind in enumerate(("text", "start", "end")):
        row |= {f"{kind}_{language}": cues[language][index] if language in cues else None for language in languages}
    return row


def languages_of(features: Mapping[str, Any]) -> list[str]:
    """Languages of the text columns, in order."""
    return list(dict.fromkeys(column.rpartition("_")[2] for column in features if is_text_column(column, features)))


def is_text_column(column: str, features: Mapping[str, Any]) -> bool:
    """Whether a column is `<kind>_<language>` and holds a text or a list of texts."""
    feature = features[column]
    of_text = getattr(feature, "feature", feature)
    return (
        "_" in column
        and not column.endswith("_id")
        and isinstance(of_text, datasets.Value)
        and of_text.dtype == "string"
    )


def configs_of(about: About, features: Mapping[str, Any], splits: Iterable[str]) -> list[dict[str, Any]]:
    """YAML of the configs: `default`, one for each language (its columns alone), and the builder's own."""

    def files(parts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        return [{"split": name, "path": [f"data/{part}-*.parquet" for part in of]} for name, of in parts.items()]

    aside = {part for parts in about.configs.values() for of in parts.values() for part in of}
    named = [split for split in splits if split not in aside or split in ("train", "validation", "test")]
    everything = files({split: [split] for split in named})
    configs: list[dict[str, Any]] = [{"config_name": "default", "data_files": everything, "default": True}]
    languages = languages_of(features)
    for language in languages:
        others = tuple(f"_{other}" for other in languages if other != language)
        columns = [column for column in features if column == "video_id" or not column.endswith(others)]
        configs.append({"config_name": language, "data_files": everything, "columns": columns})
    configs += [{"config_name": name, "data_files": files(parts)} for name, parts in about.configs.items()]
    return configs


class PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which card readers need not know."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write one."""
        return True


def card(about: About, features: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The dataset card: configs as YAML, then what is inside, what was dropped and why, and from which bytes."""
    metadata = {
        "pretty_name": about.title,
        "language": record["languages"],
        "license": about.license,
        "task_categories": [about.task],
        "multilinguality": ["multilingual"],
        "tags": ["text-to-video-retrieval", "multilingual"],
        "configs": configs_of(about, features, record["rows"]),
    }
    front = yaml.dump(metadata, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=1000)
    rows = ["| split | rows | published |", "| --- | ---: | ---: |"]
    for split, count in record["rows"].items():
        published = record["published"].get(split)
        rows.append(f"| {split} | {count:,} | {f'{published:,}' if published else ''} |")
    columns = ["| column | meaning |", "| --- | --- |"]
    columns += [f"| `{column}` | {meaning} |" for column, meaning in about.columns.items()]
    rules = ["| rule | times |", "| --- | ---: |"]
    rules += [f"| {rule['meaning']} | {rule['count']:,} |" for rule in record["rules"].values()]
    hashes = ["| file | SHA-256 |", "| --- | --- |"]
    hashes += [f"| `{name}` | `{digest}` |" for name, digest in record["sources"].items()]
    stores = [f"- {s['extractor']} ({s['revision']}), {s['rate']} steps per second" for s in record["features"]]
    parts = [
        f"---\n{front}---\n\n# {about.title}\n\n{about.summary}",
        "## Rows\n\n" + "\n".join(rows) + (f"\n\nPublished: {about.published_source}." if about.published else ""),
        "## Columns\n\n" + "\n".join(columns),
        *([about.notes] if about.notes else []),
        "## Rules\n\nWhat was changed or dropped, and how often:\n\n" + "\n".join(rules),
        *(["## Features\n\nEvery clip has features by:\n\n" + "\n".join(stores)] if stores else []),
        f"## Languages\n\n{REPORT_MARK}\n`mmt build language_report` puts a table here.\n{REPORT_MARK}",
        f"## Where it comes from\n\n{about.source}\n\nLicence: {about.license_text}\n\nMade by\n"
        f"`mmt build {about.name} --data_dir <official files> --output_dir <this folder>` from\n\n"
        + "\n".join(hashes),
    ]
    return "\n\n".join(parts) + "\n"
