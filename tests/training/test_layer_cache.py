"""The cache of the frozen layers' states: never different from no cache, on disk and within its bound too."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_mmt import MMTModel
from modeling_mmt.data.collator import MMTDataCollator
from modeling_mmt.freezing_mmt import encoder_layers
from modeling_mmt.training.layer_cache import TEXT_VIEWS, CachedProcessor, FrozenTextCache, frozen_fingerprint

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}
ROW_BYTES = 4 * 16  # one token's states, 16 wide


def loss_and_gradients(model, batch):
    model.zero_grad()
    output = model(**batch, return_loss=True)
    output.loss.backward()
    return {"loss": output.loss.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def in_float64(model):
    """The model, without a processor's roundings, which models as small as these make larger: frozen states alone are
    rounded, to float32, as the cache keeps them."""

    def rounded(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        states = states.float().double()
        return (states, *output[1:]) if isinstance(output, tuple) else states

    encoder_layers(model.text_model.encoder)[model.config.freeze_text_layers - 1].register_forward_hook(rounded)
    return model.double()


def batch_in_float64(batch):
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def count_encoder_tokens(model):
    """A list that grows by the tokens (padding included) of each call of the frozen layers."""
    tokens = []
    model.text_model.encoder.embeddings.register_forward_hook(
        lambda m, args, output: tokens.append(output[..., 0].numel())
    )
    return tokens


def shard(directory):
    (path,) = directory.glob("*/*.safetensors")
    return path


@pytest.mark.parametrize("freeze", [1, 3])
@pytest.mark.parametrize("batch_tokens", [4096, 7])
def test_the_loss_and_gradients_are_those_of_the_uncached_route(make_model, make_batch, freeze, batch_tokens):
    model = in_float64(make_model(freeze_text_layers=freeze, sharpness=2))
    cache = FrozenTextCache(model.text_model, batch_tokens=batch_tokens)
    wanted = loss_and_gradients(model, batch_in_float64(make_batch()))
    for _ in range(2):  # filled, then read
        batch = cache.attach(batch_in_float64(make_batch()))
        assert not any(name.endswith("input_ids") for name in batch)
        assert {f"{view}text_states" for view in TEXT_VIEWS[:4]} <= batch.keys()
        assert_same(loss_and_gradients(model, batch), wanted, **FLOAT64)
    assert wanted["loss"] > 0.1


@pytest.mark.parametrize("freeze", [1, 3])
def test_states_of_captions_that_are_padded_on_the_left_stand_where_their_tokens_do(
    make_model, make_text_config, make_processor, make_tokenizer, freeze
):
    model = in_float64(
        make_model(make_text_config("xlm-roberta"), freeze_text_layers=freeze, pooling="mean")
    )  # its positions know padding
    processor = make_processor(make_tokenizer(padding_side="left"), clean_text=False)
    cache = FrozenTextCache(model.text_model, padding_side=processor.padding_side)
    assert cache.fingerprint != FrozenTextCache(model.text_model).fingerprint
    batch = processor(text=["red", "dog runs fast home", "red dog"])
    assert batch["attention_mask"][:, 0].tolist() == [0, 1, 0]
    with torch.no_grad():
        wanted = model.get_text_features(**batch).pooler_output
        found = model.get_text_features(**cache.attach(dict(batch))).pooler_output
    torch.testing.assert_close(found, wanted, **FLOAT64)


def test_every_caption_of_a_clip_is_kept(make_model, make_processor, make_rows):
    words = dict(zip("abcd", ("runs", "home", "fast home", "red"), strict=True))
    rows = [row | {f"name_{code}": f"dog {word}" for code, word in words.items()} for row in make_rows(4)]
    collate = MMTDataCollator(
        make_processor(), text_column="name", languages=list("abcd"), languages_per_clip=4, noise_probability=0.3
    )
    model = make_model(freeze_text_layers=3, sharpness=2, text_weight=0.5)
    cache = FrozenTextCache(model.text_model)
    batch = collate([row | {"draw": (0, 0, number)} for number, row in enumerate(rows)])
    del batch["return_loss"]
    wanted = loss_and_gradients(model, dict(batch))
    kept = cache.attach(dict(batch))
    assert {name for name in kept if name.endswith("text_states")} == {f"{view}text_states" for view in TEXT_VIEWS[:8]}
    assert_same(loss_and_gradients(model, kept), wanted, **CLOSE)


def test_a_caption_is_encoded_once_whatever_its_padding(make_model, make_processor):
    model, processor = make_model(), make_processor()
    cache, tokens = FrozenTextCache(model.text_model), count_encoder_tokens(model)
    alone = cache.attach(dict(processor(text=["red dog"])))["text_states"]
    assert tokens == [512]
    beside = cache.attach(dict(processor(text=["red dog", "red dog", "dog runs fast home"])))["text_states"]
    assert tokens == [512, 512]
    assert len(cache) == 2
    assert torch.equal(beside[0, :4], alone[0])
    assert torch.equal(beside[0], beside[1])
    assert (beside[0, 4:] == 0).all()


def test_a_captions_states_are_the_same_to_the_bit_whatever_it_is_encoded_with(make_model, make_text_config):
    """So that a resumed run, or two processes that fill one folder, read the numbers that they would have computed."""
    model = make_model(text_config=make_text_config(hidden_size=96, intermediate_size=384))
    generator = torch.Generator().manual_seed(0)

    def batch(lengths):
        ids = torch.randint(3, 16, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    caption = batch([5])["input_ids"]
    found = []
    for lengths in ([5], [5, 3], [2] * 9 + [5] + [8] * 40, [1, 7, 5, 6, 11], [5] * 100):
        company = batch(lengths)
        company["input_ids"][lengths.index(5), :5] = caption
        states = FrozenTextCache(model.text_model).attach(company)["text_states"]
        found.append(states[lengths.index(5), :5])
    for states in found[1:]:
        assert torch.equal(states, found[0])


@pytest.mark.parametrize(("count", "max_bytes"), [(1, 2**28), (3, 2**28), (64, 2**28), (64, 1)])
def test_batches_seen_ahead_are_those_given_with_the_same_states_to_the_bit(
    make_model, make_processor, count, max_bytes
):
    def batches():
        texts = (["red dog"], ["home"], ["dog runs", "red"], ["red dog", "fast"], ["runs"])
        return [dict(make_processor()(text=text)) for text in texts]

    model = make_model()
    wanted = [FrozenTextCache(model.text_model).attach(batch) for batch in batches()]
    cache, tokens = FrozenTextCache(model.text_model), count_encoder_tokens(model)
    found = []
    for batch, plain in zip(cache.prefetch(iter(batches()), count, max_bytes), batches(), strict=True):
        assert_same(batch, plain, rtol=0, atol=0)
        found.append(cache.attach(batch))
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other, rtol=0, atol=0)
    fills = 5 if max_bytes == 1 else -(-5 // count)
    assert tokens == [512] * fills


def test_no_more_batches_are_held_than_the_bounds_say(make_model, make_batch):
    asked = []

    def batches():
        for number in range(20):
            asked.append(number)
            yield make_batch()

    size = sum(value.nbytes for value in make_batch().values() if isinstance(value, torch.Tensor))
    cache = FrozenTextCache(make_model().text_model)
    for bounds, held in (({"count": 4}, 4), ({"max_bytes": 3 * size}, 3), ({"count": 7, "max_bytes": 1}, 1)):
        asked.clear()
        next(cache.prefetch(batches(), **bounds))
        assert len(asked) == held


def test_a_full_cache_encodes_nothing_ahead(make_model, make_batch):
    model = make_model()
    cache = FrozenTextCache(model.text_model, max_bytes=5 * ROW_BYTES)
    cache.attach(make_batch())
    tokens = count_encoder_tokens(model)
    for _ in cache.prefetch([make_batch(), make_batch()]):
        assert tokens == []


def test_what_does_not_fit_is_not_held_while_filling(make_model, make_processor):
    """Or the captions of a large corpus would be, beyond the bound."""
    model, processor = make_model(), make_processor()
    texts = [f"{a} {b} {c}" for a in ("red", "dog") for b in ("runs", "fast") for c in ("home", "red", "dog")] * 2
    cache, tokens = FrozenTextCache(model.text_model, max_bytes=12 * ROW_BYTES, batch_tokens=8), []
    tokens = count_encoder_tokens(model)
    cache.fill([processor(text=texts)])
    assert len(cache) == 2 and tokens == [8] * 3  # of twelve: five tokens each, twelve rows


def test_a_half_precision_run_leaves_the_states_of_a_full_precision_one(make_model, make_batch, tmp_path):
    model = make_model()
    wanted = FrozenTextCache(model.text_model).attach(make_batch())
    cache = FrozenTextCache(model.text_model, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        cache.attach(make_batch())
    cache.save()
    assert_same(FrozenTextCache(model.text_model, tmp_path).attach(make_batch()), wanted, rtol=0, atol=0)


def test_states_are_saved_and_read_again_by_the_next_run(make_model, make_batch, tmp_path):
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    wanted = cache.attach(make_batch())
    cache.save()
    assert shard(tmp_path).parent.name == cache.fingerprint
    again = make_model()
    reloaded = FrozenTextCache(again.text_model, tmp_path)
    tokens = count_encoder_tokens(again)
    assert len(reloaded) == len(cache) > 8
    assert_same(reloaded.attach(make_batch()), wanted, rtol=0, atol=0)
    assert tokens == []


def test_an_evaluation_that_fills_the_cache_leaves_it_open_to_training(make_model, make_processor):
    cache, processor = FrozenTextCache(make_model().text_model), make_processor()
    with torch.inference_mode():
        cache.attach(dict(processor(text=["red dog"])))
    cache.attach(dict(processor(text=["home"])))
    assert len(cache) == 2


def test_only_what_is_new_is_saved_and_shards_add_up(make_model, make_processor, tmp_path):
    model, processor = make_model(), make_processor()
    cache = FrozenTextCache(model.text_model, tmp_path)
    for text in (["red dog", "home"], ["home", "runs fast"]):
        cache.attach(dict(processor(text=text)))
        cache.save()
        cache.save()  # nothing new: nothing written
    assert sorted(len(load_file(path)["lengths"]) for path in tmp_path.glob("*/*")) == [1, 2]
    assert len(FrozenTextCache(model.text_model, tmp_path)) == 3


def test_a_cache_without_a_directory_writes_nothing(make_model, make_batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = FrozenTextCache(make_model().text_model)
    cache.attach(make_batch())
    cache.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [0, 5, 12])
def test_a_full_cache_stays_right_and_within_its_bound(make_model, make_batch, tmp_path, caplog, rows):
    model = make_model()
    wanted = FrozenTextCache(model.text_model).attach(make_batch())
    cache = FrozenTextCache(model.text_model, tmp_path, max_bytes=rows * ROW_BYTES)
    for _ in range(2):
        assert_same(cache.attach(make_batch()), wanted, **CLOSE)
    assert cache._states.nbytes <= rows * ROW_BYTES
    assert len(cache) < 8
    assert (len(cache) > 0) == (rows > 0)
    assert caplog.text.count("layer cache full") == 1
    cache.save()
    assert len(FrozenTextCache(model.text_model, tmp_path)) == len(cache)


def test_states_on_disk_beyond_the_bound_are_not_loaded(make_model, make_batch, tmp_path):
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    wanted = cache.attach(make_batch())
    cache.save()
    small = FrozenTextCache(model.text_model, tmp_path, max_bytes=9 * ROW_BYTES)
    assert small._states.nbytes <= 9 * ROW_BYTES
    assert 0 < len(small) < len(cache)
    assert_same(small.attach(make_batch()), wanted, **CLOSE)


def test_a_torn_shard_is_refused_by_name(make_model, make_batch, tmp_path):
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    cache.attach(make_batch())
    cache.save()
    path = shard(tmp_path)
    whole = path.read_bytes()
    for torn in (whole[:-16], whole[:5], b""):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=f"{path.name}.*delete the file"):
            FrozenTextCache(model.text_model, tmp_path)


def test_a_shard_of_which_a_bit_was_flipped_is_refused_by_name(make_model, make_batch, tmp_path):
    """Else a damaged disk would change what is learned, and nobody would be told."""
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    cache.attach(make_batch())
    cache.save()
    path = shard(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path.name}: its content does not match its checksum; delete the file"):
        FrozenTextCache(model.text_model, tmp_path)


@pytest.mark.parametrize("name", ["lengths", "input_ids"])
def test_a_shard_of_which_captions_were_changed_is_refused_by_name(make_model, make_batch, tmp_path, name):
    """Else a caption would be given another one's states."""
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    cache.attach(make_batch())
    cache.save()
    path = shard(tmp_path)
    with safe_open(path, framework="pt") as opened:
        told, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    tensors[name] = tensors[name].roll(1)
    assert not torch.equal(tensors[name], load_file(path)[name])
    save_file(tensors, path, metadata=told)
    with pytest.raises(ValueError, match=f"{path.name}: its content does not match its checksum; delete the file"):
        FrozenTextCache(model.text_model, tmp_path)


