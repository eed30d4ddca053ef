"""The model: invariances first, then oracles, gradients, freezing, checkpoints, compilers."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from modeling_mmt import MMTModel, MMTTextModelWithProjection, MMTVideoModelWithProjection
from modeling_mmt.loss_mmt import LOSSES, positive_mask
from modeling_mmt.modeling_mmt import MMTOutput, encoder_layers
from modeling_mmt.training.streaming_loss import contrastive_loss, streaming_loss

HEADS = [
    {"pooling": pooling, "norm_placement": norm, "attention": attention}
    for pooling in ("first", "mean", "cls")
    for norm in ("pre", "post")
    for attention in ("eager", "sdpa")
]
HEAD_IDS = ["-".join(head.values()) for head in HEADS]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FORWARD = ("input_ids", "attention_mask", "video_features", "video_mask")


def forward_inputs(batch):
    return {name: batch[name] for name in FORWARD}


def is_varied(embeds):
    """Whether rows of unit norm lie far enough apart for an invariance to mean something."""
    unit = functional.normalize(embeds.float(), dim=-1)
    return torch.pdist(unit).min() > 0.05


def embeddings(model, batch):
    with torch.no_grad():
        return model.embed(batch)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


# ---- shapes and invariances


def test_outputs_have_the_documented_shapes(make_model, make_batch):
    model, batch = make_model(), make_batch()
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:3], batch["attention_mask"][:3]
    with torch.no_grad():
        output = model(**forward_inputs(batch))
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
        video = model.get_video_features(batch["video_features"], batch["video_mask"])
    length, steps = batch["input_ids"].shape[1], batch["video_features"].shape[1]
    assert output.text_embeds.shape == (3, 10)
    assert output.video_embeds.shape == (4, 10)
    assert output.logits_per_text.shape == (3, 4)
    assert output.logits_per_video.shape == (4, 3)
    assert (text.last_hidden_state.shape, text.pooler_output.shape) == ((3, length, 24), (3, 10))
    assert (video.last_hidden_state.shape, video.pooler_output.shape) == ((4, steps, 24), (4, 10))


@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_embeddings_have_unit_norm_and_tell_rows_apart(make_model, make_batch, head):
    for name, embeds in embeddings(make_model(**head), make_batch()).items():
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4), msg=name)
        assert is_varied(embeds), name


def test_get_features_are_the_embeddings_before_normalisation(make_model, make_batch):
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        output = model(**forward_inputs(batch))
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        video = model.get_video_features(batch["video_features"], batch["video_mask"]).pooler_output
    torch.testing.assert_close(functional.normalize(text, dim=-1), output.text_embeds)
    torch.testing.assert_close(functional.normalize(video, dim=-1), output.video_embeds)
    assert ((text.norm(dim=-1) - 1).abs() > 1e-2).any()


def test_logits_are_scaled_cosines(make_model, make_batch):
    model = make_model(logit_scale_init_value=math.log(7.0))
    with torch.no_grad():
        output = model(**forward_inputs(make_batch()))
    torch.testing.assert_close(output.logits_per_text, 7 * output.text_embeds @ output.video_embeds.T)
    torch.testing.assert_close(output.logits_per_video, output.logits_per_text.T)


@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_padding_never_changes_an_embedding(make_model, make_batch, head):
    """More padding, garbage in it, and the row alone instead of beside its batch mates."""
    model, batch = make_model(**head).double(), make_batch()
    wanted = embeddings(model, batch)

    padded = {}
    generator = torch.Generator().manual_seed(5)
    for name, value in batch.items():
        if name.endswith("mask"):
            padded[name] = functional.pad(value, (0, 3))
        elif name.endswith("input_ids"):
            mask = functional.pad(batch["paired_attention_mask" if "paired" in name else "attention_mask"], (0, 3))
            garbage = torch.randint(4, 14, mask.shape, generator=generator)
            padded[name] = torch.where(mask.bool(), functional.pad(value, (0, 3)), garbage)
        else:
            mask = functional.pad(batch["video_mask"], (0, 3)).unsqueeze(-1).bool()
            garbage = 50 * torch.randn(*mask.shape[:2], value.shape[2], generator=generator)
            padded[name] = torch.where(mask, functional.pad(value, (0, 0, 0, 3)), garbage)
    assert_same(embeddings(model, padded), wanted, **CLOSE)

    for row in range(4):
        alone = {}
        for name, value in batch.items():
            mask = "attention_mask" if "attention_mask" in name or "input_ids" in name else "video_mask"
            mask = f"paired_{mask}" if "paired" in name else mask
            alone[name] = value[row : row + 1, : int(batch[mask][row].sum())]
        assert_same(embeddings(model, alone), {k: v[row : row + 1] for k, v in wanted.items()}, **CLOSE)


@pytest.mark.parametrize("head", HEADS, ids=HEAD_IDS)
def test_an_all_zero_mask_gives_finite_values_and_gradients(make_model, make_batch, head):
    model, batch = make_model(**head), make_batch()
    batch["attention_mask"][1] = 0
    batch["video_mask"][2] = 0
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in gradients(model).values())


def test_no_mask_means_that_everything_is_real(make_model, make_batch):
    model, batch = make_model(), make_batch()
    ids, features = batch["input_ids"], batch["video_features"]
    with torch.no_grad():
        without = model(ids, features)
        with_ones = model(ids, features, torch.ones_like(ids), torch.ones(features.shape[:2], dtype=torch.long))
        with_mask = model(**forward_inputs(batch))
    torch.testing.assert_close(without.logits_per_text, with_ones.logits_per_text)
    assert (without.logits_per_text - with_mask.logits_per_text).abs().max() > 1e-2


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["first", "mean", "cls"])
def test_eager_and_sdpa_agree_in_values_and_gradients(make_model, make_batch, pooling, norm_placement):
    found = {}
    for attention in ("eager", "sdpa"):
        model = make_model(attention=attention, pooling=pooling, norm_placement=norm_placement, sharpness=2).double()
        assert model.video_model.pooling.layers[0].attention.config._attn_implementation == attention
        assert model.text_model.encoder.config._attn_implementation == attention
        output = model(**make_batch(), return_loss=True)
        output.loss.backward()
        found[attention] = {"loss": output.loss, "text": output.text_embeds, "video": output.video_embeds}
        found[attention] |= gradients(model)
    assert is_varied(found["sdpa"]["text"])
    assert_same(found["eager"], found["sdpa"], rtol=1e-3, atol=5e-5)  # eager takes its softmax in float32


@pytest.mark.parametrize("pooling", ["first", "mean", "cls"])
def test_the_order_of_time_steps_matters(make_model, make_batch, pooling):
    model, batch = make_model(pooling=pooling), make_batch()
    features = batch["video_features"][1:2]  # seven real steps
    order = torch.tensor([0, 3, 2, 1, 6, 5, 4])  # the first step stays, so "first" has no easy way to notice
    with torch.no_grad():
        embeds = [model.get_video_features(clip).pooler_output for clip in (features, features[:, order])]
    assert functional.cosine_similarity(*embeds) < 0.99


def test_attention_reaches_the_last_step_from_the_first_output(make_model, make_batch):
    model, features = make_model(pooling="first"), make_batch()["video_features"][1:2].requires_grad_()
    model.get_video_features(features).pooler_output.square().sum().backward()
    assert (features.grad.abs().sum(dim=-1) > 1e-4).all()


def test_half_precision_stays_near_full_precision(make_model, make_batch):
    batch = make_batch()
    wanted = embeddings(make_model(sharpness=1), batch)
    found = embeddings(make_model(sharpness=1).to(torch.bfloat16), batch)
    assert is_varied(wanted["text_embeds"])
    for name in wanted:
        assert found[name].dtype == torch.bfloat16
        assert functional.cosine_similarity(found[name].float(), wanted[name]).min() > 0.99, name


def test_a_half_precision_checkpoint_loads_in_half_precision(make_model, make_batch, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = MMTModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output = model(**make_batch(), return_loss=True)
    output.loss.backward()
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("width", "steps", "words"), [(7, 3, r"\(2, 3, 7\); expected .*8\)"), (8, 13, "13 steps; max_video_length is 12")]
)
def test_a_video_of_the_wrong_shape_is_refused(make_model, width, steps, words):
    with pytest.raises(ValueError, match=words):
        make_model().get_video_features(torch.zeros(2, steps, width))


def test_a_mask_of_the_wrong_shape_is_refused(make_model, make_batch):
    batch = make_batch()
    batch["video_mask"] = batch["video_mask"][:, 1:]
    with pytest.raises(ValueError, match=r"mask has shape \(4, 6\); expected \(4, 7\)"):
        make_model()(**forward_inputs(batch))


def test_forward_refuses_a_missing_modality(make_model, make_batch):
    batch = make_batch()
    with pytest.raises(ValueError, match="needs captions and videos"):
        make_model()(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="needs captions and videos"):
        make_model()(video_features=batch["video_features"])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("pooling", ["first", "cls"])
def test_a_tower_shows_its_heads_inner_states_and_nothing_of_its_encoders(make_model, make_batch, pooling, kept):
    model, batch = make_model(attention="eager", pooling=pooling), make_batch()
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if kept:
        text["text_states"] = model.text_model.frozen_states(**text)
        del text["input_ids"]
    video = {"video_features": batch["video_features"], "video_mask": batch["video_mask"]}
    for features, inputs in ((model.get_text_features, text), (model.get_video_features, video)):
        with torch.no_grad():
            plain, shown = features(**inputs), features(**inputs, output_hidden_states=True, output_attentions=True)
        mask = inputs["attention_mask"] if "attention_mask" in inputs else inputs["video_mask"]
        length = mask.shape[1] + (pooling == "cls")
        assert plain.hidden_states is None and plain.attentions is None
        assert [tuple(state.shape) for state in shown.hidden_states] == 3 * [(4, length, 24)]  # input and two layers
        assert [tuple(weights.shape) for weights in shown.attentions] == 2 * [(4, 4, length, length)]
        assert torch.equal(shown.pooler_output, plain.pooler_output)
        assert torch.equal(shown.hidden_states[-1][:, -mask.shape[1] :], shown.last_hidden_state)
        for weights in shown.attentions:
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
            assert (weights[:, :, :, -mask.shape[1] :] * (1 - mask[:, None, None])).max() == 0  # padding is not seen


# ---- closed forms and oracles


def test_zero_residuals_with_pre_norm_and_mean_pooling_start_at_the_encoders_sentence_vector(
    make_config, make_model, make_batch
):
    config = make_config(residual_init="zero", norm_placement="pre", pooling="mean", hidden_size=16)
    model, batch = MMTModel(config).eval(), make_batch()
    encoder = make_model().text_model.encoder  # of large weights; the head stays as initialised
    model.text_model.encoder.load_state_dict(encoder.state_dict())
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        states = model.text_model.encoder(ids, mask).last_hidden_state
        normed = functional.layer_norm(states, (16,), eps=config.layer_norm_eps)
        wanted = torch.stack([normed[row, : mask[row].sum()].mean(dim=0) for row in range(4)])
        found = model.text_model(ids, mask).pooler_output
    assert is_varied(wanted)
    torch.testing.assert_close(found, wanted)


def test_a_skip_with_zero_residuals_starts_as_a_linear_probe_of_the_mean_state(make_config, make_batch):
    torch.manual_seed(0)
    model, batch = MMTModel(make_config(residual_init="zero", projection_skip=True)).eval(), make_batch()
    model.set_input_statistics("video", batch["video_features"][1])
    features, mask = batch["video_features"], batch["video_mask"]
    mean, std = features[1].mean(dim=0), features[1].std(dim=0)
    with torch.no_grad():
        probe = torch.stack([((features[row, : mask[row].sum()] - mean) / std).mean(dim=0) for row in range(4)])
        wanted = model.video_projection.skip(probe)
        found = model.get_video_features(features, mask).pooler_output
    assert is_varied(wanted)
    torch.testing.assert_close(found, wanted, **CLOSE)


def language_states(languages=4, texts=50, width=16):
    """Texts `(languages, texts, width)` whose languages lie apart, far more in the first directions than the last."""
    generator = torch.Generator().manual_seed(0)
    apart = torch.linalg.qr(torch.randn(width, languages, generator=generator)).Q.T  # orthonormal
    offsets = torch.diag(torch.logspace(2, 0, languages)) @ apart
    return torch.randn(languages, texts, width, generator=generator) + offsets[:, None]


def test_without_the_languages_span_all_of_their_means_are_one(make_model):
    states = language_states()
    model = make_model(freeze_text_layers=3, language_directions=3)
    model.text_model.pooling.set_language_directions(states.mean(dim=1))
    pooling = model.text_model.pooling
    pooling.input_mean.zero_(), pooling.input_std.fill_(1)
    means = pooling.standardize(states).mean(dim=1)
    assert (states.mean(dim=1) - states.mean(dim=(0, 1))).norm(dim=1).min() > 10
    torch.testing.assert_close(means, means[:1].expand_as(means), rtol=0, atol=1e-3)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_language_directions_are_the_leading_ones_and_no_others_are_touched(make_model, number):
    """Against an eigendecomposition of the means' scatter, one direction at a time."""
    states = language_states()
    model = make_model(freeze_text_layers=3, language_directions=number)
    model.text_model.pooling.set_language_directions(states.mean(dim=1))
    directions = model.text_model.pooling.language_directions
    centred = (states.mean(dim=1) - states.mean(dim=(0, 1))).double()
    leading = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :number].float()
    torch.testing.assert_close((directions @ leading).abs(), torch.eye(number), rtol=0, atol=1e-3)
    pooling = model.text_model.pooling
    pooling.input_mean.zero_(), pooling.input_std.fill_(1)
    wanted = states.clone()
    for direction in leading.T:
        wanted -= (wanted @ direction)[..., None] * direction
    torch.testing.assert_close(pooling.standardize(states), wanted, rtol=0, atol=1e-3)
    outside = torch.linalg.svd(directions, full_matrices=True).Vh[number:]
    torch.testing.assert_close(pooling.standardize(outside[None])[0], outside, rtol=0, atol=1e-5)


