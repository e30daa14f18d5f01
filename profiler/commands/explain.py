"""`moescope explain`: how a kernel name is classified, and why."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name", metavar="KERNEL_NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--rules", type=click.Path(path_type=Path), help="TOML file of classifier rules that go before ours.")
def command(name: str, as_json: bool, rules: Path | None) -> None:
    """Say what KERNEL_NAME is taken for, by which rule, and why."""
    from moescope.profiler.classify import classify, rule_named
    from moescope.profiler.commands.summary import take_rules

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
