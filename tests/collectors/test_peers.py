"""The share of the time that the ranks of a host agree on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moescope.collectors.agent.peers import FRESH_S, SUFFIX, Peers


def _as(pid: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Peers:
    monkeypatch.setattr("os.getpid", lambda: pid)
    return Peers(str(folder))


def test_all_take_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _as(1, tmp_path, monkeypatch), _as(2, tmp_path, monkeypatch)
    assert first.least(0.2) == 0.2
    assert second.least(0.05) == 0.05
    assert first.least(0.3) == 0.05
    assert second.least(0.5) == 0.3


def test_a_rank_that_knows_nothing_yet_takes_the_least_and_keeps_no_other_from_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _as(1, tmp_path, monkeypatch), _as(2, tmp_path, monkeypatch)
    assert first.least(0.05, sure=False) == 0.05
    assert second.least(0.3) == 0.3
    assert first.least(0.4, sure=False) == 0.3


def test_ranks_that_are_gone_have_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _as(1, tmp_path, monkeypatch), _as(2, tmp_path, monkeypatch)
    second.least(0.05)
    path = tmp_path / f"2{SUFFIX}"
    os.utime(path, (path.stat().st_mtime - 2 * FRESH_S,) * 2)
    assert first.least(0.2) == 0.2


@pytest.mark.parametrize("text", ["", "0.0", "nan", "many", "-1"])
def test_what_is_no_share_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / f"3{SUFFIX}").write_text(text)
    assert _as(1, tmp_path, monkeypatch).least(0.2) == 0.2


def test_without_its_folder_a_rank_has_its_own_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _as(1, tmp_path / "gone", monkeypatch).least(0.2) == 0.2
