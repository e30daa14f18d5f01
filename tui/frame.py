"""What surrounds every screen: who and where, the headline, the tabs, the scrubber and the keys."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.profiler.snapshot import Snapshot
from moescope.tui.commands import COMMANDS
from moescope.tui.draw import EIGHTHS
from moescope.tui.state import SCREENS, ViewState
from moescope.tui.text import Line, clean, clock, count, duration, fit, length, pad, spread

_STATES = {
    "live": ("●", "LIVE"),
    "finished": ("■", "FINISHED"),
    "torn": ("✂", "TORN"),
    "trace": ("◆", "TRACE"),
}


def header(seen: Snapshot, view: ViewState, width: int) -> Line:
    """Target, devices, ranks, stage and step; at the right, live or not, and the time."""
    glyph, word = _STATES[seen.state]
    rate = f" {view.fps:g} Hz" if seen.state == "live" else ""
    if view.frozen:
        glyph, word, rate = "❚❚", "FROZEN", ""
    right: Line = [
        (f"{glyph} {word}{rate}", "bar-live"),
        (f"  {clock(max(seen.end_ns - seen.start_ns, 0))} ", "bar-strong"),
    ]
    rank = "all" if seen.rank_choice is None else str(seen.rank_choice)
    stage = f"{clean(seen.stage).upper()} " if seen.stage else ""
    step = f"step {count(seen.step)}" if seen.step is not None else ""
    devices = f"{clean(seen.devices)} · " if width >= 100 else ""
    tail = f" · {devices}rank {rank} · {stage}{step}".rstrip(" ·")
    room = width - length(right) - length([(" moescope  ", "")]) - length([(tail, "")]) - 1
    target = clean(seen.target)
    if len(target) > room:
        target = fit(target, max(room, 8))
    left: Line = [(" moescope", "bar-strong"), (f"  {target}", "bar"), (tail, "bar-dim")]
    room = width - length(right)
    return [*pad(left, max(room, 0), "bar"), *right] if room > 12 else pad(left, width, "bar")


def headline(seen: Snapshot, view: ViewState, width: int) -> Line:
    """One sentence: the largest loss, and what frames it; a notice takes its place while there is one."""
    if view.notice:
        return pad([("▌ ", "comm"), (clean(view.notice), "strong")], width)
    line: Line = [("▌", "exposed")]
    line += [
        (clean(part.text), {"text": "strong", "loss": "loss", "figure": "figure"}[part.role]) for part in seen.headline
    ]
    # What does not fit goes as a whole: half a figure tells nothing.
    while length(line) > width and (cuts := [at for at, (text, _) in enumerate(line) if text.startswith(" · ")]):
        line = line[: cuts[-1]]
    lost: Line = []
    if seen.dropped:
        lost = [(f"  ▼ {count(seen.dropped)} events dropped", "loss")]
    return spread(line, lost, width) if lost and length(line) + length(lost) < width else pad(line, width)


def tab_names(seen: Snapshot) -> list[str]:
    """The titles of the screens."""
    units = "SMs" if any(row.units.kind == "sm" for row in seen.ranks) else "Cores"
    return [units if name == "units" else name.capitalize() for name in SCREENS]


def tabs(seen: Snapshot, view: ViewState, width: int) -> tuple[Line, list[tuple[int, int, str]]]:
    """The numbered tabs, and where each begins and ends, for the mouse."""
    names = tab_names(seen)
    findings = sum(finding.severity == "high" for finding in seen.findings)
    for room in (14, 5, 3, 0):
        line: Line = []
        places = []
        for i, (screen, name) in enumerate(zip(SCREENS, names, strict=True), start=1):
            start = length(line)
            short = name[:room]
            if screen == view.screen:
                line.append((f" {i} {name} ", "tab"))
            else:
                line += [(f" {i}", "key"), (f" {short}".rstrip() + " ", "dim")]
            if screen == "findings" and findings:
                line.append((f"●{findings} ", "loss"))
            places.append((start, length(line), screen))
        end: Line = [("? Help ", "tab" if view.screen == "help" else "dim")]
        if length(line) + length(end) <= width:
            return spread(line, end, width), places
    return pad(line, width), places


def scrubber_cells(width: int) -> int:
    """Cells of the scrubber at this width."""
    return max(10, width - 34)


def scrubber(seen: Snapshot, view: ViewState, width: int) -> Line:
    """The whole run, as high and as coloured as its exposed share; the chosen window is marked."""
    values = seen.scrubber
    chosen = _chosen(seen, view, len(values))
    line: Line = [(" ◀ ", "dim")]
    for i, value in enumerate(values):
        if chosen is not None and chosen[0] <= i <= chosen[1]:
            glyph, role = (EIGHTHS[min(8, max(1, round(value * 8)))] if value is not None else "┃"), "key+select"
        elif value is None:
            glyph, role = "·", "faint"
        else:
            glyph = EIGHTHS[min(8, max(1, round(value * 8)))]
            role = "exposed" if value >= 0.25 else "dim"
        if line[-1][1] == role:
            line[-1] = (line[-1][0] + glyph, role)
        else:
            line.append((glyph, role))
    window = view.span if view.screen == "timeline" else view.window
    if window is None:
        where = "now" if seen.state == "live" else "last steps" if view.screen == "timeline" else seen.time_note
    else:
        where = f"at {duration(window[0] - seen.start_ns)}, {duration(window[1] - window[0])} long"
    return pad([*line, (" ▶ ", "dim"), (where, "strong")], width)


def _chosen(seen: Snapshot, view: ViewState, cells: int) -> tuple[int, int] | None:
    window = view.span if view.screen == "timeline" else view.window
    whole = seen.end_ns - seen.start_ns
    if window is None or whole <= 0 or not cells:
        return None
    first, last = (int((t - seen.start_ns) * cells / whole) for t in (window[0], window[1] - 1))
    return max(0, min(first, cells - 1)), max(0, min(last, cells - 1))


def keys(screen: str, width: int) -> Line:
    """The keys that work here; what does not fit is in the help, which is always named."""
    last: Line = [("? ", "bar-key"), ("help  ", "bar"), ("q ", "bar-key"), ("quit ", "bar")]
    line: Line = [(" ", "bar")]
    for command in COMMANDS:
        if not command.label or not command.works_on(screen) or command.label in ("help", "quit"):
            continue
        piece: Line = [(f"{command.shown.replace(' ', '')} ", "bar-key"), (f"{command.label}  ", "bar")]
        if length(line) + length(piece) + length(last) <= width:
            line += piece
    return pad([*line, *last], width, "bar")


def too_small(width: int, height: int) -> Sequence[Line]:
    """What a terminal shows that is too small for anything."""
    return [pad([(text, "text")], width) for text in (f"{width}x{height}: too small", "moescope needs 40x12")][:height]
