"""Machine code of every kernel for sm_90, compiled without a GPU: what must be in it and what must not."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from moescope.instrumented_model.kernels import ahead, interpreted, why_not
from moescope.instrumented_model.kernels.mainloop import LARGE

pytestmark = pytest.mark.skipif(interpreted(), reason="TRITON_INTERPRET is set: nothing can be compiled")

BY_NAME = {variant.name: variant for variant in ahead.VARIANTS}
PRODUCTS = [name for name in BY_NAME if name.startswith(("GEMM", "grouped"))]
PROMOTED = [name for name in PRODUCTS if "never promoted" not in name]
QUANTISERS = [name for name in BY_NAME if "quantise" in name]
FIRST_OF_EACH_KERNEL = list({v.kernel.__name__: v.name for v in reversed(ahead.VARIANTS)}.values())
EXCHANGES = ["dispatch", "combine", "combine, plain sum"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@functools.cache
def _machines() -> dict[tuple[str, bool], ahead.Machine]:
    """All variants, with records and without, compiled two at a time."""
    wanted = [(name, traced) for name in BY_NAME for traced in (False, True)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return dict(zip(wanted, pool.map(_compiled, wanted), strict=True))


def _compiled(what: tuple[str, bool]) -> ahead.Machine:
    name, traced = what
    return ahead.compiled(BY_NAME[name], traced=traced)


def _machine(name: str, traced: bool = False) -> ahead.Machine:
    return _machines()[name, traced]


def _operations(machine: ahead.Machine) -> list[str]:
    return [i.split(".")[0] for i in machine.instructions]


def test_every_kernel_is_among_the_variants() -> None:
    folder = Path(ahead.__file__).parent
    defined = {
        name for path in folder.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    }
    assert {variant.kernel.__name__ for variant in ahead.VARIANTS} == defined
    assert set(PRODUCTS + QUANTISERS + EXCHANGES) == set(BY_NAME)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_spills_and_a_program_fits_onto_an_sm(name: str, traced: bool) -> None:
    machine = _machine(name, traced)
    assert machine.spills == 0
    assert machine.stack_bytes == 0
    assert machine.registers_of_program <= ahead.REGISTERS_OF_AN_SM
    assert machine.shared_bytes < 227 * 1024


@pytest.mark.parametrize("name", BY_NAME)
def test_clock_and_sm_are_read_when_traced_and_only_then(name: str) -> None:
    plain, traced = _machine(name), _machine(name, True)
    assert (plain.clock_reads, plain.sm_reads) == (0, 0)
    assert "%globaltimer" not in plain.ptx
    assert "%smid" not in plain.ptx
    assert traced.clock_reads == 2
    assert traced.sm_reads >= 1


@pytest.fixture(scope="module")
def never_recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """Gives a kernel as if no record had ever been written into it: its module's source without these lines."""
    folder = tmp_path_factory.mktemp("never")
    modules: dict[str, ModuleType] = {}

    def without(kernel: Any) -> Any:
        path = Path(kernel.fn.__code__.co_filename)
        if path.stem not in modules:
            kept, removed = re.subn(
                r"^ +(written = record_open|start = record_begin|record_end)\(.*\n", "", path.read_text(), flags=re.M
            )
            assert removed >= 3
            assert not re.search(r"record_(open|begin|end)\(", kept)
            (folder / path.name).write_text(kept)
            spec = importlib.util.spec_from_file_location(f"never_{path.stem}", folder / path.name)
            assert spec is not None
            assert spec.loader is not None
            modules[path.stem] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[path.stem])
        return getattr(modules[path.stem], kernel.__name__)

    return without


@pytest.mark.parametrize("name", FIRST_OF_EACH_KERNEL)
def test_records_switched_off_leave_the_machine_code_of_a_kernel_without_any(
    name: str, never_recording: Callable[[Any], Any]
) -> None:
    off = _machine(name)
    never = ahead.compiled(BY_NAME[name], kernel=never_recording(BY_NAME[name].kernel))
    assert never.operands == off.operands
    assert never.instructions == off.instructions
    assert (never.registers, never.shared_bytes) == (off.registers, off.shared_bytes)


