"""A rank that dies is noticed by the others: one line, not a hang."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("torch")

from tests.model.ranks import finish_ranks, start_ranks


def test_a_killed_rank_ends_the_others_with_one_line_within_the_timeout() -> None:
    command = [
        "-m",
        "moescope.instrumented_model",
        "train",
        "--steps",
        "100000",
        "--print-every",
        "1",
        "--timeout",
        "5",
    ]
    talker, victim = start_ranks(command, 2)
    assert talker.stdout is not None
    while not talker.stdout.readline().startswith("step     2"):
        assert talker.poll() is None
    victim.kill()
    since = time.monotonic()
    (code, _, err), _ = finish_ranks([talker, victim], timeout_s=60)
    assert time.monotonic() - since < 60
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: rank 0: a rank died or did not answer within --timeout (")
    assert "start all of them again" in err


def test_a_rank_that_never_comes_ends_the_one_that_waits_with_one_line() -> None:
    command = ["-m", "moescope.instrumented_model", "train", "--steps", "2", "--timeout", "2"]
    waiting, absent = start_ranks(command, 2)
    absent.kill()
    (code, _, err), _ = finish_ranks([waiting, absent], timeout_s=60)
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]], err
    assert "did not answer" in err
