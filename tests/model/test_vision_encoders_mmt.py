"""From pixels: vision encoders under the video tower, and the processor that makes their pixels."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import build_config, build_model, build_processor, randomize
from PIL import Image
from safetensors.torch import save_file
from tiny_vision import (
    ENCODERS,
    PIXELS,
    SIDE,
    STEP,
    TIMM_PIXELS,
    VIDEO_PIXELS,
    VIT,
    clip,
    fields,
    save_checkpoint,
    save_encoders,
    vision_model,
    vision_processor,
)

from modeling_mmt import (
    EfficientNetLiteModel,
    MMTConfig,
    MMTModel,
    MMTProcessor,
    MMTSearchPipeline,
    MMTVideoModelWithProjection,
)
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings, center_crop
from modeling_mmt.vision_configuration_mmt import vision_encoder_config
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder, naflex_inputs


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_the_vector_that_its_config_says_from_mmt(name):
    model = vision_model(name)
    (expert,) = model.video_model.vision_experts
    side = 64 if name in ("convnext", "resnet") else SIDE  # they halve it five times
    pixels = torch.randn(2, 3, *([STEP] if expert.frames_per_step else []), 3, side, side)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    features = model.video_model.features(pixels, mask)
    assert features.shape == (2, 3, model.config.video_feature_dim)
    assert (features[0, 1:] == 0).all() and features[mask.bool()].std(0).max() > 0
    torch.testing.assert_close(features[1], expert(pixels[1]), atol=1e-5, rtol=1e-4)
    found = model.get_video_features(pixel_values=pixels, video_mask=mask).pooler_output
    wanted = model.get_video_features(features, mask).pooler_output  # extracted beforehand
    torch.testing.assert_close(found, wanted)
    assert (found[0] - found[1]).norm() > 0.05


@pytest.mark.parametrize("name", ["clip_vision_model", "siglip_vision_model", "vit", "dinov2", "efficientnet_lite"])
def test_the_pooled_vector_is_the_encoders_own(name):
    expert = MMTVisionEncoder(vision_encoder_config(fields(name))).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(expert(pixels), expert.encoder(pixels).pooler_output.flatten(1))


def test_a_mean_takes_the_place_of_a_pooler_which_is_then_left_out():
    expert = MMTVisionEncoder(vision_encoder_config(fields("vit")), "mean").eval()
    assert not [name for name in expert.state_dict() if "pooler" in name]
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(expert(pixels), expert.encoder(pixels).last_hidden_state.mean(1))
    assert not [
        name for name in MMTVisionEncoder(vision_encoder_config(fields("vjepa2"))).state_dict() if "predictor" in name
    ]


def test_naflex_patches_are_those_of_siglip_2s_own_processor():
    module = importlib.import_module("transformers.models.siglip2.image_processing_pil_siglip2")
    picture = clip(1, SIDE, SIDE)[0]
    theirs = module.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4)(
        Image.fromarray(picture), return_tensors="pt"
    )
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    ours = naflex_inputs(pixels, 8)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].to(value.dtype), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_patches", "side"), [(256, 128), (250, 120), (4, 16)])
def test_a_naflex_processor_says_the_largest_square_that_its_patches_make(tmp_path, num_patches, side):
    module = importlib.import_module("transformers.models.siglip2.image_processing_pil_siglip2")
    processor = module.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=num_patches)
    processor.save_pretrained(tmp_path)
    settings = PixelSettings.from_pretrained(tmp_path)
    assert (settings.height, settings.width, settings.resize) == (side, side, (side, side))
    picture = clip(1, side, side)[0]
    theirs = processor(Image.fromarray(picture), return_tensors="pt")
    ours = naflex_inputs(settings.prepare(torch.from_numpy(picture).permute(2, 0, 1)[None]), 8)
    real = theirs["pixel_attention_mask"][0].bool()
    torch.testing.assert_close(ours["pixel_values"][0], theirs["pixel_values"][0][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 8}, "size is None"),
        ({"max_num_patches": 256, "patch_size": "small"}, "patch_size 'small'"),
        ({"max_num_patches": "many", "patch_size": 8}, "max_num_patches is 'many'"),
        ({"size": {"longest_edge": 364}}, "size is {'longest_edge': 364}"),  # Idefics, SmolVLM
        ({"size": {"min_pixels": 9, "max_pixels": 99}}, "size is {'min_pixels"),  # Qwen
        ({"size": "large"}, "size is 'large'"),
    ],
)
def test_a_processor_that_says_no_size_is_refused_in_one_line(tmp_path, settings, words):
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=words) as caught:
        PixelSettings.from_pretrained(tmp_path)
    assert f"{tmp_path}: preprocessor_config.json: " in str(caught.value) and "\n" not in str(caught.value)


PROCESSORS = {
    "clip": ("CLIPImageProcessorPil", {}),
    "siglip": ("SiglipImageProcessorPil", {}),
    "vit": ("ViTImageProcessorPil", {}),
    "bit": ("BitImageProcessorPil", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
    "efficientnet": ("EfficientNetImageProcessorPil", {"rescale_offset": True}),
    "videomae": ("VideoMAEImageProcessorPil", {}),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(240, 320), (37, 52), (224, 224), (331, 330)])
def test_pixels_are_the_encoders_own_processors_within_two_levels(name, shape):
    """On noise, which is the hardest; tall frames apart, which Pillow 13 and older ones resize in another order."""
    class_name, options = PROCESSORS[name]
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    processor = getattr(module, class_name)(**options)
    settings = PixelSettings.from_processor(processor.to_dict())
    picture = clip(1, *shape)[0]
    given = [[Image.fromarray(picture)]] if name == "videomae" else Image.fromarray(picture)
    theirs = np.asarray(processor(given, return_tensors="np")["pixel_values"]).reshape(
        1, 3, settings.height, settings.width
    )
    ours = settings.prepare(torch.from_numpy(picture).permute(2, 0, 1)[None]).numpy()
    levels = np.abs(ours - theirs) * np.array(settings.std).reshape(3, 1, 1) / settings.scale
    assert levels.max() < 2.01
    assert (levels > 0.01).mean() < 0.01


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"size": 16, "crop_size": 16, "do_center_crop": True, "resample": 3}, (16, 16, 16, "bicubic")),  # old CLIP's
        ({"size": 16}, (16, 16, (16, 16), "bilinear")),  # old ViT's
        ({"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 28}, "do_center_crop": True},
         (32, 28, 36, "bilinear")),
        ({"do_resize": False, "size": {"height": 8, "width": 9}}, (8, 9, None, "bicubic")),
    ],
)  # fmt: skip
def test_settings_are_read_from_files_of_every_age(settings, wanted):
    found = PixelSettings.from_processor({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]} | settings)
    assert (found.height, found.width, found.resize, found.resample) == wanted


def test_timms_settings_are_read_and_a_side_may_be_another():
    timm = {
        "input_size": [3, 224, 224],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.1] * 3,
        "std": [1] * 3,
    }
    found = PixelSettings.from_processor({"pretrained_cfg": timm})
    assert (found.height, found.resize, found.resample, found.mean) == (224, 256, "bicubic", (0.1,) * 3)
    assert (found.at(112).height, found.at(112).resize) == (112, 128)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"height": 8, "width": 8}}, "no image_mean"),
        ({"size": {"shortest_edge": 8}, "image_mean": [0] * 3, "image_std": [1] * 3}, "without a center crop"),
        ({"size": 8, "image_mean": [0] * 3, "image_std": [1] * 3, "resample": 1}, "resample is 1"),
        ({"size": 10**6, "image_mean": [0] * 3, "image_std": [1] * 3}, "PixelSettings.height is 1000000"),
        ({"size": 8, "image_mean": [0] * 3, "image_std": [0] * 3}, "PixelSettings.std"),
        ({"pretrained_cfg": {"mean": [0] * 3}}, "no input_size"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PixelSettings.from_processor(settings)


def test_a_processor_that_does_not_normalise_needs_no_mean(tmp_path):
    settings = {"do_normalize": False, "size": {"height": 2, "width": 3}}  # TIPSv2's
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    frame = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 3, 2, 3)
    found = PixelSettings.from_pretrained(tmp_path).prepare(frame)
    torch.testing.assert_close(found, torch.tensor([0, 0.2, 1]).expand(1, 3, 2, 3))


def test_a_small_frame_is_filled_up_with_black():
    frame = torch.full((1, 3, 3, 2), 7, dtype=torch.uint8)
    filled = center_crop(frame, 6, 3)
    assert filled.shape == (1, 3, 6, 3) and (filled == 7).sum() == 18 and (filled[..., 0, :] == 0).all()


def test_the_processor_pads_ragged_clips_and_pictures_are_clips_of_one_step():
    processor = vision_processor(vision_model())
    clips = [clip(5), clip(2, 40, 24, seed=1)]
    batch = processor(text=["red dog", "home"], videos=clips)
    assert list(batch) == processor.model_input_names == ["input_ids", "attention_mask", "pixel_values", "video_mask"]
    assert batch["pixel_values"].shape == (2, 5, 3, SIDE, SIDE) and batch["pixel_values"].dtype == torch.float32
    assert batch["video_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert (batch["pixel_values"][1, 2:] == 0).all()
    wanted = PIXELS.prepare(torch.from_numpy(clips[1]).permute(0, 3, 1, 2))
    assert torch.equal(batch["pixel_values"][1, :2], wanted)
    frames = [Image.fromarray(frame) for frame in clips[1]]
    assert torch.equal(processor(videos=[frames])["pixel_values"][0], wanted)
    pictures = processor(images=frames)
    assert pictures["pixel_values"].shape == (2, 1, 3, SIDE, SIDE) and torch.equal(
        pictures["pixel_values"][:, 0], wanted
    )


def test_files_are_decoded(tmp_path):
    frames = [Image.fromarray(frame) for frame in clip(3)]
    (tmp_path / "folder").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "folder" / f"{number}.png")
    processor = vision_processor(vision_model())
    wanted = processor(videos=[frames])["pixel_values"]
    png = tmp_path / "folder" / "0.png"
    assert torch.equal(processor(videos=[tmp_path / "folder"])["pixel_values"], wanted)
    for given in (png, str(png), png.read_bytes()):
        assert torch.equal(processor(images=[given])["pixel_values"], wanted[:, :1])
    assert torch.equal(processor(images=str(png))["pixel_values"], wanted[:, :1])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"bad\.mp4"):
        processor(videos=[tmp_path / "bad.mp4"])
    with pytest.raises(ValueError, match="videos is empty"):
        processor(videos=[])


def test_a_video_encoders_steps_hold_several_frames_and_the_last_is_filled_up():
    model = vision_model("videomae", "vit")
    processor = vision_processor(model, [VIDEO_PIXELS, PIXELS])
    assert processor.feature_extractor.sampling["num_frames"] == 8 * STEP
    frames = clip(6)
    batch = processor(videos=[frames])
    assert batch["pixel_values"].shape == (1, 2, STEP, 3, SIDE, SIDE)
    every = PIXELS.prepare(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert torch.equal(batch["pixel_values"].flatten(0, 2), every[[0, 1, 2, 3, 4, 5, 5, 5]])
    assert torch.equal(batch["pixel_values_1"][0], every[[2, 5]])  # the middle frame of each step
    assert model.config.video_feature_dims == [16, 16]
    with torch.no_grad():
        features = model.video_model.features(batch["pixel_values"], batch["video_mask"], batch)
        torch.testing.assert_close(model(**processor("red", [features[0].numpy()])).video_embeds,
                                   model(**processor("red"), **batch).video_embeds)  # fmt: skip
    with pytest.raises(ValueError, match="pixel_values_1 is missing"):
        model.get_video_features(pixel_values=batch["pixel_values"])


def test_what_stands_in_the_padding_and_beside_a_clip_changes_nothing():
    model, (long, short) = vision_model(), (clip(5), clip(2, seed=1))
    processor = vision_processor(model)
    alone, both = processor(videos=[short]), processor(videos=[short, long])
    both["pixel_values"][0, 2:] = float("nan")
    with torch.no_grad():
        found = model.get_video_features(**both).pooler_output[:1]
        torch.testing.assert_close(found, model.get_video_features(**alone).pooler_output, atol=1e-5, rtol=1e-5)


def gradients(model, batch):
    model.zero_grad()
    model(**batch, return_loss=True).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["vit", "efficientnet_lite"])
def test_micro_batches_change_neither_embeddings_nor_gradients(name):
    options = {"learn_vision_layers": 1, "norm_placement": "pre"}
    models = [vision_model(name, vision_batch_size=size, **options).train() for size in (64, 2)]
    batch = vision_processor(models[0])(text=["red dog", "home"], videos=[clip(5), clip(2, seed=1)])
    whole, parts = (gradients(model, batch) for model in models)
    assert whole.keys() == parts.keys() and any("vision_model" in key for key in whole)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["vit", "clip_vision_model", "dinov2", "videomae", "efficientnet_lite"])
@pytest.mark.parametrize("learning", [0, 1, None])
def test_what_is_frozen_stays_in_eval_mode_and_the_rest_learns(name, learning):
    model = vision_model(name, learn_vision_layers=learning).train()
    (expert,) = model.video_model.vision_experts
    taken = (STEP,) if expert.frames_per_step else ()
    found = gradients(
        model, build_processor()(text=["red", "dog"]) | {"pixel_values": torch.randn(2, 2, *taken, 3, SIDE, SIDE)}
    )
    learns = {key for key in found if "vision_model" in key and found[key].abs().sum() > 0}
    every = {key for key, _ in model.named_parameters() if "vision_model" in key}
    if learning == 0:
        assert not learns and not any(module.training for module in expert.modules())
    elif learning == 1:
        last = "blocks.2." if name == "efficientnet_lite" else r".2."
        assert any(last in key for key in learns)
        assert not any(
            ".0." in key.split("experts.0.")[1] and last not in key for key in learns if name != "efficientnet_lite"
        )
        assert 0 < len(learns) < len(every)
    else:
        assert len(learns) > 0.8 * len(every)
    assert model.video_model.pooling.training
    assert not any(m.training for m in expert.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_more_learning_layers_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="learn_vision_layers is 9, but vit has a stack of 3"):
        vision_model(learn_vision_layers=9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def checkpoint(folders, tmp_path_factory):
    return save_checkpoint(folders, tmp_path_factory.mktemp("published") / "mmt-pixels")


def test_pretrained_encoders_come_with_their_weights_and_their_pixels(folders, checkpoint):
    model, processor = MMTModel.from_pretrained(checkpoint), MMTProcessor.from_pretrained(checkpoint)
    batch = processor(videos=[clip(3)])
    whole = transformers.CLIPModel.from_pretrained(folders / "clip").eval()
    own = transformers.CLIPImageProcessorPil.from_pretrained(folders / "clip")
    wanted = own(list(clip(3)), return_tensors="pt")["pixel_values"]
    assert ((batch["pixel_values"][0] - wanted).abs() > 1e-3).float().mean() < 0.01
    first, second = model.config.video_feature_dims
    assert (first, second) == (16, 12)
    features = model.video_model.features(batch["pixel_values"], batch["video_mask"], batch)
    pooled = whole.vision_model(batch["pixel_values"][0]).pooler_output
    torch.testing.assert_close(features[0, :, :first], pooled)
    lite = EfficientNetLiteModel.from_pretrained(folders / "lite").eval()
    torch.testing.assert_close(features[0, :, first:], lite(batch["pixel_values_1"][0]).pooler_output)
    text = json.dumps(model.config.to_dict())
    assert str(folders) not in text and "auto_map" not in json.dumps(model.config.to_dict()["vision_config"])


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_a_timm_encoder_gives_timms_own_vectors_of_timms_own_pixels(folders, tmp_path, name):
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # its torchvision is not there, or was built for another torch
        pytest.skip(f"timm does not import: {error}")
    torch.manual_seed(0)
    own = randomize(timm.create_model(name)).eval()  # with a head, as timm's are published
    (tmp_path / "timm").mkdir()
    save_file(own.state_dict(), tmp_path / "timm" / "model.safetensors", {"format": "pt"})
    config = {"architecture": name, "num_classes": own.num_classes, "num_features": own.num_features}
    config["pretrained_cfg"] = {key: own.pretrained_cfg[key] for key in TIMM_PIXELS}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    names = str(folders / "text"), str(tmp_path / "timm")
    heads = {key: value for key, value in build_config().to_dict().items() if key in ("hidden_size", "projection_dim")}
    model = MMTModel.from_encoders(*names, text_output_layer=None, freeze_text_layers=2, intermediate_size=20, **heads)
    model.eval()
    processor = MMTProcessor.from_encoders(*names)
    batch = processor(text=["red dog"] * 3, videos=[clip(3, 200, 240)])
    transform = timm.data.create_transform(**timm.data.resolve_data_config(own.pretrained_cfg))
    wanted = torch.stack([transform(Image.fromarray(frame)) for frame in clip(3, 200, 240)])
    std = torch.tensor(own.pretrained_cfg["std"]).view(3, 1, 1)
    levels = (batch["pixel_values"][0] - wanted).abs() * std * 255
    assert levels.max() < 2.01 and (levels > 0.01).float().mean() < 0.01
    with torch.no_grad():
        features = model.video_model.features(batch["pixel_values"], batch["video_mask"])
        states = own.forward_features(batch["pixel_values"][0])
        torch.testing.assert_close(features[0], own.forward_head(states, pre_logits=True))
        assert features.std(1).max() > 0 and features.shape[-1] == own.num_features
        model.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
        again = MMTModel.from_pretrained(tmp_path / "saved")
        batch = MMTProcessor.from_pretrained(tmp_path / "saved")(text=["red dog"], videos=[clip(3, 200, 240)])
        torch.testing.assert_close(again(**batch).video_embeds, model(**batch).video_embeds)
    assert model.video_model.vision_experts[0].frozen_parts(1)[0]


def test_a_pretrained_vision_encoder_without_a_weight_is_an_error(folders, tmp_path):
    encoder = transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \['pooler.*needs no pooler"):
        MMTModel.from_encoders(str(folders / "text"), str(tmp_path), text_output_layer=None, freeze_text_layers=0)
    assert MMTVisionEncoder.from_pretrained(str(tmp_path), pooling="mean")


def test_half_a_checkpoint_embeds_the_same_clips(checkpoint):
    model, processor = MMTModel.from_pretrained(checkpoint), MMTProcessor.from_pretrained(checkpoint)
    batch = processor(videos=[clip(3), clip(2, seed=1)])
    half = MMTVideoModelWithProjection.from_pretrained(checkpoint)
    torch.testing.assert_close(half(**batch).video_embeds, model.get_video_features(**batch).pooler_output)


STRANGER = """
import sys
sys.modules["modeling_mmt"] = None  # an installed copy is out of reach too
import numpy as np, torch
from transformers import AutoModel, AutoProcessor, pipeline

