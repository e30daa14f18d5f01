"""Code that torch.compile made: of its own loops torch tells nothing on a CPU, so its graphs are told as they run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session import Session

GRAPH = "compiled graph"
"""Name of what a graph does by itself, before its key."""
_KEY_LETTERS = 10
_HOMES = ("torch._inductor.output_code", "torch._inductor.codecache")
"""Where the class of compiled graphs is: from torch 2.6 on, and before."""


class Graphs:
    """Wraps what runs a compiled graph, once the program has compiled one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._done = False

    def look(self) -> None:
        """Whether there is something to wrap by now; cheap, on any thread."""
        if self._done:
            return
        for home in _HOMES:
            graph = getattr(sys.modules.get(home), "CompiledFxGraph", None)
            if graph is not None:
                self._done = True
                self._wrap(graph)
                return

    def _wrap(self, graph: Any) -> None:
        # A forked process finds what its parent has wrapped.
        session, original = self._session, getattr(graph.__call__, "_moescope_original", graph.__call__)
        names: dict[Any, str] = {}

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            key = getattr(self, "_fx_graph_cache_key", None)
            name = names.get(key)
            if name is None:
                name = names[key] = f"{GRAPH} {str(key or '')[:_KEY_LETTERS]}".rstrip()
            ring = session.ring
            outer = ring.graph_begin(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                ring.graph_end(outer)

        __call__._moescope_original = original  # type: ignore[attr-defined]
        graph.__call__ = __call__
