"""The fields of a recipe: the data, the model, and up to three stages.

A field's type says what it may be, and pydantic checks it; what fields say together is checked in `__post_init__`.
"""

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from transformers import SchedulerType

from modeling_mmt.configuration_mmt import MMTConfig
from modeling_mmt.training.recipe_fields import (
    STRICT,
    Amount,
    Count,
    Float,
    Int,
    Languages,
    Learning,
    Number,
    RecipeError,
    Share,
    Text,
    near,
)
from modeling_mmt.training.recipe_sources import Source

STAGES = ("alignment", "pretraining", "finetuning")  # in their order
# Schedules that need more than the numbers of steps.
NEED_MORE = {"reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"}
NEED_MORE |= {"greedy"}
SCHEDULES = [kind.value for kind in SchedulerType if kind.value not in NEED_MORE]
HUB_OPTIONS = ("push_to_hub", "hub_revision", "hub_tag")  # where a run goes, not what it is


@dataclass(config=STRICT)
class DataArguments:
    """The data.

    Args:
        dataset: folder or Hub name of a dataset with `video_id` and text columns `<kind>_<language>`.
        revision: tag, branch or commit of a Hub dataset.
        features: feature stores, whose vectors are concatenated step by step: folders, or `org/name@revision`. If
            empty, the rows have `video_features`, or `video_column` names the clips.
        video_column: column of the clips themselves, for a model with `vision_model`: `datasets.Video`,
            `datasets.Image` (film strips if there is a column `num_frames`), or paths. Columns `start` and `end`
            select a part of them, in seconds.
        text_column: kind of text used as queries in validation and test.
        languages: languages of these queries.
        other_text_columns: further kinds of text used as queries in validation.
        exclude_column: boolean column of clips to leave out in a second set of figures; `null` for none.
        test_split: split that is evaluated once, at the end; `null` evaluates on validation only.
    """

    dataset: Text
    revision: str | None = None
    features: list[str] = field(default_factory=list)
    video_column: str | None = None
    text_column: Text = "caption"
    languages: Languages = field(default_factory=lambda: ["en"])
    other_text_columns: list[str] = field(default_factory=list)
    exclude_column: str | None = None
    test_split: str | None = "test"


@dataclass(config=STRICT)
class ModelArguments:
    """The model.

    Args:
        checkpoint: folder or Hub name of a trained model (`mmt train`'s `output_dir`) to continue from, with its
            towers, heads and processor. It replaces all other fields but `num_frames` and `learning`.
        checkpoint_revision: tag, branch or commit of `checkpoint`.
        dual_encoder: Hub name or folder of an aligned encoder of text and pictures (CLIP, SigLIP, ...). Training
            starts from its own embeddings (`MMTModel.from_dual_encoder`). It replaces `text_model` and `vision_model`.
        student: Hub name or folder of a text encoder, or the name of a packaged one, that replaces the text encoder of
            `dual_encoder`, with a new projection to its space; the stage `alignment` trains it.
        student_revision: tag, branch or commit of `student`.
        text_model: Hub name or folder of a text encoder, or the name of a packaged one (`packaged_encoders.py`).
        text_revision: tag, branch or commit of `text_model` or `dual_encoder`.
        text_prefix: text to put before every caption.
        max_text_length: longest caption in tokens; a dual encoder without a student has its own limit.
        vision_model: likewise for a vision encoder, or several whose features are concatenated, for training from
            pixels. If empty, clips are features.
        vision_revision: tag, branch or commit of `vision_model`.
        image_size: side of its frames in pixels; `null` is the encoder's own.
        num_frames: frames of a clip, spread evenly; `null` is 8 times the frames of a step.
        learning: how much of the encoders is trained, in every stage: `heads` (none of it), `lora` (adapters in the
            linear maps, merged when the model is saved), `all`, or `{last_layers: N}` of each encoder. With `null`,
            `config.freeze_text_layers`, `config.freeze_text_embeddings` and a stage's `learn_vision_layers` decide.
        standardize_inputs: measure the mean and standard deviation of both heads' inputs on the training split.
        statistics_text_column: kind of training text on which they are measured, in English; and, in all of
            `data.languages`, the directions in which languages differ (`config.language_directions`). `null` is
            `data.text_column`.
        config: fields of `MMTConfig`; those that are left out keep the paper's values.
    """

    checkpoint: Text | None = None
    checkpoint_revision: str | None = None
    dual_encoder: Text | None = None
    student: Text | None = None
    student_revision: str | None = None
    text_model: Text = "FacebookAI/xlm-roberta-large"
    text_revision: str | None = None
    text_prefix: str = ""
    max_text_length: Count = 64
    vision_model: list[str] = field(default_factory=list)
    vision_revision: str | None = None
    image_size: Count | None = None
    num_frames: Count | None = None
    learning: Learning = None
    standardize_inputs: bool = False
    statistics_text_column: Text | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Check the names of `MMTConfig`'s fields; their values are checked where one is built."""
        allowed = {each.name for each in fields(MMTConfig)}
        for name in self.config:
            if name not in allowed:
                raise RecipeError(f"config.{name} is not a field of MMTConfig; {near(name, allowed)}")
        if self.student is not None and self.dual_encoder is None:
            raise RecipeError(f"student is {self.student!r}, but dual_encoder is null; name one, or use text_model")
        own = ["text_model", "vision_model", "vision_revision", "image_size", "standardize_inputs"]
        own += ["text_prefix", "max_text_length"] if self.student is None else []
        compatible = {"checkpoint", "checkpoint_revision", "num_frames", "learning"}
        others = sorted({each.name for each in fields(ModelArguments)} - compatible)
        for start, names in {"dual_encoder": own, "checkpoint": others}.items():
            for name in names if getattr(self, start) is not None else ():
                if getattr(self, name) != getattr(ModelArguments(), name):
                    raise RecipeError(f"{name} is {getattr(self, name)!r}, which {start} already sets; leave one out")

    @property
    def start(self) -> str:
        """The checkpoint, dual encoder or text encoder that training starts from."""
        return self.checkpoint or self.dual_encoder or self.text_model

    @property
    def starts_trained(self) -> bool:
        """Whether text and video share a space from the start."""
        return self.checkpoint is not None or self.dual_encoder is not None