def test_language_directions_are_kept_in_the_checkpoint_and_are_off_by_default(make_model, make_batch, tmp_path):
    assert make_model().text_model.pooling.language_directions is None
    model = make_model(freeze_text_layers=3, language_directions=2)
    before = embeddings(model, make_batch())["text_embeds"]
    model.text_model.pooling.set_language_directions(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    after = embeddings(model, make_batch())["text_embeds"]
    assert (before - after).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    loaded = MMTModel.from_pretrained(tmp_path)
    torch.testing.assert_close(embeddings(loaded, make_batch())["text_embeds"], after)


def test_language_directions_without_frozen_states_or_languages_are_refused(make_model):
    with pytest.raises(ValueError, match="language_directions is 2; allowed: 0, where not every layer"):
        make_model(freeze_text_layers=2, language_directions=2)
    with pytest.raises(ValueError, match="language_directions is 16; allowed: 0 to 15"):
        make_model(freeze_text_layers=3, language_directions=16)
    model = make_model(freeze_text_layers=3, language_directions=2)
    with pytest.raises(
        ValueError, match="language_directions is 2, and there are the means of 2 languages; .* 1 to 1"
    ):
        model.text_model.pooling.set_language_directions(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="language_directions is 0"):
        make_model().text_model.pooling.set_language_directions(torch.zeros(2, 16))


@pytest.mark.parametrize("tower", ["text", "video"])
def test_input_statistics_standardize_a_towers_input(make_model, make_batch, tower):
    model, batch = make_model(), make_batch()
    other = make_model()
    if tower == "video":
        states = batch["video_features"][1]
    else:
        states = model.text_model.encoder(batch["input_ids"][1:2]).last_hidden_state[0].detach()
    model.set_input_statistics(tower, states)
    pooling = getattr(model, f"{tower}_model").pooling
    found = pooling.standardize(states[None])[0]
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(found.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(dim=0), torch.ones(found.shape[1]), rtol=1e-3, atol=1e-3)
    for name, buffer in other.named_buffers():
        if not name.startswith(f"{tower}_model.pooling.input_"):
            assert torch.equal(dict(model.named_buffers())[name], buffer), name


def test_input_dropout_takes_a_dimension_from_all_positions_at_once(make_config):
    pooling = MMTModel(make_config(video_input_dropout_prob=0.5)).video_model.pooling
    torch.manual_seed(0)
    states = torch.ones(200, 5, 8)
    found = pooling.train().standardize(states)
    assert (found == found[:, :1]).all()
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert abs((found[:, 0] == 0).float().mean() - 0.5) < 0.05
    assert torch.equal(pooling.eval().standardize(states), states)


def test_zero_residuals_still_learn(make_config, make_batch):
    torch.manual_seed(0)
    model = MMTModel(make_config(residual_init="zero", norm_placement="pre"))
    assert model.text_model.pooling.layers[0].fc2.weight.abs().max() == 0
    model(**make_batch(), return_loss=True).loss.backward()
    assert model.text_model.pooling.layers[0].fc2.weight.grad.abs().max() > 0
    assert model.text_model.pooling.layers[0].attention.out_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("residual_init", ["normal", "zero"])
def test_each_residual_branch_starts_as_the_configuration_says(make_config, residual_init, skip):
    torch.manual_seed(0)
    model = MMTModel(make_config(residual_init=residual_init, projection_skip=skip))
    layers = [*model.text_model.pooling.layers, *model.video_model.pooling.layers]
    ends = [end.weight for layer in layers for end in (layer.fc2, layer.attention.out_proj)]
    assert all((end.abs().max() == 0) == (residual_init == "zero") for end in ends)
    assert all(layer.fc1.weight.abs().max() > 0 for layer in layers)
    for projection in (model.text_projection, model.video_projection):
        assert (projection.output.weight.abs().max() == 0) == (residual_init == "zero" and skip)


def test_initialisation_follows_the_configuration(make_config):
    torch.manual_seed(0)
    config = make_config(
        hidden_size=64, initializer_range=0.3, pooling="cls", loss_type="sigmoid", logit_scale_init_value=1.5
    )
    model = MMTModel(config)
    head = model.video_model.pooling
    for weight in (head.layers[1].fc1.weight, head.position_embeddings.weight, model.text_projection.output.weight):
        assert weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert head.cls_embedding.std().item() == pytest.approx(0.3, rel=0.4)
    assert head.layers[0].fc1.bias.abs().max() == 0
    assert (model.logit_scale.item(), model.logit_bias.item()) == (1.5, -10.0)


def oracle_head(head, projection, states, context):
    """One-head TP with a context, one query at a time; `(N, input_dim)` and `(M, H)` without any padding."""
    hidden = head.input_projection(states)
    if head.cls_embedding is not None:
        hidden = torch.cat([head.cls_embedding[None], hidden])
    for layer in head.layers:
        attention = layer.attention
        queries = layer.attention_norm(hidden) if layer.pre_norm else hidden
        memory = torch.cat([queries, context])
        keys, values = attention.k_proj(memory), attention.v_proj(memory)
        attended = []
        for query in attention.q_proj(queries):
            weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
            attended.append(sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights))
        attended = attention.out_proj(torch.stack(attended))
        if layer.pre_norm:
            hidden = hidden + attended
            hidden = hidden + layer.fc2(functional.gelu(layer.fc1(layer.output_norm(hidden))))
        else:
            hidden = layer.attention_norm(hidden + attended)
            hidden = layer.output_norm(hidden + layer.fc2(functional.gelu(layer.fc1(hidden))))
    if head.final_norm is not None:
        hidden = head.final_norm(hidden)
    pooled = hidden.mean(dim=0) if head.config.pooling == "mean" else hidden[0]
    return functional.normalize(projection.output(pooled) + projection.skip(states.mean(dim=0)), dim=-1)


