"""Exact negatives across processes with `transformers.Trainer`; `train.py` does not need this.

A plain `Trainer` works too: `MMTModel.forward` gives it the loss over each process's own batch, whose negatives are
that many fewer. Both take `MMTDataCollator`, and `remove_unused_columns=False` among the `TrainingArguments`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer

from modeling_mmt.modeling_mmt import MMTModel
from modeling_mmt.training.streaming_loss import contrastive_loss


class MMTTrainer(Trainer):
    """`Trainer` whose loss is that of one process with the batches of all: every clip is every other's negative.

    The loss comes out of `model(...)` itself, the data-parallel wrapper, so the wrapper sees the backward pass of
    every parameter and averages the gradients; see `large_batch.gather_embeddings` for why the average is exact.
    `per_device_train_batch_size` times the number of processes is the contrastive batch; gradient accumulation adds no
    negatives.

    Raises:
        ValueError: more processes were started than `Trainer` knows of, as by `torchrun` on CPUs without `use_cpu`.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objectives over the batch of all processes, `()`; the `MMTOutput` is this process's own."""
        if dist.is_initialized() and dist.get_world_size() != self.args.world_size:  # each would train by itself
            started = f"{dist.get_world_size()} processes were started, and Trainer knows of {self.args.world_size}"
            raise ValueError(f"{started}: on CPUs set use_cpu=True in TrainingArguments, or ACCELERATE_USE_CPU=true")
        with _objectives_over_all_processes(self.accelerator.unwrap_model(model)):
            outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@contextmanager
def _objectives_over_all_processes(model: MMTModel) -> Iterator[None]:
    """Let the model's forward compute its loss from the embeddings of all processes, in float32."""

    def compute_objectives(embeds: Mapping[str, torch.Tensor], positive_ids: torch.Tensor | None) -> dict[str, Any]:
        with torch.autocast(model.device.type, enabled=False):
            rows = {name: value.float() for name, value in embeds.items()}
            loss = partial(contrastive_loss, group=dist.group.WORLD)  # None where there is one process
            return MMTModel.compute_objectives(model, rows, positive_ids, loss)

    vars(model)["compute_objectives"] = compute_objectives
    try:
        yield
    finally:
        del vars(model)["compute_objectives"]
