"""A run of a recipe: open and check, train each stage, search in every language, save.

A stage that is finished is not run again, and one that was interrupted goes on from its last checkpoint; both are
found in `work_dir` by what the stage is made of: the recipe's values, and the content of every row, feature and
encoder weight that it reads.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from modeling_mmt.data.checks import flat_captions
from modeling_mmt.data.errors import naming_input
from modeling_mmt.data.files import apply_umask, locked, remove_leftovers, write_json
from modeling_mmt.hub.card import write_card
from modeling_mmt.hub.publish import PublishError, UploadError, publish
from modeling_mmt.pooling_mmt import masked_mean
from modeling_mmt.training.alignment import open_task
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.checks import length_problems, recipe_problems
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.layer_cache import FrozenTextCache
from modeling_mmt.training.learning import apply_learning, merge_adapters
from modeling_mmt.training.recipe import (
    HUB_OPTIONS,
    STAGES,
    Recipe,
    RecipeError,
    near,
    statistics_columns,
    vision_layers,
)
from modeling_mmt.training.signals import StopSignals
from modeling_mmt.training.stage import train_stage
from modeling_mmt.training.stage_folders import stages
from modeling_mmt.training.teacher import load_teacher
from modeling_mmt.training.towers import build_towers
from modeling_mmt.training.validation import search_split

logger = logging.getLogger("train")

RESULTS = ("README.md", "metrics.json", "ranks.json", "recipe.json", "training_log.jsonl")  # what tells of the weights


@contextmanager
def open_run(recipe: Recipe) -> Iterator["Run"]:
    """Processes, seed, data and model of a recipe; whatever is wrong with them is said before anything is trained.

    Raises:
        RecipeError: names the recipe's field, or the dataset and column.
    """
    check_machine(recipe)
    accelerator = start_processes(recipe)
    if recipe.push_to_hub:
        with naming_input("push_to_hub", RecipeError):
            HfApi().whoami()
    run = Run(recipe, accelerator)
    if statistics_columns(recipe):
        measure_inputs(run.data)
    Path(recipe.work_dir).mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        remove_leftovers(recipe.output_dir)
    yield run
    accelerator.free_memory()  # what still holds a process group may wait for ever as it goes
    accelerator.end_training()


def check_machine(recipe: Recipe):
    """Refuse what would be noticed when all is trained: a folder that cannot be made, no such tracker, other orders.

    Raises:
        RecipeError: names the field.
    """
    trackers = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if recipe.report_to not in (None, *trackers):
        raise RecipeError(
            f"report_to is {recipe.report_to!r}; installed are: {', '.join(trackers) or 'none'}; null for no tracker"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" too where nobody asked
    if launched not in ("no", recipe.mixed_precision):
        raise RecipeError(
            f"mixed_precision is {recipe.mixed_precision}, and accelerate launch set {launched}: the recipe "
            f"decides; give train.py --mixed_precision {launched}, or launch without it"
        )
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise RecipeError(
            f"accelerate launch set gradient_accumulation_steps to {steps}, which would leave fewer negatives in a "
            "batch; leave it out, and let micro_batch_tokens fit the batch into memory"
        )
    for name in ("output_dir", "work_dir", "frozen_states_dir"):
        if getattr(recipe, name) is None:
            continue
        folder = Path(getattr(recipe, name)).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            kind = "cannot be written to" if there.is_dir() else "is a file"
            raise RecipeError(f"{name} is {getattr(recipe, name)}, and {there} {kind}; name another folder")


def start_processes(recipe: Recipe) -> Accelerator:
    """The processes of the run, with their logging, tracker and seed."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or it leaves processes on CPUs to themselves
        mixed_precision=recipe.mixed_precision,
        log_with=recipe.report_to,
        project_dir=recipe.output_dir,
    )
    if (started := int(os.environ.get("WORLD_SIZE", 1))) != accelerator.num_processes:
        raise RecipeError(
            f"WORLD_SIZE is {started}, and Accelerate has {accelerator.num_processes} processes; unset it"
        )
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.ERROR, format="%(message)s")
    if recipe.report_to:
        accelerator.init_trackers("train")
    set_seed(recipe.seed)
    return accelerator


