"""One rank of a source as a source of its own, so that a rank is analysed alike wherever its tables come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source, State

HOST: Final = -1
"""In place of a rank: the rows that belong to no rank, such as the log of what serves a host."""

_UNNAMED: Final = 0
"""A kernel or window without a rank is the first rank's, as everywhere."""


class RankView:
    """The rows of one rank; `ranks` and `meta` stay those of the whole run, for what ranks share."""

    def __init__(self, source: Source, rank: int, others: frozenset[int] = frozenset()) -> None:
        """rank: the rank, or HOST for the rows whose rank is null or none of `others`"""
        self._source = source
        self._rank = rank
        self._others = others
        self._tables: dict[str, pa.Table] = {}
        self._ranks: list[int] | None = None

    @property
    def name(self) -> str:
        """The source's name."""
        return self._source.name

    @property
    def meta(self) -> dict[str, Any]:
        """The source's `meta.json`."""
        return self._source.meta

    @property
    def state(self) -> State:
        """The source's state."""
        return self._source.state

    @property
    def torn(self) -> list[str]:
        """The source's torn files."""
        return self._source.torn

    def poll(self) -> bool:
        """A view is of what the source has taken in."""
        return False

    def ranks(self) -> list[int]:
        """All ranks of the run."""
        if self._ranks is None:
            self._ranks = self._source.ranks()
        return self._ranks

    def table(self, name: str) -> pa.Table:
        """The rank's rows; tables of the host, which have no column `rank`, whole."""
        if name not in self._tables:
            self._tables[name] = self._rows(name)
        return self._tables[name]

    def _rows(self, name: str) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._source.table(name)
        if "rank" not in table.column_names:
            return table
        ranks = table.column("rank")
        if name in ("kernels", "windows"):
            ranks = ranks.fill_null(_UNNAMED)
        if self._rank != HOST:
            own = pc.equal(ranks, self._rank).fill_null(False)
        else:
            own = pc.invert(pc.is_in(ranks, pa.array(sorted(self._others), pa.int32())))
        # A source of one rank is not copied.
        return table if pc.all(own).as_py() is not False else table.filter(own)


def ranks_in(source: Source) -> list[int]:
    """Every rank that the source names or has kernels of, rising."""
    import pyarrow.compute as pc

    found = pc.unique(source.table("kernels").column("rank").fill_null(_UNNAMED)).to_pylist()
    return sorted({*source.ranks(), *found})
