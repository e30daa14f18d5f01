"""The dashboard: a frame at a time, from the newest answer of the feed; keys are commands of the one table."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.events import Click, Event, Key, MouseScrollDown, MouseScrollUp, Resize
from textual.screen import Screen
from textual.widgets import Input

from moescope.profiler.feed import Feed
from moescope.profiler.snapshot import Snapshot, Timeline, TimelineView, View
from moescope.tui import body, frame
from moescope.tui.actions import act
from moescope.tui.commands import COMMANDS, find
from moescope.tui.draw import box, message
from moescope.tui.ending import Ending
from moescope.tui.output import OutputTail
from moescope.tui.parts import Dashboard, Painted
from moescope.tui.prompt import Prompt
from moescope.tui.screens import log, timeline
from moescope.tui.state import ViewState
from moescope.tui.theme import background, foreground
from moescope.tui.watcher import Watcher, Wish

NOTICE_S = 4.0
SMALLEST = (40, 12)


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
        self.output = OutputTail(log_path) if log_path is not None else None
        self.view.log_pane = self.output is not None
        self.on_interrupt = on_interrupt
        self.write_export = export
        self.prompt = Prompt(self)
        self.seeks_exposed = False
        self._drawn_from: tuple[Snapshot | None, Timeline | None] = None, None
        self._drawn: object = None
        self.watcher = Watcher(feed, Wish(View(rank=rank)), 1 / fps)
        self._ending = Ending(close_after_s)
        self._takes_keys = False
        self._notice_until_s = 0.0
        self._places: list[tuple[int, int, str]] = []

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
        self.colour()
        self._again()

    def on_unmount(self) -> None:
        """Ends the feed's thread."""
        self.watcher.stop()

    def _again(self) -> None:
        self.set_timer(1 / self.view.fps, self._again)
        self.frame()

    def colour(self) -> None:
        """Sets the ground under everything to the theme's."""
        for node in (self.screen, self.query_one("#prompt")):
            node.styles.background = background(self.view.theme)
            node.styles.color = foreground(self.view.theme)

    def on_resize(self, _: Resize) -> None:
        """Draws at once: an old picture in a new size is torn."""
        self.call_after_refresh(self.frame)

    def say(self, text: str) -> None:
        """Tells something in place of the headline, for a while."""
        self.view.notice = text
        self._notice_until_s = time.monotonic() + NOTICE_S

    # ---- the timeline's window, for the commands that move it

    def body_size(self) -> tuple[int, int]:
        """Width and height of the middle, cells."""
        size = self.query_one("#body", Painted).size
        return size.width, size.height

    def cells(self) -> int:
        """Cells of time on the timeline."""
        return timeline.lane_cells(self.body_size()[0])

    def span(self) -> tuple[int, int] | None:
        """The window that the timeline shows."""
        if self.view.span is not None:
            return self.view.span
        seen = self.seen_timeline
        return None if seen is None or seen.end_ns <= seen.start_ns else (seen.start_ns, seen.end_ns)

    def look_at(self, t_ns: int, length_ns: int | None = None) -> None:
        """Has the timeline show a time, a third of the way in."""
        now = self.span()
        length_ns = length_ns or (now[1] - now[0] if now is not None else 50_000_000)
        self.view.span = (t_ns - length_ns // 3, t_ns - length_ns // 3 + length_ns)
        self.view.cursor = (self.view.cursor[0], self.cells() // 3)

    # ---- a frame

    def frame(self) -> None:
        """Takes the newest answer and draws what changed."""
        if not self.is_running or len(self.screen_stack) > 1:
            return
        self.watcher.deliver()
        self.watcher.want(self.wish())
        answer = self.watcher.latest
        if answer is not None:
            self.seen = answer.snapshot
            self.seen_timeline = answer.timeline or self.seen_timeline
            self._seek_exposed(answer.timeline)
        if self.watcher.problem:
            self.say(self.watcher.problem)
        elif self.view.notice and time.monotonic() > self._notice_until_s:
            self.view.notice = ""
        self._leave_when_over()
        self._draw()

    def wish(self) -> Wish:
        """What is to be drawn now."""
        width, height = self.size
        body_width, body_height = self.body_size()
        asked = None
        if self.view.cursor[1] < 0:
            self.view.cursor = (self.view.cursor[0], timeline.lane_cells(body_width or width) // 2)
        if self.view.screen in ("timeline", "units"):
            asked = TimelineView(
                rank=self.view.rank,
                window=self.view.span if self.view.screen == "timeline" else self.view.window,
                cells=timeline.lane_cells(body_width or width),
                max_lanes=max(timeline.most_lanes(body_height or height), 64),
                cursor=self.view.cursor,
                filter=self.view.filter if self.view.screen == "timeline" else "",
            )
        look = View(
            self.view.rank, self.view.window, frame.scrubber_cells(width), self.view.stage, self.view.other_peaks
        )
        return Wish(look, asked, self.view.frozen)

    def _seek_exposed(self, found: Timeline | None) -> None:
        """Puts the cursor on the lane that one has jumped to, once its window has come."""
        if not self.seeks_exposed or found is None or (found.start_ns, found.end_ns) != self.view.span:
            return
        self.seeks_exposed = False
        lane = timeline.lane_with(found, "exposed", self.view.cursor[1])
        if lane is not None:
            self.view.cursor = (lane, self.view.cursor[1])

    def _leave_when_over(self) -> None:
        if self.seen is None:
            return
        leaves, told = self._ending.look(self.seen.state)
        if leaves:
            self.exit(0)
        elif told:
            self.say(told)

    def _draw(self) -> None:
        """Paints, unless everything that the picture is made of is as it was: new data comes less often than frames."""
        middle = self.query_one("#body", Painted)
        output = self.output.read() if self.output is not None else None
        made_of = self.size, middle.size, output, self.view
        same_data = self.seen is self._drawn_from[0] and self.seen_timeline is self._drawn_from[1]
        if same_data and made_of == self._drawn:
            return
        self._paint(middle)
        # Painting settles cursors in the view, and the size of the middle.
        self._drawn_from = self.seen, self.seen_timeline
        self._drawn = self.size, middle.size, output, deepcopy(self.view)

    def _paint(self, middle: Painted) -> None:
        width, height = self.size
        theme = self.view.theme
        if width < SMALLEST[0] or height < SMALLEST[1]:
            middle.show(frame.too_small(middle.size.width, middle.size.height), theme)
            for name in ("header", "headline", "tabs", "scrubber", "keys"):
                self.query_one(f"#{name}", Painted).show([], theme)
            return
        pane = self.query_one("#pane", Painted)
        pane_height = min(8, height // 5) if self.view.log_pane and height >= 24 and self.view.screen != "log" else 0
        pane.display = pane_height > 0
        pane.styles.height = pane_height
        if self.seen is None:
            middle.show(box("moescope", "", message("reading the recording …", width - 4), *middle.size), theme)
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
        middle.show(body.paint(self.seen, self.view, *middle.size, self.seen_timeline, self.output), theme)
        if pane_height and self.output is not None:
            pane.show(log.output_pane(self.output.read(), width, pane_height), theme)

    # ---- keys and mouse

    async def on_event(self, event: Event) -> None:
        """Takes keys as they arrive: on the way by the screen, one typed ahead would overtake the `/` before it."""
        ours = self._takes_keys and len(self.screen_stack) == 1
        taken = ours and isinstance(event, Key) and not event.is_forwarded and self._take_key(event)
        if not taken:
            await super().on_event(event)

    def _take_key(self, event: Key) -> bool:
        """Runs the command of the key, unless something else has the keyboard; whether there was one, or it waits."""
        if self.prompt.keeps_back(event):
            return True
        if self.focused is not None:
            return False
        self._ending.touch()
        if event.key != "q" and self.seen is not None and self.seen.state != "live" and self._ending.call_off():
            self.view.notice = ""
        command = find(event.key, self.view.screen)
        if command is not None:
            self.run_command(command.action)
        return command is not None

    def run_command(self, action: str) -> None:
        """Runs a command of the table and draws what it changed."""
        self._ending.touch()
        act(self, action)
        if self.is_running:
            self.frame()

    async def on_key(self, event: Key) -> None:
        """Keys that the prompt has no use for."""
        if len(self.screen_stack) > 1 or self.focused is None:
            return
        if event.key == "escape":
            event.stop()
            await self.prompt.give_up()
        elif event.key == "ctrl+c":
            self.run_command("interrupt")

    def on_input_changed(self, event: Input.Changed) -> None:
        """What stands in the prompt."""
        self.prompt.typed(event.value)

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was asked for."""
        await self.prompt.keep(event.value)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every command that works here."""
        for command in COMMANDS:
            if command.works_on(self.view.screen) and command.action != "command_palette":

                def run_it(action: str = command.action) -> None:
                    self.call_after_refresh(self.run_command, action)

                yield SystemCommand(command.name, f"key {' or '.join(command.keys)}", run_it)

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