class Run:
    """A recipe's stages, evaluations and results.

    Args:
        recipe: what is run.
        accelerator: of its processes.

    Raises:
        RecipeError: the first problem of the recipe, its data or its model.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.signals = StopSignals()
        self.data = open_data(recipe, accelerator)
        for problem in model_problems(self.data):
            raise RecipeError(problem)
        self.stages = {
            name: (stage, folder, identity) for name, stage, folder, identity in stages(recipe, self.data.contents)
        }
        self.metrics: dict[str, Any] = {"seed": recipe.seed, "world_size": accelerator.num_processes}

    def align(self):
        """Learn languages from sentences and their translations; nothing where the recipe has no such stage."""
        self._train("alignment")

    def pretrain(self):
        """Learn from many languages; nothing where the recipe has no such stage."""
        self._train("pretraining")

    def finetune(self):
        """Learn the task, as a rule in English alone; nothing where the recipe has no such stage."""
        self._train("finetuning")

    def _train(self, name: str):
        if name not in self.stages:
            return
        stage, folder, identity = self.stages[name]
        accelerator = self.accelerator
        with locked(f"{folder}.lock") if accelerator.is_main_process else nullcontext():  # rows may share a stage
            accelerator.wait_for_everyone()  # all see the same: a stage that another run has just finished, or none
            with self.signals:
                task = open_task(self.data, stage)
                self.metrics[name] = train_stage(self.data, name, stage, folder, identity, self.signals, task)

    def search_in_every_language(self) -> dict[str, Any]:
        """Search validation and test, both ways.

        Returns:
            By name of the search: its `figures`, as in `metrics.json`, and every query's `ranks`.
        """
        data = self.recipe.data
        searches = {"validation": ("validation", data.text_column), "test": (data.test_split, data.text_column)}
        searches |= {f"validation_{kind}": ("validation", kind) for kind in data.other_text_columns}
        results = {}
        for name, (split, kind) in tqdm(searches.items(), "search", disable=not self.accelerator.is_main_process):
            if split:
                evaluation = search_split(self.data, split, kind, data.languages, data.exclude_column)
                results[name] = {"figures": evaluation.figures, "ranks": as_lists(evaluation.ranks)}
        self.data.save_cache()
        return results

    def save(self, results: Mapping[str, Any]):
        """Write weights, code, processor, metrics and card, and publish them if the recipe says so.

        Args:
            results: as `search_in_every_language` returns it.

        Raises:
            PublishError, UploadError: everything is written, and could not be published.
        """
        self.metrics["figures"] = {name: of["figures"] for name, of in results.items()}
        self.metrics["video_extractors"] = video_extractors(self.data)
        self.metrics["n_clips"] = len(
            self.data.corpora.rows(self.recipe.data, self.recipe.data.test_split or "validation")
        )
        if not self.accelerator.is_main_process:
            return
        output_dir = Path(self.recipe.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        with locked(output_dir / "save.lock"):  # of two runs in one folder, the later one's files stay, whole
            self._write(output_dir, results)
        logger.info("model, processor and metrics are in %s", output_dir)
        if self.recipe.push_to_hub:
            publish_run(self.recipe)

    def _write(self, output_dir: Path, results: Mapping[str, Any]):
        for name in RESULTS:  # of an earlier model: without them a run that is killed here is not published
            (output_dir / name).unlink(missing_ok=True)
        merge_adapters(self.data.model)
        self.data.model.save_pretrained(output_dir)
        self.data.processor.save_pretrained(output_dir)
        apply_umask(output_dir)
        write_json(output_dir / "metrics.json", self.metrics)
        write_json(output_dir / "ranks.json", {name: of["ranks"] for name, of in results.items()})
        write_json(output_dir / "recipe.json", {k: v for k, v in asdict(self.recipe).items() if k not in HUB_OPTIONS})
        write_training_log(output_dir / "training_log.jsonl", self.metrics)
        write_card(output_dir)
        apply_umask(output_dir)


def open_data(recipe: Recipe, accelerator: Accelerator) -> RunData:
    """The data, the model and the processor that a recipe names; the data are checked before weights are read."""
    corpora = Corpora(recipe)
    for problem in recipe_problems(corpora, accelerator.num_processes):
        raise RecipeError(problem)
    with naming_input(
        f"model {', '.join([recipe.model.start, *recipe.model.vision_model])}",
        RecipeError,
    ):
        model, processor = build_towers(recipe, corpora.features(recipe.data))
        apply_learning(model, recipe.model.learning)
        model = model.to(accelerator.device)
        is_cached = recipe.cache_frozen_layers and recipe.model.learning in (None, "heads")
        side, folder = processor.padding_side, recipe.frozen_states_dir
        cache = FrozenTextCache(model.text_model, folder, padding_side=side) if is_cached else None
        teacher = load_teacher(recipe, model.config.projection_dim, accelerator.device)
    return RunData(corpora, accelerator, model, processor, cache, teacher)


def model_problems(data: RunData) -> Iterator[str]:
    """What only the model tells: a caption that has no room, a stage in which nothing learns."""
    processor, parameters = data.processor, dict(data.model.named_parameters())
    if data.recipe.model.checkpoint is None:  # else the length is the checkpoint's own
        yield from length_problems(data.model.config.text_config, processor.max_text_length)
    around = len(processor.tokenizer(processor.text_prefix)["input_ids"])
    if around >= processor.max_text_length:
        yield (
            f"model.max_text_length is {processor.max_text_length}, and prefix and special tokens are {around}: "
            "no token is left for a caption; raise it"
        )
    for name, stage in data.corpora.stages.items():
        for prefix in stage.freeze:
            if not any(key.startswith(prefix) for key in parameters):
                hint = near(prefix, {key.split(".")[0] for key in parameters})
                yield f"{name}.freeze: no parameter's name begins with {prefix!r}; {hint}"
        frozen = tuple(open_task(data, stage).held)
        learning = any(value.requires_grad and not key.startswith(frozen) for key, value in parameters.items())
        if not learning and vision_layers(data.recipe, stage) == 0:
            yield f"{name}.freeze is {stage.freeze}, which leaves nothing that learns; take one out"
        for number, source in enumerate(stage.sources):
            try:
                data.collator(source)
            except ValueError as error:
                yield f"{name}.sources[{number}]: {error}"


def measure_inputs(data: RunData):
    """Measure what the heads are fed: how languages differ, and the mean states of English captions and of clips."""
    model, recipe = data.model, data.recipe
    texts = {
        column: flat_captions(data.corpora.rows(recipe.data, "train")[column])[1]
        for column in statistics_columns(recipe)
    }
    data.encode_ahead(list(chain(*texts.values())))
    if model.config.language_directions:
        means = [mean_states(data, "text", of).mean(dim=0) for of in texts.values()]
        model.text_model.pooling.set_language_directions(torch.stack(means))
    if recipe.model.standardize_inputs:
        english = next(iter(texts.values()))
        model.set_input_statistics("text", mean_states(data, "text", english))
        model.set_input_statistics("video", mean_states(data, "video_features", data.clips("train")))


@torch.no_grad()
def mean_states(data: RunData, kind: str, items: Sequence[Any]) -> torch.Tensor:
    """The mean of each item's states `(items, D)`: of texts, `kind` "text", or of clips, "video_features"."""
    model, means = data.model, []
    for start in range(0, len(items), 64):
        chunk = [items[number] for number in range(start, min(start + 64, len(items)))]
        batch = {name: value.to(model.device) for name, value in data.view(**{kind: chunk}).items()}
        if kind == "text":
            inputs = (batch.get("input_ids"), batch["attention_mask"], batch.get("text_states"))
            states, mask = model.text_model.read(*inputs)
        else:
            mask, states = batch["video_mask"], model.video_model.encode(batch["video_features"])
        means.append(masked_mean(states, mask))
    return torch.cat(means)


