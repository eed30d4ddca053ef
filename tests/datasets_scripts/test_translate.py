"""Missing languages filled by a tiny Marian of random weights: what is filled, by whom, and what is left alone."""

import json

import datasets
import official_files
import pyarrow.parquet as pq
import pytest
import torch
from conftest import build_tokenizer
from transformers import MarianConfig, MarianMTModel

from datasets_scripts import translate
from modeling_mmt.commands.build import build
from modeling_mmt.data.sources import SourceError


@pytest.fixture
def model(tmp_path):
    words = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *official_files.COLOURS,
        *official_files.ANIMALS,
        "en",
        "deu_Latn",
        "<mask>",
    ]
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=0,
        decoder_start_token_id=1,
        forced_eos_token_id=2,
        init_std=1.0,
    )
    network = MarianMTModel(config)
    network.final_logits_bias[:, 4:20] += 5  # words rather than special tokens
    network.save_pretrained(tmp_path / "opus-tiny-en-de")
    build_tokenizer(words).save_pretrained(tmp_path / "opus-tiny-en-de")
    return tmp_path / "opus-tiny-en-de"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Nine clips with English, of which two have German of their own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    official_files.own(tmp_path / "source")
    path = tmp_path / "source/captions.csv"
    lines = [line for line in path.read_text().splitlines() if ",sw," not in line]
    path.write_text("\n".join([*lines, "own2,de,roter Hund,train", "own3,de,eine Katze,train"]) + "\n")
    build("own_clips", ["--data_dir", str(tmp_path / "source"), "--output_dir", str(tmp_path / "own")])
    return tmp_path / "own"


def run(tmp_path, dataset, *options):
    argv = ["--dataset", str(dataset), "--output_dir", str(tmp_path / "out"), "--languages", "de", "--num_beams", "1"]
    argv += ["--model", str(tmp_path / "opus-tiny-en-{language}"), "--max_length", "8", "--batch_size", "3"]
    counts = build("translate", [*argv, *options])
    record = json.loads((tmp_path / "out/build.json").read_text())
    paths = sorted((tmp_path / "out/data").glob("*.parquet"))
    return counts, record, {row["video_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def test_missing_captions_are_filled_own_ones_are_kept_and_the_data_say_who_translated(tmp_path, dataset, model):
    counts, record, rows = run(tmp_path, dataset, "--revision", "v7")
    assert sum(counts.values()) == len(rows) == 9 and record["rules"]["translated"]["count"] == 7
    assert rows["own2"]["caption_de"] == ["roter Hund"] and rows["own2"]["translator_de"] is None
    filled = [row for row in rows.values() if row["translator_de"]]
    assert len(filled) == 7 and {row["translator_de"] for row in filled} == {"opus-tiny-en-de@v7"}
    translator = translate.Translator(str(model), None, max_length=8, num_beams=1)
    for row in filled:
        assert row["caption_de"] == translator(row["caption_en"]) and row["caption_de"][0]
    assert len({row["caption_de"][0] for row in filled}) > 1


def test_an_interrupted_run_goes_on_and_does_not_translate_a_text_twice(tmp_path, dataset, model, monkeypatch):
    _, _, whole = run(tmp_path, dataset)
    memory = tmp_path / "out/translations/de-translations.jsonl"
    lines = memory.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    memory.write_text("".join(lines[:3]) + lines[3][:20])  # killed while writing
    asked = []
    original = translate.Translator.__call__
    monkeypatch.setattr(
        translate.Translator, "__call__", lambda self, texts: asked.extend(texts) or original(self, texts)
    )
    _, _, again = run(tmp_path, dataset)
    assert again == whole and len(asked) == 4


@pytest.mark.parametrize("change", [("--num_beams", "2"), ("--max_length", "6"), ("--codes", "de=deu_Latn")])
def test_what_was_translated_with_other_settings_is_translated_again(tmp_path, dataset, model, monkeypatch, change):
    run(tmp_path, dataset)
    asked = []
    original = translate.Translator.__call__
    monkeypatch.setattr(
        translate.Translator, "__call__", lambda self, texts: asked.extend(texts) or original(self, texts)
    )
    run(tmp_path, dataset, *change)
    assert len(asked) == 7


def test_what_other_weights_of_the_same_folders_name_translated_is_translated_again(tmp_path, dataset, model):
    _, _, old = run(tmp_path, dataset)
    network = MarianMTModel.from_pretrained(model)
    network.final_logits_bias[:, 4:20] = network.final_logits_bias[:, 4:20].flip(1) + torch.arange(16.0)
    network.save_pretrained(model)
    _, _, new = run(tmp_path, dataset)
    changed = {name for name in old if old[name]["caption_de"] != new[name]["caption_de"]}
    assert changed and changed <= {name for name, row in new.items() if row["translator_de"]}


def test_a_model_of_many_languages_is_told_which(tmp_path, dataset, model):
    translator = translate.Translator(str(model), None, None, "deu_Latn")
    assert translator.limits["forced_bos_token_id"] == 21
    with pytest.raises(SourceError, match="has no language 'xyz_Latn'; --codes says"):
        translate.Translator(str(model), None, None, "xyz_Latn")


def test_a_column_or_language_that_is_not_there_is_refused(tmp_path, dataset, model):
    with pytest.raises(SourceError, match="no column name_en to translate from"):
        run(tmp_path, dataset, "--text_column", "name")
    with pytest.raises(SourceError, match="language is 'german'"):
        run(tmp_path, dataset, "--languages", "german")
