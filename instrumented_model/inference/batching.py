"""Continuous batching: requests enter and leave between steps, and no step waits for the longest (iteration-level).

A step is one pass of two micro-batches over what is active: a token of each sequence that decodes, and chunks of the
prompts that were admitted. A request is admitted when blocks for its whole length are free, so that none has to be put
out later. Each rank serves requests of its own; all make every pass together, with empty micro-batches where they have
nothing, since each rank holds experts that the others need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.inference.sampling import GREEDY, Sampling, sample
from moescope.instrumented_model.inference.steps import InferenceStep, infer
from moescope.instrumented_model.inference.text import checked
from moescope.instrumented_model.layers.cache import PagedCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.order import Schedule

_NOTHING, _WAIT, _PASS = range(3)
"""What a rank has to do in a step: no request left, none that has arrived, a pass."""


@dataclass(frozen=True)
class Request:
    """arrival: step from which on it is there; stop: token that ends it, itself kept"""

    number: int
    prompt: tuple[int, ...]
    max_new: int
    arrival: int = 0
    stop: int | None = None

    @property
    def longest(self) -> int:
        """Positions it caches at most: the last token is never fed."""
        return len(self.prompt) + self.max_new - 1


@dataclass(frozen=True)
class Limits:
    """sequences: active at a time; tokens: of a pass, from which on prompts are cut into chunks"""

    sequences: int = 32
    tokens: int = 256

    def __post_init__(self) -> None:
        if min(self.sequences, self.tokens) < 1:
            raise ConfigError(f"at most {self.sequences} sequences and {self.tokens} tokens: both must be at least 1")


@dataclass
class Active:
    """A request that has room in the cache.

    pending: tokens not yet fed, of the prompt or the one drawn last; generated: drawn so far
    """

    request: Request
    sequence: int
    generator: torch.Generator
    admitted: int
    pending: list[int]
    generated: list[int] = field(default_factory=list)
    first_token: int = -1


@dataclass(frozen=True)
class Finished:
    """tokens: what was generated; admitted, first_token, last: steps of the request's way"""

    request: Request
    tokens: tuple[int, ...]
    admitted: int
    first_token: int
    last: int


@dataclass(frozen=True)
class ServeStep:
    """One step of this rank; `inference` is None where no rank had anything to do.

    cache_bytes: of positions cached at the end of the pass, before what is finished goes
    """

    step: int
    active: int
    waiting: int
    prompt_tokens: int
    decode_tokens: int
    cache_bytes: int
    finished: tuple[Finished, ...]
    inference: InferenceStep | None


