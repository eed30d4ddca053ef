"""Write `golden/*.safetensors`, what `test_golden_values.py` compares with: `python tests/make_golden.py`.

A difference means that the numbers of every trained checkpoint change with it. Run this only when that is wanted, as
the docstring of `test_golden_values.py` says.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent / "golden"
VARIANTS = {
    "paper": {"text": "xlm-roberta", "fields": {"text_output_layer": 2, "freeze_text_layers": 1}},
    "mean_pre_skip": {
        "text": "bert",
        "fields": {
            "pooling": "mean",
            "norm_placement": "pre",
            "projection_skip": True,
            "projection_hidden_dim": 9,
            "loss_type": "symmetric_softmax",
        },
    },
    "cls_sigmoid": {"text": "bert", "fields": {"pooling": "cls", "loss_type": "sigmoid", "hidden_size": 16}},
}


def compute(name: str) -> dict[str, torch.Tensor]:
    """Embeddings, objectives and gradient norms of one variant of the tiny model on the tiny batch."""
    from conftest import build_batch, build_model, build_text_config

    variant = VARIANTS[name]
    text = build_text_config(variant["text"], max_position_embeddings=42)
    model = build_model(text, sharpness=2, **variant["fields"])
    batch, positive_ids = build_batch(), torch.tensor([[0, 5], [1, 6], [0, 7], [2, 6]])
    embeds = model.embed(batch)
    losses = model.compute_objectives(embeds, positive_ids)
    losses["loss"].backward()
    found = {key: value.detach() for key, value in (embeds | losses).items()}
    for key in (
        "text_model.encoder",
        "text_model.pooling",
        "video_model.pooling",
        "text_projection",
        "video_projection",
    ):
        grads = [
            p.grad.flatten() for name, p in model.named_parameters() if name.startswith(key) and p.grad is not None
        ]
        found[f"gradient_norm.{key}"] = torch.cat(grads).norm()
    return found


def compute_collator() -> dict[str, torch.Tensor]:
    """Two batches of the collator: every draw of language, caption, keyword and noise."""
    from conftest import build_processor, build_rows

    from modeling_mmt.data.collator import ClipDataset, EpochBatchSampler, MMTDataCollator

    clips, found = ClipDataset(build_rows(9)), {}
    for name, fields in {"mmp": {"languages_per_clip": 1}, "pairs": {"languages_per_clip": 2}}.items():
        collator = MMTDataCollator(
            build_processor(), "keywords", ("en", "de"), max_keywords=3, noise_probability=0.3, **fields
        )
        batch = collator([clips[draw] for draw in EpochBatchSampler(9, 6, seed=4).batch(3)])
        found |= {f"{name}.{key}": value.contiguous() for key, value in batch.items() if torch.is_tensor(value)}
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent.parent))
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for golden in VARIANTS:
        save_file(compute(golden), FOLDER / f"{golden}.safetensors", metadata=versions)
    save_file(compute_collator(), FOLDER / "collator.safetensors", metadata=versions)
