"""The folder `metrics/retrieval` as `evaluate` loads it, without network."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml

from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks, ranks_from_scores
from modeling_mmt.evaluation.relevance import relevance_from_scores

FOLDER = Path(__file__).resolve().parents[2] / "metrics" / "retrieval"


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "cache"))


def test_score_rows_give_the_example_of_the_docstring(metric):
    found = metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[0, 1])
    assert found == {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "MedR": 1.5, "MeanR": 1.5, "MRR": 75.0}


def test_three_by_three_ones_are_three_queries_of_rank_two(metric):
    found = metric.compute(predictions=np.ones((3, 3)), references=[0, 1, 2])
    assert (found["R@1"], found["R@5"], found["MeanR"]) == (0.0, 100.0, 2.0)


def test_embeddings_added_in_batches_equal_the_library(metric):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(25, 8)).astype("f4"), rng.normal(size=(11, 8)).astype("f4")
    targets = rng.integers(11, size=25)
    for start in (0, 10, 20):
        metric.add_batch(predictions=queries[start : start + 10], references=targets[start : start + 10])
    assert metric.compute(gallery_embeds=gallery) == retrieval_metrics(ranks(queries, gallery, targets))


def test_several_correct_items_are_lists(metric):
    rng = np.random.default_rng(1)
    scores = rng.integers(4, size=(6, 9)).astype("f4")
    targets = [[0, 1], [2], [3, 4, 5], [8], [1, 7], [6]]
    found = metric.compute(predictions=scores, references=targets)
    all_of_them = {name: of.mean() for name, of in relevance_from_scores(scores, targets).items()}
    assert found == retrieval_metrics(ranks_from_scores(scores, targets)) | all_of_them
    same_length = [[i, i + 1] for i in range(6)]
    found = metric.compute(predictions=scores, references=same_length)
    assert found["R@1"] == retrieval_metrics(ranks_from_scores(scores, same_length))["R@1"]
    with_embeddings = metric.compute(predictions=scores, references=same_length, gallery_embeds=np.eye(9))
    assert with_embeddings == found


def test_the_ranks_behind_the_figures_come_when_asked_for(metric):
    found = metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[0, 1], return_ranks=True)
    assert found.pop("ranks").tolist() == [1.0, 2.0]
    assert found == metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[0, 1])


def test_a_nan_score_is_an_error_that_names_the_row(metric):
    with pytest.raises(ValueError, match="row 1"):
        metric.compute(predictions=[[1.0, 0.0], [np.nan, 0.0]], references=[0, 1])


def test_the_card_has_front_matter_that_parses():
    _, front, body = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert {"evaluate", "metric"} <= set(yaml.safe_load(front)["tags"])
    assert "Ties" in body