@pytest.mark.parametrize("pooling", ["first", "mean", "cls"])
@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_conditional_attention_equals_a_loop_over_real_tokens_and_steps(
    make_model, make_batch, norm_placement, pooling
):
    model = make_model(num_attention_heads=1, norm_placement=norm_placement, pooling=pooling, projection_skip=True)
    model, batch = model.double(), make_batch()
    found, head = embeddings(model, batch), model.text_model.pooling
    with torch.no_grad():
        for prefix in ("", "paired_"):
            mask = batch[f"{prefix}attention_mask"]
            tokens = model.text_model.encode(batch[f"{prefix}input_ids"], mask)
            steps = model.video_model.pooling.embed(model.video_model.encode(batch["video_features"]))
            for row in range(4):
                e_x, e_v = tokens[row, : mask[row].sum()], steps[row, : batch["video_mask"][row].sum()]
                for name, context in (("conditional_", e_v), ("", e_v[:0])):
                    wanted = oracle_head(head, model.text_projection, e_x, context)
                    torch.testing.assert_close(found[f"{name}{prefix}text_embeds"][row], wanted, **CLOSE)


def test_the_conditional_embedding_depends_on_its_own_video_alone(make_model, make_batch):
    model, batch = make_model(), make_batch()
    before = embeddings(model, batch)
    batch["video_features"] = batch["video_features"].clone()
    batch["video_features"][1] += 1
    after = embeddings(model, batch)
    for name in ("conditional_text_embeds", "conditional_paired_text_embeds"):
        change = (before[name] - after[name]).abs().amax(dim=1)
        assert change[1] > 1e-2
        assert change[[0, 2, 3]].max() < 1e-6
        assert (before[name] - before[name.removeprefix("conditional_")]).abs().max() > 1e-2
    torch.testing.assert_close(before["text_embeds"], after["text_embeds"])


