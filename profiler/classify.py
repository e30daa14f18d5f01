"""The one classifier: from a kernel's name to its kind, its operator class, and the rule that says so."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import KINDS
from moescope.profiler.classify_compute import CPU, GPU
from moescope.profiler.classify_rules import COLLECTIVES, COMMUNICATION, HOST, MEMORY, Rule
from moescope.profiler.errors import UsageProblem

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

RULES: Final = (*HOST, *MEMORY, *COMMUNICATION, *CPU, *GPU)
HOST_KIND: Final = "host"
"""Kind of calls that only issue work: `Source.table("kernels")` leaves them out, so no sum meets them."""

_LENGTH = re.compile(r"\d+")
_COLLECTIVES = tuple((re.compile(pattern, re.IGNORECASE), operator) for pattern, operator in COLLECTIVES)


@dataclass(frozen=True, slots=True)
class Class:
    """What a kernel is: `compute | comm | memory | fused | unknown | host`, its operator class, and the rule's name."""

    kind: str
    operator: str
    rule: str


UNKNOWN: Final = Class("unknown", "unknown", "no-rule")


@dataclass(frozen=True, slots=True)
class _Compiled:
    rule: Rule
    pattern: re.Pattern[str]


def _compile(rules: Iterable[Rule]) -> tuple[_Compiled, ...]:
    return tuple(_Compiled(rule, re.compile(rule.pattern, re.IGNORECASE)) for rule in rules)


_compiled = _compile(RULES)
_user_rules: tuple[Rule, ...] = ()


def head_of(name: str) -> str:
    """The function's name: without return type, template arguments and call arguments.

    `void at::native::(anonymous namespace)::f<int, g()>(int*)` gives `at::native::f`.
    """
    if name.startswith("_Z"):
        return _demangled(name)
    text = name.replace("(anonymous namespace)::", "").replace("{anonymous}::", "")
    if " " in text and "(" not in text and "<" not in text:
        return text
    depth = 0
    kept: list[str] = []
    for letter in text:
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth = max(depth - 1, 0)
        elif letter == "(" and depth == 0 and "".join(kept).strip() not in ("", "void"):
            if "".join(kept).lower().startswith("mem"):
                return text
            break
        elif depth == 0:
            kept.append(letter)
    return "".join(kept).strip().rsplit(" ", 1)[-1] or text


def _demangled(name: str) -> str:
    """`_ZN7deep_ep9internode8dispatchILb0EEEvPv` as `deep_ep::internode::dispatch`; as it is where that fails."""
    at = 3 if name.startswith("_ZN") else 2
    parts = []
    while match := _LENGTH.match(name, at):
        size = int(match[0])
        parts.append(name[match.end() : match.end() + size])
        at = match.end() + size
    return "::".join(part for part in parts if part != "_GLOBAL__N_1") or name


def operator_of_collective(name: str) -> str:
    """The collective that a name speaks of: `all_reduce`, `p2p` …; `collective` where it does not say."""
    return next((operator for pattern, operator in _COLLECTIVES if pattern.search(name)), "collective")


def use_rules(rules: Sequence[Rule]) -> None:
    """Put the user's rules before the built-in ones, for the rest of the process."""
    global _compiled, _user_rules
    _user_rules = tuple(rules)
    _compiled = _compile((*_user_rules, *RULES))
    _of_name.cache_clear()


def rule_named(name: str) -> Rule | None:
    """The rule of this name, the user's first."""
    return next((rule for rule in (*_user_rules, *RULES) if rule.name == name), None)


@lru_cache(maxsize=65536)
def _of_name(name: str) -> Class:
    head = head_of(name)
    for compiled in _compiled:
        rule = compiled.rule
        if compiled.pattern.search(head if rule.where == "head" else name):
            operator = operator_of_collective(head) if rule.operator == "*" else rule.operator
            return Class(rule.kind, operator, rule.name)
    return UNKNOWN


