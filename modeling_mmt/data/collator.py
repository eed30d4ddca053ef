"""Choose captions and languages, add noise, call the processor: rows of a corpus to what `MMTModel.forward` takes.

Every choice is a pure function of (seed, epoch, row), so the order and the draws are the same for any number of
workers and processes, and a run resumes at a step without replaying what came before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from modeling_mmt.data.augmentation import VideoAugmentation
from modeling_mmt.data.captions import CaptionColumns, stable_id
from modeling_mmt.data.checks import are_filled
from modeling_mmt.inputs_mmt import ItemError
from modeling_mmt.loss_mmt import CAPTIONS

Draw = tuple[int, int, int]  # seed, epoch, row
TEXT_VIEWS = tuple(f"{noise}{caption}" for caption in CAPTIONS for noise in ("", "noised_"))
"""What precedes `input_ids` in a batch."""


class EpochBatchSampler:
    """Batches of `(seed, epoch, row)`, each epoch a new permutation, for ever; the last short batch is dropped.

    Args:
        num_rows: rows of the corpus.
        batch_size: rows of a whole batch, over all processes; at most `num_rows`.
        seed: of the permutations and of every draw made for a row.
        start: the first batch to yield: the step at which a run resumes.
        rank: this process, which takes its consecutive share of every batch.
        world_size: number of processes; shares differ by one row at most.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        if not 1 <= batch_size <= num_rows:
            raise ValueError(f"batch_size is {batch_size}; the corpus has {num_rows} rows: choose 1 to {num_rows}")
        if world_size > batch_size:
            raise ValueError(f"batch_size is {batch_size}; {world_size} processes need at least one row each")
        self.num_rows, self.batch_size, self.seed, self.start = num_rows, batch_size, seed, start
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._order = -1, np.empty(0, dtype=np.int64)  # of the epoch last asked for

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the corpus."""
        return self.num_rows // self.batch_size

    def batch(self, step: int) -> list[Draw]:
        """The whole batch of a step, over all processes."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        rows = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return [(self.seed, epoch, int(row)) for row in rows]

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield this process's share of each batch, without end."""
        step = self.start
        while True:
            yield self.batch(step)[self.share]
            step += 1


class ArrowColumns(dict[str, pa.Array]):
    """A table's columns by name, each in one piece from when it is first asked for: a value is then found at once."""

    def __init__(self, table: pa.Table):
        self.table, self.names = table, table.column_names
        self._filled: dict[str, list[bool]] = {}

    def __missing__(self, name: str) -> pa.Array:
        self[name] = self.table.column(name).combine_chunks()
        return self[name]

    def filled(self, name: str) -> list[bool]:
        """Of each row, whether the column's text or list is neither null nor empty; all False of no such column."""
        if name not in self._filled:
            present = are_filled(self[name]) if name in self.names else np.zeros(len(self.table), dtype=bool)
            self._filled[name] = present.tolist()
        return self._filled[name]


class ArrowRow(Mapping[str, Any]):
    """A row of an Arrow table, of which a value is decoded when it is asked for.

    Args:
        columns: of the table.
        position: of the row.
        more: values beside the table's, or in their place.
    """

    def __init__(self, columns: ArrowColumns, position: int, more: Mapping[str, Any] = MappingProxyType({})):
        self.columns, self.position, self.more = columns, position, more

    def __or__(self, more: Mapping[str, Any]) -> "ArrowRow":
        return ArrowRow(self.columns, self.position, {**self.more, **more})

    def __getitem__(self, name: str) -> Any:
        return self.more[name] if name in self.more else self.columns[name][self.position].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.columns.names, *self.more)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def filled(self, name: str) -> bool:
        """Whether the column's text or list is neither null nor empty; nothing is decoded for it."""
        return self.columns.filled(name)[self.position]


