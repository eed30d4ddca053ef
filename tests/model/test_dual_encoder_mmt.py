"""A model from a dual encoder starts as that encoder: each family's embeddings to 1e-5, whichever way it is loaded."""

import json
import logging
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import randomize
from safetensors.torch import load_file, save_file
from tiny_dual_encoders import CAPTIONS, bert_tokenizer, build, image_processor, pictures
from transformers.image_transforms import convert_to_rgb

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor
from modeling_mmt.dual_encoder_mmt import FAMILIES
from modeling_mmt.image_processing_mmt import PixelSettings, naflex_size

PEER = "an optional peer: extra `plugins`"

TESTS = Path(__file__).resolve().parents[1]
OTHERS = ("clipseg", "pair")  # through the two methods; a sentence-transformers text model beside a CLIP
FRESH = """
import sys
from pathlib import Path
if sys.argv[1] == "remote":
    sys.modules["modeling_mmt"] = None  # an installed copy is out of reach too
else:
    import modeling_mmt
import torch
from tiny_dual_encoders import CAPTIONS, pictures
from transformers import AutoModel, AutoProcessor

options = {"trust_remote_code": True} if sys.argv[1] == "remote" else {}
found = {}
for folder in sorted(path for path in Path("saved").iterdir()):
    model = AutoModel.from_pretrained(folder, **options)
    processor = AutoProcessor.from_pretrained(folder, **options)
    assert type(model).__module__.startswith("transformers_modules" if options else "modeling_mmt")
    with torch.inference_mode():
        found[f"{folder.name}_text"] = model.get_text_features(**processor(text=CAPTIONS)).pooler_output
        found[f"{folder.name}_image"] = model.get_video_features(**processor(images=pictures())).pooler_output
torch.save(found, f"{sys.argv[1]}.pt")
"""


def unit(embeds):
    return torch.nn.functional.normalize(embeds, dim=-1)


def same(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
    distances = torch.pdist(wanted.float())
    assert distances.median() > 0.1  # rows differ, so that equality says something


def rgb(processor, picture):
    """As the original wants it: some processors turn a picture into RGB themselves, for others transformers does."""
    return picture if getattr(processor.image_processor, "do_convert_rgb", None) else convert_to_rgb(picture)


def build_pair(folder):
    """A text model as sentence-transformers saves it (mean, a linear Dense), and the CLIP whose space it shares.

    Returns:
        Its captions' embeddings by sentence-transformers itself, and the CLIP's model and processor.
    """
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason=PEER)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer

    model, processor, _ = build("clip", folder / "clip")
    tokenizer = bert_tokenizer(max_length=128)
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=128
    )
    randomize(transformers.DistilBertModel(config), sharpness=2).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    parts = [Transformer(str(folder / "bert"), max_seq_length=50), modules.Pooling(32, "mean")]
    dense = randomize(Dense(32, 24, bias=False, activation_function=torch.nn.Identity()))
    text = SentenceTransformer(modules=[*parts, dense], device="cpu")
    text.save(str(folder / "text"))
    return torch.from_numpy(text.encode(CAPTIONS, normalize_embeddings=True)), model, processor


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Each family by name: a checkpoint, its own model's and processor's embeddings, and ours from it."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        if name == "pair":
            text, model, processor = build_pair(folder)
            names = (str(folder / "text"), str(folder / "clip"))
        else:
            model, processor, options = build(name, folder)
            with torch.inference_mode():
                tokens = processor(text=CAPTIONS, return_tensors="pt", **options)
                text, names = unit(model.get_text_features(**tokens).pooler_output), (str(folder),)
        pixels, image = of_the_original(model, processor, pictures())
        return SimpleNamespace(
            name=name,
            source=model,
            source_processor=processor,
            text=text,
            image=image,
            pixels=pixels,
            names=names,
            model=MMTModel.from_dual_encoder(*names),
            processor=MMTProcessor.from_dual_encoder(*names),
        )

    return make


@pytest.fixture(params=[*FAMILIES, *OTHERS])
def family(request, families):
    return families(request.param)


def of_the_original(model, processor, given):
    """The original's pixels of pictures, and their unit-norm embeddings."""
    with torch.inference_mode():
        pixels = processor.image_processor([rgb(processor, picture) for picture in given], return_tensors="pt")
        return pixels, unit(model.get_image_features(**pixels).pooler_output)