def test_what_another_process_has_written_is_not_written_again(make_model, make_processor, tmp_path):
    model, processor = make_model(), make_processor()
    caches = [FrozenTextCache(model.text_model, tmp_path) for _ in range(3)]
    for cache, texts in zip(caches, (["red dog", "home"], ["home", "runs"], ["red dog", "runs"]), strict=True):
        cache.attach(dict(processor(text=texts)))
    for cache in caches:
        cache.save()
    assert sorted(len(load_file(path)["lengths"]) for path in tmp_path.glob("*/*")) == [1, 2]


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(make_model, make_batch, tmp_path, caplog):
    cache = FrozenTextCache(make_model().text_model, tmp_path / "folder")
    cache.attach(make_batch())
    (tmp_path / "folder").write_text("a file where the folder should be")
    cache.save()
    assert "the layer cache was not written" in caplog.text
    (tmp_path / "folder").unlink()
    cache.save()
    assert len(FrozenTextCache(make_model().text_model, tmp_path / "folder")) == len(cache)


def test_a_foreign_shard_is_refused_by_name(make_model, make_batch, tmp_path):
    model, other = make_model(), make_model(seed=1)
    cache = FrozenTextCache(model.text_model, tmp_path)
    cache.attach(make_batch())
    cache.save()
    path = shard(tmp_path)
    tensors = load_file(path)
    foreign = tmp_path / frozen_fingerprint(other.text_model) / path.name
    foreign.parent.mkdir()
    foreign.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"{path.name}.*fingerprint {cache.fingerprint} does not fit"):
        FrozenTextCache(other.text_model, tmp_path)
    tensors["states"] = tensors["states"][:-1].clone()
    save_file(tensors, path, metadata={"fingerprint": cache.fingerprint})
    with pytest.raises(ValueError, match="does not fit"):
        FrozenTextCache(model.text_model, tmp_path)


