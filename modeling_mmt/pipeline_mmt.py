"""Search as a transformers pipeline: captions in any language in, the best clips out.

Its code travels with a checkpoint; `MMTConfig.custom_pipelines` names it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import Pipeline

from .inputs_mmt import ItemError


class ClipIndex(NamedTuple):
    """Clips that were embedded once: `ids`, one a clip, and `embeds` `(N, P)` float, unit norm."""

    ids: list[str]
    embeds: torch.Tensor


class MMTSearchPipeline(Pipeline):
    """Find clips by captions.

    ```python
    from transformers import pipeline

    search = pipeline("text-to-video-retrieval", model="org/name", revision="v1.0", trust_remote_code=True)
    index = search.index({"1f408": cat, "1f6b2": bicycle})  # (steps, D_v) arrays
    search(["a cat", "con mèo"], index=index, top_k=1)
    # [[{"id": "1f408", "score": 0.52}], [{"id": "1f408", "score": 0.28}]]
    ```

    With the package installed, `pipeline_class=MMTSearchPipeline` takes the place of `trust_remote_code=True`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def index(self, clips: Mapping[str, Any], batch_size: int = 64) -> ClipIndex:
        """Embed clips to search.

        Args:
            clips: `(F_i, D_v)` features of each id; or, for a model with vision encoders, a path or whatever else its
                processor takes for `videos`.
            batch_size: clips at a time.

        Raises:
            ValueError: there are none, or one is no such array (`ItemError`, which names its id).
        """
        if not clips:
            raise ValueError("clips is empty: nothing to search")
        ids, parts = list(clips), []
        for start in range(0, len(ids), batch_size):
            given = [clips[key] for key in ids[start : start + batch_size]]
            kind = "video_features" if all(getattr(clip, "ndim", 0) == 2 for clip in given) else "videos"
            try:
                inputs = self.processor(**{kind: given})
            except ItemError as error:  # which knows places in the batch alone
                raise error.named(repr(ids[start + error.name])) from None
            with torch.inference_mode():
                embeds = self.model.get_video_features(**inputs.to(self.device)).pooler_output
            parts.append(torch.nn.functional.normalize(embeds.float(), dim=-1).cpu())
        return ClipIndex(ids, torch.cat(parts))

    def __call__(self, queries: str | Sequence[str], index: ClipIndex, top_k: int = 5, **kwargs) -> list[Any]:
        """Search.

        Args:
            queries: one caption, or a list.
            index: from `index`.
            top_k: clips a query; all of them where there are fewer.
            kwargs: of `Pipeline.__call__`.

        Returns:
            For each query (without the outer list for a single one) the best clips, best first: `id`, and `score`, the
            cosine.
        """
        return super().__call__(queries, index=index, top_k=top_k, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """As `Pipeline.save_pretrained`, which leaves the processor out, and with it the captions' prefix."""
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, index: ClipIndex | None = None, top_k: int | None = None, **_):
        given = {"index": index, "top_k": top_k}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, query: str) -> Any:
        """One caption to the text tower's inputs."""
        try:
            return self.processor(text=query)
        except ItemError as error:
            raise ItemError("query", repr(query), error.problem) from None

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"embeds": torch.nn.functional.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)}

    def postprocess(self, outputs: Mapping[str, torch.Tensor], index: ClipIndex, top_k: int) -> list[dict[str, Any]]:
        """The query's embedding to its best clips."""
        scores = index.embeds @ outputs["embeds"][0].float()
        best = scores.topk(min(top_k, len(index.ids)))
        return [
            {"id": index.ids[row], "score": score}
            for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
