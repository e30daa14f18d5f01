"""What runs on a GPU is made there: no tensor of the CPU among operands. And --device says what cannot work."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.__main__ import main  # noqa: E402
from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.inference.steps import decode, prefill  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.training.recipe import Recipe  # noqa: E402
from moescope.instrumented_model.training.train import Trainer  # noqa: E402
from tests.model.other_device import DEVICE, OtherDevice  # noqa: E402

C = replace(
    size("tiny"), name="test", layers=2, dense_layers=1, d=96, heads=2, d_latent=32, d_query_latent=48, d_dense=64,
    d_expert=40, mtp_depth=1, sequence_length=8, decode_sequences=3,
)  # fmt: skip


def _figures(device: torch.device | str) -> list[torch.Tensor]:
    """Losses, weights and logits of training, prefill and decode."""
    exchange = open_exchange(C, Ranks(0, 1), NO_LINK)
    model = Model(C, seed=1).to(device)
    assert {p.device for p in model.parameters()} == {torch.device(device)}
    trainer = Trainer(model, exchange, Recipe(ema_decay=0.9), schedule="interleaved")
    found = [torch.tensor(trainer.run_step().loss) for _ in range(2)]
    found += [p.detach().cpu() for p in model.parameters()]
    found += [*(trainer.ema.averages() if trainer.ema else [])]
    trainer.close()
    for steps in (prefill(model, exchange, steps=1, schedule="overlapped", seed=1),
                  decode(model, exchange, steps=1, schedule="overlapped", seed=1, cache="paged")):  # fmt: skip
        found += [logits.cpu() for step in steps for logits in step.logits]
    exchange.close()
    return found


def test_training_and_inference_elsewhere_touch_no_tensor_of_the_cpu_and_give_its_bits() -> None:
    want = _figures("cpu")
    with OtherDevice():
        got = _figures(DEVICE)
    assert len(want) > 30
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_device_is_refused_in_one_line_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "--steps", "1"], ["decode", "--steps", "1"], ["all", "--steps", "1"]):
        assert main([*command, "--device", "cuda"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: --device cuda: ")
        assert err.endswith(": use --device cpu\n")