def test_a_half_written_shard_is_never_read(make_model, make_batch, tmp_path, monkeypatch):
    model = make_model()
    cache = FrozenTextCache(model.text_model, tmp_path)
    cache.attach(make_batch())

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.save()
    assert len(FrozenTextCache(model.text_model, tmp_path)) == 0
    monkeypatch.undo()
    cache.save()  # the unsaved captions are still known
    assert len(FrozenTextCache(model.text_model, tmp_path)) == len(cache)


def is_frozen(model, name):
    return not dict(model.named_parameters())[name].requires_grad


@pytest.mark.parametrize(
    "name",
    [
        "text_model.encoder.embeddings.word_embeddings.weight",
        "text_model.encoder.embeddings.LayerNorm.bias",
        "text_model.encoder.encoder.layer.0.attention.self.query.weight",
        "text_model.encoder.encoder.layer.1.output.dense.bias",
    ],
)
def test_the_fingerprint_changes_with_any_frozen_weight(make_model, name):
    model = make_model()
    before = frozen_fingerprint(model.text_model)
    assert is_frozen(model, name)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[-1] += 1e-3
    assert frozen_fingerprint(model.text_model) != before


@pytest.mark.parametrize(
    "name",
    [
        "text_model.encoder.encoder.layer.2.output.dense.weight",
        "text_model.pooling.layers.0.fc1.weight",
        "text_projection.output.weight",
        "video_model.pooling.input_projection.weight",
        "logit_scale",
    ],
)
def test_the_fingerprint_stays_when_what_learns_changes(make_model, name):
    model = make_model()
    before = frozen_fingerprint(model.text_model)
    with torch.no_grad():
        dict(model.named_parameters())[name].add_(1.0)
    assert frozen_fingerprint(model.text_model) == before


