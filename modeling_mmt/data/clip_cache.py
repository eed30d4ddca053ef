"""A cache of clips that are expensive to make, within a memory budget."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader


class MemoryBudget:
    """Bytes that several `CachedClips` share.

    Args:
        num_bytes: the bytes that are left.
    """

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes

    def reserve(self, num_bytes: int) -> bool:
        """Whether this many bytes are left; if so, they are taken from the budget."""
        fits = num_bytes <= self.num_bytes
        self.num_bytes -= num_bytes if fits else 0
        return fits


class CachedClips(Mapping[str, Any]):
    """Ids to clips. A clip beyond the budget is made again on each access: slower, never different.

    Args:
        ids: of the clips.
        make: an id's clip: a tensor, or one for each vision encoder.
        budget: of the cache, which several caches may share.
        encode: turns a clip from `make` into what is cached in its place; `None` caches the clip itself.
    """

    def __init__(
        self,
        ids: Sequence[str],
        make: Callable[[str], Any],
        budget: MemoryBudget,
        encode: Callable[[Any], Any] | None = None,
    ):
        self._ids, self.make, self._budget, self.encode = dict.fromkeys(ids), make, budget, encode
        self._cache: dict[str, Any] = {}
        self._prefetched: dict[str, Any] = {}  # the clips of this batch that workers made

    def __getitem__(self, video_id: str) -> Any:
        """The clip.

        Raises:
            KeyError: no such id.
        """
        for clips in (self._cache, self._prefetched):
            if video_id in clips:
                return clips[video_id]
        if video_id not in self._ids:
            raise KeyError(video_id)
        return self._store(video_id, self.make(video_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def prefetch(self, batches: Iterable[Sequence[str]], num_workers: int) -> Iterator[None]:
        """Go through batches of ids; the clips of a batch are in memory when its turn comes.

        Worker processes make the clips that are not cached while earlier batches are used, each at most two batches
        ahead. A clip stays in memory for its batch alone, unless the cache has space for it. A clip that a worker
        cannot make is made in this process on access, which raises the original error.

        Args:
            batches: of ids.
            num_workers: processes, started anew (spawn): `make` must be picklable, and give one tensor `(F, ...)` for
                each vision encoder, of equal shapes but for F.
        """
        if len(self._cache) == len(self._ids):
            yield from (None for _ in batches)
            return
        loader: DataLoader[Any] = DataLoader(
            _Loader(self.make),
            batch_size=None,
            sampler=([name for name in dict.fromkeys(ids) if name not in self._cache] for ids in batches),  # type: ignore[arg-type]
            collate_fn=_identity,
            num_workers=num_workers,
            multiprocessing_context="spawn",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # or the iterator draws from the generator that dropout resumes with
        )
        for video_ids, parts in loader:
            clips = zip(*(whole.split(sizes) for whole, sizes in parts), strict=True)
            for video_id, clip in zip(video_ids, clips, strict=True):
                self._prefetched[video_id] = self._store(
                    video_id, [part.clone() for part in clip]
                )  # out of shared memory
            yield
            self._prefetched.clear()

    def clear(self):
        """Empty the cache and return its bytes to the budget."""
        self._budget.num_bytes += sum(map(_num_bytes, self._cache.values()))
        self._cache.clear()

    def _store(self, video_id: str, clip: Any) -> Any:
        if video_id in self._cache:
            return self._cache[video_id]
        clip = clip if self.encode is None else self.encode(clip)
        if self._budget.reserve(_num_bytes(clip)):
            self._cache[video_id] = clip
        return clip


class _Loader(torch.utils.data.Dataset):
    """Lists of ids to those that could be made, and their clips, one after another in one tensor an encoder."""

    def __init__(self, make: Callable[[str], Any]):
        self.make = make

    def __getitem__(self, video_ids: Sequence[str]) -> tuple[list[str], list[tuple[torch.Tensor, list[int]]]]:
        clips = {}
        for video_id in video_ids:
            with suppress(Exception):
                clips[video_id] = self.make(video_id)
        return list(clips), [(torch.cat(parts), [*map(len, parts)]) for parts in zip(*clips.values(), strict=True)]


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(worker: int):
    """A run that a signal asks to stop finishes its step first, and ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class ClipSequence(Sequence[Any]):
    """Values of a mapping by position, each looked up on access.

    Args:
        values: the mapping.
        keys: the order.
    """

    def __init__(self, values: Mapping[str, Any], keys: Sequence[str]):
        self.values, self.keys = values, keys

    def __getitem__(self, position: Any) -> Any:
        return self.values[self.keys[position]]

    def __len__(self) -> int:
        return len(self.keys)


def _num_bytes(clip: Any) -> int:
    return clip.nbytes if isinstance(clip, torch.Tensor) else sum(part.nbytes for part in clip)