@dataclass(config=STRICT)
class StageArguments:
    """One stage of training. Names are `transformers.TrainingArguments`' where it has one.

    Args:
        sources: kinds of text to learn from; each step uses a batch of every source.
        num_train_epochs: passes over the clips of the first source.
        train_batch_size: clips per step over all processes, each a negative of the others: at least 2.
        micro_batch_tokens: tokens and clip steps encoded at once in each process, including padding. Each distinct
            caption and clip is encoded once, sorted by length (`micro_batches.py`). `null` encodes the whole batch at
            once.
        activation_memory: GiB of activations that each process may hold. Micro-batches beyond it are encoded twice, at
            the same loss and gradients (`large_batch.two_pass_backward`), which takes longer. `null` sets no limit.
        gradient_accumulation_steps: batches per optimizer step; this adds no negatives.
        learning_rate: learning rate of AdamW.
        text_learning_rate: learning rate of the text tower; `null` is `learning_rate`.
        vision_learning_rate: learning rate of the vision encoders; `null` is `learning_rate`.
        learn_vision_layers: how many of the last layers of each vision encoder are trained in this stage, with
            everything after them; 0 freezes the encoders, `null` trains them whole.
        weight_decay: weight decay of AdamW; biases, norms and scalars are not decayed.
        adam_beta2: second beta of AdamW.
        warmup_ratio: fraction of the steps during which the learning rate rises.
        lr_scheduler_type: schedule, by its name in `transformers.get_scheduler`.
        max_grad_norm: norm to which gradients are clipped; 0 does not clip.
        freeze: prefixes of the names of parameters that are not trained in this stage.
        average_with_start: fraction of the stage's starting weights in its result (weight averaging); 0 for none.
        interpolation: fractions of the learned weights, such as `[0, 0.25, 0.5, 0.75, 1]`. The result is that `(1 -
            share) * start + share * learned` which is best on validation (WiSE-FT). If empty, the result is the
            learned weights.
        evaluations: how many times validation in English is run; the result is the best checkpoint. With 0 it is the
            last one.
        save_steps: optimizer steps between checkpoints.
    """

    sources: Annotated[list[Source], Field(min_length=1)]
    num_train_epochs: Count = 10
    train_batch_size: Annotated[Int, Field(ge=2)] = 64
    micro_batch_tokens: Count | None = 1024
    activation_memory: Amount | None = None
    gradient_accumulation_steps: Count = 1
    learning_rate: Amount = 2e-4
    text_learning_rate: Amount | None = None
    vision_learning_rate: Amount | None = None
    learn_vision_layers: Number | None = 0
    weight_decay: Amount = 0.0
    adam_beta2: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    warmup_ratio: Share = 0.0
    lr_scheduler_type: Literal[*SCHEDULES] = "constant"  # type: ignore[valid-type]
    max_grad_norm: Amount = 1.0
    freeze: list[Text] = field(default_factory=list)
    average_with_start: Share = 0.0
    interpolation: list[Share] = field(default_factory=list)
    evaluations: Number = 10
    save_steps: Count = 500


