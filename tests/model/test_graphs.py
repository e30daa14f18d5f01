"""Decode steps in a graph: they ask the host for nothing, and replayed they give what steps one by one do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moescope.collectors import emit  # noqa: E402
from moescope.instrumented_model.__main__ import main  # noqa: E402
from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.gemm import products  # noqa: E402
from moescope.instrumented_model.gemm.backends.cpu import Cpu  # noqa: E402
from moescope.instrumented_model.inference import steps  # noqa: E402
from moescope.instrumented_model.inference.graphs import GraphedDecode, why_not  # noqa: E402
from moescope.instrumented_model.inference.steps import CACHES, CacheKind, InferenceStep, decode  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.parallel.virtual import VirtualExchange  # noqa: E402
from tests.model.other_device import DEVICE, OtherDevice  # noqa: E402
from tests.model.recorded_graph import NotCapturable, RecordedGraph  # noqa: E402

C = replace(
    size("tiny"), name="test", layers=3, dense_layers=1, d=96, heads=2, d_latent=32, d_query_latent=48, d_dense=64,
    d_expert=40, sequence_length=8, decode_sequences=3,
)  # fmt: skip


class CountsStay(Cpu):
    """Takes rows on the device, by the group of each row: nothing is asked for."""

    name = "counts stay"
    counts_stay = True

    def grouped_m(self, a: Quantised, b: Quantised, rows: Any, interval: int | None, out_dtype: Any) -> torch.Tensor:
        if not isinstance(rows, torch.Tensor):
            return super().grouped_m(a, b, rows, interval, out_dtype)
        left, right = dequantise(a), b.dequantised
        group = torch.searchsorted(rows.cumsum(0), torch.arange(len(left), device=rows.device), right=True)
        return torch.bmm(right[group], left[:, :, None])[:, :, 0].to(out_dtype)


@pytest.fixture(autouse=True)
def _backend() -> Any:
    before = products.active()
    products.use(CountsStay())
    yield
    products.use(before)


def _decoded(
    device: torch.device | str, cache: CacheKind, graph: RecordedGraph | None, count: int = 5
) -> list[InferenceStep]:
    exchange = VirtualExchange(C, 2)
    model = Model(C, seed=2).to(device)
    graphed = None if graph is None else partial(GraphedDecode, model, exchange, "overlapped", capture=graph)
    return list(decode(model, exchange, steps=count, schedule="overlapped", seed=1, cache=cache, graphed=graphed))


@pytest.mark.parametrize("cache", CACHES)
def test_replayed_steps_give_what_steps_one_by_one_do(monkeypatch: pytest.MonkeyPatch, cache: CacheKind) -> None:
    monkeypatch.setattr(steps, "DECODE_WINDOW", 3)  # the prompt starts over within a few steps
    want = _decoded("cpu", cache, None)
    graph = RecordedGraph()
    with OtherDevice():
        got = [replace(s, logits=tuple(t.cpu() for t in s.logits)) for s in _decoded(DEVICE, cache, graph)]
    assert graph.replays == len(got) == 5
    assert graph.operations > 200
    for a, b in zip(got, want, strict=True):
        assert (a.step, a.tokens, a.ends, a.served) == (b.step, b.tokens, b.ends, b.served)
        for x, y in zip(a.logits, b.logits, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert len({s.logits[0].sum().item() for s in got}) > 1


def test_new_weights_are_captured_anew() -> None:
    found = []
    for graph in (None, RecordedGraph()):
        with OtherDevice():
            exchange, model = VirtualExchange(C, 2), Model(C, seed=2).to("cpu" if graph is None else DEVICE)
            graphed = None if graph is None else partial(GraphedDecode, model, exchange, "serial", capture=graph)
            logits = []
            for s in decode(model, exchange, steps=4, schedule="serial", seed=1, graphed=graphed):
                logits.append(s.logits[0].cpu())
                if s.step == 1:
                    with torch.no_grad():
                        for parameter in model.parameters():
                            parameter.mul_(0.5)
        found.append(logits)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert graph is not None
    assert (graph.captures, graph.replays) == (2, 4)


class Asks(CountsStay):
    """Brings the rows to the host."""

    def grouped_m(self, a: Quantised, b: Quantised, rows: Any, interval: int | None, out_dtype: Any) -> torch.Tensor:
        return Cpu.grouped_m(self, a, b, [int(r) for r in rows], interval, out_dtype)


def test_what_waits_for_a_count_is_found_out_while_it_is_captured() -> None:
    products.use(Asks())
    with OtherDevice(), pytest.raises(NotCapturable):
        _decoded(DEVICE, "contiguous", RecordedGraph())


def _told(monkeypatch: pytest.MonkeyPatch, graph: RecordedGraph | None) -> list[Counter[str]]:
    """FLOP by type of each step but the first, as a recording is told them."""
    told: list[Counter[str]] = []

    def work(*, flops: int, bytes: int, dtype: str) -> None:
        if told:
            told[-1][dtype] += flops

    monkeypatch.setattr(emit, "work", work)
    device = "cpu" if graph is None else DEVICE
    with OtherDevice():
        exchange, model = VirtualExchange(C, 2), Model(C, seed=2).to(device)
        graphed = None if graph is None else partial(GraphedDecode, model, exchange, "serial", capture=graph)
        for _ in decode(model, exchange, steps=4, schedule="serial", seed=1, graphed=graphed):
            told.append(Counter())  # noqa: PERF401  `work` adds to the last one meanwhile
    return told[:-1]


def test_a_recording_is_told_the_work_of_replayed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, replayed = _told(monkeypatch, None), _told(monkeypatch, RecordedGraph())
    assert len(one_by_one) == 3
    assert all(step.total() for step in one_by_one)
    assert one_by_one == replayed


def _refused(capsys: pytest.CaptureFixture[str], *options: Sequence[str]) -> str:
    assert main(["decode", "--steps", "1", "--graphs", *options]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_captured_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _refused(capsys) == "error: --graphs: graphs are a GPU's: use --device cuda\n"
    assert "requests come and go" in _refused(capsys, "--requests", "2")


def test_the_reason_against_a_graph_is_the_first_that_holds() -> None:
    gpu, virtual = torch.device("cuda"), VirtualExchange(C, 2)
    plain = open_exchange(C, Ranks(0, 1), NO_LINK)
    assert why_not(virtual, gpu, True) is None
    assert "--virtual-ranks" in str(why_not(plain, gpu, True))
    assert "fp8" in str(why_not(virtual, gpu, False))
    products.use(Cpu())
    assert "--gemm triton" in str(why_not(virtual, gpu, True))
    with pytest.raises(ValueError, match="no graph of these steps"):
        GraphedDecode(Model(C), virtual, "serial", *steps.new_cache(C, 2, 8), 8)
    plain.close()
