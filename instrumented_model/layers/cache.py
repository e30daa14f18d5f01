"""What decode keeps of the past: d_c + d_h^R values a token and layer (arXiv 2412.19437 section 2.1.1).

One cache serves all layers of a rank and many sequences of different lengths. A pass over some of them opens it once:
room is made, or refused, before anything is computed, and each layer then writes and reads at the same places.

    cache = PagedCache(c, blocks=64)
    a, b = cache.add(), cache.add()
    layers = cache.open([a, b], new=[17, 1])     # a LayerCache for each layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

import torch

from moescope.instrumented_model.config import Config
from moescope.instrumented_model.device import brought

BLOCK = 16
"""Positions in a block of the paged cache."""


class CacheFull(RuntimeError):
    """No room for what was asked; nothing was changed. The message says how much was needed and how much is free."""


@dataclass(frozen=True)
class Spans:
    """The new positions of each sequence of a pass; tokens lie sequence after sequence.

    starts: [sequences], positions that are cached already; new: [sequences], positions that this pass adds
    """

    starts: tuple[int, ...]
    new: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """[sequences], length of each with its new positions."""
        return tuple(s + n for s, n in zip(self.starts, self.new, strict=True))

    @property
    def longest(self) -> int:
        """Positions of the longest sequence, 0 where there is none."""
        return max(self.ends, default=0)

    @property
    def even(self) -> bool:
        """Whether all sequences start alike and get as many positions: then they make one batch."""
        return len(set(self.starts)) <= 1 and len(set(self.new)) <= 1

    @cached_property
    def positions(self) -> torch.Tensor:
        """Position of each token in its sequence. returns: [tokens] int64"""
        parts = [torch.arange(s, e) for s, e in zip(self.starts, self.ends, strict=True)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    @cached_property
    def last(self) -> torch.Tensor:
        """Row of each sequence's last token. returns: [sequences] int64"""
        return torch.tensor([end - 1 for end in accumulate(self.new)], dtype=torch.int64)

    @classmethod
    def uncached(cls, sequences: int, positions: int) -> Spans:
        """Sequences of one length, from their start."""
        return cls((0,) * sequences, (positions,) * sequences)


@dataclass(frozen=True)
class Places:
    """Where the tokens of one pass lie, in all layers: but for the spans on the device, moved there once.

    write_to: [tokens] int64, row of each new token in the cache
    read_from: [sequences, longest] int64, row of each position, the zero row past a sequence's end
    positions: [tokens] int64, position of each new token in its sequence
    last: [sequences] int64, which of the tokens is each sequence's last
    beyond: [sequences, longest] bool, past a sequence's end; None where none is shorter than the longest
    longest: more than every position
    """

    spans: Spans
    write_to: torch.Tensor
    read_from: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    beyond: torch.Tensor | None
    longest: int

    @classmethod
    def of(
        cls, spans: Spans, write_to: torch.Tensor, read_from: torch.Tensor, longest: int, device: torch.device
    ) -> Places:
        """write_to, read_from: as above, on the host still"""
        ends = torch.tensor(spans.ends, dtype=torch.int64)
        masked = min(spans.ends, default=0) < longest
        return cls(
            spans,
            brought(write_to, device),
            brought(read_from, device),
            brought(spans.positions, device),
            brought(spans.last, device),
            brought(torch.arange(longest) >= ends[:, None], device) if masked else None,
            longest,
        )

    @staticmethod
    @lru_cache(maxsize=8)
    def uncached(sequences: int, positions: int, device: torch.device) -> Places:
        """Of sequences of one length, from their start, that no cache holds."""
        nowhere = torch.empty(0, dtype=torch.int64)
        return Places.of(Spans.uncached(sequences, positions), nowhere, nowhere[None], positions, device)


