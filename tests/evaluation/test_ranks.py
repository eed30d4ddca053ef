"""Ranks, metrics, per-language tables, intervals and tests of significance."""

import importlib
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.metrics import METRICS, average_over_languages, retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks, ranks_both_ways, ranks_by_language, ranks_from_scores
from modeling_mmt.evaluation.significance import _weighted_median, bootstrap_interval, paired_test, summarise_seeds


def oracle_ranks(queries, gallery, targets):
    """The definition, as a double loop in exact (Python float) arithmetic on small integers."""
    result = []
    for query, correct in zip(queries, targets, strict=True):
        correct = set(np.atleast_1d(correct).tolist())
        scores = [sum(float(a) * float(b) for a, b in zip(query, item, strict=True)) for item in gallery]
        best = max(scores[j] for j in correct)
        above = sum(s > best for s in scores)
        tied_wrong = sum(s == best for j, s in enumerate(scores) if j not in correct)
        tied_correct = sum(scores[j] == best for j in correct)
        result.append(1 + above + tied_wrong / (tied_correct + 1))
    return np.array(result)


def integers(rng, rows, width, high=3):
    return rng.integers(-high, high + 1, size=(rows, width)).astype(np.float32)


# --- ranks ---


def test_a_hand_made_three_by_three_matrix():
    scores = [[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.4, 0.3, 0.2]]
    assert ranks_from_scores(scores).tolist() == [1, 2, 3]
    assert ranks_from_scores(np.transpose(scores)).tolist() == [1, 1, 1.5]  # 0.2 in the last row appears twice
    assert ranks(scores, np.eye(3)).tolist() == [1, 2, 3]


def test_three_by_three_ones_give_three_ranks_of_two():
    # Published evaluation code that searches for `sorted - diagonal == 0` returns nine ranks here, R@1 33 and R@5 100.
    expected = {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "MedR": 2.0, "MeanR": 2.0, "MRR": 50.0}
    assert retrieval_metrics(ranks_from_scores(np.ones((3, 3)))) == expected
    assert retrieval_metrics(ranks(np.ones((3, 1)), np.ones((3, 1)))) == expected


@pytest.mark.parametrize("num_items", [1, 2, 7, 100])
def test_a_constant_model_ranks_everything_in_the_middle(num_items):
    constant = np.full((num_items, 33), 0.1234567, dtype=np.float32)
    for found in ranks_both_ways(constant, constant, block_size=17):
        assert (found == (num_items + 1) / 2).all()


def test_a_gallery_of_zeros_ties_everywhere():
    assert ranks(np.zeros((4, 5)), np.zeros((4, 5))).tolist() == [2.5] * 4


@pytest.mark.parametrize("block_size", [1, 3, 7, 2048])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (13, 29, 4), (31, 17, 3)])
def test_blocks_equal_the_double_loop_with_ties_and_odd_sizes(shape, block_size):
    num_queries, num_items, width = shape
    rng = np.random.default_rng(num_items)
    queries, gallery = integers(rng, num_queries, width), integers(rng, num_items, width)
    targets = rng.integers(num_items, size=num_queries)
    expected = oracle_ranks(queries, gallery, targets)
    np.testing.assert_array_equal(ranks(queries, gallery, targets, block_size), expected)
    np.testing.assert_array_equal(ranks_from_scores(queries @ gallery.T, targets), expected)


@pytest.mark.parametrize("block_size", [4, 2048])
def test_with_several_correct_items_the_best_ranked_counts(block_size):
    rng = np.random.default_rng(0)
    queries, gallery = integers(rng, 23, 3, high=2), integers(rng, 19, 3, high=2)
    targets = [rng.choice(19, size=rng.integers(1, 5), replace=False).tolist() for _ in range(23)]
    expected = oracle_ranks(queries, gallery, targets)
    np.testing.assert_array_equal(ranks(queries, gallery, targets, block_size), expected)
    np.testing.assert_array_equal(ranks_from_scores(queries @ gallery.T, targets), expected)


