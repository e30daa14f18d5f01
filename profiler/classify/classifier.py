"""The one classifier: from a kernel's name to its kind, its operator class, and the rule that says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import KINDS
from moescope.profiler.classify.comm import COMMUNICATION
from moescope.profiler.classify.compute import GPU
from moescope.profiler.classify.cpu import CPU
from moescope.profiler.classify.names import Name, head_of, take_apart
from moescope.profiler.classify.rules import COLLECTIVES, COMPILERS, HOST, MEMORY, Rule
from moescope.profiler.classify.user import read_rules

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

__all__ = [
    "HOST_KIND",
    "RULES",
    "UNKNOWN",
    "Answer",
    "Class",
    "classify",
    "classify_codes",
    "classify_table",
    "explain",
    "head_of",
    "is_host_call",
    "read_rules",
    "stored_rules",
    "use_rules",
    "user_rules",
    "without_host_calls",
]

RULES: Final = (*HOST, *MEMORY, *COMPILERS, *COMMUNICATION, *CPU, *GPU)
"""The table of rules, in the order in which they are asked."""

HOST_KIND: Final = "host"
"""Kind of calls that only issue work: `Source.table("kernels")` leaves them out, so no sum meets them."""

_COLLECTIVES: Final = tuple((re.compile(pattern, re.IGNORECASE), operator) for pattern, operator in COLLECTIVES)
_VAGUE: Final = ("p2p", "collective", "reduce", "gather", "scatter", "notify")
"""Collectives that an enclosing range may name better."""


@dataclass(frozen=True, slots=True)
class Class:
    """What a kernel is: `compute | comm | memory | fused | unknown | host`, its operator class, and the rule's name."""

    kind: str
    operator: str
    rule: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A class and why: the rule's reason, the part of the name that it matched, and the name's head."""

    found: Class
    reason: str
    matched: str
    head: str


UNKNOWN: Final = Class("unknown", "unknown", "no-rule")
_NOT_RULES: Final = {
    "no-rule": "no rule knows this name: it counts as busy, neither as compute nor as communication; "
    "add a rule with --rules FILE.toml",
    "told-by-source": "the source itself tells the kind, which outranks the name",
    "launching-operator": "no rule knows the name; an operator of PyTorch launched it, and those work on one device",
}


@dataclass(frozen=True, slots=True)
class _Compiled:
    rule: Rule
    pattern: re.Pattern[str]


def _compile(rules: Iterable[Rule]) -> tuple[_Compiled, ...]:
    return tuple(_Compiled(rule, re.compile(rule.pattern, re.IGNORECASE)) for rule in rules)


_BUILT_IN: Final = _compile(RULES)
_given: tuple[Rule, ...] = ()
_stored: tuple[Rule, ...] = ()
_compiled = _BUILT_IN


def operator_of_collective(name: str) -> str:
    """The collective that a name speaks of: `all_reduce`, `p2p` …; `collective` where it does not say."""
    return next((operator for pattern, operator in _COLLECTIVES if pattern.search(name)), "collective")


def use_rules(rules: Sequence[Rule], *, stored: Sequence[Rule] | None = None) -> None:
    """Put the user's rules before the built-in ones, for the rest of the process.

    stored: rules that came with recordings, asked after the user's; None leaves them as they are
    """
    global _compiled, _given, _stored
    _given = tuple(rules)
    _stored = _stored if stored is None else tuple(stored)
    _compiled = (*_compile(_given), *_compile(_stored), *_BUILT_IN)
    _of_name.cache_clear()
    _of_op.cache_clear()


def user_rules() -> tuple[Rule, ...]:
    """The user's rules, which another process must be given to classify alike."""
    return _given


def stored_rules() -> tuple[Rule, ...]:
    """Rules that came with recordings."""
    return _stored


def _match(parts: Name) -> tuple[Rule, str] | None:
    """The first rule that matches, and what of the name it matched."""
    texts = {"head": parts.head, "body": parts.body, "whole": parts.whole}
    for compiled in _compiled:
        match = compiled.pattern.search(texts[compiled.rule.where])
        if match is not None:
            return compiled.rule, match[0]
    return None


