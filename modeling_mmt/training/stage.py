"""One stage of a run: resume, train, and choose the best weights."""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from modeling_mmt import MMTModel
from modeling_mmt.data.collator import ClipDataset, EpochBatchSampler
from modeling_mmt.data.files import file_sha256, remove_leftovers, write_json
from modeling_mmt.data.weights import CheckpointError, load_tensors, save_tensors
from modeling_mmt.data.windows import SampledClips
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.checkpointing import (
    last_checkpoint,
    load_checkpoint,
    load_trainable_state,
    prune_checkpoints,
    save_checkpoint,
    trainable_state,
)
from modeling_mmt.training.interpolation import interpolate, mix_with_start
from modeling_mmt.training.layer_cache import frozen_fingerprint, frozen_vision_fingerprint
from modeling_mmt.training.learning import release
from modeling_mmt.training.recipe import Source, StageArguments, vision_layers
from modeling_mmt.training.signals import STOPPED, StopSignals
from modeling_mmt.training.step import Learner, open_learner
from modeling_mmt.training.task import RetrievalTask

logger = logging.getLogger(__name__)

BEST_WEIGHTS, RESULT_WEIGHTS = "best.safetensors", "result.safetensors"


def train_stage(
    data: RunData,
    name: str,
    stage: StageArguments,
    folder: Path,
    identity: Mapping[str, Any],
    signals: StopSignals,
    task: RetrievalTask,
) -> dict[str, Any]:
    """Train one stage, or load it if it is finished; the run's model is left with the stage's result.

    Args:
        data: of the run.
        name: of the stage.
        stage: how it is trained.
        folder: of its checkpoints and its result.
        identity: all that its result depends on.
        signals: that may stop it.
        task: what it teaches.

    Returns:
        Its steps, seconds, curve and best evaluation, and the machine.

    Raises:
        SystemExit: with `STOPPED`, after a signal and a checkpoint.
        FloatingPointError: a loss or gradient is not finite; names the file with the batch's clips.
        CheckpointError: a file of the folder is torn, or of another run.
    """
    model, accelerator = data.model, data.accelerator
    data.learn_vision_layers(vision_layers(data.recipe, stage))
    release(model)
    is_finished = (folder / "result.json").is_file()
    if accelerator.is_main_process:  # a run that was killed may have left it
        remove_leftovers(folder)
        prune_checkpoints(folder, keep_last=0 if is_finished else 2)
    accelerator.wait_for_everyone()
    if is_finished:
        result, weights = finished_stage(folder, name)
        load_trainable_state(model, weights, source=str(folder))
        return result
    is_mixed = stage.average_with_start > 0 or len(stage.interpolation) > 0
    start = {key: value.clone() for key, value in trainable_state(model).items()} if is_mixed else {}
    hold(model, task.held)

    clips = [data.training_clips(source, stage) for source in stage.sources]
    batches_per_epoch = len(clips[0]) // stage.train_batch_size
    num_steps = max(1, stage.num_train_epochs * batches_per_epoch // stage.gradient_accumulation_steps)
    learner = open_learner(data, stage, num_steps, task)
    torch.manual_seed(data.recipe.seed + accelerator.process_index)
    checkpoints = StageCheckpoints(folder, data, learner, identity)
    step, progress = checkpoints.resume(name, num_steps)
    samplers = data.samplers(stage, clips, step)
    batches = data.batches(stage, clips, samplers, num_steps - step, task.collator)
    evaluate_at = {round(num_steps * (i + 1) / stage.evaluations) for i in range(stage.evaluations)}
    started = time.monotonic() - progress["seconds"]

    bar = tqdm(total=num_steps, initial=step, desc=name, unit="step", disable=not accelerator.is_main_process)
    if data.recipe.model.starts_trained and stage.evaluations and not progress["curve"]:
        progress["best"] = {"step": 0, "loss": None, "validation_mrr": task.score()}  # zero-shot, at first
        progress["curve"].append(progress["best"])
        progress["best_sha256"] = checkpoints.save_best(model)
    learner.model.train()
    while step < num_steps:
        losses: dict[str, torch.Tensor] = {}
        for source, batch in step_batches(stage, batches):
            weight = source.weight / stage.gradient_accumulation_steps
            for objective, value in learner.backward(batch, source).items():  # encode, lose, go back
                losses[objective] = losses.get(objective, 0.0) + weight * value
        norm = learner.clip_gradients()
        if not (math.isfinite(losses["loss"].item()) and math.isfinite(float(norm))):
            ids = clips_of_step(clips, samplers, stage, step) if accelerator.is_main_process else None
            raise not_finite(name, step, folder, losses["loss"], norm, ids)
        learner.step()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{losses['loss'].item():.3f}", refresh=False)
        if step % data.recipe.log_steps == 0:
            accelerator.log({f"{name}/{objective}": value.item() for objective, value in losses.items()}, step=step)

        if step in evaluate_at:
            learner.update_model()
            point = {"step": step, "loss": losses["loss"].item(), "validation_mrr": task.score()}
            progress["curve"].append(point)
            if progress["best"] is None or point["validation_mrr"] > progress["best"]["validation_mrr"]:
                progress["best"] = point
                progress["best_sha256"] = checkpoints.save_best(model)
            best = progress["best"]["validation_mrr"]
            bar.set_postfix(validation_mrr=f"{point['validation_mrr']:.1f}", best=f"{best:.1f}")

        stopping = signals.requested_of_any(accelerator)
        if step % stage.save_steps == 0 or stopping:
            progress["seconds"] = time.monotonic() - started
            checkpoints.save(step, progress)
        if stopping:
            raise SystemExit(STOPPED)
    bar.close()

    learner.update_model()
    model.eval()
    accelerator.wait_for_everyone()  # the best weights may be on their way to the disk
    best_sha256 = progress.pop("best_sha256", None)
    if stage.evaluations:
        best_weights = load_weights(folder / BEST_WEIGHTS, best_sha256, f"delete {folder}, and {name} is run again")
        load_trainable_state(model, best_weights, source=str(folder))
    if stage.average_with_start:
        mix_with_start(model, start, trainable_state(model), 1 - stage.average_with_start)
    if stage.interpolation:
        progress["interpolation"] = interpolate(model, start, stage.interpolation, task.score)
    result = {**progress, "steps": step, "seconds": time.monotonic() - started, "machine": machine(accelerator)}
    release(model)
    checkpoints.finish(model, result)
    return result


def finished_stage(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a stage's result says, and its weights, whose SHA-256 it says too.

    Raises:
        CheckpointError: a file is missing, torn, or changed.
    """
    path, remedy = folder / "result.json", f"delete {folder}, and {name} is run again"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        digest = str(result.pop("sha256"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: torn, or of an earlier version ({error}); {remedy}") from error
    return result, load_weights(folder / RESULT_WEIGHTS, digest, remedy)


def load_weights(path: Path, digest: str | None, remedy: str) -> dict[str, torch.Tensor]:
    """A file's tensors, if its SHA-256 is `digest`; None where another process knows that.

    Raises:
        CheckpointError: it is missing, torn or changed.
    """
    if not path.is_file() or digest not in (None, file_sha256(path)):
        raise CheckpointError(f"{path}: torn (its SHA-256 is not the one that was noted); {remedy}")
    return load_tensors(path, remedy)


def hold(model: MMTModel, prefixes: Sequence[str]):
    """Let no parameter learn whose name begins with one of these."""
    for key, parameter in model.named_parameters():
        if key.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)


def step_batches(stage: StageArguments, batches: Sequence[Iterator[Any]]) -> Iterator[tuple[Source, Any]]:
    """The batches of one optimizer step: one of every source, as often as gradients are accumulated."""
    for _ in range(stage.gradient_accumulation_steps):
        for source, source_batches in zip(stage.sources, batches, strict=True):
            yield source, next(source_batches)


class StageCheckpoints:
    """The files of a stage: checkpoints to resume from, the best weights, and the result.

    Args:
        folder: that they lie in.
        data: of the run.
        learner: whose weights, optimizer and schedule they hold.
        identity: of the stage; the frozen weights' fingerprints and the processes are added.
    """

    def __init__(self, folder: Path, data: RunData, learner: Learner, identity: Mapping[str, Any]):
        self.folder, self.data, self.learner, self.accelerator = folder, data, learner, data.accelerator
        text, vision, cache = data.model.text_model, data.model.video_model.vision_model, data.cache
        self.identity = {
            **identity,
            "frozen": frozen_fingerprint(text) if cache is None else cache.fingerprint,
            "world_size": self.accelerator.num_processes,
            "sharded": learner.is_sharded,
        }
        if vision is not None:
            self.identity["frozen_vision"] = frozen_vision_fingerprint(vision)

    def resume(self, name: str, num_steps: int) -> tuple[int, dict[str, Any]]:
        """The steps done and the progress made, with weights, optimizer, schedule and random states restored."""
        checkpoint = last_checkpoint(self.folder)
        if checkpoint is None:
            return 0, {"best": None, "curve": [], "seconds": 0.0}
        learner, rank = self.learner, self.accelerator.process_index
        step, progress = load_checkpoint(
            checkpoint, learner.model, learner.optimizer.optimizer, learner.scheduler, self.identity, rank
        )
        logger.info("%s goes on at step %d of %d", name, step, num_steps)
        return step, progress

    def save(self, step: int, progress: Mapping[str, Any]):
        """Write a checkpoint, keep the one before it, and write what the layer cache has new."""
        learner = self.learner
        save_checkpoint(
            self.folder,
            step,
            learner.model,
            learner.optimizer.optimizer,
            learner.scheduler,
            self.identity,
            progress,
            self.accelerator.process_index,
            self.accelerator.wait_for_everyone,
        )
        if self.accelerator.is_main_process:
            prune_checkpoints(self.folder, keep_last=2)
        self.data.save_cache()

    def save_best(self, model: MMTModel) -> str | None:
        """Write the weights that learn; their SHA-256 in the process that writes."""
        if not self.accelerator.is_main_process:
            return None
        save_tensors(self.folder / BEST_WEIGHTS, trainable_state(model))
        return file_sha256(self.folder / BEST_WEIGHTS)

    def finish(self, model: MMTModel, result: Mapping[str, Any]):
        """Write the stage's result in place of its checkpoints."""
        if self.accelerator.is_main_process:
            path = self.folder / RESULT_WEIGHTS
            save_tensors(path, trainable_state(model))
            write_json(self.folder / "result.json", {**result, "sha256": file_sha256(path)})
            prune_checkpoints(self.folder, keep_last=0)
        self.data.save_cache()


def clips_of_step(
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


def machine(accelerator: Accelerator) -> str:
    """What a stage was trained on, for the card."""
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if accelerator.device.type == "cpu":
        return cores
    kind = accelerator.device.type
    name = torch.cuda.get_device_name(accelerator.device) if kind == "cuda" else f"{kind} device"
    return f"{accelerator.num_processes} x {name}, {cores}"