def classify(name: str, *, stream: str = "", phase: str = "", kind_hint: str | None = None) -> Class:
    """What a kernel is.

    stream: does not decide (a cast on the communication stream is compute); phase: the range around it, which
    tells what a send-receive kernel serves; kind_hint: what the source itself knows, which outranks the name
    """
    del stream
    found = _of_name(name)
    if found.operator in ("p2p", "collective") and found.kind == "comm" and phase:
        named = operator_of_collective(phase)
        if named not in ("p2p", "collective", "reduce", "gather", "scatter", "notify"):
            found = Class(found.kind, named, found.rule)
    if kind_hint in KINDS and kind_hint not in ("unknown", found.kind):
        operator = operator_of_collective(name) if kind_hint == "comm" else found.operator
        return Class(str(kind_hint), operator, "told-by-source")
    return found


def is_host_call(name: str) -> bool:
    """Whether this only issues work that is recorded by itself, and so is no kernel."""
    return _of_name(name).kind == HOST_KIND


def classify_table(kernels: pa.Table) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Classify every row, once for each distinct name and hint.

    returns kinds, operators, rules: [rows], each an array of str
    """
    import pyarrow.compute as pc

    if not kernels.num_rows:
        none = np.empty(0, object)
        return none, none.copy(), none.copy()
    names = pc.dictionary_encode(pc.fill_null(kernels.column("name").combine_chunks(), ""))
    hints = pc.dictionary_encode(pc.fill_null(kernels.column("kind").combine_chunks(), ""))
    width = len(hints.dictionary)
    codes = names.indices.to_numpy().astype(np.int64) * width + hints.indices.to_numpy()
    name_list, hint_list = names.dictionary.to_pylist(), hints.dictionary.to_pylist()
    known = [np.full(len(name_list) * width, None, object) for _ in range(3)]
    for code in np.flatnonzero(np.bincount(codes, minlength=len(known[0]))).tolist():
        found = classify(name_list[code // width], kind_hint=hint_list[code % width] or None)
        known[0][code], known[1][code], known[2][code] = found.kind, found.operator, found.rule
    return known[0][codes], known[1][codes], known[2][codes]


def without_host_calls(kernels: Rows) -> Rows:
    """The rows that are kernels; kernels: a table or a record batch"""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not kernels.num_rows:
        return kernels
    names = pc.unique(kernels.column("name")).to_pylist()
    issued = [name for name in names if name is not None and is_host_call(name)]
    if not issued:
        return kernels
    return kernels.filter(pc.invert(pc.is_in(kernels.column("name"), pa.array(issued, pa.string()))))


def read_rules(path: Path) -> list[Rule]:
    """Rules from a TOML file: `[[rule]]` tables with name, pattern, kind, operator, reason.

    Raises UsageProblem where the file or a rule is not as it must be.
    """
    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise UsageProblem(f"{path}: cannot read the rules: {problem}") from problem
    entries = loaded.get("rule", loaded.get("rules", []))
    if not isinstance(entries, list) or not entries:
        raise UsageProblem(f"{path}: holds no [[rule]] table; give each rule name, pattern, kind, operator, reason")
    return [_user_rule(path, number, entry) for number, entry in enumerate(entries, 1)]


def _user_rule(path: Path, number: int, entry: object) -> Rule:
    where = f"{path}: rule {number}"
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("pattern"), str)
        or not isinstance(entry.get("kind"), str)
    ):
        raise UsageProblem(f"{where}: needs at least pattern and kind, both text")
    if entry["kind"] not in KINDS:
        raise UsageProblem(f"{where}: kind {entry['kind']!r} is none of {', '.join(KINDS)}")
    try:
        re.compile(entry["pattern"])
    except re.error as problem:
        raise UsageProblem(f"{where}: pattern {entry['pattern']!r} is no regular expression: {problem}") from problem
    return Rule(
        str(entry.get("name", f"user-{number}")),
        "any",
        entry["pattern"],
        entry["kind"],
        str(entry.get("operator", "other")),
        str(entry.get("reason", f"told by {path.name}")),
    )
