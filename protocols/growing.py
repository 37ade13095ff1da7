"""Rows that grow: `torch.cat` along one dimension, without copying all that is there for each new row."""

from __future__ import annotations

import torch


class Growing:
    """A tensor with room to spare along `dim`. What `append` gave before stays valid: rows are never changed."""

    def __init__(self, rows: torch.Tensor, dim: int) -> None:
        self._dim = dim
        self._buffer, self._used = rows, rows.shape[dim]

    def append(self, rows: torch.Tensor) -> torch.Tensor:
        """All rows so far, as a view. Costs a copy of the new rows, and of all of them when the room runs out."""
        end = self._used + rows.shape[self._dim]
        if end > self._buffer.shape[self._dim]:
            shape = list(self._buffer.shape)
            shape[self._dim] = end + end // 4 + 16
            larger = self._buffer.new_empty(shape)
            larger.narrow(self._dim, 0, self._used).copy_(self._buffer.narrow(self._dim, 0, self._used))
            self._buffer = larger
        self._buffer.narrow(self._dim, self._used, end - self._used).copy_(rows)
        self._used = end
        return self._buffer.narrow(self._dim, 0, end)
