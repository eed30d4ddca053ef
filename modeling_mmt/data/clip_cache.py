"""Clips that cost something to make: made when they are asked for, once, and kept while there is room."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch


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
    """

    def __init__(self, ids: Sequence[str], make: Callable[[str], Any], room: Room):
        self._ids, self.make, self._room = dict.fromkeys(ids), make, room
        self._kept: dict[str, Any] = {}

    def __getitem__(self, video_id: str) -> Any:
        """The clip.

        Raises:
            KeyError: no such id.
        """
        if video_id in self._kept:
            return self._kept[video_id]
        if video_id not in self._ids:
            raise KeyError(video_id)
        clip = self.make(video_id)
        if self._room.take(_num_bytes(clip)):
            self._kept[video_id] = clip
        return clip

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def forget(self):
        """Give the room back."""
        self._room.num_bytes += sum(map(_num_bytes, self._kept.values()))
        self._kept.clear()


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
