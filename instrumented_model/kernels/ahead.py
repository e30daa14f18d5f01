"""Every kernel compiled for Hopper without a GPU, and what its machine code holds.

Triton's compiler and the assembler and disassembler that it ships need no device. What they cannot tell is how fast a
kernel is, or that its results are right on the hardware.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moescope.instrumented_model.kernels import exchange, gemm, grouped_gemm, interpreted, quantise, transpose
from moescope.instrumented_model.kernels.exchange import ELEMENTS, SUMMED
from moescope.instrumented_model.kernels.mainloop import LARGE, SMALL, Shape

TARGET = GPUTarget("cuda", 90, 32)
REGISTERS_OF_AN_SM, THREADS_OF_AN_SM, SHARED_BYTES_OF_AN_SM = 65536, 2048, 228 * 1024
"""Compute capability 9.0, CUDA programming guide."""
SYSTEM_SHARED_BYTES = 1024
"""That each resident program takes besides its own."""
_TRACE = ("*i64", "*i32", "i32", "i32")
_FP8, _F32, _BF16, _BYTE, _INDEX = "*fp8e4nv", "*fp32", "*bf16", "*u8", "*i32"


@dataclass(frozen=True)
class Variant:
    """A kernel as a wrapper launches it for V3's shapes: d = 7168, experts 2048 wide.

    types: of arguments that are not int32; constants: constexprs, absent arguments (None) and strides of 1
    uneven: int32 arguments that are no multiples of 16, as the wrapper's counts are
    """

    name: str
    kernel: Any
    types: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 3
    uneven: frozenset[str] = field(default=frozenset())


def _gemm(
    name: str,
    shape: Shape,
    *,
    tma: bool = True,
    blocks: bool = True,
    out: str = _BF16,
    add: bool = False,
    promote: bool = True,
) -> Variant:
    x, w = (f"tensordesc<fp8e4nv[{rows},128]>" if tma else _FP8 for rows in (shape.rows, shape.columns))
    constants: dict[str, Any] = {
        "stride_xs_row": 1, "ACCUMULATE": add, "TMA": tma, "BLOCKS": blocks, "PROMOTE": promote,
        "ROWS": shape.rows, "COLUMNS": shape.columns, "STAGES": shape.stages, "BAND": gemm.BAND,
    }  # fmt: skip
    constants["stride_ws_tile" if blocks else "stride_ws_row"] = 1
    types = {"x": x, "w": w, "xs": _F32, "ws": _F32, "y": out}
    return Variant(name, gemm.gemm_kernel, types, constants, shape.warps, shape.stages, frozenset({"m"}))


def _grouped_m(name: str, shape: Shape, *, tma: bool = True) -> Variant:
    x, w = (f"tensordesc<fp8e4nv[{rows},128]>" if tma else _FP8 for rows in (shape.rows, shape.columns))
    constants = {
        "stride_xs_row": 1, "stride_ws_tile": 1, "TMA": tma,
        "ROWS": shape.rows, "COLUMNS": shape.columns, "STAGES": shape.stages, "GROUPS": 32,
    }  # fmt: skip
    types = {"x": x, "w": w, "xs": _F32, "ws": _F32, "y": _BF16, "offsets": _INDEX}
    return Variant(name, grouped_gemm.grouped_gemm_m_kernel, types, constants, shape.warps, shape.stages)


def _grouped_k(name: str, *, tma: bool = True, add: bool = False) -> Variant:
    x, w = (f"tensordesc<fp8e4nv[{rows},128]>" if tma else _FP8 for rows in (LARGE.rows, LARGE.columns))
    constants = {
        "stride_xs_row": 1, "stride_ws_row": 1, "ACCUMULATE": add, "TMA": tma,
        "ROWS": LARGE.rows, "COLUMNS": LARGE.columns, "STAGES": LARGE.stages,
    }  # fmt: skip
    types = {"x": x, "w": w, "xs": _F32, "ws": _F32, "y": _F32, "offsets": _INDEX}
    return Variant(name, grouped_gemm.grouped_gemm_k_kernel, types, constants, LARGE.warps, LARGE.stages)


def _quantise(power_of_2: bool) -> Variant:
    constants = {"stride_s_row": 1, "POWER_OF_2": power_of_2, "ROWS": quantise.ROWS}
    types = {"x": _BF16, "q": _FP8, "s": _F32}
    name = "quantise 1x128, power-of-2" if power_of_2 else "quantise 1x128, FP32"
    return Variant(name, quantise.quantise_kernel, types, constants, quantise.WARPS, uneven=frozenset({"m"}))


def _swiglu(name: str, kernel: Any, *, cached: bool) -> Variant:
    backward = kernel is quantise.swiglu_backward_kernel
    constants: dict[str, Any] = {"stride_s_row": 1, "POWER_OF_2": True, "ROWS": quantise.ROWS}
    types = {"h": _FP8 if cached else _BF16, "q": _FP8, "s": _F32} | ({"dy": _BF16} if backward else {"gates": _F32})
    if cached:
        types["hs"], constants["stride_hs_row"] = _F32, 1
    else:
        constants["hs"] = None
    return Variant(name, kernel, types, constants, quantise.WARPS, uneven=frozenset({"m"}))


def _transpose(name: str, *, quantised: bool) -> Variant:
    constants: dict[str, Any] = {"stride_qs_row": 1, "POWER_OF_2": True, "GROUPS": 32}
    types = {"x": _FP8 if quantised else _BF16, "q": _FP8, "qs": _F32, "offsets": _INDEX}
    if quantised:
        types["s"], constants["stride_s_row"] = _F32, 1
    else:
        constants["s"] = None
    return Variant(name, transpose.transpose_quantise_kernel, types, constants, transpose.WARPS)


VARIANTS = (
    _quantise(False),
    _quantise(True),
    _swiglu("SwiGLU + quantise", quantise.swiglu_kernel, cached=False),
    _swiglu("SwiGLU + quantise, cached E4M3", quantise.swiglu_kernel, cached=True),
    _swiglu("SwiGLU backward + quantise, cached E4M3", quantise.swiglu_backward_kernel, cached=True),
    _transpose("transpose + requantise", quantised=True),
    _transpose("transpose + quantise, BF16", quantised=False),
    _gemm("GEMM 128x128", LARGE),
    _gemm("GEMM 64x128", SMALL),
    _gemm("GEMM 128x128, pointers", LARGE, tma=False),
    _gemm("GEMM 64x128, pointers", SMALL, tma=False),
    _gemm("GEMM 128x128, Wgrad, adds to FP32", LARGE, blocks=False, out=_F32, add=True),
    _gemm("GEMM 128x128, never promoted", LARGE, promote=False),
    _grouped_m("grouped M 128x128", LARGE),
    _grouped_m("grouped M 64x128", SMALL),
    _grouped_m("grouped M 128x128, pointers", LARGE, tma=False),
    _grouped_k("grouped K 128x128", add=False),
    _grouped_k("grouped K 128x128, adds to FP32", add=True),
    _grouped_k("grouped K 128x128, pointers", tma=False),
    Variant(
        "dispatch", exchange.dispatch_kernel,
        {"x": _BYTE, "s": _F32, "to": _BYTE, "to_s": _F32, "source": _INDEX},
        {"stride_s_row": 1, "stride_to_s_tile": 1, "ROWS": ELEMENTS // 8192, "WIDTH": 8192, "TILES": 64},
        exchange.WARPS, uneven=frozenset({"slots", "tiles", "stride_to_s_row"}),
    ),
    Variant(
        "combine", exchange.combine_kernel, {"rows": _BF16, "slot": _INDEX, "weights": _F32, "y": _BF16},
        {"TOP_K": 8, "ROWS": SUMMED // 8192, "WIDTH": 8192}, exchange.WARPS,
        uneven=frozenset({"tokens", "stride_slot", "stride_weights"}),
    ),
    Variant(
        "combine, plain sum", exchange.combine_kernel, {"rows": _BF16, "slot": _INDEX, "y": _BF16},
        {"weights": None, "TOP_K": 8, "ROWS": SUMMED // 8192, "WIDTH": 8192}, exchange.WARPS,
        uneven=frozenset({"tokens", "stride_slot", "stride_weights"}),
    ),
)  # fmt: skip
"""All that wrappers launch, each with the specialisations that V3's shapes give."""


