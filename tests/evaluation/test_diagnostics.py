"""Gap, consistency, hubs, similarity and confusions: closed forms, then invariances."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_mmt.evaluation.diagnostics import (
    Confusion,
    agreement,
    confusions,
    gap_closed,
    gap_closed_interval,
    gap_to_english,
    hardest,
    holm,
    hubness,
    mean_rank_variance,
    occurrences,
    overlap,
    text_similarity,
    top_results,
    unanimity,
)

# The gap


def test_the_gap_to_english_is_a_difference_and_leaves_english_out():
    assert gap_to_english({"en": 25.0, "de": 12.0, "sw": 30.0}) == {"de": -13.0, "sw": 5.0}
    assert gap_to_english({"de": 12.0}) == {}


@pytest.mark.parametrize(("ours", "share"), [(10.0, 0.0), (20.0, 100.0), (16.0, 60.0), (5.0, -50.0), (25.0, 150.0)])
def test_the_gap_closed_is_0_at_zero_shot_and_100_at_translate_train(ours, share):
    assert gap_closed(ours, 10.0, 20.0) == pytest.approx(share)


def test_without_a_gap_no_share_of_it_is_closed():
    assert gap_closed(12.0, 10.0, 10.0) is None
    assert gap_closed(12.0, 10.0, 9.0) is None


def test_the_interval_of_a_gap_that_is_the_same_on_every_clip_is_a_point():
    clips = np.random.default_rng(0).uniform(0, 50, 40)
    low, high = gap_closed_interval(clips + 3, clips, clips + 4, num_samples=200)
    assert low == pytest.approx(75) and high == pytest.approx(75)


def test_the_interval_holds_the_share_and_repeats_itself():
    rng = np.random.default_rng(1)
    zero, ours, all_ = (100.0 * (rng.random(200) < p) for p in (0.1, 0.3, 0.5))
    interval = gap_closed_interval(ours, zero, all_, num_samples=2000)
    assert interval[0] < gap_closed(ours.mean(), zero.mean(), all_.mean()) < interval[1]
    assert interval == gap_closed_interval(ours, zero, all_, num_samples=2000)
    assert interval != gap_closed_interval(ours, zero, all_, num_samples=2000, seed=1)


def test_a_gap_that_other_clips_may_not_show_has_no_interval():
    rng = np.random.default_rng(1)
    noise = 100.0 * (rng.random((3, 50)) < 0.3)
    assert gap_closed_interval(*noise, num_samples=500) is None


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]) == []


# Consistency


def test_top_results_are_those_of_a_sort(monkeypatch):
    monkeypatch.setattr("modeling_mmt.evaluation.diagnostics._QUERIES_AT_ONCE", 7)  # blocks do not show
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(size, 5, generator=generator) for size in (20, 11))
    expected = np.argsort(-(queries @ gallery.T).numpy(), axis=1)[:, :4]
    np.testing.assert_array_equal(top_results(queries, gallery, 4), expected)
    assert top_results(queries, gallery, 99).shape == (20, 11)


def test_overlap_counts_shared_results_whatever_their_order():
    results = np.array([[[0, 1], [2, 3]], [[1, 0], [3, 4]], [[5, 6], [7, 8]]])
    np.testing.assert_allclose(overlap(results), [[100, 75, 0], [75, 100, 0], [0, 0, 100]])


def test_agreement_is_with_the_reference_right_or_wrong_and_unanimity_with_all():
    first = np.array([[4, 1, 2, 3], [4, 1, 0, 0], [4, 9, 2, 0]])
    np.testing.assert_allclose(agreement(first, reference=0), [100, 50, 50])
    np.testing.assert_allclose(agreement(first, reference=1), [50, 100, 50])
    assert unanimity(first) == 25.0
    assert unanimity(first[:1]) == 100.0


def test_mean_rank_variance_is_0_where_languages_agree_and_the_mean_of_variances_elsewhere():
    assert mean_rank_variance(np.array([[1, 7, 3], [1, 7, 3]])) == 0.0
    assert mean_rank_variance(np.array([[1.0, 10.0], [3.0, 10.0]])) == pytest.approx(0.5)  # (1 + 0) / 2


# Hubs


def test_occurrences_count_each_result_once():
    np.testing.assert_array_equal(occurrences(np.array([[0, 1], [0, 2], [0, 1]]), 5), [3, 2, 1, 0, 0])


def test_an_even_spread_has_no_hub_and_no_anti_hub():
    assert hubness(np.full(10, 3)) == {"skewness": 0.0, "anti_hubs": 0.0, "largest": 3.0}
    assert hubness(np.array([1, 2, 3]))["skewness"] == pytest.approx(0.0)


def test_one_hub_that_takes_all_has_the_skewness_of_one_success_in_n():
    n = 20
    counts = np.zeros(n)
    counts[3] = n
    found = hubness(counts)
    p = 1 / n
    assert found["skewness"] == pytest.approx((1 - 2 * p) / np.sqrt(p * (1 - p)))  # of a Bernoulli variable
    assert found["anti_hubs"] == pytest.approx(95.0)
    assert found["largest"] == n


def test_hubness_is_that_of_the_shape_not_of_the_scale():
    counts = np.random.default_rng(0).poisson(4, 500)
    assert hubness(counts)["skewness"] == pytest.approx(hubness(7 * counts)["skewness"])
    assert hubness(counts)["skewness"] == pytest.approx(0.5, abs=0.2)  # 1 / sqrt(mean)


# Texts, confusions, hardest clips


def test_text_similarity_is_the_mean_of_cosines_of_pairs_of_the_same_and_of_different_clips():
    texts = F.normalize(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    same, different = text_similarity(texts)
    cosines = torch.einsum("anp,bmp->abnm", texts, texts).double()
    eye = torch.eye(6, dtype=torch.bool)
    np.testing.assert_allclose(same, cosines[..., eye].mean(-1), atol=1e-6)
    np.testing.assert_allclose(different, cosines[..., ~eye].mean(-1), atol=1e-6)
    np.testing.assert_allclose(np.diag(same), 1, atol=1e-6)


def test_texts_of_a_single_clip_are_like_no_other_clips():
    same, different = text_similarity(F.normalize(torch.ones(2, 1, 4), dim=-1))
    np.testing.assert_allclose(same, 1)
    assert np.isnan(different).all()


def test_confusions_come_in_the_order_of_their_languages_and_name_them():
    first = np.array([[7, 1, 0], [7, 1, 5], [7, 9, 5]])
    assert confusions(first, [0, 1, 2], ["en", "de", "sw"]) == [
        Confusion(0, 7, ("en", "de", "sw")),
        Confusion(2, 5, ("de", "sw")),
        Confusion(1, 9, ("sw",)),
        Confusion(2, 0, ("en",)),
    ]
    assert confusions(np.array([[0, 1]]), [0, 1], ["en"]) == []


def test_the_hardest_clip_has_the_lowest_reciprocal_ranks():
    ranks = np.array([[1, 50, 2, 100], [90, 50, 2, 100]])
    assert hardest(ranks) == [3, 1, 2, 0]