def test_ties_among_correct_items_only_cost_nothing():
    assert ranks_from_scores([[1.0, 1.0, 0.0]], [[0, 1]]).tolist() == [1]
    assert ranks_from_scores([[1.0, 1.0, 1.0]], [[0, 1]]).tolist() == [1 + 1 / 3]  # 1, 1 or 2


def test_an_item_named_twice_counts_once():
    assert ranks_from_scores([[1.0, 1.0, 0.0]], [[0, 0]]).tolist() == [1.5]


def test_duplicates_in_the_gallery_tie_exactly_wherever_they_stand():
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(40, 129)).astype(np.float32), rng.normal(size=(61, 129)).astype(np.float32)
    alone = ranks(queries, gallery, np.arange(40))
    for copies in (2, 3):
        shuffle = rng.permutation(61 * copies)
        repeated = np.concatenate([gallery] * copies)[shuffle]
        targets = np.argsort(shuffle)[:40]
        np.testing.assert_array_equal(ranks(queries, repeated, targets, 50), copies * (alone - 1) + (copies + 1) / 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_block_size_and_gallery_order_never_change_real_valued_ranks(dtype):
    rng = np.random.default_rng(2)
    base = rng.normal(size=(1, 64))  # nearly equal rows: float32 products alone cannot order them
    queries = (base + 1e-3 * rng.normal(size=(200, 64))).astype(dtype)
    gallery = (base + 1e-3 * rng.normal(size=(150, 64))).astype(dtype)
    targets = rng.integers(150, size=200)
    exact = ranks_from_scores(queries.astype(np.float64) @ gallery.astype(np.float64).T, targets)
    order = rng.permutation(150)
    for block_size in (1, 37, 64, 2048):
        np.testing.assert_array_equal(ranks(queries, gallery, targets, block_size), exact)
        np.testing.assert_array_equal(ranks(queries, gallery[order], np.argsort(order)[targets], block_size), exact)


def test_wide_spread_random_scores_agree_with_float64():
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(300, 512)).astype("f4"), rng.normal(size=(400, 512)).astype("f4")
    targets = rng.integers(400, size=300)
    exact = ranks_from_scores(queries.astype("f8") @ gallery.astype("f8").T, targets)
    np.testing.assert_array_equal(ranks(queries, gallery, targets, 128), exact)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e18])
def test_the_length_of_embeddings_does_not_matter(scale):
    rng = np.random.default_rng(4)
    queries, gallery = rng.normal(size=(30, 16)), rng.normal(size=(30, 16))
    expected = ranks(queries, gallery)
    np.testing.assert_array_equal(ranks(queries * scale, gallery * scale), expected)


def test_half_precision_equals_the_same_values_in_double():
    rng = np.random.default_rng(5)
    queries, gallery = rng.normal(size=(50, 24)).astype(np.float16), rng.normal(size=(50, 24)).astype(np.float16)
    expected = ranks(queries.astype(np.float64), gallery.astype(np.float64))
    np.testing.assert_array_equal(ranks(queries, gallery), expected)
    np.testing.assert_array_equal(ranks(torch.from_numpy(queries), torch.from_numpy(gallery)), expected)
    rough = torch.from_numpy(queries).bfloat16()
    np.testing.assert_array_equal(ranks(rough, rough), ranks(rough.double(), rough.double()))


def test_transposing_the_matrix_swaps_the_directions():
    rng = np.random.default_rng(6)
    texts, videos = integers(rng, 21, 3), integers(rng, 21, 3)
    forth, back = ranks_both_ways(texts, videos, block_size=8)
    np.testing.assert_array_equal(forth, ranks(texts, videos))
    np.testing.assert_array_equal(back, ranks(videos, texts))
    np.testing.assert_array_equal(back, ranks_from_scores((texts @ videos.T).T))


