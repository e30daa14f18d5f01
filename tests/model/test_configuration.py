"""A size, a file and flags make one configuration; what cannot work is told with its place and what would work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from moescope.instrumented_model.__main__ import main
from moescope.instrumented_model.commands.configuration import configured
from moescope.instrumented_model.config import SIZES, ConfigError, size
from moescope.instrumented_model.gemm import products


def test_flags_go_before_the_file_and_the_file_before_the_size(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('size = "lite"\nlayers = 4\ntop_k = 3\nrouted_scale = 2\nfp8 = false\n')
    assert configured() == size("tiny")
    expected = replace(size("lite"), layers=4, top_k=3, routed_scale=2.0, fp8=False)
    assert configured(None, file) == expected
    assert type(configured(None, file).routed_scale) is float
    assert configured(None, file, ["top_k=2", "fp8=True", "name=mine"]) == replace(
        expected, top_k=2, fp8=True, name="mine"
    )
    assert configured("tiny", file).d == size("tiny").d


def test_a_configuration_written_out_as_flags_is_read_back() -> None:
    for named in SIZES.values():
        assert configured("tiny", None, [f"{key}={value}" for key, value in asdict(named).items()]) == named


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("layrs = 4", "unknown key 'layrs'; did you mean 'layers'?"),
        ("zzzz = 4", "keys are size, name, vocabulary"),
        ('layers = "4"', "layers must be a whole number, got '4'"),
        ("layers = 4.0", "layers must be a whole number, got 4.0"),
        ("layers = true", "layers must be a whole number, got True"),
        ("fp8 = 1", "fp8 must be true or false, got 1"),
        ("layers = 0", "every size must be at least 1"),
        ("top_k = 9", "top_k 9 must lie between 1 and 8 experts"),
        ("d_rope = 15", "must be even"),
        ("size = 3", "size 3 must be a text"),
        ('size = "huge"', "choose one of tiny, lite, v3"),
        ("layers 4", "not a TOML file"),
    ],
)
def test_a_file_that_cannot_work_is_named_with_what_is_wrong(tmp_path: Path, toml: str, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as error:
        configured(None, file)
    assert words in str(error.value)
    assert str(file) in str(error.value) or "choose one of" in words
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("layers", "write key=value"),
        ("layers=four", "layers must be a whole number, got 'four'"),
        ("layers=-1", "every size must be at least 1"),
        ("fp8=maybe", "fp8 must be true or false, got 'maybe'"),
        ("balance_weight=x", "balance_weight must be a number"),
        ("routed_scale=nan", "routed_scale"),
        ("gamma=1", "unknown key 'gamma'"),
        ("promotion_interval=-32", "promotion_interval -32 must be 0 (no bound) or above"),
        ("product_dtype=float16", "product_dtype 'float16' must be float32 or bfloat16"),
    ],
)
def test_a_flag_that_cannot_work_is_quoted(setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured("tiny", None, [setting])
    assert words in str(error.value)
    assert f"--set {setting}" in str(error.value)


def test_the_program_ends_with_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", "--config", str(tmp_path / "none.toml")],
        ["decode", "--set", "experts=7.5"],
        ["prefill", "--steps", "0"],
        ["train", "--seed", str(2**63)],
    ):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith("error: ")


def test_a_folder_for_checkpoints_that_cannot_be_is_told_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    sizes = ["--set", "d=64", "--set", "layers=1", "--set", "sequence_length=8"]
    assert main(["train", "--steps", "1", "--checkpoints", str(tmp_path / "file" / "ck"), *sizes]) == 2
    out, err = capsys.readouterr()
    assert "step" not in out
    assert len(err.splitlines()) == 1
    assert f"--checkpoints {tmp_path}/file/ck: Not a directory; choose a folder that can be made" in err


@pytest.mark.parametrize("command", [["train"], ["prefill"], ["decode"], ["decode", "--requests", "2"], ["all"]])
def test_text_outside_the_vocabulary_ends_the_program_before_a_step(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--set", "vocabulary=64", "--set", "d=64", "--set", "layers=1"]) == 2
    out, err = capsys.readouterr()
    assert "step" not in out
    assert len(err.splitlines()) == 1
    assert "outside the vocabulary of 64: set vocabulary to 256 or more" in err


@pytest.fixture
def products_as_before() -> Iterator[None]:
    before = products.active()
    yield
    products.use(before)


@pytest.mark.usefixtures("products_as_before")
def test_the_arithmetic_of_products_comes_from_file_or_flags_and_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('promotion_interval = 0\nproduct_dtype = "bfloat16"\nd = 64\nlayers = 1\nsequence_length = 8\n')
    start = ["train", "--steps", "1", "--config", str(file)]
    assert main(start) == 0
    assert "products; no bound on promotion, results in bfloat16" in capsys.readouterr().out
    assert main([*start, "--promotion-interval", "64", "--gemm", "emulated", "--product-dtype", "float32"]) == 0
    assert "emulated; promotion every 64 elements, results in float32" in capsys.readouterr().out
    # A running sum of 14 bits cannot be scaled twice: intervals end where scales may change.
    assert main([*start, "--promotion-interval", "256", "--gemm", "emulated"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "backend emulated does not work here" in err
    assert "promote every 32, 64 or 128 elements" in err