torch.set_num_threads(1)
model, info = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not info["missing_keys"] and type(model).__module__.startswith("transformers_modules.")
with torch.no_grad():
    embeds = model(**processor(text=["red dog"], videos=["clip.gif"])).video_embeds
np.save("embeds.npy", embeds.numpy())
model.save_pretrained("again")
processor.save_pretrained("again")
"""


def test_a_stranger_goes_from_a_file_and_a_caption_to_a_score(checkpoint, tmp_path):
    frames = [Image.fromarray(frame) for frame in clip(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(checkpoint)],
        cwd=tmp_path,
        env=outside | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "embeds.npy")
    for folder in (checkpoint, tmp_path / "again"):
        model, processor = MMTModel.from_pretrained(folder), MMTProcessor.from_pretrained(folder)
        with torch.no_grad():
            wanted = model(**processor(text=["red dog"], videos=[tmp_path / "clip.gif"])).video_embeds
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_the_pipeline_and_sentence_transformers_embed_files(checkpoint, tmp_path):
    model, processor = MMTModel.from_pretrained(checkpoint), MMTProcessor.from_pretrained(checkpoint)
    names = {}
    for number in range(2):
        names[f"clip-{number}"] = str(tmp_path / f"{number}.png")
        Image.fromarray(clip(1, seed=number)[0]).save(names[f"clip-{number}"])
    with torch.no_grad():
        wanted = model.get_video_features(**processor(images=list(names.values()))).pooler_output
    wanted = torch.nn.functional.normalize(wanted, dim=-1)
    search = transformers.pipeline(
        "text-to-video-retrieval", model=str(checkpoint), pipeline_class=MMTSearchPipeline, device="cpu"
    )
    index = search.index(names)
    torch.testing.assert_close(index.embeds, wanted)
    assert len(search("red dog", index=index)) == 2
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional peer: extra `plugins`")
    encoder = sentence_transformers.SentenceTransformer(str(checkpoint))
    pictures = [Image.open(name) for name in names.values()]
    np.testing.assert_allclose(encoder.encode([{"image": picture} for picture in pictures]), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([{"video": [picture]} for picture in pictures]), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([{"image": name} for name in names.values()]), wanted, atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode([{"video": np.asarray(picture)[None]} for picture in pictures]), wanted, atol=1e-5
    )


def test_without_vision_encoders_pixels_are_refused_with_the_remedy(make_model, make_processor):
    with pytest.raises(ValueError, match="vision_config is null.*from_encoders"):
        make_model().get_video_features(pixel_values=torch.zeros(1, 1, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="clip 0 is not an array.*from_encoders"):
        make_processor()(videos=["clip.mp4"])
    assert build_model().video_model.vision_model is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model(pixel_values=torch.zeros(1, 1, 3, SIDE, SIDE), video_features=torch.zeros(1, 1, 16)),
         "either"),
        (lambda model: model.get_video_features(), "either video_features or pixel_values"),
        (lambda model: model.get_video_features(pixel_values=torch.zeros(2, 3, SIDE, SIDE)), "shape"),
        (lambda model: model.get_video_features(pixel_values=torch.zeros(1, 13, 3, SIDE, SIDE)),
         "max_video_length is 12"),
        (lambda model: model.get_video_features(pixel_values=torch.zeros(1, 2, 3, SIDE, SIDE),
                                                video_mask=torch.ones(1, 3)), "mask has shape"),
    ],
)  # fmt: skip
def test_bad_pixels_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(vision_model())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "empty list"),
        ("vit", "no `model_type`"),
        ({"hidden_size": 8}, "no `model_type`"),
        (fields(hidden_size=2**40), "vision_config.hidden_size"),
        (fields(num_hidden_layers=10**6), "vision_config.num_hidden_layers"),
        (fields("efficientnet_lite", stage_depths=[10**6]), "vision_config.stage_depths"),
        (fields(hidden_size=2**19, num_hidden_layers=1000), "parameters"),
    ],
)
def test_a_bad_vision_config_is_refused_before_memory_is_taken(given, words):
    with pytest.raises(ValueError, match=words):
        build_config(vision_config=given, video_feature_dims=(512, 512))


def test_widths_follow_from_the_encoders_and_another_is_refused():
    config = build_config(vision_config=[fields("vit"), fields("efficientnet_lite")], video_feature_dims=(512, 512))
    assert config.video_feature_dims == [16, 12]
    again = MMTConfig(**{k: v for k, v in config.to_dict().items() if k not in ("architectures", "auto_map")})
    assert again.vision_config == config.vision_config and again.video_feature_dims == [16, 12]
    with pytest.raises(ValueError, match="video_feature_dims"):
        build_config(vision_config=fields("vit"), video_feature_dims=[17])


def test_a_saved_pixel_processor_loads_equal(tmp_path):
    processor = vision_processor(vision_model(), sampling=FrameSampling(num_frames=3), max_side=64)
    processor.save_pretrained(tmp_path)
    loaded = MMTProcessor.from_pretrained(tmp_path)
    assert loaded.feature_extractor.pixels == processor.feature_extractor.pixels
    assert loaded.feature_extractor.sampling == processor.feature_extractor.sampling
    assert loaded.feature_extractor.max_side == 64
    wanted, found = (each(videos=[clip(9)])["pixel_values"] for each in (processor, loaded))
    assert torch.equal(found, wanted) and wanted.shape[1] == 3


@pytest.mark.parametrize(
    "name", [each if each == "clip_vision_model" else pytest.param(each, marks=pytest.mark.slow) for each in ENCODERS]
)
def test_a_model_from_pixels_compiles_whole_and_padding_changes_nothing(name):
    """The `eager` backend runs dynamo alone: graph breaks show, and no C++ compiler is needed."""
    model = vision_model(name)
    (expert,) = model.video_model.vision_experts
    side = 64 if name in ("convnext", "resnet") else SIDE
    pixels = torch.randn(2, 3, *([STEP] if expert.frames_per_step else []), 3, side, side)
    given = {"pixel_values": pixels, "video_mask": torch.tensor([[1, 0, 0], [1, 1, 1]])}
    torch.compiler.reset()
    compiled = torch.compile(model.get_video_features, backend="eager", fullgraph=True)
    with torch.no_grad():
        found, wanted = compiled(**given).pooler_output, model.get_video_features(**given).pooler_output
    torch.testing.assert_close(found, wanted)
