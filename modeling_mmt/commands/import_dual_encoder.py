"""`mmt import`: a pretrained dual encoder as a checkpoint of ours, whose embeddings are the original's."""

from pathlib import Path

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.hub_names import check_model_name


def main(
    name: str,
    output_dir: str,
    revision: str | None = None,
    vision_model: str | None = None,
    vision_revision: str | None = None,
):
    """Write model and processor into a new folder, and say what they are.

    Args:
        name: of the dual encoder, or of a text model that shares `vision_model`'s space; on the Hub, or a folder.
        output_dir: folder to write to, new or empty.
        revision: tag or commit of `name`.
        vision_model: the dual encoder whose vision half is taken.
        vision_revision: tag or commit of it.

    Raises:
        InputError: the folder is not empty, or a name cannot be opened.
    """
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output_dir {folder} is not empty; name a new folder")
    check_model_name(name, revision)
    if vision_model is not None:
        check_model_name(vision_model, vision_revision)
    model = MMTModel.from_dual_encoder(name, vision_model, revision=revision, vision_revision=vision_revision)
    config = model.config
    processor = MMTProcessor.from_dual_encoder(
        name,
        vision_model,
        revision=revision,
        vision_revision=vision_revision,
        max_video_length=config.max_video_length,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(
        f"{folder}: {config.text_config.model_type} and {config.vision_config.model_type}, {config.projection_dim} "
        f"numbers a caption or clip, {processor.max_text_length} tokens, logit scale {model.logit_scale.item():.4f}"
    )
