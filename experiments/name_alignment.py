"""Names that a text encoder alone finds in English: what a row that hears English names has to build on.

    python experiments/name_alignment.py --data_dir ../shared/data    # half a minute; results/photo9/names.json

A name of another language is right if, of the English names of all concepts, its own is the nearest by the cosine of
mean-pooled states. States are taken as they are, standardised as the recipes do it (`model.standardize_inputs`), or
less their language's mean over emoji9's training names (LIR with no direction). No picture and no head is involved:
heads that saw English names alone can pass these figures only by what keywords told them.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import photo9
import run
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from modeling_mmt.commands.build import build
from modeling_mmt.data.files import write_json
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.extraction.packaged_encoders import packaged_encoder

ENCODER, PREFIX = "multilingual-e5-small", "query: "
GALLERIES = {  # name -> corpus, split
    "photo9, test": (photo9.PHOTOS, "test"),
    "photo9, test_unseen": (photo9.PHOTOS, "test_unseen"),
    "emoji9, test": ("emoji9", "test"),
}
Embed = Callable[[Sequence[str]], torch.Tensor]


def embedder() -> Embed:
    """Texts to `(B, 384)` mean-pooled states."""
    folder = packaged_encoder(ENCODER)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> torch.Tensor:
        batch = tokenizer([PREFIX + text for text in texts], padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        return (model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

    return embed


def names_of(corpus: str, split: str) -> dict[str, list[str]]:
    """Of each language, the concepts' names, in one order."""
    rows = read_split(corpus, None, split)
    columns = [rows[f"name_{language}"][:] for language in LANGUAGES]
    concepts = list(dict.fromkeys(zip(*columns, strict=True)))
    return dict(zip(LANGUAGES, map(list, zip(*concepts, strict=True)), strict=True))


def found_in_english(states: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each other language, the percentage of names whose nearest English name is their own."""
    gallery = normalize(states["en"], dim=1)
    own = torch.arange(len(gallery))
    nearest = {language: (normalize(of, dim=1) @ gallery.T).argmax(dim=1) for language, of in states.items()}
    return {language: 100.0 * float((nearest[language] == own).float().mean()) for language in LANGUAGES[1:]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write, print; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder with photo9/")
    parser.add_argument("--output", type=Path, default=Path("results") / "photo9" / "names.json")
    arguments = parser.parse_args(argv)
    if not Path(photo9.PHOTOS).is_dir():
        build("photo9", ["--data_dir", str(arguments.data_dir / "photo9"), "--output_dir", photo9.PHOTOS])
    embed = embedder()
    heard = {language: embed(names) for language, names in names_of("emoji9", "train").items()}
    every = torch.cat(list(heard.values()))
    kinds: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
        "as they are": lambda _, states: states,
        "standardised": lambda _, states: (states - every.mean(dim=0)) / every.std(dim=0),
        "less the language's mean": lambda language, states: states - heard[language].mean(dim=0),
    }
    galleries = []
    for name, (corpus, split) in GALLERIES.items():
        states = {language: embed(names) for language, names in names_of(corpus, split).items()}
        for kind, change in kinds.items():
            found = found_in_english({language: change(language, of) for language, of in states.items()})
            mean = sum(found.values()) / len(found)
            galleries.append({"names": name, "count": len(states["en"]), "states": kind, "mean": mean, **found})
            print(f"{name} ({len(states['en'])}), {kind}: {mean:.1f}", {key: round(of) for key, of in found.items()})
    results = run.provenance([]) | {"encoder": ENCODER, "prefix": PREFIX, "rows": galleries}
    write_json(arguments.output, results)
    return results


if __name__ == "__main__":
    main()
