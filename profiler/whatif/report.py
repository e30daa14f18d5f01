"""Projections as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moescope.profiler.printable import all_printable
from moescope.profiler.report.amounts import time_text

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_WIDTH: Final = 120


def render_text(answer: dict[str, Any], console: Console) -> None:
    """Print an answer of `answer.told`; nothing that a name may hold disturbs a terminal."""
    from rich.table import Table
    from rich.text import Text

    answer = all_printable(answer)
    wide = not console.is_terminal
    if wide:
        console.width = max(console.width, _PLAIN_WIDTH)
    console.print(Text(_headline(answer), style="bold"), soft_wrap=wide)
    console.print()
    projected = [one for one in answer["scenarios"] if one["projected"]]
    rows = [*projected, *([answer["together"]] if answer["together"] else [])]
    if rows:
        steps = answer["recorded"]["step_us"] is not None
        table = Table(box=None, pad_edge=False)
        table.add_column("what if")
        now = (f"median step ({time_text(answer['recorded']['step_us'])} now)",) if steps else ()
        for title in ("gain", "low to high", "span", *now):
            table.add_column(title, justify="right")
        for one in rows:
            table.add_row(*(Text(text) for text in _row(one, steps)))
        console.print(table)
        console.print()
    for one in answer["scenarios"]:
        if not one["projected"]:
            console.print(Text(f"– {one['what']}: {one['projected_reason']}."), soft_wrap=wide)
    for one in rows:
        console.print(Text(f"{one['what']}: {'; '.join(one['assumed'])}."), soft_wrap=wide)
    console.print()
    for note in _notes(answer):
        console.print(Text(note), soft_wrap=wide)


def _headline(answer: dict[str, Any]) -> str:
    recorded = answer["recorded"]
    ranks = len(recorded["ranks"])
    return (
        f"{answer['source']}: {recorded['kernels']:,} kernels of {ranks} rank{'s' if ranks != 1 else ''}, "
        f"{time_text(recorded['span_us'])}, re-run with changed durations [modelled]."
    )


def _row(one: dict[str, Any], steps: bool) -> list[str]:
    shares, projected = one["projected"]["gain_share"], one["projected"]
    return [
        one["what"],
        f"{shares['estimate']:+.1%}",
        f"{shares['low']:+.1%} to {shares['high']:+.1%}",
        time_text(projected["span_us"]["estimate"]),
        *((time_text(projected["step_us"]) if projected["step_us"] is not None else "–",) if steps else ()),
    ]


def _notes(answer: dict[str, Any]) -> list[str]:
    model, recorded = answer["model"], answer["recorded"]
    notes = [
        "Gains are shares of the recorded span. Scenarios rest on the same time: their gains must not be added up.",
        f"Replay of the unchanged graph: off by {time_text(model['replay_error_us'])} at most; {model['waits']:,} "
        f"waits between streams or threads{_late(model)}.",
        f"Bounds are {model['bounds'].removeprefix('low and high: ')}.",
    ]
    if model["collectives"] is None:
        notes.append(f"Collectives: {model['collectives_reason']}.")
    else:
        notes.append(
            f"Collectives: {model['collectives']:,} matched across ranks end together; clocks are within "
            f"{time_text(model['clock_error_us'])}."
        )
    if recorded["step_spread"] is not None:
        spread = recorded["step_spread"]
        notes.append(
            f"Recorded steps lie {spread['lower_quartile']:+.1%} to {spread['upper_quartile']:+.1%} from their median "
            "(quartiles): bounds leave that out, and no projection of one run is surer."
        )
    if recorded["kernels_left_out"]:
        kept = "the steps that all ranks recorded whole" if recorded["whole_steps"] else "what all ranks recorded"
        notes.append(f"{recorded['kernels_left_out']:,} kernels lie outside of {kept} and are left out.")
    return notes


def _late(model: dict[str, Any]) -> str:
    if model["late_us"] is None:
        return ""
    return f"; {time_text(model['late_us'])} without any kernel are explained by none"
