"""Problems of a recipe's data: a run raises the first, a dry run prints all.

Here is what can be said before any weights are read; every problem is one line that names dataset and column, or the
recipe's field, and the remedy.
"""

from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig

from modeling_mmt import MMTConfig, MMTProcessor
from modeling_mmt.data.checks import (
    blank_texts,
    cue_problems,
    feature_problems,
    id_problems,
    missing_columns,
    search_problems,
    too_few_languages,
)
from modeling_mmt.data.collator import EpochBatchSampler
from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.extractors import ExtractorError, check_extractors
from modeling_mmt.evaluation.evaluate import check_checkpoint
from modeling_mmt.extraction.packaged_encoders import PACKAGED_ENCODERS, resolve_encoder
from modeling_mmt.training.alignment import pair_problems
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.recipe import (
    AlignmentArguments,
    DataArguments,
    Recipe,
    RecipeError,
    statistics_columns,
)
from modeling_mmt.training.recipe_sources import Source, columns_of
from modeling_mmt.training.towers import input_problem

# Families whose first position is the one after the padding token's id.
COUNT_FROM_PADDING = "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm".split()
COUNT_FROM_PADDING += "xlm-roberta xlm-roberta-xl xmod".split()


def recipe_problems(corpora: Corpora, world_size: int = 1) -> Iterator[str]:
    """All that is wrong with what a recipe names; what two stages share may come twice.

    Args:
        corpora: of the recipe; what is not missing is open in it afterwards.
        world_size: processes that share a batch.
    """
    yield from encoder_problems(corpora)
    for data in corpora.homes():
        yield from corpora.missing_stores(data)
    for split in ("train", "validation", corpora.recipe.data.test_split):
        if split is not None:
            yield from _up_to_what_is_missing(split_problems(corpora, split))
    yield from _up_to_what_is_missing(start_problems(corpora))
    for name, stage in corpora.stages.items():
        for number in range(len(stage.sources)):
            yield from _up_to_what_is_missing(source_problems(corpora, name, number, world_size))


def _up_to_what_is_missing(problems: Iterator[str]) -> Iterator[str]:
    """The problems, of which the last may be that what is to be checked cannot be opened."""
    try:
        yield from problems
    except RecipeError as error:
        yield str(error)


def encoder_problems(corpora: Corpora) -> Iterator[str]:
    """Encoders whose configuration cannot be loaded, or that are not deep enough; packaged ones are fetched by pip."""
    model = corpora.recipe.model
    if model.checkpoint is not None:
        try:
            check_checkpoint(model.checkpoint)
        except (FileNotFoundError, InputError) as error:
            yield f"model.checkpoint: {error}{corpora.origin(model.checkpoint)}"
            return
    kind = "checkpoint" if model.checkpoint else "dual encoder" if model.dual_encoder else "text model"
    named = [(kind, model.start, model.checkpoint_revision or model.text_revision)]
    named += [("vision model", name, model.vision_revision) for name in model.vision_model]
    named += [("student", model.student, model.student_revision)] if model.student else []
    if (stage := corpora.recipe.alignment) and stage.teacher:
        named.append(("teacher", stage.teacher, stage.teacher_revision))
    for kind, name, revision in named:
        if name in PACKAGED_ENCODERS:
            continue
        try:
            config = AutoConfig.from_pretrained(resolve_encoder(name), revision=revision)
        except (OSError, ValueError) as error:
            yield f"{kind} {name} cannot be loaded: {str(error).splitlines()[0]}{corpora.origin(name)}"
            continue
        if kind == "text model":
            yield from length_problems(config, model.max_text_length)
        layer = model.config.get("text_output_layer", MMTConfig().text_output_layer)
        depth = getattr(config, "num_hidden_layers", None)
        if kind == "text model" and layer is not None and depth is not None and layer > depth:
            yield f"{kind} {name} has {depth} layers, the recipe reads {layer}: set model.config.text_output_layer"


def start_problems(corpora: Corpora) -> Iterator[str]:
    """Says that a checkpoint which training goes on from takes other clips, or features made in another way."""
    model, data = corpora.recipe.model, corpora.recipe.data
    if model.checkpoint is None:
        return
    try:
        check_checkpoint(model.checkpoint)
    except (FileNotFoundError, InputError):
        return  # `encoder_problems` says it
    with naming_input(f"model.checkpoint {model.checkpoint}", RecipeError):
        config = MMTConfig.from_pretrained(model.checkpoint, revision=model.checkpoint_revision or "main")
    if problem := input_problem(model.checkpoint, config, data.video_column):
        yield problem
        return
    features = corpora.features(data)
    if features is None:
        return
    with naming_input(f"model.checkpoint {model.checkpoint}", RecipeError):
        processor = MMTProcessor.from_pretrained(model.checkpoint, revision=model.checkpoint_revision or "main")
    try:
        check_extractors(processor, features.extractors, data.features)
    except ExtractorError as error:
        yield str(error)