def test_video_to_text_takes_the_best_ranked_caption_and_marks_clips_without_one():
    rng = np.random.default_rng(7)
    texts, videos = integers(rng, 17, 3, high=2), integers(rng, 6, 3, high=2)
    clip_of_text = rng.integers(5, size=17)  # clip 5 has no caption
    clip_of_text[:5] = np.arange(5)
    forth, back = ranks_both_ways(texts, videos, clip_of_text, block_size=4)
    np.testing.assert_array_equal(forth, oracle_ranks(texts, videos, clip_of_text))
    captions = [np.flatnonzero(clip_of_text == clip) for clip in range(5)]
    np.testing.assert_array_equal(back[:5], oracle_ranks(videos[:5], texts, captions))
    assert np.isnan(back[5])


def test_inputs_that_require_grad_and_lists_are_accepted():
    eye = torch.eye(3, requires_grad=True)
    assert ranks(eye, eye.tolist(), torch.tensor([0, 1, 2])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_row(bad):
    broken = np.ones((4, 3))
    broken[2, 1] = bad
    with pytest.raises(ValueError, match="query_embeds row 2"):
        ranks(broken, np.ones((4, 3)))
    with pytest.raises(ValueError, match="gallery_embeds row 2"):
        ranks(np.ones((4, 3)), broken)
    with pytest.raises(ValueError, match="scores row 2"):
        ranks_from_scores(broken, [0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"text_embeds\['sw'\] row 2"):
        ranks_by_language({"sw": broken}, np.ones((4, 3)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1], "2 entries for 3 queries"),
        ([0, 1, 9], r"targets\[2\] = 9 is outside"),
        ([0, -1, 2], r"targets\[1\] = -1 is outside"),
        ([[0], [], [2]], r"targets\[1\] is empty"),
        ([0.5, 1.0, 2.0], "must be integers"),
    ],
)
def test_bad_targets_name_the_query(targets, message):
    with pytest.raises(ValueError, match=message):
        ranks(np.eye(3), np.eye(3), targets)


def test_unpaired_sizes_need_targets():
    with pytest.raises(ValueError, match="pass `targets`"):
        ranks(np.ones((3, 2)), np.ones((4, 2)))


