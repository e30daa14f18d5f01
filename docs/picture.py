"""Draws docs/dashboard.png: the first screen over a recording of the demo. `make picture`

python docs/picture.py [RECORDING]
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cairosvg

from moescope.profiler.commands.demo import target_command
from moescope.profiler.live.feed import LiveFeed
from moescope.profiler.source import open_source
from moescope.tui.app import MoescopeApp

SIZE = (120, 40)
CELL = 12.2
FONT = "DejaVu Sans Mono"


def record(folder: Path) -> Path:
    """A recording of the demo's training."""
    command = [
        sys.executable,
        "-m",
        "moescope",
        "run",
        "-o",
        str(folder),
        "--",
        *target_command("train", 2, 60, "overlapped"),
    ]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return folder


def draw(recording: Path) -> str:
    """The first screen as SVG."""
    app = MoescopeApp(LiveFeed(open_source([recording])))

    async def session() -> str:
        async with app.run_test(size=SIZE) as pilot:
            while app.seen is None:
                await pilot.pause(0.05)
            app.frame()
            await pilot.pause()
            return app.export_screenshot(title="moescope top")

    return asyncio.run(session())


def every_cell_in_its_place(svg: str) -> str:
    """A font with block characters, each placed by itself: renderers disagree on `textLength`."""
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONT).replace("font-family: arial", f"font-family: {FONT}")

    def placed(match: re.Match[str]) -> str:
        attributes, text = match[1], html.unescape(match[2]).replace("\xa0", " ")
        start = re.search(r'\bx="([\d.]+)"', attributes)
        if start is None or "textLength" not in attributes:
            return match[0]
        at = [(float(start[1]) + i * CELL, c) for i, c in enumerate(text) if c != " "]
        if not at:
            return ""
        attributes = re.sub(r'\s*textLength="[^"]*"', "", attributes)
        xs = " ".join(f"{x:.1f}" for x, _ in at)
        attributes = re.sub(r'\bx="[\d.]+"', f'x="{xs}"', attributes)
        return f"<text{attributes}>{html.escape(''.join(c for _, c in at))}</text>"

    return re.sub(r"<text([^>]*)>([^<]*)</text>", placed, svg)


def main() -> None:
    """Draws the picture."""
    with tempfile.TemporaryDirectory() as name:
        recording = Path(sys.argv[1]) if len(sys.argv) > 1 else record(Path(name) / "demo")
        svg = every_cell_in_its_place(draw(recording))
    target = Path(__file__).with_name("dashboard.png")
    cairosvg.svg2png(bytestring=svg.encode(), write_to=str(target), output_width=1482)
    print(f"drew {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