def test_importing_the_package_costs_neither_triton_nor_torch() -> None:
    code = (
        "import sys, moescope.instrumented_model.kernels as k\n"
        "assert not {'triton', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_reason_why_kernels_cannot_run_here_is_one_line() -> None:
    reason = why_not()
    assert reason is None or (reason and "\n" not in reason)


@pytest.mark.parametrize("name", PROMOTED)
def test_products_are_four_fp8_tensor_core_steps_between_promotions(name: str) -> None:
    machine = _machine(name)
    steps = [i for i, operation in enumerate(_operations(machine)) if operation == "QGMMA"]
    assert len(steps) == 4  # k = 32 each: N_C = 128
    assert all(re.match(r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3", machine.instructions[i]) for i in steps)
    accumulators = BY_NAME[name].constants["ROWS"] * BY_NAME[name].constants["COLUMNS"] // machine.threads
    assert ahead.promotions(machine) == accumulators == 64
    assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3" in machine.ptx


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_record_begins_before_the_product_and_ends_after_it(name: str) -> None:
    """The compiler moves neither read of the clock across the work that it times."""
    machine = _machine(name, True)
    clock = [i for i, operands in enumerate(machine.operands) if "SR_GLOBALTIMERLO" in operands]
    steps = [i for i, operation in enumerate(_operations(machine)) if operation == "QGMMA"]
    assert clock[0] < steps[0] < steps[-1] < clock[1]


def test_a_sum_that_is_never_promoted_runs_on_in_the_tensor_core() -> None:
    machine = _machine("GEMM 128x128, never promoted")
    steps = [rest for i, rest in zip(machine.instructions, machine.operands, strict=True) if i.startswith("QGMMA")]
    assert len(steps) == 4
    assert not any("!UPT" in rest for rest in steps), "each step adds to what is there"
    assert ahead.promotions(machine) == 0


@pytest.mark.parametrize("name", PROMOTED)
def test_each_block_starts_from_zero_and_is_added_outside_the_tensor_core(name: str) -> None:
    """The first of four steps ignores its accumulator (`!UPT`): nothing runs on in 14 bits past 128 elements."""
    machine = _machine(name)
    steps = [rest for i, rest in zip(machine.instructions, machine.operands, strict=True) if i.startswith("QGMMA")]
    assert "!UPT" in steps[0]
    assert not any("!UPT" in rest for rest in steps[1:])


@pytest.mark.parametrize("name", [n for n in PRODUCTS if "pointers" not in n])
def test_descriptors_load_through_the_tensor_memory_accelerator(name: str) -> None:
    assert _machine(name).count("UTMALDG") == 2 * LARGE.stages


@pytest.mark.parametrize("name", QUANTISERS)
def test_casts_are_the_hardware_s(name: str) -> None:
    machine = _machine(name)
    assert "cvt.rn.satfinite.e4m3x2.f32" in machine.ptx
    assert machine.count("F2FP") > 0


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_and_an_exchange_never_share_an_sm(product: str, exchange: str) -> None:
    for traced in (False, True):
        assert not ahead.share_an_sm(_machine(product, traced), _machine(exchange, traced))


@pytest.mark.parametrize("name", EXCHANGES)
def test_rows_travel_16_bytes_a_load(name: str) -> None:
    machine = _machine(name)
    loads = [i for i in machine.instructions if i.startswith("LDG")]
    assert sum(".128" in i for i in loads) >= (2 if name == "dispatch" else BY_NAME[name].constants["TOP_K"])


@pytest.mark.parametrize("name", FIRST_OF_EACH_KERNEL)
def test_sizes_of_1_compile_too(name: str) -> None:
    """Triton turns an argument of 1 into a constant, and then much of a kernel's arithmetic is constant."""
    variant = BY_NAME[name]
    sizes = {"m", "n", "k", "f", "d", "groups", "tiles"} & set(variant.kernel.arg_names)
    ones = dataclasses.replace(variant, constants=dict(variant.constants) | dict.fromkeys(sizes, 1))
    assert ahead.compiled(ones).spills == 0


def test_the_command_prints_a_row_for_every_kernel_that_it_is_asked_for() -> None:
    command = [sys.executable, "-m", "moescope.instrumented_model.kernels", "combine", "DISPATCH"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=170)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[0] == "|"]
    assert [row[0] for row in rows[2:]] == EXCHANGES
    for row in rows[2:]:
        assert int(row[1]) == _machine(row[0]).registers
        assert int(row[6]) == len(_machine(row[0]).instructions)
