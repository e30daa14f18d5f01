"""One hop of an exchange: rows to the ranks of one group, a single copy each, and back with a sum.

With ranks in one row a hop is the whole exchange; `two_hop` puts two together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model.parallel.link import Link
from moescope.instrumented_model.parallel.ranks import answering


@dataclass(frozen=True)
class Route:
    """Which rows go where, and how many come.

    rows: number of rows here before they are sent
    row: [sent] int64, which of these each sent row is, ordered by peer
    sent, received: [peers], rows to and from each
    """

    rows: int
    row: torch.Tensor
    sent: list[int]
    received: list[int]


class Hop:
    """A group of ranks, the wire between them, and who among them leads to an expert.

    name: `direct`, `internode`, `intranode`
    peer_of: [slots] int64, the group's rank that leads to each slot; `peers` where none does
    group: None is the default group
    """

    def __init__(
        self, name: str, peer_of: torch.Tensor, peers: int, me: int, link: Link, group: dist.ProcessGroup | None = None
    ) -> None:
        self.name, self.peers, self.me, self.link, self.group = name, peers, me, link, group
        self._peer_of = peer_of

    def routed(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One copy for each peer that leads to one of a row's slots.

        slots: [rows, top_k] int64
        returns: rows [sent] int64, which row each copy is of, ordered by peer; copies for each peer [peers] int64
        """
        rows = slots.shape[0]
        self._peer_of = self._peer_of.to(slots.device)
        wanted = slots.new_zeros(rows, self.peers + 1, dtype=torch.bool)
        wanted.scatter_(1, self._peer_of.index_select(0, slots.reshape(-1)).reshape(slots.shape), True)
        by_peer = wanted.mT[: self.peers]
        return by_peer.nonzero()[:, 1], by_peer.sum(1)

    def counts(self, sent: torch.Tensor) -> torch.Tensor:
        """Tell every peer how many rows it will get. sent: [peers] int64; returns: the same from each peer"""
        received = torch.empty_like(sent)
        with answering():
            dist.all_to_all_single(received, sent, group=self.group)
        return received

    def there(self, wire: torch.Tensor, route: Route) -> torch.Tensor:
        """wire: [sent, bytes] uint8, copies ordered by peer; returns: [received, bytes]"""
        return self._move(wire, route.sent, route.received)

    def back(self, wire: torch.Tensor, route: Route) -> torch.Tensor:
        """wire: [received, bytes] uint8, in the order rows came; returns: [sent, bytes], in the order they went"""
        return self._move(wire, route.received, route.sent)

    def _move(self, wire: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        start_ns = emit.clock_ns()
        output = wire.new_empty(sum(received), wire.shape[1])
        with answering():
            dist.all_to_all_single(output, wire, received, sent, group=self.group)
        outgoing, incoming = sum(sent) - sent[self.me], sum(received) - received[self.me]
        what = "all_to_all" if self.name == "direct" else f"all_to_all:{self.name}"
        self.link.hold(what, start_ns, outgoing * wire.shape[1], incoming * wire.shape[1])
        return output


def summed(rows: torch.Tensor, route: Route) -> torch.Tensor:
    """Transpose of copying: [sent, d] float32 added up per row they were copies of; returns: [rows, d]"""
    return rows.new_zeros(route.rows, rows.shape[1]).index_add_(0, route.row, rows)
