"""Operands of an operator's call as the `shapes` column holds them, and the matrix type they are of.

An argument is a slot, slots are parted by `;`: `64,128` a tensor of that shape, `[64,128|64,256]` a list of tensors,
`=True` a plain value where the source tells it, nothing for all else. Empty slots at the end are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

Shape = tuple[int, ...]

_MOST_SLOTS: Final = 64
_MOST_AXES: Final = 8
"""Tensors have few axes; sizes beyond it are no tensor's, and their product no number of elements."""

_LONGEST_VALUE: Final = 32
_NAMES: Final = {
    "f64": "double float64 fp64 f64",
    "f32": "float float32 fp32 f32",
    "tf32": "tf32",
    "f16": "half float16 fp16 f16",
    "bf16": "bfloat16 bf16",
    "fp8_e4m3": "float8_e4m3fn float8_e4m3fnuz float8_e4m3 fp8_e4m3 fp8_e4m3fn e4m3",
    "fp8_e5m2": "float8_e5m2 float8_e5m2fnuz fp8_e5m2 e5m2",
    "fp8": "fp8 float8",
    "fp4": "float4_e2m1fn_x2 fp4_e2m1x2 fp4 nvfp4 mxfp4",
    "i64": "long longint int64 i64",
    "i32": "int int32 i32",
    "i16": "short shortint int16 i16",
    "i8": "char signedchar int8 i8",
    "u8": "byte unsignedchar uint8 u8",
    "bool": "bool",
}
_DTYPES: Final = {alias: name for name, aliases in _NAMES.items() for alias in aliases.split()}

ITEM_BYTES: Final = {
    "f64": 8.0, "f32": 4.0, "tf32": 4.0, "f16": 2.0, "bf16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "fp8": 1.0,
    "fp4": 0.5, "i64": 8.0, "i32": 4.0, "i16": 2.0, "i8": 1.0, "u8": 1.0, "bool": 1.0,
}  # fmt: skip
"""Bytes of an element in memory by type."""


@dataclass(frozen=True, slots=True)
class Operands:
    """A call's arguments in their order.

    tensors: [arguments] shape, None for what is no tensor; lists: [arguments] shapes of a list of tensors, else empty;
    values: [arguments] a plain value as text, None where not told
    """

    tensors: tuple[Shape | None, ...]
    lists: tuple[tuple[Shape, ...], ...]
    values: tuple[str | None, ...]

    def tensor(self, at: int) -> Shape | None:
        """Shape of an argument; None where it is no tensor or not there."""
        return self.tensors[at] if at < len(self.tensors) else None

    def value(self, at: int) -> str | None:
        """A plain value; None where not told."""
        return self.values[at] if at < len(self.values) else None

    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of all tensors that are arguments by themselves."""
        return tuple(shape for shape in self.tensors if shape is not None)


def dtype_named(name: object) -> str | None:
    """A type's name as this project writes it (`bf16`, `fp8_e4m3`); None for what is no type of an element.

    name: as PyTorch and its traces write it, `c10::BFloat16`, `long int`, `Float8_e4m3fn`, `float`
    """
    if not isinstance(name, str):
        return None
    return _DTYPES.get(name.strip().lower().removeprefix("c10::").removeprefix("torch.").replace(" ", ""))


def operand_text(dims: object, values: object = None) -> str | None:
    """`Input Dims` of a trace as the `shapes` column holds them; None where they tell of no tensor.

    dims: [arguments] each [dimensions], or a list of such; values: `Concrete Inputs`, [arguments] str
    """
    if not isinstance(dims, (list, tuple)):
        return None
    told = values if isinstance(values, (list, tuple)) and len(values) == len(dims) else ()
    slots = [_slot(entry, told[at] if told else None) for at, entry in enumerate(dims[:_MOST_SLOTS])]
    while slots and not slots[-1]:
        slots.pop()
    return ";".join(slots) if any(slot and not slot.startswith("=") for slot in slots) else None


def matrix_dtype(dims: object, types: object) -> str | None:
    """Type of the first tensor with at least one dimension; None where that is not told.

    dims, types: `Input Dims` and `Input type` of a trace, [arguments] each
    """
    if not isinstance(dims, (list, tuple)) or not isinstance(types, (list, tuple)):
        return None
    for entry, name in zip(dims, types, strict=False):
        if _is_shape(entry):
            return dtype_named(name)
    return None


@lru_cache(maxsize=65536)
def parse_operands(text: str) -> Operands | None:
    """The `shapes` column's text; None where it is not of its form."""
    tensors: list[Shape | None] = []
    lists: list[tuple[Shape, ...]] = []
    values: list[str | None] = []
    for slot in text.split(";"):
        shape: Shape | None = None
        listed: tuple[Shape, ...] = ()
        value: str | None = None
        if slot.startswith("="):
            value = slot[1:]
        elif slot.startswith("[") and slot.endswith("]"):
            found = [_shape(part) for part in slot[1:-1].split("|")]
            listed = tuple(part for part in found if part is not None)
            if len(listed) != len(found):
                return None
        elif slot.strip():
            shape = _shape(slot)
            if shape is None:
                return None
        tensors.append(shape)
        lists.append(listed)
        values.append(value)
    return Operands(tuple(tensors), tuple(lists), tuple(values))


def _shape(text: str) -> Shape | None:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _MOST_AXES:
        return None
    return tuple(int(part) for part in parts) if all(_is_count(part) for part in parts) else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _is_shape(entry: object) -> bool:
    return (
        isinstance(entry, (list, tuple))
        and 0 < len(entry) <= _MOST_AXES
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**60 for size in entry)
    )


def _slot(entry: object, value: object) -> str:
    if _is_shape(entry):
        assert isinstance(entry, (list, tuple))
        return _joined(entry)
    if isinstance(entry, (list, tuple)) and entry and all(_is_shape(part) for part in entry):
        return "[" + "|".join(_joined(part) for part in entry[:_MOST_SLOTS]) + "]"
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_VALUE and ";" not in value and value.isprintable():
        return "=" + value
    return ""


def _joined(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))
