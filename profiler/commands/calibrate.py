"""`moescope calibrate`: measures this machine's peaks."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from moescope.profiler.printable import printable


def _gpu_line(gpu: dict[str, Any]) -> str:
    """One GPU; what it could not do is told with the reason."""
    parts = []
    for dtype in ("fp8", "bf16"):
        row = gpu[dtype]
        told = f"{row['flops_per_s'] / 1e12:.0f} TFLOP/s" if row else f"– ({gpu[f'{dtype}_reason']})"
        parts.append(f"{dtype} {told}")
    parts.append(f"copy {gpu['copy_bytes_per_s']['value'] / 1e9:.0f} GB/s read and written")
    parts.append(f"a copy of {gpu['small_copy_s']['bytes']} bytes {gpu['small_copy_s']['value'] * 1e6:.1f} µs")
    return f"{gpu['name']}: {', '.join(parts)}  [measured]"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Measure this machine's peaks: matrix products by type, and memory bandwidth; of its GPUs, too.

    Recordings made from then on show use as a share of them. Takes a few seconds; best on a machine that does nothing
    else.
    """
    from moescope.collectors.calibrate import CalibrationError, calibrate, peaks_file
    from moescope.profiler.commands.following import say_next

    try:
        peaks = calibrate()
    except CalibrationError as error:
        click.echo(f"moescope: {error}", err=True)
        sys.exit(3)
    if as_json:
        click.echo(json.dumps(peaks))
        return
    for dtype in ("bf16", "f32"):
        row = peaks[dtype]
        all_cores, one = row["flops_per_s"] / 1e9, row["flops_per_s_one_thread"] / 1e9
        click.echo(f"{dtype:5} {all_cores:8.1f} GFLOP/s on {row['threads']} threads, {one:.1f} on one  [measured]")
    copy = peaks["copy_bytes_per_s"]
    click.echo(
        f"copy  {copy['value'] / 1e9:8.1f} GB/s read and written, {copy['one_thread'] / 1e9:.1f} on one  [measured]"
    )
    for gpu in peaks["gpus"] or ():
        click.echo(printable(_gpu_line(gpu)))
    disturbed = any(peaks[dtype]["disturbed"] for dtype in ("bf16", "f32"))
    if disturbed:
        click.echo(
            "moescope: all threads together reached less than one alone: other work ran meanwhile. Call `moescope "
            "calibrate` again on an idle machine; until then shares of peak may be too high.",
            err=True,
        )
    click.echo(f"moescope: kept in {peaks_file()}", err=True)
    say_next("moescope calibrate" if disturbed else "moescope run -- python train.py")
