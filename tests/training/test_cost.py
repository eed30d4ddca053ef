"""What a recipe costs is arithmetic: operations as counted, and hours, bytes and money in proportion."""

import json
import re

import pytest
import torch
from command_line import call
from conftest import build_model, build_text_config
from readme_blocks import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from modeling_mmt.training.cost import (
    CARDS,
    Scale,
    clip_operations,
    cost,
    layer_operations,
    lines_of,
    vit_operations,
)
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe

PAPER = ("paper/xlmr_mmp_en", "h200", Scale(clips=1_200_000, hours=134_472.0, windows=138_000_000))


def counted(call):
    """Operations of the matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_a_layer_s_operations_are_those_that_torch_counts_forward_and_three_times_with_backward():
    config = BertConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, vocab_size=30,
        attn_implementation="eager",
    )  # fmt: skip
    model, states = BertModel(config, add_pooling_layer=False), torch.randn(1, 7, 24, requires_grad=True)
    forward = 3 * layer_operations(24, 40, 7)
    assert counted(lambda: model(inputs_embeds=states.detach())) == forward
    assert counted(lambda: model(inputs_embeds=states).last_hidden_state.sum().backward()) == 3 * forward


def test_a_vision_transformer_s_operations_are_those_that_torch_counts():
    config = ViTConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=48,
        patch_size=16, attn_implementation="eager",
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        assert counted(lambda: model(torch.randn(1, 3, 48, 48))) == vit_operations(48, 16, 32, 2)
    assert vit_operations() == pytest.approx(2 * 17.58e9, rel=1e-2)  # ViT-B/16: 17.6 billion multiplications


def test_a_clip_s_operations_are_those_of_the_model_forward():
    """All that learns takes three times its forward pass, which is counted here; what is frozen takes it once."""
    torch.manual_seed(0)
    model = build_model(build_text_config(), "eager", video_feature_dims=[6, 6])  # torch counts no sdpa of a CPU
    config = model.config
    ids, steps = torch.full((1, 5), 7), torch.randn(1, 4, 12)
    with torch.no_grad():
        text = counted(lambda: model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)))
        video = counted(lambda: model.get_video_features(video_features=steps, video_mask=torch.ones(1, 4).bool()))
    frozen = clip_operations(config, 0, 5, 4)
    assert frozen["video_head"] == 3 * video
    assert frozen["text_encoder"] + frozen["text_head"] / 3 == text
    layers = config.text_config.num_hidden_layers
    assert clip_operations(config, layers, 5, 4)["text_encoder"] == 3 * frozen["text_encoder"]
    noised = clip_operations(config, 0, 5, 4, captions=2, copies=2)
    assert noised["text_encoder"] == 4 * frozen["text_encoder"] and noised["video_head"] == 2 * frozen["video_head"]


def test_hours_bytes_and_money_are_the_operations_over_the_rate():
    name, card, scale = PAPER
    recipe = load_recipe([name])
    plan = cost(recipe, card, scale)
    layer = 64 * (8 * 1024**2 + 4 * 1024 * 4096 + 4 * 64 * 1024)  # 64 tokens, XLM-R large
    training = plan["training"]
    assert (
        training["operations_a_clip"]["text_encoder"] == 2 * (12 + 2 * 3) * layer
    )  # each caption and its noised copy
    assert training["clips"] == 16 * 1_200_000 and training["optimizer_steps"] == 300_000
    expected = 16 * 1_200_000 * sum(training["operations_a_clip"].values()) / (989.5e12 * 0.35) / 3600
    assert training["hours"] == pytest.approx(expected) and training["money"] is None
    assert plan["extraction"]["bytes"] == 134_472 * 3600 * 1024 * 2
    assert training["bytes"] == 16 * 1_200_000 * 18 * 1024 * 2
    assert plan["search"]["bytes"] == 138_000_000 * 1024 * 2
    assert plan["search"]["cards_to_hold_them"] == 3 and CARDS["h200"].memory == 141e9
    four = cost(recipe, card, Scale(1_200_000, 134_472.0, cards=4, price_per_hour=2.5, utilisation=0.7))
    assert four["training"]["hours"] == pytest.approx(training["hours"] / 8)
    assert four["training"]["money"] == pytest.approx(training["hours"] / 2 * 2.5)


def test_the_command_prints_every_assumption_and_the_same_numbers_as_json(capsys):
    words = ["cost", PAPER[0], "--card", "h200", "--clips", "1200000", "--hours", "134472", "--windows", "138000000"]
    code, out, _ = call(capsys, *words, "--json")
    plan = cost(load_recipe([PAPER[0]]), *PAPER[1:])
    assert code == 0 and json.loads(out) == json.loads(json.dumps(plan))
    code, out, _ = call(capsys, *words)
    assert code == 0 and out.splitlines() == lines_of(plan)
    assert all(
        f"  {name.replace('_', ' ')}" in out for name, value in plan["assumptions"].items() if value is not None
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--card", "abacus"], "--card is abacus; give one of h200, h100, a100, l4"),
        (["--card", "l4", "--utilisation", "2"], "--utilisation is 2.0; give at most 1"),
        (["--card", "l4", "--cards", "0"], "--cards is 0; give a number above 0"),
        (["--card", "l4", "--price_per_hour", "nan"], "--price_per_hour is nan; give a number above 0"),
    ],
)
def test_what_is_no_amount_is_one_line(capsys, words, message):
    code, out, err = call(capsys, "cost", PAPER[0], "--clips", "10", "--hours", "1", *words)
    assert (code, out) == (2, "") and err == f"mmt: {message}\n"


def test_a_recipe_whose_operations_are_not_known_is_refused():
    with pytest.raises(RecipeError, match="counts models of features"):
        cost(load_recipe(["emoji9/pixels_frozen"]), "h200", PAPER[2])


def test_the_page_s_plan_is_what_the_command_prints():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    plan = cost(load_recipe([PAPER[0]]), *PAPER[1:])
    (table,) = re.findall(r"^\| part \| operations .*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = {
        cells[1]: cells[2:4] for cells in ([cell.strip() for cell in row.split("|")] for row in table.splitlines())
    }
    for part in ("extraction", "training"):
        assert rows[part] == [f"{plan[part]['operations']:.3g}", f"{plan[part]['card_hours']:.0f}"]
    assert rows["search"][1] == f"{plan['search']['seconds_a_pass'] * 1000:.0f} ms a pass"
