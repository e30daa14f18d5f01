"""What the machine of a run can do at most: as measured here, as published, or as given."""

from __future__ import annotations

import argparse

import torch

from moescope.collectors.calibrate import load_peaks
from moescope.instrumented_model.inference.roofline import Peaks, parse_peaks

HERE = "here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--peaks"""
    parser.add_argument(
        "--peaks",
        default=HERE,
        help="roofline to hold steps against: here (by `moescope calibrate`), h100, h200, h800, or such as "
        "1979TFLOPS:4.8TB/s (default %(default)s)",
    )


def peaks(text: str, device: torch.device) -> Peaks | None:
    """None for `here` where nothing was measured of `device`. Raises ConfigError for what is not understood."""
    if text != HERE:
        return parse_peaks(text)
    measured = load_peaks() if device.type == "cpu" else None  # `moescope calibrate` measures the CPU
    if measured is None or not {"f32", "copy_bytes_per_s"} <= measured.keys():
        return None
    one = torch.get_num_threads() == 1
    flops_per_s = measured["f32"]["flops_per_s_one_thread" if one else "flops_per_s"]
    copied = measured["copy_bytes_per_s"]
    # The CPU backend keeps its weights dequantised, in FP32, and multiplies them so.
    return Peaks(flops_per_s, copied["one_thread" if one else "value"], 4, 2, copied["source"])
