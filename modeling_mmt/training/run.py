"""Pre-train on many languages, fine-tune on English, search in all: one recipe, one run.

A recipe names the data, the model and one or two stages. A stage that is finished is not run again, and one that was
interrupted goes on from its last checkpoint; both are found in `work_dir` by what the stage is made of: the recipe's
values, and the content of every row, feature and encoder weight that it reads.
"""

import json
import logging
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import evaluate
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from datasets import Dataset
from filelock import FileLock
from huggingface_hub import HfApi
from huggingface_hub.errors import StrictDataclassError
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer, get_scheduler

from modeling_mmt import MMTModel, MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.data.checks import blank_texts, flat_captions, search_problems
from modeling_mmt.data.clip_cache import InOrder, KeptClips, Room
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.collator import ClipDataset, EpochBatchSampler, MMTDataCollator
from modeling_mmt.data.features import FeatureStores, MissingClipError
from modeling_mmt.data.files import (
    CheckpointError,
    check_finite,
    load_tensors,
    naming_torn_weights,
    save_tensors,
    write_json,
)
from modeling_mmt.data.fingerprints import architecture, encoder_fingerprint, rows_fingerprint, weights_fingerprint
from modeling_mmt.data.reading import load_split, read_split
from modeling_mmt.data.windows import SampledClips, WindowSampler
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.extraction.packaged_weights import PackagedEncoderError
from modeling_mmt.hub.card import write_card
from modeling_mmt.hub.publish import publish
from modeling_mmt.pooling_mmt import masked_mean
from modeling_mmt.training.checkpointing import (
    last_checkpoint,
    load_checkpoint,
    load_trainable_state,
    prune_checkpoints,
    save_checkpoint,
    trainable_state,
)
from modeling_mmt.training.dry_run import check_recipe
from modeling_mmt.training.large_batch import gather_embeddings, gather_ids, two_pass_backward
from modeling_mmt.training.layer_cache import (
    CachedProcessor,
    FrozenTextCache,
    frozen_fingerprint,
    frozen_vision_fingerprint,
)
from modeling_mmt.training.micro_batches import MicroBatches, micro_batches
from modeling_mmt.training.recipe import (
    HUB_OPTIONS,
    DataArguments,
    Recipe,
    RecipeError,
    Source,
    StageArguments,
    columns_of,
    near,
    stages,
)
from modeling_mmt.training.recipe_reading import parse_recipe
from modeling_mmt.training.sharding import average_gradients, clip_grad_norm, copy_to_shard, shard, wants_sharding
from modeling_mmt.training.streaming_loss import contrastive_loss
from modeling_mmt.video_decoding_mmt import FrameSampling

logger = logging.getLogger("train")

