"""Text as the tokens of a model of bytes, and back."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.instrumented_model.config import ConfigError


def encode(text: str, vocabulary: int) -> tuple[int, ...]:
    """UTF-8 bytes. Raises ConfigError for an empty text, and for a byte outside the vocabulary."""
    for position, character in enumerate(text):
        for byte in character.encode("utf-8", "surrogateescape"):
            if byte >= vocabulary:
                raise ConfigError(
                    f"prompt: character {position} ({character!r}) has byte {byte}, outside the vocabulary "
                    f"of {vocabulary}: leave it out, or use a model of 256 bytes"
                )
    return checked(tuple(text.encode("utf-8", "surrogateescape")), vocabulary)


def parse_tokens(text: str, vocabulary: int) -> tuple[int, ...]:
    """`12,7,103`. Raises ConfigError for what is no number, and for a token outside the vocabulary."""
    try:
        tokens = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"tokens {text!r} are not understood: write whole numbers such as 12,7,103") from None
    return checked(tokens, vocabulary)


def checked(tokens: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """The tokens of a prompt. Raises ConfigError where there are none, or one is outside the vocabulary."""
    if not tokens:
        raise ConfigError("prompt: it is empty; give at least one token to go on from")
    for position, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise ConfigError(
                f"prompt: token {token} at position {position} is outside the vocabulary: use 0 to {vocabulary - 1}"
            )
    return tuple(tokens)


def decode(tokens: Sequence[int]) -> str:
    """What is no UTF-8 is shown as `�`; tokens from 256 on as `<300>`."""
    text, run = "", bytearray()
    for token in tokens:
        if token < 256:
            run.append(token)
        else:
            text += run.decode("utf-8", "replace") + f"<{token}>"
            run.clear()
    return text + run.decode("utf-8", "replace")
