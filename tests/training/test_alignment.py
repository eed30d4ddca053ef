"""The stage `alignment`: translations land where a frozen teacher puts the English sentence."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from readme_blocks import PARALLEL
from safetensors.torch import load_file
from tiny_corpus import write_recipe, write_split
from tiny_dual_encoders import CAPTIONS, build
from tiny_pixels import PIXELS
from torch.nn.functional import cosine_similarity
from train_process import FSDP2, Group

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor
from modeling_mmt.commands import train
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.training.alignment_loss import alignment_loss
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import open_run
from modeling_mmt.training.signals import STOPPED
from modeling_mmt.training.teacher import Teacher

KINDS = ("mse", "cosine", "nce")
SENTENCES = {"text_column": "caption", "languages": ["en", "de"]}
STAGE = {
    "sources": [SENTENCES],
    "num_train_epochs": 30,
    "train_batch_size": 8,
    "learning_rate": 3e-3,
    "evaluations": 5,
}
PLAIN = {"sources": [{**SENTENCES, "noise_probability": 0.0}], "num_train_epochs": 1, "train_batch_size": 8}
ALONE = {"pretraining": None, "finetuning": None}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "clip"
    build("clip", folder)
    return str(folder)


@pytest.fixture
def recipe(corpus, pixels, original, tmp_path):
    """A recipe's path: a small CLIP, whose own text tower learns German captions of the tiny corpus."""

    def recipe(changes=None, name="model", **stage):
        model = {"dual_encoder": original, "num_frames": 3, "config": {"num_hidden_layers": 1}}
        told = {**PIXELS, "data.dataset": str(pixels), "model": model, **ALONE, "alignment": STAGE | stage}
        told |= {"data.other_text_columns": []} | (changes or {})
        return write_recipe(corpus, tmp_path, {k: v for k, v in told.items() if k != "model.num_frames"}, name)

    return recipe


@pytest.fixture(scope="module")
def pairs(corpus):
    rows = load_dataset(str(corpus / "corpus"), split="train")
    return rows["caption_en"][:], rows["caption_de"][:]


# The losses


def oracle(kind, student, teacher, scale, ids):
    total = 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if kind == "mse":
            total += sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True)) / len(s)
        elif kind == "cosine":
            total += 1 - float(s @ t / (s.norm() * t.norm()))
        else:
            others = [j for j in range(len(student)) if j == i or ids[j] != ids[i]]
            own = math.exp(scale * cos(s, t))
            over_teachers = sum(math.exp(scale * cos(s, teacher[j])) for j in others)
            over_students = sum(math.exp(scale * cos(student[j], t)) for j in others)
            total -= (math.log(own / over_teachers) + math.log(own / over_students)) / 2
    return total / len(student)


