"""Mends what some profilers wrote that JSON does not know, outside of what is valid: valid JSON stays as it is.

`inf`, `nan` and `N/A` as bare values (Kineto before 2021, and Python's json module), backslashes of Windows paths and
line breaks inside strings, text that is no UTF-8, commas with nothing behind them (allowed in Chrome's array form).
"""

from __future__ import annotations

import re
from typing import Final

# Possessive, so that a string of any length takes no memory to match.
_TOKEN: Final = re.compile(
    rb'(?P<string>"(?:[^"\\]++|\\.)*+")|(?P<open>"(?:[^"\\]++|\\.)*+\\?\Z)'
    rb"|(?<![\w.+-])-?(?:nan(?:\((?:ind|snan)\))?|NaN|NAN|infinity|Infinity|inf|Inf|INF|N/A)(?=[\s,\]}])"
    rb"|(?P<comma>,[\s,]*+(?=[\]}]))",
    re.S,
)
_ODD: Final = re.compile(rb"[\\\x00-\x1f]")
_IN_STRING: Final = re.compile(
    rb'(?P<valid>\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|'
    rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
    rb"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\|(?P<control>[\x00-\x1f])"
)


def _within(match: re.Match[bytes]) -> bytes:
    if match["valid"]:
        return match["valid"]
    if match["lone"]:
        return b"\\ufffd"
    control = match["control"]
    return b"\\u%04x" % control[0] if control else b"\\\\"


def _token(match: re.Match[bytes]) -> bytes:
    if match["open"]:
        return match["open"]
    if match["comma"]:
        return b""
    string = match["string"]
    if not string:
        return b"null"
    return _IN_STRING.sub(_within, string) if _ODD.search(string) else string


def mended(text: bytes) -> bytes:
    """JSON text that begins outside of a string, with bare non-numbers as null and strings' odd bytes escaped.

    A token that the text's end may have cut stays as it is, so that text can be mended as it comes in.
    """
    return _TOKEN.sub(_token, text)


def as_utf8(text: bytes) -> bytes:
    """The text with every byte that is no UTF-8 as U+FFFD."""
    return text.decode("utf-8", "replace").encode()
