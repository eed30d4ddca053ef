"""Mean average precision and nDCG@10 of queries with many right answers."""

from itertools import permutations

import numpy as np
import pytest

from modeling_mmt.evaluation import relevance as module
from modeling_mmt.evaluation.metrics import RELEVANCE_METRICS
from modeling_mmt.evaluation.ranks import ranks_from_scores
from modeling_mmt.evaluation.relevance import relevance, relevance_from_scores


def average_precision(is_right):
    """The definition: the precision at each right answer, averaged over all of them."""
    found, total = 0, 0.0
    for place, right in enumerate(is_right, start=1):
        if right:
            found += 1
            total += found / place
    return 100 * total / found


def ndcg_at_10(is_right):
    """The definition: gains discounted by place, over those of the best order."""
    gain = sum(right / np.log2(place + 1) for place, right in enumerate(is_right[:10], start=1))
    best = sum(1 / np.log2(place + 1) for place in range(1, min(10, sum(is_right)) + 1))
    return 100 * gain / best


def shuffled_ties(scores, correct, metric):
    """The mean of a metric over every order of the items that their scores allow."""
    orders = [
        order for order in permutations(range(len(scores))) if (np.diff(np.array(scores)[list(order)]) <= 0).all()
    ]
    return np.mean([metric([item in correct for item in order]) for order in orders])


def test_right_answers_at_the_first_and_third_place():
    found = relevance_from_scores([[0.9, 0.8, 0.7, 0.1]], [[0, 2]])
    assert found["mAP"] == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    assert found["nDCG@10"] == pytest.approx(100 * (1 + 1 / 2) / (1 + 1 / np.log2(3)))


def test_all_right_answers_before_all_others_are_a_hundred_and_beyond_the_tenth_place_ndcg_sees_nothing():
    scores = -np.arange(30.0)[None]
    for values in relevance_from_scores(scores, [list(range(14))]).values():
        assert values.tolist() == pytest.approx([100.0])
    assert relevance_from_scores(scores, [list(range(10, 30))])["nDCG@10"] == [0.0]


def test_with_one_right_answer_average_precision_is_the_reciprocal_rank():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(40, 17)), rng.integers(17, size=40)
    found = relevance_from_scores(scores, targets)["mAP"]
    np.testing.assert_allclose(found, 100 / ranks_from_scores(scores, targets), rtol=1e-12)


def test_a_constant_model_has_the_precision_of_chance():
    # The first place is right once in two; a right second place has one right before it once in three.
    found = relevance_from_scores([[0.5, 0.5, 0.5, 0.5]], [[0, 3]])["mAP"]
    expected = shuffled_ties([0.5] * 4, {0, 3}, average_precision)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_the_mean_over_every_shuffle(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(3, size=6).astype(float)
    correct = set(rng.choice(6, size=rng.integers(1, 7), replace=False).tolist())
    found = relevance_from_scores([scores], [sorted(correct)])
    for metric, definition in (("mAP", average_precision), ("nDCG@10", ndcg_at_10)):
        assert found[metric][0] == pytest.approx(shuffled_ties(scores, correct, definition), rel=1e-12)


def random_case(seed, num_queries=23, num_items=41, width=6):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(num_queries, width)), rng.normal(size=(num_items, width))
    targets = [rng.choice(num_items, size=rng.integers(1, 15), replace=False) for _ in range(num_queries)]
    return queries, gallery, targets


def test_embeddings_equal_the_definitions_in_a_loop(monkeypatch):
    queries, gallery, targets = random_case(1)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 41 * 5)  # blocks of 5 queries, the last one shorter
    found = relevance(queries, gallery, targets)
    for row, (query, correct) in enumerate(zip(queries, targets, strict=True)):
        is_right = [item in correct for item in np.argsort(-(gallery @ query))]
        assert found["mAP"][row] == pytest.approx(average_precision(is_right), rel=1e-12)
        assert found["nDCG@10"][row] == pytest.approx(ndcg_at_10(is_right), rel=1e-12)


def test_the_order_of_the_gallery_does_not_matter_even_where_items_are_equal():
    queries, gallery, targets = random_case(2)
    gallery = np.concatenate([gallery, gallery[:20]]).astype(np.float32)  # twenty items twice
    order = np.random.default_rng(0).permutation(len(gallery))
    place = np.argsort(order)
    expected, found = (
        relevance(queries, gallery, targets),
        relevance(queries, gallery[order], [place[t] for t in targets]),
    )
    for metric in RELEVANCE_METRICS:
        np.testing.assert_allclose(found[metric], expected[metric], rtol=1e-12)


def test_a_target_outside_the_gallery_is_an_error():
    with pytest.raises(ValueError, match=r"targets\[0\] = 4 is outside the gallery of 4"):
        relevance_from_scores(np.zeros((1, 4)), [[4]])


def test_trec_eval_says_the_same():
    trec_eval = pytest.importorskip("pytrec_eval", reason="pip install pytrec_eval-terrier")
    queries, gallery, targets = random_case(3, num_queries=200, num_items=300)
    relevant = {f"q{row}": {f"d{item}": 1 for item in items} for row, items in enumerate(targets)}
    run = {
        f"q{row}": {f"d{item}": float(score) for item, score in enumerate(gallery @ query)}
        for row, query in enumerate(queries)
    }
    theirs = trec_eval.RelevanceEvaluator(relevant, {"map", "ndcg_cut.10"}).evaluate(run)
    ours = relevance(queries, gallery, targets)
    for metric, name in (("mAP", "map"), ("nDCG@10", "ndcg_cut_10")):
        np.testing.assert_allclose(ours[metric], [100 * theirs[f"q{row}"][name] for row in range(200)], rtol=1e-6)


def test_ranx_says_the_same():
    ranx = pytest.importorskip("ranx", reason="pip install ranx")
    queries, gallery, targets = random_case(4, num_queries=50, num_items=80)
    relevant = {f"q{row}": {f"d{item}": 1 for item in items} for row, items in enumerate(targets)}
    run = {
        f"q{row}": {f"d{item}": float(score) for item, score in enumerate(gallery @ query)}
        for row, query in enumerate(queries)
    }
    theirs = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(run), ["map", "ndcg@10"])
    ours = relevance(queries, gallery, targets)
    assert 100 * theirs["map"] == pytest.approx(ours["mAP"].mean(), rel=1e-9)
    assert 100 * theirs["ndcg@10"] == pytest.approx(ours["nDCG@10"].mean(), rel=1e-9)
