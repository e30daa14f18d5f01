"""A run that was saved and resumed is the run that went on; what is torn or of another run is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.training import checkpoint, data  # noqa: E402
from moescope.instrumented_model.training.evaluate import held_out_loss  # noqa: E402
from moescope.instrumented_model.training.recipe import Recipe  # noqa: E402
from moescope.instrumented_model.training.train import Trainer, gradients  # noqa: E402

C = replace(
    size("tiny"), name="small", layers=1, d=64, heads=2, d_head=16, d_rope=8, d_latent=32, d_query_latent=32,
    d_expert=32, d_dense=64, experts=4, sequence_length=16,
)  # fmt: skip
RECIPE = Recipe(seed=3, warm_up_steps=2, decay_steps=5, accumulate=2, ema_decay=0.9)
TEXT = torch.tensor(list(b"def f(x):\n    return x * x\n" * 20), dtype=torch.uint8)

Start = Callable[..., Trainer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes trainers of a model drawn from a seed, on one rank."""
    made = list[Trainer]()
    exchange = open_exchange(C, Ranks(0, 1), NO_LINK)

    def new(c: Config = C, recipe: Recipe = RECIPE, text: torch.Tensor = TEXT, seed: int = 1) -> Trainer:
        made.append(Trainer(Model(c, seed=seed), exchange, recipe, schedule="serial", text=text))
        return made[-1]

    yield new
    for trainer in made:
        trainer.close()
    exchange.close()