def embeddings(model, processor):
    with torch.inference_mode():
        text = model.get_text_features(**processor(text=CAPTIONS)).pooler_output
        return text, model.get_video_features(**processor(images=pictures())).pooler_output


def test_captions_and_pictures_have_the_originals_embeddings(family):
    text, image = embeddings(family.model, family.processor)
    same(unit(text), family.text)
    same(unit(image), family.image)


def test_the_originals_own_pixels_have_its_embeddings(family):
    if family.name == "siglip2":
        pytest.skip("its processor makes patches; ours makes the pictures that they are cut from")
    with torch.inference_mode():
        found = family.model.get_video_features(pixel_values=family.pixels["pixel_values"][:, None]).pooler_output
    same(unit(found), family.image)


def test_our_pixels_are_the_originals(family):
    if family.name == "siglip2":
        pytest.skip("its processor makes patches; see test_naflex_*")
    found = family.processor(images=pictures())["pixel_values"][:, 0]
    torch.testing.assert_close(found, family.pixels["pixel_values"], rtol=0, atol=2e-6)


def test_a_clip_is_the_normalised_mean_of_its_frames_normalised_embeddings(family):
    drawn = [picture.convert("RGB").resize((40, 56)) for picture in pictures()]
    clips = [drawn[:8], drawn[8:16]]
    batch = family.processor(videos=clips)
    assert batch["video_mask"].tolist() == [[1] * 8] * 2
    with torch.inference_mode():
        found = family.model.get_video_features(**batch).pooler_output
    singles = [of_the_original(family.source, family.source_processor, clip)[1] for clip in clips]
    wanted = unit(torch.stack([single.mean(0) for single in singles]))
    torch.testing.assert_close(unit(found), wanted, rtol=0, atol=1e-5)
    assert (wanted[0] - wanted[1]).norm() > 0.01


def test_temporal_layers_start_as_the_identity_of_the_frame_mean_whatever_their_number(families):
    family = families("clip")
    clip = family.processor(videos=[[picture.convert("RGB").resize((40, 56)) for picture in pictures()[:8]]])
    starts = [{"num_hidden_layers": 0}, {"num_hidden_layers": 4}, {"num_hidden_layers": 4, "residual_init": "normal"}]
    with torch.inference_mode():
        wanted, found, other = (
            MMTModel.from_dual_encoder(*family.names, **fields).get_video_features(**clip).pooler_output
            for fields in starts
        )
    assert torch.equal(found, wanted)
    assert (other - wanted).norm() > 0.01  # the layers are there


