"""The profiler's folders lie in layers: what one imports never comes to import it, however late it is imported."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import moescope.profiler

ROOT = Path(moescope.profiler.__file__).parent
PREFIX = "moescope.profiler."


def _imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_folders_of_the_profiler_import_in_one_direction():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    below = defaultdict(set)
    for folder in folders:
        for module in (ROOT / folder).rglob("*.py"):
            names = (name.removeprefix(PREFIX) for name in _imported(ast.parse(module.read_text(encoding="utf-8"))))
            below[folder] |= ({name.split(".")[0] for name in names} & folders) - {folder}
    assert below["commands"] > {"summary", "compare", "whatif"}
    order = list(TopologicalSorter(below).static_order())  # raises CycleError with the folders of the cycle
    assert order.index("overlap") < order.index("summary") < order.index("commands")
