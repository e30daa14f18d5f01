"""generate goes on from a checkpoint as the model without any cache would, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.__main__ import main  # noqa: E402
from moescope.instrumented_model.inference.steps import infer  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.training import checkpoint  # noqa: E402
from tests.model.ranks import run_ranks  # noqa: E402

SMALL = ["d=128", "d_expert=64", "d_dense=96", "dense_layers=1", "sequence_length=32", "fp8=false"]
NEW = 9


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after a few steps on one rank."""
    folder = tmp_path_factory.mktemp("saved")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    recipe = ["--steps", "8", "--warm-up", "1", "--ema", "0.5"]
    assert main(["train", *recipe, "--checkpoints", str(folder), *settings]) == 0
    return folder


def without_cache(folder: Path, prompt: bytes, averaged: bool = False) -> bytes:
    """Greedy, the whole text through the model again for each token."""
    manifest = checkpoint.read_manifest(checkpoint.find(folder))
    model = Model(manifest.config)
    state = torch.load(checkpoint.find(folder) / checkpoint.rank_file(0))
    model.load_state_dict(state["model"])
    if averaged:
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), state["ema"], strict=True):
                parameter.copy_(average)
    exchange = open_exchange(manifest.config, Ranks(0, 1), NO_LINK)
    text = list(prompt)
    try:
        for _ in range(NEW):
            step = infer(model, exchange, [torch.tensor([text])], None, "serial", 0)
            text.append(int(step.logits[0].argmax()))
    finally:
        exchange.close()
    return bytes(text)


def test_generated_text_is_that_of_the_model_without_a_cache(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["def main(", "import os\nimport ", "x"]
    arguments = [part for prompt in prompts for part in ("--prompt", prompt)]
    wanted = "".join(without_cache(saved, prompt.encode()).decode("utf-8", "replace") + "\n" for prompt in prompts)
    capsys.readouterr()
    assert main(["generate", "--checkpoint", str(saved), "--max-new", str(NEW), *arguments]) == 0
    first, _, generated = capsys.readouterr().out.partition("\n")
    assert "generate" in first
    assert generated == wanted
    command = ["generate", "--checkpoint", str(saved), "--max-new", str(NEW)]
    (code, out, err), (other_code, other_out, other_err) = run_ranks([*command, "--link", "none", *arguments])
    assert (code, other_code, other_out) == (0, 0, ""), err + other_err
    assert out.partition("\n")[2] == wanted


def test_the_averaged_weights_can_be_asked_for(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "class "
    for weights in ("trained", "averaged"):
        capsys.readouterr()
        options = ["--max-new", str(NEW), "--weights", weights, "--prompt", prompt]
        assert main(["generate", "--checkpoint", str(saved), *options]) == 0
        wanted = without_cache(saved, prompt.encode(), averaged=weights == "averaged").decode("utf-8", "replace")
        assert capsys.readouterr().out.partition("\n")[2] == wanted + "\n"


def test_sampled_text_is_that_of_the_seed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generated(seed: int) -> str:
        arguments = ["--temperature", "1.2", "--top-k", "50", "--top-p", "0.98", "--seed", str(seed), "--tokens", "5,6"]
        assert main(["generate", "--checkpoint", str(saved), "--max-new", "20", *arguments]) == 0
        return capsys.readouterr().out

    assert generated(1) == generated(1)
    assert generated(1) != generated(2)


@pytest.mark.parametrize("schedule", ["serial", "overlapped"])
def test_one_prompt_leaves_a_micro_batch_empty_in_a_model_one_tile_wide(
    schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [part for setting in (*SMALL[:-1], "top_k=1") for part in ("--set", setting)]  # in FP8
    assert main(["train", "--steps", "1", "--checkpoints", str(tmp_path), *sizes]) == 0
    capsys.readouterr()
    options = ["--schedule", schedule, "--max-new", "2", "--tokens", "5,6"]
    assert main(["generate", "--checkpoint", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("5,6,")


def test_what_cannot_be_generated_is_one_line_and_exit_2(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["generate", "--checkpoint", str(saved)]
    for arguments, words in (
        (["generate", "--checkpoint", str(tmp_path), "--prompt", "x"], "no checkpoint"),
        ([*start, "--prompt", ""], "empty"),
        ([*start, "--tokens", "5,256"], "token 256 at position 1 is outside the vocabulary: use 0 to 255"),
        ([*start, "--prompt", "x", "--size", "lite"], "leave them out"),
        ([*start, "--prompt", "x", "--top-p", "1.5"], "top_p 1.5"),
        ([*start, "--prompt", "x" * 300, "--cache-blocks", "2"], "the cache has 32"),
        ([*start, "--requests", str(tmp_path / "none")], "cannot be read"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert words in err
