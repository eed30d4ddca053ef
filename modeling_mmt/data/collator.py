"""Choose captions and languages, add noise, call the processor: rows of a corpus to what `MMTModel.forward` takes.

Every choice is a pure function of (seed, epoch, row), so the order and the draws are the same for any number of
workers and processes, and a run resumes at a step without replaying what came before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from modeling_mmt.data.augmentation import VideoAugmentation

Draw = tuple[int, int, int]  # seed, epoch, row


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


class ClipDataset(torch.utils.data.Dataset):
    """Rows of a corpus joined with their clips' features or frames; indexed by `(seed, epoch, row)`, or the row alone.

    Args:
        rows: a `datasets.Dataset` or list with `video_id` and text columns `<kind>_<language>`.
        features: `video_id` to `(F, D_v)`; `None` if the rows carry `video_features`, or no clip is wanted.
        frames: in their place, `video_id` to what `MMTVideoFeatureExtractor.read` gives.

    Raises:
        ValueError: both are given.
    """

    def __init__(self, rows: Any, features: Mapping[str, Any] | None = None, frames: Mapping[str, Any] | None = None):
        if features is not None and frames is not None:
            raise ValueError("clips are given as features and as frames; leave one out")
        self.rows, self.features, self.frames = rows, features, frames

    def __len__(self) -> int:
        """Rows of the corpus."""
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """The row, its `video_features` or `video_frames` where there are any, and its `draw` if the index says it."""
        row = dict(self.rows[draw if isinstance(draw, int) else draw[2]])
        if self.features is not None:
            row["video_features"] = self.features[row["video_id"]]
        if self.frames is not None:
            row["video_frames"] = self.frames[row["video_id"]]
        return row if isinstance(draw, int) else row | {"draw": draw}


@dataclass
class MMTDataCollator:
    """Rows of a corpus to one training batch.

    A row's choices are drawn from its `draw`; without one, as from another sampler than ours, from torch's generator.

    Args:
        processor: an `MMTProcessor`.
        text_column: kind of text; the columns `<text_column>_<language>` hold a string, or a list of strings.
        languages: to sample from; a clip's language is drawn evenly among those that it has.
        languages_per_clip: 1 for pre-training as in the paper (section 4.2), 2 for pairs (x, v, y).
        max_keywords: a list holds keywords: join a random 1 to `max_keywords` of them by commas. `None`: a list holds
            whole captions, one is drawn.
        exclude_text_column: keywords equal to the clip's text of this kind and language, case aside, are not drawn: a
            clip's keywords often name it, and a test of transfer to names may want to do without.
        keyword_pool_size: a clip's joined captions come from a seeded pool of this many in each language, so that
            their frozen states can be kept; 0 draws afresh.
        noise_probability: share of tokens replaced by `noise_token` in x^m, and of steps set to zero in v^m
            (5 % in the paper); 0 makes no noised copies. A step of pixels becomes a picture of the mean colour.
        noise_pool_size: a caption's noised copies come from a seeded pool of this many; 0 draws afresh.
        with_video: `False` leaves the clips out: text is aligned across languages alone.
        augmentation: changes rows' `video_frames`; `None` leaves them as they are. Features stay.

    Returns:
        The tensors that `MMTModel.forward` documents, `positive_ids` `(B, 2 or 3)` and `return_loss=True`.

    Raises:
        ValueError: a row has no caption in any of the languages, or one only where two are wanted, or neither features
            nor frames, or both; names the clip.
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

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows of a `ClipDataset`."""
        draws = [row["draw"] if "draw" in row else int(torch.randint(2**62, ())) for row in rows]
        generators = [np.random.default_rng(draw) for draw in draws]
        captions = [self._captions(row, generator) for row, generator in zip(rows, generators, strict=True)]
        batch: dict[str, Any] = {"return_loss": True}
        ids = [[stable_id(row["video_id"]) for row in rows]]
        for position, prefix in enumerate(("", "paired_")[: self.languages_per_clip]):
            texts = [choice[position] for choice in captions]
            tokens = self.processor.tokenize(texts)
            batch[f"{prefix}input_ids"] = tokens["input_ids"]
            batch[f"{prefix}attention_mask"] = tokens["attention_mask"]
            if self.noise_probability:
                batch[f"noised_{prefix}input_ids"] = self._mask_tokens(**tokens, generators=generators)
            lengths = tokens["attention_mask"].sum(dim=1).tolist()  # equal is what the encoder reads as equal
            ids.append(
                [
                    stable_id(repr(row[:length]))
                    for row, length in zip(tokens["input_ids"].tolist(), lengths, strict=True)
                ]
            )
        if self.with_video:
            clips = self._clips(rows, generators)
            batch.update(clips)
            if self.noise_probability:
                keep = self._kept_steps(batch["video_mask"], generators)
                for name, value in clips.items():
                    if name != "video_mask":
                        batch[f"noised_{name}"] = value * keep.view(*keep.shape, *[1] * (value.dim() - 2))
        batch["positive_ids"] = torch.tensor(ids, dtype=torch.long).T  # (B, 2 or 3): clip, caption x, caption y
        return batch

    def _clips(
        self, rows: Sequence[Mapping[str, Any]], generators: Sequence[np.random.Generator]
    ) -> Mapping[str, torch.Tensor]:
        extractor = self.processor.feature_extractor
        kinds = ("video_features", "video_frames")
        given = [[kind for kind in kinds if row.get(kind) is not None] for row in rows]
        for row, found in zip(rows, given, strict=True):
            if not found:
                raise ValueError(
                    f"clip {row['video_id']!r} has no video_features, and no video_frames; drop it, or set with_video "
                    "to false"
                )
            if found != given[0] or len(found) > 1:
                raise ValueError(
                    f"clip {row['video_id']!r} has {found}, the first {given[0]}; give all one of {kinds}"
                )
        if given[0] == ["video_features"]:
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
        available = [language for language in self.languages if self._texts(row, language)]
        if len(available) < self.languages_per_clip:
            raise ValueError(
                f"clip {row['video_id']!r} has {self.text_column} in {available or 'no language'} of "
                f"{list(self.languages)}; {self.languages_per_clip} needed: drop the clip or add captions"
            )
        chosen = generator.choice(len(available), self.languages_per_clip, replace=False)
        return [self._caption(row, available[index], generator) for index in chosen]

    def _texts(self, row: Mapping[str, Any], language: str) -> str | list[str]:
        value = row.get(f"{self.text_column}_{language}") or ""
        if self.exclude_text_column is None or isinstance(value, str):
            return value
        taken = row[f"{self.exclude_text_column}_{language}"].casefold()
        return [keyword for keyword in value if keyword.casefold() != taken]

    def _caption(self, row: Mapping[str, Any], language: str, generator: np.random.Generator) -> str:
        value = self._texts(row, language)
        if isinstance(value, str):
            return value
        if self.max_keywords is None:
            return value[generator.integers(len(value))]
        if self.keyword_pool_size:
            member = int(generator.integers(self.keyword_pool_size))
            generator = np.random.default_rng((stable_id(f"{row['video_id']} {language}"), member))
        count = generator.integers(min(self.max_keywords, len(value))) + 1
        return ", ".join(value[index] for index in generator.permutation(len(value))[:count])

    def _mask_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, generators, **_) -> torch.Tensor:
        tokenizer = self.processor.tokenizer
        noised = input_ids.clone()
        special = set(tokenizer.all_special_ids)
        for row, (tokens, length) in enumerate(
            zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
        ):
            generator = generators[row]
            if self.noise_pool_size:
                member = int(generator.integers(self.noise_pool_size))
                generator = np.random.default_rng((stable_id(repr(tokens[:length])), member))
            for position, chance in enumerate(generator.random(length)):
                if chance < self.noise_probability and tokens[position] not in special:
                    noised[row, position] = noise_token(tokenizer, special, generator)
        return noised

    def _kept_steps(self, video_mask: torch.Tensor, generators) -> torch.Tensor:
        lengths = video_mask.sum(dim=1).tolist()
        keep = torch.ones_like(video_mask, dtype=torch.float32)
        for row, (length, generator) in enumerate(zip(lengths, generators, strict=True)):
            lost = generator.random(length) < self.noise_probability
            if not lost.all():  # a clip without any step left would say nothing about itself
                keep[row, :length] = torch.from_numpy(~lost)
        return keep


def noise_token(tokenizer: Any, special: set[int], generator: np.random.Generator) -> int:
    """The mask token; where the tokenizer has none (CLIP's, SigLIP's), any other that is not special."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    while (token := int(generator.integers(len(tokenizer)))) in special:
        pass
    return token


def stable_id(text: str) -> int:
    """63 bits of a text's hash, the same in every process and run (Python's own `hash` is salted)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
