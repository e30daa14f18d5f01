"""What the model tells is in the recording, and equals what it did, as counted beside it without moescope."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from moescope.instrumented_model.config import size
from tests.collectors.reading import rows

STEPS, RANKS = 2, 2
LAUNCH = Path(__file__).parents[1] / "launch.py"
C = size("tiny")
TOKENS = C.micro_batches * C.sequences * C.sequence_length
"""Of one rank in one step."""

# Runs the model's own main, and counts what really goes out of each all-to-all from its tensors, and which tokens have
# an expert on the other rank from what the router chose.
TARGET = """
import json, os, sys
import torch
from moescope.instrumented_model.__main__ import main
from moescope.instrumented_model.layers import routing
sent, away, rank = [], [], int(os.environ["RANK"])
all_to_all, select = torch.distributed.all_to_all_single, routing.select
def counted(output, source, incoming=None, outgoing=None, **options):
    row_bytes = source.element_size() * (source.numel() // source.shape[0] if source.shape[0] else 0)
    parts = outgoing if outgoing is not None else [source.shape[0] // 2] * 2
    sent.append([part * row_bytes for part in parts])
    return all_to_all(output, source, incoming, outgoing, **options)
def chosen(s, *rest):
    experts = select(s, *rest)
    local = s.shape[1] // 2
    away.append(int(((experts < local) == (rank == 1)).any(1).sum()))
    return experts
torch.distributed.all_to_all_single, routing.select = counted, chosen
code = main(sys.argv[2:])
with open(os.path.join(sys.argv[1], f"counted-{rank}.json"), "w") as file:
    json.dump({"sent": sent, "away": away}, file)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on two ranks: `rec`, and `counted-<rank>.json`.

    sent: bytes to each rank, a row a call; away: tokens of each layer that the other rank is to see
    """
    folder = tmp_path_factory.mktemp("emissions")
    (folder / "target.py").write_text(TARGET)
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    model = [folder / "target.py", folder, "train", f"--steps={STEPS}", "--schedule=overlapped"]
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", *launcher, *map(str, model)]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=120)
    return folder


def counted(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"counted-{rank}.json").read_text())
    return found


def total(table: list[dict[str, Any]], column: str, *by: str) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for row in table:
        found[tuple(row[name] for name in by)] += row[column]
    return found


def test_each_layer_routes_every_token_to_its_top_k_experts(folder: Path) -> None:
    experts = rows(folder / "rec", "experts")
    expected = {
        (rank, step, layer): TOKENS * C.top_k
        for rank in range(RANKS)
        for step in range(STEPS)
        for layer in range(C.layers)
    }
    assert total(experts, "tokens", "rank", "step", "layer") == expected
    assert len(experts) == len(expected) * C.experts
    assert {row["stage"] for row in experts} == {"train"}


def test_transfers_carry_the_bytes_that_were_sent(folder: Path) -> None:
    expected: Counter[tuple[Any, ...]] = Counter()
    calls = 0
    for rank in range(RANKS):
        for parts in counted(folder, rank)["sent"]:
            calls += 1
            for peer, size_bytes in enumerate(parts):
                if peer != rank and size_bytes:
                    expected[(rank, peer)] += size_bytes
    assert sum(expected.values()) > 100_000
    transfers = [row for row in rows(folder / "rec", "transfers") if row["op"] == "all_to_all"]
    assert total(transfers, "bytes", "src", "dst") == expected
    collectives = [row for row in rows(folder / "rec", "collectives") if row["op"] == "all_to_all"]
    assert len(collectives) == calls
    assert sum(row["sent_bytes"] for row in collectives) == sum(expected.values())
    assert sum(row["received_bytes"] for row in collectives) == sum(expected.values())


def test_a_token_is_dispatched_once_to_a_rank_whose_experts_it_has_however_many(folder: Path) -> None:
    phases = {(row["rank"], row["id"]): row["name"] for row in rows(folder / "rec", "phases")}
    # E4M3 values, an FP32 scale for each tile of 128, an FP32 gate and an int32 number for each chosen expert.
    row_bytes = C.d + 4 * -(-C.d // 128) + 8 * C.top_k
    numbers_bytes = 8  # how many rows will come, int64
    calls = STEPS * C.layers * C.micro_batches
    for rank in range(RANKS):
        away = counted(folder, rank)["away"]
        assert len(away) == calls
        dispatched = [
            row["sent_bytes"]
            for row in rows(folder / "rec", "collectives")
            if row["rank"] == rank and phases.get((rank, row["phase_id"])) == "dispatch(F)"
        ]
        assert len(dispatched) == 2 * calls
        assert sum(dispatched) == sum(away) * row_bytes + calls * numbers_bytes


def test_work_is_the_products_of_the_model(folder: Path) -> None:
    phases = {(row["rank"], row["id"]): row["name"] for row in rows(folder / "rec", "phases")}
    flops: dict[str, int] = defaultdict(int)
    for row in rows(folder / "rec", "work"):
        name = phases[(row["rank"], row["phase_id"])]
        flops[f"{name} {row['dtype']}"] += row["flops"]
        assert row["bytes"] > 0
    # Gate and up in one product [d, 2 d_expert], then down [d_expert, d]; for the shared expert and top_k others.
    assignments = STEPS * C.layers * RANKS * TOKENS * (C.top_k + C.shared_experts)
    forward = assignments * 2 * (C.d * 2 * C.d_expert + C.d_expert * C.d)
    assert flops["mlp(F) fp8_e4m3"] == forward
    backward = {name: count for name, count in flops.items() if name.startswith("mlp(") and "(F)" not in name}
    assert sum(backward.values()) == 2 * forward, backward
    head = STEPS * RANKS * TOKENS * 2 * C.d * C.vocabulary
    assert flops["head(F) bf16"] == head


def test_all_quantisations_of_the_first_step_are_counted_in_every_element(folder: Path) -> None:
    told = rows(folder / "rec", "quantisation")
    found = [row for row in told if row["step"] == 0]
    assert len(told) - len(found) <= RANKS * (STEPS - 1)  # later it is one's turn, if any's
    assert {row["format"] for row in found} == {"e4m3 1x128", "e4m3 128x1", "e4m3 128x128", "e5m6 1x128"}
    assert {row["tensor"] for row in found if row["format"] == "e5m6 1x128"} == {"attn.o.x"}
    powers_of_2 = {"attn.o.x", "mlp.up.x", "mlp.down.dy", "dispatch.x", "combine.dy"}
    # What came over the wire is multiplied as it came: quantised at its source, and in 128x1 tiles for Wgrad alone.
    for tensor in ("mlp.up.x", "mlp.down.dy"):
        assert {row["format"] for row in found if row["tensor"] == tensor} == {"e4m3 128x1"}
    for row in found:
        assert 0 <= row["scale_min"] <= row["scale_max"]
        largest = row["amax"] / (65024 if row["format"].startswith("e5m6") else 448)
        if row["tensor"] in powers_of_2:
            assert math.frexp(row["scale_max"])[0] == 0.5
            assert row["scale_max"] == 1.0 or largest * 0.99999 <= row["scale_max"] < 2 * largest
        else:
            # A block of zeros is given the scale 1.
            assert row["scale_max"] == 1.0 or row["scale_max"] == pytest.approx(largest, rel=1e-5), row
        assert 0 <= row["flushed"] <= row["elements"]
        assert row["nonfinite"] == 0
    routed = sum(row["tokens"] for row in rows(folder / "rec", "experts") if row["step"] == 0)
    elements = total(found, "elements", "tensor", "format")
    assert elements[("mlp.up.x", "e4m3 128x1")] == routed * C.d
    assert elements[("mlp.down.ab", "e4m3 1x128")] == routed * 2 * C.d_expert
    for sent in ("dispatch.x", "combine.dy"):
        assert elements[(sent, "e4m3 1x128")] == RANKS * TOKENS * C.layers * C.d


def test_the_log_says_which_backend_multiplies_and_why_no_other(folder: Path) -> None:
    lines = [row["message"] for row in rows(folder / "rec", "log") if row["source"] == "gemm"]
    assert len(lines) == RANKS
    assert all(line.startswith("cpu: ") and "not deepgemm: " in line for line in lines)
    devices = [row["message"] for row in rows(folder / "rec", "log") if row["source"] == "device"]
    assert len(devices) == RANKS
    assert all(line.startswith("cpu, 1 thread(s) a rank, gloo all-to-all, one hop") for line in devices)


ALONE_TARGET = """
import sys
from moescope.instrumented_model.__main__ import main
code = main(["train", "--steps=2", "--set", "mtp_depth=2", "--schedule=interleaved"])
sys.exit(code or main(["decode", "--steps=3", "--peaks=2TFLOPS:4GB/s", "--schedule=serial"]))
"""
DEPTH = 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of one rank that trains with multi-token prediction, then decodes without."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "target.py").write_text(ALONE_TARGET)
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", sys.executable, "target.py"]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=120)
    return folder / "rec"


def test_layers_of_multi_token_prediction_tell_their_phases_experts_and_work_like_all_others(alone: Path) -> None:
    phases = {row["id"]: row for row in rows(alone, "phases") if row["stage"] == "train"}
    found = Counter((row["name"], row["layer"], row["direction"]) for row in phases.values())
    passes = STEPS * C.micro_batches
    for k in range(1, DEPTH + 1):
        layer = C.layers + k - 1
        for chunk in ("attn", "mlp", "mtp"):
            for direction in "FB":
                assert found[(f"{chunk}({direction})", layer, direction)] == passes, (chunk, layer)
        assert found[("mlp(W)", layer, "W")] == passes
        assert found[("head(F)", layer, "F")] == passes
    # Module k predicts k tokens further, so it sees k positions less of each sequence.
    experts = total([row for row in rows(alone, "experts") if row["stage"] == "train"], "tokens", "step", "layer")
    assert experts == {
        (step, layer): C.micro_batches * C.sequences * (C.sequence_length - max(layer - C.layers + 1, 0)) * C.top_k
        for step in range(STEPS)
        for layer in range(C.layers + DEPTH)
    }
    merged: Counter[int] = Counter()
    for row in rows(alone, "work"):
        phase = phases.get(row["phase_id"])
        if phase is not None and phase["name"] == "mtp(F)":
            assert row["dtype"] == "fp8_e4m3"
            merged[phase["layer"]] += row["flops"]
    tokens = passes * C.sequences
    assert merged == {C.layers + k - 1: tokens * (C.sequence_length - k) * 2 * 2 * C.d * C.d for k in (1, 2)}
    assert {row["layer"] for row in rows(alone, "experts") if row["stage"] == "decode"} == set(range(C.layers))


def test_a_decode_step_tells_its_roofline_terms_each_with_its_unit_and_evidence(alone: Path) -> None:
    gauges = {(row["step"], row["name"]): row for row in rows(alone, "gauges")}
    steps = {row["step"]: row for row in rows(alone, "steps") if row["stage"] == "decode"}
    assert {step for step, _ in gauges} == set(steps) == {0, 1, 2}
    assert {(row["rank"], row["stage"]) for row in gauges.values()} == {(0, "decode")}
    units = {row["name"]: (row["unit"], row["evidence"]) for row in gauges.values()}
    assert units == {
        "tokens_per_expert": ("tokens", "derived"),
        "expert_weight_bytes": ("bytes", "modelled"),
        "other_weight_bytes": ("bytes", "modelled"),
        "cache_bytes": ("bytes", "modelled"),
        "flops": ("FLOP", "modelled"),
        "roofline_time": ("s", "modelled"),
        "roofline_achieved": ("share", "modelled"),
    }
    for step, ran in steps.items():
        value = {name: row["value"] for (s, name), row in gauges.items() if s == step}
        # The latent and the rotary key of every position so far, in BF16, for each layer and sequence.
        positions = C.sequence_length + step + 1
        sequences = C.micro_batches * C.decode_sequences
        assert value["cache_bytes"] == C.layers * sequences * positions * (C.d_latent + C.d_rope) * 2
        assert value["expert_weight_bytes"] % (3 * C.d * C.d_expert) == 0
        read = value["expert_weight_bytes"] + value["other_weight_bytes"] + value["cache_bytes"]
        # Every part of so few tokens is bound by memory on such a machine.
        assert value["flops"] / 2e12 < value["roofline_time"] == pytest.approx(read / 4e9)
        # The step that the share is of holds the one recorded, which ends before its logits are gathered.
        assert 0 < value["roofline_achieved"] <= value["roofline_time"] / (ran["dur_ns"] / 1e9)
    assert any(
        "2e+12 FLOP/s, 4e+09 B/s (given)" in row["message"] for row in rows(alone, "log") if row["source"] == "roofline"
    )


# Four ranks as two nodes of two: bytes to each rank, by the hop's group, counted beside the recording.
HOPS_TARGET = """
import json, os, sys
import torch.distributed as dist
from moescope.instrumented_model.__main__ import main
sent, rank = [], int(os.environ["RANK"])
all_to_all = dist.all_to_all_single
def counted(output, source, incoming=None, outgoing=None, group=None):
    members = dist.get_process_group_ranks(group)
    hop = "internode" if members[1] - members[0] == 2 else "intranode"
    row_bytes = source.element_size() * (source.numel() // source.shape[0] if source.shape[0] else 0)
    for member, part in zip(members, outgoing or [source.shape[0] // 2] * 2):
        sent.append([rank, member, hop, part * row_bytes])
    return all_to_all(output, source, incoming, outgoing, group=group)
dist.all_to_all_single = counted
code = main(sys.argv[2:])
with open(os.path.join(sys.argv[1], f"counted-{rank}.json"), "w") as file:
    json.dump(sent, file)
sys.exit(code)
"""


def test_bytes_of_two_hops_are_told_once_by_source_destination_and_hop(tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(HOPS_TARGET)
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    launcher = [sys.executable, str(LAUNCH), "4"]
    model = [tmp_path / "target.py", tmp_path, "train", "--steps=1", "--nodes=2"]
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", *launcher, *map(str, model)]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)
    expected: Counter[tuple[Any, ...]] = Counter()
    for rank in range(4):
        for src, dst, hop, size_bytes in json.loads((tmp_path / f"counted-{rank}.json").read_text()):
            if src != dst and size_bytes:
                expected[(src, dst, hop)] += size_bytes
    inter = {(0, 2), (2, 0), (1, 3), (3, 1)}
    intra = {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert set(expected) == {(*pair, "internode") for pair in inter} | {(*pair, "intranode") for pair in intra}
    assert total(rows(tmp_path / "rec", "transfers"), "bytes", "src", "dst", "hop") == expected
    waits = [row for row in rows(tmp_path / "rec", "kernels") if row["name"].startswith("emulated_link")]
    assert {row["name"].rpartition(":")[2] for row in waits} == {"internode", "intranode"}
    assert {row["evidence"] for row in waits} == {"modelled"}