@dataclass(frozen=True)
class Machine:
    """What the assembler made of a kernel.

    registers: of a thread; stack_bytes: of a thread, where spills go; shared_bytes: of a program, static and dynamic
    instructions: mnemonics in order, with their modifiers: `QGMMA.64x128x32.F32.E4M3.E4M3`
    operands: of each instruction, as the disassembler prints them
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    instructions: tuple[str, ...]
    operands: tuple[str, ...]
    ptx: str

    def count(self, *names: str) -> int:
        """Instructions whose mnemonic without modifiers is one of `names`."""
        counted = Counter(i.split(".")[0] for i in self.instructions)
        return sum(counted[name] for name in names)

    @property
    def spills(self) -> int:
        """Loads from and stores to local memory."""
        return self.count("LDL", "STL")

    @property
    def clock_reads(self) -> int:
        """Reads of the global timer."""
        return sum("SR_GLOBALTIMERLO" in o for o in self.operands)

    @property
    def sm_reads(self) -> int:
        """Reads of the SM's number."""
        return sum("SR_VIRTUALSMID" in o for o in self.operands)

    @property
    def registers_of_program(self) -> int:
        """Registers that a program holds while it runs; they are given out in eights a thread."""
        return -(-self.registers // 8) * 8 * self.threads


def compiled(variant: Variant, *, traced: bool = False, kernel: Any = None) -> Machine:
    """Compile for sm_90 and take the result apart.

    traced: with records; kernel: another function of the same arguments in place of the variant's
    raises: RuntimeError under the interpreter, which has put itself in the compiler's place
    """
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: kernels cannot be compiled, unset it")
    function = variant.kernel if kernel is None else kernel
    names: list[str] = function.arg_names
    constants = dict(variant.constants) | ({} if traced else {"trace": None})
    signature: dict[str, Any] = {name: variant.types.get(name, "i32") for name in names} | {"trace": _TRACE}
    signature |= dict.fromkeys(constants, "constexpr")
    attributes: dict[tuple[int, ...], list[list[Any]]] = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if isinstance(kind, str) and (kind.startswith("*") or (kind == "i32" and name not in variant.uneven))
    }
    attributes |= {(names.index("trace"), i): [["tt.divisibility", 16]] for i in range(2)} if traced else {}
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    binary = triton.compile(source, target=TARGET, options=options)
    usage, listing = _taken_apart(binary.asm["cubin"])
    lines = _INSTRUCTION.findall(listing)
    return Machine(
        registers=_used(usage, "REG"),
        stack_bytes=_used(usage, "STACK") + _used(usage, "LOCAL"),
        shared_bytes=_used(usage, "SHARED") + int(binary.metadata.shared),
        threads=32 * variant.warps,
        instructions=tuple(mnemonic for mnemonic, _ in lines),
        operands=tuple(rest for _, rest in lines),
        ptx=binary.asm["ptx"],
    )


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


