"""`mmt import`: a pretrained dual encoder as a checkpoint of ours, whose embeddings are the original's."""

from pathlib import Path

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.files import writing_folder
from modeling_mmt.data.hub_names import check_model_name
from modeling_mmt.hub.import_card import write_import_card


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
    check_folder(name)
    with naming_input(name):
        model = MMTModel.from_dual_encoder(name, vision_model, revision=revision, vision_revision=vision_revision)
        config = model.config
        processor = MMTProcessor.from_dual_encoder(
            name,
            vision_model,
            revision=revision,
            vision_revision=vision_revision,
            max_video_length=config.max_video_length,
        )
    if folder.is_dir():
        folder.rmdir()  # empty
    with writing_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_import_card(partial, name, revision)
    print(
        f"{folder}: {config.text_config.model_type} and {config.vision_config.model_type}, {config.projection_dim} "
        f"numbers a caption or clip, {processor.max_text_length} tokens, logit scale {model.logit_scale.item():.4f}"
    )


def check_folder(name: str):
    """Refuse a file, and a folder that holds no model.

    Raises:
        InputError: it is one of these.
    """
    folder = Path(name)
    if folder.is_file():
        raise InputError(f"{name} is a file; give the folder that holds the model's config.json, or a name on the Hub")
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise InputError(
            f"{name} has no config.json; give the folder of a CLIP or SigLIP as transformers saves it, or a name on "
            "the Hub"
        )
