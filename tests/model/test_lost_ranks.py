"""A rank that dies, stops or cannot go on ends the others with one line each, not with a hang."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.model.ranks import ForkedRank, fork_ranks

SMALL = ["--link", "none", "--intra-link", "none"]
for setting in ("layers=1", "d=64", "d_expert=32", "sequence_length=16"):
    SMALL += ["--set", setting]
ENDLESS = ["train", *SMALL, "--steps", "1000000", "--print-every", "1"]


def _training(ranks: int, nodes: int, timeout_s: int) -> list[ForkedRank]:
    """Ranks that are in the midst of training."""
    started = fork_ranks([*ENDLESS, "--nodes", str(nodes), "--timeout", str(timeout_s)], ranks)
    started[0].read_until("step     2")
    return started


def _ended_with_one_line(rank: int, outcome: tuple[int | None, str, str]) -> None:
    code, _, err = outcome
    assert code == 1, err
    assert err.count("\n") == 1, err
    assert err.startswith(f"error: rank {rank}: a rank died or did not answer within --timeout ("), err
    assert "start all of them again" in err


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (4, 2)])
def test_a_killed_rank_ends_the_others_with_one_line_before_the_timeout(ranks: int, nodes: int) -> None:
    *others, victim = _training(ranks, nodes, timeout_s=100)
    victim.process.kill()
    for rank, other in enumerate(others):
        _ended_with_one_line(rank, other.finish(timeout_s=90))
    assert victim.finish()[0] == -signal.SIGKILL


def test_a_rank_that_stops_without_dying_ends_the_others_after_the_timeout() -> None:
    runs = [_training(2, 1, timeout_s=3), _training(4, 2, timeout_s=3)]
    for *_, stopped in runs:
        stopped.signal(signal.SIGSTOP)
    for *others, stopped in runs:
        for rank, other in enumerate(others):
            _ended_with_one_line(rank, other.finish())
        stopped.signal(signal.SIGCONT)
        _ended_with_one_line(len(others), stopped.finish())


def test_a_rank_that_never_comes_ends_the_one_that_waits_with_one_line() -> None:
    waiting, absent = fork_ranks([*ENDLESS, "--timeout", "1"], 2)
    absent.process.kill()
    code, _, err = waiting.finish()
    absent.finish()
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]], err
    assert "did not answer" in err


def test_a_checkpoint_torn_on_one_rank_or_of_another_configuration_ends_both(tmp_path: Path) -> None:
    train = ["train", *SMALL, "--checkpoints", str(tmp_path), "--timeout", "60"]
    for rank in fork_ranks([*train, "--steps", "1"], 2):
        assert rank.finish()[::2] == (0, "")
    resume = [*train, "--steps", "2", "--resume", str(tmp_path)]
    others = fork_ranks([*resume, "--set", "top_k=1"], 2)
    for code, _, err in (rank.finish() for rank in others):
        assert code == 2
        assert err.count("\n") == 1, err
        assert "another configuration: top_k 2, not 1; resume it with its own" in err
    file = tmp_path / "step-00000001" / "rank-00001.pt"
    file.write_bytes(file.read_bytes()[:-100])
    whole, torn = (rank.finish() for rank in fork_ranks(resume, 2))
    _ended_with_one_line(0, whole)
    assert torn[0] == 2
    assert torn[2].count("\n") == 1, torn[2]
    assert "is torn, rank-00001.pt does not have its SHA-256: use an earlier one" in torn[2]
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]