def as_lists(ranks: Mapping[str, Any]) -> dict[str, Any]:
    """Nested arrays of ranks, for JSON."""
    return {key: as_lists(of) if isinstance(of, Mapping) else of.tolist() for key, of in ranks.items()}


def video_extractors(data: RunData) -> list[dict[str, Any]]:
    """What made the clips' features: the stores' extractors, or the model's own vision encoders."""
    model, features = data.recipe.model, data.corpora.features(data.recipe.data)
    manifests = [store.manifest for store in features.stores] if features else []
    extractors = [{key: manifest[key] for key in ("extractor", "revision", "rate", "dim")} for manifest in manifests]
    if data.model.config.vision_config is None:
        return extractors
    dims, revision = data.model.config.video_feature_dims, model.checkpoint_revision or model.vision_revision
    encoders = [model.start] * len(dims) if model.starts_trained else model.vision_model
    return [
        {"extractor": encoder, "revision": revision, "rate": None, "dim": dim}
        for encoder, dim in zip(encoders, dims, strict=True)
    ]


def write_training_log(path: Path, metrics: Mapping[str, Any]):
    """One JSON object a line for each evaluation of each stage: step or mixed share, loss and validation MRR."""
    lines = [
        json.dumps({"stage": name, **point})
        for name in STAGES
        for kind in ("curve", "interpolation")
        for point in metrics.get(name, {}).get(kind, ())
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def publish_run(recipe: Recipe):
    """Push what a run has written.

    Raises:
        PublishError, UploadError: it could not be pushed; says how to try again without training.
    """
    again = f"mmt publish {recipe.output_dir} {recipe.push_to_hub} --revision {recipe.hub_revision}"
    again += f" --tag {recipe.hub_tag}" if recipe.hub_tag else ""
    try:
        publish(recipe.output_dir, str(recipe.push_to_hub), revision=recipe.hub_revision, tag=recipe.hub_tag)
    except (PublishError, UploadError) as error:
        raise type(error)(f"{error}; the model is whole in {recipe.output_dir}: {again}") from error
