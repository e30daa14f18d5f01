"""`moescope explain`: how a kernel name is classified, and why."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from moescope.profiler.commands.options import RULES, take_rules


@click.command()
@click.argument("name", metavar="KERNEL_NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@RULES
def command(name: str, as_json: bool, rules: Path | None) -> None:
    """Say what a kernel of this name is taken for, by which rule, and why.

    \b
      moescope explain 'ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)'
    """
    from moescope.profiler.classify.classifier import UNKNOWN, explain
    from moescope.profiler.commands.following import say_next

    take_rules(rules)
    answer = explain(name)
    told = {
        "kind": answer.found.kind,
        "operator": answer.found.operator,
        "rule": answer.found.rule,
        "reason": answer.reason,
        "matched": answer.matched,
        "function": answer.head,
    }
    if as_json:
        import json

        click.echo(json.dumps({"name": name} | told))
        return
    for key, text in told.items():
        if text:
            label = "because" if key == "reason" else key
            click.echo(f"{label:9} {''.join(letter if letter.isprintable() else '·' for letter in text)}")
    if answer.found == UNKNOWN:
        say_next(f"moescope explain {shlex.quote(name)} --rules FILE.toml")