@lru_cache(maxsize=65536)
def _of_name(name: str) -> Class:
    parts = take_apart(name)
    found = _match(parts)
    if found is None:
        return UNKNOWN
    rule = found[0]
    operator = operator_of_collective(parts.head) if rule.operator == "*" else rule.operator
    return Class(rule.kind, operator, rule.name)


@lru_cache(maxsize=4096)
def _of_op(op: str) -> Class | None:
    """What an operator of PyTorch tells of a kernel that it launched; None for other operators."""
    if not op.startswith("aten::"):
        return None
    found = _of_name(op)
    return Class("compute", found.operator if found.kind == "compute" else "elementwise", "launching-operator")


def classify(name: str, *, stream: str = "", phase: str = "", kind_hint: str | None = None, op: str = "") -> Class:
    """What a kernel is.

    stream: does not decide (a cast on the communication stream is compute); phase: the range around it; op: the
    operator that launched it: both tell which collective a send-receive kernel serves, and the operator speaks where no
    rule knows the name; kind_hint: what the source itself knows, which outranks the name
    """
    del stream
    found = _of_name(name)
    if found.operator in ("p2p", "collective") and found.kind == "comm":
        named = next((word for word in map(operator_of_collective, (phase, op)) if word not in _VAGUE), found.operator)
        found = Class(found.kind, named, found.rule)
    if kind_hint in KINDS and kind_hint not in ("unknown", found.kind):
        operator = operator_of_collective(name) if kind_hint == "comm" else found.operator
        return Class(str(kind_hint), operator, "told-by-source")
    if found is UNKNOWN and op:
        return _of_op(op) or UNKNOWN
    return found


def explain(name: str) -> Answer:
    """What a kernel of this name is, and why."""
    found = classify(name)
    parts = take_apart(name)
    match = _match(parts)
    if match is None:
        return Answer(found, _NOT_RULES[found.rule], "", parts.head)
    return Answer(found, match[0].reason, match[1], parts.head)


def is_host_call(name: str) -> bool:
    """Whether this only issues work that is recorded by itself, and so is no kernel."""
    return _of_name(name).kind == HOST_KIND


def classify_codes(kernels: pa.Table) -> tuple[NDArray[np.int32], tuple[Class, ...]]:
    """Classify every row, once for each distinct name, hint and launching operator.

    returns codes: [rows] index into the classes, of which each stands once
    """
    if not kernels.num_rows:
        return np.empty(0, np.int32), ()
    names, of_name = _encoded(kernels, "name")
    hints, of_hint = _encoded(kernels, "kind")
    ops, of_op = _encoded(kernels, "op")
    present, numbers = _distinct(
        (of_name * len(hints) + of_hint) * len(ops) + of_op, len(names) * len(hints) * len(ops)
    )
    classes: dict[Class, int] = {}
    codes = np.empty(len(present), np.int32)
    for at, key in enumerate(present.tolist()):
        rest, op = divmod(key, len(ops))
        name, hint = divmod(rest, len(hints))
        found = classify(names[name], kind_hint=hints[hint] or None, op=ops[op])
        codes[at] = classes.setdefault(found, len(classes))
    return codes[numbers], tuple(classes)


def _encoded(kernels: pa.Table, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values of a column, null as empty, and each row's: [rows]."""
    import pyarrow.compute as pc

    if column not in kernels.column_names or kernels.column(column).null_count == kernels.num_rows:
        return [""], np.zeros(kernels.num_rows, np.int64)
    encoded = pc.dictionary_encode(pc.fill_null(kernels.column(column).combine_chunks(), ""))
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _distinct(keys: NDArray[np.int64], below: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct keys, rising, and the number of each row's among them: [rows]."""
    if below > max(4 * len(keys), 1 << 20):
        present, numbers = np.unique(keys, return_inverse=True)
        return present, numbers
    present = np.flatnonzero(np.bincount(keys, minlength=below))
    number_of = np.zeros(below, np.int64)
    number_of[present] = np.arange(len(present))
    return present, number_of[keys]


def classify_table(kernels: pa.Table) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """`classify_codes` as words.

    returns kinds, operators, rules: [rows], each an array of str
    """
    codes, classes = classify_codes(kernels)
    kinds, operators, rules = (
        np.array([getattr(one, part) for one in classes] or [""], object)[codes]
        for part in ("kind", "operator", "rule")
    )
    return kinds, operators, rules


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
