"""What is planned and not built yet: who asks for it is told so, and what can be done today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from moescope.profiler.errors import UsageProblem

FORMATS: Final[Mapping[str, str]] = {
    "parquet": "write --to csv and convert it: duckdb -c \"COPY (FROM 'DIR/kernels.csv') TO 'kernels.parquet'\"",
    "perfetto": "look at the timeline in `moescope top SOURCE`; a PyTorch trace opens in ui.perfetto.dev as it is",
    "html": "write `moescope summary SOURCE` to a file, or save screens of `moescope top SOURCE` as SVG with p",
}
"""Format of `export` to what can be done today."""


class Format(click.Choice[str]):
    """A format of `export`; one that is planned is told from one that is mistyped."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in FORMATS:
            raise UsageProblem(f"--to {value} is not built yet and comes in a later version; today: {FORMATS[value]}")
        return super().convert(value, param, ctx)
