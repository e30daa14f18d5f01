"""Checkpoints: a file a rank and a manifest with their checksums, whole or not there at all.

    <folder>/step-00000100/manifest.json     format, step, ranks, configuration, recipe, text, SHA-256 of each file
    <folder>/step-00000100/rank-00000.pt     what that rank holds

All is written and fsynced in a hidden folder, which is renamed at the end. Folders must be seen by all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.training.recipe import Recipe

FORMAT = 1
_MANIFEST = "manifest.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Manifest:
    """step: the next one to run; text: fingerprint of what is trained on; files: name to SHA-256, one a rank"""

    step: int
    ranks: int
    config: Config
    recipe: Recipe
    text: str
    files: dict[str, str]


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank-{rank:05}.pt"


def save(
    folder: Path, state: dict[str, Any], manifest: Manifest, *, rank: int, exchange: Exchange, keep: int = 0
) -> Path:
    """Write one checkpoint; called by all ranks, with `manifest.files` empty.

    state: this rank's, of tensors, numbers, strings, lists and dicts
    keep: how many checkpoints stay, the oldest go; 0: all
    returns: its folder. Raises ConfigError on all ranks where one could not write.
    """
    final = folder / f"step-{manifest.step:08}"
    partial = folder / f".step-{manifest.step:08}.partial"
    ranks = manifest.ranks
    try:
        _all(exchange, rank, ranks, lambda: _cleared(partial) if rank == 0 else None)
        digests = _all(exchange, rank, ranks, lambda: _write_state(partial / rank_file(rank), state))
        files = {rank_file(r): digest for r, digest in enumerate(digests)}
        complete = Manifest(manifest.step, ranks, manifest.config, manifest.recipe, manifest.text, files)
        _all(exchange, rank, ranks, lambda: _publish(partial, final, complete, keep) if rank == 0 else None)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"checkpoint {final} cannot be written: {why}; choose a folder with room") from None
    return final


def _all(exchange: Exchange, rank: int, ranks: int, do: Callable[[], _T]) -> list[_T]:
    """Do it on each rank and tell all; raises on every rank the first OSError that one of them met."""
    try:
        mine: tuple[_T | None, str] = (do(), "")
    except OSError as error:
        mine = (None, f"{error.strerror or error} on rank {rank}")
    results: list[Any] = [mine] * ranks
    if ranks > 1:
        exchange.run(lambda: dist.all_gather_object(results, mine)).result()
    for _, failure in results:
        if failure:
            raise OSError(failure)
    return [result for result, _ in results]


def _cleared(partial: Path) -> None:
    """An empty folder: what an earlier run left half-written goes."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write_state(path: Path, state: dict[str, Any]) -> str:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error).splitlines()[0]) from None
        _to_disk(file.fileno())
    return _sha256(path)


