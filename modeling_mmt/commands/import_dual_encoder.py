"""`mmt import`: a pretrained dual encoder as a checkpoint of ours, whose embeddings are the original's."""

import argparse

from modeling_mmt.modeling_mmt import MMTModel
from modeling_mmt.processing_mmt import MMTProcessor


def import_command(arguments: argparse.Namespace):
    """Write model and processor into a new folder, and say what they are.

    Raises:
        ValueError: the folder is there and not empty, or the dual encoder cannot be taken; says which part.
    """
    folder = arguments.output_dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not empty; name a new folder")
    names = (arguments.checkpoint, arguments.vision_model)
    revisions = {"revision": arguments.revision, "vision_revision": arguments.vision_revision}
    model = MMTModel.from_dual_encoder(*names, **revisions)
    processor = MMTProcessor.from_dual_encoder(*names, **revisions, max_video_length=model.config.max_video_length)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = model.config
    print(
        f"{folder}: {config.text_config.model_type} and {config.vision_config.model_type}, {config.projection_dim} "
        f"numbers a caption or clip, {processor.max_text_length} tokens, logit scale {model.logit_scale.item():.4f}"
    )
