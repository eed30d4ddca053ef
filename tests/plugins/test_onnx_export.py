"""The exported towers in onnxruntime: equal for any shape, int8 near, and nothing written that is wrong."""

import json

import pytest
import torch

pytest.importorskip("onnxscript", reason="an optional peer: extra `plugins`")
onnxruntime = pytest.importorskip("onnxruntime", reason="an optional peer: extra `plugins`")

from tiny_dual_encoders import CAPTIONS, build, pictures  # noqa: E402
from tiny_vision import PIXELS, VIDEO_PIXELS, clip, vision_model, vision_processor  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

import mmt  # noqa: E402
from modeling_mmt import MMTModel, MMTProcessor  # noqa: E402
from modeling_mmt.dual_encoder_mmt import FAMILIES  # noqa: E402
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos  # noqa: E402
from modeling_mmt.plugins import onnx_export  # noqa: E402
from modeling_mmt.plugins.onnx_export import INT8, OnnxModel, export  # noqa: E402

TEXTS = ["red dog", "dog runs fast home", "home", "roter Hund rennt schnell heim"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of the exported files, and the model."""
    from conftest import build_model, build_processor

    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model(pooling="mean", norm_placement="pre", projection_skip=True, sharpness=2)
    model.save_pretrained(folder)
    build_processor(text_prefix="query: ").save_pretrained(folder)
    return export(folder, tmp_path_factory.mktemp("onnx")), model


def test_both_towers_give_our_embeddings_at_any_batch_and_length(exported, make_clips):
    folder, model = exported
    processor, towers = AutoProcessor.from_pretrained(folder), OnnxModel(folder)
    assert processor.text_prefix == "query: "
    clips = make_clips([4, 7, 1, 12, 5])
    for batch_size in (1, 3, 64):
        text, wanted_text = (embed_texts(m, processor, TEXTS, batch_size) for m in (towers, model))
        video, wanted_video = (embed_videos(m, processor, clips, batch_size) for m in (towers, model))
        torch.testing.assert_close(text, wanted_text, rtol=0, atol=1e-5)
        torch.testing.assert_close(video, wanted_video, rtol=0, atol=1e-5)
        assert torch.pdist(wanted_text).min() > 0.05 and torch.pdist(wanted_video).min() > 0.05


def test_an_embedding_leaves_its_file_with_unit_norm(exported, make_clips):
    folder, _ = exported
    processor, towers = AutoProcessor.from_pretrained(folder), OnnxModel(folder)
    text = towers.get_text_features(**processor(TEXTS)).pooler_output
    video = towers.get_video_features(**processor(video_features=make_clips())).pooler_output
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(video.norm(dim=-1), torch.ones(4))


def test_the_files_say_their_inputs_and_free_axes(exported):
    folder, _ = exported
    for kind, axis, names in (
        ("text", "tokens", ["input_ids", "attention_mask"]),
        ("video", "steps", ["video_features", "video_mask"]),
    ):
        session = onnxruntime.InferenceSession(folder / f"{kind}_model.onnx")
        assert [given.name for given in session.get_inputs()] == names
        assert all(given.shape[:2] == ["batch", axis] for given in session.get_inputs())
        assert [made.name for made in session.get_outputs()] == [f"{kind}_embeds"]
        assert session.get_outputs()[0].shape[1] == 10


def test_the_int8_tower_is_smaller_and_near(exported):
    folder, model = exported
    processor = AutoProcessor.from_pretrained(folder)
    assert (folder / INT8).stat().st_size < 0.9 * (folder / "text_model.onnx").stat().st_size
    found = embed_texts(OnnxModel(folder, int8=True), processor, TEXTS)
    wanted = embed_texts(model, processor, TEXTS)
    assert not torch.equal(found, wanted)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.95


def test_an_export_that_is_not_equal_is_refused(exported):
    folder, model = exported
    tower = onnx_export.MMTVideoModelWithProjection(model.config).eval()  # of other weights
    with pytest.raises(ValueError, match="video_model.onnx: an embedding is .* off the checkpoint's at 1 x 2"):
        onnx_export._compare("video", tower, folder / "video_model.onnx")


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_the_towers_of_a_dual_encoder_give_the_originals_embeddings(family, tmp_path):
    """Captions from their tokens, clips from the vectors that the vision encoder pools."""
    source, own, options = build(family, tmp_path / "original")
    model, processor = (cls.from_dual_encoder(str(tmp_path / "original")) for cls in (MMTModel, MMTProcessor))
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    towers = OnnxModel(export(tmp_path / "saved", tmp_path / "onnx"))
    pixels = processor(videos=[[picture.convert("RGB").resize((40, 56)) for picture in pictures()[:8]]])
    with torch.inference_mode():
        tokens = own(text=CAPTIONS, return_tensors="pt", **options)
        wanted = torch.nn.functional.normalize(source.get_text_features(**tokens).pooler_output, dim=-1)
        features = model.video_model.features(pixels["pixel_values"], pixels["video_mask"])
        clip = torch.nn.functional.normalize(model.get_video_features(**pixels).pooler_output, dim=-1)
    found = towers.get_text_features(**processor(text=CAPTIONS)).pooler_output
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    found = towers.get_video_features(video_features=features, video_mask=pixels["video_mask"]).pooler_output
    torch.testing.assert_close(found, clip, rtol=0, atol=1e-5)


def test_a_caption_has_one_int8_embedding_whatever_stands_beside_it(exported):
    folder, _ = exported
    processor, towers = AutoProcessor.from_pretrained(folder), OnnxModel(folder, int8=True)
    together = embed_texts(towers, processor, TEXTS, batch_size=len(TEXTS))
    alone = torch.cat([embed_texts(towers, processor, [caption]) for caption in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_folder_says_what_the_model_is(exported):
    folder, model = exported
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mmt" and config["projection_dim"] == model.config.projection_dim
    assert not (folder / "modules.json").exists()  # which would promise sentence-transformers a model


@pytest.fixture(scope="module")
def from_pixels(tmp_path_factory):
    """The exported folder of a model with two vision encoders, one of them of video, the model and its processor."""
    model = vision_model("clip_vision_model", "videomae")
    processor, path = vision_processor(model, (PIXELS, VIDEO_PIXELS)), tmp_path_factory.mktemp("pixels")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return export(path, tmp_path_factory.mktemp("onnx-pixels")), model, processor


def test_the_pixel_tower_gives_our_embeddings_of_videos(from_pixels):
    folder, model, processor = from_pixels
    towers = OnnxModel(folder)
    for lengths in ((5, 9, 2), (4,)):
        batch = processor(videos=[clip(length, seed=length) for length in lengths])
        with torch.no_grad():
            wanted = torch.nn.functional.normalize(model.get_video_features(**batch).pooler_output, dim=-1)
        torch.testing.assert_close(towers.get_video_features(**batch).pooler_output, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_vision_encoder_without_an_onnx_form_is_named_and_not_left_out(tmp_path, capsys):
    model = vision_model("siglip2_vision_model")
    model.save_pretrained(tmp_path)
    vision_processor(model).save_pretrained(tmp_path)
    assert mmt.main(["export", str(tmp_path), "--output_dir", str(tmp_path / "onnx")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # warnings of the exporter stand before it
    assert "pixel_model.onnx: the vision encoder (siglip2_vision_model) has no ONNX form: " in line
    assert not (tmp_path / "onnx" / "pixel_model.onnx").exists()
