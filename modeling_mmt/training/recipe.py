"""What a recipe may say: the data, the model, one or two stages.

A field's type says what it may be, and pydantic checks it; what fields say together is checked in `__post_init__`.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from transformers import SchedulerType

from modeling_mmt.configuration_mmt import MMTConfig
from modeling_mmt.data.augmentation import VideoAugmentation
from modeling_mmt.data.captions import CaptionColumns
from modeling_mmt.data.errors import InputError
from modeling_mmt.loss_mmt import CAPTIONS

STAGES = ("pretraining", "finetuning")  # in their order
EVALUATION_ONLY = ("test_split", "languages", "other_text_columns", "exclude_column")  # no stage depends on these
# Schedules that need more than the numbers of steps.
NEED_MORE = {"reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"}
NEED_MORE |= {"greedy"}
SCHEDULES = [kind.value for kind in SchedulerType if kind.value not in NEED_MORE]
HUB_OPTIONS = ("push_to_hub", "hub_revision", "hub_tag")  # where a run goes, not what it is


class RecipeError(InputError):
    """A recipe, or one of its values, cannot be run; the message is one line that names file, field and remedy."""


def near(name: str, names: Iterable[str]) -> str:
    """What may be meant by a name that is not known."""
    matches = difflib.get_close_matches(name, list(names), n=2)
    return f"did you mean {' or '.join(matches)}?" if matches else f"known are {', '.join(sorted(names))}"


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def _each_once(languages: list[str]) -> list[str]:
    if len(set(languages)) < len(languages):  # it would be drawn twice as often
        raise ValueError("name each language once")
    return languages


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[Int, Field(ge=1)]
Number = Annotated[Int, Field(ge=0)]
Amount = Annotated[Float, Field(ge=0)]
Seconds = Annotated[Float, Field(gt=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Languages = Annotated[list[Text], Field(min_length=1), AfterValidator(_each_once)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(config=STRICT)
class DataArguments:
    """What is read.

    Args:
        dataset: folder or Hub name of a dataset with `video_id` and text columns `<kind>_<language>`.
        revision: tag, branch or commit of a Hub dataset.
        features: feature stores, side by side in a step: folders, or `org/name@revision`. Empty: the rows have
            `video_features`, or `video_column` names what to make them from.
        video_column: column of the clips themselves, for a model that has `vision_model`: `datasets.Video`,
            `datasets.Image` (film strips where `num_frames` stands beside it), or paths; with columns `start` and
            `end`, those seconds of them.
        text_column: kind of text that is searched by (validation and test).
        languages: that are searched in.
        other_text_columns: further kinds of text that validation is searched by.
        exclude_column: boolean column of clips to leave out in a second set of figures; `null` for none.
        test_split: evaluated once, at the end; `null` evaluates on validation alone.
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
    """What is trained.

    Args:
        checkpoint: folder or Hub name of a trained model (`mmt train`'s `output_dir`) that training goes on from:
            towers, heads and processor as they are; it takes the place of all other fields but `num_frames`.
        checkpoint_revision: tag, branch or commit of it.
        dual_encoder: Hub name or folder of an aligned encoder of text and pictures (CLIP, SigLIP, ...), from whose own
            embeddings training starts (`MMTModel.from_dual_encoder`); it takes the place of text and vision model.
        text_model: Hub name or folder of a text encoder, or the name of a packaged one (`packaged_encoders.py`).
        text_revision: tag, branch or commit of it, or of `dual_encoder`.
        text_prefix: put before every caption.
        max_text_length: in tokens; a dual encoder has its own rule.
        vision_model: the same of a vision encoder, or of several side by side, for training from pixels. Empty: clips
            come as features.
        vision_revision: tag, branch or commit of it.
        image_size: side in pixels of its frames; `null`: its own.
        num_frames: of a clip, spread evenly; `null`: 8, times the frames of a step.
        standardize_inputs: measure mean and standard deviation of both heads' inputs on the training split.
        statistics_text_column: kind of training text that they are measured on, in English, and in all of
            `data.languages` the directions in which languages differ (`config.language_directions`); `null`:
            `data.text_column`.
        config: fields of `MMTConfig`; what is not named keeps the paper's value.
    """

    checkpoint: Text | None = None
    checkpoint_revision: str | None = None
    dual_encoder: Text | None = None
    text_model: Text = "FacebookAI/xlm-roberta-large"
    text_revision: str | None = None
    text_prefix: str = ""
    max_text_length: Count = 64
    vision_model: list[str] = field(default_factory=list)
    vision_revision: str | None = None
    image_size: Count | None = None
    num_frames: Count | None = None
    standardize_inputs: bool = False
    statistics_text_column: Text | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Check the names of `MMTConfig`'s fields; their values are checked where one is built."""
        allowed = {each.name for each in fields(MMTConfig)}
        for name in self.config:
            if name not in allowed:
                raise RecipeError(f"config.{name} is not a field of MMTConfig; {near(name, allowed)}")
        own = ("text_model", "text_prefix", "max_text_length", "vision_model", "vision_revision", "image_size")
        others = {each.name for each in fields(ModelArguments)} - {"checkpoint", "checkpoint_revision", "num_frames"}
        set_by = {"dual_encoder": (*own, "standardize_inputs"), "checkpoint": sorted(others)}
        for start, names in set_by.items():
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
class Source:
    """One kind of text that a stage learns from; the fields are `MMTDataCollator`'s.

    Args:
        text_column: kind of text.
        other_text_columns: further kinds of text, of which each caption is drawn too.
        named_share: share of the clips whose texts of `data.text_column` this source sees, the same ones for the same
            `seed`, and a smaller share within a larger; clips that it leaves without any text are not drawn.
        languages: to sample from.
        languages_per_clip: captions of a clip in a step, each in another language: 1, 2 for pairs, up to 9.
        max_keywords: join up to so many keywords; `null`: lists are whole captions.
        exclude_text_column: keywords equal to the clip's text of this kind are not drawn.
        exclude_languages: nor are keywords that contain its text of that kind in one of these languages; clips that
            are left without any keyword are not drawn.
        keyword_pool_size: joined captions a clip and language; 0 draws afresh, and keeps no frozen layers' output.
        noise_probability: of tokens and steps in the noised copies.
        noise_pool_size: noised copies a caption; 0 draws afresh, and keeps no frozen layers' output.
        with_video: `false` aligns text across languages alone.
        weight: of this source's loss.
        dataset: folder or Hub name, where it is not the recipe's `data.dataset`; its `train` split is read.
        revision: tag, branch or commit of it.
        features: its feature stores; with `dataset` only. `absent:512` stands for a stream that its clips lack.
        clip_seconds: `[shortest, longest]`: the rows are long videos with cues, of which a random window of so many
            seconds is drawn, and the cues nearest to it (`modeling_mmt/data/windows.py`); `null`: whole clips.
        augmentation: random changes of the clips' frames (`augmentation.py`), where they come as pixels; `null`: none.
    """

    text_column: Text = "caption"
    other_text_columns: list[Text] = field(default_factory=list)
    named_share: Annotated[Float, Field(gt=0, le=1)] = 1.0
    languages: Languages = field(default_factory=lambda: ["en"])
    languages_per_clip: Annotated[Int, Field(ge=1, le=len(CAPTIONS))] = 1
    max_keywords: Count | None = None
    exclude_text_column: str | None = None
    exclude_languages: list[Text] = field(default_factory=list)
    keyword_pool_size: Number = 8
    noise_probability: Share = 0.05
    noise_pool_size: Number = 8
    with_video: bool = True
    weight: Amount = 1.0
    dataset: str | None = None
    revision: str | None = None
    features: list[str] = field(default_factory=list)
    clip_seconds: Annotated[list[Seconds], Field(min_length=2, max_length=2)] | None = None
    augmentation: VideoAugmentation | None = None

    def __post_init__(self):
        """Check what the fields say together."""
        if len(self.languages) < self.languages_per_clip:
            number = self.languages_per_clip
            raise RecipeError(f"languages is {self.languages}, and languages_per_clip {number}; name {number} or more")
        if self.exclude_languages and self.exclude_text_column is None:
            raise RecipeError(
                f"exclude_languages is {self.exclude_languages}, and exclude_text_column null; name the kind of text"
            )
        for name, without in (("other_text_columns", []), ("exclude_text_column", None), ("named_share", 1.0)):
            if self.clip_seconds is not None and getattr(self, name) != without:
                raise RecipeError(
                    f"{name} is {getattr(self, name)!r}, which clip_seconds has no use for; leave it out"
                )
        for name in ("revision", "features"):
            if self.dataset is None and getattr(self, name):
                raise RecipeError(
                    f"{name} is {getattr(self, name)!r}, and there is not a dataset beside it; else data's are read"
                )
        if self.clip_seconds is not None and self.clip_seconds[0] > self.clip_seconds[1]:
            raise RecipeError(f"clip_seconds is {self.clip_seconds}; give [shortest, longest]")

    @property
    def captions(self) -> CaptionColumns:
        """The columns that its captions are drawn from."""
        kinds = (self.text_column, *self.other_text_columns)
        return CaptionColumns(kinds, self.languages, self.exclude_text_column, self.exclude_languages)

    @property
    def draws_from_pools(self) -> bool:
        """Whether captions come again, so that the frozen layers' output for them is worth keeping."""
        fresh_noise = self.noise_probability > 0 and self.noise_pool_size == 0
        fresh_keywords = self.max_keywords is not None and self.keyword_pool_size == 0
        return not (fresh_noise or fresh_keywords or self.clip_seconds is not None)  # a window is drawn anew


