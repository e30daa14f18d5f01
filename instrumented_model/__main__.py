"""python -m moescope.instrumented_model train|prefill|decode|generate|all, alone or under torchrun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moescope.instrumented_model.commands import all as all_stages
from moescope.instrumented_model.commands import common, decode, generate, prefill, train

COMMANDS = {"train": train, "prefill": prefill, "decode": decode, "generate": generate, "all": all_stages}


def parser() -> argparse.ArgumentParser:
    """The command line: a verb, then arguments shared by all and its own."""
    top = argparse.ArgumentParser(
        prog="python -m moescope.instrumented_model",
        description="FP8 mixture-of-experts model on the CPU; run under torchrun to spread its experts over ranks.",
    )
    verbs = top.add_subparsers(dest="stage", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = (module.__doc__ or "").partition(": ")[2]
        verb = verbs.add_parser(name, help=about.splitlines()[0], description=about)
        common.add_arguments(verb)
        module.add_arguments(verb)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The program. returns: exit code, as `common.execute` has it"""
    a = parser().parse_args(argv)
    module = COMMANDS[a.stage]
    return common.execute(a, module.run, getattr(module, "configuration", common.configuration))


if __name__ == "__main__":
    sys.exit(main())
