"""A stand-in for `deep_ep` 1.2 on CPU tensors, its ranks threads of one process: interface, checks, order of streams.

Signatures, shapes and returned handles are those of `deep_ep/buffer.py` and what `csrc/deep_ep.cpp` asserts of its
arguments is asserted here (github.com/deepseek-ai/DeepEP); both were read, neither was copied. As there, kernels run
on a communication stream of their own: with `async_finish` results hold rubbish until the caller has waited for the
event, and what a kernel reads must have been computed before what that stream has waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

topk_idx_t = torch.int64
MOST_NVLINK_PEERS, MOST_LOCAL_EXPERTS = 8, 1024


class ComputeStream(TorchDispatchMode):
    """The operators of a thread in their order, and when each memory was written last."""

    here = threading.local()

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.written: dict[int, int] = {}
        ComputeStream.here.stream = self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.position += 1
        inputs = {_memory(t) for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        in_place = function._schema.name.endswith("_")
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and (in_place or _memory(t) not in inputs):  # else it is a view
                self.written[_memory(t)] = self.position
        return result


def _memory(t: torch.Tensor) -> int:
    return t.untyped_storage().data_ptr()


class Ranks:
    """What the threads share. A rank's `group` is `Group(ranks, rank)`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count, timeout=60)
        self._given: list[Any] = [None] * count
        self.abort = self._barrier.abort

    def told(self, rank: int, value: Any) -> list[Any]:
        """What every rank gives, to each."""
        self._given[rank] = value
        self._barrier.wait()
        everyone = list(self._given)
        self._barrier.wait()
        return everyone