def test_different_widths_and_overflow_are_errors():
    with pytest.raises(ValueError, match="widths differ: 2 and 3"):
        ranks(np.ones((3, 2)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="normalise"):
        ranks(np.full((2, 2), 1e30), np.full((2, 2), 1e30))


def test_memory_does_not_grow_with_the_score_matrix():
    rng = np.random.default_rng(21)
    peaks = []
    for size in (1500, 6000):
        embeds = rng.normal(size=(size, 8)).astype(np.float32)
        tracemalloc.start()
        ranks_both_ways(embeds, embeds, block_size=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]  # the matrix grows 16-fold
    assert peaks[1] < 4 * 6000**2 / 10


def test_the_benchmark_finds_ours_and_both_sorts_right_on_a_small_corpus(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    benchmark = importlib.import_module("retrieval_metrics")
    assert benchmark.errors(*benchmark.corpus(130, 40, 1)) == []


# --- metrics ---


def test_metrics_of_known_ranks():
    found = retrieval_metrics([1, 2, 4, 6, 20])
    assert found == pytest.approx(
        {"R@1": 20, "R@5": 60, "R@10": 80, "MedR": 4, "MeanR": 6.6, "MRR": 20 * (1 + 1 / 2 + 1 / 4 + 1 / 6 + 1 / 20)}
    )
    assert tuple(found) == METRICS


@pytest.mark.parametrize("bad", [[], [0.5], [1, np.nan], [[1.0]]])
def test_values_that_are_not_ranks_are_refused(bad):
    with pytest.raises(ValueError, match="rank"):
        retrieval_metrics(bad)


def test_averages_weigh_languages_equally_and_leave_english_out():
    found = average_over_languages({"en": 30.0, "de": 10.0, "sw": 2.0})
    assert found == {"en": 30.0, "de": 10.0, "sw": 2.0, "avg": 14.0, "avg_non_en": 6.0}
    for values in ({"en": 1.0}, {"de": 1.0, "sw": 2.0}):
        assert "avg_non_en" not in average_over_languages(values)


def test_each_language_is_ranked_both_ways():
    rng = np.random.default_rng(8)
    videos = np.eye(4)
    found = ranks_by_language({"en": videos, "sw": videos[[1, 0, 2, 3]] + 0.1 * rng.random((4, 4))}, videos)
    figures = {way: {key: retrieval_metrics(of[key])["R@1"] for key in of} for way, of in found.items()}
    assert figures == {"t2v": {"en": 100, "sw": 50}, "v2t": {"en": 100, "sw": 50}}


def test_excluded_clips_leave_queries_and_gallery():
    rng = np.random.default_rng(9)
    texts, videos = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    flags = rng.random(12) < 0.4
    found = ranks_by_language({"en": texts}, videos, exclude=flags)
    expected = ranks_by_language({"en": texts[~flags]}, videos[~flags])
    for way in ("t2v", "v2t"):
        assert found[way]["en"].tolist() == expected[way]["en"].tolist()
        assert len(found[way]["en"]) == (~flags).sum()


def test_exclusion_renumbers_targets_when_clips_have_several_captions():
    texts = np.eye(3)[[0, 1, 2, 1, 2]]
    found = ranks_by_language({"en": texts}, np.eye(3), [0, 1, 2, 1, 2], exclude=np.array([True, False, False]))
    assert found["t2v"]["en"].tolist() == [1, 1, 1, 1]
    assert found["v2t"]["en"].tolist() == [1, 1]


def test_languages_may_have_their_own_captions():
    found = ranks_by_language({"en": np.eye(3), "zh": np.eye(3)[[2, 0]]}, np.eye(3), {"en": None, "zh": [2, 0]})
    assert {key: of.tolist() for key, of in found["t2v"].items()} == {"en": [1, 1, 1], "zh": [1, 1]}
    assert found["v2t"]["zh"][[0, 2]].tolist() == [1, 1] and np.isnan(found["v2t"]["zh"][1])


def test_a_bad_exclude_mask_is_refused():
    with pytest.raises(ValueError, match="exclude must be"):
        ranks_by_language({"en": np.eye(3)}, np.eye(3), exclude=np.array([1, 0, 0]))
    with pytest.raises(ValueError, match="every clip"):
        ranks_by_language({"en": np.eye(3)}, np.eye(3), exclude=np.ones(3, dtype=bool))


# --- uncertainty ---


def test_constant_values_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full(50, 7.0), num_samples=100) == (7.0, 7.0)
    assert bootstrap_interval(np.full(50, 7.0), num_samples=100, statistic=np.median) == (7.0, 7.0)


def test_the_interval_of_a_share_is_near_its_normal_approximation():
    hits = np.repeat([0.0, 100.0], [700, 300])
    low, high = bootstrap_interval(hits, num_samples=10_000, seed=1)
    half = 1.96 * 100 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(30 - half, abs=0.25)
    assert high == pytest.approx(30 + half, abs=0.25)


def test_languages_of_one_clip_are_drawn_together():
    rng = np.random.default_rng(10)
    one = rng.normal(size=200)
    copies = np.repeat(one[:, None], 9, axis=1)  # nine languages that say the same add no certainty
    assert bootstrap_interval(copies, 500) == pytest.approx(bootstrap_interval(one, 500))


def test_captions_of_one_clip_are_drawn_together_when_grouped():
    rng = np.random.default_rng(11)
    one = rng.normal(size=100)
    repeated, clips = np.repeat(one, 20), np.repeat(np.arange(100), 20)
    assert bootstrap_interval(repeated, 500, groups=clips) == pytest.approx(bootstrap_interval(one, 500))
    narrow = np.ptp(bootstrap_interval(repeated, 500))
    assert narrow < 0.4 * np.ptp(bootstrap_interval(one, 500))


@pytest.mark.parametrize("size", [4, 5])
def test_the_bootstrap_median_equals_medians_of_drawn_samples(size):
    values = np.array([3.0, 1.0, 10.0, 2.0, 2.0])[:size]
    draws = np.random.default_rng(12).integers(size, size=(50, size))
    weights = np.stack([np.bincount(draw, minlength=size) for draw in draws]).astype(float)
    np.testing.assert_array_equal(_weighted_median(values, weights), np.median(values[draws], axis=1))


def test_the_same_seed_gives_the_same_interval_and_a_higher_level_a_wider_one():
    values = np.random.default_rng(13).normal(size=60)
    assert bootstrap_interval(values, 300, seed=3) == bootstrap_interval(values, 300, seed=3)
    assert bootstrap_interval(values, 300, seed=3) != bootstrap_interval(values, 300, seed=4)
    assert np.ptp(bootstrap_interval(values, 300, level=0.99)) > np.ptp(bootstrap_interval(values, 300, level=0.8))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(14)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.normal(size=100), 400, seed=trial)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_nan_values_are_refused_by_the_bootstrap():
    with pytest.raises(ValueError, match="row 1"):
        bootstrap_interval([1.0, np.nan])


