r"""What a tokenizer makes of a dataset's captions: how many are cut, what it does not know, what appears twice.

    mmt build language_report --dataset data/multi30k --tokenizer FacebookAI/xlm-roberta-large \
        google-bert/bert-base-multilingual-cased --max_text_length 64

A table by language and tokenizer, printed and put into the dataset's card. A language whose captions are
cut more often than others loses more of its text to the same `max_text_length`; unknown tokens are words that the
model cannot see.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from datasets_scripts.corpus import REPORT_MARK, is_text_column, languages_of
from modeling_mmt.data.files import write_text
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.sources import SourceError

CHUNK = 4096  # captions tokenized at a time


@dataclass
class LanguageFigures:
    """One language's captions and what a tokenizer makes of them.

    Args:
        language: its code.
        tokenizer: its name.
        captions: how many.
        captions_per_clip: mean over clips with at least one.
        clips_without: clips with none.
        duplicates: share of captions that an earlier one equals.
        tokens: mean per caption, special tokens included.
        tokens_p95: that 95 % of the captions do not exceed.
        truncated: share of captions with more than `max_text_length` tokens.
        unknown: share of tokens that are the unknown token, special tokens apart.
    """

    language: str
    tokenizer: str
    captions: int
    captions_per_clip: float
    clips_without: int
    duplicates: float
    tokens: float
    tokens_p95: float
    truncated: float
    unknown: float


def report(
    columns: dict[str, Iterable[Any]], tokenizers: dict[str, Any], max_text_length: int
) -> list[LanguageFigures]:
    """The figures for each language and tokenizer.

    Args:
        columns: by language, a column: a text, a list of texts or None for each clip.
        tokenizers: by name.
        max_text_length: tokens kept of a caption.
    """
    figures = []
    for language, column in columns.items():
        by_clip = [[value] if value and isinstance(value, str) else list(value or []) for value in column]
        captions = [caption for clip in by_clip for caption in clip]
        described = [clip for clip in by_clip if clip]
        for name, tokenizer in tokenizers.items():
            lengths, unknown = token_counts(captions, tokenizer)
            num_special = tokenizer.num_special_tokens_to_add()
            figures.append(
                LanguageFigures(
                    language=language,
                    tokenizer=name,
                    captions=len(captions),
                    captions_per_clip=len(captions) / max(1, len(described)),
                    clips_without=len(by_clip) - len(described),
                    duplicates=1 - len(set(captions)) / max(1, len(captions)),
                    tokens=float(lengths.mean()) if len(lengths) else 0.0,
                    tokens_p95=float(np.quantile(lengths, 0.95, method="higher")) if len(lengths) else 0.0,
                    truncated=float((lengths > max_text_length).mean()) if len(lengths) else 0.0,
                    unknown=float(unknown.sum() / max(1, (lengths - num_special).sum())),
                )
            )
    return figures


def token_counts(captions: Sequence[str], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and unknown tokens, of each caption."""
    lengths, unknown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(captions), CHUNK):
        ids = tokenizer(list(captions[start : start + CHUNK]), truncation=False, verbose=False)["input_ids"]
        lengths.append(np.array([len(one) for one in ids]))
        unknown.append(np.array([one.count(tokenizer.unk_token_id) for one in ids]))
    return np.concatenate(lengths), np.concatenate(unknown)


def as_table(figures: Sequence[LanguageFigures], max_text_length: int) -> str:
    """Markdown."""
    lines = [
        f"| language | tokenizer | captions | a clip | clips without | duplicates | tokens | 95 % | over "
        f"{max_text_length} | unknown |",
        "| --- | --- " + "| ---: " * 8 + "|",
    ]
    for one in figures:
        lines.append(
            f"| {one.language} | {one.tokenizer} | {one.captions:,} | {one.captions_per_clip:.2f} | "
            f"{one.clips_without:,} | {one.duplicates:.1%} | {one.tokens:.1f} | {one.tokens_p95:.0f} | "
            f"{one.truncated:.2%} | {one.unknown:.3%} |"
        )
    return "\n".join(lines)


def into_card(card: Path, table: str) -> None:
    """Puts the table where the builders' cards have a place for it; another card is left alone."""
    text = card.read_text(encoding="utf-8")
    if text.count(REPORT_MARK) == 2:
        before, _, rest = text.partition(REPORT_MARK)
        after = rest.partition(REPORT_MARK)[2]
        write_text(card, f"{before}{REPORT_MARK}\n{table}\n{REPORT_MARK}{after}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Whose captions are counted, and by which tokenizers."""
    parser.add_argument("--dataset", required=True, help="folder or Hub name")
    parser.add_argument("--revision", help="of a Hub dataset")
    parser.add_argument("--tokenizer", nargs="+", required=True, help="Hub names or folders")
    parser.add_argument("--split", default="train", help="whose captions are counted")
    parser.add_argument("--text_column", default="caption", help="kind of text")
    parser.add_argument("--max_text_length", type=int, default=64, help="tokens kept of a caption")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints the table and puts it into a local dataset's card."""
    rows = read_split(arguments.dataset, arguments.revision, arguments.split)
    kind = arguments.text_column
    columns = {
        language: rows[f"{kind}_{language}"]
        for language in languages_of(rows.features)
        if f"{kind}_{language}" in rows.column_names and is_text_column(f"{kind}_{language}", rows.features)
    }
    if not columns:
        raise SourceError(f"{arguments.dataset}: no column {kind}_<language>; it has {', '.join(rows.column_names)}")
    tokenizers = {Path(name).name: AutoTokenizer.from_pretrained(name) for name in arguments.tokenizer}
    figures = report(columns, tokenizers, arguments.max_text_length)
    table = as_table(figures, arguments.max_text_length)
    caption = f"`{kind}_<language>` of split `{arguments.split}`:\n\n"
    print(table)
    card = Path(arguments.dataset) / "README.md"
    if card.is_file():
        into_card(card, caption + table)
    return [asdict(one) for one in figures]