@dataclass(frozen=True)
class LayerCache:
    """One layer of a cache as one pass sees it.

    rows: [positions of the whole cache + 1, d_c + d_h^R], a view of the cache; the last row stays zero
    side_by_side: [sequences, longest, d_c + d_h^R], a view of `rows` that needs no gathering, where there is one
    """

    places: Places
    rows: torch.Tensor
    side_by_side: torch.Tensor | None = None

    def write(self, latent: torch.Tensor, rope: torch.Tensor) -> None:
        """latent: [tokens, d_c], after its norm; rope: [tokens, d_h^R], rotated"""
        kept = torch.cat([latent.detach(), rope.detach()], dim=-1).to(self.rows.dtype)
        self.rows.index_copy_(0, self.places.write_to, kept)

    def read(self) -> torch.Tensor:
        """Past and present, zero past a sequence's end. returns: [sequences, longest, d_c + d_h^R] float32"""
        if self.side_by_side is not None:
            return self.side_by_side.float()
        return self.rows[self.places.read_from].float()


class LatentCache(Protocol):
    """What both caches offer. Sequences are numbered by `add`."""

    bytes_per_position: int
    """Of all layers."""

    def add(self) -> int:
        """A new, empty sequence. Raises CacheFull."""

    def remove(self, sequence: int) -> None:
        """Forget a sequence and free its room."""

    def length(self, sequence: int) -> int:
        """Positions cached."""

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the positions from `length` on."""

    def open(self, sequences: Sequence[int], new: Sequence[int], longest: int = 0) -> list[LayerCache]:
        """Make room for `new` further positions of each sequence, which count as cached from now on.

        longest: so many positions are read of each sequence at least, for passes that are to be alike
        returns: [layers]. Raises CacheFull, and changes nothing then.
        """

    @property
    def capacity_bytes(self) -> int:
        """Bytes set aside."""

    @property
    def used_bytes(self) -> int:
        """Bytes of positions that are cached."""


def _width(c: Config) -> int:
    return c.d_latent + c.d_rope


def _rows(tables: Sequence[torch.Tensor], zero_row: int, longest: int) -> torch.Tensor:
    """Rows of each sequence's positions, padded. tables: [sequences] of [length]; returns: [sequences, longest]"""
    rows = torch.full((len(tables), longest), zero_row, dtype=torch.int64)
    for row, table in zip(rows, tables, strict=True):
        row[: len(table)] = table
    return rows


