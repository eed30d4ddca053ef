"""Tiny vision encoders, the models on them and their pixels."""

import dataclasses
import json

import numpy as np
import torch
from conftest import build_config, build_text_config, build_tokenizer, randomize
from transformers import AutoModel, BertConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from modeling_mmt import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    MMTModel,
    MMTProcessor,
    MMTVideoFeatureExtractor,
)
from modeling_mmt.image_processing_mmt import PixelSettings

SIDE, STEP = 16, 4
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = SIZES | {"intermediate_size": 32, "image_size": SIDE, "patch_size": 8}
LITE = {"stem_dim": 4, "hidden_size": 12, "stage_dims": [4, 4, 6], "stage_depths": [1, 1, 1]}
LITE |= {"stage_strides": [1, 1, 2], "stage_kernels": [3, 3, 5], "expand_ratios": [1, 1, 2]}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
ENCODERS = {
    "clip_vision_model": VIT,
    "siglip_vision_model": VIT,
    "siglip2_vision_model": SIZES | {"intermediate_size": 32, "patch_size": 8, "num_patches": 4},
    "dinov2": {key: value for key, value in VIT.items() if key != "intermediate_size"},
    "dinov3_vit": VIT,
    "vit": VIT,
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]},
    "efficientnet_lite": LITE,
    "videomae": VIT | {"num_frames": STEP},
    "timesformer": VIT | {"num_frames": STEP},
    "vjepa2": SIZES | {"hidden_size": 24, "crop_size": SIDE, "patch_size": 8, "frames_per_clip": STEP} | PREDICTOR,
}
PIXELS = PixelSettings(SIDE, SIDE, resize=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
TIMM_PIXELS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
VIDEO_PIXELS = dataclasses.replace(PIXELS, frames_per_step=STEP)


def fields(name="vit", **overrides):
    return {"model_type": name} | ENCODERS[name] | overrides


def vision_model(*encoders, **overrides):
    """A tiny MMT on tiny encoders."""
    given = [encoder if isinstance(encoder, dict) else fields(encoder) for encoder in encoders or ("vit",)]
    overrides = {"video_feature_dims": (512, 512), "vision_config": given} | overrides
    return randomize(MMTModel(build_config(**overrides)), sharpness=2).eval()


def vision_processor(model, pixels=(PIXELS,), **overrides):
    extractor = MMTVideoFeatureExtractor(model.config.video_feature_dim, 12, pixels, **overrides)
    return MMTProcessor(extractor, build_tokenizer())


def clip(num_frames=5, height=20, width=30, seed=0):
    """`(F, H, W, 3)` uint8, whose frames differ."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def save_encoders(path):
    """A text encoder and two vision encoders as their makers would publish them, in folders of `path`."""
    torch.manual_seed(0)
    AutoModel.from_config(BertConfig(**build_text_config())).save_pretrained(path / "text")
    build_tokenizer().save_pretrained(path / "text")
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    clip_config = CLIPConfig(text_config=text | {"vocab_size": 9}, vision_config=VIT)
    CLIPModel(clip_config).save_pretrained(path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        path / "clip"
    )
    EfficientNetLiteModel(EfficientNetLiteConfig(**LITE)).save_pretrained(path / "lite")
    (path / "lite" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}})
    )
    return path


def save_checkpoint(encoders, path):
    """A model from pixels, on the two pretrained vision encoders of `save_encoders`, with its processor."""
    names = str(encoders / "text"), [str(encoders / "clip"), str(encoders / "lite")]
    heads = {key: value for key, value in build_config().to_dict().items() if key in ("hidden_size", "projection_dim")}
    model = MMTModel.from_encoders(*names, text_output_layer=None, freeze_text_layers=2, intermediate_size=20, **heads)
    model.save_pretrained(path)
    MMTProcessor.from_encoders(*names).save_pretrained(path)
    return path
