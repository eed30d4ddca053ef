"""The losses against closed forms, properties and plain double loops."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from torch.nn import functional

from modeling_mmt.loss_mmt import (
    CAPTIONS,
    LOSSES,
    multi_positive_nce_loss,
    nce_loss,
    objectives,
    positive_mask,
    sigmoid_loss,
    symmetric_softmax_loss,
)

NAMES = sorted(LOSSES)


def unit_rows(n, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, width, generator=generator, dtype=dtype), dim=1)


def scale(value=10.0, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def ids_with_repeats(n=7):
    """Rows 0 and 3 are the same clip, 3 and 5 have the same caption, 1 and 2 share both."""
    clips = torch.arange(n)
    captions = torch.arange(n) + 100
    clips[3] = clips[0]
    captions[5] = captions[3]
    clips[2], captions[2] = clips[1], captions[1]
    return torch.stack([clips, captions], dim=1)


def loop_loss(name, a, b, logit_scale, mask, bias=0.0):
    """The equations, one Python number at a time."""
    n = len(a)
    z = [[float(logit_scale * a[i].dot(b[j]) + bias) for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        negatives = [j for j in range(n) if j != i and not mask[i][j]]
        positives = [j for j in range(n) if j == i or mask[i][j]]
        if name == "nce":
            both = sum(math.exp(z[i][j]) + math.exp(z[j][i]) for j in negatives)
            total -= math.log(math.exp(z[i][i]) / (math.exp(z[i][i]) + both))
        elif name == "multi_positive":
            both = sum(math.exp(z[i][j]) + math.exp(z[j][i]) for j in negatives)
            numerator = sum(math.exp(z[i][p]) for p in positives)
            total -= math.log(numerator / (numerator + both))
        elif name == "symmetric_softmax":
            own = math.exp(z[i][i])
            total -= 0.5 * math.log(own / (own + sum(math.exp(z[i][j]) for j in negatives)))
            total -= 0.5 * math.log(own / (own + sum(math.exp(z[j][i]) for j in negatives)))
        else:
            total += math.log1p(math.exp(-z[i][i])) + sum(math.log1p(math.exp(z[i][j])) for j in negatives)
    return total / n


# Closed forms


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("loss_fn", [nce_loss, multi_positive_nce_loss])
def test_equal_logits_give_the_log_of_the_joint_denominators_size(loss_fn, n):
    same = torch.ones(n, 1, dtype=torch.float64)
    torch.testing.assert_close(loss_fn(same, same, scale()), scale(math.log(1 + 2 * (n - 1))))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_logits_give_log_n_for_the_symmetric_softmax(n):
    same = torch.ones(n, 1, dtype=torch.float64)
    torch.testing.assert_close(symmetric_softmax_loss(same, same, scale()), scale(math.log(n)))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_zero_logits_give_n_log_2_for_the_sigmoid(n):
    zero = torch.zeros(n, 3, dtype=torch.float64)
    torch.testing.assert_close(sigmoid_loss(zero, zero, scale()), scale(n * math.log(2)))
    # ln(1 + e^1) for the positive, ln(1 + e^-1) for each negative
    expected = math.log1p(math.e) + (n - 1) * math.log1p(1 / math.e)
    torch.testing.assert_close(sigmoid_loss(zero, zero, scale(), logit_bias=scale(-1.0)), scale(expected))


@pytest.mark.parametrize("name", NAMES)
def test_orthogonal_pairs_at_a_low_temperature_cost_nothing(name):
    rows = torch.eye(5, dtype=torch.float64)
    # the sigmoid needs a bias between the two groups: a positive lies at 200, a negative at 0
    loss_fn = partial(sigmoid_loss, logit_bias=scale(-100.0)) if name == "sigmoid" else LOSSES[name]
    assert loss_fn(rows, rows, scale(200.0)) < 1e-12


@pytest.mark.parametrize("name", ["nce", "symmetric_softmax"])
def test_a_batch_of_one_clip_alone_has_no_negatives_and_costs_nothing(name):
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert LOSSES[name](unit_rows(4), unit_rows(4, seed=1), scale(), everything).abs() < 1e-12


def test_multi_positive_is_nce_without_further_positives():
    a, b = unit_rows(6), unit_rows(6, seed=1)
    torch.testing.assert_close(multi_positive_nce_loss(a, b, scale()), nce_loss(a, b, scale()))


def test_symmetric_softmax_is_the_mean_of_two_cross_entropies():
    a, b = unit_rows(6), unit_rows(6, seed=1)
    logits, labels = 10 * a @ b.T, torch.arange(6)
    expected = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(symmetric_softmax_loss(a, b, scale()), expected)


# Oracles


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_equals_the_double_loop(name, masked):
    a, b, mask = unit_rows(7), unit_rows(7, seed=1), positive_mask(ids_with_repeats())
    options = {"logit_bias": scale(-2.0)} if name == "sigmoid" else {}
    value = LOSSES[name](a, b, scale(), mask if masked else None, **options)
    expected = loop_loss(name, a, b, 10.0, mask if masked else torch.eye(7).bool(), -2.0 if options else 0.0)
    torch.testing.assert_close(value, scale(expected))


def test_the_positive_mask_equals_the_double_loop():
    generator = torch.Generator().manual_seed(2)
    for columns in (1, 2, 3, 4):
        ids = torch.randint(12, (9, columns), generator=generator)
        mask = positive_mask(ids)
        for i, (clip, *captions) in enumerate(ids.tolist()):
            for j, (other, *others) in enumerate(ids.tolist()):
                assert mask[i, j] == (clip == other or not set(captions).isdisjoint(others)), (columns, i, j)
        assert mask.diagonal().all() and torch.equal(mask, mask.T)
        assert columns < 3 or 9 < mask.sum() < 81


def test_a_clips_id_is_no_caption():
    assert torch.equal(positive_mask(torch.tensor([[1, 2], [2, 1]])), torch.eye(2, dtype=torch.bool))


def test_a_caption_is_found_in_the_other_language_of_a_pair():
    """ "taxi" of (en, de) in one row, of (fr, cs) in another: neither is the other's negative."""
    ids = torch.tensor([[1, 10, 11], [2, 12, 10], [3, 13, 14]])
    assert positive_mask(ids).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]


