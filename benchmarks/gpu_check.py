"""`make gpu-check`: the tests that need a GPU and a few figures, in under 8 minutes, from a plain checkout.

PYTHONPATH=src python3 -m benchmarks.gpu_check [--seconds 470]

Needs Python with torch, Triton and pytest, and a Hopper GPU, of which it changes no setting; exit code 3 where there is
none. Every part runs in a process of its own and under a limit, so that one that breaks costs its own figures alone.
Prints a short table last, and keeps everything in benchmarks/results/gpu-<device>.json. Beside it stays a small
recording of the stack's training on this GPU (.zip): in profiler/recorded/ it is what `moescope demo --recorded` shows.
Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_sections import SECTIONS
from benchmarks.process import run
from benchmarks.report import RESULTS, save

ROOT = Path(__file__).parents[1]
RECORDED_STEPS = (24, 12, 6, 3)
"""Steps of the recording that is kept: fewer where it comes out too large."""
LIMIT_S = 150
"""Of one part; compiling its kernels is the most of it."""


@dataclass
class Outcome:
    """figures: as the sections print them; tests: counts; failures: what went wrong, by part"""

    figures: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def _ran(part: str, command: list[str], limit_s: float, outcome: Outcome) -> str:
    """What it printed; that it failed is put down. Processes that it started end with it."""
    if limit_s < 5:
        outcome.failures[part] = "left out: the time was up"
        return ""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "8"}
    try:
        done = run([sys.executable, *command], min(limit_s, LIMIT_S), env=env, cwd=ROOT)
    except subprocess.TimeoutExpired as error:
        outcome.failures[part] = f"took longer than {error.timeout:.0f} s"
        return str(error.stdout or "")
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        outcome.failures[part] = f"exit code {done.returncode}: {last}"
        print(done.stdout[-4000:] + done.stderr[-4000:], file=sys.stderr)
    return done.stdout


def _built(outcome: Outcome) -> None:
    """A plain checkout has no C library: without it nothing is recorded of a GPU's kernels but in windows."""
    from moescope.collectors.native import injection_path
    from moescope.collectors.native.build import build

    if injection_path() is None:
        try:
            build()
        except (OSError, RuntimeError) as error:
            outcome.failures["C library"] = str(error)


def _tested(limit_s: float, outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        settings = ["-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=default", f"--junitxml={results}"]
        _ran("tests", ["-m", "pytest", "-q", *settings, "-m", "gpu", "tests/gpu"], limit_s, outcome)
        if results.exists():
            suites = list(ElementTree.parse(results).iter("testsuite"))
            counts = {
                name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")
            }
            outcome.tests = counts
            if counts["tests"] == counts["skipped"]:
                outcome.failures.setdefault("tests", "none of them ran")


def recorded(path: Path, device: str, limit_s: float, outcome: Outcome) -> None:
    """Records a few training steps on `device` and packs them into `path`, with how it was made beside it."""
    from moescope.profiler.errors import MoescopeError
    from moescope.profiler.recorded.archive import pack

    until = time.monotonic() + limit_s
    for steps in RECORDED_STEPS:
        target = ["-m", "moescope.instrumented_model", "train", f"--device={device}", f"--steps={steps}"]
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "moescope", "run", "-o", f"{folder}/rec", "--", sys.executable, *target]
            _ran("recording", command, until - time.monotonic(), outcome)
            if "recording" in outcome.failures:
                return
            try:
                size = pack(Path(folder, "rec"), path)
            except MoescopeError as error:
                said = str(error)
                continue
            meta = json.loads(Path(folder, "rec/meta.json").read_text())
        about = f"{steps} training steps of the stack's size tiny on {device}, torch {meta['ranks'][0]['torch']}"
        written = f"{about}.\nMade by `make gpu-check`, moescope {meta['moescope']}, {time.strftime('%Y-%m-%d')}.\n"
        path.with_suffix(".SOURCE.txt").write_text(written)
        print(f"{path}: {size:,} bytes; copy it into profiler/recorded/ to ship it", file=sys.stderr)
        return
    outcome.failures["recording"] = said


def _device() -> dict[str, Any]:
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "sms": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def table(outcome: Outcome) -> str:
    """A line a figure that stands in it, then what failed."""
    rows = [(f["section"], f["name"], _number(f["value"]), f["unit"]) for f in outcome.figures if f["short"]]
    counts = outcome.tests
    if counts:
        passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
        rows.insert(0, ("tests", "passed", str(passed), f"of {counts['tests']}"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {value:>{widths[2]}}  {unit}" for a, b, value, unit in rows]
    return "\n".join([*lines, *(f"FAILED {part}: {why}" for part, why in outcome.failures.items())])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(argv: list[str]) -> int:
    """returns: 0, 1 where a part failed, 3 where there is no GPU"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=470, help="that it may take in all (default %(default)s)")
    a = parser.parse_args(argv)
    until = time.monotonic() + a.seconds
    os.environ.pop("TRITON_INTERPRET", None)
    from moescope.instrumented_model.kernels import why_not

    reason = why_not()
    if reason is not None:
        print(f"gpu-check: there is no GPU to check: {reason}; run it on a machine with a Hopper GPU", file=sys.stderr)
        return 3
    device, outcome = _device(), Outcome()
    _built(outcome)
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    parts = {"tests": lambda left: _tested(left, outcome)} | {
        section: lambda left, section=section: outcome.figures.extend(_figures(section, left, outcome))
        for section in SECTIONS
    }
    parts["recording"] = lambda left: recorded(RESULTS / f"{name}.zip", "cuda", left, outcome)
    for part, check in parts.items():
        print(f"{part} …", file=sys.stderr)
        check(until - time.monotonic())
        kept = {"tests": outcome.tests, "figures": outcome.figures, "failures": outcome.failures}
        save(name, "make gpu-check", {"device": device, "evidence": "measured"} | kept)
    print(f"{device['name']}, {device['sms']} SMs, torch {device['torch']}, Triton {device['triton']}")
    print(table(outcome))
    return 1 if outcome.failures else 0


def _figures(section: str, limit_s: float, outcome: Outcome) -> list[dict[str, Any]]:
    said = _ran(section, ["-m", "benchmarks.gpu_sections", section], limit_s, outcome)
    return figures_in(said)


def figures_in(said: str) -> list[dict[str, Any]]:
    """Those that a section had printed, the last of them perhaps in part."""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
