"""The model that a recipe starts from, with its towers, and its processor."""

from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoTokenizer

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.data.extractors import Extractor, check_extractors, encoder_name, record_extractors
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.weights import check_finite, naming_torn_weights
from modeling_mmt.dual_encoder_mmt import Tower, load_dual_encoder, text_width
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.sentence_encoder_mmt import load_pretrained, load_sentence_encoder, sentence_modules
from modeling_mmt.training.recipe import ModelArguments, Recipe, RecipeError


def build_towers(recipe: Recipe, features: FeatureStores | None) -> tuple[MMTModel, MMTProcessor]:
    """The model that a recipe starts from, and its processor, which records what makes the clips' features.

    Raises:
        ExtractorError: as `check_extractors`, of a start that was trained on other features.
    """
    model, processor = _towers(recipe, features)
    if features is not None:
        check_extractors(processor, features.extractors, recipe.data.features)
        record_extractors(processor, features.extractors)
    elif pixels := processor.feature_extractor.pixels:
        names = [recipe.model.dual_encoder] if recipe.model.dual_encoder else recipe.model.vision_model
        if names:  # a checkpoint has recorded its own
            own = zip(names, model.config.video_feature_dims, pixels, strict=True)
            made = [Extractor(dim, encoder_name(name), image_size=settings["height"]) for name, dim, settings in own]
            record_extractors(processor, made)
    return model, processor


def _towers(recipe: Recipe, features: FeatureStores | None) -> tuple[MMTModel, MMTProcessor]:
    names = recipe.model
    if names.checkpoint is not None:
        return open_start(names, names.checkpoint, features, recipe.data.video_column)
    if names.dual_encoder is not None:
        return build_on_dual_encoder(names, names.dual_encoder, recipe.cache_dir)
    text_model = resolve_encoder(names.text_model, recipe.cache_dir)
    hub: dict[str, Any] = {"revision": names.text_revision}
    texts: dict[str, Any] = {"text_prefix": names.text_prefix, "max_text_length": names.max_text_length}
    if not names.vision_model:
        dims: dict[str, Any] = {"video_feature_dims": features.dims} if features else {}
        with naming_torn_weights(text_model, "download or save the text encoder again"):
            model = MMTModel.from_text_encoder(text_model, **hub, **dims, **names.config)
        check_finite(
            model.text_model.encoder.state_dict(), text_model, "choose another text_model, or repair this one"
        )
        extractor = MMTVideoFeatureExtractor(model.config.video_feature_dim, model.config.max_video_length)
        tokenizer = AutoTokenizer.from_pretrained(text_model, **hub)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what is built where its files are missing
            raise RecipeError(
                f"model.text_model is {names.text_model}: its tokenizer has an empty vocabulary; add its files"
            )
        return model, MMTProcessor(extractor, tokenizer, **texts)
    vision_models = [resolve_encoder(name, recipe.cache_dir) for name in names.vision_model]
    vision: dict[str, Any] = {"vision_revision": names.vision_revision}
    with naming_torn_weights(text_model, "download or save the encoders again"):
        with torch.random.fork_rng():
            model = MMTModel.from_encoders(text_model, vision_models, **hub, **vision, **names.config)
        # The heads start as those of a model of features do: building a vision encoder draws random numbers too.
        heads = MMTModel.from_text_encoder(
            text_model, **hub, video_feature_dims=model.config.video_feature_dims, **names.config
        )
    model.load_state_dict({**model.state_dict(), **heads.state_dict()})
    check_finite(model.state_dict(), ", ".join([text_model, *vision_models]), "choose other encoders, or repair these")
    processor = MMTProcessor.from_encoders(
        text_model,
        vision_models,
        **hub,
        **vision,
        image_size=names.image_size,
        max_video_length=model.config.max_video_length,
        sampling=FrameSampling(names.num_frames) if names.num_frames else None,
        **texts,
    )
    return model, processor


def open_start(
    names: ModelArguments, name: str, features: FeatureStores | None, video_column: str | None
) -> tuple[MMTModel, MMTProcessor]:
    """A trained model and its processor, which take the clips that the recipe names.

    Raises:
        RecipeError: they take others: pixels for features, or features of another width.
    """
    model, processor = open_checkpoint(name, names.checkpoint_revision)
    if problem := input_problem(name, model.config, video_column):
        raise RecipeError(problem)
    if features and features.dims != list(model.config.video_feature_dims):
        raise RecipeError(
            f"model.checkpoint {name} takes features {list(model.config.video_feature_dims)} wide, and data.features "
            f"are {features.dims}: extract by the encoder that its card names"
        )
    if names.num_frames and processor.feature_extractor.pixels is not None:
        processor.feature_extractor.sampling = asdict(FrameSampling(names.num_frames))
    return model, processor


def input_problem(name: str, config: MMTConfig, video_column: str | None) -> str | None:
    """Says that a checkpoint takes pixels and the recipe has features, or the other way round."""
    if (config.vision_config is None) == (video_column is None):
        return None
    if video_column is None:
        return (
            f"model.checkpoint {name} takes pixels, and the recipe's clips are features: set data.video_column to the "
            "column of videos (`file` of `mmt build own_clips`) and data.features to []"
        )
    return (
        f"model.checkpoint {name} takes features, and the recipe's clips are pixels: set data.features, and "
        "data.video_column to null"
    )


def build_on_dual_encoder(names: ModelArguments, name: str, cache_dir: str | None) -> tuple[MMTModel, MMTProcessor]:
    """A model that starts as a pretrained dual encoder, or with a student's text encoder in it; and its processor."""
    student = None if names.student is None else resolve_encoder(names.student, cache_dir)
    with naming_torn_weights(name, "download or save the dual encoder again"):
        source = load_dual_encoder(name, revision=names.text_revision)
    if student is not None:
        with naming_torn_weights(student, "download or save the student again"):
            source.text = student_tower(student, source.width, names.student_revision)
    model = MMTModel.from_towers(source, **names.config)
    check_finite(model.state_dict(), ", ".join(filter(None, [name, student])), "choose others, or repair these")
    processor = MMTProcessor.from_dual_encoder(
        name,
        revision=names.text_revision,
        max_video_length=model.config.max_video_length,
        sampling=FrameSampling(names.num_frames) if names.num_frames else None,
    )
    if student is not None:
        tokenizer = AutoTokenizer.from_pretrained(student, revision=names.student_revision)
        texts: dict[str, Any] = {"text_prefix": names.text_prefix, "max_text_length": names.max_text_length}
        processor = MMTProcessor(processor.feature_extractor, tokenizer, **texts)
    return model, processor


def student_tower(name: str, width: int, revision: str | None = None) -> Tower:
    """A pretrained text encoder with a new projection to the joint space.

    Its states are pooled as its `modules.json` says (sentence-transformers), without one by their mean.
    """
    hub = {"revision": revision, "cache_dir": None}
    modules = sentence_modules(name, hub)
    if modules is None:
        encoder, pooling = load_pretrained(name, **hub)[0], "mean"
    else:
        encoder, pooling, _ = load_sentence_encoder(name, modules, hub)
    return Tower(encoder, pooling, torch.nn.Linear(text_width(encoder.config, pooling), width))