def cos(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_its_equation(kind):
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(2, 7, 5, dtype=torch.float64)
    ids = [0, 1, 2, 1, 3, 3, 4]
    found = alignment_loss(kind, student, teacher, torch.tensor(4.0), torch.tensor(ids)[:, None])
    assert float(found) == pytest.approx(oracle(kind, student, teacher, 4.0, ids), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_a_student_that_says_what_its_teacher_says_has_no_loss(kind):
    teacher = torch.randn(4, 3)
    assert float(alignment_loss(kind, teacher, teacher, torch.tensor(1.0))) == pytest.approx(0, abs=1e-6)
    apart = {"mse": 4 * float((teacher**2).mean()), "cosine": 2.0}[kind]
    assert float(alignment_loss(kind, -teacher, teacher, torch.tensor(1.0))) == pytest.approx(apart, rel=1e-5)


def test_where_all_sentences_are_one_point_nce_is_the_logarithm_of_their_number():
    same = torch.ones(6, 3)
    assert float(alignment_loss("nce", same, same, torch.tensor(9.0))) == pytest.approx(math.log(6), rel=1e-6)


@pytest.mark.parametrize(("kind", "length_counts"), [("mse", True), ("cosine", False), ("nce", False)])
def test_length_counts_for_mse_alone(kind, length_counts):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4)
    found, scaled = (float(alignment_loss(kind, k * student, teacher, torch.tensor(2.0))) for k in (1, 3))
    assert (abs(found - scaled) > 0.1) == length_counts


# The stage


@pytest.mark.parametrize("kind", KINDS)
def test_translations_come_to_lie_where_the_start_puts_the_english_sentence(recipe, original, pairs, tmp_path, kind):
    train.main([recipe({"model.learning": "all"}, loss=kind, evaluations=0)])
    start, processor = (cls.from_dual_encoder(original) for cls in (MMTModel, MMTProcessor))
    end = MMTModel.from_pretrained(tmp_path / "model")
    english, german = pairs
    wanted = embed_texts(start, processor, english)
    before, after = (embed_texts(model, processor, german) for model in (start, end))
    mrr = [float(np.mean(1 / ranks(embeds, wanted))) for embeds in (before, after)]
    assert mrr[0] < 0.3 and mrr[1] > 0.7
    if kind != "nce":  # which asks for no more than that the right sentence is the nearest
        assert cosine_similarity(before, wanted).mean() < 0.5 and cosine_similarity(after, wanted).mean() > 0.8
        assert cosine_similarity(embed_texts(end, processor, english), wanted).mean() > 0.9
    reference = start.state_dict()
    clips = {name for name in reference if name.startswith(("video_", "logit_")) and ".layers." not in name}
    clips |= {name for name in reference if name.startswith("video_model.vision_model")}
    assert all(torch.equal(end.state_dict()[name], reference[name]) for name in clips)


def test_a_student_takes_the_place_of_the_text_tower(recipe, corpus, original, pairs, tmp_path):
    options = {"model.student": str(corpus / "encoder"), "model.max_text_length": 16, "model.learning": "all"}
    train.main([recipe(options, num_train_epochs=60, evaluations=0)])
    model, processor = (cls.from_pretrained(tmp_path / "model") for cls in (MMTModel, MMTProcessor))
    assert model.config.text_config.model_type == "bert" and processor.max_text_length == 16
    assert model.config.dual_encoder["text_pooling"] == "mean"
    teacher = embed_texts(*(cls.from_dual_encoder(original) for cls in (MMTModel, MMTProcessor)), pairs[0])
    for texts in pairs:
        assert cosine_similarity(embed_texts(model, processor, texts), teacher).mean() > 0.8


def test_validation_is_the_search_of_held_out_sentences_by_their_translations(recipe, corpus, original, tmp_path):
    metrics = train.main([recipe(learning_rate=0.0, evaluations=1, num_train_epochs=1)])["alignment"]
    assert [point["step"] for point in metrics["curve"]] == [0, 5]
    rows = load_dataset(str(corpus / "corpus"), split="validation")
    model, processor = (cls.from_dual_encoder(original) for cls in (MMTModel, MMTProcessor))
    english, german = (embed_texts(model, processor, rows[f"caption_{of}"][:]) for of in ("en", "de"))
    places = [1 + int((line > line[row]).sum()) for row, line in enumerate(german @ english.T)]
    for point in metrics["curve"]:
        assert point["validation_mrr"] == pytest.approx(100 * np.mean([1 / place for place in places]), abs=1e-3)


def test_all_three_stages_follow_each_other_and_the_log_has_them_in_order(recipe, tmp_path):
    path = recipe({"pretraining": PLAIN, "finetuning": PLAIN}, num_train_epochs=1)
    metrics = train.main([path])
    log = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(point["stage"] for point in log)) == ["alignment", "pretraining", "finetuning"]
    assert log[0]["step"] == 0 and set(metrics) >= {"alignment", "pretraining", "finetuning"}
    assert "caption in en, de" in (tmp_path / "model" / "README.md").read_text()
    again = train.main([str(tmp_path / "model" / "recipe.json")])  # what a run writes is a recipe
    assert again["alignment"] == metrics["alignment"] and again["finetuning"] == metrics["finetuning"]


def test_a_checkpoint_of_ours_may_teach(recipe, original, tmp_path):
    model, processor = (cls.from_dual_encoder(original) for cls in (MMTModel, MMTProcessor))
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    by_name = train.main([recipe(teacher=str(tmp_path / "ours"), num_train_epochs=1)])
    by_default = train.main([recipe(name="default", num_train_epochs=1)])
    assert by_name["alignment"]["curve"] == by_default["alignment"]["curve"]


def test_a_stopped_stage_goes_on_to_the_same_end(recipe, tmp_path):
    whole = train.main([recipe({"work_dir": str(tmp_path / "elsewhere")}, "whole", evaluations=4, num_train_epochs=2)])
    path = recipe(evaluations=4, num_train_epochs=2)
    with open_run(load_recipe([path])) as run:
        run.signals.requested = True
        with pytest.raises(SystemExit) as stop:
            run.align()
    assert stop.value.code == STOPPED and list(tmp_path.glob("stages/alignment-*/step-00000001"))
    resumed = train.main([path])
    assert resumed["alignment"]["curve"] == whole["alignment"]["curve"] and resumed["figures"] == whole["figures"]


