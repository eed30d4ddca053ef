r"""Fills the languages that a dataset lacks by machine translation, as the paper did for MSR-VTT with OPUS-MT.

    mmt build translate --dataset data/msrvtt9 --output_dir data/msrvtt9-translated \
        --model Helsinki-NLP/opus-mt-en-{language} --revision main --languages de fr cs zh ru vi sw es

Any sequence-to-sequence model of the Hub does: `{language}` in its name is filled in, for one model a language; a
model of many languages, such as NLLB, has names of its own for them: `--codes en=eng_Latn sw=swh_Latn`. A text that is
there is kept; only missing ones are filled. What was filled is said in the data: `translator_<language>` is the
model's name and commit, or None where the captions are the dataset's own. An interrupted run continues.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from datasets_scripts.corpus import About, Clock, Options, Row, add_publishing_options, build
from modeling_mmt.data.files import file_sha256, locked
from modeling_mmt.data.reading import read_splits
from modeling_mmt.data.sources import SourceError, Sources, Tally, checked_language, clean_text

MEMORY = "translations.jsonl"  # what is translated already, a line a text
RULES = {
    "translated": "a caption that a model translated",
    "lost": "a caption whose translation is empty: left out",
}


class Translator:
    """One model for one pair of languages.

    Args:
        name: Hub name or folder.
        revision: tag, branch or commit.
        source: what the model calls the source language, or None if it knows one only.
        target: the same of the target.
        device: where it runs.
        max_length: tokens of a text, more are cut, and of its translation.
        num_beams: of the search.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        source: str | None = None,
        target: str | None = None,
        device: str = "cpu",
        max_length: int = 128,
        num_beams: int = 4,
    ):
        settings: dict[str, Any] = {"src_lang": source} if source else {}
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, **settings)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(name, revision=revision).eval().to(device)
        self.limits: dict[str, Any] = {"max_length": max_length, "num_beams": num_beams, "do_sample": False}
        if target:
            token = self.tokenizer.convert_tokens_to_ids(target)
            if token is None or token == self.tokenizer.unk_token_id:
                raise SourceError(f"{name} has no language {target!r}; --codes says what the model calls a language")
            self.limits["forced_bos_token_id"] = token
        commit = getattr(self.model.config, "_commit_hash", None) or revision or "local"
        self.label = f"{Path(name).name if Path(name).is_dir() else name}@{commit}"
        digest = hashlib.sha256()  # a folder's name says little
        for file in sorted(Path(name).glob("*.safetensors")):
            digest.update(bytes.fromhex(file_sha256(file)))
        weights = digest.hexdigest() if Path(name).is_dir() else None
        self.settings = {"model": self.label, "weights": weights, "source": source, "target": target, **self.limits}

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Translations, in order."""
        length = self.limits["max_length"]
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=length)
        return self.tokenizer.batch_decode(
            self.model.generate(**batch.to(self.model.device), **self.limits), skip_special_tokens=True
        )


def translate_texts(texts: Sequence[str], translator: Translator, memory: Path, batch_size: int) -> dict[str, str]:
    """{text: translation}; what `memory` holds by the same settings is not made again, like lengths go together."""
    translations = remembered(memory, translator.settings)
    missing = sorted({text for text in texts if text not in translations}, key=len)
    with memory.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for text, translation in zip(batch, translator(batch), strict=True):
                translations[text] = translation
                line = {**translator.settings, "text": text, "translation": translation}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    return translations


def remembered(memory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a file of translations holds by these settings; a last line that was cut short is taken out of the file."""
    if not memory.is_file():
        return {}
    data = memory.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        memory.write_bytes(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["text"]: line["translation"] for line in lines if settings.items() <= line.items()}


