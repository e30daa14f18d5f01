"""Whether somebody looks at a recording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moescope.collectors.schema import META_FILE
from moescope.collectors.sidecar import audience
from moescope.collectors.sidecar.audience import Audience
from moescope.collectors.sidecar.writer import RecordingWriter


def test_who_reads_the_state_looks_and_who_writes_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, writer = Audience(tmp_path), RecordingWriter(tmp_path)
    try:
        for number in range(3):
            writer.write_meta({"number": number})
            (tmp_path / "other").write_bytes(b"x")
            (tmp_path / "other").read_bytes()
            (tmp_path / META_FILE).stat()
            assert not watch.looks()
        assert json.loads((tmp_path / META_FILE).read_bytes()) == {"number": 2}
        assert watch.looks()
        assert watch.looks()
        monkeypatch.setattr(audience, "STAYS_S", 0.0)
        assert not watch.looks()
    finally:
        watch.close()


def test_where_it_cannot_be_told_somebody_looks(tmp_path: Path) -> None:
    watch = Audience(tmp_path / "missing")
    assert watch.looks()
    watch.close()
