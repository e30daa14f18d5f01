"""Every kernel on small shapes under Triton's interpreter, against references written independently of them.

The interpreter is chosen when triton is imported, so the cases of `tests/model/interpreted` run in another process.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
FILES = sorted((Path(__file__).parent / "interpreted").glob("cases_*.py"))


def _cases() -> list[str]:
    return [
        f"{path.stem}.{node.name}"
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each case said: nothing for each of its parameters that passed, else why it failed."""
    found: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(lambda files: _ran(files, tmp_path_factory.mktemp("run")), (FILES[::2], FILES[1::2])):
            for case in ElementTree.parse(results).iter("testcase"):
                name = f"{case.attrib['classname'].split('.')[-1]}.{case.attrib['name'].split('[')[0]}"
                found[name].append("\n".join(f"{case.attrib['name']}: {child.text}" for child in case))
    return found


def _ran(files: Sequence[Path], folder: Path) -> Path:
    """The results of all cases in some files, under the interpreter."""
    results = folder / "results.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={results}"]
    done = subprocess.run(
        [*command, *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(folder / "triton"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert results.exists(), done.stdout + done.stderr
    return results


@pytest.mark.parametrize("case", _cases())
def test_under_the_interpreter(case: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[case], "the case did not run"
    assert not any(outcomes[case]), "\n".join(outcomes[case])
