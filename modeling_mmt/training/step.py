"""One training step: encode the batch in micro-batches, compute the loss over all processes, propagate back."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from modeling_mmt import MMTModel
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.checkpointing import load_trainable_state, trainable_state
from modeling_mmt.training.large_batch import two_pass_backward
from modeling_mmt.training.micro_batches import MicroBatches, micro_batches
from modeling_mmt.training.recipe import Source, StageArguments
from modeling_mmt.training.sharding import average_gradients, clip_grad_norm, copy_to_shard, shard, wants_sharding
from modeling_mmt.training.task import RetrievalTask


class Embedder(torch.nn.Module):
    """What runs under data parallelism: a batch in, the embeddings that the objectives need out."""

    def __init__(self, model: MMTModel, task: RetrievalTask):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors to the task's embeddings, and the learning scalars that the loss needs."""
        embeds = {**self.task.embed(self.model, batch), **self.model.loss_scalars()}
        if "video_mask" not in batch:  # a source of text alone beside others: DDP waits for every parameter
            tower = [value for name, value in self.model.named_parameters() if name.startswith("video_")]
            unused = [value.sum() for value in tower if value.requires_grad and not isinstance(value, DTensor)]
            embeds["logit_scale"] = embeds["logit_scale"] + 0 * sum(unused)
        return embeds


class Learner:
    """A model as it learns in a stage: data-parallel, with its optimizer and its schedule.

    Args:
        data: of the run; its model's parameters that require gradients learn.
        stage: how they learn.
        num_steps: of the stage.
        task: what it teaches.
    """

    is_sharded = False

    def __init__(self, data: RunData, stage: StageArguments, num_steps: int, task: RetrievalTask):
        self.data, self.stage, self.task, self.accelerator = data, stage, task, data.accelerator
        self.model, self.embedder, self.optimizer, self.scheduler = self._prepare(num_steps)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _prepare(self, num_steps: int) -> tuple[MMTModel, torch.nn.Module, Any, Any]:
        """The model that learns, what its batches go through, its optimizer and its schedule."""
        model = self.data.model
        optimizer, scheduler = optimization(model, self.stage, num_steps)
        return model, *self.accelerator.prepare(Embedder(model, self.task), optimizer), scheduler

    def backward(self, batch: dict[str, Any], source: Source) -> dict[str, torch.Tensor]:
        """Add the gradients of a source's share of the loss over all processes' batch; returns the objectives.

        Every clip of the whole batch is every other's negative, whether it is encoded at once or in micro-batches.
        """
        accelerator, stage = self.accelerator, self.stage
        targets = self.task.targets(batch)
        cut = self.micro_batches(batch)
        positive_ids = batch["positive_ids"].to(accelerator.device)
        objectives: dict[str, torch.Tensor] = {}

        def encode(chunk: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            inputs = self.data.inputs(chunk, source)
            with accelerator.autocast():
                return {key: value.float() for key, value in self.embedder(inputs).items()}

        def loss(embeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
            objectives.update(self.task.objectives(cut.restore(embeds), positive_ids, targets))
            return source.weight / stage.gradient_accumulation_steps * objectives["loss"]

        two_pass_backward(
            encode,
            [self.data.to_device(chunk, source) for chunk in cut.chunks],
            loss,
            no_sync=self.no_sync,
            backward=accelerator.backward,
            memory_budget=None if stage.activation_memory is None else int(stage.activation_memory * 2**30),
            agree=self.agree,
        )
        return {key: value.detach() for key, value in objectives.items()}

    def micro_batches(self, batch: Mapping[str, torch.Tensor]) -> MicroBatches:
        """The batch, cut."""
        return self.cut(batch)

    def cut(self, batch: Mapping[str, torch.Tensor], at_least: int = 1) -> MicroBatches:
        """Micro-batches of as many tokens as the stage says; at least this many."""
        conditional = self.model.config.cross_weight > 0
        return micro_batches(batch, self.stage.micro_batch_tokens, at_least, conditional)

    @property
    def no_sync(self) -> Callable[[], AbstractContextManager]:
        """Holds the exchange of gradients back until a batch's last micro-batch."""
        return partial(self.accelerator.no_sync, self.embedder)

    def agree(self, number: int) -> int:
        """What the processes agree on of a number that each has: here each keeps its own."""
        return number

    def clip_gradients(self) -> torch.Tensor:
        """Bring the gradients to the stage's norm; returns the norm that they had, `()`."""
        return self.accelerator.clip_grad_norm_(self.parameters, self.stage.max_grad_norm or math.inf)

    def step(self):
        """Change the weights, and forget the gradients."""
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def update_model(self):
        """Bring the run's model up to what is learned: here it is the model that learns."""


class ShardedLearner(Learner):
    """Under FSDP2: a copy learns, split over the processes; the run's model stays whole, for evaluation."""

    is_sharded = True

    def _prepare(self, num_steps: int) -> tuple[MMTModel, torch.nn.Module, Any, Any]:
        model = copy_to_shard(self.data.model)
        embedder = Embedder(model, self.task)
        shard(embedder, model)
        optimizer, scheduler = optimization(model, self.stage, num_steps)
        return model, embedder, self.accelerator.prepare_optimizer(optimizer), scheduler

    def micro_batches(self, batch: Mapping[str, torch.Tensor]) -> MicroBatches:
        """As many of a batch in each process: FSDP2 communicates in its forward passes.

        Raises:
            ValueError: a process has too few clips or captions for that.
        """
        number = self.agree(len(self.cut(batch).chunks))
        cut = self.cut(batch, at_least=number)
        uneven = len(cut.chunks) != number or len({frozenset(chunk) for chunk in cut.chunks}) > 1
        if self.agree(uneven):
            raise ValueError(
                f"micro_batch_tokens is {self.stage.micro_batch_tokens}: a process has fewer clips or captions than "
                f"the {number} micro-batches that FSDP2 needs of each; raise it"
            )
        return cut

    @property
    def no_sync(self) -> Callable[[], AbstractContextManager]:
        """Nothing is held back, so that gradients stay sharded."""
        return nullcontext

    def agree(self, number: int) -> int:
        """The largest over the processes."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def clip_gradients(self) -> torch.Tensor:
        """As `Learner.clip_gradients`, of sharded and whole parameters together."""
        average_gradients(self.model)
        return clip_grad_norm(self.parameters, self.stage.max_grad_norm or math.inf)

    def update_model(self):
        """Gather what is learned into the run's model."""
        load_trainable_state(self.data.model, trainable_state(self.model))


def open_learner(data: RunData, stage: StageArguments, num_steps: int, task: RetrievalTask) -> Learner:
    """The learner that the launch asked for."""
    return (ShardedLearner if wants_sharding(data.accelerator) else Learner)(data, stage, num_steps, task)


def optimization(model: MMTModel, stage: StageArguments, num_steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over the learning parameters, and the schedule of its rates."""
    optimizer = torch.optim.AdamW(parameter_groups(model, stage), betas=(0.9, stage.adam_beta2), fused=True)
    warmup = round(stage.warmup_ratio * num_steps)
    return optimizer, get_scheduler(stage.lr_scheduler_type, optimizer, warmup, num_steps)


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
