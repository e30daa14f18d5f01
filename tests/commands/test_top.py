"""`moescope top` where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from moescope.profiler.commands.top import command
from moescope.profiler.errors import UsageProblem


def test_without_a_terminal_it_names_the_command_that_needs_none(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="moescope summary") as problem:
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert problem.value.exit_code == 2
