"""Clips that cost something to make: made when they are asked for, once, and kept while there is room."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader


class Room:
    """Bytes that several `KeptClips` share.

    Args:
        num_bytes: all of them.
    """

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes

    def take(self, num_bytes: int) -> bool:
        """Whether there are so many left; then they are taken."""
        fits = num_bytes <= self.num_bytes
        self.num_bytes -= num_bytes if fits else 0
        return fits


class KeptClips(Mapping[str, Any]):
    """Ids to clips. One that finds no room is made again each time: slower, never different.

    Args:
        ids: of the clips.
        make: an id's clip: a tensor, or one for each vision encoder.
        room: that is taken from.
        encode: what is kept in place of the clip that `make` gives; `None` keeps that.
    """

    def __init__(
        self,
        ids: Sequence[str],
        make: Callable[[str], Any],
        room: Room,
        encode: Callable[[Any], Any] | None = None,
    ):
        self._ids, self.make, self._room, self.encode = dict.fromkeys(ids), make, room, encode
        self._kept: dict[str, Any] = {}
        self._arrived: dict[str, Any] = {}  # the clips of this batch that workers made

    def __getitem__(self, video_id: str) -> Any:
        """The clip.

        Raises:
            KeyError: no such id.
        """
        for clips in (self._kept, self._arrived):
            if video_id in clips:
                return clips[video_id]
        if video_id not in self._ids:
            raise KeyError(video_id)
        return self._keep(video_id, self.make(video_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def ahead(self, batches: Iterable[Sequence[str]], num_workers: int) -> Iterator[None]:
        """Go through batches of ids; the clips of each are at hand when it is its turn.

        Worker processes make those that are not kept, while earlier batches are used. Each is two batches ahead at
        most, and what they make is held here for its batch alone, unless there is room to keep it. A clip that a
        worker cannot make is made here when it is asked for, so that the error is its own.

        Args:
            batches: of ids.
            num_workers: processes, started anew (spawn): `make` must be picklable, and give one tensor `(F, ...)` for
                each vision encoder, of equal shapes but for F.
        """
        if len(self._kept) == len(self._ids):
            yield from (None for _ in batches)
            return
        loader: DataLoader[Any] = DataLoader(
            _Maker(self.make),
            batch_size=None,
            sampler=([name for name in dict.fromkeys(ids) if name not in self._kept] for ids in batches),  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=num_workers,
            multiprocessing_context="spawn",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # or the iterator draws from the generator that dropout resumes with
        )
        for made, parts in loader:
            clips = zip(*(whole.split(sizes) for whole, sizes in parts), strict=True)
            for video_id, clip in zip(made, clips, strict=True):
                self._arrived[video_id] = self._keep(video_id, [part.clone() for part in clip])  # out of shared memory
            yield
            self._arrived.clear()

    def forget(self):
        """Give the room back."""
        self._room.num_bytes += sum(map(_num_bytes, self._kept.values()))
        self._kept.clear()

    def _keep(self, video_id: str, clip: Any) -> Any:
        if video_id in self._kept:
            return self._kept[video_id]
        clip = clip if self.encode is None else self.encode(clip)
        if self._room.take(_num_bytes(clip)):
            self._kept[video_id] = clip
        return clip


class _Maker(torch.utils.data.Dataset):
    """Lists of ids to those that could be made, and their clips, one after another in one tensor an encoder."""

    def __init__(self, make: Callable[[str], Any]):
        self.make = make

    def __getitem__(self, video_ids: Sequence[str]) -> tuple[list[str], list[tuple[torch.Tensor, list[int]]]]:
        clips = {}
        for video_id in video_ids:
            with suppress(Exception):
                clips[video_id] = self.make(video_id)
        return list(clips), [(torch.cat(parts), [*map(len, parts)]) for parts in zip(*clips.values(), strict=True)]


def _as_it_is(made: Any) -> Any:
    return made


def _ignore_signals(worker: int):
    """A run that is told to stop finishes its step first, and ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class InOrder(Sequence[Any]):
    """Values of a mapping by position, each looked up when it is asked for.

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
