"""Lines of the text summary about GPUs and links by their counters."""

from __future__ import annotations

from typing import Any, Final

GPUS, LINKS = 8, 4
_WORTH_A_WORD: Final = 0.005


def device_notes(summary: dict[str, Any]) -> list[str]:
    """A line a GPU, and the links that are fullest."""
    gpus = summary.get("gpus") or []
    several = len({gpu["host"] for gpu in gpus}) > 1
    lines = [_gpu_line(gpu, several) for gpu in gpus[:GPUS]]
    if len(gpus) > GPUS:
        lines.append(f"… {len(gpus) - GPUS} more GPUs: see --json.")
    return lines + _link_lines(summary.get("links") or [])


def _gpu_line(gpu: dict[str, Any], several: bool) -> str:
    who = f"{gpu['host']} {gpu['device']}" if several else gpu["device"]
    tensor = gpu["tensor_active"]
    if tensor is None:
        parts = [f"tensor cores by counter –, {gpu['tensor_active_reason']}"]
        if gpu["gpu_busy"] is not None:
            parts.append(f"any kernel {gpu['gpu_busy']:.1%} of the time")
    else:
        pipes = [
            f"{name[:4].upper()} {gpu[name]:.1%}"
            for name in ("hmma_active", "imma_active", "dmma_active", "dfma_active")
            if gpu[name]
        ]
        parts = [f"tensor cores {tensor:.1%} of the time by counter" + (f" ({', '.join(pipes)})" if pipes else "")]
    if gpu["fp8_ops_per_s"]:
        parts.append(f"{gpu['fp8_ops_per_s'] / 1e12:.0f} TFLOP/s of FP8 by counter")
    for key, name in (("sm_active", "SMs busy"), ("occupancy", "occupancy"), ("dram_active", "DRAM bandwidth")):
        if gpu[key] is not None:
            parts.append(f"{name} {gpu[key]:.1%}")
    if gpu["power_w"] is not None:
        parts.append(f"{gpu['power_w']:.0f} W")
    if gpu["clock_hz"] is not None:
        parts.append(f"{gpu['clock_hz'] / 1e6:.0f} MHz")
    text = f"GPU {who}, all of the run: {', '.join(parts)} [measured]."
    if gpu["throttled_share"]:
        reasons = ", ".join(f"{word} {share:.0%}" for word, share in gpu["throttle"].items())
        text += f" WARNING: its clock was held down in {gpu['throttled_share']:.0%} of the samples ({reasons})."
    if gpu["ecc_uncorrected"]:
        text += f" WARNING: {gpu['ecc_uncorrected']} ECC errors that were not corrected."
    return text


def _link_lines(links: list[dict[str, Any]]) -> list[str]:
    """Links by the share of their line rate, the fuller direction."""

    def fullest(link: dict[str, Any]) -> float:
        return max(link["tx_peak_share"] or 0.0, link["rx_peak_share"] or 0.0)

    full = sorted((link for link in links if fullest(link) >= _WORTH_A_WORD), key=lambda link: -fullest(link))
    if not full:
        return []
    told = [
        f"{link['link']} {link['tx_bytes_per_s'] / 1e9:.2f} GB/s out ({link['tx_peak_share']:.1%}), "
        f"{link['rx_bytes_per_s'] / 1e9:.2f} in ({link['rx_peak_share']:.1%})"
        for link in full[:LINKS]
    ]
    more = f"; {len(full) - LINKS} more" if len(full) > LINKS else ""
    return [f"Links, share of their line rate over all of the run: {'; '.join(told)}{more} [derived]."]
