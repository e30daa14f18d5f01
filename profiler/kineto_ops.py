"""Which operator of the host launched a kernel, and its operands: by correlation, thread and time of the launch."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moescope.profiler.kineto_file import Event, args_of
from moescope.profiler.nesting import Nest
from moescope.profiler.roofline.operands import matrix_dtype, operand_text

Launch = tuple[Any, int]
"""Thread and time of a launch, ns."""

_VALUES_MATTER: Final = re.compile(r"conv|attention|attn|flash", re.IGNORECASE)
"""Operators whose operations depend on plain arguments too: strides, or whether attention is causal."""

NO_OPERATOR: Final[tuple[None, ...]] = (None, None, None, None)


@dataclass(frozen=True, slots=True)
class Launched:
    """Columns of `kernels`, a row a kernel: op, op_call, shapes, dtype; None where not known."""

    op: list[str | None]
    op_call: list[int | None]
    shapes: list[str | None]
    dtype: list[str | None]


def launching_operators(
    operators: Iterable[tuple[Any, int, int, Event]],
    launches: Mapping[int, Launch],
    correlations: Sequence[int | None],
) -> Launched:
    """The innermost operator around each kernel's launch.

    operators: thread, start and duration (ns) of each; launches: by correlation; correlations: [kernels]. A correlation
    that several kernels share is the launch of a whole graph: what was around it tells nothing about one of them.
    """
    threads: dict[Any, list[tuple[int, int, str]]] = defaultdict(list)
    found: list[Event] = []
    for thread, start, duration, event in operators:
        threads[thread].append((start, start + duration, str(len(found))))
        found.append(event)
    nests: dict[Any, Nest] = {}
    first = 1
    for thread, ranges in threads.items():
        nests[thread] = Nest(ranges, first_id=first)
        first += len(ranges)
    by_id = {
        number: int(name) for nest in nests.values() for number, name in zip(nest.ids.tolist(), nest.names, strict=True)
    }
    shared = Counter(correlations)
    told: dict[int, tuple[str | None, int | None, str | None, str | None]] = {}
    rows: list[tuple[Any, ...]] = []
    for correlation in correlations:
        launch = launches.get(correlation) if correlation is not None and shared[correlation] == 1 else None
        nest = nests.get(launch[0]) if launch is not None else None
        call = nest.innermost(launch[1]) if nest is not None and launch is not None else None
        if call is None:
            rows.append(NO_OPERATOR)
            continue
        if call not in told:
            told[call] = (found[by_id[call]].name, call, *_operands(found[by_id[call]]))
        rows.append(told[call])
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], []]
    return Launched(*columns)


def _operands(event: Event) -> tuple[str | None, str | None]:
    args = args_of(event)
    values = args.values if _VALUES_MATTER.search(event.name or "") else None
    return operand_text(args.shapes, values), matrix_dtype(args.shapes, args.types)
