"""A batch cut into micro-batches: every distinct row once, exact embeddings and gradients, dropout on."""

import copy

import pytest
import torch

from modeling_mmt.data.collator import MMTDataCollator
from modeling_mmt.training.large_batch import _SavedBytes, two_pass_backward
from modeling_mmt.training.micro_batches import micro_batches
from modeling_mmt.training.streaming_loss import contrastive_loss

KINDS = {
    "one language": {"languages": ["en"]},
    "two languages and clips": {"languages": ["en", "de"], "languages_per_clip": 2},
    "two languages": {"languages": ["en", "de"], "languages_per_clip": 2, "with_video": False},
    "four languages and clips": {"languages": ["en", "de", "fr", "sw"], "languages_per_clip": 4},
    "four languages": {"languages": ["en", "de", "fr", "sw"], "languages_per_clip": 4, "with_video": False},
    "keywords": {"text_column": "keywords", "max_keywords": 3, "languages": ["en", "de"], "languages_per_clip": 2},
    "one language, no noise": {"languages": ["de"], "noise_probability": 0.0},
}


def saved_bytes(model, chunk):
    """What autograd saves for a chunk."""
    counter = _SavedBytes()
    with counter, torch.random.fork_rng():
        model.embed(chunk)
    return counter.total


@pytest.fixture
def make_collated(make_processor, make_rows):
    def make(kind, repeats=1, **options):
        collate = MMTDataCollator(make_processor(**options), **{"noise_probability": 0.3} | KINDS[kind])
        rows = [row | {"draw": (0, 0, number)} for number, row in enumerate(make_rows(6))]
        for row in rows:
            row["caption_fr"], row["caption_sw"] = "fast dog home", [text[::-1] for text in row["caption_en"]]
        return collate(rows * repeats)

    return make


@pytest.mark.parametrize("max_tokens", [None, 40, 12, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_in_micro_batches_is_what_the_whole_batch_gives(make_model, make_collated, kind, max_tokens):
    model, batch = make_model(), make_collated(kind, repeats=2)
    with torch.no_grad():
        wanted = model.embed(batch)
        cut = micro_batches(batch, max_tokens)
        parts = [model.embed(chunk) for chunk in cut.chunks]
        found = cut.restore({name: torch.cat([p[name] for p in parts if name in p]) for name in parts[-1]})
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted)
    assert len(cut.chunks) > 1 or max_tokens in (None, 40)


@pytest.mark.parametrize("max_tokens", [None, 40, 12, 1])
def test_captions_that_are_padded_on_the_left_lose_no_token(
    make_model, make_text_config, make_collated, make_tokenizer, max_tokens
):
    batch = make_collated("keywords", 2, tokenizer=make_tokenizer(padding_side="left"), clean_text=False)
    assert any(batch[name][:, 0].min() == 0 for name in batch if name.endswith("attention_mask"))
    model = make_model(
        make_text_config("xlm-roberta"), pooling="mean"
    )  # whose positions are counted from the first real token
    with torch.no_grad():
        wanted = model.embed(make_collated("keywords", 2))
        cut = micro_batches(batch, max_tokens)
        parts = [model.embed(chunk) for chunk in cut.chunks]
        found = cut.restore({name: torch.cat([p[name] for p in parts if name in p]) for name in parts[-1]})
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("max_tokens", [None, 12])
@pytest.mark.parametrize("kind", ["two languages and clips", "four languages and clips"])
def test_a_clip_is_encoded_once_for_all_of_its_captions_where_nothing_is_conditional(
    make_model, make_collated, kind, max_tokens
):
    model, batch = make_model(cross_weight=0.0), make_collated(kind, repeats=2)
    cut = micro_batches(batch, max_tokens, conditional=False)
    with torch.no_grad():
        wanted = model.embed(batch)
        parts = [model.embed(chunk) for chunk in cut.chunks]
        found = cut.restore({name: torch.cat([p[name] for p in parts if name in p]) for name in parts[-1]})
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted)
    rows = sum(len(chunk["video_mask"]) for chunk in cut.chunks if "video_mask" in chunk)
    assert rows == 6 + 12  # six clips that come twice, and each row's noised copy


