"""`model.dual_encoder` in a recipe, and `mmt import`: training starts from the original's own zero-shot."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_corpus import write_recipe
from tiny_dual_encoders import CAPTIONS, build
from tiny_pixels import PIXELS

from mmt import main as mmt
from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.commands import train
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.hub.publish import check_card, published_files
from modeling_mmt.training import layer_cache
from modeling_mmt.training.layer_cache import CachedProcessor, FrozenTextCache
from modeling_mmt.training.recipe_reading import load_recipe

NOISE = "finetuning.sources.0.noise_probability"  # CLIP's tokenizer has no mask token


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "clip"
    return folder, *build("clip", folder)


@pytest.fixture
def recipe(corpus, pixels, original, tmp_path):
    def recipe(changes=None, name="model"):
        model = {"dual_encoder": str(original[0]), "num_frames": 3, "config": {"num_hidden_layers": 1}}
        told = (
            PIXELS | {"data.dataset": str(pixels), "model": model, "pretraining": None, NOISE: 0.0} | (changes or {})
        )
        return write_recipe(corpus, tmp_path, {k: v for k, v in told.items() if k != "model.num_frames"}, name)

    return recipe


def test_the_curve_starts_at_zero_shot_and_only_the_heads_learn(recipe, original, tmp_path):
    metrics = train.main([recipe({"finetuning.evaluations": 2, "finetuning.num_train_epochs": 2})])
    first, *later = metrics["finetuning"]["curve"]
    assert first["step"] == 0 and first["loss"] is None and len(later) == 2
    still = {"finetuning.evaluations": 1, "finetuning.num_train_epochs": 1, "finetuning.learning_rate": 0.0}
    zero_shot = train.main([recipe(still, "untrained")])["figures"]["validation"]["all"]["t2v"]["en"]
    assert first["validation_mrr"] == pytest.approx(zero_shot["MRR"])
    assert metrics["finetuning"]["best"]["validation_mrr"] >= first["validation_mrr"]
    start, trained = (MMTModel.from_pretrained(tmp_path / name) for name in ("untrained", "model"))
    before, after = start.state_dict(), trained.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if ".encoder." in key]
    if metrics["finetuning"]["best"]["step"]:
        assert changed
    _, model, processor, options = original
    with torch.inference_mode():
        tokens = processor(text=CAPTIONS, return_tensors="pt", **options)
        wanted = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    found = embed_texts(start, MMTProcessor.from_pretrained(tmp_path / "untrained"), CAPTIONS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_layer_cache_keeps_what_a_frozen_dual_encoder_pools(original, side, monkeypatch):
    monkeypatch.setattr(layer_cache, "LENGTH_STEP", 1)  # for CLIP's positions count padding on the left
    model, processor = (cls.from_dual_encoder(str(original[0])) for cls in (MMTModel, MMTProcessor))
    processor.tokenizer.padding_side = side
    cached = CachedProcessor(processor, FrozenTextCache(model.text_model, padding_side=processor.padding_side))
    wanted = embed_texts(model, processor, CAPTIONS, batch_size=1)
    torch.testing.assert_close(embed_texts(model, cached, CAPTIONS), wanted, rtol=0, atol=1e-5)
    assert len(cached.cache) > 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.text_model": "bert"}, "text_model is 'bert', which dual_encoder already sets; leave one out"),
        ({"model.vision_model": ["vit"]}, "vision_model is .'vit'., which dual_encoder already sets"),
        ({"model.max_text_length": 9}, "max_text_length is 9, which dual_encoder already sets"),
        ({"model.standardize_inputs": True}, "standardize_inputs is True, which dual_encoder already sets"),
        ({"model.dual_encoder": ""}, "model.dual_encoder is .*at least 1 character"),
    ],
)
def test_what_the_dual_encoder_tells_is_not_told_twice(recipe, changes, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        load_recipe([recipe(changes)])


def test_a_dry_run_names_a_dual_encoder_that_is_not_there(recipe, tmp_path, capsys):
    told = recipe({"model.dual_encoder": str(tmp_path / "nowhere")})
    train.main([told, "--dry_run"])
    output = capsys.readouterr()
    assert f"dual encoder {tmp_path / 'nowhere'} cannot be loaded" in output.out + output.err


def test_mmt_import_writes_a_checkpoint_once(original, tmp_path, capsys):
    output = tmp_path / "imported"
    assert mmt(["import", str(original[0]), "--output_dir", str(output)]) == 0
    assert "clip_text_model and clip_vision_model, 24 numbers a caption or clip, 77 tokens" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "processor_config.json", "modeling_mmt.py"} <= {
        path.name for path in output.iterdir()
    }
    assert json.loads((output / "config.json").read_text())["dual_encoder"]["text_pooling"] == "pooler"
    found = embed_texts(MMTModel.from_pretrained(output), MMTProcessor.from_pretrained(output), CAPTIONS)
    wanted = embed_texts(
        MMTModel.from_dual_encoder(str(original[0])), MMTProcessor.from_dual_encoder(str(original[0])), CAPTIONS
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert mmt(["import", str(original[0]), "--output_dir", str(output)]) == 2
    assert f"--output_dir {output} is not empty; name a new folder" in capsys.readouterr().err


def test_an_imported_checkpoint_has_a_card_and_is_ready_to_be_published(original, tmp_path, capsys):
    folder = tmp_path / "imported"
    assert mmt(["import", str(original[0]), "--output_dir", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert ModelCard(card).data.library_name == "transformers"
    assert original[0].name in card and str(original[0]) not in card  # no path of this machine
    check_card(folder, "org/name", published_files(folder))


def test_the_folder_of_a_dual_encoder_that_was_not_imported_is_named_with_the_command_to_import_it(original, capsys):
    assert mmt(["search", str(original[0]), "cat"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json: model_type is 'clip', not 'mmt'" in line
    assert f"mmt import {original[0]} --output_dir CHECKPOINT" in line


def test_what_is_no_dual_encoder_is_refused_in_one_line(original, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("{}")
    for name, words in (
        (tmp_path / "photos", "has no config.json; give the folder of a CLIP or SigLIP"),
        (tmp_path / "odd", "Unrecognized model"),
        (original[0] / "config.json", "is a file; give the folder"),
    ):
        assert mmt(["import", str(name), "--output_dir", str(tmp_path / "new")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(name) in line and words in line
