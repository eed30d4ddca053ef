"""The benchmark for a GPU: what it calls right is right, what is wrong it says, and it writes what it printed."""

import json
import sys

import pytest
import torch
from readme_blocks import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_section_but_the_compiled_step_runs_on_a_cpu_and_is_right(tmp_path):
    sections = [name for name in gpu.SECTIONS if name != "step"]
    assert (
        gpu.main(["--device", "cpu", "--small", "--sections", *sections, "--output", str(tmp_path / "gpu.json")]) == 0
    )
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(written["results"]) == sections and written["wrong"] == [] and written["left_out"] == []
    assert {row["loss"] for row in written["results"]["losses"]} == set(gpu.LOSSES)
    micro = {row["step"]: row["error"] for row in written["results"]["backward"]}
    assert 0 < micro["micro-batches, float32"] < 1e-5 < micro["micro-batches, bfloat16"]


def test_a_loss_that_is_wrong_is_an_error(monkeypatch):
    monkeypatch.setitem(gpu.LOSSES, "nce", gpu.loss_mmt.symmetric_softmax_loss)
    assert gpu.main(["--device", "cpu", "--small", "--sections", "losses"]) == 1


def test_no_section_begins_after_the_time_is_over(capsys):
    assert gpu.main(["--device", "cpu", "--small", "--seconds", "0"]) == 0
    assert "left out: losses, backward" in capsys.readouterr().out


def test_operations_are_two_for_each_weight_and_token_and_four_more_where_it_learns():
    torch.manual_seed(0)
    model = gpu.make_model(gpu.SMALL)
    batch = gpu.make_batch(gpu.SMALL, model.config)
    total = gpu.step_operations(model, batch)
    text, video = int(batch["attention_mask"].sum()), int(batch["video_mask"].sum())
    weights = {"text": 0, "video": 0}
    for name, value in model.named_parameters():
        if name.endswith("weight") and value.dim() == 2 and "embedding" not in name:
            weights["video" if name.startswith("video") else "text"] += value.numel() * (
                3 if value.requires_grad else 1
            )
    assert total == 2 * (text * weights["text"] + video * weights["video"])
