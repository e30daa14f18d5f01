"""Which operators are kernels, against a slow reference that walks the tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.collectors.ring_reader import OPERATOR, RECORD
from moescope.collectors.sidecar.operators import leaves, whole_trees


@dataclass
class Node:
    start: int
    end: int = 0
    children: list[Node] = field(default_factory=list)


@st.composite
def forests(draw: st.DrawFn) -> list[Node]:
    """Trees as a thread makes them: a clock that never stands still between two stamps."""
    clock = [0]

    def tick() -> int:
        clock[0] += draw(st.integers(1, 9))
        return clock[0]

    def node(depth: int) -> Node:
        made = Node(tick())
        for _ in range(draw(st.integers(0, 3 if depth < 3 else 0))):
            made.children.append(node(depth + 1))
        made.end = tick()
        return made

    return [node(0) for _ in range(draw(st.integers(0, 4)))]


def covered(node: Node) -> int:
    return sum(child.end - child.start for child in node.children)


def is_composite(node: Node) -> bool:
    return bool(node.children) and covered(node) * 2 >= node.end - node.start


def post_order(nodes: list[Node], depth: int = 0) -> list[tuple[Node, int]]:
    return [pair for n in nodes for pair in (*post_order(n.children, depth + 1), (n, depth))]


def reference(nodes: list[Node]) -> list[Node]:
    """The kernels: the topmost operators that are no composites."""
    return [k for n in nodes for k in (reference(n.children) if is_composite(n) else [n])]


@given(forests())
def test_kernels_are_the_topmost_operators_that_are_no_composites(forest: list[Node]) -> None:
    order = post_order(forest)
    records = np.zeros(len(order), RECORD)
    for record, (node, depth) in zip(records, order, strict=True):
        record["start_ns"], record["dur_ns"] = node.start, node.end - node.start
        record["depth"], record["flags"] = depth, is_composite(node)
    found = {(int(r["start_ns"]), int(r["dur_ns"])) for r in records[leaves(records)]}
    assert found == {(n.start, n.end - n.start) for n in reference(forest)}


@given(forests(), st.data())
def test_a_cut_never_parts_children_from_their_parent(forest: list[Node], data: st.DataObject) -> None:
    order = post_order(forest)
    cut = data.draw(st.integers(0, len(order)))
    types = np.full(cut, OPERATOR, np.uint8)
    depths = np.array([depth for _, depth in order[:cut]], np.uint16)
    count = whole_trees(types, depths, OPERATOR)
    assert count == max((i + 1 for i in range(cut) if depths[i] == 0), default=0)