# Properties


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_rows_does_not_change_the_loss(name):
    a, b, mask = unit_rows(7), unit_rows(7, seed=1), positive_mask(ids_with_repeats())
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    moved = LOSSES[name](a[order], b[order], scale(), mask[order][:, order])
    torch.testing.assert_close(moved, LOSSES[name](a, b, scale(), mask))


@pytest.mark.parametrize("name", ["nce", "symmetric_softmax", "sigmoid"])
def test_exchanging_the_two_sides_does_not_change_the_loss(name):
    a, b, mask = unit_rows(7), unit_rows(7, seed=1), positive_mask(ids_with_repeats())
    torch.testing.assert_close(LOSSES[name](b, a, scale(), mask), LOSSES[name](a, b, scale(), mask))


@pytest.mark.parametrize("name", NAMES)
def test_the_diagonal_of_a_mask_need_not_be_set(name):
    a, b, mask = unit_rows(7), unit_rows(7, seed=1), positive_mask(ids_with_repeats())
    bare = mask & ~torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(LOSSES[name](a, b, scale(), bare), LOSSES[name](a, b, scale(), mask))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_negative_and_no_masked_positive(name):
    mask = positive_mask(ids_with_repeats())
    # With a = I, row i of b's gradient holds the gradient of every logit in column i.
    b = unit_rows(7, width=7, seed=1).requires_grad_()
    LOSSES[name](torch.eye(7, dtype=torch.float64), b, scale(1.0), mask).backward()
    logit_grad = b.grad.T  # (N, N): row i, column j
    diagonal = torch.eye(7, dtype=torch.bool)
    assert (logit_grad[~mask] > 0).all(), "a negative is pushed away"
    assert (logit_grad[diagonal] < 0).all(), "a pair is pulled together"
    others = logit_grad[mask & ~diagonal]
    assert (others < 0).all() if name == "multi_positive" else (others == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name, masked):
    a, b = unit_rows(7).requires_grad_(), unit_rows(7, seed=1).requires_grad_()
    log_scale = scale(1.0).requires_grad_()
    bias = scale(-1.0).requires_grad_()
    mask = positive_mask(ids_with_repeats()) if masked else None

    def loss(a, b, log_scale, bias):
        options = {"logit_bias": bias} if name == "sigmoid" else {}
        return LOSSES[name](a, b, log_scale.exp(), mask, **options)

    assert torch.autograd.gradcheck(loss, (a, b, log_scale, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_embeddings_are_accumulated_in_float32(name, dtype):
    a, b = unit_rows(64, 32).to(dtype), unit_rows(64, 32, seed=1).to(dtype)
    value = LOSSES[name](a, b, scale(20.0, torch.float32))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), LOSSES[name](a.double(), b.double(), scale(20.0)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_the_logits(name):
    a, b = unit_rows(16, 32, dtype=torch.float32), unit_rows(16, 32, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name](a, b, scale(20.0, torch.float32))
    assert torch.equal(inside, LOSSES[name](a, b, scale(20.0, torch.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_a_very_low_temperature_stays_finite(name):
    a, b = unit_rows(8, dtype=torch.float32).requires_grad_(), unit_rows(8, seed=1, dtype=torch.float32)
    loss = LOSSES[name](a, b, scale(1e4, torch.float32))
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()


# Errors


def test_embeddings_of_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"a has shape \(3, 6\) and b \(4, 6\)"):
        nce_loss(unit_rows(3), unit_rows(4), scale())


def test_a_mask_that_is_not_bool_or_not_square_is_refused():
    with pytest.raises(ValueError, match="give bool of shape"):
        nce_loss(unit_rows(3), unit_rows(3), scale(), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        nce_loss(unit_rows(3), unit_rows(3), scale(), torch.ones(2, 3, dtype=torch.bool))


def test_positive_ids_of_one_dimension_are_refused():
    with pytest.raises(ValueError, match=r"give \(N, K\)"):
        positive_mask(torch.arange(3))


# Objectives


def every_embedding():
    names = ["text_embeds", "video_embeds", "paired_text_embeds"]
    names += [f"noised_{name}" for name in names]
    names += ["conditional_text_embeds", "conditional_paired_text_embeds"]
    return {name: unit_rows(7, seed=seed) for seed, name in enumerate(names)}


def test_objectives_sum_the_paper_s_terms():
    e, mask = every_embedding(), positive_mask(ids_with_repeats())
    out = objectives(e, scale(), mask, nce_loss)

    def loss(a, b):
        return nce_loss(e[a], e[b], scale(), mask)

    inter = loss("text_embeds", "video_embeds") + loss("paired_text_embeds", "video_embeds")
    intra = loss("text_embeds", "noised_text_embeds") + loss("video_embeds", "noised_video_embeds")
    intra = intra + loss("paired_text_embeds", "noised_paired_text_embeds")
    cross = loss("conditional_text_embeds", "conditional_paired_text_embeds")
    assert sorted(out) == ["cross", "inter", "intra", "loss"]
    torch.testing.assert_close(out["inter"], inter)
    torch.testing.assert_close(out["intra"], intra)
    torch.testing.assert_close(out["cross"], cross)
    torch.testing.assert_close(out["loss"], inter + intra + cross)


def test_objectives_leave_out_what_the_batch_lacks():
    e = every_embedding()
    out = objectives({k: e[k] for k in ("text_embeds", "video_embeds")}, scale(), None, nce_loss)
    assert sorted(out) == ["inter", "loss"]
    out = objectives({k: e[k] for k in ("text_embeds", "video_embeds", "noised_text_embeds")}, scale(), None, nce_loss)
    torch.testing.assert_close(out["intra"], nce_loss(e["text_embeds"], e["noised_text_embeds"], scale()))


def test_a_batch_without_clips_aligns_the_two_languages():
    e = every_embedding()
    text = {k: v for k, v in e.items() if k in ("text_embeds", "paired_text_embeds", "noised_text_embeds")}
    out = objectives(text, scale(), None, symmetric_softmax_loss)
    assert sorted(out) == ["intra", "loss", "text"]
    expected = symmetric_softmax_loss(e["text_embeds"], e["paired_text_embeds"], scale())
    torch.testing.assert_close(out["text"], expected)


def several_languages(k, n=7):
    """Embeddings of k captions a clip, noised copies and conditional ones, and ids: a word of several languages."""
    names = [f"{caption}text_embeds" for caption in CAPTIONS[:k]]
    names = ["video_embeds", *names, *(f"conditional_{name}" for name in names)]
    embeds = {name: unit_rows(n, seed=seed) for seed, name in enumerate(names)}
    ids = torch.arange(n * (k + 1)).view(n, k + 1)
    ids[4, 0] = ids[1, 0]  # two rows of a clip
    ids[5, 1] = ids[2, k]  # one's first caption is another's last
    return embeds, ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_k_captions_of_a_clip_equal_the_loop_over_captions(name, k):
    """No other clip's caption is a negative where the clip is one's own, or any caption of the two clips is equal."""
    embeds, ids = several_languages(k)
    n, bias = len(ids), -2.0 if name == "sigmoid" else 0.0
    positives = [
        [
            i == j
            or int(ids[i, 0]) == int(ids[j, 0])
            or bool({int(x) for x in ids[i, 1:]} & {int(x) for x in ids[j, 1:]})
            for j in range(n)
        ]
        for i in range(n)
    ]
    assert sum(map(sum, positives)) == n + 4
    loss_fn = partial(sigmoid_loss, logit_bias=scale(bias)) if name == "sigmoid" else LOSSES[name]
    out = objectives(embeds, scale(), positive_mask(ids), loss_fn, {"text": 0.5, "cross": 2.0})

    def loop(a, b):
        return loop_loss(name, embeds[a], embeds[b], 10.0, positives, bias)

    texts = [f"{caption}text_embeds" for caption in CAPTIONS[:k]]
    wanted = {"inter": sum(loop(text, "video_embeds") for text in texts)}
    if k > 1:
        wanted["cross"] = sum(loop(f"conditional_{a}", f"conditional_{b}") for a, b in combinations(texts, 2))
        wanted["text"] = sum(loop(a, b) for a, b in combinations(texts, 2))
    wanted["loss"] = wanted["inter"] + 2 * wanted.get("cross", 0) + 0.5 * wanted.get("text", 0)
    assert out.keys() == wanted.keys()
    for objective, value in wanted.items():
        torch.testing.assert_close(out[objective], scale(value), msg=lambda text, of=objective: f"{of}: {text}")


def test_text_stands_beside_clips_only_where_it_has_a_weight():
    embeds, ids = several_languages(3)
    assert "text" not in objectives(embeds, scale(), positive_mask(ids), nce_loss)
    assert "text" in objectives(embeds, scale(), positive_mask(ids), nce_loss, {"text": 0.1})
    alone = {name: value for name, value in embeds.items() if name in ("text_embeds", "paired_text_embeds")}
    assert "text" in objectives(alone, scale(), None, nce_loss)


def test_weights_scale_the_sum_alone_and_zero_skips_the_objective():
    e = every_embedding()
    plain = objectives(e, scale(), None, nce_loss)
    weighted = objectives(e, scale(), None, nce_loss, {"intra": 0.5, "cross": 0})
    assert sorted(weighted) == ["inter", "intra", "loss"]
    torch.testing.assert_close(weighted["intra"], plain["intra"])
    torch.testing.assert_close(weighted["loss"], plain["inter"] + 0.5 * plain["intra"])


def test_an_unknown_objective_and_an_empty_batch_are_refused():
    with pytest.raises(ValueError, match="'inner'; use some of inter, intra, cross, text"):
        objectives(every_embedding(), scale(), None, nce_loss, {"inner": 1.0})
    with pytest.raises(ValueError, match="no objective can be computed"):
        objectives({"text_embeds": unit_rows(3)}, scale(), None, nce_loss)
