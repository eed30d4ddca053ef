"""Clips of long videos, as the paper's pre-training draws them (section 4.2): a random window, one language, its cues.

A row of `multi_howto100m.py` is a video: each language's cues, with their seconds. A step of training sees of a video
a window between two random times, in one random language of those that it has, and as its text the consecutive cues
nearest in time. Every draw is a function of (seed, epoch, video): the clip that a video gives in an epoch is the same
for any number of workers and processes.

`SampledClips` draws from rows at hand, by index, as `train.py` does: any order, any batch, resumed at a step.
`ClipStream` draws from rows that are streamed, as from the Hub, of which no machine holds all: each process and worker
takes its shards, several at a time, in an order shuffled anew each epoch; `state_dict` resumes at the next clip.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from modeling_mmt.data.feature_store import FeatureStores

Row = Mapping[str, Any]


@dataclass(frozen=True)
class WindowSampler:
    """A video's clip in an epoch.

    Lengths are ours: the paper does not say between which bounds it draws.

    Args:
        languages: to draw from, evenly among those that a video has.
        languages_per_clip: 1 as in the paper, 2 for pairs.
        shortest: seconds of a window; a shorter video is taken whole.
        longest: seconds of a window.
        kind: columns `<kind>_<language>` hold the cues' texts, `start_<language>` and `end_<language>` their seconds.
        seed: of every draw.
    """

    languages: Sequence[str]
    languages_per_clip: int = 1
    shortest: float = 4.0
    longest: float = 32.0
    kind: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest:
            raise ValueError(f"shortest is {self.shortest}, longest {self.longest}; 0 < shortest <= longest must hold")
        if not 1 <= self.languages_per_clip <= len(self.languages):
            raise ValueError(f"languages_per_clip is {self.languages_per_clip}; choose 1 to {len(self.languages)}")

    def available(self, video: Row) -> list[str]:
        """The languages that the video has cues in."""
        return [language for language in self.languages if video.get(f"{self.kind}_{language}")]

    def sample(self, video: Row, epoch: int, seconds: float | None = None) -> dict[str, Any] | None:
        """The clip that the video gives in an epoch.

        Args:
            video: a row with cues.
            epoch: from 0.
            seconds: the video's length by its features; None takes the end of the last cue.

        Returns:
            `video_id`, `start`, `end` and `<kind>_<language>` of the languages drawn; None if it has too few.
        """
        available = self.available(video)
        if len(available) < self.languages_per_clip:
            return None
        if seconds is None:
            seconds = max(video[f"end_{language}"][-1] for language in available)
        chosen, generator = self.choose(video["video_id"], epoch, available)
        return self.cut(video, chosen, generator, seconds)

    def choose(self, video_id: str, epoch: int, available: Sequence[str]) -> tuple[list[str], np.random.Generator]:
        """The languages of a video's clip, and the generator that its window is drawn from next."""
        generator = np.random.default_rng((self.seed, epoch, *key_of(video_id)))
        chosen = generator.choice(len(available), self.languages_per_clip, replace=False)
        return [available[index] for index in chosen], generator

    def cut(
        self, video: Row, languages: Sequence[str], generator: np.random.Generator, seconds: float
    ) -> dict[str, Any]:
        """A random window of the video's `seconds`, with the cues nearest to it in each of the languages."""
        length = min(seconds, generator.uniform(self.shortest, self.longest))
        start = generator.uniform(0.0, seconds - length) if seconds > length else 0.0
        clip = {"video_id": video["video_id"], "start": start, "end": start + length}
        for language in languages:
            first, last = nearest_cues(video[f"start_{language}"], video[f"end_{language}"], start, start + length)
            clip[f"{self.kind}_{language}"] = " ".join(video[f"{self.kind}_{language}"][first:last])
        return clip


def nearest_cues(starts: Sequence[float], ends: Sequence[float], start: float, end: float) -> tuple[int, int]:
    """The consecutive cues nearest to a window: those that lie in it by half or more, else the one nearest its middle.

    Args:
        starts: `(N,)` seconds, rising, N >= 1.
        ends: `(N,)` seconds; cues do not overlap.
        start: of the window.
        end: of the window.

    Returns:
        first, last: cues `first` to `last - 1`, at least one.
    """
    middles = (np.asarray(starts, np.float64) + np.asarray(ends, np.float64)) / 2
    first, last = np.searchsorted(middles, (start, end))
    if first < last:
        return int(first), int(last)
    nearest = int(np.abs(middles - (start + end) / 2).argmin())
    return nearest, nearest + 1