# ---- objectives


def test_a_batch_gives_the_embeddings_that_its_views_allow(make_model, make_batch):
    plain, noised = {"text_embeds", "video_embeds"}, {"noised_text_embeds", "noised_video_embeds"}
    paired = {"paired_text_embeds", "conditional_text_embeds", "conditional_paired_text_embeds"}
    model = make_model()
    assert embeddings(model, make_batch(with_pairs=False, with_noise=False)).keys() == plain
    assert embeddings(model, make_batch(with_pairs=False)).keys() == plain | noised
    assert embeddings(model, make_batch(with_noise=False)).keys() == plain | paired
    assert embeddings(model, make_batch()).keys() == plain | noised | paired | {"noised_paired_text_embeds"}
    without_video = embeddings(model, make_batch(with_video=False, with_noise=False))
    assert without_video.keys() == {"text_embeds", "paired_text_embeds"}


def test_a_cross_weight_of_zero_skips_the_conditional_pass(make_model, make_batch):
    assert not any("conditional" in name for name in embeddings(make_model(cross_weight=0), make_batch()))


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_the_loss_is_the_weighted_sum_of_the_objectives(make_model, make_batch, loss_type):
    model = make_model(loss_type=loss_type, inter_weight=2, intra_weight=0.5, cross_weight=3)
    batch, positive_ids = make_batch(), torch.tensor([[0, 5], [1, 6], [0, 7], [2, 6]])
    output = model(**batch, positive_ids=positive_ids, return_loss=True)
    assert isinstance(output, MMTOutput)
    wanted = 2 * output.inter_loss + 0.5 * output.intra_loss + 3 * output.cross_loss
    torch.testing.assert_close(output.loss, wanted)
    assert output.text_loss is None
    embeds, mask = embeddings(model, batch), positive_mask(positive_ids)
    bias = {"logit_bias": model.logit_bias} if loss_type == "sigmoid" else {}

    def value(a, b):
        return LOSSES[loss_type](embeds[a], embeds[b], model.logit_scale.exp(), mask, **bias)

    inter = value("text_embeds", "video_embeds") + value("paired_text_embeds", "video_embeds")
    torch.testing.assert_close(output.inter_loss, inter)
    cross = value("conditional_text_embeds", "conditional_paired_text_embeds")
    torch.testing.assert_close(output.cross_loss, cross)
    assert output.intra_loss > 0