def test_equal_rows_differ_by_nothing():
    same = np.random.default_rng(15).normal(size=(3, 40))
    assert paired_test(same, same, 200) == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_false_positives_come_at_the_nominal_rate():
    rng = np.random.default_rng(16)
    rejected = 0
    for trial in range(300):
        clip = rng.normal(size=(1, 80))  # shared difficulty: what pairing removes
        a, b = clip + rng.normal(size=(3, 80)), clip + rng.normal(size=(3, 80))
        rejected += paired_test(a, b, 300, seed=trial)["p"] < 0.05
    assert 0.02 <= rejected / 300 <= 0.09


def test_a_real_difference_is_found_with_its_size_and_sign():
    rng = np.random.default_rng(17)
    clip = 10 * rng.normal(size=(1, 300, 1))
    a = clip + 1.0 + rng.normal(size=(3, 300, 8))
    b = clip + rng.normal(size=(3, 300, 8))
    found = paired_test(a, b, 2000)
    assert found["difference"] == pytest.approx(1.0, abs=0.1)
    assert found["ci95"][0] < found["difference"] < found["ci95"][1]
    assert found["p"] == pytest.approx(1 / 2001)
    back = paired_test(b, a, 2000)
    assert (back["difference"], back["p"]) == (pytest.approx(-found["difference"]), found["p"])


def test_small_samples_agree_with_all_sign_flips():
    a = np.array([[3.0, 1.0, 2.0, -0.5, 4.0]])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    exact = np.mean(np.abs(a[0] @ signs) >= abs(a.sum()) - 1e-9)
    assert paired_test(a, np.zeros_like(a), 20_000)["p"] == pytest.approx(exact, abs=0.01)


def test_disagreeing_seeds_widen_the_interval():
    clips = np.random.default_rng(18).normal(size=(1, 100))
    agreeing = np.repeat(clips + 1.0, 4, axis=0)
    disagreeing = agreeing + np.array([[-2.0], [-1.0], [1.0], [2.0]])
    zero = np.zeros_like(agreeing)
    calm, torn = paired_test(agreeing, zero, 1000), paired_test(disagreeing, zero, 1000)
    assert torn["p"] == calm["p"]  # the flips see the mean over seeds only
    assert np.ptp(torn["ci95"]) > 2 * np.ptp(calm["ci95"])


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="share a shape"):
        paired_test(np.ones((3, 4)), np.ones((2, 4)))


