"""What a kernel's name consists of: the function, its template arguments, and call arguments that decide nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 8192
"""Letters of a name that are looked at: what a kernel does stands before its thousandth template argument."""

_ANONYMOUS: Final = re.compile(
    r"\(anonymous namespace\)::|\{anonymous\}::|<unnamed>::|\(anonymous\)::|_GLOBAL__N_\w+::"
)
_CLONE: Final = re.compile(r"(?:\s*\[clone [^\]]*\]|\.kd|\.constprop\.\d+|\.isra\.\d+|\.part\.\d+)+$")
_COPY: Final = re.compile(r"\[?(?:cuda |hip )?mem(?:cpy|set)", re.IGNORECASE)
_LENGTH: Final = re.compile(r"\d+")
_NO_WORD: Final = re.compile(r"L[a-z]n?\d+E|S[0-9A-Z]*_|T\d*_|(\d+)")
"""In a mangled name, digits that tell no length: of literals, substitutions and template parameters; else a length."""
_WRAPPER: Final = re.compile(r"(?:^|::)(?:Kernel2?|device_kernel|kentry|global_kernel)$")
_TYPE: Final = re.compile(r"[A-Za-z_][\w:]*")


@dataclass(frozen=True, slots=True)
class Name:
    """A kernel's name, taken apart.

    head: the function, without return type, template and call arguments; of CUTLASS's and CK's entry points, which all
    kernels share, with the type they run; body: the head with its template arguments; whole: the name as it stands
    """

    head: str
    body: str
    whole: str


def take_apart(name: str) -> Name:
    """Head and body of a name: demangled, mangled (`_Z…`), cut off anywhere, or a plain word."""
    text = _CLONE.sub("", name[:LONGEST])
    if text.startswith("_Z"):
        head, body = _demangled(text)
        return Name(head, body, name)
    text = _ANONYMOUS.sub("", text)
    if _COPY.match(text) or ("<" not in text and "(" not in text):
        return Name(text.strip(), text.strip(), name)
    head, end = _head(text)
    body = text[:end]
    return Name(_with_type(head, body) or text, body, name)


def head_of(name: str) -> str:
    """The function's name: without return type, template arguments and call arguments.

    `void at::native::(anonymous namespace)::f<int, g()>(int*)` gives `at::native::f`.
    """
    return take_apart(name).head


def _head(text: str) -> tuple[str, int]:
    """The head, and where the call arguments begin."""
    depth = 0
    kept: list[str] = []
    at = 0
    for at, letter in enumerate(text):
        if letter == "<":
            depth += 1
        elif letter == ">":
            if at and text[at - 1] == "-":
                continue
            depth = max(depth - 1, 0)
        elif letter == "(" and depth == 0 and "".join(kept).strip() not in ("", "void"):
            break
        elif depth == 0:
            kept.append(letter)
    else:
        at = len(text)
    words = "".join(kept).split()
    return (words[-1] if words else ""), at


def _demangled(name: str) -> tuple[str, str]:
    """Head and body of a mangled name.

    `_ZN7deep_ep9internode8dispatchILb0EEEvPv` is `deep_ep::internode::dispatch`; the body holds every identifier in
    the name, for what stands between them is no word.
    """
    at = 2
    while at < len(name) and name[at] in "NLKVrRO":
        at += 1
    parts, at = _identifiers(name, at, nested="N" in name[2:at])
    head = "::".join(part for part in parts if not part.startswith("_GLOBAL__N_"))
    if not head:
        return name, name
    rest: list[str] = []
    while (match := _NO_WORD.search(name, at)) is not None:
        size = int((match[1] or "0")[:5])
        word = name[match.end() : match.end() + size]
        at = match.end()
        if size and len(word) == size and (word[0].isalpha() or word[0] == "_"):
            rest.append(word)
            at += size
    body = f"{head}<{' '.join(rest)}>" if rest else head
    return _with_type(head, body), body


def _identifiers(name: str, at: int, *, nested: bool) -> tuple[list[str], int]:
    """Identifiers that follow one another: namespaces and the function, or the function alone if not nested."""
    parts: list[str] = []
    while (nested or not parts) and (match := _LENGTH.match(name, at)) is not None and len(match[0]) < 6:
        size = int(match[0])
        parts.append(name[match.end() : match.end() + size])
        at = match.end() + size
    return parts, at


def _with_type(head: str, body: str) -> str:
    """`ck_tile::kentry` as `ck_tile::kentry<ck_tile::MoeSortingKernel`: the entry point alone says nothing."""
    if _WRAPPER.search(head) is None:
        return head
    found = _TYPE.search(body, body.find("<") + 1) if "<" in body else None
    return f"{head}<{found[0]}" if found is not None else head