class Group:
    """The part of a process group that `Buffer` asks for."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self._rank = ranks, rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self.ranks.count


class Config:
    """Chunks of the queues between ranks."""

    def __init__(self, num_sms: int, nvl_send: int, nvl_recv: int, rdma_send: int, rdma_recv: int) -> None:
        assert num_sms % 2 == 0
        self.num_sms, self.nvl_recv = num_sms, nvl_recv

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        assert num_ranks < MOST_NVLINK_PEERS or num_ranks % MOST_NVLINK_PEERS == 0
        return self.needed(hidden_bytes, min(num_ranks, MOST_NVLINK_PEERS), 128, 128)

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return 0 if num_ranks <= MOST_NVLINK_PEERS else self.needed(hidden_bytes, num_ranks, 128, 128)

    def needed(self, hidden_bytes: int, num_ranks: int, num_topk: int, num_scales: int) -> int:
        a_token = hidden_bytes + 4 + 12 * num_topk + 4 * num_scales
        return self.num_sms // 2 * num_ranks * (16 + self.nvl_recv * a_token) + 4 * num_ranks**2


class EventOverlap:
    """known: up to where the compute stream had come in what the communication stream waited for; fill: the results"""

    def __init__(self, known: int | None = None, fill: Callable[[], None] = lambda: None) -> None:
        self.event, self._fill = known, fill

    def current_stream_wait(self) -> None:
        assert self.event is not None, "valid only if async_finish is set"
        self._fill()


class Buffer:
    """Dispatch and combine of the high-throughput kernels inside one node."""

    num_sms = 20

    def __init__(
        self, group: Group | None, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0, low_latency_mode: bool = False,
        num_qps_per_rank: int = 24, allow_nvlink_for_low_latency_mode: bool = True, allow_mnnvl: bool = False,
        explicitly_destroy: bool = False, enable_shrink: bool = False, comm: Any = None,
    ) -> None:  # fmt: skip
        assert group is not None
        assert group.size() <= MOST_NVLINK_PEERS, "the stand-in has one node"
        self.group, self.rank, self.group_size = group, group.rank(), group.size()
        self.num_nvl_bytes, self.explicitly_destroy = num_nvl_bytes, explicitly_destroy
        self.known = 0
        assert len(set(group.ranks.told(self.rank, num_nvl_bytes))) == 1

    def destroy(self) -> None:
        assert self.explicitly_destroy
        del self.group

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        assert new_num_sms % 2 == 0, "The SM count must be even"
        Buffer.num_sms = new_num_sms

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        assert num_ranks in (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160), (
            f"Unsupported number of EP ranks: {num_ranks}"
        )
        return Config(Buffer.num_sms, 6, 256, 6, 128)

    get_combine_config = get_dispatch_config

    def _wait(self, previous_event: EventOverlap | None, async_finish: bool, on_comm_stream: bool) -> None:
        """The communication stream waits for this event, or for all that was computed so far."""
        assert not on_comm_stream or (previous_event is not None and async_finish)
        if previous_event is None:
            self.known = ComputeStream.here.stream.position
        else:
            assert previous_event.event is not None
            self.known = max(self.known, previous_event.event)

    def _reads(self, *tensors: torch.Tensor | None) -> None:
        for t in tensors:
            if t is not None and t.numel():
                written = ComputeStream.here.stream.written.get(_memory(t), 0)
                assert written <= self.known, "a kernel reads what was computed after what its stream has waited for"

    def _results(
        self, values: list[torch.Tensor | None], async_finish: bool
    ) -> tuple[list[torch.Tensor | None], EventOverlap]:
        if not async_finish:
            return values, EventOverlap()
        rubbish = [None if v is None else torch.empty_like(v, dtype=v.dtype) for v in values]
        for r in rubbish:
            if r is not None:
                r.view(torch.uint8).fill_(0xB3)  # rubbish, until it is waited for

        def fill() -> None:
            for r, v in zip(rubbish, values, strict=True):
                if r is not None and v is not None:
                    r.copy_(v)

        return rubbish, EventOverlap(self.known, fill)

    def get_dispatch_layout(
        self, topk_idx: torch.Tensor, num_experts: int, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:  # fmt: skip
        assert topk_idx.dim() == 2
        assert topk_idx.is_contiguous()
        assert topk_idx.dtype == topk_idx_t
        assert num_experts > 0
        self._wait(previous_event, async_finish, allocate_on_comm_stream)
        self._reads(topk_idx)
        in_expert = torch.zeros(len(topk_idx), num_experts + 1, dtype=torch.bool)
        in_expert.scatter_(1, topk_idx.where(topk_idx >= 0, num_experts), True)
        in_rank = in_expert[:, :-1].unflatten(1, (self.group_size, -1)).any(2)
        per_rank, per_expert = in_rank.sum(0, dtype=torch.int32), in_expert[:, :-1].sum(0, dtype=torch.int32)
        return per_rank, None, per_expert, in_rank, EventOverlap(self.known if async_finish else None)

    def dispatch(
        self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor], handle: tuple[torch.Tensor, ...] | None = None,
        num_tokens_per_rank: torch.Tensor | None = None, num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None, num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None, topk_weights: torch.Tensor | None = None, expert_alignment: int = 1,
        num_worst_tokens: int = 0, config: Config | None = None, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Any, ...]:  # fmt: skip
        config = config or self.get_dispatch_config(self.group_size)
        values, scales = x if isinstance(x, tuple) else (x, None)
        tokens, hidden = values.shape
        assert values.is_contiguous()
        assert hidden * values.element_size() % 16 == 0
        if scales is None:
            assert values.dtype == torch.bfloat16
        else:
            assert values.dtype == torch.float8_e4m3fn
            assert scales.dtype == torch.float32
            assert scales.shape == (tokens, hidden // 128)
            assert hidden % 128 == 0
        if handle is not None:
            assert topk_idx is None
            assert topk_weights is None
            in_rank = handle[4]
        else:
            assert num_tokens_per_rank is not None
            assert is_token_in_rank is not None
            assert num_tokens_per_expert is not None
            assert (num_tokens_per_rank.dtype, num_tokens_per_rank.shape) == (torch.int32, (self.group_size,))
            assert num_tokens_per_expert.dtype == torch.int32
            assert len(num_tokens_per_expert) % self.group_size == 0
            assert len(num_tokens_per_expert) // self.group_size <= MOST_LOCAL_EXPERTS
            assert topk_idx is not None
            assert topk_weights is not None
            assert topk_idx.shape == topk_weights.shape == (tokens, topk_idx.shape[1])
            assert topk_idx.is_contiguous()
            assert topk_weights.is_contiguous()
            assert (topk_idx.dtype, topk_weights.dtype) == (topk_idx_t, torch.float32)
            in_rank = is_token_in_rank
            assert torch.equal(num_tokens_per_rank, in_rank.sum(0, dtype=torch.int32))
        assert (in_rank.dtype, in_rank.shape) == (torch.bool, (tokens, self.group_size))
        top_k = 0 if topk_idx is None else topk_idx.shape[1]
        a_row = hidden * values.element_size()
        assert config.needed(a_row, self.group_size, top_k, hidden // 128) <= self.num_nvl_bytes
        self._wait(previous_event, async_finish, allocate_on_comm_stream)
        self._reads(values, scales, topk_idx, topk_weights)
        everyone = self.group.ranks.told(self.rank, (values, scales, topk_idx, topk_weights, in_rank))

        def received(part: int) -> torch.Tensor | None:
            if everyone[self.rank][part] is None:
                return None
            as_bytes = [given[part].contiguous().view(torch.uint8)[given[4][:, self.rank]] for given in everyone]
            return torch.cat(as_bytes).view(everyone[self.rank][part].dtype)

        rows, row_scales, slots, weights = (received(part) for part in range(4))
        if handle is not None:
            (got, got_scales), event = self._results([rows, row_scales], async_finish)
            return got if scales is None else (got, got_scales), None, None, None, None, event
        assert slots is not None
        assert weights is not None
        assert num_tokens_per_expert is not None
        local = len(num_tokens_per_expert) // self.group_size
        slots = slots - self.rank * local
        mine = (slots >= 0) & (slots < local)
        slots, weights = slots.where(mine, -1), weights.where(mine, 0.0)
        counts = torch.bincount(slots[mine], minlength=local).tolist()
        results, event = self._results([rows, row_scales, slots, weights], async_finish)
        got, got_scales, got_slots, got_weights = results
        sent = torch.stack([given[4].sum(0, dtype=torch.int32) for given in everyone])
        sources = torch.cat([given[4][:, self.rank].nonzero()[:, 0].int() for given in everyone])
        channels = torch.zeros(self.group_size, config.num_sms // 2, dtype=torch.int32)
        made = (sent.cumsum(0, dtype=torch.int32), channels, channels.clone(), sources, in_rank, in_rank.int())
        aligned = [-(-count // expert_alignment) * expert_alignment for count in counts]
        return got if scales is None else (got, got_scales), got_slots, got_weights, aligned, made, event

    def combine(
        self, x: torch.Tensor, handle: tuple[torch.Tensor, ...], topk_weights: torch.Tensor | None = None,
        bias: Any = None, config: Config | None = None, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, EventOverlap]:  # fmt: skip
        config = config or self.get_combine_config(self.group_size)
        rank_prefix, _, channels, sources, in_rank, _ = handle
        assert x.dtype == torch.bfloat16
        assert x.dim() == 2
        assert x.is_contiguous()
        assert len(x) == len(sources)
        assert x.shape[1] * 2 % 16 == 0
        assert channels.shape == (self.group_size, config.num_sms // 2)
        if topk_weights is not None:
            assert topk_weights.dtype == torch.float32
            assert topk_weights.dim() == 2
            assert topk_weights.is_contiguous()
            assert len(topk_weights) == len(x)
        self._wait(previous_event, async_finish, allocate_on_comm_stream)
        self._reads(x, topk_weights)
        everyone = self.group.ranks.told(self.rank, (x, topk_weights, sources, rank_prefix[:, self.rank].tolist()))

        def summed(part: int) -> torch.Tensor | None:
            if everyone[self.rank][part] is None:
                return None
            total = torch.zeros(len(in_rank), everyone[self.rank][part].shape[1])
            for rows, weights, source, ends in everyone:
                first, last = ends[self.rank - 1] if self.rank else 0, ends[self.rank]
                total.index_add_(0, source[first:last].long(), (rows, weights)[part][first:last].float())
            return total.to(everyone[self.rank][part].dtype)

        (sums, weight_sums), event = self._results([summed(0), summed(1)], async_finish)
        return sums, weight_sums, event