def test_summary_of_seeds_has_the_shape_of_results_json_and_agrees_with_the_parts():
    rng = np.random.default_rng(19)
    videos = rng.normal(size=(40, 8))
    texts = [{lang: videos + rng.normal(size=(40, 8)) for lang in ("en", "de", "sw")} for _ in range(2)]
    found = [ranks_by_language(run, videos) for run in texts]
    summary = summarise_seeds(found, num_samples=300)
    for direction in ("t2v", "v2t"):
        for name in METRICS:
            for key in ("en", "de", "sw", "avg", "avg_non_en"):
                cell = summary[direction][name][key]
                of_seeds = [
                    average_over_languages({lang: retrieval_metrics(of)[name] for lang, of in run[direction].items()})
                    for run in found
                ]
                assert cell["per_seed"] == pytest.approx([of[key] for of in of_seeds])
                assert cell["mean"] == pytest.approx(np.mean(cell["per_seed"]))
                assert cell["ci95"][0] <= cell["mean"] <= cell["ci95"][1]
    hits = np.stack(
        [100.0 * (ranks_by_language(run, videos)["t2v"]["en"] <= 1) for run in texts], axis=-1
    )  # (clips, seeds)
    assert summary["t2v"]["R@1"]["en"]["ci95"] == pytest.approx(bootstrap_interval(hits, 300))


# --- embedding ---


class FakeModel:
    """Embeds a text as (characters, 1) and a clip as its mean; padding would change either."""

    device = torch.device("cpu")
    training = True

    def __init__(self):
        self.batches = []

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def get_text_features(self, lengths):
        assert not self.training
        self.batches.append(lengths[:, 0].tolist())
        return SimpleNamespace(pooler_output=torch.cat([lengths, torch.ones_like(lengths)], dim=1))

    def get_video_features(self, video_features, video_mask):
        mask = video_mask[..., None].float()
        return SimpleNamespace(pooler_output=(video_features * mask).sum(1) / mask.sum(1))


def fake_processor(text=None, video_features=None, return_tensors=None):
    assert return_tensors == "pt"
    if text is not None:
        return {"lengths": torch.tensor([[float(len(t))] for t in text])}
    longest = max(len(clip) for clip in video_features)
    padded = torch.zeros(len(video_features), longest, video_features[0].shape[1])
    mask = torch.zeros(len(video_features), longest, dtype=torch.long)
    for i, clip in enumerate(video_features):
        padded[i, : len(clip)], mask[i, : len(clip)] = torch.as_tensor(clip), 1
    return {"video_features": padded, "video_mask": mask}


def test_texts_are_embedded_by_length_and_come_back_in_order_at_unit_norm():
    model = FakeModel()
    texts = ["aaaa", "b", "cccccc", "dd", "eee"]
    embeds = embed_texts(model, fake_processor, texts, batch_size=2)
    assert model.batches == [[1, 2], [3, 4], [6]]
    assert model.training
    expected = torch.nn.functional.normalize(torch.tensor([[float(len(t)), 1.0] for t in texts]), dim=-1)
    torch.testing.assert_close(embeds, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_videos_of_any_length_come_back_in_order(batch_size, capsys):
    rng = np.random.default_rng(20)
    clips = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 1, 7, 2, 2)]
    embeds = embed_videos(FakeModel(), fake_processor, clips, batch_size, progress="clips")
    expected = np.stack([clip.mean(0) / np.linalg.norm(clip.mean(0)) for clip in clips])
    np.testing.assert_allclose(embeds.numpy(), expected, rtol=1e-5)
    assert "clips" in capsys.readouterr().err


def test_an_embedding_that_is_not_finite_names_its_clip():
    clips = [np.ones((2, 3), "f4"), np.full((1, 3), np.nan, "f4")]
    with pytest.raises(ValueError, match=r"video_features\[1\]"):
        embed_videos(FakeModel(), fake_processor, clips)
    with pytest.raises(ValueError, match="nothing to embed"):
        embed_texts(FakeModel(), fake_processor, [])
