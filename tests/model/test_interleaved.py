"""The interleaved schedule runs the chunks of a pair in the published order, whatever its layers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.schedules.chain import Chain, MicroBatch, Next, backward, forward  # noqa: E402
from moescope.instrumented_model.schedules.interleaved import interleaved  # noqa: E402

PUBLISHED = "combine(B) attn(F) mlp(B) dispatch(F) dispatch(B) mlp(W) mlp(F) attn(B) attn(W) combine(F)".split()  # noqa: SIM905
C = replace(
    size("tiny"), name="small", layers=3, d=64, heads=2, d_head=16, d_rope=8, d_latent=32, d_query_latent=32,
    d_expert=32, d_dense=64, experts=4, sequence_length=8,
)  # fmt: skip


def _told(chain: Chain, number: int, ran: list[tuple[str, int, int]]) -> Iterator[Next]:
    """The chain, with every chunk that is run in `ran`: its name, layer, micro-batch."""
    for pause in chain:
        yield pause
        ran.append((pause.chunk, pause.layer, number))


def _run(c: Config, count: int) -> list[tuple[str, int, int]]:
    model, exchange, ran = Model(c, seed=0), open_exchange(c, Ranks(0, 1), NO_LINK), list[tuple[str, int, int]]()
    torch.manual_seed(0)
    tokens = torch.randint(256, (count, 1, 9))
    try:
        batches = [MicroBatch(m, t[:, :-1], t[:, 1:]) for m, t in enumerate(tokens)]
        interleaved(
            [_told(forward(model, exchange, mb), mb.number, ran) for mb in batches],
            [_told(backward(model, exchange, mb, 1.0), mb.number, ran) for mb in batches],
        )
    finally:
        exchange.close()
    return ran


AFTER = {"attn(F)": "dispatch(F)", "mlp(F)": "combine(F)", "mlp(B)": "dispatch(B)"}
"""The exchange that hangs on a chunk; combine(B) hangs on the attn(W) of the layer above, or on the head."""


def test_pairs_run_in_the_published_order_layer_by_layer() -> None:
    ran = _run(C, 3)
    alone = ["attn(F)", "dispatch(F)", "mlp(F)", "combine(F)"] * 3 + ["head(F)"]
    assert [chunk for chunk, _, _ in ran[: len(alone)]] == alone
    length = 10 * 3 + 1
    for i in range(2):
        some = ran[len(alone) + i * length : len(alone) + (i + 1) * length]
        chunks = [chunk for chunk, _, _ in some]
        assert chunks[-1] == "head(F)"
        for kind in (("attn", "mlp"), ("dispatch", "combine")):
            assert [c for c in chunks if c.startswith(kind)] == [c for c in PUBLISHED if c.startswith(kind)] * 3
        for chunk, layer, micro_batch in some[:-1]:
            assert micro_batch == (i + 1 if chunk.endswith("(F)") else i)
            if chunk in AFTER:
                place = some.index((chunk, layer, micro_batch))
                assert some[place + 1] == (AFTER[chunk], layer, micro_batch)
    back = ["combine(B)", "mlp(B)", "dispatch(B)", "mlp(W)", "attn(B)", "attn(W)"]
    assert [chunk for chunk, _, _ in ran[len(alone) + 2 * length :]] == back * 3


@pytest.mark.parametrize("dense", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_chunk_runs_once_with_dense_layers_and_any_number_of_micro_batches(dense: int, count: int) -> None:
    ran = _run(replace(C, dense_layers=dense), count)
    moe = {(chunk, n, m) for chunk in PUBLISHED for n in range(dense, 3) for m in range(count)}
    without = [chunk for chunk in PUBLISHED if "dispatch" not in chunk and "combine" not in chunk]
    plain = {(chunk, n, m) for chunk in without for n in range(dense) for m in range(count)}
    assert len(ran) == len(set(ran))
    assert set(ran) == moe | plain | {("head(F)", 3, m) for m in range(count)}


def test_layers_of_multi_token_prediction_pair_up_as_all_others_do() -> None:
    ran = [chunk for chunk, _, m in _run(replace(C, mtp_depth=2), 2)]
    alone = [*(["attn(F)", "dispatch(F)", "mlp(F)", "combine(F)"] * 3), "head(F)"]
    alone += ["attn(F)", "dispatch(F)", "mlp(F)", "combine(F)", "head(F)"] * 2
    some = [chunk for chunk in ran[len(alone) : len(alone) + 53] if chunk.startswith(("attn", "mlp", "head"))]
    computed = [chunk for chunk in PUBLISHED if chunk.startswith(("attn", "mlp"))]
    assert some == [*computed * 3, *["head(F)", *computed] * 2, "head(F)"]
