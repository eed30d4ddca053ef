"""The logits of a loss over all rows of all processes, tile by tile: what `streaming_loss.py` walks over.

Letters: `N` rows, `n` of them in this process, `P` projection width, `C` pairs of columns of positive ids.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from modeling_mmt.training.large_batch import gather_rows


class Tiles:
    """The `(N, N)` logits, of which this process has `n` rows, seen through one tile at a time.

    Args:
        a: `(n, P)`.
        b: `(N, P)`.
        scale: `()`.
        bias: `()`.
        row_ids: `(n, C)`; row i and column j are positives of each other if they agree in a column of these ids.
        column_ids: `(N, C)`.
        block_size: rows and columns of a tile.
        counts: rows of each process of the group.
        group: the processes; None: this one alone.
    """

    def __init__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        row_ids: torch.Tensor | None,
        column_ids: torch.Tensor | None,
        block_size: int,
        counts: list[int],
        group: dist.ProcessGroup | None,
    ):
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        self.a, self.b, self.scale = a.to(dtype), b.to(dtype), scale.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.row_ids, self.column_ids = row_ids, column_ids
        self.counts, self.group, self.n = counts, group, len(b)
        self.own = own_rows(counts, group)  # the columns of this process's pairs
        self.block_size = min(block_size, self.n)
        self.buffer = self.a.new_empty(self.block_size**2)

    def row_blocks(self) -> Iterator[slice]:
        """Of this process's rows, counted from its first."""
        return self._blocks(len(self.a))

    def column_blocks(self) -> Iterator[slice]:
        """Of all columns."""
        return self._blocks(self.n)

    def _blocks(self, number: int) -> Iterator[slice]:
        for start in range(0, number, self.block_size):
            yield slice(start, min(start + self.block_size, number))

    def row_vector(self, value: float) -> torch.Tensor:
        """Return `(n,)` of a value."""
        return self.a.new_full((len(self.a),), value)

    def scaled(self, rows: slice) -> torch.Tensor:
        """Return `(rows, P)` of `a`, divided by the temperature."""
        return self.a[rows] * self.scale

    def pair_logits(self, rows: slice, scaled: torch.Tensor) -> torch.Tensor:
        """Return the logits of the pairs, `(rows,)`: the diagonal of the whole matrix."""
        logits = (scaled * self.b[self.own][rows]).sum(dim=1)
        return logits if self.bias is None else logits + self.bias

    def logits(self, columns: slice, scaled: torch.Tensor) -> torch.Tensor:
        """Return `(rows, columns)` logits in the buffer, which the next call overwrites."""
        shape = (len(scaled), columns.stop - columns.start)
        tile = self.buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(scaled, self.b[columns].T, out=tile)
        return tile if self.bias is None else tile.add_(self.bias)

    def further_positives(self, rows: slice, columns: slice) -> torch.Tensor | None:
        """Return `(rows, columns)` bool: the positives that are not the pairs; None where there are none."""
        if self.row_ids is None or self.column_ids is None:
            return None
        row_ids, column_ids = self.row_ids[rows], self.column_ids[columns]
        mask = row_ids[:, :1] == column_ids[:, 0]
        for k in range(1, row_ids.shape[1]):
            mask |= row_ids[:, k, None] == column_ids[:, k]
        return self.fill_pairs(mask, rows, columns, False)

    def fill_pairs(self, tile: torch.Tensor, rows: slice, columns: slice, value: float) -> torch.Tensor:
        """Put `value` in the place of a tile's pairs, if there are any: the diagonal of the whole matrix."""
        row_start, row_stop = rows.start + self.own.start, rows.stop + self.own.start
        first, last = max(row_start, columns.start), min(row_stop, columns.stop)
        if first < last:
            pairs = tile[first - row_start : last - row_start, first - columns.start : last - columns.start]
            pairs.fill_diagonal_(value)
        return tile

    def fill_positives(
        self, tile: torch.Tensor, rows: slice, columns: slice, further: torch.Tensor | None, value: float
    ) -> torch.Tensor:
        """Put `value` in the place of a tile's positives, the pairs included."""
        if further is not None:
            tile.masked_fill_(further, value)
        return self.fill_pairs(tile, rows, columns, value)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of `(n,)` over the rows of all processes, `()`."""
        return values.mean() if self.group is None else self.total(values.sum()) / self.n

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def of_all_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(N,)` of the `(n,)` that each process has."""
        return values if self.group is None else gather_rows(values, self.counts, self.group)

    def own_log_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(n,)` of `(N,)` log-sums over each process's rows: over all rows, of this process's own columns."""
        if self.group is None:
            return values
        everyone = gather_rows(values[None], [1] * len(self.counts), self.group)  # (W, N)
        return everyone[:, self.own].logsumexp(dim=0)


def own_rows(counts: list[int], group: dist.ProcessGroup | None) -> slice:
    """This process's rows among those of all."""
    rank = 0 if group is None else dist.get_rank(group)
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))
