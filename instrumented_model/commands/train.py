"""train: steps over passages of Python's own library, with checkpoints, averaged weights and a held-out loss."""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path

import torch

from moescope.collectors import emit
from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.training.evaluate import held_out_loss
from moescope.instrumented_model.training.pipelined import PipelineTrainer
from moescope.instrumented_model.training.recipe import Recipe
from moescope.instrumented_model.training.train import StepResult, Trainer, train

_DEFAULT = Recipe()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone; `--set fp8=false` trains without quantisation."""
    add_step_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--learning-rate", "--lr", type=float, default=_DEFAULT.learning_rate)
    recipe.add_argument("--warm-up", type=int, default=_DEFAULT.warm_up_steps, metavar="STEPS")
    recipe.add_argument(
        "--decay", type=int, default=_DEFAULT.decay_steps, metavar="STEPS", help="of the cosine after warm-up; 0: none"
    )
    recipe.add_argument("--weight-decay", type=float, default=_DEFAULT.weight_decay)
    recipe.add_argument("--clip", type=float, default=_DEFAULT.clip_norm, metavar="NORM", help="0: do not clip")
    recipe.add_argument(
        "--accumulate", type=int, default=_DEFAULT.accumulate, metavar="GROUPS", help="groups of micro-batches a step"
    )
    recipe.add_argument(
        "--ema", type=float, default=_DEFAULT.ema_decay, metavar="DECAY", help="average weights on the CPU; 0: do not"
    )
    recipe.add_argument(
        "--pipeline",
        type=int,
        default=0,
        metavar="RANKS",
        help="DualPipeV over all ranks, two stages on each, in place of expert parallelism; 0: do not (default)",
    )
    keep = parser.add_argument_group("checkpoints and evaluation")
    keep.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="save there, at the end and")
    keep.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="0: at the end alone")
    keep.add_argument("--keep", type=int, default=0, metavar="N", help="delete all but the latest N; 0: none")
    keep.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on from its latest checkpoint, up to --steps steps in all"
    )
    keep.add_argument("--eval-every", type=int, default=0, metavar="STEPS", help="held-out loss; 0: never")
    keep.add_argument(
        "--eval-groups", type=int, default=4, metavar="N", help="groups of micro-batches it is taken over"
    )


def run(run: Run) -> None:
    """Train a new model, or go on with one."""
    a = run.arguments
    for name in ("save_every", "keep", "eval_every"):
        if getattr(a, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(a, name)} cannot be below 0")
    if a.eval_groups < 1:
        raise ConfigError(f"--eval-groups {a.eval_groups} must be at least 1")
    if a.save_every and a.checkpoints is None:
        raise ConfigError(f"--save-every {a.save_every} needs a folder: --checkpoints FOLDER")
    recipe = Recipe(
        seed=a.seed,
        learning_rate=a.learning_rate,
        warm_up_steps=a.warm_up,
        decay_steps=a.decay,
        weight_decay=a.weight_decay,
        clip_norm=a.clip,
        accumulate=a.accumulate,
        ema_decay=a.ema,
    )
    if a.pipeline:
        _pipelined(run, recipe)
        return
    if a.checkpoints is not None:
        _check_folder(a.checkpoints)
    trainer = Trainer(run.new_model(), run.exchange, recipe, schedule=a.schedule)
    try:
        _run(run, trainer)
    finally:
        trainer.close()


def _check_folder(folder: Path) -> None:
    """Raises ConfigError where nothing can be saved there, before hours of steps rather than after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--checkpoints {folder}: {error.strerror}; choose a folder that can be made") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--checkpoints {folder} cannot be written to: choose another folder")


def _pipelined(run: Run, recipe: Recipe) -> None:
    """Raises ConfigError for what a pipeline cannot do."""
    a, log = run.arguments, StepLog(run)
    if run.ranks.count == 1:
        raise ConfigError(f"--pipeline {a.pipeline} needs as many ranks, at least 2: start them with torchrun")
    if a.pipeline != run.ranks.count:
        count = run.ranks.count
        raise ConfigError(f"--pipeline {a.pipeline}: all {count} ranks belong to the pipeline: give --pipeline {count}")
    without = {
        "--checkpoints": a.checkpoints, "--resume": a.resume, "--eval-every": a.eval_every,
        "--nodes": a.nodes > 1, "--device cuda": run.device.type != "cpu",
    }  # fmt: skip
    for option, given in without.items():
        if given:
            raise ConfigError(f"--pipeline {a.pipeline} has no {option} yet: leave one of the two out")
    model = Model(run.c, seed=a.seed)  # whole on every rank: experts are not dealt out
    trainer = PipelineTrainer(model, run.ranks, run.exchange, recipe)
    run.say(f"pipeline of {2 * a.pipeline} stages, DualPipeV; the schedule and the link named above are not in it")
    emit.stage("train")
    for _ in range(a.steps):
        t = trainer.run_step()
        log(t.step, t.dur_ns, f"loss {t.loss:.4f}" if t.loss is not None else "")
    log.close()


def _run(run: Run, trainer: Trainer) -> None:
    a, log = run.arguments, StepLog(run)
    if a.resume is not None:
        trainer.resume(a.resume)
        run.say(f"resumed {a.resume} at step {trainer.step}")
    emit.stage("train")
    saved = trainer.step
    while trainer.step < a.steps:
        _tell(log, trainer.run_step())
        if a.eval_every and trainer.step % a.eval_every == 0:
            loss = held_out_loss(trainer.model, run.exchange, groups=a.eval_groups, schedule=a.schedule)
            run.say(f"step {trainer.step - 1:>5}  held-out loss {loss:.4f}")
        if a.save_every and trainer.step % a.save_every == 0:
            saved = _save(run, trainer)
    if a.checkpoints is not None and (saved != trainer.step or trainer.step == 0):
        _save(run, trainer)
    log.close()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run.say(f"peak memory {peak_bytes / 1e6:.0f} MB of rank 0, the interpreter and torch among it")
    if run.device.type == "cuda":
        run.say(f"peak memory of its GPU {torch.cuda.max_memory_allocated(run.device) / 1e6:.0f} MB, in tensors")


def _save(run: Run, trainer: Trainer) -> int:
    path = trainer.save(run.arguments.checkpoints, keep=run.arguments.keep)
    run.say(f"saved {path}")
    return trainer.step


def stage(run: Run, model: Model) -> None:
    """Train `model` for a number of steps, with the default recipe."""
    a, log = run.arguments, StepLog(run)
    for result in train(model, run.exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
        _tell(log, result)
    log.close()


def _tell(log: StepLog, t: StepResult) -> None:
    load = t.load.float()
    worst = float((load.amax(1) / load.mean(1)).max())
    log(t.step, t.dur_ns, f"loss {t.loss:.4f}  max/mean load {worst:.2f}")