def length_problems(config: Any, max_text_length: int) -> Iterator[str]:
    """Says that captions may be longer than a text encoder's table of positions."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions and text.model_type in COUNT_FROM_PADDING and text.pad_token_id is not None:
        positions -= text.pad_token_id + 1
    if positions and max_text_length > positions:
        yield f"model.max_text_length is {max_text_length}, and the text encoder reads {positions} tokens; lower it"


def split_problems(corpora: Corpora, split: str) -> Iterator[str]:
    """What is wrong with a split of the recipe's dataset, as it is searched or learned from."""
    recipe, data = corpora.recipe, corpora.recipe.data
    rows = corpora.rows(data, split)
    kinds = [data.text_column, *data.other_text_columns]
    columns = ["video_id", *(f"{kind}_{language}" for kind in kinds for language in data.languages)]
    columns += [data.exclude_column] if data.exclude_column else []
    searching = [stage for stage in corpora.stages.values() if not isinstance(stage, AlignmentArguments)]
    is_scored = split == "validation" and any(stage.evaluations for stage in searching)
    columns += [f"{data.text_column}_en"] if is_scored else statistics_columns(recipe) if split == "train" else []
    searched = {"train": [], "validation": kinds}.get(split, kinds[:1])
    for problem in missing_columns(rows, columns):
        yield f"{data.dataset} ({split}): {problem}"
    if "video_id" not in rows.column_names:
        return
    for kind in searched:
        for problem in search_problems(rows, kind, data.languages, data.exclude_column):
            yield f"{data.dataset} ({split}): {problem}"
    if split != "train" or recipe.model.standardize_inputs:  # whose clips are read
        yield from clip_problems(corpora, data, split)


def clip_problems(corpora: Corpora, data: DataArguments | Source, split: str) -> Iterator[str]:
    """Whether every clip of a split is available: as pixels, from feature stores, or from the rows themselves."""
    where = f"{data.dataset} ({split})"
    rows = corpora.rows(data, split)
    if (clips := corpora.clip_column(data, split)) is not None:
        for problem in clips.problems():
            yield f"{where}: {problem}"
    elif (features := corpora.features(data)) is not None:
        for folder, problem in features.problems(rows["video_id"][:]):
            yield f"{where}: {problem}{corpora.origin(folder)}"
    elif missing := list(missing_columns(rows, ["video_features"])):
        yield f"{where}: {missing[0]}; or name feature stores, or a video_column"
    else:
        for problem in feature_problems(rows, feature_width(corpora)):
            yield f"{where}: {problem}"


def feature_width(corpora: Corpora) -> int | None:
    """`D_v` of the recipe's model; None where its encoders say it."""
    model, searched = corpora.recipe.model, corpora.features(corpora.recipe.data)
    if searched is not None:
        return sum(searched.dims)
    widths = model.config.get("video_feature_dims", MMTConfig().video_feature_dims)
    return None if model.starts_trained else sum(widths)


def source_problems(corpora: Corpora, stage_name: str, number: int, world_size: int) -> Iterator[str]:
    """What a stage's source lacks to be learned from: columns, texts, clips of the model's width, and enough of them.

    Raises:
        RecipeError: its windows cannot be cut, or a batch is larger than it; as what cannot be opened.
    """
    stage, where = corpora.stages[stage_name], f"{stage_name}.sources[{number}]"
    source = stage.sources[number]
    data = corpora.home(source)
    rows, features = corpora.rows(data, "train"), corpora.features(data)
    missing = list(missing_columns(rows, ["video_id", *columns_of(source)]))
    no_ids = list(id_problems(rows)) if "video_id" in rows.column_names else missing
    for problem in dict.fromkeys([*missing, *no_ids]):
        yield f"{data.dataset} (train): {problem}"
    if source.with_video and not no_ids:
        yield from clip_problems(corpora, data, "train")
        searched = corpora.features(corpora.recipe.data)
        if features and searched and features.dims != searched.dims:
            yield f"{where}: streams are {features.dims} wide, data.features {searched.dims}; they must agree"
        elif source.features and features and searched:
            for name, mine, theirs in zip(source.features, searched.extractors, features.extractors, strict=True):
                for difference in mine.differences(theirs, with_sampling=False):
                    yield f"{where}: {name}: {difference} as of data.features; extract both in one way"
    if missing or no_ids:
        return
    if source.clip_seconds is None:
        rows = corpora.learned_rows(source)
        num_clips, name = len(rows), str(data.dataset)
        kinds = source.captions.kinds
        for problem in too_few_languages(rows, name, kinds, source.languages, source.languages_per_clip):
            yield f"{where}: {problem}"
        for column in columns_of(source):
            for problem in blank_texts(rows, column):
                yield f"{data.dataset} (train): {problem}"
    else:
        rates = {store.manifest["rate"] for store in features.stores} if features else {0}
        if len(rates) > 1 or None in rates:
            yield f"{where}: clip_seconds needs one rate of all its stores; they have {sorted(rates, key=str)}"
            return
        for language in source.languages if features else ():
            for problem in cue_problems(rows, source.text_column, language):
                yield f"{data.dataset} (train): {problem}"
        with naming_input(where, RecipeError):
            num_clips = len(corpora.windows(source))
    if isinstance(stage, AlignmentArguments):
        yield from pair_problems(corpora, source, stage.evaluations)
    with naming_input(f"{stage_name}.train_batch_size", RecipeError):
        EpochBatchSampler(num_clips, stage.train_batch_size, seed=0, world_size=world_size)


def check_recipe(recipe: Recipe) -> dict[str, list[str]]:
    """Print what is there and what is missing: a dry run, which trains nothing and reads no weights.

    Returns:
        `found` and `problems`, a line each.
    """
    corpora = Corpora(recipe)
    problems = list(dict.fromkeys(recipe_problems(corpora)))
    summary = list(corpora.summary())
    for title, lines in (("found", summary), ("missing or wrong", problems or ["nothing"])):
        print(f"{title}:", *lines, sep="\n  ")
    return {"found": summary, "problems": problems}
