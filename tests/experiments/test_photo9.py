"""`experiments/photo9.py`: figures by concept, their means and intervals."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import photo9 as photos  # noqa: E402

from modeling_mmt.data.languages import LANGUAGES  # noqa: E402
from modeling_mmt.evaluation.evaluate import EvalSpec, Evaluation, corpus_of  # noqa: E402
from modeling_mmt.evaluation.ranks import ranks_by_language  # noqa: E402
from modeling_mmt.evaluation.relevance import relevance_by_language  # noqa: E402

CONCEPTS = ("ant", "crab", "ant", "pear", "crab")
SPLITS = {"ant": "test", "crab": "train", "pear": None}


@pytest.fixture
def found(monkeypatch):
    """Figures of a model that takes every crab for a pear, and is right otherwise."""
    rows = [
        {"video_id": f"p{number}", "concept": concept, "emoji9_split": SPLITS[concept]}
        | {f"name_{language}": f"{concept} {language}" for language in LANGUAGES}
        for number, concept in enumerate(CONCEPTS)
    ]
    corpus = corpus_of(EvalSpec("made/up", text_column="name", languages=LANGUAGES), Dataset.from_list(rows), [])
    texts = dict.fromkeys(LANGUAGES, torch.eye(3))  # ant, crab, pear
    videos = torch.tensor([[1.0, 0, 0], [0, 0.4, 0.9], [1.0, 0, 0], [0, 0, 0.8], [0, 0.3, 0.9]])

    def search(model, processor, corpus):
        everything = corpus.parts["all"]
        ranks = {"all": ranks_by_language(texts, videos, corpus.answers)}
        relevance = {"all": relevance_by_language(texts, videos, corpus.answers, everything)}
        return Evaluation("made up", texts, videos, ranks, relevance=relevance)

    monkeypatch.setattr(photos, "search_corpus", search)
    return photos.by_concept(corpus, None, None)


def test_a_concepts_figures_are_of_its_query_and_of_its_photos(found):
    assert found["concepts"] == ["ant", "crab", "pear"] and found["photos"] == 5
    assert found["in_training"] == [False, True, False]
    assert found["R@1"]["sw"] == [100.0, 100.0, 0.0]
    assert found["mAP"]["sw"] == pytest.approx([100.0, 100.0, 100 / 3])
    assert found["photo to name"]["cs"] == [100.0, 0.0, 100.0]


def test_a_row_tells_emoji9s_training_concepts_from_the_others_and_means_lie_in_their_intervals(found):
    row = photos.row("both", "test", [found, found])
    assert (row["concepts"], row["photos"]) == (3, 5) and list(row["figures"]) == list(photos.PARTS)
    cells = {part: of["R@1"]["avg"] for part, of in row["figures"].items()}
    assert [cell["mean"] for cell in cells.values()] == pytest.approx([200 / 3, 100, 50])
    assert cells["all"]["per_seed"] == pytest.approx([200 / 3] * 2)
    assert all(cell["ci95"][0] <= cell["mean"] <= cell["ci95"][1] for cell in cells.values())


def test_the_page_has_a_line_for_each_row_and_part(found):
    rows = [photos.row(name, "test", [found]) for name in ("both", "none_en")]
    searched = {
        ("both", seed): {place: dict.fromkeys(LANGUAGES, 10.0 + seed) for place in photos.DRAWINGS} for seed in (0, 1)
    }
    drawings = {"both": photos.among_drawings(searched, "both", (0, 1))}
    text = photos.markdown({"seeds": [0], "machine": "2 cores", "rows": rows, "drawings": drawings})
    assert text.count("| emoji9 + prototypes | ") == 4 and "**test**: 3 concepts, 5 photos" in text
    assert "| emoji9 + prototypes | 10.5 | 10.5 | 10.5 | 10.5 |" in text


def test_rows_that_learned_from_photographs_do_not_search_those_they_learned_from():
    for name, row in photos.ROWS.items():
        assert ("train" not in "+".join(photos.splits_of(name))) == row.saw_photos


def test_a_row_without_the_concepts_classes_learns_from_features_of_its_own_alone():
    def read(recipe):
        homes = [recipe["data"], *(source for source in recipe["finetuning"]["sources"] if "dataset" in source)]
        return {name for home in homes for name in (home["dataset"], *home["features"])} - {"emoji9"}

    one, other = (read(photos.recipe_of(name)) for name in ("both", "both_with_their_classes"))
    assert len(one) == len(other) == 4 and all(name.startswith(f"{photos.WITHOUT}/") for name in one)
    assert {name.replace(str(photos.WITHOUT), "runs") for name in one} == other


@pytest.mark.parametrize("name", photos.ROWS)
def test_every_row_is_a_recipe_that_the_package_reads(name, tmp_path):
    from modeling_mmt.training.recipe_reading import load_recipe

    row = photos.ROWS[name]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(photos.recipe_of(name)))
    recipe = load_recipe([str(tmp_path / "recipe.yaml")], "")
    read = {recipe.data.dataset, *(source.dataset for source in recipe.finetuning.sources if source.dataset)}
    assert (photos.PHOTOS in read) == row.saw_photos
    noise = row.changes.get("*.noise_probability", 0)
    assert all(source.noise_probability == noise for source in recipe.finetuning.sources)
    assert (recipe.model.config["intra_weight"] > 0) == (noise > 0) == name.endswith("intra")
    assert (recipe.model.config["num_hidden_layers"] > 0) == ("tp" in name.split("_"))