def test_the_fingerprint_tells_how_many_layers_are_frozen(make_model, make_text_config):
    fingerprints = {frozen_fingerprint(make_model(freeze_text_layers=n).text_model) for n in (1, 2, 3)}
    fingerprints.add(frozen_fingerprint(make_model(make_text_config(layer_norm_eps=1e-3)).text_model))
    assert len(fingerprints) == 4


def test_a_model_loaded_again_has_the_same_fingerprint(make_model, tmp_path):
    """Else a second row of a table would begin with an empty cache."""
    model = make_model()
    model.save_pretrained(tmp_path)
    once = MMTModel.from_pretrained(tmp_path)
    assert frozen_fingerprint(once.text_model) == frozen_fingerprint(model.text_model)


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    code = (
        "import sys\nfrom modeling_mmt import MMTModel\n"
        "from modeling_mmt.training.layer_cache import frozen_fingerprint\n"
        "print(frozen_fingerprint(MMTModel.from_pretrained(sys.argv[1]).text_model))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split()[-1] == frozen_fingerprint(MMTModel.from_pretrained(tmp_path).text_model)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"freeze_text_embeddings": False}, "freeze_text_embeddings"), ({"freeze_text_layers": 0}, "freeze_text_layers")],
)
def test_a_setting_in_which_the_states_would_change_is_refused_by_name(make_model, fields, field):
    with pytest.raises(ValueError, match=field):
        FrozenTextCache(make_model(**fields).text_model)


