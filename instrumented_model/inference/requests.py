"""Lists of requests: read from a file of JSON lines, or drawn from the corpus to have something to serve.

{"prompt": "def main(", "max_new": 40}
{"tokens": [12, 7, 103], "max_new": 8, "arrival": 3, "stop": 10}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.inference.batching import Request
from moescope.instrumented_model.inference.text import checked, encode

_NUMBERS = {"max_new": 1, "arrival": 0, "stop": 0}
"""Keys of whole numbers and the least each may be."""


def read(file: Path, c: Config, max_new: int) -> list[Request]:
    """max_new: where a line has none of its own. Raises ConfigError with file and line for what cannot be served."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"requests {file}: cannot be read: {error}; write a JSON object a line") from None
    requests: list[Request] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(_request(len(requests), json.loads(line), c, max_new))
            except json.JSONDecodeError as error:
                raise ConfigError(f"requests {file}:{number}: not JSON: {error.msg}; write an object a line") from None
            except ConfigError as error:
                raise ConfigError(f"requests {file}:{number}: {error}") from None
    if not requests:
        raise ConfigError(f'requests {file}: it is empty; write a JSON object a line, such as {{"prompt": "def"}}')
    return requests


def _request(number: int, line: Any, c: Config, max_new: int) -> Request:
    if not isinstance(line, dict):
        raise ConfigError('write an object, such as {"prompt": "def", "max_new": 40}')
    unknown = set(line) - {"prompt", "tokens", *_NUMBERS}
    if unknown:
        raise ConfigError(f"unknown key {min(unknown)!r}; keys are prompt or tokens, {', '.join(_NUMBERS)}")
    numbers = {key: _number(key, line[key]) for key in _NUMBERS if line.get(key) is not None}
    if ("prompt" in line) == ("tokens" in line):
        raise ConfigError("give either prompt, a text, or tokens, a list of numbers")
    if "prompt" in line:
        if not isinstance(line["prompt"], str):
            raise ConfigError(f"prompt must be a text, got {line['prompt']!r}")
        prompt = encode(line["prompt"], c.vocabulary)
    else:
        if not isinstance(line["tokens"], list) or any(type(token) is not int for token in line["tokens"]):
            raise ConfigError(f"tokens must be a list of whole numbers, got {line['tokens']!r}")
        prompt = checked(line["tokens"], c.vocabulary)
    return Request(number, prompt, numbers.get("max_new", max_new), numbers.get("arrival", 0), stop=numbers.get("stop"))


def _number(key: str, value: Any) -> int:
    if type(value) is not int or value < _NUMBERS[key]:
        raise ConfigError(f"{key} must be a whole number of at least {_NUMBERS[key]}, got {value!r}")
    return value


def drawn(count: int, c: Config, text: torch.Tensor, *, max_new: int, spacing: int, seed: int) -> list[Request]:
    """Passages of many lengths as prompts, 1 to `max_new` new tokens, one after another `spacing` steps apart at most.

    text: [bytes] uint8, all in the vocabulary; returns: in the order of arrival
    """
    generator = torch.Generator().manual_seed(seed)

    def number(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    requests, arrival = [], 0
    for n in range(count):
        length = number(1, c.sequence_length)
        start = number(0, len(text) - length)
        prompt = tuple(int(byte) for byte in text[start : start + length])
        requests.append(Request(n, prompt, number(1, max_new), arrival))
        arrival += number(0, spacing)
    return requests
