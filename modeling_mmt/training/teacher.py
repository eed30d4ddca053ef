"""The teacher of the stage `alignment`: a frozen text tower that sets the targets."""

from collections.abc import Sequence

import torch
from transformers import AutoConfig

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.fingerprints import encoder_fingerprint, weights_fingerprint
from modeling_mmt.data.weights import check_finite, naming_torn_weights
from modeling_mmt.evaluation.embedding import in_eval_mode
from modeling_mmt.training.layer_cache import CachedProcessor, FrozenTextCache
from modeling_mmt.training.recipe import Recipe, RecipeError


class Teacher:
    """Sentences to the embeddings that a frozen text tower gives them.

    Args:
        model: whose text tower it is; frozen here.
        processor: of it.
        frozen_states_dir: where its encoder's output is kept between runs; None for nowhere.
    """

    def __init__(self, model: MMTModel, processor: MMTProcessor, frozen_states_dir: str | None = None):
        config = model.config
        config.freeze_text_layers, config.freeze_text_embeddings = config.num_text_layers, True
        self.model, self.processor = model.requires_grad_(False).eval(), processor
        cache = FrozenTextCache(model.text_model, frozen_states_dir, padding_side=processor.padding_side)
        self.view = CachedProcessor(processor, cache)

    def fingerprint(self) -> list[str]:
        """Hashes of all that its embeddings depend on."""
        text = self.model.text_model
        heads = [weights_fingerprint(part) for part in (text.pooling, self.model.text_projection)]
        return [encoder_fingerprint(text.encoder, self.processor.tokenizer), *heads]

    def __call__(self, sentences: Sequence[str]) -> torch.Tensor:
        """`(N, P)` float32 on the model's device, not normalised."""
        batch = {name: value.to(self.model.device) for name, value in self.view(text=list(sentences)).items()}
        with in_eval_mode(self.model), torch.no_grad():
            return self.model.get_text_features(**batch).pooler_output.float()


def load_teacher(recipe: Recipe, width: int, device: torch.device) -> Teacher | None:
    """The teacher that a recipe's `alignment` names: a dual encoder, or a checkpoint of ours.

    Args:
        recipe: with or without that stage.
        width: of the student's embeddings.
        device: that it runs on.

    Raises:
        RecipeError: its embeddings have another width.
    """
    stage = recipe.alignment
    if stage is None:
        return None
    name, revision = stage.teacher, stage.teacher_revision
    if name is None:
        name, revision = str(recipe.model.dual_encoder), recipe.model.text_revision
    is_ours = AutoConfig.from_pretrained(name, revision=revision).model_type == "mmt"
    load = "from_pretrained" if is_ours else "from_dual_encoder"
    with naming_torn_weights(name, "download or save the teacher again"):
        model: MMTModel = getattr(MMTModel, load)(name, revision=revision)
    check_finite(model.state_dict(), name, "choose another teacher, or repair this one")
    if model.config.projection_dim != width:
        raise RecipeError(
            f"alignment.teacher is {name}, whose embeddings are {model.config.projection_dim} wide, and the model's "
            f"{width}; they must be of one space: set model.config.projection_dim, or choose another teacher"
        )
    processor: MMTProcessor = getattr(MMTProcessor, load)(name, revision=revision)
    torch.nn.Module.to(model, device)
    return Teacher(model, processor, recipe.frozen_states_dir)
