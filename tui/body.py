"""The middle of the dashboard: the chosen screen's lines, and what its rows can be counted and sorted by."""

from __future__ import annotations

from moescope.profiler.snapshot import Snapshot, Timeline
from moescope.tui.output import OutputTail
from moescope.tui.rows import sortable
from moescope.tui.screens import experts, findings, help, kernels, links, log, overview, timeline, units
from moescope.tui.state import ViewState
from moescope.tui.text import Line


def paint(
    seen: Snapshot, view: ViewState, width: int, height: int, window: Timeline | None, output: OutputTail | None
) -> list[Line]:
    """The screen in `width` x `height` cells."""
    if height < 3:
        return []
    match view.screen:
        case "timeline":
            return timeline.paint(seen, view, width, height, window)
        case "kernels":
            return kernels.paint(seen, view, width, height)
        case "units":
            return units.paint(seen, view, width, height, window)
        case "links":
            return links.paint(seen, view, width, height)
        case "experts":
            return experts.paint(seen, view, width, height)
        case "findings":
            return findings.paint(seen, view, width, height)
        case "log":
            return log.paint(seen, view, width, height, output.read() if output is not None else None)
        case "help":
            return help.paint(view, width, height)
        case _:
            return overview.paint(seen, view, width, height)


def row_count(seen: Snapshot, view: ViewState, width: int, height: int) -> int:
    """Rows that the cursor can be on."""
    match view.screen:
        case "overview":
            return len(overview.ranks_shown(seen, view))
        case "kernels":
            return len(kernels.shown(seen, view))
        case "links":
            return len(links.shown(seen, view))
        case "experts":
            return len(experts.shown(seen, view))
        case "findings":
            return len(findings.shown(seen, view))
        case "log":
            return len(log.shown(seen, view))
        case "units":
            return len(seen.ranks)
        case "help":
            return help.rows(view, width, height)
        case _:
            return 0


def sort_count(seen: Snapshot, view: ViewState) -> int:
    """Columns that the rows can be sorted by."""
    columns = {
        "overview": overview.rank_fields(seen),
        "kernels": kernels.fields(),
        "links": links.collective_fields(),
        "experts": experts.quantisation_fields(),
    }
    return len(sortable(columns.get(view.screen, ())))
