"""Rows of the dashboard that come from one recorded table each: links, collectives, experts, quantisation, log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.growing.columns import NULL, Column, Columns, Names
from moescope.profiler.growing.rows import chosen, groups, inside, sums
from moescope.profiler.growing.track import Times
from moescope.profiler.snapshot import (
    CollectiveRow,
    ExpertRow,
    Figure,
    LinkRow,
    LogRow,
    QuantisationRow,
)

EXPERT_STEPS: Final = 32
LINK_HISTORY: Final = 60
LOG_LINES: Final = 200
STEPS_SHOWN: Final = 128


def latest_step(steps: Columns, names: Names, window: tuple[int, int]) -> tuple[int | None, str]:
    """Number and stage of the last step that began in the window."""
    pick = np.flatnonzero(inside(steps["start_ns"], window))
    if not len(pick):
        return None, ""
    last = pick[np.argmax(steps["start_ns"][pick])]
    number = int(steps["step"][last])
    return None if number == NULL else number, names.text(int(steps["stage"][last]))


def link_rows(samples: Columns, names: Names, window: tuple[int, int]) -> tuple[LinkRow, ...]:
    """Each link's rate over the window's samples, and its history up to the window's end, sample by sample.

    A window too short for two samples has the rate between the last two before its end.
    """
    rows: list[LinkRow] = []
    number, first = groups(samples["host"], samples["link"])
    for group, example in enumerate(first):
        at = np.flatnonzero(number == group)
        at = at[np.argsort(samples["t_ns"][at], kind="stable")]
        times = samples["t_ns"][at]
        at, times = at[times < window[1]], times[times < window[1]]
        if not len(at):
            continue
        tx, rx = _increments(samples["tx_bytes"][at]), _increments(samples["rx_bytes"][at])
        begin = min(int(np.searchsorted(times, window[0], side="left")), max(len(times) - 2, 0))
        elapsed = int(times[-1] - times[begin])
        in_window = int(np.searchsorted(times, window[0], side="right"))
        steps = np.maximum(np.diff(times), 1)
        history = tx[1:] / steps * 1e9
        peaks = samples["peak_bytes_per_s"][at]
        known = peaks[peaks != NULL]
        rows.append(
            LinkRow(
                host=names.text(int(samples["host"][example])),
                link=names.text(int(samples["link"][example])),
                tx_bytes_per_s=_rate(int(tx[begin + 1 :].sum()), elapsed),
                rx_bytes_per_s=_rate(int(rx[begin + 1 :].sum()), elapsed),
                peak_bytes_per_s=Figure(float(known[-1]))
                if len(known)
                else Figure(None, reason="the device does not tell its line rate"),
                tx_total=int(tx[max(in_window, 1) :].sum()),
                history=tuple(float(value) for value in history[-LINK_HISTORY:]),
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.host, row.link)))


def _increments(totals: Column) -> NDArray[np.int64]:
    """Growth of a running total since the sample before; a counter that restarts counts from zero again."""
    grown = np.diff(totals, prepend=totals[:1])
    return np.where(grown < 0, totals, grown).astype(np.int64)


def _rate(amount: int, elapsed_ns: int) -> Figure:
    if elapsed_ns <= 0:
        return Figure(None, "derived", "a rate needs two samples")
    return Figure(amount / elapsed_ns * 1e9, "derived")


def traffic(transfers: Columns, window: tuple[int, int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Bytes from each rank (row) to each rank (column) in the window; empty where no transfer is known."""
    pick = inside(transfers["start_ns"], window) & (transfers["bytes"] > 0)
    pick &= (transfers["src"] >= 0) & (transfers["dst"] >= 0)
    if not pick.any():
        return ()
    src, dst = transfers["src"][pick], transfers["dst"][pick]
    size = max(ranks, int(src.max()) + 1, int(dst.max()) + 1)
    cells = sums(src * size + dst, transfers["bytes"][pick], size * size)
    return tuple(tuple(int(value) for value in row) for row in cells.reshape(size, size))


def collective_rows(
    calls: Columns, exposed_ns: Times, names: Names, ranks: Sequence[int] | None, window: tuple[int, int]
) -> tuple[CollectiveRow, ...]:
    """Calls issued in the window by operation and group, longest exposed first.

    exposed_ns: [calls] exposed time inside each call's execution
    """
    pick = np.flatnonzero(chosen(calls["rank"], ranks) & inside(calls["issue_ns"], window))
    number, first = groups(calls["op"][pick], calls["group"][pick], calls["backend"][pick])
    rows: list[CollectiveRow] = []
    for group, example in enumerate(first):
        at = pick[number == group]
        durations = calls["dur_ns"][at]
        done = durations != NULL
        times = np.maximum(durations[done], 0)
        op = names.text(int(calls["op"][pick[example]]), "unknown")
        sent = _sent(op, names.text(int(calls["group_ranks"][pick[example]]), ""), calls, at)
        known = sent != NULL
        both = known & done
        busy = int(np.maximum(durations[both], 0).sum())
        moved = int(sent[both].sum())
        rows.append(
            CollectiveRow(
                op=op,
                group=names.text(int(calls["group"][pick[example]]), "–"),
                backend=names.text(int(calls["backend"][pick[example]]), "–"),
                calls=len(at),
                bytes=int(sent[known].sum()) if known.any() else None,
                median_ns=int(np.quantile(times, 0.5)) if len(times) else 0,
                p99_ns=int(np.quantile(times, 0.99)) if len(times) else 0,
                bytes_per_s=Figure(moved / busy * 1e9, "derived")
                if busy and both.any()
                else Figure(None, "derived", "bytes or duration of the calls are not known"),
                exposed_ns=int(exposed_ns[at].sum()),
                unfinished=int((~done).sum()),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.exposed_ns, -row.calls, row.op, row.group)))