class ClipDataset(torch.utils.data.Dataset):
    """Rows of a corpus joined with their clips' features or frames; indexed by `(seed, epoch, row)`, or the row alone.

    Args:
        rows: a `datasets.Dataset` or list with `video_id` and text columns `<kind>_<language>`. A dataset's rows stay
            Arrow until a column is asked for, unless it has a format of its own (`with_format`).
        features: `video_id` to `(F, D_v)`; `None` if the rows carry `video_features`, or no clip is wanted.
        frames: in their place, `video_id` to what `MMTVideoFeatureExtractor.read` gives.

    Raises:
        ValueError: both are given.
    """

    def __init__(self, rows: Any, features: Mapping[str, Any] | None = None, frames: Mapping[str, Any] | None = None):
        if features is not None and frames is not None:
            raise ValueError("clips are given as features and as frames; leave one out")
        self.rows, self.features, self.frames = rows, features, frames
        is_plain = isinstance(rows, Dataset) and rows.format["type"] is None
        self._arrow = rows.with_format("arrow") if is_plain else None

    def __len__(self) -> int:
        """Rows of the corpus."""
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Mapping[str, Any]:
        """The row, its `video_features` or `video_frames` where there are any, and its `draw` if the index says it."""
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[Mapping[str, Any]]:
        """The same for each of a batch, which a `DataLoader` asks for at once."""
        positions = [draw if isinstance(draw, int) else draw[2] for draw in draws]
        columns = None if self._arrow is None else ArrowColumns(self._arrow[positions])
        rows: list[Mapping[str, Any]] = []
        for number, (draw, position) in enumerate(zip(draws, positions, strict=True)):
            row = dict(self.rows[position]) if columns is None else ArrowRow(columns, number)
            more: dict[str, Any] = {} if isinstance(draw, int) else {"draw": draw}
            if self.features is not None:
                more["video_features"] = self.features[row["video_id"]]
            if self.frames is not None:
                more["video_frames"] = self.frames[row["video_id"]]
            rows.append(row | more)
        return rows