class Server:
    """Serves a rank's requests, step by step."""

    def __init__(
        self,
        model: Model,
        exchange: Exchange,
        cache: PagedCache,
        requests: Sequence[Request],
        *,
        limits: Limits | None = None,
        sampling: Sampling = GREEDY,
        schedule: Schedule = "overlapped",
        seed: int = 0,
        stage: emit.Stage | None = None,
    ) -> None:
        """requests: of all ranks, the same list on each; this one serves those whose number falls to it

        stage: that all passes are told as; None for prefill where a prompt is among what a rank feeds, else decode

        Raises ConfigError for a request that could never be served, on all ranks alike.
        """
        self.model, self.exchange, self.cache = model, exchange, cache
        self.limits, self.sampling, self.schedule, self.seed = limits or Limits(), sampling, schedule, seed
        for request in requests:
            self._check(request)
        mine = [request for request in requests if request.number % model.ranks == model.rank]
        self.stage = stage
        self.waiting = deque(sorted(mine, key=lambda r: (r.arrival, r.number)))
        self.active: list[Active] = []
        self.reserved_blocks = 0
        self.step_number = 0

    def _check(self, request: Request) -> None:
        checked(request.prompt, self.model.c.vocabulary)
        if request.max_new < 1:
            raise ConfigError(f"request {request.number}: {request.max_new} new tokens asked for, at least 1 is needed")
        if self.cache.blocks_for(request.longest) > self.cache.blocks:
            room = self.cache.blocks * self.cache.block
            raise ConfigError(
                f"request {request.number}: {request.longest} positions needed, the cache has {room}: "
                "shorten it or give the cache more blocks"
            )

    def run(self) -> Iterator[ServeStep]:
        """Steps until no rank has a request left."""
        while (step := self.step()) is not None:
            yield step

    def step(self) -> ServeStep | None:
        """Admit, run a pass, draw tokens, let go what is finished; called by all ranks alike.

        returns: None where no rank has a request left
        """
        step = self.step_number
        self._admit(step)
        batch = self._chosen()
        todo = self._agreed(_PASS if batch else _WAIT if self.waiting else _NOTHING)
        if todo == _NOTHING:
            return None
        self.step_number += 1
        prompt_tokens = sum(n for a, n in batch if not a.generated)
        decode_tokens = sum(n for a, n in batch if a.generated)
        result = None
        if todo == _PASS:
            emit.stage(self.stage or ("prefill" if prompt_tokens else "decode"))
            result = self._pass(batch, step)
        active, used = len(self.active), self.cache.used_bytes
        finished = tuple(self._let_go(step))
        return ServeStep(step, active, len(self.waiting), prompt_tokens, decode_tokens, used, finished, result)

    def _admit(self, step: int) -> None:
        """In the order of arrival: a long request is not overtaken for ever."""
        while self.waiting and self.waiting[0].arrival <= step and len(self.active) < self.limits.sequences:
            request = self.waiting[0]
            blocks = self.cache.blocks_for(request.longest)
            if self.reserved_blocks + blocks > self.cache.blocks:
                break
            self.waiting.popleft()
            self.reserved_blocks += blocks
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + request.number) % 2**32)
            self.active.append(Active(request, self.cache.add(), generator, step, list(request.prompt)))

    def _chosen(self) -> list[tuple[Active, int]]:
        """Who takes part and with how many tokens: all that decode, then prompts up to the limit."""
        decoding = [(a, 1) for a in self.active if a.generated]
        left = max(self.limits.tokens - len(decoding), 0 if decoding else 1)
        prompts = []
        for a in self.active:
            if not a.generated and left > 0:
                prompts.append((a, min(len(a.pending), left)))
                left -= prompts[-1][1]
        return decoding + prompts

    def _pass(self, batch: list[tuple[Active, int]], step: int) -> InferenceStep:
        parts = split(batch, self.model.c.micro_batches)
        tokens, caches = [], []
        for part in parts:
            fed = [token for a, n in part for token in a.pending[:n]]
            tokens.append(torch.tensor(fed, dtype=torch.int64).to(self.model.device))
            caches.append(self.cache.open([a.sequence for a, _ in part], [n for _, n in part]))
        result = infer(self.model, self.exchange, tokens, caches, self.schedule, step)
        for part, logits in zip(parts, result.logits, strict=True):
            for a, n in part:
                del a.pending[:n]
            whole = [i for i, (a, _) in enumerate(part) if not a.pending]
            drawn = sample(logits[whole], self.sampling, [part[i][0].generator for i in whole])
            for i, token in zip(whole, drawn, strict=True):
                a = part[i][0]
                a.generated.append(token)
                a.pending.append(token)
                a.first_token = step if a.first_token < 0 else a.first_token
        return result

    def _let_go(self, step: int) -> Iterator[Finished]:
        for a in list(self.active):
            request = a.request
            stopped = bool(a.generated) and a.generated[-1] == request.stop
            if len(a.generated) == request.max_new or stopped:
                self.active.remove(a)
                self.cache.remove(a.sequence)
                self.reserved_blocks -= self.cache.blocks_for(request.longest)
                yield Finished(request, tuple(a.generated), a.admitted, a.first_token, step)

    def _agreed(self, mine: int) -> int:
        """The most that any rank has to do: all must make the same passes."""
        if self.model.ranks == 1:
            return mine
        most = torch.tensor([mine])

        def job() -> None:
            with emit.phase("agree"):
                dist.all_reduce(most, op=dist.ReduceOp.MAX)

        self.exchange.run(job).result()
        return int(most)


def split(batch: list[tuple[Active, int]], micro_batches: int) -> list[list[tuple[Active, int]]]:
    """Micro-batches of about as many tokens, the largest share first to the emptiest; some may be empty."""
    parts: list[list[tuple[Active, int]]] = [[] for _ in range(micro_batches)]
    loads = [0] * micro_batches
    for a, n in sorted(batch, key=lambda share: (-share[1], share[0].request.number)):
        least = loads.index(min(loads))
        parts[least].append((a, n))
        loads[least] += n
    return parts