def fill(
    rows: datasets.Dataset,
    kind: str,
    source: str,
    translators: Mapping[str, Translator],
    memory_dir: Path,
    batch_size: int,
    tally: Tally,
) -> Iterator[Row]:
    """The rows, with `<kind>_<language>` filled from `<kind>_<source>` where it is empty, and who filled it."""
    texts = [as_texts(value) for value in rows[f"{kind}_{source}"]]
    table: dict[str, dict[str, str]] = {}
    lacks: dict[str, list[bool]] = {}
    for language, translator in translators.items():
        column = f"{kind}_{language}"
        there = rows[column] if column in rows.column_names else [None] * len(rows)
        lacks[language] = [not value for value in there]
        untranslated = [text for lack, own in zip(lacks[language], texts, strict=True) if lack for text in own]
        table[language] = translate_texts(untranslated, translator, memory_dir / f"{language}-{MEMORY}", batch_size)
    for number, row in enumerate(
        rows.cast_column("frames", datasets.Image(decode=False)) if "frames" in rows.column_names else rows
    ):
        for language, translator in translators.items():
            column, who = f"{kind}_{language}", f"translator_{language}"
            row[column], row[who] = row.get(column), row.get(who)
            if lacks[language][number] and texts[number]:
                cleaned = [clean_text(table[language][text], tally) for text in texts[number]]
                tally.count("lost", sum(text is None for text in cleaned))
                tally.count("translated", sum(text is not None for text in cleaned))
                row[column], row[who] = [text for text in cleaned if text is not None], translator.label
            else:
                row[column] = as_texts(row[column])
        yield row


def as_texts(value: str | Sequence[str] | None) -> list[str]:
    """A column's value as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is translated, by which model, and how."""
    parser.add_argument("--dataset", required=True, help="folder or Hub name")
    parser.add_argument("--dataset_revision", help="of a Hub dataset")
    parser.add_argument("--output_dir", required=True, type=Path, help="of the filled dataset")
    parser.add_argument("--model", required=True, help="sequence-to-sequence model; {language} is filled in")
    parser.add_argument("--revision", help="of the model")
    parser.add_argument("--text_column", default="caption", help="kind of text to fill")
    parser.add_argument("--source", default="en", help="language to translate from")
    parser.add_argument("--languages", nargs="+", required=True, help="to fill")
    parser.add_argument("--codes", nargs="*", default=[], metavar="LANG=CODE", help="what the model calls languages")
    parser.add_argument("--batch_size", type=int, default=32, help="texts at a time")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a text and of its translation")
    parser.add_argument("--num_beams", type=int, default=4, help="of the search")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    add_publishing_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Translates, writes the dataset, and returns the number of rows of each split."""
    for code in arguments.codes:
        if "=" not in code:
            raise SourceError(f"--codes has {code!r}; write a language and what the model calls it, as sw=swh_Latn")
    codes = dict(code.split("=", 1) for code in arguments.codes)
    for language in (arguments.source, *arguments.languages):
        checked_language(language, "--languages")
    splits = read_splits(arguments.dataset, arguments.dataset_revision)
    kind, source = arguments.text_column, arguments.source
    for split, rows in splits.items():
        if f"{kind}_{source}" not in rows.column_names:
            raise SourceError(f"{arguments.dataset} ({split}): no column {kind}_{source} to translate from")
    memory = arguments.output_dir / "translations"
    memory.mkdir(parents=True, exist_ok=True)

    def translator(language: str) -> Translator:
        name = arguments.model.format(language=language)
        pair = codes.get(source), codes.get(language)
        limits = {"max_length": arguments.max_length, "num_beams": arguments.num_beams}
        return Translator(name, arguments.revision, *pair, device=arguments.device, **limits)

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        translators = {language: translator(language) for language in arguments.languages}
        features = dict(next(iter(splits.values())).features)
        features |= {f"{kind}_{lang}": datasets.List(datasets.Value("string")) for lang in arguments.languages}
        features |= {f"translator_{lang}": datasets.Value("string") for lang in arguments.languages}
        settings = (kind, source, translators, memory, arguments.batch_size, tally)
        return datasets.Features(features), {split: fill(rows, *settings) for split, rows in splits.items()}

    about = About(
        name="translate",
        title=f"{Path(arguments.dataset).name}, translated",
        summary=f"{Path(arguments.dataset).name} with {', '.join(arguments.languages)} filled by {arguments.model}.",
        source=f"{arguments.dataset}, and {arguments.model}",
        layout="",
        license="other",
        license_text="that of the dataset and of the model.",
        columns={
            f"{kind}_<language>": "the dataset's own texts, or translations",
            "translator_<language>": "name and commit of the model that translated, or None",
        },
    )
    busy = SourceError(f"{arguments.output_dir}: another process is translating into this folder; wait for it")
    with locked(arguments.output_dir / "translate.lock", busy):
        return build(about, read, Options(arguments.output_dir, arguments.output_dir), RULES)
