"""The streaming loss against the dense equations, which `test_loss_mmt.py` holds against double loops."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_mmt.loss_mmt import LOSSES, positive_mask
from modeling_mmt.training import streaming_loss as streaming_module
from modeling_mmt.training.streaming_loss import contrastive_loss, streaming_loss

NAMES = sorted(LOSSES)
N, P = 37, 8


def batch(name, dtype=torch.float64, logit_scale=10.0, n=N, norm=True):
    """Two sides, the scale, and for the sigmoid a bias; all of them leaves."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, n, P, generator=generator, dtype=torch.float64)
    if norm:
        sides = functional.normalize(sides, dim=-1)
    scalar = torch.promote_types(dtype, torch.float32)
    inputs = [side.to(dtype).requires_grad_() for side in sides]
    inputs.append(torch.tensor(logit_scale, dtype=scalar, requires_grad=True))
    if name == "sigmoid":
        inputs.append(torch.tensor(-3.0, dtype=scalar, requires_grad=True))
    return inputs


def ids_with_repeats(n=N):
    """A clip id with two or three rows each, a caption hash with some repeats, a column without any."""
    generator = torch.Generator().manual_seed(1)
    clips, captions = torch.randint(n // 2, (n,), generator=generator), torch.randint(n, (n,), generator=generator)
    ids = torch.stack([clips, captions, torch.arange(n, 2 * n)], dim=1)
    assert positive_mask(ids).sum() > 2 * n
    return ids


def ids_across_columns(n=N):
    """No id comes twice in a column: captions of one language are captions of another row in the other."""
    ids = torch.stack([torch.arange(n), torch.arange(n), torch.arange(n).roll(5)], dim=1)
    ids[::3, 2] += n
    assert n < positive_mask(ids).sum() < 3 * n
    return ids


def with_gradients(loss, inputs):
    return [loss.detach(), *torch.autograd.grad(3 * loss, inputs)]


def streaming(name, inputs, positive_ids=None, **options):
    a, b, logit_scale, *bias = inputs
    loss = streaming_loss(name, a, b, logit_scale, positive_ids, *bias, **options)
    return with_gradients(loss, inputs)


def dense(name, inputs, positive_ids=None):
    a, b, logit_scale, *bias = inputs
    mask = None if positive_ids is None else positive_mask(positive_ids)
    return with_gradients(LOSSES[name](a, b, logit_scale, mask, *bias), inputs)


@pytest.mark.parametrize("block_size", [5, 16, 36, 37, 100])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_equal_the_dense_loss_for_any_block_size(name, masked, block_size):
    ids = ids_with_repeats() if masked else None
    inputs = batch(name)
    torch.testing.assert_close(streaming(name, inputs, ids, block_size=block_size), dense(name, inputs, ids))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name, masked):
    ids = ids_with_repeats(7) if masked else None
    inputs = batch(name, n=7, logit_scale=3.0)

    def loss(a, b, logit_scale, *bias):
        return streaming_loss(name, a, b, logit_scale, ids, *bias, block_size=4)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("logit_scale", [1e-3, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_at_every_temperature(name, logit_scale):
    inputs = batch(name, torch.float32, logit_scale)
    ours = streaming(name, inputs, ids_with_repeats(), block_size=16)
    theirs = dense(name, batch(name, torch.float64, logit_scale), ids_with_repeats())
    for value, expected in zip(ours, theirs, strict=True):
        assert value.isfinite().all()
        error = (value.double() - expected).norm() / expected.norm()
        # a logit of 1e4 is rounded to 1e-3, before its exponential
        assert error < 1e-5 * max(1.0, logit_scale / 100)


@pytest.mark.parametrize("block_size", [5, 37])
@pytest.mark.parametrize("name", NAMES)
def test_captions_are_compared_across_languages(name, block_size):
    inputs, ids = batch(name, torch.float64), ids_across_columns()
    found = streaming(name, inputs, ids, block_size=block_size)
    torch.testing.assert_close(found, dense(name, inputs, ids))
    assert (found[0] - dense(name, inputs)[0]).abs() > 1e-3


@pytest.mark.parametrize("block_size", [5, 37])
@pytest.mark.parametrize("name", NAMES)
def test_nine_captions_of_a_clip_are_compared_each_with_each(name, block_size):
    """Words that languages share: any caption of a clip may be any caption of another."""
    inputs, ids = batch(name), torch.arange(10 * N).view(N, 10)
    generator = torch.Generator().manual_seed(3)
    for row, other, k, m in torch.randint(1, 10, (20, 4), generator=generator).tolist():
        ids[row, k] = ids[other + 20, m]
    assert N + 20 < positive_mask(ids).sum() <= N + 40
    found = streaming(name, inputs, ids, block_size=block_size)
    torch.testing.assert_close(found, dense(name, inputs, ids))
    assert (found[0] - dense(name, inputs)[0]).abs() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_rows_need_not_have_unit_norm(name):
    inputs = batch(name, torch.float32, logit_scale=50.0, norm=False)
    expected = dense(name, inputs, ids_with_repeats())
    actual = streaming(name, inputs, ids_with_repeats(), block_size=16)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_inputs_are_accumulated_in_float32(name, masked):
    ids = ids_with_repeats() if masked else None
    inputs = batch(name, torch.bfloat16)
    actual = streaming(name, inputs, ids, block_size=16)
    in_float32 = [x.detach().float().requires_grad_() for x in inputs]
    expected = dense(name, in_float32, ids)
    assert [x.dtype for x in actual] == [torch.float32] + [x.dtype for x in inputs]
    assert actual[0] == pytest.approx(expected[0].item(), rel=1e-6)
    for value, reference in zip(actual[1:], expected[1:], strict=True):
        # one rounding to bfloat16, of the result: half a unit in the last of 8 bits
        torch.testing.assert_close(value.float(), reference, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_the_logits(name):
    inputs = batch(name, torch.float32)
    expected = streaming(name, inputs, block_size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(streaming(name, inputs, block_size=16), expected, rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_is_larger_than_a_tile_or_the_gradients(name, masked):
    n, block_size = 500, 64
    inputs, ids = batch(name, n=n), ids_with_repeats(n) if masked else None
    with LargestTensor() as largest:
        streaming(name, inputs, ids, block_size=block_size)
    assert 0 < largest.elements <= max(block_size**2, n * P)


@pytest.mark.parametrize("memory_budget", [2_000, 10**4, 10**9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_memory_budget_does_not_change_the_result(name, masked, memory_budget):
    ids = ids_with_repeats() if masked else None
    a, b, logit_scale, *bias = inputs = batch(name)
    loss = contrastive_loss(name, a, b, logit_scale, ids, *bias, memory_budget=memory_budget)
    torch.testing.assert_close(with_gradients(loss, inputs), dense(name, inputs, ids))


def test_the_memory_budget_chooses_between_dense_and_streaming(monkeypatch):
    calls = []
    monkeypatch.setattr(streaming_module, "streaming_loss", lambda *args, **options: calls.append(options))
    a, b, logit_scale = batch("nce", torch.float32)
    dense_bytes = 11 * 4 * N * N
    contrastive_loss("nce", a, b, logit_scale, memory_budget=dense_bytes)
    assert not calls
    contrastive_loss("nce", a, b, logit_scale, memory_budget=dense_bytes - 1)
    assert calls == [{"memory_budget": dense_bytes - 1, "group": None}]


def test_equal_rows_give_the_closed_form():
    same = torch.ones(5, 1, dtype=torch.float64)
    loss = streaming_loss("nce", same, same, torch.tensor(10.0, dtype=torch.float64), block_size=2)
    assert loss.item() == pytest.approx(math.log(1 + 2 * 4))


def test_ids_without_a_repeat_cost_no_mask(monkeypatch):
    seen = []
    original = streaming_module.Tiles.further_positives

    def spy(self, rows, columns):
        seen.append(original(self, rows, columns))
        return seen[-1]

    monkeypatch.setattr(streaming_module.Tiles, "further_positives", spy)
    streaming("nce", batch("nce"), torch.arange(2 * N).view(N, 2), block_size=16)
    assert seen and all(mask is None for mask in seen)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(frozen):
    inputs = batch("nce")
    expected = dense("nce", inputs)[1:]
    inputs[frozen].requires_grad_(False)
    learned = [i for i in range(3) if i != frozen]
    a, b, logit_scale = inputs
    gradients = torch.autograd.grad(
        3 * streaming_loss("nce", a, b, logit_scale, block_size=16), [inputs[i] for i in learned]
    )
    torch.testing.assert_close(list(gradients), [expected[i] for i in learned])


@pytest.mark.parametrize("name", NAMES)
def test_a_tile_may_be_a_single_logit(name):
    inputs, ids = batch(name, n=9), ids_with_repeats(9)
    torch.testing.assert_close(streaming(name, inputs, ids, block_size=1), dense(name, inputs, ids))


def test_a_compiled_caller_gets_the_same_gradients():
    inputs, ids = batch("nce"), ids_with_repeats()

    def loss(a, b, logit_scale):
        return streaming_loss("nce", 2 * a, b, logit_scale, ids, block_size=16)

    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled(*inputs), inputs), with_gradients(loss(*inputs), inputs))


def test_a_second_derivative_is_refused_rather_than_wrong():
    a, b, logit_scale = batch("nce")
    loss = streaming_loss("nce", a, b, logit_scale, block_size=16)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, a, create_graph=True)


def test_a_non_finite_embedding_gives_a_non_finite_loss():
    a, b, logit_scale = batch("nce")
    with torch.no_grad():
        a[3, 2] = torch.nan
    assert streaming_loss("nce", a, b, logit_scale, block_size=16).isnan()


def test_wrong_arguments_are_refused_by_name():
    a, b, logit_scale = batch("nce")
    with pytest.raises(ValueError, match="loss name is 'triplet'; use one of nce, multi_positive"):
        streaming_loss("triplet", a, b, logit_scale)
    with pytest.raises(ValueError, match=r"a has shape \(37, 8\) and b \(36, 8\)"):
        contrastive_loss("nce", a, b[1:], logit_scale)
    with pytest.raises(ValueError, match=r"positive_ids has shape \(37,\); give \(37, K\)"):
        contrastive_loss("nce", a, b, logit_scale, torch.arange(N))
    with pytest.raises(ValueError, match="only 'sigmoid' has one"):
        contrastive_loss("nce", a, b, logit_scale, logit_bias=logit_scale)
    with pytest.raises(ValueError, match="block_size is 0"):
        streaming_loss("nce", a, b, logit_scale, block_size=0)
