"""The sources of a stage, and the columns that they read."""

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from modeling_mmt.data.augmentation import VideoAugmentation
from modeling_mmt.data.captions import CaptionColumns
from modeling_mmt.loss_mmt import CAPTIONS
from modeling_mmt.training.recipe_fields import (
    STRICT,
    Amount,
    Count,
    Float,
    Int,
    Languages,
    Number,
    RecipeError,
    Seconds,
    Share,
    Text,
)


@dataclass(config=STRICT)
class Source:
    """One kind of text that a stage learns from; most fields are those of `MMTDataCollator`.

    Args:
        text_column: kind of text.
        other_text_columns: further kinds of text that captions are drawn from.
        named_share: fraction of the clips whose texts of `data.text_column` this source may use: the same clips for
            the same `seed`, and a subset of those of a larger fraction. Clips left without any text are not drawn.
        languages: languages to draw from.
        languages_per_clip: captions of a clip in one step, each in another language: 1, 2 for pairs, up to 9.
        max_keywords: join up to this number of keywords to a caption; `null` uses lists whole.
        exclude_text_column: leave out keywords that equal the clip's text of this kind.
        exclude_languages: in these languages, also leave out keywords that contain that text; clips left without any
            keyword are not drawn.
        keyword_pool_size: joined captions per clip and language to choose from; 0 draws new ones each time, and stores
            no frozen layers' output.
        noise_probability: fraction of tokens and steps that are masked in the noised copies.
        noise_pool_size: noised copies per caption to choose from; 0 draws new ones each time, and stores no frozen
            layers' output.
        with_video: `false` compares texts across languages, without clips.
        weight: weight of this source's loss.
        dataset: folder or Hub name, if it is not the recipe's `data.dataset`; its `train` split is used.
        revision: tag, branch or commit of `dataset`.
        features: feature stores of `dataset`. `absent:512` stands for a stream that its clips lack, of this width.
        clip_seconds: `[shortest, longest]`: the rows are long videos with cues; a random window of that many seconds
            is drawn with the cues nearest to it (`modeling_mmt/data/windows.py`). `null` uses whole clips.
        augmentation: random changes of the clips' frames (`augmentation.py`) when training from pixels; `null` for
            none.
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
                    f"{name} is {getattr(self, name)!r}, which does not go with clip_seconds; leave it out"
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


def columns_of(source: Source) -> list[str]:
    """The columns that a source reads: texts of each language, and the cues' seconds where it draws windows."""
    seconds = ("start", "end") if source.clip_seconds is not None else ()
    return [*source.captions.names, *(f"{kind}_{language}" for kind in seconds for language in source.languages)]


def english_column(source: Source) -> str:
    """The column that a teacher reads."""
    return f"{source.text_column}_en"
