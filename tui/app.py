"""The dashboard: one painted widget a part of the screen, a frame at a time, from the newest answer of the feed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from textual.app import App, ComposeResult, SystemCommand
from textual.events import Click, Event, Key, MouseScrollDown, MouseScrollUp, Resize
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from moescope.profiler.feed import Feed
from moescope.profiler.snapshot import Snapshot, Timeline, TimelineView, View
from moescope.tui import frame
from moescope.tui.commands import COMMANDS, find
from moescope.tui.draw import box, message
from moescope.tui.output import OutputTail
from moescope.tui.rows import sortable
from moescope.tui.screens import experts, findings, help, kernels, links, log, overview, timeline, units
from moescope.tui.state import SCREENS, ScreenName, ViewState
from moescope.tui.text import Line, pad
from moescope.tui.theme import THEMES, background, foreground, style
from moescope.tui.watcher import Watcher, Wish

NOTICE_S = 4.0
SMALLEST = (40, 12)
MIN_SPAN_NS = 1_000


class Painted(Widget):
    """A part of the screen that is given its lines and redraws those that changed."""

    DEFAULT_CSS = "Painted { height: 1; width: 100%; }"

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self._lines: list[Line] = []
        self._strips: list[Strip] = []
        self._theme = ""

    def show(self, lines: Sequence[Line], theme: str) -> None:
        """Takes new lines; equal ones cost nothing."""
        width = self.size.width
        old, same = self._lines, theme == self._theme and len(lines) == len(self._lines)
        self._theme = theme
        if not same:
            self._lines = list(lines)
            self._strips = [self._strip(line, width) for line in self._lines]
            self.refresh()
            return
        for y, line in enumerate(lines):
            if line != old[y] or self._strips[y].cell_length != width:
                old[y] = line
                self._strips[y] = self._strip(line, width)
                self.refresh(Region(0, y, width, 1))

    def _strip(self, line: Line, width: int) -> Strip:
        theme = self._theme
        return Strip([Segment(text, style(theme, role)) for text, role in pad(line, width) if text], width)

    def render_line(self, y: int) -> Strip:
        """The strip of a line; what lies below the last one is blank."""
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width, style(self._theme or "dark", "text"))

    def text(self) -> str:
        """What is drawn, as plain text."""
        return "\n".join("".join(text for text, _ in pad(line, self.size.width)) for line in self._lines)


class Dashboard(Screen[None], inherit_bindings=False):
    """The only screen: its parts, from top to bottom."""

    def compose(self) -> ComposeResult:
        """The parts."""
        for name in ("header", "headline", "tabs", "body", "pane", "scrubber", "keys"):
            yield Painted(name)
        prompt = Input(id="prompt", compact=True)
        prompt.display = False
        yield prompt


class MoescopeApp(App[int], inherit_bindings=False):
    """Draws what a feed tells; keys change the `ViewState`, never the data."""

    CSS = """
    Screen { layers: base; overflow: hidden hidden; }
    #body { height: 1fr; }
    #pane { display: none; height: 8; }
    #prompt { dock: bottom; height: 1; border: none; padding: 0 1; }
    """
    AUTO_FOCUS = None  # keys are commands until a prompt is opened
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    TITLE = "moescope"
    BINDINGS: ClassVar = []

    def __init__(
        self,
        feed: Feed,
        *,
        fps: float = 4.0,
        log_path: Path | None = None,
        on_interrupt: Callable[[], str] | None = None,
        export: Callable[[], str] | None = None,
        close_after_s: float | None = None,
        rank: int | None = None,
    ) -> None:
        """See `run`."""
        super().__init__(ansi_color=False)
        self.view = ViewState(fps=fps, theme="mono" if os.environ.get("NO_COLOR") else "dark", rank=rank)
        self.seen: Snapshot | None = None
        self.seen_timeline: Timeline | None = None
        self._output = OutputTail(log_path) if log_path is not None else None
        self.view.log_pane = self._output is not None
        self._on_interrupt = on_interrupt
        self._export = export
        self._close_after_s = close_after_s
        self._ended_s: float | None = None
        self._touched = False
        self._takes_keys = False
        self._notice_until_s = 0.0
        self._prompt_for = ""
        self._seeks_exposed = False
        self._places: list[tuple[int, int, str]] = []
        self.watcher = Watcher(feed, Wish(View(rank=rank)), 1 / fps)

    # ---- life

    def get_default_screen(self) -> Screen[None]:
        """The dashboard itself, not a screen that takes tab for itself."""
        return Dashboard(id="_default")

    def on_ready(self) -> None:
        """Starts the feed's thread and the frames."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            try:
                loop.add_signal_handler(number, self.exit, 128 + number)
            except (ValueError, RuntimeError, NotImplementedError):  # not the main thread: a test's
                break
        self.watcher.start()
        self._takes_keys = True
        self._colour()
        self._again()

    def on_unmount(self) -> None:
        """Ends the feed's thread."""
        self.watcher.stop()

    def _again(self) -> None:
        self.set_timer(1 / self.view.fps, self._again)
        self.frame()

    def _colour(self) -> None:
        """Sets the ground under everything to the theme's."""
        for node in (self.screen, self.query_one("#prompt")):
            node.styles.background = background(self.view.theme)
            node.styles.color = foreground(self.view.theme)

    def on_resize(self, _: Resize) -> None:
        """Draws at once: an old picture in a new size is torn."""
        self.call_after_refresh(self.frame)

    # ---- a frame

    def frame(self) -> None:
        """Takes the newest answer and draws what changed."""
        if not self.is_running or len(self.screen_stack) > 1:
            return
        self.watcher.deliver()
        self.watcher.want(self._wish())
        answer = self.watcher.latest
        if answer is not None:
            self.seen = answer.snapshot
            self.seen_timeline = answer.timeline or self.seen_timeline
            self._seek_exposed(answer.timeline)
        if self.watcher.problem:
            self._say(self.watcher.problem)
        elif self.view.notice and time.monotonic() > self._notice_until_s:
            self.view.notice = ""
        self._close_when_over()
        self._draw()

    def _seek_exposed(self, found: Timeline | None) -> None:
        """Puts the cursor on the lane that one has jumped to, once its window has come."""
        if not self._seeks_exposed or found is None or (found.start_ns, found.end_ns) != self.view.span:
            return
        self._seeks_exposed = False
        lane = timeline.lane_with(found, "exposed", self.view.cursor[1])
        if lane is not None:
            self.view.cursor = (lane, self.view.cursor[1])

    def _wish(self) -> Wish:
        width, height = self.size
        body = self.query_one("#body", Painted).size
        asked = None
        if self.view.cursor[1] < 0:
            self.view.cursor = (self.view.cursor[0], timeline.lane_cells(body.width or width) // 2)
        if self.view.screen in ("timeline", "units"):
            asked = TimelineView(
                rank=self.view.rank,
                window=self.view.span if self.view.screen == "timeline" else self.view.window,
                cells=timeline.lane_cells(body.width or width),
                max_lanes=max(timeline.most_lanes(body.height or height), 64),
                cursor=self.view.cursor,
                filter=self.view.filter if self.view.screen == "timeline" else "",
            )
        look = View(self.view.rank, self.view.window, frame.scrubber_cells(width), self.view.stage)
        return Wish(look, asked, self.view.frozen)

    def _draw(self) -> None:
        width, height = self.size
        theme = self.view.theme
        body = self.query_one("#body", Painted)
        if width < SMALLEST[0] or height < SMALLEST[1]:
            body.show(frame.too_small(body.size.width, body.size.height), theme)
            for name in ("header", "headline", "tabs", "scrubber", "keys"):
                self.query_one(f"#{name}", Painted).show([], theme)
            return
        pane = self.query_one("#pane", Painted)
        pane_height = min(8, height // 5) if self.view.log_pane and height >= 24 and self.view.screen != "log" else 0
        pane.display = pane_height > 0
        pane.styles.height = pane_height
        if self.seen is None:
            body.show(box("moescope", "", message("reading the recording …", width - 4), *body.size), theme)
            return
        head, self._places = frame.tabs(self.seen, self.view, width)
        for name, line in (
            ("header", frame.header(self.seen, self.view, width)),
            ("headline", frame.headline(self.seen, self.view, width)),
            ("tabs", head),
            ("scrubber", frame.scrubber(self.seen, self.view, width)),
            ("keys", frame.keys(self.view.screen, width)),
        ):
            self.query_one(f"#{name}", Painted).show([line], theme)
        body.show(self._body(self.seen, body.size.width, body.size.height), theme)
        if pane_height and self._output is not None:
            pane.show(log.output_pane(self._output.read(), width, pane_height), theme)

    def _body(self, seen: Snapshot, width: int, height: int) -> list[Line]:
        view = self.view
        if height < 3:
            return []
        match view.screen:
            case "timeline":
                return timeline.paint(seen, view, width, height, self.seen_timeline)
            case "kernels":
                return kernels.paint(seen, view, width, height)
            case "units":
                return units.paint(seen, view, width, height, self.seen_timeline)
            case "links":
                return links.paint(seen, view, width, height)
            case "experts":
                return experts.paint(seen, view, width, height)
            case "findings":
                return findings.paint(seen, view, width, height)
            case "log":
                return log.paint(seen, view, width, height, self._output.read() if self._output else None)
            case "help":
                return help.paint(view, width, height)
            case _:
                return overview.paint(seen, view, width, height)

    def _close_when_over(self) -> None:
        """Leaves by itself some time after the run has ended, where that was asked for and nobody touched a key.

        Who has touched one is looking at something: they are told that the run has ended, and stay.
        """
        if self._close_after_s is None or self.seen is None:
            return
        if self.seen.state == "live":
            self._ended_s = None
            return
        if self._touched:
            self._close_after_s = None
            self._say("The run has ended; q shows its summary.")
            return
        now = time.monotonic()
        if self._ended_s is None:
            self._ended_s = now
        left = self._close_after_s - (now - self._ended_s)
        if left <= 0:
            self.exit(0)
            return
        self._say(f"The run has ended. The summary follows in {left:.0f} s; q shows it now, any other key stays here.")

    def _say(self, text: str) -> None:
        self.view.notice = text
        self._notice_until_s = time.monotonic() + NOTICE_S

    # ---- keys and mouse

    async def on_event(self, event: Event) -> None:
        """Takes keys as they arrive: on the way by the screen, one typed ahead would overtake the `/` before it."""
        if isinstance(event, Key) and not event.is_forwarded and self._take_key(event):
            return
        await super().on_event(event)

    def on_key(self, event: Key) -> None:
        """Keys that the prompt has no use for."""
        if len(self.screen_stack) > 1 or self.focused is None:
            return
        if event.key == "escape":
            event.stop()
            self._close_prompt()
        elif event.key == "ctrl+c":
            self.run_command("interrupt")

    def _take_key(self, event: Key) -> bool:
        """Runs the command of the key, unless something else has the keyboard; whether there was one."""
        if not self._takes_keys or len(self.screen_stack) != 1 or self.focused is not None:
            return False
        self._touched = True
        if event.key != "q" and self.seen is not None and self.seen.state != "live" and self._close_after_s is not None:
            self._close_after_s = None
            self.view.notice = ""
        command = find(event.key, self.view.screen)
        if command is not None:
            self.run_command(command.action)
        return command is not None

    def run_command(self, action: str) -> None:
        """Runs a command of the table and draws what it changed."""
        self._touched = True
        name, _, rest = action.partition("(")
        argument = rest.rstrip(")").strip("'")
        method = getattr(self, f"do_{name}")
        if argument:
            method(argument if name == "screen" else float(argument))
        else:
            method()
        if self.is_running:
            self.frame()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every command that works here."""
        for command in COMMANDS:
            if command.works_on(self.view.screen) and command.action != "command_palette":

                def act(action: str = command.action) -> None:
                    self.call_after_refresh(self.run_command, action)

                yield SystemCommand(command.name, f"key {' or '.join(command.keys)}", act)

    def on_click(self, event: Click) -> None:
        """A tab that is clicked on opens."""
        if event.widget is not None and event.widget.id == "tabs":
            for start, end, name in self._places:
                if start <= event.x < end:
                    self.run_command(f"screen('{name}')")
                    return
            if event.x >= self.size.width - 7:
                self.run_command("help")

    def on_mouse_scroll_down(self, _: MouseScrollDown) -> None:
        """The wheel moves the cursor."""
        self.run_command("move(1)")

    def on_mouse_scroll_up(self, _: MouseScrollUp) -> None:
        """The wheel moves the cursor."""
        self.run_command("move(-1)")

    # ---- commands: screens and rows

    def do_screen(self, name: ScreenName) -> None:
        """Opens a screen."""
        self.view.screen = name

    def do_next_screen(self, step: float) -> None:
        """The screen beside this one."""
        at = SCREENS.index(self.view.screen) if self.view.screen in SCREENS else 0
        self.view.screen = SCREENS[(at + int(step)) % len(SCREENS)]

    def do_help(self) -> None:
        """Help for this screen, or back from it."""
        if self.view.screen == "help":
            self.view.screen = self.view.before_help
        else:
            self.view.before_help, self.view.screen = self.view.screen, "help"

    def do_back(self) -> None:
        """Out of help, of the filter, of the chosen time: one at a time."""
        if self.view.screen == "help":
            self.view.screen = self.view.before_help
        elif self.view.filter:
            self.view.filter = ""
        else:
            self.view.window = self.view.span = None

    def rows(self) -> int:
        """Rows that the cursor can be on."""
        seen, view = self.seen, self.view
        if seen is None:
            return 0
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
                return help.rows(view, *self.query_one("#body", Painted).size)
            case _:
                return 0

    def do_move(self, step: float) -> None:
        """Moves the cursor by rows, or by lanes."""
        if self.view.screen == "timeline":
            lanes = len(self.seen_timeline.lanes) if self.seen_timeline is not None else 0
            lane = min(max(self.view.cursor[0] + int(step), 0), max(lanes - 1, 0))
            self.view.cursor = (lane, self.view.cursor[1])
            return
        table = self.view.table(self.view.screen)
        table.cursor = min(max(table.cursor + int(step), 0), max(self.rows() - 1, 0))

    def do_sort(self) -> None:
        """Sorts by the next column."""
        table = self.view.table(self.view.screen)
        fields = self._fields()
        if fields:
            table.column, table.reverse, table.cursor = (table.column + 1) % fields, False, 0

    def do_reverse(self) -> None:
        """Sorts the other way round."""
        table = self.view.table(self.view.screen)
        table.reverse = not table.reverse

    def _fields(self) -> int:
        if self.seen is None:
            return 0
        columns = {
            "overview": overview.rank_fields(self.seen),
            "kernels": kernels.fields(),
            "links": links.collective_fields(),
            "experts": experts.quantisation_fields(),
        }
        return len(sortable(columns.get(self.view.screen, ())))

    def do_drill(self) -> None:
        """From a row to the timeline that shows it."""
        seen, view = self.seen, self.view
        if seen is None:
            return
        at = view.table(view.screen).cursor
        if view.screen == "overview":
            ranks = overview.ranks_shown(seen, view)
            if at < len(ranks):
                view.rank, view.screen = ranks[at].rank, "timeline"
        elif view.screen == "kernels":
            names = kernels.shown(seen, view)
            if at < len(names):
                view.filters["timeline"], view.screen = names[at].name, "timeline"
        else:
            found = findings.shown(seen, view)
            if at < len(found) and found[at].start_ns is not None:
                self._look_at(found[at].start_ns or 0)
                view.screen = "timeline"
            else:
                self._say("this finding is about the whole run: no one place shows it")

    # ---- commands: time

    def _look_at(self, t_ns: int, length_ns: int | None = None) -> None:
        """Has the timeline show a time, a third of the way in."""
        now = self._span()
        length_ns = length_ns or (now[1] - now[0] if now is not None else 50_000_000)
        self.view.span = (t_ns - length_ns // 3, t_ns - length_ns // 3 + length_ns)
        self.view.cursor = (self.view.cursor[0], self._cells() // 3)

    def _cells(self) -> int:
        return timeline.lane_cells(self.query_one("#body", Painted).size.width)

    def _span(self) -> tuple[int, int] | None:
        """The window that the timeline shows."""
        if self.view.span is not None:
            return self.view.span
        seen = self.seen_timeline
        return None if seen is None or seen.end_ns <= seen.start_ns else (seen.start_ns, seen.end_ns)

    def do_zoom(self, factor: float) -> None:
        """Zooms around the cursor."""
        span = self._span()
        if span is None:
            return
        share = (self.view.cursor[1] + 0.5) / self._cells()
        length = span[1] - span[0]
        at = span[0] + int(length * share)
        whole = self.seen.end_ns - self.seen.start_ns if self.seen is not None else length
        new = int(min(max(length * factor, MIN_SPAN_NS), max(whole * 1.1, MIN_SPAN_NS)))
        self.view.span = (at - int(new * share), at - int(new * share) + new)

    def do_pan(self, step: float) -> None:
        """Moves the cursor by cells; at the edge the window moves."""
        lane, cell = self.view.cursor
        to = cell + int(step)
        if 0 <= to < self._cells():
            self.view.cursor = (lane, to)
        else:
            self._shift(0.125 if step > 0 else -0.125)
            self.view.cursor = (lane, min(max(to - int(step * self._cells() // 8), 0), self._cells() - 1))

    def do_page(self, share: float) -> None:
        """Moves the window by a share of its length."""
        self._shift(share)

    def _shift(self, share: float) -> None:
        span = self._span()
        if span is not None:
            by = int((span[1] - span[0]) * share)
            self.view.span = (span[0] + by, span[1] + by)

    def do_follow(self) -> None:
        """Back to the newest steps."""
        self.view.span = None

    def do_exposed(self, direction: float) -> None:
        """Jumps to the next exposed stretch after the cursor, or the one before it."""
        span = self._span()
        if span is None:
            return
        seen = self.seen_timeline
        at = span[0] + (span[1] - span[0]) * (2 * self.view.cursor[1] + 1) // (2 * self._cells())
        rank = self.view.rank
        length = span[1] - span[0]

        def arrive(found: tuple[int, int] | None) -> None:
            if found is None:
                self._say("no exposed communication of 50 µs or more in that direction")
                return
            start, end = found
            # Near enough to see it: between a third and a fifteenth of the screen.
            self._look_at((start + end) // 2, max(min(length, 15 * (end - start)), 3 * (end - start)))
            self._seeks_exposed = True
            self._say(f"exposed for {(end - start) / 1e6:.3f} ms")

        if seen is not None:
            self.watcher.ask(lambda feed: feed.next_exposed(at, rank, backward=direction < 0), arrive)

    def do_scrub(self, step: float) -> None:
        """Chooses the time of one cell of the scrubber."""
        seen = self.seen
        if seen is None or seen.end_ns <= seen.start_ns or not seen.scrubber:
            return
        cells = len(seen.scrubber)
        whole = seen.end_ns - seen.start_ns
        at = cells - 1 if self.view.window is None else (self.view.window[0] - seen.start_ns) * cells // whole
        if self.view.window is not None or step < -1:
            at = min(max(at + int(step), 0), cells - 1)
        self._choose_cell(at, cells)

    def _choose_cell(self, at: int, cells: int) -> None:
        seen = self.seen
        if seen is not None:
            whole = seen.end_ns - seen.start_ns
            start = seen.start_ns - (-at * whole // cells)
            self.view.window = (start, max(start + whole // cells, start + 1))

    def do_edge(self, side: float) -> None:
        """The start of the run, or back to now."""
        seen, span = self.seen, self._span()
        if seen is None:
            return
        if self.view.screen == "timeline":
            length = span[1] - span[0] if span is not None else 0
            self.view.span = None if side > 0 else (seen.start_ns, seen.start_ns + max(length, MIN_SPAN_NS))
        elif side > 0:
            self.view.window = None
        elif seen.scrubber:
            self._choose_cell(0, len(seen.scrubber))

    def do_mark(self) -> None:
        """Marks the time in view."""
        if self.view.screen == "timeline" and self.seen_timeline is not None:
            t_ns = timeline.cursor_time(self.seen_timeline, self.view.cursor[1])
        elif self.seen is not None:
            t_ns = self.view.window[0] if self.view.window is not None else self.seen.end_ns
        else:
            return
        self.view.marks.append(t_ns)
        self._say(f"marked; ' returns here ({len(self.view.marks)} marks)")

    def do_to_mark(self) -> None:
        """Shows the marks in turn on the timeline."""
        if not self.view.marks:
            self._say("no mark yet: m sets one")
            return
        self.view.marks.insert(0, self.view.marks.pop())
        self._look_at(self.view.marks[0])
        self.view.screen = "timeline"

    # ---- commands: what is shown, and how

    def do_rank(self) -> None:
        """The next rank alone; after the last, all."""
        ranks = [row.rank for row in self.seen.ranks] if self.seen is not None else []
        later = [rank for rank in ranks if self.view.rank is None or rank > self.view.rank]
        self.view.rank = min(later, default=None)
        self.view.cursor = (1, self.view.cursor[1])

    def do_all_ranks(self) -> None:
        """All ranks together."""
        self.view.rank = None

    def do_freeze(self) -> None:
        """Stops or resumes taking in what is new."""
        self.view.frozen = not self.view.frozen

    def do_units(self) -> None:
        """Absolute figures, or shares of a peak."""
        self.view.relative = not self.view.relative

    def do_layout(self) -> None:
        """Words and order for training, or for decoding."""
        if self.seen is not None:
            self.view.layout = "train" if self.seen.noun == "token" else "decode"

    def do_theme(self) -> None:
        """The next theme."""
        self.view.theme = THEMES[(THEMES.index(self.view.theme) + 1) % len(THEMES)]
        self._colour()
        self._say(f"theme {self.view.theme}")

    def do_rate(self, factor: float) -> None:
        """Frames a second."""
        self.view.fps = min(max(self.view.fps * factor, 0.5), 30.0)
        self.watcher.interval_s = 1 / self.view.fps
        self._say(f"{self.view.fps:g} frames a second")

    def do_log_pane(self) -> None:
        """Shows or hides the run's output."""
        if self._output is None:
            self._say("the run's output is not ours to show: it goes where the run was started (8 has the log)")
        else:
            self.view.log_pane = not self.view.log_pane

    def do_export(self) -> None:
        """Writes the CSV timelines."""
        export = self._export
        if export is None:
            self._say("leave with q and use: moescope export RECORDING --to csv")
            return
        self._say("writing CSV …")
        self.watcher.ask(lambda _: _attempt(export), self._say)

    def do_screenshot_here(self) -> None:
        """Saves this screen as SVG."""
        try:
            self._say(f"saved {self.save_screenshot()}")
        except OSError as error:
            self._say(f"not saved: {error}")

    def do_command_palette(self) -> None:
        """Every command by name."""
        self.action_command_palette()

    def do_leave(self) -> None:
        """Leaves; the run goes on."""
        self.exit(0)

    def do_interrupt(self) -> None:
        """Interrupts the run that the dashboard belongs to; leaves where there is none."""
        if self._on_interrupt is None or (self.seen is not None and self.seen.state != "live"):
            self.exit(0)
            return
        self._say(self._on_interrupt())

    # ---- prompts

    def do_filter(self) -> None:
        """Asks for a part of a name."""
        self._open_prompt("filter", "part of a name; enter keeps it, esc clears it", self.view.filter)

    def do_go_to(self) -> None:
        """Asks for a time or a rank."""
        self._open_prompt("go", "12.5s, 340ms, 1:02 since the start of the run, or r3 for a rank", "")

    def _open_prompt(self, what: str, hint: str, text: str) -> None:
        self._prompt_for = what
        prompt = self.query_one("#prompt", Input)
        prompt.placeholder, prompt.value, prompt.display = hint, text, True
        self.query_one("#keys").display = False
        self.screen.set_focus(prompt)  # at once: the next key is already its text

    def _close_prompt(self) -> None:
        prompt = self.query_one("#prompt", Input)
        if self._prompt_for == "filter":
            self.view.filter = ""
        prompt.display = False
        self.query_one("#keys").display = True
        self.set_focus(None)
        self.call_after_refresh(self.frame)

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter holds while one types."""
        if self._prompt_for == "filter" and event.input.display:
            self.view.filter = event.value
            self.view.table(self.view.screen).cursor = 0
            self.frame()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keeps the filter, or goes there."""
        if self._prompt_for == "go":
            self._go(event.value.strip())
        self._prompt_for = ""
        self._close_prompt()

    def _go(self, text: str) -> None:
        if self.seen is None or not text:
            return
        if text[:1] in "rR" and text[1:].isdigit():
            ranks = {row.rank for row in self.seen.ranks}
            if int(text[1:]) in ranks:
                self.view.rank = int(text[1:])
            else:
                self._say(f"no rank {text[1:]}: there are {min(ranks, default=0)} to {max(ranks, default=0)}")
            return
        t_ns = timeline.parse_time(text)
        if t_ns is None:
            self._say(f"“{text}” is no time and no rank: write 12.5s, 340ms, 1:02 or r3")
            return
        self._look_at(self.seen.start_ns + t_ns)
        self.view.screen = "timeline"


def _attempt(export: Callable[[], str]) -> str:
    try:
        return export()
    except Exception as error:  # noqa: BLE001  told on the screen
        return f"not written: {error}"


def run(
    feed: Feed,
    *,
    fps: float = 4.0,
    log_path: Path | None = None,
    on_interrupt: Callable[[], str] | None = None,
    export: Callable[[], str] | None = None,
    close_after_s: float | None = None,
    rank: int | None = None,
) -> int:
    """Shows `feed` until the viewer leaves; the exit code.

    fps: frames a second; log_path: the run's output, for a pane; on_interrupt: what ^C does and tells then, by default
    it leaves; export: writes the timelines and says where; close_after_s: leave this long after the run has ended,
    unless a key is pressed; rank: the rank to begin with
    """
    app = MoescopeApp(
        feed,
        fps=fps,
        log_path=log_path,
        on_interrupt=on_interrupt,
        export=export,
        close_after_s=close_after_s,
        rank=rank,
    )
    code = app.run()
    return (app.return_code or 0) if code is None else code