def test_a_third_language_adds_its_own_terms(make_model, make_batch):
    """What two languages give stands as it was; the third language's terms are those of a pair with it."""
    model = make_model(text_weight=0.5)
    batch, ids = make_batch(), torch.tensor([[0, 5, 8], [1, 6, 5], [0, 7, 9], [2, 6, 8]])
    third = {name.replace("paired_", "paired_2_"): value.flip(0) for name, value in batch.items() if "paired_" in name}
    embeds = embeddings(model, batch | third)
    two = embeddings(model, batch)
    assert embeds.keys() - two.keys() == {
        "paired_2_text_embeds",
        "noised_paired_2_text_embeds",
        "conditional_paired_2_text_embeds",
    }
    for name, value in two.items():
        torch.testing.assert_close(embeds[name], value)
    with torch.no_grad():
        found = model(**batch, **third, positive_ids=ids, return_loss=True)
    assert found.text_embeds is not None and "paired_2_text_embeds" not in found
    mask = positive_mask(ids)

    def value(a, b):
        return LOSSES["nce"](embeds[f"{a}_embeds"], embeds[f"{b}_embeds"], model.logit_scale.exp(), mask)

    texts = ("text", "paired_text", "paired_2_text")
    pairs = [(texts[0], texts[1]), (texts[0], texts[2]), (texts[1], texts[2])]
    wanted = {
        "inter": sum(value(text, "video") for text in texts),
        "intra": sum(value(name, f"noised_{name}") for name in ("video", *texts)),
        "cross": sum(value(f"conditional_{a}", f"conditional_{b}") for a, b in pairs),
        "text": sum(value(a, b) for a, b in pairs),
    }
    for name, expected in wanted.items():
        torch.testing.assert_close(found[f"{name}_loss"], expected)
    torch.testing.assert_close(found.loss, wanted["inter"] + wanted["intra"] + wanted["cross"] + 0.5 * wanted["text"])


