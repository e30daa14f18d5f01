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
    from moescope.profiler.classify import classify, rule_named
    from moescope.profiler.commands.following import say_next

    take_rules(rules)
    found = classify(name)
    rule = rule_named(found.rule)
    reason = rule.reason if rule is not None else "no rule matches: add one with --rules FILE.toml"
    if as_json:
        import json

        answer = {"name": name, "kind": found.kind, "operator": found.operator, "rule": found.rule, "reason": reason}
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    click.echo(f"kind      {found.kind}\noperator  {found.operator}\nrule      {found.rule}\nbecause   {reason}")
    if rule is None:
        say_next(f"moescope explain {shlex.quote(name)} --rules FILE.toml")
