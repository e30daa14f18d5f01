"""Whatever a file holds, reading it gives an answer or one clear error, in bounded memory and time."""

import gzip
import json
import zlib

import pytest

from moescope.profiler.errors import MoescopeError
from moescope.profiler.source import open_source
from moescope.profiler.sources import blocks
from moescope.profiler.sources.lanes import MOST
from tests.sources.damage import run
from tests.sources.test_kineto import GPU, event, write


def test_damaged_files_give_an_answer_or_a_clear_error(tmp_path):
    came_to = run(150, 7, tmp_path)
    assert came_to["answer"]
    assert came_to["MoescopeError"]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_damaged_files_give_an_answer_or_a_clear_error(tmp_path):
    assert sum(run(20_000, 0, tmp_path).values()) == 20_000


def test_gzip_that_unfolds_without_end_is_stopped_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "UNSUSPECTED", 8 << 20)
    file = tmp_path / "bomb.json.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with file.open("wb") as out:
        out.write(packer.compress(b'{"traceEvents": ['))
        for _ in range(3):
            out.write(packer.compress(b" " * (4 << 20)))
        out.write(packer.flush())
    with pytest.raises(MoescopeError, match="unfold to more than"):
        open_source([file])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"traceEvents": ' + b"[" * 100_000, "event 0 of traceEvents: Expected `object`"),
        (b'{"traceEvents": [{"args": ' + b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"traceEvents": [{"name": "' + b"x" * 3_000_000, "at byte 3000027: the file ends early"),
        (b'{"traceEvents": [{}, {}]} {}', "trailing characters"),
        (b'{"traceEvents": [{}, {},,{}]}', "broken JSON"),
        (b'[{"ph": "X"}, 7]', "event 1 of traceEvents"),
        (b"PK\x03\x04rest", "a zip archive: unpack it"),
        (gzip.compress(b"[]", mtime=0) + b"rest", "gzip data is damaged"),
        (b'{"traceEvents": [{"ph": "X"}', "ends early"),
        (b'{"traceEvents": [{"ph": "X", "cat": X}]}', "broken JSON at byte 36"),
        (b'{"baseTimeNanoseconds": 1e18, "traceEvents": []}', "no device kernels"),
        (b'{"baseTimeNanoseconds": 9000000000000000000, "traceEvents": []}', "beyond any clock"),
    ],
)
def test_hostile_files_are_refused_with_what_and_where(tmp_path, content, problem):
    file = tmp_path / "hostile.json"
    file.write_bytes(content)
    with pytest.raises(MoescopeError, match=problem) as caught:
        open_source([file])
    assert str(file) in str(caught.value)


def test_streams_without_number_are_shown_as_one_beyond_the_busiest(tmp_path):
    events = [event("kernel", "gemm", at, 1 + (at == 9), stream=at, device=0) for at in range(3 * MOST)]
    source = open_source([write(tmp_path / "a.json", events)])
    streams = source.table("kernels")["stream"].to_pylist()
    assert len(streams) == 3 * MOST
    assert len(set(streams)) == MOST + 1
    assert streams.count("9") == 1
    assert f"{3 * MOST} streams" in source.table("log")["message"][0].as_py()


def test_of_a_key_that_stands_twice_the_last_counts_as_in_any_reader(tmp_path):
    text = json.dumps({"traceEvents": GPU}).replace('"dur": 9.999', '"dur": 1, "dur": 9.999')
    twice = '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "ghost", "ts": 1, "dur": 1}], ' + text[1:]
    (tmp_path / "a.json").write_text(twice)
    kernels = open_source([tmp_path / "a.json"]).table("kernels").to_pylist()
    assert [(row["name"][:4], row["dur_ns"]) for row in kernels] == [("nccl", 9999), ("nvje", 10_000), ("Mems", 1000)]
