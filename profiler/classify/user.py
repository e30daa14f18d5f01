"""Rules that users write: TOML, checked entry by entry; a problem is one line with file, rule and what is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from moescope.collectors.schema import KINDS
from moescope.profiler.classify.rules import Rule
from moescope.profiler.errors import UsageProblem

_KEYS: Final = ("name", "pattern", "kind", "operator", "reason")
_EXAMPLE: Final = "[[rule]] with pattern = 'my_exchange' and kind = 'comm'"


def read_rules(path: Path) -> list[Rule]:
    """Rules from a TOML file: `[[rule]]` tables with pattern and kind, and as you like name, operator, reason.

    A pattern is a regular expression, searched in the whole kernel name without regard to case. Raises UsageProblem
    where the file or a rule is not as it must be.
    """
    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageProblem(f"{path}: cannot read the rules: {problem.strerror or problem}") from problem
    except UnicodeDecodeError as problem:
        raise UsageProblem(
            f"{path}: the rules are not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from problem
    except tomllib.TOMLDecodeError as problem:
        raise UsageProblem(f"{path}: the rules are not TOML: {problem}") from problem
    except RecursionError as problem:
        raise UsageProblem(f"{path}: the rules are nested too deep to be rules") from problem
    unknown = sorted(set(loaded) - {"rule"})
    if unknown:
        raise UsageProblem(f"{path}: knows no {_listed(unknown)}: write {_EXAMPLE}")
    entries = loaded.get("rule")
    if not isinstance(entries, list) or not entries:
        raise UsageProblem(f"{path}: holds no rules: write {_EXAMPLE}")
    return rules_from(entries, str(path))


def rules_from(entries: list[Any], path: str) -> list[Rule]:
    """Rules from entries as they stand in a TOML file or in a recording's `meta.json`.

    path: what to call their file. Raises UsageProblem for the first that is not as it must be.
    """
    rules = [_rule(path, number, entry) for number, entry in enumerate(entries, 1)]
    seen: dict[str, int] = {}
    for number, rule in enumerate(rules, 1):
        first = seen.setdefault(rule.name, number)
        if first != number:
            raise UsageProblem(f"{path}: rule {number} has the name of rule {first}, {rule.name!r}: give it its own")
    return rules


def _rule(path: str, number: int, entry: object) -> Rule:
    where = f"{path}: rule {number}"
    if not isinstance(entry, dict):
        raise UsageProblem(f"{where} is no table: write {_EXAMPLE}")
    named = entry.get("name")
    if isinstance(named, str):
        where = f"{where} ({named!r})"
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise UsageProblem(f"{where} has {_listed(unknown)}, which is none of {', '.join(_KEYS)}")
    for key in _KEYS:
        if key in entry and not (isinstance(entry[key], str) and entry[key].strip()):
            raise UsageProblem(f"{where}: {key} must be text, not {_shown(entry[key])}")
    for key in ("pattern", "kind"):
        if key not in entry:
            raise UsageProblem(f"{where} has no {key}")
    kind, pattern = entry["kind"], entry["pattern"]
    if kind not in KINDS:
        raise UsageProblem(f"{where}: kind {kind!r} is none of {', '.join(KINDS)}")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as problem:
        raise UsageProblem(f"{where}: pattern {pattern!r} is no regular expression: {problem}") from problem
    if compiled.search("") is not None:
        raise UsageProblem(f"{where}: pattern {pattern!r} matches every name, even an empty one")
    return Rule(
        entry.get("name", f"user-{number}"),
        "whole",
        pattern,
        kind,
        entry.get("operator", "*" if kind == "comm" else "other"),
        entry.get("reason", f"a rule of {Path(path).name}"),
    )


def as_entry(rule: Rule) -> dict[str, str]:
    """A rule as `rules_from` takes it."""
    return {key: getattr(rule, key) for key in _KEYS}


def _listed(keys: list[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
