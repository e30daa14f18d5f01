"""Found first on PYTHONPATH in a process under `moescope run`: runs the user's own sitecustomize, then loads the agent.

Must be valid in every Python that a command may start, 2.7 included, and must never be the reason that one fails.
"""

import os
import sys


def _chain():
    """Runs the sitecustomize that this one hides."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    path = [p for p in sys.path if os.path.abspath(p or os.curdir) != here]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _load():
    from importlib.util import module_from_spec, spec_from_file_location

    folder = os.environ["MOESCOPE_AGENT"]
    spec = spec_from_file_location(
        "_moescope_agent", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    module = module_from_spec(spec)
    sys.modules["_moescope_agent"] = module
    try:
        spec.loader.exec_module(module)
        module.install()
    except BaseException:  # raised again: a half-made agent must not be found
        sys.modules.pop("_moescope_agent", None)
        raise


if sys.version_info >= (3, 8):
    _error = None
    if os.environ.get("MOESCOPE_AGENT"):
        try:
            _load()
        except Exception as error:  # noqa: BLE001  the target goes on, whatever is wrong with us
            _error = error
    if _error is not None:
        sys.stderr.write("moescope: this process is not recorded: %r\n" % (_error,))
    _chain()
