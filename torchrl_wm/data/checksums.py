"""Checksums of stored rows, computed once for each block of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from torchrl_wm.data.rings import RingWriter

BlockChecksum = tuple[int, int, int]
"""First record, last record (excluded), CRC-32 of their rows."""


def checksum(tensors: Iterable[Tensor], start: int = 0) -> int:
    """CRC-32 of the bytes of CPU tensors, one after the other.

    Examples:
        >>> checksum([torch.zeros(2, dtype=torch.uint8)]) == zlib.crc32(bytes(2))
        True
    """
    for tensor in tensors:
        start = zlib.crc32(as_bytes(tensor).numpy(), start)
    return start


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor ``[N, ...]`` of any dtype, as flat uint8."""
    return tensor.contiguous().flatten().view(torch.uint8)


class RowChecksums:
    """Checksums of the append-only rows of a replay, one for each block of an environment.

    A record never changes once it is written, so the checksum of a whole block is computed once and
    kept; only the incomplete blocks at both ends of the window are computed in each call.

    Args:
        block (int, optional): records in a block. Defaults to 256.

    Examples:
        >>> RowChecksums(block=4).ranges(3, 9)
        [(3, 4), (4, 8), (8, 9)]
    """

    def __init__(self, block: int = 256):
        self.block = block
        self._known: dict[tuple[int, int], int] = {}

    def ranges(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cuts the records ``first`` to ``last`` (excluded) at the ends of blocks."""
        edges = [
            first,
            *range(first // self.block * self.block + self.block, last, self.block),
            last,
        ]
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]

    def window(self, leaves: Sequence[Tensor], writer: RingWriter) -> list[list[BlockChecksum]]:
        """The checksums of the records that can be sampled, for each environment."""
        known, out = {}, []
        for environment, (last, size) in enumerate(
            zip(writer.counts.tolist(), writer.sampleable().tolist(), strict=True)
        ):
            sums = []
            for a, b in self.ranges(last - size, last):
                value = self._known.get((environment, a)) if b - a == self.block else None
                if value is None:
                    rows = writer.rows(environment, a, b)
                    value = checksum(leaf[rows] for leaf in leaves)
                if b - a == self.block:
                    known[environment, a] = value
                sums.append((a, b, value))
            out.append(sums)
        self._known = known  # without those of blocks that have left the window
        return out

    def mismatch(
        self, sums: list[list[BlockChecksum]], leaves: Sequence[Tensor], writer: RingWriter
    ) -> tuple[int, int, int] | None:
        """The first environment and range of records whose rows have changed, or None."""
        known = {}
        for environment, ranges in enumerate(sums):
            for a, b, value in ranges:
                rows = writer.rows(environment, a, b)
                if checksum(leaf[rows] for leaf in leaves) != value:
                    return environment, a, b
                if b - a == self.block:
                    known[environment, a] = value
        self._known = known
        return None
