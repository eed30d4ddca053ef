"""The task of a stage: its batches, its loss, and the score by which checkpoints are chosen."""

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch

from modeling_mmt import MMTModel
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.recipe import Source, StageArguments
from modeling_mmt.training.streaming_loss import contrastive_loss
from modeling_mmt.training.validation import english_score


class RetrievalTask:
    """Captions and clips find each other: the model's own objectives, and English search of validation.

    Args:
        data: of the run.
        stage: that is trained.
    """

    def __init__(self, data: RunData, stage: StageArguments):
        self.data, self.stage = data, stage

    @property
    def held(self) -> list[str]:
        """Beginnings of the names of parameters that do not learn.

        What the stage says, and what it never uses, which data parallelism would wait for.
        """
        unused = [] if any(source.with_video for source in self.stage.sources) else ["video_"]
        return [*self.stage.freeze, *unused]

    def collator(self, source: Source) -> Callable[..., dict[str, Any]]:
        """Rows of a source to a batch."""
        return self.data.collator(source)

    def targets(self, batch: MutableMapping[str, Any]) -> torch.Tensor | None:
        """What the embeddings of a process's batch are compared with, if not with each other; taken out of it."""
        return None

    def embed(self, model: MMTModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A micro-batch to the embeddings that `objectives` needs."""
        return model.embed(batch)

    def objectives(
        self, embeds: Mapping[str, torch.Tensor], positive_ids: torch.Tensor, targets: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The objectives over the batch of all processes, and `"loss"`, their weighted sum.

        Args:
            embeds: by name `(n, P)` of this process's rows, and scalars.
            positive_ids: `(n, K)` of its rows.
            targets: of its rows, as `targets` gave them.
        """
        return self.data.model.compute_objectives(
            embeds, positive_ids, partial(contrastive_loss, group=self.data.group)
        )

    def score(self) -> float:
        """Of the model as it is, in percent; higher is better."""
        return english_score(self.data)
