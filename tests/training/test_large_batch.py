"""Chunked encoding against the plain step, and the ways to encode less. `test_distributed.py` has the processes."""

import copy
import math
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from modeling_mmt.training.large_batch import gather_embeddings, gather_ids, two_pass_backward
from modeling_mmt.training.micro_batches import COST, restore_order, token_budget_batches, unique_rows
from modeling_mmt.training.streaming_loss import contrastive_loss

N = 10


class Towers(nn.Module):
    """Two towers with dropout and a temperature."""

    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, 8)).double()
        self.video = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, 8)).double()
        self.logit_scale = nn.Parameter(torch.tensor(2.3, dtype=torch.float64))

    def forward(self, texts=None, videos=None):
        out = {"logit_scale": self.logit_scale.exp()}
        if texts is not None:
            out["text_embeds"] = functional.normalize(self.text(texts), dim=1)
        if videos is not None:
            out["video_embeds"] = functional.normalize(self.video(videos), dim=1)
        return out


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Towers()


def rows():
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(N, 6, **draw), torch.randn(N, 5, **draw)


def pairs(sizes):
    texts, videos = rows()
    return [{"texts": t, "videos": v} for t, v in zip(texts.split(sizes), videos.split(sizes), strict=True)]


def loss_fn(embeds):
    return contrastive_loss("nce", embeds["text_embeds"], embeds["video_embeds"], embeds["logit_scale"])


def plain_step(model, chunks, loss_fn=loss_fn):
    """Encode the chunks one after the other, keep every graph, differentiate once."""
    outputs = [model(**chunk) for chunk in chunks]
    embeds = {"logit_scale": outputs[0]["logit_scale"]}
    for name in ("text_embeds", "video_embeds"):
        embeds[name] = torch.cat([output[name] for output in outputs if name in output])
    loss = loss_fn(embeds)
    loss.backward()
    return loss.detach()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1] * 10, [3, 7]])
def test_two_passes_equal_the_plain_step_with_dropout_on(model, sizes):
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    expected = plain_step(plain, pairs(sizes))
    drawn_after = torch.rand(3)
    torch.manual_seed(7)
    loss = two_pass_backward(lambda chunk: model(**chunk), pairs(sizes), loss_fn)
    assert torch.equal(torch.rand(3), drawn_after), "the next step draws what it would have drawn"
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert not loss.requires_grad


def saved_bytes(model, chunk):
    """What autograd saves for a chunk, counted by hand: three storages of each layer's width in float64."""
    seen = {}

    def pack(tensor):
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**chunk)
    return sum(seen.values())


@pytest.mark.parametrize(
    ("chunks_worth", "encoded"), [(0, 8), (1.5, 8), (2, 7), (3.1, 6), (3.9, 6), (4, 4), (None, 4)]
)
def test_what_fits_the_memory_budget_is_encoded_once_and_gradients_stay_the_same(model, chunks_worth, encoded):
    """Four chunks of like size: kept are those that leave room for the one at work, or all four."""
    chunks = pairs([3, 3, 2, 2])[:1] * 4
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    expected = plain_step(plain, chunks)
    drawn_after = torch.rand(3)
    budget = None if chunks_worth is None else int(chunks_worth * saved_bytes(model, chunks[0]))
    calls = []
    torch.manual_seed(7)
    loss = two_pass_backward(lambda c: calls.append(c) or model(**c), chunks, loss_fn, memory_budget=budget)
    assert len(calls) == encoded
    assert torch.equal(torch.rand(3), drawn_after)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_captions_and_clips_may_come_in_chunks_of_their_own(model):
    texts, videos = rows()
    chunks = [*({"texts": t} for t in texts.split(3)), *({"videos": v} for v in videos.split(6))]
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    expected = plain_step(plain, chunks)
    torch.manual_seed(7)
    torch.testing.assert_close(two_pass_backward(lambda chunk: model(**chunk), chunks, loss_fn), expected)
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_gradients_add_to_those_already_there(model):
    two_pass_backward(lambda chunk: model.eval()(**chunk), pairs([5, 5]), loss_fn)
    once = {name: grad.clone() for name, grad in gradients(model).items()}
    two_pass_backward(lambda chunk: model(**chunk), pairs([5, 5]), loss_fn)
    torch.testing.assert_close(gradients(model), {name: 2 * grad for name, grad in once.items()})


def test_a_frozen_tower_gets_no_gradient_and_changes_no_other(model):
    model.eval()
    expected = copy.deepcopy(model)
    plain_step(expected, pairs([10]))
    model.text.requires_grad_(False)
    two_pass_backward(lambda chunk: model(**chunk), pairs([4, 6]), loss_fn)
    assert all(parameter.grad is None for parameter in model.text.parameters())
    torch.testing.assert_close(gradients(model.video), gradients(expected.video))


def test_the_loss_may_be_scaled_by_whoever_differentiates_it(model):
    plain = copy.deepcopy(model.eval())
    plain_step(plain, pairs([10]))
    loss = two_pass_backward(
        lambda chunk: model(**chunk), pairs([4, 6]), loss_fn, backward=lambda loss: (8 * loss).backward()
    )
    torch.testing.assert_close(loss, loss_fn(model(*rows())).detach())
    torch.testing.assert_close(gradients(model), {name: 8 * grad for name, grad in gradients(plain).items()})


