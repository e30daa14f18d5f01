"""Rules of users: asked first, checked entry by entry; a problem is one line with file, rule and what is wrong."""

import json

import pytest
from click.testing import CliRunner

from moescope.profiler.classify.classifier import classify, explain, use_rules
from moescope.profiler.classify.user import read_rules
from moescope.profiler.commands.main import cli
from moescope.profiler.errors import UsageProblem

GOOD = (
    '[[rule]]\nname = "ours"\npattern = "frob(nicate)?_v\\\\d"\nkind = "comm"\noperator = "p2p"\nreason = "because"\n'
)


@pytest.fixture(autouse=True)
def built_in_rules_again():
    yield
    use_rules([], stored=())


def write(folder, text):
    file = folder / "rules.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_user_rules_are_asked_before_the_built_in_ones_and_see_the_whole_name(tmp_path):
    text = GOOD + '[[rule]]\npattern = "MyComm"\nkind = "comm"\n'
    use_rules(read_rules(write(tmp_path, text)))
    assert explain("FROB_V7").reason == "because"
    assert classify("void elementwise_kernel<4>(MyComm*)").kind == "comm"
    use_rules([])
    assert classify("FROB_V7").kind == "unknown"


def test_a_rule_without_operator_takes_it_from_the_collective_that_the_name_speaks_of(tmp_path):
    use_rules(read_rules(write(tmp_path, '[[rule]]\npattern = "^acme_"\nkind = "comm"\n')))
    assert classify("acme_AllGather_v2").operator == "all_gather"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["holds no rules"]),
        ("rule = 3", ["holds no rules"]),
        ("[[rule]", ["not TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
        ("[[rules]]\npattern='x'\nkind='comm'", ["'rules'"]),
        ("rule = [3]", ["rule 1", "no table"]),
        ("[[rule]]\npattern='x'", ["rule 1", "no kind"]),
        ("[[rule]]\nkind='comm'", ["rule 1", "no pattern"]),
        ("[[rule]]\npattern='x'\nkind='comms'", ["rule 1", "'comms'", "compute, comm"]),
        ("[[rule]]\npattern='x'\nkind='host'", ["rule 1", "'host'"]),
        ("[[rule]]\npattern=3\nkind='comm'", ["rule 1", "pattern must be text, not 3"]),
        ("[[rule]]\npattern=''\nkind='comm'", ["rule 1", "pattern must be text"]),
        ("[[rule]]\npattern='x('\nkind='comm'", ["rule 1", "'x('", "no regular expression"]),
        ("[[rule]]\npattern='.*'\nkind='comm'", ["rule 1", "every name"]),
        ("[[rule]]\npattern='x'\nkind='comm'\nclass='p2p'", ["rule 1", "'class'"]),
        (
            "[[rule]]\nname='a'\npattern='x'\nkind='comm'\n[[rule]]\nname='a'\npattern='y'\nkind='comm'",
            ["rule 2", "'a'"],
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_rules_is_one_line_with_file_and_rule(tmp_path, text, says):
    file = write(tmp_path, text)
    with pytest.raises(UsageProblem) as caught:
        read_rules(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_a_missing_file_of_rules_is_named(tmp_path):
    with pytest.raises(UsageProblem, match=r"none\.toml.*[Nn]o such file"):
        read_rules(tmp_path / "none.toml")


def test_explain_tells_kind_operator_rule_reason_and_what_matched(tmp_path):
    found = CliRunner().invoke(cli, ["explain", "void deep_ep::internode::dispatch<false>(int4*)"])
    assert found.output.splitlines()[:3] == ["kind      comm", "operator  dispatch", "rule      deepep-dispatch"]
    assert "matched" in found.output
    told = json.loads(
        CliRunner().invoke(cli, ["explain", "FROB_v7", "--json", "--rules", write(tmp_path, GOOD)]).output
    )
    assert (told["name"], told["kind"], told["rule"], told["reason"]) == ("FROB_v7", "comm", "ours", "because")


def test_rules_that_an_import_was_given_stay_with_the_recording(tmp_path):
    events = [
        {"ph": "X", "cat": "kernel", "name": "frob_v7", "pid": 0, "tid": 7, "ts": 0, "dur": 5, "args": {"device": 0}}
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    arguments = [
        "import",
        str(tmp_path / "trace.json"),
        "-o",
        str(tmp_path / "rec"),
        "--rules",
        str(write(tmp_path, GOOD)),
    ]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    use_rules([])
    summary = ["summary", str(tmp_path / "rec"), "--json"]
    assert json.loads(CliRunner().invoke(cli, summary).output)["total"]["comm_us"] == 5
    other = write(tmp_path, '[[rule]]\npattern = "frob"\nkind = "memory"\n')
    told = json.loads(CliRunner().invoke(cli, [*summary, "--rules", str(other)]).output)
    assert (told["total"]["memory_us"], told["total"]["comm_us"]) == (5, 0)
    meta = tmp_path / "rec" / "meta.json"
    meta.write_text(meta.read_text().replace('"kind": "comm"', '"kind": "comms"'))
    found = CliRunner().invoke(cli, summary)
    assert isinstance(found.exception, UsageProblem)
    assert "meta.json: rule 1 ('ours'): kind 'comms'" in str(found.exception)


def test_explain_shows_no_control_character_of_a_name():
    for arguments in (["explain", "all_reduce\x1b[2J\u202e"], ["explain", "all_reduce\x1b[2J\u202e", "--json"]):
        output = CliRunner().invoke(cli, arguments).output
        assert output
        assert all(letter.isprintable() or letter == "\n" for letter in output)