def _kept(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state()
    found = dict(trainer.model.state_dict())
    found |= {f"m{i}": t for i, t in enumerate(state["m"])} | {f"v{i}": t for i, t in enumerate(state["v"])}
    if trainer.ema is not None:
        found |= {f"ema{i}": t for i, t in enumerate(trainer.ema.averages())}
    return found | {"random": torch.get_rng_state()}


def test_half_the_steps_then_resumed_equals_all_steps_bit_for_bit(start: Start, tmp_path: Path) -> None:
    whole = start()
    torch.manual_seed(7)
    results = [whole.run_step() for _ in range(6)]

    first = start()
    torch.manual_seed(7)
    for _ in range(3):
        first.run_step()
    saved = first.save(tmp_path)
    assert saved == tmp_path / "step-00000003"
    second = start(seed=99)  # nothing of the new model may remain
    torch.manual_seed(8)
    second.resume(tmp_path)
    again = [second.run_step() for _ in range(3)]

    assert [(r.step, r.loss, r.norm, r.rate) for r in again] == [(r.step, r.loss, r.norm, r.rate) for r in results[3:]]
    want = _kept(whole)
    assert any(name.endswith("bias") and value.any() for name, value in want.items())
    for name, value in _kept(second).items():
        assert torch.equal(value, want[name]), name


def test_the_latest_of_several_is_resumed_and_old_ones_go(start: Start, tmp_path: Path) -> None:
    trainer = start()
    for _ in range(4):
        trainer.run_step()
        trainer.save(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    trainer.save(tmp_path, keep=2)  # the same step again replaces
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    other = start(seed=2)
    other.resume(tmp_path)
    assert other.step == 4
    other.resume(tmp_path / "step-00000003")
    assert other.step == 3


def _one_line(error: pytest.ExceptionInfo[ConfigError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_every_torn_or_changed_file_is_noticed_before_anything_is_loaded(start: Start, tmp_path: Path) -> None:
    trainer = start()
    trainer.run_step()
    saved = trainer.save(tmp_path / "kept")
    before = {name: value.clone() for name, value in _kept(trainer).items()}
    for name in ("manifest.json", "rank-00000.pt"):
        whole = (saved / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for torn in (b"", whole[:-1], whole[: len(whole) // 2], bytes(flipped), None):
            broken = tmp_path / "broken"
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(saved, broken / "step-00000001")
            path = broken / "step-00000001" / name
            path.unlink() if torn is None else path.write_bytes(torn)
            if torn == whole[:-1] and name == "manifest.json":
                continue  # the last byte is the end of a line
            with pytest.raises(ConfigError) as error:
                trainer.resume(broken)
            _one_line(error, "earlier one", str(broken))
    for name, value in _kept(trainer).items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_of_another_run_says_what_differs(start: Start, tmp_path: Path) -> None:
    trainer = start()
    trainer.save(tmp_path)
    for other, words in (
        (start(c=replace(C, top_k=1)), ("configuration", "top_k 2, not 1")),
        (start(recipe=replace(RECIPE, learning_rate=1.0)), ("recipe", "learning_rate 0.003, not 1.0")),
        (start(text=TEXT[1:]), ("another text",)),
    ):
        with pytest.raises(ConfigError) as error:
            other.resume(tmp_path)
        _one_line(error, *words, "resume")
    found = checkpoint.find(tmp_path)
    kept = checkpoint.read_manifest(found)
    with pytest.raises(ConfigError) as error:
        checkpoint.check(found, kept, C, RECIPE, 2, kept.text)
    _one_line(error, "1 ranks, not 2")


def test_an_empty_folder_another_format_and_an_unknown_field_are_told(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        start().resume(tmp_path)
    _one_line(error, "no checkpoint in")
    saved = start().save(tmp_path)
    whole = json.loads((saved / "manifest.json").read_text())
    for key, value, word in (("format", 99, "format 99"), ("config", {"wings": 2}, "wings")):
        body = whole["manifest"] | {key: value}
        (saved / "manifest.json").write_text(json.dumps({"manifest": body, "sha256": checkpoint._digest_of(body)}))
        with pytest.raises(ConfigError) as error:
            start().resume(tmp_path)
        _one_line(error, word)


def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_no_half_of_a_new_one(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start()
    trainer.save(tmp_path)
    trainer.run_step()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_to_disk", full)
    with pytest.raises(ConfigError) as error:
        trainer.save(tmp_path)
    _one_line(error, "No space left", "room")
    assert checkpoint.find(tmp_path).name == "step-00000000"
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000000"]
    monkeypatch.undo()
    assert trainer.save(tmp_path).name == "step-00000001"


def test_weights_load_onto_other_numbers_of_ranks(start: Start, tmp_path: Path) -> None:
    trainer = start()
    trainer.run_step()
    trainer.save(tmp_path)
    whole = trainer.model.state_dict()
    assert trainer.ema is not None
    averages = whole | dict(zip(dict(trainer.model.named_parameters()), trainer.ema.averages(), strict=True))
    assert not torch.equal(whole["head.weight"], averages["head.weight"])
    for averaged, wanted in ((False, whole), (True, averages)):
        for rank in range(2):
            part = Model(C, rank=rank, ranks=2, seed=9)
            manifest = checkpoint.load_weights(tmp_path, part, averaged=averaged)
            assert manifest.config == C
            for name, value in part.state_dict().items():
                want = wanted[name].chunk(2)[rank] if ".experts." in name else wanted[name]
                assert torch.equal(value, want), name


def test_averaged_weights_that_were_not_kept_are_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    start(recipe=replace(RECIPE, ema_decay=0.0)).save(tmp_path)
    with pytest.raises(ConfigError) as error:
        checkpoint.load_weights(tmp_path, Model(C), averaged=True)
    _one_line(error, "has no averaged weights", "--ema")


def test_accumulation_gives_the_gradients_of_a_bigger_batch(start: Start) -> None:
    few, many = start(c=replace(C, fp8=False)), start(c=replace(C, fp8=False, micro_batches=4), recipe=Recipe(seed=3))
    assert len(few.micro_batches()) == len(many.micro_batches()) == 4
    found = []
    for trainer in (few, many):
        loss = gradients(trainer.model, trainer.exchange, trainer.micro_batches(), "serial")
        found.append((loss, [p.grad for p in trainer.parameters]))
    assert found[0][0] == pytest.approx(found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
    # The mean over all tokens, taken at once in one micro-batch of four times the sequences.
    one = start(c=replace(C, fp8=False, micro_batches=1, sequences=4), recipe=Recipe(seed=3))
    batches = few.micro_batches()
    (big,) = one.micro_batches()
    big.tokens = torch.cat([mb.tokens for mb in batches])
    big.targets = torch.cat([mb.targets for mb in batches if mb.targets is not None])
    loss = gradients(one.model, one.exchange, [big], "serial")
    assert loss == pytest.approx(found[0][0], rel=1e-5)
    for a, p in zip(found[0][1], one.parameters, strict=True):
        assert p.grad is not None
        assert float((a - p.grad).norm() / p.grad.norm().clamp_min(1e-12)) < 5e-3  # BF16 on the wire


def test_held_out_loss_is_the_mean_over_its_passages_and_changes_nothing(start: Start) -> None:
    trainer = start()
    before = {name: value.clone() for name, value in _kept(trainer).items()}
    got = held_out_loss(trainer.model, trainer.exchange, groups=2, schedule="serial", text=TEXT)
    assert got == held_out_loss(trainer.model, trainer.exchange, groups=2, schedule="overlapped", text=TEXT)
    for name, value in _kept(trainer).items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in trainer.parameters)
    tokens, targets = data.windows(TEXT, first=0, sequences=4, positions=16, count=4)
    batches = trainer.micro_batches()
    for mb, t, y in zip(batches, tokens, targets, strict=True):
        mb.tokens, mb.targets = t[None], y[None]
    want = gradients(trainer.model, trainer.exchange, batches, "serial")
    assert got == pytest.approx(want, rel=1e-6)
