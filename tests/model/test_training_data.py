"""The text that is learned from: whole files are held out, passages are the same for the same arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import ConfigError  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402


def test_held_out_files_are_none_of_those_trained_on_and_both_texts_are_real() -> None:
    train, held_out = data.files("train"), data.files("held out")
    assert not set(train) & set(held_out)
    both = {path.relative_to(data.library()) for path in [*train, *held_out]}
    assert both >= {path.relative_to(data.library()) for path in data.library().glob("*.py")}
    assert Path("json/decoder.py") in both
    assert not any("test" in path.parts or "site-packages" in path.parts for path in both)
    assert len(data.corpus("train")) == sum(path.stat().st_size for path in train)
    share = len(data.corpus("held out")) / len(data.corpus("train"))
    assert 0.01 < share < 0.2


def test_a_new_file_moves_no_other_between_the_splits(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"m{i}.py").write_text(f"{i}\n")
    before = data.files("held out", tmp_path)
    (tmp_path / "a.py").write_text("new\n")
    assert [path for path in data.files("held out", tmp_path) if path.name != "a.py"] == before


def test_passages_are_of_the_text_and_the_target_is_the_next_byte() -> None:
    text = torch.arange(200).to(torch.uint8)
    seen = set()
    for step in range(3):
        for rank in range(2):
            for micro_batch in range(40):
                arguments = {"rank": rank, "micro_batch": micro_batch, "sequences": 3, "positions": 7, "seed": 1}
                tokens, targets = data.batch(text, step=step, **arguments)
                assert torch.equal(tokens + 1, targets)
                assert torch.equal(tokens[:, 1:], targets[:, :-1])
                assert torch.equal(tokens, data.batch(text, step=step, **arguments)[0])
                seen.add(tuple(tokens[:, 0].tolist()))
    assert len(seen) > 235  # of 240: no two of (step, rank, micro-batch) share their passages


def test_windows_cover_the_text_evenly_and_wrap() -> None:
    text = torch.arange(101).to(torch.uint8)
    tokens, targets = data.windows(text, first=0, sequences=10, positions=1, count=10)
    assert tokens[:, 0].tolist() == list(range(0, 100, 10))
    assert targets[:, 0].tolist() == list(range(1, 101, 10))
    assert torch.equal(data.windows(text, first=10, sequences=10, positions=1, count=10)[0], tokens)


def test_no_sources_and_a_text_too_short_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Python sources"):
        data.files("train", tmp_path)
    with pytest.raises(ConfigError, match="too few"):
        data.batch(torch.zeros(8, dtype=torch.uint8), step=0, rank=0, micro_batch=0, sequences=1, positions=8, seed=0)