@pytest.mark.parametrize(
    ("kind", "learning", "env"),
    [
        ("nce", "all", {}),
        pytest.param("mse", "heads", {}, marks=pytest.mark.slow),
        pytest.param("cosine", "all", FSDP2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_teach_as_one_does_with_the_whole_batch(recipe, tmp_path, kind, learning, env):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    changes = {"model.learning": learning} | {f"model.config.{name}": value for name, value in still.items()}
    stage = {"loss": kind, "train_batch_size": 11, "num_train_epochs": 4, "evaluations": 4}  # uneven: 6 and 5
    one = train.main([recipe(changes, name="one", **stage)])["alignment"]["curve"]
    path = recipe(changes | {"work_dir": str(tmp_path / "elsewhere")}, name="two", **stage)
    with Group([path], 2, env) as group:
        assert group.join() == [0, 0], Path(f"{path}.0.log").read_text()[-5000:]
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["world_size"] == 2
    losses = [[point["loss"] for point in curve[1:]] for curve in (one, metrics["alignment"]["curve"])]
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    far = [name for name in first if not torch.allclose(first[name], second[name], rtol=1e-2, atol=1e-3)]
    # A bias of keys adds one number to all scores of a query: its gradient is rounding, which AdamW scales to a step.
    assert [name for name in far if not name.endswith("k_proj.bias")] == []


def test_a_teacher_gives_the_same_with_and_without_what_is_kept(original, tmp_path):
    model, processor = (cls.from_dual_encoder(original) for cls in (MMTModel, MMTProcessor))
    with torch.inference_mode():
        wanted = model.get_text_features(**processor(text=CAPTIONS[:8])).pooler_output
    for _ in range(2):
        found = Teacher(model, processor, str(tmp_path))(CAPTIONS[:8])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert not found.requires_grad


def test_the_block_of_the_page_makes_a_source_of_two_text_files(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = PARALLEL
    for code, word in (("en", "dog"), ("de", "Hund")):
        Path(f"sentences.{code}").write_text("".join(f"{word} {number}\n" for number in range(130)), encoding="utf-8")
    Path("runs/dual/parallel/data").mkdir(parents=True)
    exec(block, {})
    source = {"dataset": "runs/dual/parallel", "text_column": "sentence", "languages": ["en", "de"]}
    metrics = train.main([recipe(sources=[source], num_train_epochs=1, evaluations=1)])
    assert metrics["alignment"]["steps"] == 3 and len(metrics["alignment"]["curve"]) == 2


# What is wrong is said in one line


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({}, {"sources": [{"languages": ["en"]}]}, r"sources\[0\].languages is \['en'\]; name another language, too"),
        (
            {},
            {"sources": [SENTENCES | {"max_keywords": 2}]},
            "max_keywords is 2, which alignment does not use",
        ),
        ({}, {"loss": "l1"}, "alignment.loss is \"l1\"; input should be 'mse', 'cosine' or 'nce'"),
        ({"model.dual_encoder": None}, {}, "alignment.teacher is null.*name a teacher"),
        (
            {"model.student": "bert", "alignment": None, "finetuning": PLAIN},
            {},
            "student is 'bert', but no stage alignment trains it",
        ),
        (
            {"model.student": "bert", "model.dual_encoder": None},
            {},
            "student is 'bert', but dual_encoder is null; name one",
        ),
        ({"alignment": None}, {}, "finetuning, pretraining and alignment are all null; give one stage, or more"),
        ({"model.text_prefix": "a "}, {}, "text_prefix is 'a ', which dual_encoder already sets; leave one out"),
    ],
)
def test_a_recipe_that_could_teach_nothing_is_refused(recipe, changes, stage, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe([recipe(changes, **stage)])


def test_a_dry_run_says_what_a_source_lacks(recipe, corpus, tmp_path, capsys):
    rows = load_dataset(str(corpus / "corpus"), split="train").to_list()
    for row in rows[:3]:
        row["caption_en"] = None
    write_split(tmp_path / "torn", "train", rows)
    no_german = load_dataset(str(corpus / "corpus"), split="validation").to_list()
    for row in no_german:
        row["caption_de"] = None
    write_split(tmp_path / "torn", "validation", no_german)
    sources = [
        SENTENCES | {"dataset": str(tmp_path / "torn")},
        SENTENCES | {"text_column": "keywords"},
        SENTENCES | {"languages": ["de", "sw"]},
    ]
    problems = train.main([recipe(sources=sources, teacher=str(tmp_path / "nobody")), "--dry_run"])["problems"]
    for wanted in (
        "(train): 3 of 40 rows have no caption_en; drop or fill them",
        "(validation): no row has both caption_de and English; take de out",
        "(train): keywords_en is no column of texts; alignment needs one sentence a row and language",
        "(train): no column caption_sw",
        f"teacher {tmp_path / 'nobody'} cannot be loaded",
    ):
        assert [problem for problem in problems if wanted in problem], (wanted, problems)


def test_a_teacher_of_another_width_is_refused(recipe, original, tmp_path):
    fields = MMTModel.from_dual_encoder(original).config.to_dict() | {"hidden_size": 32, "projection_dim": 32}
    MMTModel(MMTConfig(**fields)).save_pretrained(tmp_path / "wide")
    MMTProcessor.from_dual_encoder(original).save_pretrained(tmp_path / "wide")
    with pytest.raises(RecipeError, match="embeddings are 32 wide, and the model's 24; they must be of one space"):
        train.main([recipe(teacher=str(tmp_path / "wide"))])