@dataclass(config=STRICT)
class AlignmentArguments(StageArguments):
    """A stage in which the text tower learns from sentences and their translations (`alignment.py`).

    Its sources hold one sentence a row and language, `<kind>_en` and `<kind>_<language>`; English among `languages`
    keeps what the student knows of it. Validation is the `validation` split of each source's dataset.

    Args:
        teacher: Hub name or folder of a dual encoder or checkpoint whose text tower sets the target of each sentence;
            `null` is `model.dual_encoder` before any training.
        teacher_revision: tag, branch or commit of `teacher`.
        loss: `mse`, `cosine` or `nce`, between the student's embedding of a sentence and the teacher's of the English
            one (`alignment_loss.py` has the equations).
    """

    teacher: Text | None = None
    teacher_revision: str | None = None
    loss: Literal["mse", "cosine", "nce"] = "mse"

    def __post_init__(self):
        """Check that the sources are of sentences, and read them without clips and noise."""
        for number, source in enumerate(self.sources):
            used = ("text_column", "languages", "weight", "dataset", "revision")
            values = {name: getattr(source, name) for name in used}
            plain = Source(**values, with_video=False, noise_probability=0.0)
            for each in fields(Source):
                value = getattr(source, each.name)
                if value not in (getattr(plain, each.name), getattr(Source(), each.name)):
                    raise RecipeError(
                        f"sources[{number}].{each.name} is {value!r}, which alignment does not use; leave it out"
                    )
            if not set(source.languages) - {"en"}:
                raise RecipeError(f"sources[{number}].languages is {source.languages}; name another language, too")
            self.sources[number] = plain


@dataclass(config=STRICT)
class Recipe:
    """The whole recipe.

    Args:
        data: the data.
        model: the model.
        finetuning: last stage, on the task's captions; `null` if there is only an earlier stage.
        pretraining: stage before it; `null` for none.
        alignment: first stage, in which the text tower learns languages from a teacher; `null` for none.
        card: entries of the model card that no file contains: `dataset_name`, `dataset_license`,
            `dataset_description`, `dataset_id` (on the Hub), `text_license`, `video_license`, `weights_license`,
            `base_model`.
        comes_from: for each dataset, store and encoder, by name, how to get it; `--dry_run` prints this for those that
            are missing.
        dry_run: check the data against the recipe and print what is wrong, without training.
        seed: seed of weights, order, noise and dropout.
        mixed_precision: `no` or `bf16`. `fp16` is refused, because training checkpoints do not store its loss scale.
        cache_frozen_layers: store the frozen layers' output for each caption (`layer_cache.py`).
        cache_windows: also store it for the texts of windows (`clip_seconds`); useful if there are few videos, whose
            cues recur.
        cache_dir: folder for packaged encoders; `null` is the user's cache.
        clip_memory: GiB of decoded frames, and of the features that frozen vision encoders compute from them, that
            each process holds in memory; clips beyond it are decoded every time.
        num_workers: processes, for each training process, that decode clips ahead of time when training from pixels.
            The result does not depend on the number. 0 decodes between the steps.
        frozen_states_dir: folder where the frozen layers' output is stored between runs; `null` for none.
        work_dir: folder of the stages, for resuming and for sharing them between recipes.
        output_dir: folder of the final model, processor, card and metrics.
        report_to: tracker that Accelerate supports, such as `tensorboard`; `null` for none.
        log_steps: steps between two log records.
        push_to_hub: repository `org/name` to publish the result to; `null` for none; `hf auth login` stores the token.
        hub_revision: branch to commit to.
        hub_tag: name of the version, such as `v1.0`.
    """

    data: DataArguments
    model: ModelArguments = field(default_factory=ModelArguments)
    finetuning: StageArguments | None = None
    pretraining: StageArguments | None = None
    alignment: AlignmentArguments | None = None
    card: dict[str, str] = field(default_factory=dict)
    comes_from: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    cache_frozen_layers: bool = True
    cache_windows: bool = False
    cache_dir: str | None = None
    clip_memory: Amount = 4.0
    num_workers: Annotated[Int, Field(ge=0)] = 0
    frozen_states_dir: str | None = "runs/frozen_states"
    work_dir: str = "runs/stages"
    output_dir: str = "runs/model"
    report_to: str | None = None
    log_steps: Count = 50
    push_to_hub: str | None = None
    hub_revision: str = "main"
    hub_tag: str | None = None

    def __post_init__(self):
        """Check how the parts fit."""
        for problem in misfits(self):
            raise RecipeError(problem)


