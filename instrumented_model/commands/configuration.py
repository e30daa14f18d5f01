"""The configuration of a run: a size, changed by a TOML file, changed by flags. Errors tell their place.

# big.toml
size = "lite"        # where to start from; --size on the command line goes before it
layers = 4
routed_scale = 2.5

--config big.toml --set top_k=2 --set fp8=false
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from moescope.instrumented_model.config import Config, ConfigError, size

DEFAULT_SIZE = "tiny"
TYPES: dict[str, type] = {f.name: type(getattr(Config(""), f.name)) for f in fields(Config)}
"""Every key and the type of its value: str, int, float or bool."""
_WANTED = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_WORDS = {"true": True, "false": False}


def configured(named: str | None = None, file: Path | None = None, settings: Sequence[str] = ()) -> Config:
    """The size `named` (else the file's, else tiny) with the file's keys, then with `settings`, each `key=value`.

    Raises ConfigError for an unknown key, a wrong type, a bad value, a file that cannot be read; says where it stands.
    """
    from_file = {} if file is None else _read(file)
    base = from_file.pop("size", DEFAULT_SIZE)
    if not isinstance(base, str):
        raise ConfigError(f"{file}: size {base!r} must be a text such as {DEFAULT_SIZE!r}")
    c = _with(size(named or base), f"{file}", from_file)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: write key=value, such as layers=4")
        key = key.strip()
        c = _with(c, f"--set {setting}", {key: _parsed(TYPES.get(key, str), text.strip())})
    return c


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"--config {file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not a TOML file: {error}") from None


def _parsed(wanted: type, text: str) -> Any:
    """A flag's text as TOML would read it; as it is where that is no value of the type wanted."""
    if wanted is bool:
        return _WORDS.get(text.lower(), text)
    if wanted in (int, float):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _with(c: Config, place: str, changes: Mapping[str, Any]) -> Config:
    checked = {key: _checked(place, key, value) for key, value in changes.items()}
    try:
        return replace(c, **checked)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _checked(place: str, key: str, value: Any) -> Any:
    if key not in TYPES:
        near = difflib.get_close_matches(key, TYPES, n=1)
        keys = f"did you mean {near[0]!r}?" if near else f"keys are size, {', '.join(TYPES)}"
        raise ConfigError(f"{place}: unknown key {key!r}; {keys}")
    wanted = TYPES[key]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:  # a bool is an int to isinstance
        raise ConfigError(f"{place}: {key} must be {_WANTED[wanted]}, got {value!r}")
    return value