def test_dropout_is_the_same_with_a_cold_a_warm_and_no_cache(make_model, make_text_config, make_batch):
    """A resumed run starts with another cache than the run that was killed, and must draw the same dropout."""
    text = make_text_config(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    found = []
    for passes in (0, 1, 2):
        model = in_float64(make_model(text, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)).train()
        cache = FrozenTextCache(model.text_model) if passes else None
        batch = batch_in_float64(make_batch())
        if passes == 2:
            cache.attach(make_batch())
        torch.manual_seed(0)
        found.append(loss_and_gradients(model, cache.attach(batch) if cache else batch))
    assert_same(found[1], found[2], rtol=0, atol=0)
    assert_same(found[0], found[2], **FLOAT64)
    torch.manual_seed(1)
    assert (loss_and_gradients(model, batch_in_float64(make_batch()))["loss"] - found[0]["loss"]).abs() > 1e-3


def test_a_cached_processor_gives_the_same_embeddings(make_model, make_processor, make_clips):
    model, processor = make_model(), make_processor()
    cached = CachedProcessor(processor, FrozenTextCache(model.text_model))
    inputs = {"text": ["red dog", "home runs fast"], "video_features": make_clips([2, 3])}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**cached(**inputs)).logits_per_text, model(**processor(**inputs)).logits_per_text, **CLOSE
        )
    assert "video_features" in cached(video_features=inputs["video_features"])