@dataclass
class MMTDataCollator:
    """Rows of a corpus to one training batch.

    A row's choices are drawn from its `draw`; without one, as from another sampler than ours, from torch's generator.

    Args:
        processor: an `MMTProcessor`.
        text_column: kind of text; the columns `<text_column>_<language>` hold a string, or a list of strings.
        languages: to sample from; a clip's language is drawn evenly among those that it has.
        languages_per_clip: 1 for pre-training as in the paper (section 4.2), 2 for pairs (x, v, y), up to 9 captions
            of one clip, which is encoded once for all of them.
        max_keywords: a list holds keywords: join a random 1 to `max_keywords` of them by commas. `None`: a list holds
            whole captions, one is drawn.
        exclude_text_column: keywords equal to the clip's text of this kind and language, case aside, are not drawn: a
            clip's keywords often name it, and a test of transfer to names may want to do without.
        keyword_pool_size: a clip's joined captions come from a seeded pool of this many in each language, so that
            their frozen states can be kept; 0 draws afresh.
        noise_probability: share of tokens replaced by the mask token in x^m, and of steps set to zero in v^m
            (5 % in the paper); 0 makes no noised copies. A step of pixels becomes a picture of the mean colour.
        noise_pool_size: a caption's noised copies come from a seeded pool of this many; 0 draws afresh.
        with_video: `False` leaves the clips out: text is aligned across languages alone.
        augmentation: changes rows' `video_frames`; `None` leaves them as they are. Features stay.
        with_caption_keys: add the `caption_keys` of each view, which micro-batches and the layer cache know captions
            by; the model does not take them.
        other_text_columns: further kinds of text: each caption's is drawn evenly among those that the clip has in the
            caption's language.
        exclude_languages: keywords that contain the clip's text of the excluded kind in one of these languages are not
            drawn either.
        tokenize: captions to `input_ids` and `attention_mask`; `None`: the processor's `tokenize`.

    Returns:
        The tensors that `MMTModel.forward` documents, `positive_ids` `(B, 1 + languages_per_clip)` and
        `return_loss=True`.

    Raises:
        ValueError: a row has no caption in any of the languages, or fewer than are wanted, or neither features nor
            frames, or both; names the clip. Or captions are to be noised, and the tokenizer has no mask token. Or more
            captions are wanted than there are names for.
    """

    processor: Any
    text_column: str = "caption"
    languages: Sequence[str] = ("en",)
    languages_per_clip: int = 1
    max_keywords: int | None = None
    exclude_text_column: str | None = None
    keyword_pool_size: int = 8
    noise_probability: float = 0.05
    noise_pool_size: int = 8
    with_video: bool = True
    augmentation: VideoAugmentation | None = None
    with_caption_keys: bool = False
    other_text_columns: Sequence[str] = ()
    exclude_languages: Sequence[str] = ()
    tokenize: Callable[[Sequence[str]], Mapping[str, torch.Tensor]] | None = None

    def __post_init__(self):
        """Check how many captions a clip has, and that they can be noised."""
        if not 1 <= self.languages_per_clip <= len(CAPTIONS):
            raise ValueError(f"languages_per_clip is {self.languages_per_clip}; choose 1 to {len(CAPTIONS)}")
        kinds = (self.text_column, *self.other_text_columns)
        self.columns = CaptionColumns(kinds, self.languages, self.exclude_text_column, self.exclude_languages)
        if self.noise_probability and self.processor.tokenizer.mask_token_id is None:
            raise ValueError(
                f"noise_probability is {self.noise_probability}, and the tokenizer has no mask token to make noise of;"
                " set it to 0, or give the tokenizer one"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows of a `ClipDataset`."""
        draws = [row["draw"] if "draw" in row else int(torch.randint(2**62, ())) for row in rows]
        generators = [np.random.default_rng(draw) for draw in draws]
        captions = [self._captions(row, generator) for row, generator in zip(rows, generators, strict=True)]
        batch: dict[str, Any] = {"return_loss": True}
        ids = [torch.tensor([stable_id(row["video_id"]) for row in rows])]
        for position, prefix in enumerate(CAPTIONS[: self.languages_per_clip]):
            texts = [choice[position] for choice in captions]
            with naming_rows(rows, "of clip "):
                tokens = (self.tokenize or self.processor.tokenize)(texts)
            batch[f"{prefix}input_ids"] = tokens["input_ids"]
            batch[f"{prefix}attention_mask"] = tokens["attention_mask"]
            keys = caption_keys(batch, prefix)  # equal for what the encoder reads as equal
            ids.append(keys)
            if self.with_caption_keys:
                batch[f"{prefix}caption_keys"] = keys
            if self.noise_probability:
                batch[f"noised_{prefix}input_ids"] = self._mask_tokens(batch, prefix, keys.tolist(), generators)
                if self.with_caption_keys:
                    batch[f"noised_{prefix}caption_keys"] = caption_keys(batch, f"noised_{prefix}")
        if self.with_video:
            clips = self._clips(rows, generators)
            batch.update(clips)
            if self.noise_probability:
                step_mask = self._step_mask(batch["video_mask"], generators)
                for name, value in clips.items():
                    if name != "video_mask":
                        batch[f"noised_{name}"] = value * step_mask.view(*step_mask.shape, *[1] * (value.dim() - 2))
        batch["positive_ids"] = torch.stack(ids, dim=1)  # (B, 1 + languages_per_clip): clip, caption x, caption y
        return batch

    def _clips(
        self, rows: Sequence[Mapping[str, Any]], generators: Sequence[np.random.Generator]
    ) -> Mapping[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        kinds = ("video_features", "video_frames")
        kinds_of_rows = [[kind for kind in kinds if row.get(kind) is not None] for row in rows]
        for row, present in zip(rows, kinds_of_rows, strict=True):
            if not present:
                raise ValueError(
                    f"clip {row['video_id']!r} has no video_features, and no video_frames; drop it, or set with_video "
                    "to false"
                )
            if present != kinds_of_rows[0] or len(present) > 1:
                raise ValueError(
                    f"clip {row['video_id']!r} has {present}, the first {kinds_of_rows[0]}; give all one of {kinds}"
                )
        if kinds_of_rows[0] == ["video_features"]:
            with naming_rows(rows):
                return extractor([row["video_features"] for row in rows])
        clips = [row["video_frames"] for row in rows]
        if self.augmentation is not None:
            number = extractor.sampling["num_frames"]
            clips = [
                self.augmentation(clip, generator, number or -(-len(clip[0]) // self.augmentation.temporal_jitter))
                for clip, generator in zip(clips, generators, strict=True)
            ]
        return extractor.collate(clips)

    def _captions(self, row: Mapping[str, Any], generator: np.random.Generator) -> list[str]:
        available = self.columns.available(row)
        if len(available) < self.languages_per_clip:
            raise ValueError(
                f"clip {row['video_id']!r} has {' or '.join(self.columns.kinds)} in "
                f"{[*available] or 'no language'} of {list(self.languages)}; {self.languages_per_clip} needed: drop "
                "the clip or add captions"
            )
        chosen = generator.choice(len(available), self.languages_per_clip, replace=False)
        languages = [*available]
        return [self._caption(row, languages[index], available[languages[index]], generator) for index in chosen]

    def _caption(
        self, row: Mapping[str, Any], language: str, kinds: Sequence[str], generator: np.random.Generator
    ) -> str:
        kind = kinds[int(generator.integers(len(kinds)))] if len(kinds) > 1 else kinds[0]
        value = self.columns.texts(row, kind, language)
        if isinstance(value, str):
            return value
        if self.max_keywords is None:
            return value[generator.integers(len(value))]
        if self.keyword_pool_size:
            member = int(generator.integers(self.keyword_pool_size))
            generator = np.random.default_rng((stable_id(f"{row['video_id']} {language}"), member))
        count = generator.integers(min(self.max_keywords, len(value))) + 1
        return ", ".join(value[index] for index in generator.permutation(len(value))[:count])

    def _mask_tokens(
        self,
        batch: Mapping[str, torch.Tensor],
        prefix: str,
        keys: Sequence[int],
        generators: Sequence[np.random.Generator],
    ) -> torch.Tensor:
        tokens, is_real = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"].bool().numpy()
        lost = np.zeros(tokens.shape, dtype=bool)
        for row, (key, generator) in enumerate(zip(keys, generators, strict=True)):
            if self.noise_pool_size:
                generator = np.random.default_rng((key, int(generator.integers(self.noise_pool_size))))
            lost[row, is_real[row]] = generator.random(is_real[row].sum()) < self.noise_probability
        special = torch.isin(tokens, torch.tensor(self.processor.tokenizer.all_special_ids))
        return tokens.masked_fill(torch.from_numpy(lost) & ~special, self.processor.tokenizer.mask_token_id)

    def _step_mask(self, video_mask: torch.Tensor, generators) -> torch.Tensor:
        lengths = video_mask.sum(dim=1).tolist()
        step_mask = torch.ones_like(video_mask, dtype=torch.float32)
        for row, (length, generator) in enumerate(zip(lengths, generators, strict=True)):
            lost = generator.random(length) < self.noise_probability
            if not lost.all():  # a clip without any step left would say nothing about itself
                step_mask[row, :length] = torch.from_numpy(~lost)
        return step_mask


@contextmanager
def naming_rows(rows: Sequence[Mapping[str, Any]], before: str = "") -> Iterator[None]:
    """Let an error that knows an item's place in a batch name the row's clip, after the words `before`."""
    try:
        yield
    except ItemError as error:
        raise error.named(f"{before}{rows[error.name]['video_id']!r}") from None


def mask_name(view: str) -> str:
    """Of the attention mask of a view of `TEXT_VIEWS`, which a noised copy shares with its original."""
    return f"{view.removeprefix('noised_')}attention_mask"


def caption_keys(batch: Mapping[str, Any], view: str = "") -> torch.Tensor:
    """A batch's `<view>caption_keys`, or where it has none, what they would be.

    Returns:
        `(B,)` int64 on the CPU: 63 bits of a hash of each caption's token ids, padding aside.
    """
    keys: torch.Tensor | None = batch.get(f"{view}caption_keys")
    if keys is not None:
        return keys
    ids, is_real = batch[f"{view}input_ids"].cpu().numpy(), batch[mask_name(view)].bool().cpu().numpy()
    rows = zip(ids, is_real, strict=True)
    return torch.tensor([stable_id(repr(row[real].tolist())) for row, real in rows], dtype=torch.long)
