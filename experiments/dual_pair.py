"""An English pair of text and picture encoder, trained with transformers' own classes: a checkpoint of a stranger.

    python experiments/dual_pair.py runs/dual/pair/seed0 --seed 0     # a minute on one core

`VisionTextDualEncoderModel` of a `BertModel` (multilingual-e5-small's weights, and a pooler whose map is the identity)
and an `EfficientNetModel` (EfficientNet-Lite0's weights: transformers' class always has squeeze-and-excitation, whose
gates are held at one). Both encoders stay as they are; the projections and the temperature learn from the English
names and keywords of emoji9's training clips. Nothing of `modeling_mmt` is in the folder that it writes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import dropout, normalize

from modeling_mmt import EfficientNetLiteModel
from modeling_mmt.data.reading import read_split
from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.extraction.packaged_encoders import resolve_encoder

SIDE, WIDTH = 128, 256
EPOCHS, BATCH, RATE, WEIGHT_DECAY, DROPOUT = 60, 128, 1e-3, 0.05, 0.3
GATE = 30.0  # its sigmoid is 1 in float32


def efficientnet() -> transformers.EfficientNetModel:
    """EfficientNet-Lite0 as transformers' `EfficientNetModel`, in eval mode, with the same vectors."""
    lite = EfficientNetLiteModel.from_pretrained(resolve_encoder("efficientnet-lite0")).eval()
    config = transformers.EfficientNetConfig(
        image_size=SIDE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.0,
        batch_norm_eps=lite.config.batch_norm_eps,
        drop_connect_rate=0.0,
    )
    config.hidden_size = config.hidden_dim  # where VisionTextDualEncoderModel looks
    model = transformers.EfficientNetModel(config).eval()
    weights = dict(zip(names_in_order(model), names_in_order(lite), strict=True))
    values = lite.state_dict()
    own = {name: values[theirs] for name, theirs in weights.items()}
    for name, value in model.state_dict().items():
        if "squeeze_excite" in name:
            own[name] = torch.full_like(value, GATE if name.endswith("expand.bias") else 0.0)
    model.load_state_dict(own)
    pictures = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        difference = model(pictures).pooler_output.flatten(1) - lite(pictures).pooler_output
    assert difference.abs().max() < 1e-4, difference.abs().max()
    return model


def names_in_order(model: nn.Module) -> list[str]:
    """The tensors of convolutions and norms, in the order of computation, the gates left out."""
    return [name for name in model.state_dict() if "squeeze_excite" not in name]


def build(seed: int) -> tuple[transformers.VisionTextDualEncoderModel, transformers.VisionTextDualEncoderProcessor]:
    """The pair, its new parts random."""
    torch.manual_seed(seed)
    text = transformers.AutoModel.from_pretrained(resolve_encoder("multilingual-e5-small"), add_pooling_layer=True)
    nn.init.eye_(text.pooler.dense.weight)
    vision = efficientnet()
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=WIDTH
    )
    model = transformers.VisionTextDualEncoderModel(config, vision, text)
    pictures = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_encoder("multilingual-e5-small"))
    return model.eval(), transformers.VisionTextDualEncoderProcessor(pictures, tokenizer)