def test_two_clips_of_other_lengths_and_shapes_share_a_batch(family):
    long = [picture.convert("RGB").resize((40, 56)) for picture in pictures()[:5]]
    short = [picture.convert("RGB").resize((90, 30)) for picture in pictures()[5:7]]
    with torch.inference_mode():
        together = family.model.get_video_features(**family.processor(videos=[long, short])).pooler_output
        alone = [
            family.model.get_video_features(**family.processor(videos=[clip])).pooler_output for clip in (long, short)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_the_forward_gives_the_originals_similarities_and_a_loss(family):
    batch = family.processor(text=CAPTIONS[:20]) | family.processor(images=pictures())
    with torch.inference_mode():
        output = family.model(**batch, return_loss=True)
    same(output.text_embeds, family.text[:20])
    scale = family.model.logit_scale.exp()
    torch.testing.assert_close(output.logits_per_text, scale * family.text[:20] @ family.image.T, rtol=0, atol=2e-3)
    assert torch.isfinite(output.loss)


def test_temperature_and_bias_are_the_originals(family):
    source, config = family.source, family.model.config
    scale = source.logit_scale.exp() if hasattr(source, "logit_scale") else 1 / source.temperature
    torch.testing.assert_close(family.model.logit_scale.exp(), scale.detach().reshape(()))
    is_sigmoid = family.name in ("siglip", "siglip2")
    assert config.loss_type == ("sigmoid" if is_sigmoid else "symmetric_softmax")
    if is_sigmoid:
        torch.testing.assert_close(family.model.logit_bias, source.logit_bias.reshape(()))


@pytest.mark.parametrize("code", ["package", "remote"])
def test_saved_and_loaded_in_a_fresh_process_every_family_gives_the_same(families, code, tmp_path):
    for name in (*FAMILIES, *OTHERS):
        families(name).model.save_pretrained(tmp_path / "saved" / name)
        families(name).processor.save_pretrained(tmp_path / "saved" / name)
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / f"{code}.pt", weights_only=True)
    for name in (*FAMILIES, *OTHERS):
        same(unit(found[f"{name}_text"]), families(name).text)
        same(unit(found[f"{name}_image"]), families(name).image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_loads_and_embeds_in_half_precision(family, dtype, tmp_path):
    family.model.save_pretrained(tmp_path)
    model = MMTModel.from_pretrained(tmp_path, dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {dtype}
    text, image = embeddings(model, family.processor)
    wanted = zip((text, image), (family.text, family.image), strict=True)
    for found, exact in wanted:
        assert found.dtype == dtype
        similarity = torch.nn.functional.cosine_similarity(found.float(), exact)
        assert similarity.min() > (0.9 if dtype == torch.bfloat16 else 0.999)


def test_what_training_would_touch_is_the_heads_alone(family):
    learning = {name for name, value in family.model.named_parameters() if value.requires_grad}
    assert learning and not [name for name in learning if ".encoder." in name or "vision_model" in name]
    assert {name for name in learning if "input_projection" in name} == {
        f"{tower}_model.pooling.input_projection.{part}"
        for tower in ("text", "video")
        if (projection := getattr(family.model, f"{tower}_model").pooling.input_projection) is not None
        for part, value in projection.named_parameters()
    }
    batch = family.processor(text=CAPTIONS[:4]) | family.processor(images=pictures()[:4])
    model = MMTModel.from_dual_encoder(*family.names).train()
    model(**batch, return_loss=True).loss.backward()
    branches = [
        module.out_proj.weight
        for module in model.modules()
        if hasattr(module, "out_proj") and hasattr(module, "scaling")
    ]
    grown = [weight for weight in branches if weight.requires_grad and weight.grad is not None]
    assert grown and all((weight == 0).all() and weight.grad.abs().max() > 0 for weight in grown)


def test_frozen_states_are_what_a_layer_cache_may_keep(family):
    tokens = family.processor(text=CAPTIONS[:7])
    with torch.inference_mode():
        states = family.model.text_model.frozen_states(tokens["input_ids"], tokens["attention_mask"])
        kept = family.model.get_text_features(
            text_states=states, attention_mask=tokens["attention_mask"]
        ).pooler_output
    torch.testing.assert_close(unit(kept), family.text[:7], rtol=0, atol=1e-5)


def test_frames_may_enter_the_mean_as_they_are(families):
    family = families("clip")
    model = MMTModel.from_dual_encoder(*family.names, unit_steps=False)
    drawn = [picture.convert("RGB").resize((40, 56)) for picture in pictures()[:8]]
    with torch.inference_mode():
        found = model.get_video_features(**family.processor(videos=[drawn])).pooler_output
        pixels, _ = of_the_original(family.source, family.source_processor, drawn)
        wanted = family.source.get_image_features(**pixels).pooler_output.mean(0, keepdim=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (wanted.norm() - 1).abs() > 0.05


# What checkpoints look like in the wild.


def rewrite(folder, change):
    """Change the tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.fixture
def clip(families, tmp_path):
    """A folder of its own with the CLIP, and the family."""
    family = families("clip")
    shutil.copytree(family.names[0], tmp_path / "clip")
    return tmp_path / "clip", family


def test_a_sharded_checkpoint_is_taken_whole(families, tmp_path):
    family = families("siglip")
    family.source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    with torch.inference_mode():
        text, image = embeddings(MMTModel.from_dual_encoder(str(tmp_path)), family.processor)
    same(unit(text), family.text)
    same(unit(image), family.image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bit_is_computed_in_32(families, dtype, tmp_path):
    family = families("metaclip_2")
    copy = transformers.MetaClip2Model.from_pretrained(family.names[0], dtype=dtype)
    copy.save_pretrained(tmp_path)
    copy.float()
    model = MMTModel.from_dual_encoder(str(tmp_path))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    text, image = embeddings(model, family.processor)
    with torch.inference_mode():
        tokens = family.processor(text=CAPTIONS)
        wanted = unit(copy.eval().get_text_features(**tokens).pooler_output)
    same(unit(text), wanted)
    same(unit(image), of_the_original(copy, family.source_processor, pictures())[1])
    assert (wanted - family.text).abs().max() > 1e-4  # 16 bits are not 32


def test_a_text_table_larger_than_the_tokenizer_is_kept(families):
    family = families("metaclip_2")
    words = family.model.text_model.get_input_embeddings()
    assert words.num_embeddings == len(family.processor.tokenizer) + 50
    last = torch.tensor([[0, words.num_embeddings - 1, 2]])
    with torch.inference_mode():
        found = family.model.get_text_features(input_ids=last).pooler_output
        wanted = family.source.get_text_features(input_ids=last).pooler_output
    torch.testing.assert_close(unit(found), unit(wanted), rtol=0, atol=1e-5)


def test_pickled_weights_are_refused(clip):
    folder, _ = clip
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        MMTModel.from_dual_encoder(str(folder))


@pytest.mark.parametrize("lost", ["visual_projection.weight", "text_model.final_layer_norm.bias"])
def test_a_missing_weight_is_named(clip, lost):
    folder, _ = clip
    rewrite(folder, lambda weights: weights.pop(lost))
    with pytest.raises(ValueError, match=f"the checkpoint lacks .*{lost}.*two towers need"):
        MMTModel.from_dual_encoder(str(folder))


def test_a_missing_temperature_is_that_of_the_originals_configuration(clip):
    folder, family = clip
    rewrite(folder, lambda weights: weights.pop("logit_scale"))
    model = MMTModel.from_dual_encoder(str(folder))
    assert model.logit_scale.item() == pytest.approx(family.source.config.logit_scale_init_value)
    same(unit(embeddings(model, family.processor)[0]), family.text)


def test_a_bias_that_the_family_does_not_know_is_left_out_with_a_warning(clip, caplog, monkeypatch):
    folder, family = clip
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rewrite(folder, lambda weights: weights.update(logit_bias=torch.tensor(-7.0)))
    model = MMTModel.from_dual_encoder(str(folder))
    assert f"{folder}: it has a logit_bias, which CLIPModel does not know" in caplog.text
    assert model.logit_bias is None and model.config.loss_type == "symmetric_softmax"
    same(unit(embeddings(model, family.processor)[0]), family.text)


def test_projections_that_the_original_ties_are_two_here(tmp_path):
    """Of equal width, the original may use one tensor for both; each tower gets a copy, so that either can learn."""
    build("clip", tmp_path, vision_config={"hidden_size": 32, "num_attention_heads": 4})
    rewrite(
        tmp_path,
        lambda weights: weights.update({"visual_projection.weight": weights["text_projection.weight"].clone()}),
    )
    model = MMTModel.from_dual_encoder(str(tmp_path))
    text, video = (tower.pooling.input_projection.weight for tower in (model.text_model, model.video_model))
    assert torch.equal(text, video) and text.data_ptr() != video.data_ptr()
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(MMTModel.from_pretrained(tmp_path / "saved").video_model.pooling.input_projection.weight, video)


# What is refused, by name and with the reason.


def test_x_clip_is_refused_with_the_reason(tmp_path):
    config = transformers.XCLIPConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="xclip cannot be imported: its text embedding depends on the video"):
        MMTModel.from_dual_encoder(str(tmp_path))


def test_a_model_without_the_two_methods_is_refused_with_what_is_missing(families, tmp_path):
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel has no get_text_features and no get_image_features"):
        MMTModel.from_dual_encoder(str(tmp_path))


def test_a_checkpoint_of_ours_is_no_dual_encoder_to_start_from(families, tmp_path):
    families("clip").model.save_pretrained(tmp_path)
    assert (tmp_path / "modules.json").exists()  # without a Pooling: not a text model
    with pytest.raises(ValueError, match="MMTModel has no get_image_features"):
        MMTModel.from_dual_encoder(str(tmp_path))


def test_the_sizes_of_a_whole_dual_encoder_are_bounded_too(families):
    fields = families("clipseg").model.config.to_dict()
    fields["text_config"]["text_config"]["num_hidden_layers"] = 10**7
    with pytest.raises(ValueError, match="text_config.num_hidden_layers is 10000000"):
        MMTConfig(**fields)
    fields = families("clipseg").model.config.to_dict()
    fields["vision_config"][0]["vision_config"]["hidden_size"] = 10**9
    with pytest.raises(ValueError, match="vision_config.hidden_size is 1000000000"):
        MMTConfig(**fields)


def test_a_pair_says_what_it_lacks(families, tmp_path):
    pair, clip, wider = families("pair"), families("clip"), families("siglip")
    text = pair.names[0]
    with pytest.raises(ValueError, match="has a modules.json.*give vision_model"):
        MMTModel.from_dual_encoder(text)
    with pytest.raises(ValueError, match="makes vectors of 24 numbers, .* of 40: they do not share a space"):
        MMTModel.from_dual_encoder(text, wider.names[0])
    with pytest.raises(ValueError, match="has no modules.json.*leave vision_model"):
        MMTModel.from_dual_encoder(clip.names[0], clip.names[0])
    shutil.copytree(text, tmp_path / "text")
    options = tmp_path / "text" / "sentence_bert_config.json"
    told = options.read_text()
    options.write_text(json.dumps(json.loads(told) | {"do_lower_case": True}))
    with pytest.raises(ValueError, match="sentence_bert_config.json has do_lower_case true"):
        MMTProcessor.from_dual_encoder(str(tmp_path / "text"), clip.names[0])
    options.write_text(told)
    path = next((tmp_path / "text").glob("*Dense/config.json"))
    path.write_text(path.read_text().replace("linear.Identity", "activation.Tanh"))
    with pytest.raises(ValueError, match="Dense/config.json has activation_function .*Tanh'; supported: Identity"):
        MMTModel.from_dual_encoder(str(tmp_path / "text"), clip.names[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_encoder": {"text_pooling": "middle"}}, "dual_encoder.text_pooling is 'middle'; allowed: 'pooler'"),
        ({"dual_encoder": {"text_polling": "first"}}, "dual_encoder is .*allowed: text_pooling, text_projection"),
        ({"hidden_size": 48}, "hidden_size is 48; allowed: projection_dim, with dual_encoder"),
        ({"pooling": "cls"}, "pooling is 'cls'; allowed: 'mean', with dual_encoder"),
        ({"hidden_size": 48, "projection_dim": 48}, "allowed: 40, the width of the text encoder"),
    ],
)
def test_a_configuration_that_could_not_start_as_the_original_is_refused(families, change, message):
    fields = families("siglip").model.config.to_dict() | change
    with pytest.raises(ValueError, match=message):
        MMTModel(MMTConfig(**fields))


def test_blank_captions_are_refused_and_others_are_not_touched(families):
    processor = families("siglip2").processor
    with pytest.raises(ValueError, match="caption 1 is empty"):
        processor(text=["a dog", " "])
    own = processor.tokenizer(["two  spaces"], padding="max_length", max_length=64)["input_ids"]
    assert processor(text=["two  spaces"])["input_ids"].tolist() == own
    assert processor(text=["two spaces"])["input_ids"].tolist() != own


# NaFlex: pictures of any shape.


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (2000, 3), (17, 90), (224, 224), (333, 500)])
def test_naflex_resizes_as_siglip_2s_own_processor(shape):
    module = sys.modules[type(image_processor("siglip2")).__module__]
    for patch, most in ((16, 256), (8, 20), (14, 1024)):
        assert naflex_size(*shape, patch, most) == module.get_image_size_for_max_num_patches(*shape, patch, most)


def test_naflex_settings_are_read_from_its_own_file(families):
    settings = PixelSettings.from_pretrained(families("siglip2").names[0])
    assert (settings.max_patches, settings.patch_size, settings.resample) == (20, 8, "bilinear")
    assert settings.at(64).max_patches == 64


# Other libraries.


def test_sentence_transformers_gives_the_same(families, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason=PEER)
    for name in ("siglip", "altclip", "pair"):
        family = families(name)
        family.model.save_pretrained(tmp_path / name)
        family.processor.save_pretrained(tmp_path / name)
        model = sentence_transformers.SentenceTransformer(str(tmp_path / name), device="cpu")
        same(torch.from_numpy(model.encode(CAPTIONS)), family.text)
        found = model.encode([{"image": picture.convert("RGB")} for picture in pictures()])
        opaque = [number for number, picture in enumerate(pictures()) if not picture.has_transparency_data]
        same(torch.from_numpy(found)[opaque], family.image[opaque])