def key_of(video_id: str) -> tuple[int, int]:
    """64 bits of a hash of the id, the same in every process."""
    digest = blake2b(video_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")


def steps_of(start: float, end: float, rate: float, num_steps: int) -> tuple[int, int]:
    """The steps of features that a window covers, at least one."""
    first = min(int(start * rate), num_steps - 1)
    return first, max(first + 1, min(num_steps, int(np.ceil(end * rate))))


class SampledClips(torch.utils.data.Dataset):
    """Videos by index, each a clip of its own in every epoch: what `data_collator.ClipDataset` is to whole clips.

    Args:
        rows: videos; those without cues in enough of the languages are left out.
        features: of whole videos, with a rate.
        sampler: of windows; its seed is not used, an index brings one.
    """

    frames = None  # it draws features

    def __init__(self, rows: Dataset, features: FeatureStores, sampler: WindowSampler):
        self.features, self.sampler, self.rate = features, sampler, common_rate(features)
        has = np.stack([self._has_cues(rows, language) for language in sampler.languages], axis=1)  # (N, languages)
        enough = has.sum(axis=1) >= sampler.languages_per_clip
        self.has = has[enough]
        self.rows = rows if enough.all() else rows.select(np.flatnonzero(enough))
        # A row of all languages is a thousand texts: only those of the languages drawn are decoded.
        self._ids = self.rows.select_columns(["video_id"])
        self._cues = {
            language: self.rows.select_columns([f"{kind}_{language}" for kind in (sampler.kind, "start", "end")])
            for language in sampler.languages
        }

    def _has_cues(self, rows: Dataset, language: str) -> np.ndarray:
        column = rows.with_format("arrow")[f"{self.sampler.kind}_{language}"]
        chunks = getattr(column, "chunks", [column])
        counts = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
        return np.concatenate(counts) > 0

    def __len__(self) -> int:
        """Videos."""
        return len(self.rows)

    def __getitem__(self, draw: tuple[int, int, int]) -> dict[str, Any]:
        """`WindowSampler.sample`'s clip of (seed, epoch, row), with its `video_features` `(F, D_v)` and `draw`."""
        seed, epoch, row = draw
        sampler = replace(self.sampler, seed=seed)
        video = self._ids[row]
        available = [language for language, there in zip(sampler.languages, self.has[row], strict=True) if there]
        chosen, generator = sampler.choose(video["video_id"], epoch, available)
        for language in chosen:
            video |= self._cues[language][row]
        num_steps = self.features.num_steps(video["video_id"])
        clip = sampler.cut(video, chosen, generator, num_steps / self.rate)
        window = steps_of(clip["start"], clip["end"], self.rate, num_steps)
        return clip | {"video_features": self.features.window(video["video_id"], *window), "draw": draw}

    def __getitems__(self, draws: Sequence[tuple[int, int, int]]) -> list[Row]:
        """The clips of a batch."""
        return [self[draw] for draw in draws]


class ClipStream(torch.utils.data.IterableDataset):
    """Clips of streamed videos, epoch after epoch or one; each video once an epoch over all processes and workers.

    For a `DataLoader`, without shuffling of its own. With workers, `state_dict` is each worker's: a loader that keeps
    those, such as torchdata's, resumes; without workers this process's is all.

    Args:
        rows: `load_dataset(..., streaming=True)`, of shards in no order of the source.
        sampler: of windows.
        features: of whole videos, or None for text and times alone.
        rank: this process.
        world_size: processes; with as many shards, or a multiple, each reads its own and no more.
        input_shards: that a worker reads at a time, so that neighbours in a shard do not come together.
        prepare: changes a row before it is sampled from.
    """

    def __init__(
        self,
        rows: IterableDataset,
        sampler: WindowSampler,
        features: FeatureStores | None = None,
        rank: int = 0,
        world_size: int = 1,
        input_shards: int = 16,
        prepare: Callable[[Row], Row] | None = None,
    ):
        self.sampler, self.features, self.prepare = sampler, features, prepare
        self.rate = common_rate(features) if features is not None else 0.0
        # A buffer of rows would be lost on resuming: shards are interleaved instead, their order is shuffled.
        shuffled = rows.shuffle(seed=sampler.seed, buffer_size=1, max_buffer_input_shards=input_shards)
        self.rows = split_dataset_by_node(shuffled, rank=rank, world_size=world_size)
        self.epoch = 0
        self.left_out = 0  # videos without cues in enough of the languages, in this epoch

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every clip of this process and worker in the epoch."""
        self.left_out = 0
        for row in self.rows:
            video = self.prepare(row) if self.prepare else row
            num_steps = 0 if self.features is None else self.features.num_steps(video["video_id"])
            clip = self.sampler.sample(video, self.epoch, None if self.features is None else num_steps / self.rate)
            if clip is None:
                self.left_out += 1
                continue
            if self.features is not None:
                window = steps_of(clip["start"], clip["end"], self.rate, num_steps)
                clip["video_features"] = self.features.window(video["video_id"], *window)
            yield clip

    def state_dict(self) -> dict[str, Any]:
        """Where it is: the epoch, and the next row of each shard that is open."""
        return {"epoch": self.epoch, "rows": self.rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken."""
        self.set_epoch(state["epoch"])
        self.rows.load_state_dict(state["rows"])


def common_rate(features: FeatureStores) -> float:
    """Steps a second of all stores.

    Raises:
        ValueError: they have none, or differ.
    """
    rates = {store.manifest["rate"] for store in features.stores}
    rate = rates.pop()
    if rates or rate is None:
        folders = ", ".join(str(store.folder) for store in features.stores)
        raise ValueError(f"{folders}: windows are seconds; every store needs the same rate in its manifest")
    return float(rate)
