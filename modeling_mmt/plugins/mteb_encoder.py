"""A checkpoint as an MTEB encoder; the task is in `modeling_mmt.plugins.mteb_task`. Needs the extra `plugins`."""

from typing import Any

import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from modeling_mmt.evaluation.embedding import embed_texts, embed_videos


class MMTEncoder(AbsEncoder):
    """What `mteb.evaluate` takes for a model: captions, or clips' features, to unit-norm embeddings.

    Args:
        model: an `MMTModel`.
        processor: its processor.
        name: `org/name`, as MTEB files its results.
        revision: tag or commit of the checkpoint.
    """

    def __init__(self, model: Any, processor: Any, name: str = "mmt/local", revision: str = "local"):
        self.model, self.processor = model, processor
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "modalities": ["text", "video"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "embed_dim": model.config.projection_dim,
                "n_parameters": model.num_parameters(),
                "max_tokens": processor.max_text_length,
                "use_instructions": False,
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Embed what a loader of MTEB gives.

        Args:
            inputs: batches with `text`, captions, or `video`, arrays `(F_i, D_v)`.
            task_metadata: unused, as are the next three: captions and clips need no prompt.
            hf_split: the split.
            hf_subset: the language.
            prompt_type: query or document.
            kwargs: `batch_size`.

        Returns:
            `(N, P)` float32.

        Raises:
            ValueError: a batch has neither, or both.
        """
        batches = list(inputs)
        kinds = {"text", "video"} & set(batches[0])
        if len(kinds) != 1:
            raise ValueError(f"{task_metadata.name}: a batch holds {sorted(batches[0])}; text or video is needed")
        (kind,) = kinds
        items = [item for batch in batches for item in batch[kind]]
        embed = embed_texts if kind == "text" else embed_videos
        return embed(self.model, self.processor, items, batch_size=kwargs.get("batch_size", 64))