class ContiguousCache:
    """Room for `capacity` positions for each of `sequences`, side by side.

    rows: [layers, sequences * capacity + 1, d_c + d_h^R] of `dtype`
    """

    def __init__(
        self,
        c: Config,
        sequences: int,
        capacity: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity, self.sequences = capacity, sequences
        self.rows = torch.zeros(c.layers, sequences * capacity + 1, _width(c), dtype=dtype, device=device)
        self.bytes_per_position = c.layers * _width(c) * dtype.itemsize
        self._lengths: dict[int, int] = {}

    def add(self) -> int:
        free = next((s for s in range(self.sequences) if s not in self._lengths), None)
        if free is None:
            raise CacheFull(f"latent cache is full: all {self.sequences} sequences are taken")
        self._lengths[free] = 0
        return free

    def remove(self, sequence: int) -> None:
        del self._lengths[sequence]

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = min(length, self._lengths[sequence])

    def open(self, sequences: Sequence[int], new: Sequence[int], longest: int = 0) -> list[LayerCache]:
        spans = Spans(tuple(self._lengths[s] for s in sequences), tuple(new))
        longest = max(spans.longest, longest)
        if longest > self.capacity:
            raise CacheFull(f"latent cache is full: {longest} positions needed, {self.capacity} a sequence")
        for sequence, end in zip(sequences, spans.ends, strict=True):
            self._lengths[sequence] = end
        places = list(zip(sequences, spans.starts, spans.ends, strict=True))
        empty = torch.empty(0, dtype=torch.int64)
        write_to = torch.cat([empty, *(torch.arange(a, b) + s * self.capacity for s, a, b in places)])
        zero_row = self.rows.shape[1] - 1
        views: list[torch.Tensor | None] = [None] * len(self.rows)
        read_from = torch.empty(0, 0, dtype=torch.int64)
        if places and spans.even and list(sequences) == list(range(sequences[0], sequences[0] + len(sequences))):
            first, width = sequences[0], self.rows.shape[-1]
            whole = self.rows[:, :zero_row].view(len(self.rows), self.sequences, self.capacity, width)
            views = list(whole[:, first : first + len(sequences), :longest])
        else:
            read_from = _rows([torch.arange(end) + s * self.capacity for s, _, end in places], zero_row, longest)
        at = Places.of(spans, write_to, read_from, longest, self.rows.device)
        return [LayerCache(at, r, v) for r, v in zip(self.rows, views, strict=True)]

    @property
    def capacity_bytes(self) -> int:
        return self.sequences * self.capacity * self.bytes_per_position

    @property
    def used_bytes(self) -> int:
        return sum(self._lengths.values()) * self.bytes_per_position


class PagedCache:
    """Blocks of `block` positions from one free list; a table a sequence says which blocks are its own.

    rows: [layers, blocks * block + 1, d_c + d_h^R] of `dtype`
    """

    def __init__(
        self,
        c: Config,
        blocks: int,
        block: int = BLOCK,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.blocks, self.block = blocks, block
        self.rows = torch.zeros(c.layers, blocks * block + 1, _width(c), dtype=dtype, device=device)
        self.bytes_per_position = c.layers * _width(c) * dtype.itemsize
        self.tables: dict[int, list[int]] = {}
        """Blocks of each sequence, in the order of its positions."""
        self._lengths: dict[int, int] = {}
        self._free = list(range(blocks - 1, -1, -1))
        self._next = 0

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, positions: int) -> int:
        """Blocks that so many positions take."""
        return -(-positions // self.block)

    def add(self) -> int:
        sequence, self._next = self._next, self._next + 1
        self.tables[sequence], self._lengths[sequence] = [], 0
        return sequence

    def remove(self, sequence: int) -> None:
        del self._lengths[sequence]
        self._free += reversed(self.tables.pop(sequence))

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = min(length, self._lengths[sequence])
        table = self.tables[sequence]
        while len(table) > self.blocks_for(self._lengths[sequence]):
            self._free.append(table.pop())

    def open(self, sequences: Sequence[int], new: Sequence[int], longest: int = 0) -> list[LayerCache]:
        spans = Spans(tuple(self._lengths[s] for s in sequences), tuple(new))
        longest = max(spans.longest, longest)
        wanted = [self.blocks_for(e) - len(self.tables[s]) for s, e in zip(sequences, spans.ends, strict=True)]
        if sum(wanted) > self.free_blocks:
            raise CacheFull(
                f"latent cache is full: {sum(wanted)} blocks of {self.block} positions needed, "
                f"{self.free_blocks} of {self.blocks} free"
            )
        for sequence, end, count in zip(sequences, spans.ends, wanted, strict=True):
            self.tables[sequence] += [self._free.pop() for _ in range(count)]
            self._lengths[sequence] = end
        tables = [self._positions(s)[:e] for s, e in zip(sequences, spans.ends, strict=True)]
        empty = torch.empty(0, dtype=torch.int64)
        write_to = torch.cat([empty, *(table[start:] for table, start in zip(tables, spans.starts, strict=True))])
        read_from = _rows(tables, self.rows.shape[1] - 1, longest)
        at = Places.of(spans, write_to, read_from, longest, self.rows.device)
        return [LayerCache(at, rows) for rows in self.rows]

    def _positions(self, sequence: int) -> torch.Tensor:
        """Row of each position that the sequence's blocks have room for. returns: [blocks * block] int64"""
        table = torch.tensor(self.tables[sequence], dtype=torch.int64)
        return (table[:, None] * self.block + torch.arange(self.block)).reshape(-1)

    @property
    def capacity_bytes(self) -> int:
        return self.blocks * self.block * self.bytes_per_position

    @property
    def used_bytes(self) -> int:
        return sum(self._lengths.values()) * self.bytes_per_position
