"""The analysis commands as a user calls them: results on stdout, one line on stderr, the promised exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moescope.profiler.commands.main import main

DATA = Path(__file__).parents[1] / "data"
TRACE = str(DATA / "tracelens_sglang_moe_decode_b300")
DLRM = str(DATA / "param_dlrm_8rank_v100")


@pytest.fixture
def run(capsys):
    def call(*args):
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


def test_summary_json_has_the_promised_keys_and_reasons(run):
    code, out, err = run("summary", TRACE, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert answer["schema"] == 1
    assert {"source", "evidence", "ranks", "coverage", "total", "dropped_events", "findings"} <= set(answer)

    def check(value):
        if isinstance(value, dict):
            for key, item in value.items():
                if item is None and key != "rank":
                    assert value[f"{key}_reason"], key
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)

    check(answer)


def test_summary_text_is_plain_where_nobody_looks(run):
    code, out, _ = run("summary", DLRM)
    assert code == 0
    assert "\x1b" not in out
    assert "3.4% of communication hidden" in out
    assert len([line for line in out.splitlines() if "cuda:" in line]) == 8


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("summary", "/no/such/thing"), 2),
        (("summary",), 2),
        (("summary", "/no/such\x1b[2J"), 2),
        (("run", "--budgte", "full", "--", "true"), 2),
        (("export", TRACE), 2),
        (("frobnicate",), 2),
        (("export", TRACE, "--to", "csv", "-o", TRACE), 2),
        (("export", TRACE, "--to", "csv", "-o", "/tmp/x", "--window", "5:1"), 2),
        (("summary", os.devnull), 3),
    ],
)
def test_errors_are_one_message_on_stderr_and_an_exit_code(run, args, code):
    found, out, err = run(*args)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("moescope: ")


def test_an_empty_folder_is_no_data(run, tmp_path):
    code, _, err = run("summary", tmp_path)
    assert code == 3
    assert str(tmp_path) in err


def test_an_imported_recording_gives_the_same_answer(run, tmp_path):
    assert run("import", DLRM, "-o", tmp_path / "rec")[0] == 0
    imported = json.loads(run("summary", tmp_path / "rec", "--json")[1])
    direct = json.loads(run("summary", DLRM, "--json")[1])
    assert imported["ranks"] == direct["ranks"]
    assert imported["total"] == direct["total"]
    assert run("import", DLRM, "-o", tmp_path / "rec")[0] == 2
    assert run("import", DLRM, "-o", tmp_path / "rec", "-f")[0] == 0


def test_export_overwrites_only_when_told(run, tmp_path):
    args = ("export", TRACE, "--to", "csv", "-o", tmp_path / "csv")
    assert run(*args)[0] == 0
    assert run(*args)[0] == 2
    assert run(*args, "-f")[0] == 0


def test_user_rules_go_first(run, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "ours"\npattern = "frob"\nkind = "comm"\noperator = "p2p"\nreason = "because"\n')
    try:
        _, out, _ = run("explain", "frobnicate", "--rules", rules)
    finally:
        from moescope.profiler.classify.classifier import use_rules

        use_rules([])
    assert "because   because" in out
    assert "unknown" in run("explain", "frobnicate")[1]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from moescope.profiler.commands.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('pyarrow', 'numpy', 'rich', 'torch', 'textual') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    args = [sys.executable, "-m", "moescope", "summary", DLRM, "--json"]
    done = subprocess.run(args, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_failure():
    command = [sys.executable, "-m", "moescope", "summary", DLRM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        writer.stdout.close()
        assert writer.stderr.read() == ""
    assert writer.returncode == 0


def test_a_window_after_the_end_of_the_run_holds_no_data(run, tmp_path):
    code, _, err = run("export", TRACE, "--to", "csv", "--window", "1000:2000", "-o", tmp_path / "csv")
    assert (code, "the run is over by then" in err) == (3, True)
    assert not (tmp_path / "csv").exists()
