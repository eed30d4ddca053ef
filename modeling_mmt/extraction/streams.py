"""Batches through an encoder side by side.

The threads of one product wait for one another at every layer, and all the longer where processes that decode are on
the same cores; batches that have a thread each wait for nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Encoded = TypeVar("Encoded")

MOST_STREAMS = 4  # each holds the activations of a batch


def in_streams(
    encode: Callable[[Batch], Encoded], batches: Iterable[Batch], num_streams: int = 1
) -> Iterator[Encoded]:
    """What an encoder makes of batches, in their order.

    Args:
        encode: called by several threads at once, which share torch's threads.
        batches: read ahead, one more than there are streams.
        num_streams: 1 calls it in this thread.
    """
    if num_streams == 1:
        yield from map(encode, batches)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(num_streams, "encode", torch.set_num_threads, (max(1, threads // num_streams),))
    try:
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > num_streams:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # theirs became the default of threads to come
