"""What each method of `ProcessGroup` does: its operation, what it moves to and from whom, and how gloo executes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Bytes = tuple[Sequence[int] | int | None, Sequence[int] | None]
"""Bytes to and from each rank of the group, by its rank in the group; None where the operation does not tell, and one
number for the operand's where they do not say what goes to whom."""


def _size(tensor: Any) -> int:
    return int(tensor.nbytes)


def _uneven(tensor: Any, splits: Sequence[int] | None, n: int) -> list[int]:
    """Bytes of each part of `tensor`, split along its first dimension."""
    total = tensor.nbytes
    if not splits:
        return [total // n] * n
    shape = tensor.shape
    row = total // max(shape[0], 1) if shape else total
    return [row * part for part in splits]


def _except(me: int, n: int, value: int) -> list[int]:
    return [0 if peer == me else value for peer in range(n)]


def _only(peer: int, n: int, value: int) -> list[int]:
    return [value if p == peer else 0 for p in range(n)]


def all_to_all_base(me: int, n: int, output: Any, input: Any, outs: Any = None, ins: Any = None, *_: Any) -> Bytes:
    return _uneven(input, ins, n), _uneven(output, outs, n)


def _all_to_all(me: int, n: int, outputs: Any, inputs: Any, *_: Any) -> Bytes:
    return [_size(t) for t in inputs], [_size(t) for t in outputs]


def _all_gather_base(me: int, n: int, output: Any, input: Any, *_: Any) -> Bytes:
    return _except(me, n, _size(input)), _except(me, n, _size(output) // n)


def _all_gather(me: int, n: int, outputs: Any, inputs: Any, *_: Any) -> Bytes:
    own = sum(_size(t) for t in inputs)
    return _except(me, n, own), _except(me, n, own)


def _reduce_scatter_base(me: int, n: int, output: Any, input: Any, *_: Any) -> Bytes:
    return _except(me, n, _size(input) // n), _except(me, n, _size(output))


def _reduce_scatter(me: int, n: int, outputs: Any, inputs: Any, *_: Any) -> Bytes:
    sent = [sum(_size(parts[peer]) for parts in inputs) for peer in range(n)]
    return sent, _except(me, n, sum(_size(t) for t in outputs))


def _broadcast(me: int, n: int, tensors: Any, options: Any = None, *_: Any) -> Bytes:
    total = sum(_size(t) for t in tensors) if isinstance(tensors, list | tuple) else _size(tensors)
    root = options if isinstance(options, int) else int(getattr(options, "rootRank", 0))
    return (_except(me, n, total), [0] * n) if me == root else ([0] * n, _only(root, n, total))


def _send(me: int, n: int, tensors: Any, peer: int, *_: Any) -> Bytes:
    return _only(peer, n, sum(_size(t) for t in tensors)), [0] * n


def _receive(me: int, n: int, tensors: Any, peer: int, *_: Any) -> Bytes:
    return [0] * n, _only(peer, n, sum(_size(t) for t in tensors))


def _reduced(me: int, n: int, tensors: Any, *_: Any) -> Bytes:
    each = tensors if isinstance(tensors, list | tuple) else (tensors,)
    return None if any(getattr(t, "is_sparse", False) for t in each) else sum(_size(t) for t in each), None


def _untold(me: int, n: int, *_: Any) -> Bytes:
    return None, None


RANGES = frozenset({"all_to_all", "all_reduce", "all_gather", "broadcast", "reduce", "gather", "scatter", "barrier"})
"""Operations that gloo executes under a range of this name."""

ELSEWHERE = {
    "_reduce_scatter_base": "gloo:all_reduce",
    "reduce_scatter_single": "gloo:all_reduce",
}
"""Methods that gloo executes under a range of another operation, of which it makes them: where a version does not, the
call's `wait` tells."""

METHODS: dict[str, tuple[str, Callable[..., Bytes]]] = {
    "alltoall_base": ("all_to_all", all_to_all_base),
    "all_to_all_single": ("all_to_all", all_to_all_base),
    "alltoall": ("all_to_all", _all_to_all),
    "allgather": ("all_gather", _all_gather),
    "_allgather_base": ("all_gather", _all_gather_base),
    "all_gather_single": ("all_gather", _all_gather_base),
    "all_gather_single_coalesced": ("all_gather", _untold),
    "allgather_into_tensor_coalesced": ("all_gather", _untold),
    "allgather_coalesced": ("all_gather", _untold),
    "reduce_scatter": ("reduce_scatter", _reduce_scatter),
    "_reduce_scatter_base": ("reduce_scatter", _reduce_scatter_base),
    "reduce_scatter_single": ("reduce_scatter", _reduce_scatter_base),
    "reduce_scatter_single_coalesced": ("reduce_scatter", _untold),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", _untold),
    "allreduce": ("all_reduce", _reduced),
    "allreduce_coalesced": ("all_reduce", _reduced),
    "broadcast": ("broadcast", _broadcast),
    "reduce": ("reduce", _reduced),
    "gather": ("gather", _untold),
    "scatter": ("scatter", _untold),
    "send": ("send", _send),
    "recv": ("recv", _receive),
    "recv_anysource": ("recv", _untold),
    "barrier": ("barrier", _untold),
}


def first_tensor(args: Any) -> Any:
    """The first tensor among the arguments, or None."""
    for arg in args:
        item = arg
        while isinstance(item, list | tuple) and item:
            item = item[0]
        if getattr(item, "dtype", None) is not None:
            return item
    return None


def on_gpu(args: Any, kwargs: Any, host_too: bool) -> bool:
    """Whether a call runs on a GPU: its tensors lie there, or a barrier's options say so; else the host's backend's."""
    tensor = first_tensor(args)
    if tensor is not None:
        return bool(tensor.is_cuda)
    device = getattr(kwargs.get("opts"), "device", None)
    return not host_too if device is None else device.type == "cuda"


def dtype_of(args: Any) -> str:
    """Element type of the first tensor among the arguments."""
    tensor = first_tensor(args)
    if tensor is None:
        return ""
    return _DTYPES.get(tensor.dtype) or _DTYPES.setdefault(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


_DTYPES: dict[Any, str] = {}