def test_each_distinct_caption_and_clip_of_a_view_is_encoded_once(make_collated):
    once, thrice = (micro_batches(make_collated("one language", repeats), None) for repeats in (1, 3))
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(thrice.chunks[0][name], once.chunks[0][name])
    assert len(once.chunks[0]["video_features"]) == 12  # six clips, and each's noised copy
    assert len(thrice.chunks[0]["video_features"]) == 6 + 18  # a noised copy's noise is its row's own
    assert len(once.orders["text"]) * 3 == len(thrice.orders["text"]) == 36


def test_rows_of_one_clip_with_other_features_are_each_encoded(make_collated):
    """As other spans of one video, or frames that were augmented twice."""
    batch = make_collated("one language, no noise", repeats=2)
    batch["video_features"][6:9] += 1.0
    cut = micro_batches(batch)
    found = cut.restore({"video_embeds": cut.chunks[0]["video_features"].sum(dim=1)})["video_embeds"]
    torch.testing.assert_close(found, batch["video_features"].sum(dim=1))
    assert len(cut.chunks[0]["video_features"]) == 6 + 3


def test_a_noised_copy_is_never_encoded_with_its_original(make_collated):
    """They may be equal by chance, and dropout must still tell them apart."""
    batch = make_collated("one language")
    batch["noised_input_ids"] = batch["input_ids"].clone()
    cut = micro_batches(batch)
    text, noised = cut.orders["text"].chunk(2)
    assert not set(text.tolist()) & set(noised.tolist())


@pytest.mark.parametrize("max_tokens", [40, 12])
def test_micro_batches_hold_no_more_tokens_and_steps_than_allowed(make_collated, max_tokens):
    chunks = micro_batches(make_collated("one language", repeats=2), max_tokens).chunks
    for chunk in chunks:
        for name in ("attention_mask", "video_mask"):
            if name in chunk:
                assert chunk[name].numel() <= max_tokens
                assert chunk[name].any(dim=0).all()  # cut to the longest
    assert {"input_ids", "video_features"} <= chunks[-1].keys()


@pytest.mark.parametrize("at_least", [2, 5])
def test_as_many_micro_batches_as_another_process_has(make_collated, at_least):
    chunks = micro_batches(make_collated("one language"), None, at_least).chunks
    assert len(chunks) == at_least
    assert all({"input_ids", "video_features"} <= chunk.keys() for chunk in chunks)


@pytest.mark.parametrize("chunks_worth", [None, 0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_have_the_plain_steps_gradients_with_dropout_on(make_model, make_collated, kind, chunks_worth):
    model = make_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, learn_logit_scale=True).train()
    plain, batch = copy.deepcopy(model), make_collated(kind, repeats=2)
    cut = micro_batches(batch, 10)
    budget = None if chunks_worth is None else int(chunks_worth * saved_bytes(model, cut.chunks[0]))

    def loss_fn(of):
        def loss(embeds):
            return of.compute_objectives(cut.restore(embeds), batch["positive_ids"], contrastive_loss)["loss"]

        return loss

    torch.manual_seed(5)
    parts = [plain.embed(chunk) for chunk in cut.chunks]
    embeds = {name: torch.cat([p[name] for p in parts if name in p]) for name in parts[-1]}
    wanted = loss_fn(plain)({**embeds, **plain.loss_scalars()})
    wanted.backward()
    torch.manual_seed(5)
    calls = []

    def encode(chunk):
        calls.append(chunk)
        return {**model.embed(chunk), **model.loss_scalars()}

    loss = two_pass_backward(encode, cut.chunks, loss_fn(model), memory_budget=budget)
    torch.testing.assert_close(loss, wanted.detach())
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    number = len(cut.chunks)
    assert len(calls) == {None: number, 0: 2 * number}.get(budget, len(calls))
    if chunks_worth == 2.5:
        assert number < len(calls) < 2 * number
