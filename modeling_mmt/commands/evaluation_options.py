"""What is searched: the options of `mmt.add_evaluation_options`, with defaults from the checkpoint's recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, open_corpus, open_texts


@dataclass(frozen=True)
class EvaluationOptions:
    """The options; None is what the checkpoint's recipe says.

    Args:
        revision: tag or commit of a checkpoint on the Hub.
        dataset: folder, name on the Hub, or of a corpus that comes with the package.
        dataset_revision: tag or commit of a dataset on the Hub.
        features: folders of feature stores, side by side.
        video_column: of videos.
        split: of the dataset.
        text_column: kind of text.
        languages: to search in.
        exclude_column: of clips to leave out in a second set of figures.
    """

    revision: str | None = None
    dataset: str | None = None
    dataset_revision: str | None = None
    features: Sequence[str] | None = None
    video_column: str | None = None
    split: str | None = None
    text_column: str | None = None
    languages: Sequence[str] | None = None
    exclude_column: str | None = None

    def spec(self, checkpoint: str) -> EvalSpec:
        """What the checkpoint's recipe evaluates on, with what is given here put over it."""
        changes: dict[str, Any] = {key: value for key, value in vars(self).items() if value is not None}
        revision, dataset_revision = changes.pop("revision", None), changes.pop("dataset_revision", None)
        return EvalSpec.of_checkpoint(checkpoint, revision, **changes, revision=dataset_revision)

    def open(self, checkpoint: str) -> Corpus:
        """The same, opened."""
        return open_corpus(self.spec(checkpoint))

    def open_texts(self, checkpoint: str) -> Corpus:
        """The same without its clips, whose place an index takes."""
        return open_texts(self.spec(checkpoint))