STOP = threading.Event()  # set by a signal: write a checkpoint after this step, then exit with STOPPED
STOPPED = 75


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a recipe; returns the metrics that it writes to `output_dir/metrics.json`.

    Args:
        argv: a recipe's path, then options; `None` takes the command line's.
    """
    # 1. Recipe
    recipe, options = parse_recipe(sys.argv[1:] if argv is None else argv, __doc__)
    if recipe.dry_run:
        return check_recipe(recipe)

    # 2. Processes, logging, seed
    check_machine(recipe)
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

    # 3. Data, model and processor; whatever is wrong with them is said before anything is trained
    with in_one_line():
        if recipe.push_to_hub:
            with in_one_line("push_to_hub"):
                HfApi().whoami()
        run = prepare(recipe, accelerator)
        run.check()
        to_train = list(stages(recipe, run.contents))

    # 4. Train
    if recipe.model.standardize_inputs:
        run.standardize_inputs()
    metrics: dict[str, Any] = {"seed": recipe.seed, "world_size": accelerator.num_processes}
    Path(recipe.work_dir).mkdir(parents=True, exist_ok=True)
    for name, stage, folder, identity in to_train:
        with FileLock(f"{folder}.lock") if accelerator.is_main_process else nullcontext():  # rows may share a stage
            accelerator.wait_for_everyone()  # all see the same: a stage that another run has just finished, or none
            with stopping_by_signals():
                metrics[name] = run.train(name, stage, folder, identity)

    # 5. Search in every language
    data, model, features = recipe.data, run.model, run.features
    searches = {"validation": ("validation", data.text_column), "test": (data.test_split, data.text_column)}
    searches |= {f"validation_{kind}": ("validation", kind) for kind in data.other_text_columns}
    metrics["figures"], ranked = {}, {}
    manifests = [store.manifest for store in features.stores] if features else []
    metrics["video_extractors"] = [{k: m[k] for k in ("extractor", "revision", "rate", "dim")} for m in manifests]
    for encoder, dim in zip(recipe.model.vision_model, model.config.video_feature_dims, strict=False):
        told = {"extractor": encoder, "revision": recipe.model.vision_revision, "rate": None, "dim": dim}
        metrics["video_extractors"].append(told)
    metrics |= {"n_clips": len(run.splits[searches["test"][0] or "validation"])}
    for name, (split, kind) in tqdm(searches.items(), "search", disable=not accelerator.is_main_process):
        if split:
            metrics["figures"][name], ranked[name] = run.search(split, kind)
    run.save_cache()

    # 6. Save
    if accelerator.is_main_process:
        output_dir = Path(recipe.output_dir)
        model.save_pretrained(output_dir)
        run.processor.save_pretrained(output_dir)
        write_json(output_dir / "metrics.json", metrics)
        write_json(output_dir / "ranks.json", ranked)
        write_json(output_dir / "recipe.json", {k: v for k, v in options.items() if k not in HUB_OPTIONS})
        write_training_log(output_dir / "training_log.jsonl", metrics)
        write_card(output_dir)
        logger.info("model, processor and metrics are in %s", output_dir)
        if recipe.push_to_hub:
            publish(output_dir, recipe.push_to_hub, revision=recipe.hub_revision, tag=recipe.hub_tag)
    accelerator.end_training()
    return metrics


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
            f"mixed_precision is {recipe.mixed_precision}, and accelerate launch was told {launched}: the recipe "
            f"decides; give train.py --mixed_precision {launched}, or launch without it"
        )
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise RecipeError(
            f"accelerate launch was told gradient_accumulation_steps {steps}, which would make fewer negatives of a "
            "batch; leave it out, and let micro_batch_tokens fit the batch into memory"
        )
    for name in ("output_dir", "work_dir", "frozen_states_dir"):
        folder = Path(getattr(recipe, name) or ".").absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            kind = "cannot be written to" if there.is_dir() else "is a file"
            raise RecipeError(f"{name} is {getattr(recipe, name)}, and {there} {kind}; name another folder")


def prepare(recipe: Recipe, accelerator: Accelerator) -> "Run":
    """The data, the model and the processor that a recipe names."""
    data = recipe.data
    columns = [f"{kind}_{lang}" for kind in (data.text_column, *data.other_text_columns) for lang in data.languages]
    columns += [data.exclude_column] if data.exclude_column else []
    columns += [] if data.features or data.video_column else ["video_features"]
    reads = {name: list(columns) for name in ("train", "validation", data.test_split) if name}
    trained = [stage for stage in (recipe.pretraining, recipe.finetuning) if stage]
    own = [source for stage in trained for source in stage.sources if source.dataset is None]
    reads["train"] += [column for source in own for column in columns_of(source)]
    reads["train"] += [f"{data.text_column}_en"] if recipe.model.standardize_inputs else []
    reads["validation"] += [f"{data.text_column}_en"] if any(stage.evaluations for stage in trained) else []
    with in_one_line(data.dataset):
        splits = {name: load_split(data.dataset, data.revision, name, read) for name, read in reads.items()}
    features = FeatureStores(data.features) if data.features else None
    with in_one_line(f"model {', '.join([recipe.model.text_model, *recipe.model.vision_model])}"):
        model, processor = build(recipe, features)
    model = model.to(accelerator.device)
    cache = FrozenTextCache(model.text_model, recipe.frozen_states_dir) if recipe.cache_frozen_layers else None
    return Run(recipe, accelerator, model, processor, cache, splits, features)


@contextmanager
def stopping_by_signals() -> Iterator[None]:
    """Let SIGTERM and a first Ctrl-C set `STOP`; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def stop(number: int, frame: Any):
        STOP.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.info("stopping after this step, with a checkpoint; Ctrl-C stops at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def in_one_line(name: str = "") -> Iterator[None]:
    """Make what a library says of a missing or misshapen file an error of the recipe, which names it.

    Args:
        name: of what is opened; put before words that do not have it. What somebody else wrote may be wrong in any
            way: with a name, every error is caught.

    Raises:
        RecipeError: the library's words in one line, and where it said them.
    """
    told_of = (ValueError, OSError, ImportError, MissingClipError, PackagedEncoderError, StrictDataclassError)
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        is_told_of = isinstance(error, told_of)
        if not (name or is_told_of):
            raise
        *_, last = traceback.extract_tb(error.__traceback__)
        told = " ".join(str(error).split()) or type(error).__name__
        told = told if is_told_of else f"{type(error).__name__}: {told}; is it whole, and what it is taken for?"
        told = told if name in told else f"{name}: {told}"
        raise RecipeError(f"{told} ({Path(last.filename).name}, line {last.lineno})") from error


def build(recipe: Recipe, features: FeatureStores | None) -> tuple[MMTModel, MMTProcessor]:
    """The model that a recipe starts from, and its processor."""
    told = recipe.model
    text_model = resolve_encoder(told.text_model, recipe.cache_dir)
    hub: dict[str, Any] = {"revision": told.text_revision}
    texts: dict[str, Any] = {"text_prefix": told.text_prefix, "max_text_length": told.max_text_length}
    if not told.vision_model:
        dims: dict[str, Any] = {"video_feature_dims": features.dims} if features else {}
        with naming_torn_weights(text_model, "download or save the text encoder again"):
            model = MMTModel.from_text_encoder(text_model, **hub, **dims, **told.config)
        check_finite(model.text_model.encoder.state_dict(), text_model, "choose another text_model, or mend this one")
        extractor = MMTVideoFeatureExtractor(model.config.video_feature_dim, model.config.max_video_length)
        tokenizer = AutoTokenizer.from_pretrained(text_model, **hub)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what is built where its files are not there
            raise RecipeError(f"model.text_model is {told.text_model}: its tokenizer knows no word; add its files")
        return model, MMTProcessor(extractor, tokenizer, **texts)
    vision_models = [resolve_encoder(name, recipe.cache_dir) for name in told.vision_model]
    vision: dict[str, Any] = {"vision_revision": told.vision_revision}
    with naming_torn_weights(text_model, "download or save the encoders again"):
        with torch.random.fork_rng():
            model = MMTModel.from_encoders(text_model, vision_models, **hub, **vision, **told.config)
        # The heads start as those of a model of features do: building a vision encoder draws random numbers too.
        heads = MMTModel.from_text_encoder(
            text_model, **hub, video_feature_dims=model.config.video_feature_dims, **told.config
        )
    model.load_state_dict({**model.state_dict(), **heads.state_dict()})
    check_finite(model.state_dict(), ", ".join([text_model, *vision_models]), "choose other encoders, or mend these")
    processor = MMTProcessor.from_encoders(
        text_model,
        vision_models,
        **hub,
        **vision,
        image_size=told.image_size,
        max_video_length=model.config.max_video_length,
        sampling=FrameSampling(told.num_frames) if told.num_frames else None,
        **texts,
    )
    return model, processor


@dataclass
class Run:
    """What every stage and every evaluation of a run shares."""

    recipe: Recipe
    accelerator: Accelerator
    model: MMTModel
    processor: MMTProcessor
    cache: FrozenTextCache | None
    splits: Mapping[str, Dataset]
    features: FeatureStores | None
    opened: dict[Any, tuple[Dataset, FeatureStores | None]] = field(default_factory=dict)  # sources' own rows

    def check(self):
        """Refuse, before anything is trained, what would fail or mean nothing hours later.

        Raises:
            RecipeError: names the dataset and column, or the stage's field.
        """
        data, processor = self.recipe.data, self.processor
        around = len(processor.tokenizer(processor.text_prefix)["input_ids"])
        if around >= processor.max_text_length:
            raise RecipeError(
                f"model.max_text_length is {processor.max_text_length}, and prefix and special tokens are {around}: "
                "nothing of a caption would be read; raise it"
            )
        for split, rows in self.splits.items():
            kinds = {"train": [], "validation": [data.text_column, *data.other_text_columns]}
            for kind in kinds.get(split, [data.text_column]):
                for problem in search_problems(rows, kind, data.languages, data.exclude_column):
                    raise RecipeError(f"{data.dataset} ({split}): {problem}")
            if self.features and (split != "train" or self.recipe.model.standardize_inputs):
                for _, problem in self.features.problems(rows["video_id"]):
                    raise RecipeError(f"{data.dataset} ({split}): {problem}")
        for name in ("pretraining", "finetuning"):
            if (stage := getattr(self.recipe, name)) is not None:
                self.check_stage(name, stage)

    def check_stage(self, name: str, stage: StageArguments):
        """Refuse a stage in which nothing learns, or whose sources have too few clips, features or texts.

        Raises:
            RecipeError: names the stage's field, or the dataset and column.
        """
        parameters = dict(self.model.named_parameters())
        for prefix in stage.freeze:
            if not any(key.startswith(prefix) for key in parameters):
                hint = near(prefix, {key.split(".")[0] for key in parameters})
                raise RecipeError(f"{name}.freeze: no parameter's name begins with {prefix!r}; {hint}")
        frozen = tuple(stage.freeze + idle(stage))
        learning = [key for key, value in parameters.items() if value.requires_grad and not key.startswith(frozen)]
        if not learning and stage.learn_vision_layers == 0:
            raise RecipeError(f"{name}.freeze is {stage.freeze}, which leaves nothing that learns; take one out")
        for position, source in enumerate(stage.sources):
            where = f"{source.dataset or self.recipe.data.dataset} (train)"
            rows, features = self.open_source(source)
            with in_one_line(f"{name}.sources[{position}]"):
                num_rows = len(self.training_clips(source, stage))
            with in_one_line(f"{name}.train_batch_size"):
                self.sampler(stage, position, num_rows, start=0)
            for _, problem in features.problems(rows["video_id"]) if features and source.with_video else ():
                raise RecipeError(f"{where}: {problem}")
            for column in columns_of(source) if source.clip_seconds is None else ():
                for problem in blank_texts(rows, column):
                    raise RecipeError(f"{where}: {problem}")

    def contents(self, stage: StageArguments) -> dict[str, Any]:
        """What a stage reads, hashed: the encoders, how pixels are prepared, every source's rows and features."""
        english = [f"{self.recipe.data.text_column}_en"]
        found: dict[str, Any] = {
            "encoder": encoder_fingerprint(self.model.text_model.encoder, self.processor.tokenizer)
        }
        if (vision := self.model.video_model.vision_model) is not None:
            found["vision"] = [weights_fingerprint(vision), *(architecture(e.config) for e in vision.encoders())]
            found["pixels"] = self.processor.feature_extractor.pixels
        for number, source in enumerate(stage.sources):
            rows, features = self.open_source(source)
            clips = self.source_clips(self.recipe.data if source.dataset is None else source, "train")
            found[f"sources[{number}]"] = content(rows, columns_of(source), features, clips, source.with_video)
        for name, split, read in (
            ("validation", "validation", stage.evaluations),
            ("standardize_inputs", "train", self.recipe.model.standardize_inputs),
        ):
            if read:
                clips = self.source_clips(self.recipe.data, split)
                found[name] = content(self.splits[split], english, self.features, clips)
        return found

    def __post_init__(self):
        """What is kept of clips that come as pixels."""
        self.room = Room(int(self.recipe.clip_memory * 2**30))
        self.encoded: dict[tuple[str, str | None, str], KeptClips] = {}
        self.decoded: dict[tuple[str, str | None, str, int], KeptClips] = {}

    def train(self, name: str, stage: StageArguments, folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Train one stage, or load it if it is finished; the model is left with the stage's result."""
        model, accelerator, rank = self.model, self.accelerator, self.accelerator.process_index
        vision = model.video_model.vision_model
        if vision is not None:
            vision.learning_layers = model.config.learn_vision_layers = stage.learn_vision_layers
            if stage.learn_vision_layers != 0:
                self.forget_features()
        model.requires_grad_(True)
        model.freeze()
        if (folder / "result.json").is_file():
            weights = load_tensors(folder / "result.safetensors", f"delete {folder}, and {name} is run again")
            load_trainable_state(model, weights, source=str(folder))
            return json.loads((folder / "result.json").read_text())
        start = {key: value.clone() for key, value in trainable_state(model).items()}
        for key, parameter in model.named_parameters():
            if key.startswith(tuple(stage.freeze + idle(stage))):
                parameter.requires_grad_(False)

        # Optimizer and schedule
        clips = [self.training_clips(source, stage) for source in stage.sources]
        batches_per_epoch = len(clips[0]) // stage.train_batch_size
        total = max(1, stage.num_train_epochs * batches_per_epoch // stage.gradient_accumulation_steps)
        learner = copy_to_shard(model) if self.is_sharded else model  # and then `model` is for evaluation
        embedder: torch.nn.Module = Embedder(learner)
        if self.is_sharded:
            shard(embedder, learner)
        optimizer = torch.optim.AdamW(parameter_groups(learner, stage), betas=(0.9, stage.adam_beta2))
        scheduler = get_scheduler(stage.lr_scheduler_type, optimizer, round(stage.warmup_ratio * total), total)
        if self.is_sharded:
            optimizer = accelerator.prepare_optimizer(optimizer)
        else:
            embedder, optimizer = accelerator.prepare(embedder, optimizer)
        torch.manual_seed(self.recipe.seed + rank)

        # Resume
        frozen = frozen_fingerprint(model.text_model) if self.cache is None else self.cache.fingerprint
        processes = {"world_size": accelerator.num_processes, "sharded": self.is_sharded}
        identity = {**identity, "frozen": frozen, **processes}
        if vision is not None:
            identity["frozen_vision"] = frozen_vision_fingerprint(vision)
        step = 0
        progress: dict[str, Any] = {"best": None, "curve": [], "seconds": 0.0}
        if (checkpoint := last_checkpoint(folder)) is not None:
            step, progress = load_checkpoint(checkpoint, learner, optimizer.optimizer, scheduler, identity, rank)
            logger.info("%s goes on at step %d of %d", name, step, total)
        done = step * stage.gradient_accumulation_steps
        samplers = [self.sampler(stage, position, len(rows), done) for position, rows in enumerate(clips)]
        left = (total - step) * stage.gradient_accumulation_steps
        batches = [
            self.collated(rows, sampler, source, left)
            for rows, sampler, source in zip(clips, samplers, stage.sources, strict=True)
        ]

        # The loop
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        evaluate_at = {round(total * (i + 1) / stage.evaluations) for i in range(stage.evaluations)}
        started = time.monotonic() - progress["seconds"]
        bar = tqdm(total=total, initial=step, desc=name, unit="step", disable=not accelerator.is_main_process)
        learner.train()
        while step < total:
            losses: dict[str, torch.Tensor] = {}
            for _ in range(stage.gradient_accumulation_steps):
                for source, source_batches in zip(stage.sources, batches, strict=True):
                    weight = source.weight / stage.gradient_accumulation_steps
                    for objective, value in self.backward(embedder, next(source_batches), source, stage).items():
                        losses[objective] = losses.get(objective, 0.0) + weight * value
            if self.is_sharded:
                average_gradients(learner)
                norm = clip_grad_norm(parameters, stage.max_grad_norm or math.inf)
            else:
                norm = accelerator.clip_grad_norm_(parameters, stage.max_grad_norm or math.inf)
            if not (math.isfinite(losses["loss"].item()) and math.isfinite(float(norm))):
                ids = seen(clips, samplers, stage, step) if accelerator.is_main_process else None
                raise not_finite(name, step, folder, losses["loss"], norm, ids)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{losses['loss'].item():.3f}", refresh=False)
            if step % self.recipe.log_steps == 0:
                record = {key: value.item() for key, value in losses.items()}
                accelerator.log({f"{name}/{key}": value for key, value in record.items()}, step=step)

            if step in evaluate_at:
                self.gather_weights(learner)
                score = self.english_score()
                progress["curve"].append({"step": step, "loss": losses["loss"].item(), "validation_mrr": score})
                if progress["best"] is None or score > progress["best"]["validation_mrr"]:
                    progress["best"] = progress["curve"][-1]
                    if accelerator.is_main_process:
                        save_tensors(folder / "best.safetensors", trainable_state(model))
                bar.set_postfix(validation_mrr=f"{score:.1f}", best=f"{progress['best']['validation_mrr']:.1f}")
            told_to_stop = self.is_told_to_stop()
            if step % stage.save_steps == 0 or told_to_stop:
                progress["seconds"] = time.monotonic() - started
                save_checkpoint(
                    folder,
                    step,
                    learner,
                    optimizer.optimizer,
                    scheduler,
                    identity,
                    progress,
                    rank,
                    accelerator.wait_for_everyone,
                )
                if accelerator.is_main_process:
                    prune_checkpoints(folder, keep_last=2)
                self.save_cache()
                if told_to_stop:
                    STOP.clear()  # or the next run of this process would stop too
                    raise SystemExit(STOPPED)
        bar.close()

        # The result: the best weights, averaged with the starting ones if the stage says so
        self.gather_weights(learner)
        model.eval()
        accelerator.wait_for_everyone()  # the best weights may be on their way to the disk
        if stage.evaluations:
            load_trainable_state(model, load_tensors(folder / "best.safetensors"), source=str(folder))
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and stage.average_with_start:
                parameter.data.lerp_(start[key].to(parameter.device), stage.average_with_start)
        seconds = time.monotonic() - started
        result = {**progress, "steps": step, "seconds": seconds, "machine": machine(accelerator)}
        model.requires_grad_(True)
        model.freeze()
        if accelerator.is_main_process:
            save_tensors(folder / "result.safetensors", trainable_state(model))
            write_json(folder / "result.json", result)
            prune_checkpoints(folder, keep_last=0)
        self.save_cache()
        return result

    def standardize_inputs(self):
        """Measure what the heads are fed: the mean states of the English training captions and clips."""
        model, rows = self.model, self.splits["train"]
        _, texts = flat_captions(rows[f"{self.recipe.data.text_column}_en"])
        self.encode_ahead(texts)
        for tower, key, items in (("text", "text", texts), ("video", "video_features", self.clips("train"))):
            means = []
            for start in range(0, len(items), 64):
                chunk = [items[number] for number in range(start, min(start + 64, len(items)))]
                batch = {k: v.to(model.device) for k, v in self.view(**{key: chunk}).items()}
                with torch.no_grad():
                    if tower == "text":
                        mask = batch["attention_mask"]
                        states = model.text_model.encode(batch.get("input_ids"), mask, batch.get("text_states"))
                    else:
                        mask, states = batch["video_mask"], model.video_model.encode(batch["video_features"])
                means.append(masked_mean(states, mask))
            model.set_input_statistics(tower, torch.cat(means))

    def open_source(self, source: Source) -> tuple[Dataset, FeatureStores | None]:
        """The rows that a source draws from, and its clips' features where these are not among the rows."""
        if source.dataset is None:
            return self.splits["train"], self.features
        key = (source.dataset, source.revision, source.with_video, *columns_of(source), *source.features)
        if key not in self.opened:
            features = FeatureStores(source.features) if source.features else None
            inside = [] if features or self.recipe.data.video_column or not source.with_video else ["video_features"]
            with in_one_line(source.dataset):
                rows = load_split(source.dataset, source.revision, "train", [*columns_of(source), *inside])
            self.opened[key] = rows, features
        return self.opened[key]

    def training_clips(self, source: Source, stage: StageArguments) -> ClipDataset | SampledClips:
        """The clips that a source draws: features, or frames if those are learned from."""
        rows, features = self.open_source(source)
        column = self.recipe.data.video_column
        if column is not None and source.with_video:
            data = self.recipe.data if source.dataset is None else source
            if stage.learn_vision_layers == 0 and source.augmentation is None:
                return ClipDataset(rows, self.encoded_clips(data, "train"))
            candidates = 1 if source.augmentation is None else source.augmentation.temporal_jitter
            return ClipDataset(rows, frames=self.frames(data, "train", candidates))
        if source.clip_seconds is None:
            return ClipDataset(rows, features if source.with_video else None)
        if not isinstance(features, FeatureStores):
            raise ValueError("a source with clip_seconds needs features, of whole videos and with a rate")
        shortest, longest = source.clip_seconds
        window = WindowSampler(
            source.languages, source.languages_per_clip, shortest, longest, source.text_column, seed=self.recipe.seed
        )
        return SampledClips(rows, features, window)

    def source_clips(self, data: DataArguments | Source, split: str) -> ClipColumn | None:
        """A split's clips where they come as pixels, not decoded yet."""
        column = self.recipe.data.video_column
        if column is None:
            return None
        return ClipColumn(read_split(str(data.dataset), data.revision, split), column, str(data.dataset))

    def frames(self, data: DataArguments | Source, split: str, candidates: int = 1) -> KeptClips:
        """A split's clips as `MMTVideoFeatureExtractor.read` gives them, decoded once while there is room."""
        key = (str(data.dataset), data.revision, split, candidates)
        if key not in self.decoded:
            sources = self.source_clips(data, split)
            assert sources is not None
            read = self.processor.feature_extractor.read
            self.decoded[key] = KeptClips(list(sources), lambda name: read(sources[name], candidates), self.room)
        return self.decoded[key]

    def encoded_clips(self, data: DataArguments | Source, split: str) -> KeptClips:
        """A split's clips as the features `(F, D_v)` that the vision encoders, frozen as they are, make of them.

        Each by itself: a convolution's sums depend on what else is in the batch, and a resumed run shall not.
        """
        key = (str(data.dataset), data.revision, split)
        if key not in self.encoded:
            sources = self.frames(data, split)
            vision = self.model.video_model

            @torch.no_grad()
            def encode(video_id: str) -> torch.Tensor:
                batch = self.processor.feature_extractor.collate([sources.make(video_id)])
                batch = {name: value.to(self.model.device) for name, value in batch.items()}
                return vision.features(batch["pixel_values"], batch["video_mask"], batch)[0].float().cpu()

            self.encoded[key] = KeptClips(list(sources), encode, self.room)
        return self.encoded[key]

    def forget_features(self):
        """The vision encoders are about to change."""
        for clips in self.encoded.values():
            clips.forget()
        self.encoded.clear()

    def sampler(self, stage: StageArguments, position: int, num_rows: int, start: int) -> EpochBatchSampler:
        """This process's share of each batch of the stage's source at `position`, from batch `start` on."""
        return EpochBatchSampler(
            num_rows,
            stage.train_batch_size,
            seed=len(stage.sources) * self.recipe.seed + position,  # sources draw independently
            start=start,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def collated(
        self, rows: ClipDataset | SampledClips, sampler: EpochBatchSampler, source: Source, left: int
    ) -> Iterator[Any]:
        """The `left` batches that are still to come of a source."""
        loader = DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=collator(self.processor, source),
            generator=torch.Generator(),  # or the iterator draws from the generator that dropout resumes with
        )
        batches: Iterator[Any] = islice(loader, left)
        cache = self.cache_of(source)
        return batches if cache is None else cache.ahead(batches)

    def cache_of(self, source: Source) -> FrozenTextCache | None:
        """What keeps the frozen layers' states of a source's captions, if these come again."""
        return self.cache if source.draws_from_pools else None

    @property
    def is_sharded(self) -> bool:
        """Whether stages are trained with FSDP2."""
        return wants_sharding(self.accelerator)

    def gather_weights(self, learner: MMTModel):
        """Bring the model up to what is learned, where that is sharded."""
        if learner is not self.model:
            load_trainable_state(self.model, trainable_state(learner))

    def largest(self, number: int) -> int:
        """The largest over the processes."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def to_device(self, chunk: Mapping[str, torch.Tensor], source: Source) -> dict[str, torch.Tensor]:
        """Frozen layers' output in place of token ids, where captions come again; tensors on the device."""
        if (cache := self.cache_of(source)) is not None:
            chunk = cache.attach(dict(chunk))
        return {key: value.to(self.accelerator.device) for key, value in chunk.items()}

    def cut(self, batch: dict[str, torch.Tensor], max_tokens: int | None) -> MicroBatches:
        """The batch's micro-batches: under FSDP2, whose forward passes communicate, as many in each process."""
        cut = micro_batches(batch, max_tokens)
        if self.is_sharded:
            number = self.largest(len(cut.chunks))
            cut = micro_batches(batch, max_tokens, at_least=number)
            uneven = len(cut.chunks) != number or len({frozenset(chunk) for chunk in cut.chunks}) > 1
            if self.largest(uneven):
                raise ValueError(
                    f"micro_batch_tokens is {max_tokens}: a process has fewer clips or captions than the {number} "
                    "micro-batches that FSDP2 needs of each; raise it"
                )
        return cut

    def backward(
        self, embedder: torch.nn.Module, batch: dict[str, torch.Tensor], source: Source, stage: StageArguments
    ) -> dict[str, torch.Tensor]:
        """Add the gradients of a source's share of the loss over all processes' batch; returns the objectives.

        Every clip of the whole batch is every other's negative, whether it is encoded at once or in micro-batches.
        """
        accelerator, cut = self.accelerator, self.cut(batch, stage.micro_batch_tokens)
        positive_ids = gather_ids(batch["positive_ids"].to(accelerator.device))
        values: dict[str, torch.Tensor] = {}

        def encode(chunk: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            with accelerator.autocast():
                return {key: value.float() for key, value in embedder(self.to_device(chunk, source)).items()}

        def loss(embeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
            rows = cut.restore(embeds)
            gathered = {key: gather_embeddings(value) if value.dim() else value for key, value in rows.items()}
            values.update(self.model.compute_objectives(gathered, positive_ids, contrastive_loss))
            return source.weight / stage.gradient_accumulation_steps * values["loss"]

        two_pass_backward(
            encode,
            cut.chunks,
            loss,
            no_sync=nullcontext if self.is_sharded else partial(accelerator.no_sync, embedder),
            backward=accelerator.backward,
            memory_budget=None if stage.activation_memory is None else int(stage.activation_memory * 2**30),
            agree=self.largest if self.is_sharded else int,
        )
        return {key: value.detach() for key, value in values.items()}

    def view(self, **inputs) -> dict[str, torch.Tensor]:
        """The processor's tensors, with frozen layers' output in place of token ids where it is kept.

        `videos` are clips as `frames` has them.
        """
        if "videos" in inputs:
            return dict(self.processor.feature_extractor.collate(inputs["videos"]))
        processor = self.processor if self.cache is None else CachedProcessor(self.processor, self.cache)
        return dict(processor(**inputs))

    def clips(self, split: str) -> Sequence[Any]:
        """Every clip of a split: its features `(F_i, D_v)`, or its frames where the vision encoders have learned."""
        rows, data, vision = self.splits[split], self.recipe.data, self.model.video_model.vision_model
        if vision is not None:
            if vision.learning_layers == 0:
                return InOrder(self.encoded_clips(data, split), rows["video_id"][:])
            return InOrder(self.frames(data, split), rows["video_id"][:])
        return [self.features[key] for key in rows["video_id"]] if self.features else rows["video_features"][:]

    def save_cache(self):
        """Write the frozen layers' output that is new: one process after the other, each what is still missing."""
        if self.cache is not None and self.cache.directory is not None:
            for rank in range(self.accelerator.num_processes):
                if rank == self.accelerator.process_index:
                    self.cache.save()
                self.accelerator.wait_for_everyone()

    def encode_ahead(self, texts: list[str]):
        """Keep the frozen layers' output for captions that will be embedded, if it is kept."""
        if self.cache is not None:
            progress = "frozen layers" if self.accelerator.is_main_process else None
            self.cache.fill([self.processor(text=texts)], progress)

    def embed(self, split: str, kind: str, languages: Sequence[str]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """A split's captions of a kind by language, its clips, and which clip each caption belongs to."""
        texts, targets, captions = {}, {}, {}
        for language in languages:
            targets[language], captions[language] = flat_captions(self.splits[split][f"{kind}_{language}"])
        self.encode_ahead(list(chain(*captions.values())))
        for language in languages:
            texts[language] = embed_texts(self.model, self.view, captions[language])
        return texts, embed_videos(self.model, self.view, self.clips(split)), targets

    def english_score(self) -> float:
        """MRR of English text-to-video search on validation: what checkpoints are chosen by."""
        texts, clips, targets = self.embed("validation", self.recipe.data.text_column, ["en"])
        return retrieval_metrics(ranks(texts["en"], clips, targets["en"]))["MRR"]

    def search(self, split: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Search a split in every language, both ways: the figures, and every query's rank behind them."""
        data = self.recipe.data
        texts, clips, targets = self.embed(split, kind, data.languages)
        parts = {"all": torch.zeros(len(clips), dtype=torch.bool)}
        if data.exclude_column:
            parts[f"without_{data.exclude_column}"] = torch.tensor(self.splits[split][data.exclude_column])
        metric = evaluate.load(str(Path(__file__).parents[2] / "metrics" / "retrieval"))
        figures: dict[str, Any] = {part: {"t2v": {}, "v2t": {}} for part in parts}
        ranked: dict[str, Any] = {part: {"t2v": {}, "v2t": {}} for part in parts}
        for part, exclude in parts.items():
            for language, embeds in texts.items():
                clip_of = torch.tensor(targets[language])
                kept, gallery = embeds[~exclude[clip_of]], clips[~exclude]
                clip_of = (torch.cumsum(~exclude, 0) - 1)[clip_of[~exclude[clip_of]]]
                captions_of = [torch.where(clip_of == clip)[0].tolist() for clip in range(len(gallery))]
                described = [clip for clip, captions in enumerate(captions_of) if captions]
                t2v = metric.compute(predictions=kept, references=clip_of, gallery_embeds=gallery, return_ranks=True)
                v2t = metric.compute(
                    predictions=gallery[described],
                    references=[captions_of[clip] for clip in described],
                    gallery_embeds=kept,
                    return_ranks=True,
                )
                ranked[part]["t2v"][language] = t2v.pop("ranks").tolist()
                of_clips = dict(zip(described, v2t.pop("ranks").tolist(), strict=True))
                ranked[part]["v2t"][language] = [of_clips.get(clip, math.nan) for clip in range(len(gallery))]
                figures[part]["t2v"][language], figures[part]["v2t"][language] = t2v, v2t
        return figures, ranked

    def is_told_to_stop(self) -> bool:
        """Whether any process got a signal: they hear it at different steps, and must stop after the same one."""
        heard = torch.tensor([int(STOP.is_set())], device=self.accelerator.device)
        return bool(self.accelerator.gather(heard).any())


class Embedder(torch.nn.Module):
    """What runs under data parallelism: a batch in, the embeddings that the objectives need out."""

    def __init__(self, model: MMTModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors to `MMTModel.embed`'s, and the learning scalars that the loss needs."""
        found = {**self.model.embed(batch), **self.model.loss_scalars()}
        if "video_mask" not in batch:  # a source of text alone beside others: DDP waits for every parameter
            tower = [value for name, value in self.model.named_parameters() if name.startswith("video_")]
            idle = [value.sum() for value in tower if value.requires_grad and not isinstance(value, DTensor)]
            found["logit_scale"] = found["logit_scale"] + 0 * sum(idle)
        return found


def machine(accelerator: Accelerator) -> str:
    """What a stage was trained on, for the card."""
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if accelerator.device.type == "cpu":
        return cores
    kind = accelerator.device.type
    name = torch.cuda.get_device_name(accelerator.device) if kind == "cuda" else f"{kind} device"
    return f"{accelerator.num_processes} x {name}, {cores}"


def content(
    rows: Dataset,
    columns: Sequence[str],
    features: FeatureStores | None,
    clips: ClipColumn | None,
    with_video: bool = True,
) -> list[str]:
    """Hashes of what is read of a split: columns, and the clips: of stores, the rows' own features, or pixels."""
    if not with_video:
        return [rows_fingerprint(rows, ["video_id", *columns])]
    if clips is not None:
        return [rows_fingerprint(rows, ["video_id", *columns]), clips.fingerprint()]
    if features is not None:
        return [rows_fingerprint(rows, ["video_id", *columns]), *features.fingerprints]
    return [rows_fingerprint(rows, ["video_id", *columns, "video_features"])]


def idle(stage: StageArguments) -> list[str]:
    """Prefixes of the parameters that a stage never uses, which data parallelism would wait for."""
    return [] if any(source.with_video for source in stage.sources) else ["video_"]


def collator(processor: MMTProcessor, source: Source) -> MMTDataCollator:
    """The collator of a source: its fields are the source's."""
    not_its = ("weight", "dataset", "revision", "features", "clip_seconds")
    return MMTDataCollator(processor, **{key: value for key, value in vars(source).items() if key not in not_its})


def seen(
    clips: Sequence[ClipDataset | SampledClips],
    samplers: Sequence[EpochBatchSampler],
    stage: StageArguments,
    step: int,
) -> list[list[str]]:
    """The ids of the clips of an optimizer step, by source."""
    batches = range(step * stage.gradient_accumulation_steps, (step + 1) * stage.gradient_accumulation_steps)
    return [
        [dataset.rows[draw[2]]["video_id"] for batch in batches for draw in sampler.batch(batch)]
        for dataset, sampler in zip(clips, samplers, strict=True)
    ]


def not_finite(name: str, step: int, folder: Path, loss: torch.Tensor, norm: Any, ids: Any) -> FloatingPointError:
    """The error for a loss or gradient that is not finite; the batch's clips are in the file that it names."""
    path = folder / f"not_finite-step-{step}.json"
    if ids is not None:  # one process writes
        write_json(path, {"loss": str(loss.item()), "gradient_norm": str(float(norm)), "video_ids": ids})
    return FloatingPointError(f"{name}: loss {loss.item()}, gradient norm {float(norm)} at step {step}; see {path}")


def parameter_groups(model: MMTModel, stage: StageArguments) -> list[dict[str, Any]]:
    """The learning parameters with their rates; biases, norms and scalars are not decayed."""
    rates = {"text_": stage.text_learning_rate, "video_model.vision_model.": stage.vision_learning_rate}
    groups: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = next((rate for prefix, rate in rates.items() if key.startswith(prefix)), None)
            rate = stage.learning_rate if own is None else own
            decay = stage.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay, isinstance(parameter, DTensor)), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay, _), group in groups.items()]


def write_training_log(path: Path, metrics: Mapping[str, Any]):
    """One JSON object a line for each evaluation of each stage: step, loss and English validation MRR."""
    stages_run = [name for name in ("pretraining", "finetuning") if name in metrics]
    lines = [json.dumps({"stage": name, **record}) for name in stages_run for record in metrics[name]["curve"]]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def command():
    """Run the recipe of the command line; ends the process with its exit code."""
    try:
        sys.exit(1 if main().get("problems") else 0)
    except (RecipeError, CheckpointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        sys.exit(130)
