"""Work that several processes share, each with a part of it, and whose result all of them have.

A group of `None` is this process alone. Otherwise every process of the group makes the same call with the same
arguments, and gets what one process by itself would have got.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch.distributed as dist

from modeling_mmt.data.errors import InputError

Group: TypeAlias = "dist.ProcessGroup | None"
Item = TypeVar("Item")
Part = TypeVar("Part")


class PeerError(InputError):
    """What another process of the group could not do; it raised the error itself, and this one waits for nothing."""


def share(items: Sequence[Item], group: Group) -> Sequence[Item]:
    """This process's share of some items: every W-th, so that what they cost, if it rises, is spread evenly."""
    return items if group is None else items[dist.get_rank(group) :: dist.get_world_size(group)]


def contiguous_share(number: int, group: Group) -> slice:
    """This process's share of so many rows that cost the same: rows side by side, equally many but for one."""
    if group is None:
        return slice(0, number)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return slice(number * rank // size, number * (rank + 1) // size)


def parts_of_all(make_part: Callable[[], Part], group: Group) -> list[Part]:
    """What each process has made, in the order of the processes: on every process the same list.

    Args:
        make_part: of this process.
        group: the processes. Their parts travel as pickles, as between any processes of a group.

    Raises:
        PeerError: another process failed. Whatever this one's `make_part` raises passes through, once all have met.
    """
    if group is None:
        return [make_part()]
    made: tuple[list[Part], str] = [], ""  # the part, or the words of the error
    failure = None
    try:
        made = [make_part()], ""
    except Exception as error:  # the others wait for this process, and must be told
        failure, made = error, ([], " ".join(str(error).split()) or type(error).__name__)
    everyone = [made] * dist.get_world_size(group)
    dist.all_gather_object(everyone, made, group=group)
    if failure is not None:
        raise failure
    for rank, (part, words) in enumerate(everyone):
        if not part:
            raise PeerError(f"process {rank} of {len(everyone)}: {words}")
    return [part for (part,), _ in everyone]


def in_turn(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Items in the order in which `share` dealt them: the first of each part, then the second of each."""
    return [part[turn] for turn in range(max(map(len, parts))) for part in parts if turn < len(part)]