@dataclass(config=STRICT)
class StageArguments:
    """One stage of training. Names are `transformers.TrainingArguments`' where it has one.

    Args:
        sources: what is learned from; each step sees a batch of every source.
        num_train_epochs: passes over the first source's clips.
        train_batch_size: clips a step over all processes, all of them each other's negatives: 2 or more.
        micro_batch_tokens: tokens encoded at a time in each process, padding included, and steps of clips: each
            distinct caption and clip once, sorted by length (`micro_batches.py`). `null`: all at once.
        activation_memory: GiB of activations that each process holds at a time. Micro-batches beyond it are encoded
            twice, at the same loss and gradients (`large_batch.two_pass_backward`): time for memory. `null`: no bound.
        gradient_accumulation_steps: batches an optimizer step; adds no negatives.
        learning_rate: of AdamW.
        text_learning_rate: of the text tower's parameters; `null`: the same.
        vision_learning_rate: of the vision encoders' parameters; `null`: the same.
        learn_vision_layers: how many of each vision encoder's last layers learn in this stage, with all that follows
            them; 0 freezes the encoders, `null` trains all of them.
        weight_decay: of AdamW; biases, norms and scalars are not decayed.
        adam_beta2: of AdamW.
        warmup_ratio: share of steps with a rising learning rate.
        lr_scheduler_type: as `transformers.get_scheduler` names it.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        freeze: prefixes of parameter names that do not learn in this stage.
        average_with_start: share of the stage's starting weights in its result (weight averaging); 0 for none.
        evaluations: how often the English validation score is taken; the best checkpoint is the stage's result.
            0: the last weights are.
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
    evaluations: Number = 10
    save_steps: Count = 500


@dataclass(config=STRICT)
class Recipe:
    """A whole run.

    Args:
        data: what is read.
        model: what is trained.
        finetuning: the task's stage; `null` with `pretraining` alone.
        pretraining: the stage before it; `null` for none.
        card: what the model card says that no file tells: `dataset_name`, `dataset_license`, `dataset_description`,
            `dataset_id` (on the Hub), `text_license`, `video_license`, `weights_license`, `base_model`.
        comes_from: how each dataset, store and encoder is had, by its name; `--dry_run` says it of those missing.
        dry_run: check the data against the recipe, say what is missing, and train nothing.
        seed: of weights, order, noise and dropout.
        mixed_precision: `no` or `bf16`. `fp16` is refused: no training checkpoint holds its loss scale.
        cache_frozen_layers: keep the frozen layers' output for each caption (`layer_cache.py`).
        cache_dir: of packaged encoders.
        clip_memory: GiB of decoded frames, and of what frozen vision encoders make of them, that each process keeps;
            clips beyond it are decoded each time that they come.
        num_workers: processes beside each process that decode the clips of pixels ahead of the step that needs them;
            the result is the same for any number. 0 decodes between the steps.
        frozen_states_dir: where the frozen layers' output is kept between runs; `null` for nowhere.
        work_dir: of stages, for resuming and sharing between recipes.
        output_dir: of the final model, processor, card and metrics.
        report_to: tracker that Accelerate knows, such as `tensorboard`; `null` for none.
        log_steps: steps between two records.
        push_to_hub: `org/name` to publish the result at; `null` for nowhere. The token is `hf auth login`'s.
        hub_revision: branch that it is committed to.
        hub_tag: name of the version, such as `v1.0`.
    """

    data: DataArguments
    model: ModelArguments = field(default_factory=ModelArguments)
    finetuning: StageArguments | None = None
    pretraining: StageArguments | None = None
    card: dict[str, str] = field(default_factory=dict)
    comes_from: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    cache_frozen_layers: bool = True
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


def columns_of(source: Source) -> list[str]:
    """The columns that a source reads: texts of each language, and the cues' seconds where it draws windows."""
    seconds = ("start", "end") if source.clip_seconds is not None else ()
    return [*source.captions.names, *(f"{kind}_{language}" for kind in seconds for language in source.languages)]


