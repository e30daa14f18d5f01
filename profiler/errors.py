"""What can go wrong for a user: each error says what, where and what to do, and carries the exit code."""

from __future__ import annotations


class MoescopeError(Exception):
    """A problem the user can act on; printed once, in `commands/main.py`, without a traceback."""

    exit_code = 1


class UsageProblem(MoescopeError):
    """The command was given something it cannot take."""

    exit_code = 2


class NoData(MoescopeError):
    """The source holds nothing to answer from."""

    exit_code = 3


class ThresholdFailed(MoescopeError):
    """A threshold that the user set was crossed."""

    exit_code = 4
