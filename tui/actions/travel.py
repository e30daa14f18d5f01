"""Through time: the timeline's window and cursor, the part of the run that figures are of, exposed stretches, marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moescope.tui.screens import timeline

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp

MIN_SPAN_NS: Final = 1_000


def zoom(app: MoescopeApp, factor: float) -> None:
    """Zooms around the cursor."""
    span = app.span()
    if span is None:
        return
    share = (app.view.cursor[1] + 0.5) / app.cells()
    length = span[1] - span[0]
    at = span[0] + int(length * share)
    whole = app.seen.end_ns - app.seen.start_ns if app.seen is not None else length
    new = int(min(max(length * factor, MIN_SPAN_NS), max(whole * 1.1, MIN_SPAN_NS)))
    app.view.span = (at - int(new * share), at - int(new * share) + new)


def pan(app: MoescopeApp, step: float) -> None:
    """Moves the cursor by cells; at the edge the window moves."""
    lane, cell = app.view.cursor
    cells = app.cells()
    to = cell + int(step)
    if 0 <= to < cells:
        app.view.cursor = (lane, to)
    else:
        page(app, 0.125 if step > 0 else -0.125)
        app.view.cursor = (lane, min(max(to - int(step * cells // 8), 0), cells - 1))


def page(app: MoescopeApp, share: float) -> None:
    """Moves the window by a share of its length."""
    span = app.span()
    if span is not None:
        by = int((span[1] - span[0]) * share)
        app.view.span = (span[0] + by, span[1] + by)


def follow(app: MoescopeApp) -> None:
    """Back to the newest steps."""
    app.view.span = None


def exposed(app: MoescopeApp, direction: float) -> None:
    """Jumps to the next exposed stretch after the cursor, or the one before it."""
    span = app.span()
    if span is None:
        return
    length = span[1] - span[0]
    at = span[0] + length * (2 * app.view.cursor[1] + 1) // (2 * app.cells())
    rank = app.view.rank

    def arrive(found: tuple[int, int] | None) -> None:
        if found is None:
            app.say("no exposed communication of 50 µs or more in that direction")
            return
        start, end = found
        # Near enough to see it: between a third and a fifteenth of the screen.
        app.look_at((start + end) // 2, max(min(length, 15 * (end - start)), 3 * (end - start)))
        app.seeks_exposed = True
        app.say(f"exposed for {(end - start) / 1e6:.3f} ms")

    if app.seen_timeline is not None:
        app.watcher.ask(lambda feed: feed.next_exposed(at, rank, backward=direction < 0), arrive)


def scrub(app: MoescopeApp, step: float) -> None:
    """Chooses the time of one cell of the scrubber."""
    seen, view = app.seen, app.view
    if seen is None or seen.end_ns <= seen.start_ns or not seen.scrubber:
        return
    cells = len(seen.scrubber)
    whole = seen.end_ns - seen.start_ns
    at = cells - 1 if view.window is None else (view.window[0] - seen.start_ns) * cells // whole
    if view.window is not None or step < -1:
        at = min(max(at + int(step), 0), cells - 1)
    _choose_cell(app, at, cells)


def _choose_cell(app: MoescopeApp, at: int, cells: int) -> None:
    seen = app.seen
    if seen is not None:
        whole = seen.end_ns - seen.start_ns
        start = seen.start_ns - (-at * whole // cells)
        app.view.window = (start, max(start + whole // cells, start + 1))


def edge(app: MoescopeApp, side: float) -> None:
    """The start of the run, or back to now."""
    seen, span = app.seen, app.span()
    if seen is None:
        return
    if app.view.screen == "timeline":
        length = span[1] - span[0] if span is not None else 0
        app.view.span = None if side > 0 else (seen.start_ns, seen.start_ns + max(length, MIN_SPAN_NS))
    elif side > 0:
        app.view.window = None
    elif seen.scrubber:
        _choose_cell(app, 0, len(seen.scrubber))


def mark(app: MoescopeApp) -> None:
    """Marks the time in view."""
    if app.view.screen == "timeline" and app.seen_timeline is not None:
        t_ns = timeline.cursor_time(app.seen_timeline, app.view.cursor[1])
    elif app.seen is not None:
        t_ns = app.view.window[0] if app.view.window is not None else app.seen.end_ns
    else:
        return
    app.view.marks.append(t_ns)
    app.say(f"marked; ' returns here ({len(app.view.marks)} marks)")


def to_mark(app: MoescopeApp) -> None:
    """Shows the marks in turn on the timeline."""
    if not app.view.marks:
        app.say("no mark yet: m sets one")
        return
    app.view.marks.insert(0, app.view.marks.pop())
    app.look_at(app.view.marks[0])
    app.view.screen = "timeline"


def go_to(app: MoescopeApp) -> None:
    """Asks for a time or a rank."""
    app.prompt.ask("go")