def statistics_columns(recipe: Recipe) -> list[str]:
    """The columns whose texts the inputs of the text head are measured on."""
    kind, directions = recipe.model.statistics_text_column or recipe.data.text_column, "language_directions"
    english = ["en"] if recipe.model.standardize_inputs else []
    languages = [*english, *(recipe.data.languages if recipe.model.config.get(directions) else [])]
    return [f"{kind}_{language}" for language in dict.fromkeys(languages)]


def misfits(recipe: Recipe) -> Iterator[str]:
    """What does not fit together: clips that come in two ways, pixels that nothing reads, what is said twice."""
    data, model = recipe.data, recipe.model
    if recipe.finetuning is None and recipe.pretraining is None:
        yield "finetuning and pretraining are both null; give one stage, or two"
    set_by = {"text_config": "model.text_model", "vision_config": "model.vision_model"}
    set_by |= {"learn_vision_layers": "a stage's learn_vision_layers"}
    set_by |= {"video_feature_dims": "data.features"} if data.features else {}
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
            f"model.config.language_directions is {directions}, and data.languages are {len(data.languages)}: they "
            "differ in one direction fewer than they are"
        )
    for name in STAGES:
        stage = getattr(recipe, name)
        if stage and stage.learn_vision_layers != 0 and not (model.vision_model or model.starts_trained):
            yield f"{name}.learn_vision_layers is {stage.learn_vision_layers}, but model.vision_model is empty"
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