def test_positives_leave_the_loss(make_model, make_batch):
    model, batch = make_model(), make_batch()
    every_row = torch.zeros(4, 1, dtype=torch.long)
    with torch.no_grad():
        apart = model(**batch, return_loss=True).loss
        distinct = model(**batch, positive_ids=torch.arange(4)[:, None], return_loss=True).loss
        together = model(**batch, positive_ids=every_row, return_loss=True).loss
    torch.testing.assert_close(apart, distinct)
    assert apart > 0.1
    assert together.abs() < 1e-5  # no negative is left


def test_without_return_loss_there_is_no_loss(make_model, make_batch):
    output = make_model()(**make_batch())
    assert list(output.keys()) == ["logits_per_text", "logits_per_video", "text_embeds", "video_embeds"]


def test_the_loss_comes_first_in_a_tuple(make_model, make_batch):
    model, batch = make_model(), make_batch()
    as_tuple = model(**batch, return_loss=True, return_dict=False)
    output = model(**batch, return_loss=True)
    assert list(output.keys())[:2] == ["loss", "logits_per_text"]
    for found, wanted in zip(as_tuple, output.values(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_two_languages_without_video_give_the_text_objective_alone(make_model, make_batch):
    output = make_model(intra_weight=0)(**make_batch(with_video=False), return_loss=True)
    torch.testing.assert_close(output.loss, output.text_loss)
    assert (output.inter_loss, output.intra_loss, output.cross_loss, output.logits_per_text) == (None,) * 4


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_the_streaming_loss_gives_the_same_objectives_and_gradients(make_model, make_batch, loss_type):
    batch, positive_ids = make_batch(), torch.tensor([[0, 5], [1, 6], [0, 7], [2, 6]])
    calls = []

    def in_tiles(*args):
        calls.append(args)
        return streaming_loss(*args, block_size=3)

    def blocks(*args, **kwargs):
        return in_tiles(*args, *([kwargs["logit_bias"]] if kwargs else []))

    found = {}
    for name, loss in (("dense", None), ("streaming", blocks), ("budget", contrastive_loss)):
        model = make_model(loss_type=loss_type, learn_logit_scale=True).double()
        values = model.compute_objectives(model.embed(batch), positive_ids, loss)
        values["loss"].backward()
        found[name] = values | gradients(model)
        assert model.logit_scale.grad.abs() > 0
    assert len(calls) == 6  # inter 2, intra 3, cross 1
    assert_same(found["streaming"], found["dense"], rtol=1e-8, atol=1e-9)
    assert_same(found["budget"], found["dense"], rtol=1e-8, atol=1e-9)


# ---- learning and freezing


def test_every_learning_parameter_gets_a_gradient_and_no_frozen_one_does(make_model, make_batch):
    model = make_model(pooling="cls", learn_logit_scale=True, loss_type="sigmoid", projection_skip=True).train()
    model(**make_batch(), return_loss=True).loss.backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning
    assert [name for name, grad in gradients(model).items() if grad.abs().max() == 0] == []
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = (
        "text_model.encoder.embeddings.",
        "text_model.encoder.encoder.layer.0.",
        "text_model.encoder.encoder.layer.1.",
    )
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(expected)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"freeze_text_layers": 0, "freeze_text_embeddings": False}, set()),
        ({"freeze_text_layers": 0}, {"embeddings"}),
        ({"freeze_text_layers": 1, "freeze_text_embeddings": False}, {"0"}),
        ({"freeze_text_layers": 3}, {"embeddings", "0", "1", "2"}),
        ({"freeze_text_layers": 2, "text_output_layer": 2}, {"embeddings", "0", "1"}),
    ],
)
def test_what_the_configuration_freezes_is_frozen(make_model, fields, expected):
    model = make_model(**fields)
    encoder = model.text_model.encoder
    parts = {"embeddings": encoder.embeddings} | {str(i): layer for i, layer in enumerate(encoder.encoder.layer)}
    frozen = {name for name, part in parts.items() if not any(p.requires_grad for p in part.parameters())}
    assert frozen == expected
    assert all(all(p.requires_grad for p in parts[name].parameters()) for name in parts.keys() - expected)
    heads = [model.text_model.pooling, model.video_model, model.text_projection, model.video_projection]
    assert all(p.requires_grad for head in heads for p in head.parameters())
    assert not model.logit_scale.requires_grad