def _sent(op: str, ranks: str, calls: Columns, at: Times) -> Times:
    """Bytes that calls of one operation and group send; NULL where not known. ranks: of the group, `0,1`

    Where a call tells its operand alone, what must cross the link: of n ranks an all-reduce moves 2 (n - 1) / n of it.
    """
    sent, operand, n = calls["sent_bytes"][at], calls["bytes"][at], ranks.count(",") + 1
    if op != "all_reduce" or n < 2:
        return sent
    return np.where((sent == NULL) & (operand != NULL), 2 * (operand - operand // n), sent)


def expert_rows(
    experts: Columns, ranks: Sequence[int] | None, window: tuple[int, int]
) -> tuple[tuple[ExpertRow, ...], int]:
    """Tokens of each layer's experts over the window's last steps, and how many steps these are."""
    pick = chosen(experts["rank"], ranks) & inside(experts["t_ns"], window) & (experts["expert"] >= 0)
    pick &= (experts["tokens"] >= 0) & (experts["layer"] != NULL)
    if not pick.any():
        return (), 0
    layer, expert = experts["layer"][pick], experts["expert"][pick]
    tokens, step = experts["tokens"][pick], experts["step"][pick]
    counted = np.unique(step[step != NULL])[-EXPERT_STEPS:]
    if len(counted):
        recent = step >= counted[0]
        layer, expert, tokens = layer[recent], expert[recent], tokens[recent]
    layers, row = np.unique(layer, return_inverse=True)
    size = int(expert.max()) + 1
    cells = sums(row.reshape(-1) * size + expert, tokens, len(layers) * size).reshape(len(layers), size)
    rows = tuple(
        ExpertRow(int(number), tuple(int(value) for value in line)) for number, line in zip(layers, cells, strict=True)
    )
    return rows, len(counted)


def rank_tokens(rows: tuple[ExpertRow, ...], ranks: int) -> tuple[int, ...]:
    """Tokens that each rank's experts got, experts spread over the ranks in equal runs; empty where they cannot be."""
    size = max((len(row.tokens) for row in rows), default=0)
    if ranks < 1 or not size or size % ranks:
        return ()
    each = size // ranks
    return tuple(sum(sum(row.tokens[rank * each : (rank + 1) * each]) for row in rows) for rank in range(ranks))


def quantisation_rows(
    table: Columns, names: Names, ranks: Sequence[int] | None, window: tuple[int, int]
) -> tuple[QuantisationRow, ...]:
    """Quantisations in the window by tensor and format."""
    pick = np.flatnonzero(chosen(table["rank"], ranks) & inside(table["t_ns"], window))
    number, first = groups(table["tensor"][pick], table["format"][pick])
    rows: list[QuantisationRow] = []
    for group, example in enumerate(first):
        at = pick[number == group]
        counts = {
            name: int(np.maximum(table[name][at], 0).sum())
            for name in ("saturated", "flushed", "nonfinite", "elements")
        }
        rows.append(
            QuantisationRow(
                tensor=names.text(int(table["tensor"][pick[example]]), "–"),
                format=names.text(int(table["format"][pick[example]]), "–"),
                calls=len(at),
                amax=_extreme(table["amax"][at], largest=True),
                scale_min=_extreme(table["scale_min"][at], largest=False),
                scale_max=_extreme(table["scale_max"][at], largest=True),
                **counts,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.saturated - row.nonfinite, row.tensor, row.format)))


def _extreme(values: Column, *, largest: bool) -> float:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan")
    return float(known.max() if largest else known.min())


def log_rows(log: Columns, names: Names) -> tuple[LogRow, ...]:
    """The last lines of the log, what only informs first, warnings and errors last, each in order of time."""
    quiet = log["level"] == names.code("info")
    order = np.argsort(log["t_ns"], kind="stable")
    informing, warning = order[quiet[order]], order[~quiet[order]]
    return tuple(
        LogRow(
            t_ns=int(log["t_ns"][at]),
            level=names.text(int(log["level"][at]), "info"),
            rank=None if log["rank"][at] == NULL else int(log["rank"][at]),
            source=names.text(int(log["source"][at])),
            message=names.text(int(log["message"][at])),
        )
        for at in (*informing[-LOG_LINES // 2 :], *warning[-LOG_LINES // 2 :])
    )
