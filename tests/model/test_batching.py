"""Continuous batching gives each request what it gets alone, within the cache, on one rank and on two.

Run as a program this file is one rank of the test.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import ConfigError, size  # noqa: E402
from moescope.instrumented_model.inference.batching import Finished, Limits, Request, Server, ServeStep  # noqa: E402
from moescope.instrumented_model.inference.requests import drawn, read  # noqa: E402
from moescope.instrumented_model.inference.sampling import GREEDY, Sampling  # noqa: E402
from moescope.instrumented_model.inference.text import decode, encode, parse_tokens  # noqa: E402
from moescope.instrumented_model.layers.cache import PagedCache  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks, joined, world  # noqa: E402
from moescope.instrumented_model.schedules.order import Schedule  # noqa: E402

EXACT = replace(size("tiny"), fp8=False, d=96, d_expert=64, heads=2, sequence_length=40)
REQUESTS = drawn(9, EXACT, torch.arange(251).repeat(9).to(torch.uint8), max_new=9, spacing=3, seed=4)


def serve(
    requests: Sequence[Request],
    *,
    blocks: int = 40,
    sampling: Sampling = GREEDY,
    ranks: Ranks = Ranks(0, 1),
    schedule: Schedule = "overlapped",
    **limits: int,
) -> list[ServeStep]:
    """All steps of this rank; the cache must be empty at the end."""
    exchange = open_exchange(EXACT, ranks, NO_LINK)
    try:
        cache = PagedCache(EXACT, blocks, 4, torch.float32)
        model = Model(EXACT, rank=ranks.rank, ranks=ranks.count, seed=2)
        server = Server(
            model, exchange, cache, requests, limits=Limits(**limits), sampling=sampling, schedule=schedule, seed=3
        )
        steps = list(server.run())
        assert (cache.free_blocks, server.reserved_blocks) == (blocks, 0)
    finally:
        exchange.close()
    return steps


def finished(steps: list[ServeStep]) -> dict[int, Finished]:
    return {f.request.number: f for step in steps for f in step.finished}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, top_k=40, top_p=0.95)], ids=["greedy", "sampled"])
def test_each_request_gets_the_tokens_that_it_gets_alone(sampling: Sampling) -> None:
    together = finished(serve(REQUESTS, sampling=sampling, sequences=4, tokens=17))
    assert sorted(together) == [r.number for r in REQUESTS]
    for request in REQUESTS:
        alone = finished(serve([request], sampling=sampling, tokens=1000))[request.number]
        assert together[request.number].tokens == alone.tokens
        assert len(alone.tokens) == request.max_new
    assert len({f.tokens for f in together.values()}) > 5


def test_the_limits_hold_in_every_step_and_requests_enter_as_others_leave() -> None:
    steps = serve(REQUESTS, blocks=24, sequences=3, tokens=11)
    position_bytes = EXACT.layers * (EXACT.d_latent + EXACT.d_rope) * 4
    for step in steps:
        assert step.active <= 3
        assert step.prompt_tokens + step.decode_tokens <= 11
        assert step.cache_bytes <= 24 * 4 * position_bytes
    assert max(step.active for step in steps) == 3
    assert any(step.finished and step.waiting for step in steps)
    assert any(step.prompt_tokens and step.decode_tokens for step in steps)
    found = finished(steps)
    for number, f in found.items():
        assert f.request.arrival <= f.admitted <= f.first_token <= f.last, number
        # From its first token on, a request gets one a step.
        assert f.last - f.first_token == f.request.max_new - 1
    # In the order of arrival.
    admitted = [found[r.number].admitted for r in REQUESTS]
    assert admitted == sorted(admitted)


def test_a_stop_token_ends_a_request_and_is_its_last() -> None:
    request = Request(0, (1, 2, 3), 12)
    whole = finished(serve([request]))[0].tokens
    stop = whole[5]
    stopped = finished(serve([replace(request, stop=stop)]))[0].tokens
    assert stopped == whole[: whole.index(stop) + 1]


def test_a_step_for_which_nothing_has_arrived_makes_no_pass() -> None:
    steps = serve([Request(0, (1,), 2, arrival=3)])
    assert [step.inference is None for step in steps] == [True, True, True, False, False]


def test_what_can_never_be_served_is_refused() -> None:
    for request, words in (
        (Request(7, (1,) * 150, 20), "request 7: 169 positions needed, the cache has 160"),
        (Request(7, (), 2), "empty"),
        (Request(7, (1, 256), 2), "token 256 at position 1 is outside the vocabulary: use 0 to 255"),
        (Request(7, (1,), 0), "at least 1 is needed"),
    ):
        with pytest.raises(ConfigError, match=words):
            serve([request])
    with pytest.raises(ConfigError, match="at least 1"):
        Limits(0)


def test_text_is_bytes_and_back_and_what_is_outside_the_vocabulary_is_named() -> None:
    text = "naïve 🙂\n"
    assert decode(encode(text, 256)) == text
    assert decode([0xF0, 72, 300, 105]) == "\ufffdH<300>i"
    assert parse_tokens("5,127", 128) == (5, 127)
    for call, words in (
        (lambda: encode("naïve", 128), r"character 2 \('ï'\) has byte 195"),
        (lambda: encode("", 256), "empty"),
        (lambda: parse_tokens("5,128", 128), "token 128 at position 1"),
        (lambda: parse_tokens("5,x", 128), "write whole numbers"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def test_requests_are_read_from_json_lines_and_errors_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "ab"}\n\n{"tokens": [1, 2], "max_new": 3, "arrival": 4, "stop": 5}\n')
    assert read(file, EXACT, 8) == [Request(0, (97, 98), 8), Request(1, (1, 2), 3, 4, 5)]
    bad: dict[str, Any] = {
        '{"prompt": "ab"': "not JSON",
        '{"prompt": "ab", "max": 3}': "unknown key 'max'",
        '{"prompt": "ab", "tokens": [1]}': "give either",
        '{"prompt": ""}': "empty",
        '{"tokens": [1, 900]}': "token 900 at position 1",
        '{"tokens": [1.5]}': "whole numbers",
        '{"prompt": "ab", "max_new": 0}': "max_new must be a whole number of at least 1",
        "3": "write an object",
    }
    for line, words in bad.items():
        file.write_text('{"prompt": "ab"}\n' + line + "\n")
        with pytest.raises(ConfigError) as error:
            read(file, EXACT, 8)
        assert f"{file}:2: " in str(error.value)
        assert words in str(error.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="it is empty"):
        read(file, EXACT, 8)


def test_two_ranks_serve_what_one_does_though_one_has_less_to_do_and_overlap_changes_no_bit() -> None:
    from tests.model.ranks import run_ranks

    for code, out, err in run_ranks([], module="tests.model.test_batching"):
        assert code == 0, err
        assert "held" in out


def _rank_main() -> None:
    ranks = world()
    with joined(ranks, 60.0):
        # Rank 1 has one request, which leaves early: its experts must serve rank 0 to the end.
        requests = [r for r in REQUESTS if r.number % 2 == 0] + [replace(REQUESTS[1], max_new=2)]
        steps = serve(requests, ranks=ranks, sequences=3, tokens=15)
        serial = serve(requests, ranks=ranks, sequences=3, tokens=15, schedule="serial")
        for step, other in zip(steps, serial, strict=True):
            assert step.inference is not None
            assert other.inference is not None
            for a, b in zip(step.inference.logits, other.inference.logits, strict=True):
                assert torch.equal(a, b), step.step
        mine = finished(steps)
        wanted = finished(serve(requests))
        assert sorted(mine) == [
            r.number for r in sorted(requests, key=lambda r: r.number) if r.number % 2 == ranks.rank
        ]
        for number, f in mine.items():
            assert f.tokens == wanted[number].tokens, number
    print("held", flush=True)


if __name__ == "__main__":
    _rank_main()
    sys.exit(0)