def test_only_the_last_chunk_runs_outside_no_sync(model):
    log = []

    @contextmanager
    def no_sync():
        log.append("enter")
        yield
        log.append("leave")

    def encode(chunk):
        log.append("grad" if torch.is_grad_enabled() else "no grad")
        return model(**chunk)

    two_pass_backward(encode, pairs([5, 3, 2]), loss_fn, no_sync=no_sync)
    first = ["enter", "no grad", "leave"] * 3
    assert log == [*first, "enter", "leave", "enter", "grad", "leave", "enter", "grad", "leave", "grad"]


def test_autocast_around_both_passes_loses_no_gradient():
    torch.manual_seed(0)
    model, plain = (copy.deepcopy(Towers().float()) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    chunks = [{name: tensor.float() for name, tensor in chunk.items()} for chunk in pairs([5, 5])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_step(plain.eval(), chunks)
        two_pass_backward(lambda chunk: model.eval()(**chunk), chunks, loss_fn)
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=0.05, atol=1e-3)


def test_no_chunks_are_refused(model):
    with pytest.raises(ValueError, match="chunks is empty"):
        two_pass_backward(lambda chunk: model(**chunk), [], loss_fn)


# Without waste


def test_micro_batches_stay_within_the_budget_and_hold_each_row_once():
    lengths = torch.randint(1, 40, (101,), generator=torch.Generator().manual_seed(0))
    batches = token_budget_batches(lengths, budget=128)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(101))
    padded = [len(batch) * int(lengths[batch].max()) for batch in batches]
    assert max(padded) <= 128
    # less than a tenth of what is encoded is padding; in the order given it would be half
    assert sum(padded) < 1.1 * lengths.sum()


def test_no_other_cuts_cost_less_in_padding_and_micro_batches():
    """Against all cuts between distinct lengths."""
    generator = torch.Generator().manual_seed(0)
    for budget in (64, 512, 4096):
        lengths = torch.randint(1, 9, (60,), generator=generator) ** 2
        found = token_budget_batches(lengths, budget)
        cost = sum(len(rows) * int(lengths[rows].max()) + budget * COST for rows in found)
        distinct, counts = lengths.unique(return_counts=True)
        expected = []
        for ends in product([False, True], repeat=len(distinct) - 1):
            total, rows = 0.0, 0
            for length, count, is_end in zip(distinct.tolist(), counts.tolist(), [*ends, True], strict=True):
                rows += count
                if is_end:
                    total += rows * length + math.ceil(rows / max(1, budget // length)) * budget * COST
                    rows = 0
            expected.append(total)
        assert cost <= min(expected)  # cut further by the budget, a micro-batch may have a shorter longest row
        assert budget < 4096 or cost == min(expected)


def test_micro_batches_go_from_large_to_small_and_keep_the_order_of_equals():
    batches = token_budget_batches(torch.tensor([2, 9, 2, 4, 4]), budget=8)
    assert [batch.tolist() for batch in batches] == [[1], [3, 4], [0, 2]]
    batches = token_budget_batches(torch.tensor([1, 9, 1] + [2] * 8), budget=16)
    assert [batch.tolist() for batch in batches] == [[*range(3, 11)], [1], [0, 2]]


def test_a_row_beyond_the_budget_stands_alone_and_no_row_is_no_batch():
    assert [batch.tolist() for batch in token_budget_batches(torch.tensor([5, 50, 6]), 10)] == [[1], [2], [0]]
    assert token_budget_batches(torch.tensor([], dtype=torch.int64), 10) == []
    assert [batch.tolist() for batch in token_budget_batches(torch.tensor([0, 0]), 10)] == [[0, 1]]


def test_restore_order_undoes_the_sorting():
    values = torch.randn(23, generator=torch.Generator().manual_seed(0))
    batches = token_budget_batches(torch.arange(23) % 7 + 1, budget=12)
    assert torch.equal(torch.cat([values[batch] for batch in batches])[restore_order(batches)], values)


def test_a_budget_or_lengths_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="budget is 0"):
        token_budget_batches(torch.ones(3), 0)
    with pytest.raises(ValueError, match=r"lengths has shape \(3, 1\)"):
        token_budget_batches(torch.ones(3, 1), 10)


def test_distinct_rows_come_in_order_of_appearance():
    first, inverse = unique_rows(torch.tensor([7, 3, 7, 1, 3]))
    assert first.tolist() == [0, 1, 3]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def test_rows_are_equal_only_if_they_are_so_in_every_key():
    tokens = torch.tensor([[1, 2], [1, 2], [1, 2], [3, 2]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    first, inverse = unique_rows(tokens, mask)
    assert first.tolist() == [0, 1, 3]
    assert inverse.tolist() == [0, 1, 0, 2]


def test_encoding_each_distinct_row_once_has_the_gradient_of_encoding_all(model):
    model.eval()
    texts, videos = rows()
    clips = torch.tensor([4, 4, 0, 1, 4, 1, 2, 3, 5, 0])
    videos = videos[clips]
    plain = copy.deepcopy(model)
    plain_step(plain, [{"texts": texts, "videos": videos}])
    first, inverse = unique_rows(clips)
    assert len(first) == 6

    def handed_out(embeds):
        return loss_fn({**embeds, "video_embeds": embeds["video_embeds"][inverse]})

    two_pass_backward(lambda chunk: model(**chunk), [{"texts": texts}, {"videos": videos[first]}], handed_out)
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_keys_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"keys have \[3, 2\] rows"):
        unique_rows(torch.arange(3), torch.arange(2))


# One process


def test_one_process_gathers_by_doing_nothing():
    embeds, ids = torch.randn(3, 2, requires_grad=True), torch.arange(3)
    assert gather_embeddings(embeds) is embeds
    assert gather_ids(ids) is ids
    with pytest.raises(ValueError, match="no rows"):
        gather_embeddings(torch.tensor(1.0))