def statistics_columns(recipe: Recipe) -> list[str]:
    """The columns whose texts the inputs of the text head are measured on."""
    kind, directions = recipe.model.statistics_text_column or recipe.data.text_column, "language_directions"
    english = ["en"] if recipe.model.standardize_inputs else []
    languages = [*english, *(recipe.data.languages if recipe.model.config.get(directions) else [])]
    return [f"{kind}_{language}" for language in dict.fromkeys(languages)]


def misfits(recipe: Recipe) -> Iterator[str]:
    """What does not fit together: clips that come in two ways, pixels that nothing reads, what is said twice."""
    data, model = recipe.data, recipe.model
    if not any(getattr(recipe, name) for name in STAGES):
        yield "finetuning, pretraining and alignment are all null; give one stage, or more"
    if recipe.alignment and recipe.alignment.teacher is None and model.dual_encoder is None:
        yield "alignment.teacher is null, and there is no model.dual_encoder to take its place; name a teacher"
    if model.student is not None and recipe.alignment is None:
        yield f"model.student is {model.student!r}, but no stage alignment trains it; add one, or leave it out"
    set_by = {"text_config": "model.text_model", "vision_config": "model.vision_model"}
    set_by |= {"learn_vision_layers": "a stage's learn_vision_layers"}
    set_by |= {"video_feature_dims": "data.features"} if data.features else {}
    if model.learning is not None:
        set_by |= dict.fromkeys(("freeze_text_layers", "freeze_text_embeddings"), "model.learning")
    for name in model.config:
        if name in set_by:
            yield f"model.config has {name!r}, which {set_by[name]} already sets; leave it out"
    pixels = f"data.video_column is {data.video_column!r}"
    if data.video_column and data.features:
        yield f"{pixels} and data.features {data.features}: clips come as pixels or as features; leave one out"
    if not model.starts_trained and bool(data.video_column) != bool(model.vision_model):
        yield (
            f"{pixels} and model.vision_model {model.vision_model}: training from pixels needs both, training from "
            "features neither"
        )
    directions = model.config.get("language_directions", 0)
    if isinstance(directions, int) and directions >= max(1, len(data.languages)):
        yield (
            f"model.config.language_directions is {directions}, and data.languages has {len(data.languages)}; give at "
            f"most {max(1, len(data.languages)) - 1}"
        )
    for name in STAGES:
        stage = getattr(recipe, name)
        if stage and stage.learn_vision_layers != 0 and not (model.vision_model or model.starts_trained):
            yield f"{name}.learn_vision_layers is {stage.learn_vision_layers}, but model.vision_model is empty"
        if stage and stage.learn_vision_layers != 0 and model.learning is not None:
            yield (
                f"{name}.learn_vision_layers is {stage.learn_vision_layers}, which model.learning "
                f"{model.learning!r} already sets; leave one out"
            )
        if stage and stage.interpolation and (stage.average_with_start or not stage.evaluations):
            yield (
                f"{name}.interpolation is {stage.interpolation}, which chooses on validation in place of "
                "average_with_start; set evaluations to 1 or more, and average_with_start to 0"
            )
        if stage and model.learning == "lora" and (stage.average_with_start or stage.interpolation):
            yield (
                f"model.learning is 'lora', and {name} mixes weights with its start, but the product of two mixed "
                "factors is no mix of products; set average_with_start to 0, and interpolation to []"
            )
        for number, source in enumerate(stage.sources if stage else ()):
            where = f"{name}.sources[{number}]"
            if source.augmentation is not None and not data.video_column:
                yield f"{where}.augmentation changes pixels, but clips come as features; set it to null"
            if source.named_share < 1 and data.text_column not in source.captions.kinds:
                yield (
                    f"{where}.named_share is {source.named_share}, but it does not draw {data.text_column}, which "
                    "data.text_column names; leave it out"
                )
            if data.video_column and (source.features or source.clip_seconds):
                yield f"{where} has features or clip_seconds, but data.video_column says to read pixels"


def learning_layers(learning: Any) -> int | None:
    """The last layers of each encoder that learn by `model.learning`: 0 none, `None` all and the embeddings too."""
    if isinstance(learning, dict):
        return learning["last_layers"]
    return None if learning == "all" else 0


def vision_layers(recipe: Recipe, stage: StageArguments) -> int | None:
    """The last layers of each vision encoder that learn in a stage."""
    learning = recipe.model.learning
    return stage.learn_vision_layers if learning is None else learning_layers(learning)
