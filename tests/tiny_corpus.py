"""All that `train.py` reads, in miniature and offline: a corpus, its features, a text encoder, and a recipe.

A clip shows an animal of a colour, and its captions say so in two languages. One feature stream tells the colour, the
other the animal, so that what is learned from 40 clips holds for the other 24, whose pairs of words were never seen.
"""

import copy
import os
from pathlib import Path

import datasets
import numpy as np
import yaml
from conftest import build_text_config, build_tokenizer, randomize
from datasets import Dataset
from transformers import AutoConfig, AutoModel

from modeling_mmt.data.feature_store_writer import write_feature_store

COLOURS = {
    "en": ["red", "green", "blue", "white", "black", "grey", "brown", "pink"],
    "de": ["rot", "grün", "blau", "weiß", "schwarz", "grau", "braun", "rosa"],
}
ANIMALS = {
    "en": ["dog", "cat", "horse", "bird", "fish", "snake", "mouse", "whale"],
    "de": ["Hund", "Katze", "Pferd", "Vogel", "Fisch", "Schlange", "Maus", "Wal"],
}
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", ","] + [
    word for words in (COLOURS, ANIMALS) for language in words.values() for word in language
]
SPLITS = {"train": 40, "validation": 12, "test": 12}
STREAM_DIM = 6

RECIPE = {
    "data": {
        "dataset": "corpus",
        "features": ["colours", "animals"],
        "text_column": "caption",
        "languages": ["en", "de"],
        "other_text_columns": ["keywords"],
        "exclude_column": "is_flag",
    },
    "model": {
        "text_model": "encoder",
        "max_text_length": 32,  # of its 40 positions
        "standardize_inputs": True,
        "config": {
            "text_output_layer": None,
            "freeze_text_layers": 1,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "norm_placement": "pre",
            "residual_init": "zero",
            "pooling": "mean",
            "projection_dim": 12,
            "projection_skip": True,
            "max_video_length": 4,
        },
    },
    "pretraining": {
        "sources": [
            {
                "text_column": "keywords",
                "languages": ["en", "de"],
                "max_keywords": 2,
                "keyword_pool_size": 2,
                "noise_probability": 0.2,
                "noise_pool_size": 2,
            }
        ],
        "num_train_epochs": 2,
        "train_batch_size": 8,
        "learning_rate": 0.01,
        "evaluations": 10,
    },
    "finetuning": {
        "sources": [{"text_column": "caption", "languages": ["en"], "noise_probability": 0.2}],
        "num_train_epochs": 2,
        "train_batch_size": 8,
        "learning_rate": 0.01,
        "evaluations": 10,
    },
    "frozen_states_dir": None,
}
WITHOUT_DROPOUT = {f"model.config.{name}": 0.0 for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}


def build_corpus(root: Path) -> Path:
    """Write it under `root`; returns `root`. The datasets library's cache goes there too, in subprocesses as well."""
    os.environ["HF_DATASETS_CACHE"] = str(root / "cache")
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    generator = np.random.default_rng(0)
    pairs = [divmod(int(pair), 8) for pair in generator.permutation(64)]
    rows, streams = [], {"colours": {}, "animals": {}}
    looks = {stream: generator.standard_normal((8, STREAM_DIM)) for stream in streams}
    for number, (colour, animal) in enumerate(pairs):
        words = {language: [COLOURS[language][colour], ANIMALS[language][animal]] for language in COLOURS}
        texts = {f"caption_{language}": " ".join(pair) for language, pair in words.items()}
        texts |= {f"keywords_{language}": pair for language, pair in words.items()}
        rows.append({"video_id": f"clip-{number}", "is_flag": number % 6 == 0} | texts)
        for stream, which in (("colours", colour), ("animals", animal)):
            noise = 0.05 * generator.standard_normal((1 + number % 4, STREAM_DIM))
            streams[stream][f"clip-{number}"] = (looks[stream][which] + noise).astype(np.float32)
    start = 0
    for split, size in SPLITS.items():
        here = rows[start : start + size]
        start += size
        write_split(root / "corpus", split, here)
        side_by_side = [
            np.concatenate([streams[s][row["video_id"]] for s in streams], axis=1).astype(np.float16).tolist()
            for row in here
        ]
        with_features = [row | {"video_features": features} for row, features in zip(here, side_by_side, strict=True)]
        write_split(root / "corpus_with_features", split, with_features)
    for stream, clips in streams.items():
        write_feature_store(root / stream, clips.items(), extractor="made up", revision="1")
    config = build_text_config(num_hidden_layers=2, vocab_size=len(VOCABULARY))
    randomize(AutoModel.from_config(AutoConfig.for_model(**config)), sharpness=1).save_pretrained(root / "encoder")
    build_tokenizer(VOCABULARY).save_pretrained(root / "encoder")
    return root


def write_split(folder: Path, split: str, rows: list[dict]):
    """One split of a dataset, as Parquet."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def write_recipe(corpus: Path, folder: Path, changes: dict | None = None, name: str = "recipe") -> str:
    """`RECIPE` with values put at dotted paths (`None` takes a stage out), all it writes under `folder`; its path."""
    recipe = copy.deepcopy(RECIPE)
    recipe |= {"work_dir": str(folder / "stages"), "output_dir": str(folder / name)}
    recipe["data"]["dataset"] = str(corpus / recipe["data"]["dataset"])
    recipe["data"]["features"] = [str(corpus / store) for store in recipe["data"]["features"]]
    recipe["model"]["text_model"] = str(corpus / "encoder")
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        target = recipe
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[last] = value
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(path)