def _publish(partial: Path, final: Path, manifest: Manifest, keep: int) -> None:
    body = _body(manifest)
    text = json.dumps({"manifest": body, "sha256": _digest_of(body)}, indent=1)
    with (partial / _MANIFEST).open("w") as file:
        file.write(text + "\n")
        file.flush()
        _to_disk(file.fileno())
    _folder_to_disk(partial)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():  # the same step run again from an earlier checkpoint
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    partial.rename(final)
    _folder_to_disk(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep:
        for old in _checkpoints(final.parent)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def _to_disk(descriptor: int) -> None:
    os.fsync(descriptor)


def _folder_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _body(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": manifest.step,
        "ranks": manifest.ranks,
        "config": asdict(manifest.config),
        "recipe": asdict(manifest.recipe),
        "text": manifest.text,
        "files": manifest.files,
    }


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    """By step."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name)) if folder.is_dir() else []


def find(path: Path) -> Path:
    """The checkpoint that `path` is, or the latest in the folder that it is. Raises ConfigError where there is none."""
    if (path / _MANIFEST).exists():
        return path
    found = _checkpoints(path)
    if not found:
        raise ConfigError(
            f"no checkpoint in {path}: give a folder that a run has saved to, or one of its step-… folders"
        )
    return found[-1]


def read_manifest(found: Path) -> Manifest:
    """found: a checkpoint, as `find` returns it. Raises ConfigError where its manifest is torn or of another format."""
    torn = f"checkpoint {found} is torn, {{}}: use an earlier one of {found.parent}, and delete this one"
    try:
        whole = json.loads((found / _MANIFEST).read_text())
        body, digest = whole["manifest"], whole["sha256"]
    except OSError as error:
        raise ConfigError(torn.format(f"its manifest cannot be read ({error.strerror})")) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(torn.format("its manifest is no manifest")) from None
    if digest != _digest_of(body):
        raise ConfigError(torn.format("its manifest does not have its own SHA-256"))
    if body["format"] != FORMAT:
        raise ConfigError(f"checkpoint {found} has format {body['format']}, this version reads {FORMAT}: train anew")
    config, recipe = _value(Config, body["config"], found), _value(Recipe, body["recipe"], found)
    return Manifest(body["step"], body["ranks"], config, recipe, body["text"], body["files"])


def _value(kind: type[_T], kept: dict[str, Any], path: Path) -> _T:
    unknown = set(kept) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigError(
            f"checkpoint {path} has {names}, which this version does not know: use the version that wrote it"
        )
    return kind(**kept)


def check(path: Path, kept: Manifest, c: Config, recipe: Recipe, ranks: int, text: str) -> None:
    """Raises ConfigError where a run would not go on as the one that wrote the checkpoint."""
    if kept.ranks != ranks:
        raise ConfigError(
            f"checkpoint {path} was written by {kept.ranks} ranks, not {ranks}: resume it with {kept.ranks}"
        )
    for what, mine, theirs in (("configuration", c, kept.config), ("recipe", recipe, kept.recipe)):
        a, b = asdict(mine), asdict(theirs)
        differs = [f"{name} {b[name]!r}, not {a[name]!r}" for name in a if a[name] != b[name]]
        if differs:
            raise ConfigError(
                f"checkpoint {path} has another {what}: {'; '.join(differs)}; resume it with its own, or start anew"
            )
    if kept.text != text:
        raise ConfigError(f"checkpoint {path} was trained on another text: resume it under the Python that began it")


def read_state(path: Path, manifest: Manifest, rank: int) -> dict[str, Any]:
    """What `rank` had saved. Raises ConfigError where its file is missing, torn or changed."""
    name = rank_file(rank)
    try:
        whole = manifest.files.get(name) == _sha256(path / name)
    except OSError as error:
        raise ConfigError(
            f"checkpoint {path} lacks {name} ({error.strerror}): use an earlier one of {path.parent}, "
            "and delete this one"
        ) from None
    if not whole:
        raise ConfigError(
            f"checkpoint {path} is torn, {name} does not have its SHA-256: use an earlier one of {path.parent}, "
            "and delete this one"
        )
    state: dict[str, Any] = torch.load(path / name, map_location="cpu", weights_only=True)
    return state


def load_weights(path: Path, model: Model, *, averaged: bool = False) -> Manifest:
    """Give `model` the weights of a checkpoint, whatever its ranks: experts of all files are joined and dealt out anew.

    path: a checkpoint or the folder of several; averaged: the averages that training kept, in the weights' place
    Raises ConfigError where a file is torn, the ranks do not divide the experts, or no averages were kept.
    """
    found = find(path)
    manifest = read_manifest(found)
    manifest.config.local_experts(model.ranks)
    states = []
    for r in range(manifest.ranks):
        whole = read_state(found, manifest, r)
        state = whole["model"]
        if averaged:
            if whole["ema"] is None:
                raise ConfigError(f"checkpoint {found} has no averaged weights: train with --ema, or take the others")
            names = [name for name, _ in model.named_parameters()]
            state = state | dict(zip(names, whole["ema"], strict=True))
        states.append(state)
    model.load_state_dict(
        {
            name: torch.cat([s[name] for s in states]).chunk(model.ranks)[model.rank].clone()
            if ".experts." in name
            else value
            for name, value in states[0].items()
        }
    )
    return manifest