@pytest.mark.parametrize("how", ["new", "train", "eval then train"])
def test_frozen_layers_never_drop_out(make_config, make_text_config, make_batch, how):
    text = make_text_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    torch.manual_seed(0)
    model = MMTModel(make_config(text))
    if how == "eval then train":
        model.eval()
    if how != "new":
        model.train()
    encoder = model.text_model.encoder
    assert not any(m.training for part in [encoder.embeddings, *encoder.encoder.layer[:2]] for m in part.modules())
    assert all(m.training for m in encoder.encoder.layer[2].modules())
    assert all(m.training for m in model.text_model.pooling.modules())
    batch, kept = make_batch(), []
    encoder.encoder.layer[1].register_forward_hook(
        lambda module, args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    outputs = [model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output for _ in range(2)]
    assert torch.equal(*kept)
    assert not torch.equal(*outputs)  # the layer above does drop out


def test_what_is_frozen_is_frozen_again_after_loading(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    assert set(wanted.values()) == {True, False}
    loaded = MMTModel.from_pretrained(tmp_path)
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == wanted
    loaded, info = MMTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == wanted
    text = MMTTextModelWithProjection.from_pretrained(tmp_path)
    assert all(wanted[name] == p.requires_grad for name, p in text.named_parameters())


def test_activation_checkpointing_changes_no_loss_and_no_gradient(make_model, make_batch):
    found = []
    for checkpointing in (False, True):
        model = make_model().train()
        runs = []
        model.text_model.pooling.layers[0].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        model.text_model.pooling.layers[0].fc1.register_forward_hook(lambda *_, runs=runs: runs.append("fc1"))
        if checkpointing:
            # transformers 5.6, the floor, has it under its older name
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        loss = model(**make_batch(), return_loss=True).loss
        before = runs.count("fc1")
        loss.backward()
        assert (runs.count("fc1") > before) == checkpointing  # computed again on the way back
        found.append({"loss": loss} | gradients(model))
    assert_same(found[1], found[0], rtol=0, atol=0)


# ---- the frozen layers' states


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("freeze", [1, 2, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_frozen_states_give_what_tokens_give(make_model, make_text_config, make_batch, model_type, freeze, attention):
    text = make_text_config(model_type, max_position_embeddings=42)
    batch, found = make_batch(), []
    for with_states in (False, True):
        model = make_model(text, freeze_text_layers=freeze, attention=attention)
        inputs = dict(batch)
        if with_states:
            for prefix in ("", "noised_", "paired_", "noised_paired_"):
                mask = batch["paired_attention_mask" if "paired" in prefix else "attention_mask"]
                states = model.text_model.frozen_states(inputs.pop(f"{prefix}input_ids"), mask)
                assert not states.requires_grad
                inputs[f"{prefix}text_states"] = states
        output = model(**inputs, return_loss=True)
        output.loss.backward()
        found.append({"loss": output.loss, "text": output.text_embeds} | gradients(model))
    assert is_varied(found[0]["text"])
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_frozen_states_are_the_encoders_hidden_states(make_model, make_batch):
    model, batch = make_model(freeze_text_layers=1), make_batch()
    with torch.no_grad():
        states = model.text_model.encoder(
            batch["input_ids"], batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    found = model.text_model.frozen_states(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found, states[1])
    assert (found - states[2]).abs().max() > 0.1


def test_frozen_states_draw_no_randomness_and_run_no_learning_layer(make_config, make_text_config, make_batch):
    """Else dropout would depend on what happens to be cached, and a resumed run would differ."""
    text = make_text_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model, batch = MMTModel(make_config(text)).train(), make_batch()
    ran = []
    model.text_model.encoder.encoder.layer[2].register_forward_hook(lambda *_: ran.append(1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = model.text_model.frozen_states(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model.text_model.frozen_states(batch["input_ids"], batch["attention_mask"]))
    assert ran == []


@pytest.mark.parametrize(
    ("model_type", "fields", "field"),
    [
        ("bert", {"freeze_text_embeddings": False}, "freeze_text_embeddings"),
        ("bert", {"freeze_text_layers": 0}, "freeze_text_layers"),
        ("electra", {"freeze_text_layers": 1}, "text_config.model_type 'electra'"),
    ],
)
def test_frozen_states_are_refused_by_name_where_they_would_be_wrong(
    make_model, make_text_config, make_batch, model_type, fields, field
):
    model, batch = make_model(make_text_config(model_type), **fields), make_batch()
    with pytest.raises(ValueError, match=field):
        model.text_model.frozen_states(batch["input_ids"], batch["attention_mask"])
    with pytest.raises(ValueError, match=field):
        model.get_text_features(attention_mask=batch["attention_mask"], text_states=torch.zeros(4, 6, 16))


def test_an_encoder_of_any_family_can_be_entered_when_wholly_frozen(make_model, make_text_config, make_batch):
    model = make_model(make_text_config("electra", embedding_size=16), freeze_text_layers=3)
    batch = make_batch()
    states = model.text_model.frozen_states(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        found = model.get_text_features(attention_mask=batch["attention_mask"], text_states=states).pooler_output
        wanted = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    torch.testing.assert_close(found, wanted)


def test_the_output_layer_really_cuts_the_encoder(make_model, make_batch):
    whole, batch = make_model(freeze_text_layers=1), make_batch()
    cut = make_model(freeze_text_layers=1, text_output_layer=2)
    kept = {
        key: v for key, v in whole.state_dict().items() if not key.startswith("text_model.encoder.encoder.layer.2.")
    }
    cut.load_state_dict(kept)  # strict: no third layer is there, and nothing else differs
    with torch.no_grad():
        states = whole.text_model.encoder(
            batch["input_ids"], batch["attention_mask"], output_hidden_states=True
        ).hidden_states
        embed = whole.text_model.pooling.standardize
        found = cut.text_model.encode(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(found, embed(states[2]))
        assert (found - embed(states[3])).abs().max() > 0.1


def test_an_encoder_without_one_stack_of_layers_is_refused_by_name(make_model):
    encoder = make_model().text_model.encoder
    encoder.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="text_config.model_type 'bert'.*7 layers"):
        encoder_layers(encoder)


# ---- checkpoints


@pytest.mark.parametrize("loss_type", ["nce", "sigmoid"])
def test_a_saved_model_loads_equal(make_model, make_batch, tmp_path, loss_type):
    model, batch = (
        make_model(loss_type=loss_type, pooling="cls", projection_hidden_dim=9, projection_skip=True),
        make_batch(),
    )
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
    model.save_pretrained(tmp_path)
    loaded, info = MMTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert_same(embeddings(loaded, batch), embeddings(model, batch), rtol=0, atol=0)
    assert type(AutoModel.from_pretrained(tmp_path)) is MMTModel
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]


def test_each_half_loads_from_the_whole_checkpoint(make_model, make_batch, tmp_path):
    model, batch = make_model(loss_type="sigmoid"), make_batch()
    model.save_pretrained(tmp_path)
    text, text_info = MMTTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    video, video_info = MMTVideoModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    for info in (text_info, video_info):
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("video" in name for name, _ in text.named_parameters())
    assert not any("text" in name for name, _ in video.named_parameters())
    with torch.no_grad():
        found = text(batch["input_ids"], batch["attention_mask"])
        wanted = model.get_text_features(batch["input_ids"], batch["attention_mask"])
        assert torch.equal(found.text_embeds, wanted.pooler_output)
        assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
        found = video(batch["video_features"], batch["video_mask"])
        wanted = model.get_video_features(batch["video_features"], batch["video_mask"])
        assert torch.equal(found.video_embeds, wanted.pooler_output)
        assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)


def saved_encoder(folder, text_config, leave_out=None):
    encoder = AutoModel.from_config(AutoConfig.for_model(**text_config))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_()
    state = {key: value for key, value in encoder.state_dict().items() if key != leave_out}
    encoder.save_pretrained(folder, state_dict=state)
    return encoder


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_a_pretrained_encoder_loads_exactly(make_text_config, tmp_path, model_type):
    encoder = saved_encoder(tmp_path, make_text_config(model_type))
    model = MMTModel.from_text_encoder(
        str(tmp_path), video_feature_dims=[8], text_output_layer=2, freeze_text_layers=1, hidden_size=24
    )
    wanted = {
        key: value for key, value in encoder.state_dict().items() if "pooler" not in key and "layer.2." not in key
    }
    assert_same(dict(model.text_model.encoder.state_dict()), wanted, rtol=0, atol=0)
    assert model.config.hidden_size == 24
    learning = {name for name, p in model.text_model.encoder.named_parameters() if p.requires_grad}
    assert learning == {name for name in wanted if "layer.1." in name}


def test_an_encoder_checkpoint_that_lacks_a_tensor_is_refused(make_text_config, tmp_path):
    lacking = "encoder.layer.1.attention.self.query.weight"
    saved_encoder(tmp_path, make_text_config(), leave_out=lacking)
    with pytest.raises(ValueError, match=lacking):
        MMTModel.from_text_encoder(str(tmp_path), text_output_layer=None, freeze_text_layers=1)


# ---- compilers


@pytest.mark.parametrize(
    ("cls", "names", "pooling"),
    [
        (MMTTextModelWithProjection, ["input_ids", "attention_mask"], "first"),
        (MMTVideoModelWithProjection, ["video_features", "video_mask"], "cls"),
    ],
)
def test_a_tower_exports_for_any_batch_and_length(make_model, make_batch, cls, names, pooling, tmp_path):
    make_model(pooling=pooling, freeze_text_layers=1, text_output_layer=1, num_hidden_layers=1).save_pretrained(
        tmp_path
    )
    tower, batch, dim = cls.from_pretrained(tmp_path), make_batch(), torch.export.Dim.DYNAMIC
    inputs = {name: batch[name] for name in names}
    longer = {name: torch.cat([value, value.flip(0)], dim=1)[1:] for name, value in inputs.items()}
    with torch.no_grad():
        shapes = {name: {0: dim, 1: dim} for name in names}
        program = torch.export.export(tower, (), inputs, dynamic_shapes=shapes).module()
        for each in (inputs, {name: value[:, :11] for name, value in longer.items()}):
            found, wanted = program(**each), tower(**each)
            assert is_varied(wanted[0])
            torch.testing.assert_close(found[0], wanted[0], **CLOSE)


def test_the_model_traces_whole_under_torch_compile(make_model, make_batch):
    """The `eager` backend runs dynamo alone: graph breaks show, and no C++ compiler is needed."""
    model, batch = make_model(freeze_text_layers=1, text_output_layer=1, num_hidden_layers=1), make_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        found, wanted = compiled(**batch, return_loss=True), model(**batch, return_loss=True)
    torch.testing.assert_close(found.loss, wanted.loss)
    torch.testing.assert_close(found.logits_per_text, wanted.logits_per_text)


@pytest.mark.slow
def test_the_compiled_model_gives_the_same_loss_and_gradients(make_model, make_batch):
    found = []
    for wrap in (lambda model: model, torch.compile):
        model = make_model(sharpness=1, freeze_text_layers=1, text_output_layer=2, num_hidden_layers=1)
        loss = wrap(model)(**make_batch(with_pairs=False), return_loss=True).loss
        loss.backward()
        found.append({"loss": loss} | gradients(model))
    assert_same(found[1], found[0], rtol=1e-3, atol=1e-4)