def stages(
    recipe: Recipe, contents: Callable[[StageArguments], Any]
) -> Iterator[tuple[str, StageArguments, Path, dict[str, Any]]]:
    """Each stage with its folder, named by a hash of all that its result depends on, and with those values.

    `contents` of a stage are hashes of what the recipe only gives names of: rows, feature stores, the text encoder.
    """
    later = ("dual_encoder", "statistics_text_column", "checkpoint", "checkpoint_revision")
    model = without_defaults(asdict(recipe.model), later)
    before = None
    for name in STAGES:
        stage = getattr(recipe, name)
        if stage is None:
            continue
        identity = {
            "data": {key: value for key, value in asdict(recipe.data).items() if key not in EVALUATION_ONLY},
            "model": model,
            "stage": stage_identity(stage),
            "contents": contents(stage),
            "seed": recipe.seed,
            "mixed_precision": recipe.mixed_precision,
            "before": before,
        }
        before = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        yield name, stage, Path(recipe.work_dir) / f"{name}-{before}", identity


def stage_identity(stage: StageArguments) -> dict[str, Any]:
    """What a stage says of its result."""
    values = {key: value for key, value in asdict(stage).items() if key != "save_steps"}
    later = ("other_text_columns", "named_share", "exclude_languages")
    return values | {"sources": [without_defaults(source, later) for source in values["sources"]]}


def without_defaults(values: Mapping[str, Any], later: Sequence[str]) -> dict[str, Any]:
    """Values without those at which a field has no effect: stages finished before it was there keep their names."""
    return {key: value for key, value in values.items() if key not in later or value not in (None, [], 1.0)}
