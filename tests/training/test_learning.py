"""`model.learning` and `interpolation`: what of a dual encoder learns, and how much of what it was is kept."""

import json

import pytest
import torch
from tiny_corpus import write_recipe
from tiny_dual_encoders import CAPTIONS, build, pictures
from tiny_pixels import PIXELS

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.commands import train
from modeling_mmt.freezing_mmt import embedding_modules, encoder_layers
from modeling_mmt.training.interpolation import interpolate
from modeling_mmt.training.learning import apply_learning, encoders, merge_adapters, release
from modeling_mmt.training.recipe import RecipeError

FAMILIES = ("clip", "siglip", "altclip", "vision-text-dual-encoder")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A family's folder, made when it is first asked for."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("families") / family
            build(family, made[family])
        return str(made[family])

    return folder


@pytest.fixture
def run(corpus, pixels, families, tmp_path):
    def run(changes, name="model"):
        model = {"dual_encoder": families("clip"), "num_frames": 3, "config": {"num_hidden_layers": 1}}
        told = {**PIXELS, "data.dataset": str(pixels), "model": model, "pretraining": None, **changes}
        told |= {"finetuning.sources.0.noise_probability": 0.0, "finetuning.num_train_epochs": 2}
        recipe = write_recipe(corpus, tmp_path, {k: v for k, v in told.items() if k != "model.num_frames"}, name)
        return train.main([recipe])

    return run


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def changed(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


# What learns


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_learns_and_what_lies_below_it_does_not(families, family):
    model = MMTModel.from_dual_encoder(families(family))
    apply_learning(model, {"last_layers": 1})
    release(model)
    text = model.text_model.encoder
    first, last = encoder_layers(text)
    assert all(parameter.requires_grad for parameter in last.parameters())
    below = [first, *embedding_modules(text)]
    assert below[1:] and not [p for module in below for p in module.parameters() if p.requires_grad]
    assert text.get_input_embeddings() in [part for module in below[1:] for part in module.modules()]


@pytest.mark.parametrize(
    ("mode", "parts"), [("heads", []), ("all", ["text_model.encoder", "video_model.vision_model"])]
)
def test_heads_alone_learn_or_everything(run, families, tmp_path, mode, parts):
    metrics = run({"model.learning": mode, "finetuning.evaluations": 0})
    assert metrics["finetuning"]["steps"] > 1
    before = MMTModel.from_dual_encoder(families("clip"), num_hidden_layers=1).state_dict()
    after = MMTModel.from_pretrained(tmp_path / "model").state_dict()
    inside = {name for name in changed(before, after) if name.startswith(("text_model.encoder", "video_model.vision"))}
    assert bool(inside) == bool(parts) and all(any(name.startswith(part) for name in inside) for part in parts)


def test_the_last_layers_of_both_encoders_learn(run, families, tmp_path):
    run({"model.learning": {"last_layers": 1}, "finetuning.evaluations": 0})
    before = MMTModel.from_dual_encoder(families("clip"), num_hidden_layers=1).state_dict()
    layers = {
        name.split("layers.")[1][0]
        for name in changed(before, MMTModel.from_pretrained(tmp_path / "model").state_dict())
        if ".encoder.layers." in name
    }
    assert layers == {"1"}


@pytest.mark.parametrize(
    ("family", "number", "message"),
    [
        ("clip", 3, "the text encoder has 2 layers; name at most 2"),
        ("clipseg", 1, "clipseg does not separate its word"),
    ],
)
def test_layers_that_cannot_be_told_are_refused_in_one_line(families, family, number, message):
    with pytest.raises(RecipeError, match=message):
        apply_learning(MMTModel.from_dual_encoder(families(family)), {"last_layers": number})


# LoRA


def test_adapters_start_at_nothing_and_merged_they_give_what_they_gave(families):
    pytest.importorskip("peft", reason="an optional peer: extra `plugins`")
    model, processor = (cls.from_dual_encoder(families("clip")) for cls in (MMTModel, MMTProcessor))
    batch = {**processor(text=CAPTIONS[:6]), **processor(images=pictures()[:6])}
    names = list(model.state_dict())

    def embeds():
        with torch.inference_mode():
            output = model.eval()(**batch)
        return torch.stack([output.text_embeds, output.video_embeds])

    plain = embeds()
    apply_learning(model, "lora")
    release(model)
    assert torch.equal(embeds(), plain)
    adapters = [value for encoder in encoders(model) for value in encoder.parameters() if value.requires_grad]
    assert {name.split(".")[-3] for name in learning(model) if ".encoder." in name} == {"lora_A", "lora_B"}
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.3)
    adapted = embeds()
    assert (adapted - plain).abs().max() > 0.01
    merge_adapters(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(embeds(), adapted, rtol=0, atol=1e-5)


def test_what_lora_learned_is_in_a_plain_checkpoint_and_a_finished_stage_gives_it_again(run, families, tmp_path):
    pytest.importorskip("peft", reason="an optional peer: extra `plugins`")
    metrics = run({"model.learning": "lora", "finetuning.evaluations": 0, "finetuning.learning_rate": 0.03})
    saved = MMTModel.from_pretrained(tmp_path / "model").state_dict()
    before = MMTModel.from_dual_encoder(families("clip"), num_hidden_layers=1).state_dict()
    assert list(saved) == list(before)
    grown = {name.rsplit(".", 2)[-2] for name in changed(before, saved) if ".encoder." in name}
    assert {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"} <= grown
    assert not [name for name in changed(before, saved) if ".encoder." in name and name.endswith("bias")]
    again = run({"model.learning": "lora", "finetuning.evaluations": 0, "finetuning.learning_rate": 0.03}, "again")
    assert again["finetuning"] == metrics["finetuning"] and again["figures"] == metrics["figures"]
    assert not changed(saved, MMTModel.from_pretrained(tmp_path / "again").state_dict())


# Weight interpolation


def test_the_best_mix_of_start_and_end_is_kept():
    model = torch.nn.Linear(1, 1, bias=False)
    start = {"weight": torch.tensor([[1.0]])}
    model.weight.data.fill_(5.0)
    points = interpolate(model, start, [0.0, 0.25, 0.5, 0.75, 1.0], lambda: -abs(model.weight.item() - 3.2))
    assert [point["share"] for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]
    scores = [point["validation_mrr"] for point in points]
    assert scores == pytest.approx([-2.2, -1.2, -0.2, -0.8, -1.8])
    assert model.weight.item() == 3.0


def test_of_equal_scores_the_first_share_is_kept_and_nothing_and_all_are_exact():
    torch.manual_seed(0)
    for shares, wanted in (([0.0, 1.0], "start"), ([1.0, 0.0], "end")):
        model = torch.nn.Linear(7, 5)
        values = {"end": {name: value.clone() for name, value in model.state_dict().items()}}
        values["start"] = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
        interpolate(model, values["start"], shares, lambda: 1.0)
        assert not changed(values[wanted], model.state_dict())


def test_a_run_keeps_the_mix_that_searches_validation_best_and_logs_each(run, families, tmp_path):
    shares = [0.0, 0.5, 1.0]
    told = {"finetuning.evaluations": 1, "finetuning.learning_rate": 0.05}
    metrics = run({**told, "finetuning.interpolation": shares})
    points = metrics["finetuning"]["interpolation"]
    assert [point["share"] for point in points] == shares
    zero_shot, *_ = metrics["finetuning"]["curve"]
    assert points[0]["validation_mrr"] == pytest.approx(zero_shot["validation_mrr"])
    best = max(point["validation_mrr"] for point in points)
    found = metrics["figures"]["validation"]["all"]["t2v"]["en"]["MRR"]
    assert found == pytest.approx(best)
    log = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert log[0] == {"stage": "finetuning", **zero_shot} and zero_shot["step"] == 0
    assert log[-3:] == [{"stage": "finetuning", **point} for point in points]
    start, end, mixed = (
        MMTModel.from_dual_encoder(families("clip"), num_hidden_layers=1).state_dict(),
        weights_of(run, told, tmp_path, "end"),
        MMTModel.from_pretrained(tmp_path / "model").state_dict(),
    )
    share = next(point["share"] for point in points if point["validation_mrr"] == best)
    for name in (name for name in mixed if ".layers." not in name):  # whose start is random
        torch.testing.assert_close(mixed[name], torch.lerp(start[name], end[name], share), rtol=1e-5, atol=1e-6)


def weights_of(run, changes, tmp_path, name):
    run(changes, name)
    return MMTModel.from_pretrained(tmp_path / name).state_dict()