def frames(split: str, number: int | None = None) -> list[list[Image.Image]]:
    """So many frames of each clip of emoji9 (None: all), evenly spread, cut out of its film strip."""
    clips = []
    for row in read_split("emoji9", None, split):
        strip, count = row["frames"].convert("RGB"), row["num_frames"]
        wanted = number or count
        places = sorted({(2 * k + 1) * count // (2 * wanted) for k in range(wanted)})
        side = strip.width // count
        clips.append([strip.crop((k * side, 0, (k + 1) * side, strip.height)) for k in places])
    return clips


@torch.inference_mode()
def picture_vectors(model, processor, clips: Sequence[list[Image.Image]]) -> list[torch.Tensor]:
    """Each clip's frames as the frozen vision encoder's vectors `(F, 1280)`."""
    pixels = (processor.image_processor(clip, return_tensors="pt")["pixel_values"] for clip in clips)
    return [model.vision_model(each).pooler_output.flatten(1).clone() for each in pixels]


@torch.inference_mode()
def first_states(model, processor, texts: Sequence[str]) -> torch.Tensor:
    """Each text's first state `(N, 384)`, which the pooler reads, from the frozen text encoder."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    states = torch.empty(len(texts), model.config.text_config.hidden_size)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = processor(text=[texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        states[rows] = model.text_model(**batch).last_hidden_state[:, 0]
    return states


def text_embeds(model, states: torch.Tensor, p: float = 0.0) -> torch.Tensor:
    """As `get_text_features`, from the first states; normalised."""
    pooled = model.text_model.pooler(dropout(states, p, training=p > 0)[:, None])
    return normalize(model.text_projection(pooled), dim=-1)


def clip_embeds(model, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The normalised mean of each clip's frames' normalised embeddings."""
    return torch.stack(
        [normalize(normalize(model.visual_projection(each), dim=-1).mean(0), dim=-1) for each in vectors]
    )


def batches(seed: int, clips: Sequence[torch.Tensor], names, keywords) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each step, the states of a caption of each clip, its name or one of its keywords, and one of its frames."""
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(len(clips))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            captions = [
                names[row] if rng.random() < 0.5 else keywords[row][rng.integers(len(keywords[row]))] for row in rows
            ]
            pictures = [clips[row][rng.integers(len(clips[row]))] for row in rows]
            yield torch.stack(captions), torch.stack(pictures)


def frozen_outputs(model, processor, path: Path) -> dict[str, torch.Tensor]:
    """What the frozen encoders say of all that is learned from or validated on; kept in a file, for every seed.

    `train` and `validation`: frames' vectors, two a clip, `(2 N, 1280)`; `train_names`, `validation_names` `(N, 384)`;
    `keywords`, one clip's after the other's.
    """
    if path.is_file():
        return load_file(path)
    outputs: dict[str, torch.Tensor] = {}
    for split in ("train", "validation"):
        rows = read_split("emoji9", None, split)
        clips = [clip if len(clip) == 2 else clip * 2 for clip in frames(split, 2)]
        outputs[split] = torch.cat(picture_vectors(model, processor, clips))
        outputs[f"{split}_names"] = first_states(model, processor, rows["name_en"][:])
    keywords = [text for texts in read_split("emoji9", None, "train")["keywords_en"] for text in texts]
    outputs["keywords"] = first_states(model, processor, keywords)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(outputs, path)
    return outputs


def train(folder: Path, seed: int) -> dict[str, float]:
    """Train the pair and write it; returns its English R@1 and MRR on validation."""
    model, processor = build(seed)
    outputs = frozen_outputs(model, processor, folder.parent / "frozen.safetensors")
    counts = [len(texts) for texts in read_split("emoji9", None, "train")["keywords_en"]]
    keywords = outputs["keywords"].split(counts)
    parts = ("text_projection", "visual_projection", "logit_scale")
    new = [parameter for name, parameter in model.named_parameters() if name.startswith(parts)]
    optimizer = torch.optim.AdamW(new, RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(counts) // BATCH)
    schedule = transformers.get_scheduler("cosine", optimizer, steps // 20, steps)
    for captions, pictures in batches(seed, outputs["train"].split(2), outputs["train_names"], keywords):
        text = text_embeds(model, captions, DROPOUT)
        picture = normalize(model.visual_projection(dropout(pictures, DROPOUT)), dim=-1)
        logits = model.logit_scale.exp() * text @ picture.T
        labels = torch.arange(len(logits))
        loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        clips = clip_embeds(model, outputs["validation"].split(2))
        found = retrieval_metrics(ranks(text_embeds(model, outputs["validation_names"]), clips))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {metric: found[metric] for metric in ("R@1", "MRR")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(train(arguments.folder, arguments.seed))