@functools.cache
def disassembler() -> Path:
    """NVIDIA's cuobjdump, as Triton ships it. Raises RuntimeError where it is missing."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: reinstall triton, whose wheel for Linux holds it")
    return path


def _taken_apart(cubin: bytes) -> tuple[str, str]:
    """Resource usage and listing of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(disassembler()), "-res-usage", "-sass", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage, code, listing = told.partition("code for sm_")
    return usage, code + listing


def _used(usage: str, what: str) -> int:
    found = re.search(rf"\b{what}:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"the disassembler tells no {what}: {usage!r}")
    return int(found[1])


def share_an_sm(a: Machine, b: Machine) -> bool:
    """Whether a program of `a` and one of `b` fit onto one SM together, by registers, threads and shared memory."""
    return (
        a.registers_of_program + b.registers_of_program <= REGISTERS_OF_AN_SM
        and a.threads + b.threads <= THREADS_OF_AN_SM
        and a.shared_bytes + b.shared_bytes + 2 * SYSTEM_SHARED_BYTES <= SHARED_BYTES_OF_AN_SM
    )


def table(*words: str) -> str:
    """A line a kernel: what its machine code holds, without records and with them.

    words: only kernels with one of these in their name
    """
    rows = [
        ["kernel", "registers", "spills", "shared KiB", "QGMMA", "promotions", "instructions", "traced", "registers"]
    ]
    for variant in VARIANTS:
        if words and not any(word.lower() in variant.name.lower() for word in words):
            continue
        plain, traced = compiled(variant), compiled(variant, traced=True)
        figures = (
            plain.registers, plain.spills, round(plain.shared_bytes / 1024), plain.count("QGMMA"),
            promotions(plain), len(plain.instructions), len(traced.instructions), traced.registers,
        )  # fmt: skip
        rows.append([variant.name, *map(str, figures)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]


def promotions(machine: Machine) -> int:
    """FP32 additions to accumulators after a group of QGMMAs and before the loop turns."""
    names = [i.split(".")[0] for i in machine.instructions]
    if "QGMMA" not in names:
        return 0
    last = len(names) - 1 - names[::-1].index("QGMMA")
    # Branches ahead wait for operands, as Triton 3.6 has it; the loop turns at the one that leads back.
    turn = next((i for i in range(last, len(names)) if names[i] == "BRA" and _leads_to(machine, i) <= last), len(names))
    return sum(name in ("FFMA", "FADD") for name in names[last:turn])


def _leads_to(machine: Machine, branch: int) -> int:
    """The instruction that a branch leads to; one past all where that is not told."""
    found = re.search(r"0x([0-9a-f]+)", machine.operands[branch])
    return int(found[1], 16) // _INSTRUCTION_BYTES if found is not None else len(machine.instructions)


_INSTRUCTION_BYTES = 16
"""Of Volta and everything since."""
