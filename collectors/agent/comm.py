"""Every collective that Python issues: group, peers, bytes for each peer, when it was issued and when it completed.

The methods of `ProcessGroup` are wrapped: `torch.distributed`'s functions and models that call groups directly both end
there. What C++ issues (DDP's reducer, functional collectives) does not: `flight` tells of that.
Gloo tells when it executes a call that was issued with torch's ranges on, and the library gives its range the call's
number as it begins: on threads that communicate ranges stay on, inside windows and outside, or are lent for the call.
What NCCL launches while a call is issued bears the call's number as CUPTI tells it: its kernel is when the call was
executed. Calls between `_start_coalescing` and `_end_coalescing` are launched together at the end, as one. (Not yet run
on a GPU.)
Where neither can be (another backend, the target's own profiler) completion comes from the returned work's future, on
the thread that completed it: a moment late and at a price, as that thread waits for the interpreter. Where a work has
no future it comes from `wait`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .groups import Group, told_of
from .operations import ELSEWHERE, METHODS, RANGES, Bytes, all_to_all_base, dtype_of, on_gpu
from .ring import ISSUE_SETTLED, ISSUE_TOLD

if TYPE_CHECKING:
    from .session import Session

Made = tuple[str, int, int]
"""A call's group, and when it began and ended to be issued, CLOCK_MONOTONIC ns."""
MADE_KEPT = 8192
USUAL_KEPT = 1024


def install(session: Session) -> Calls | None:
    """Wraps what this torch has of `METHODS`; nothing where torch was built without `distributed`."""
    distributed = session.torch.distributed
    if not distributed.is_available():
        session.recorder.log("info", "communication", "this torch has no torch.distributed")
        return None
    calls = Calls(session)
    group_class = distributed.ProcessGroup
    for method, (op, bytes_of) in METHODS.items():
        original = getattr(group_class, method, None)
        if original is not None:
            title = ELSEWHERE.get(method) or (f"gloo:{op}" if op in RANGES else "")
            setattr(group_class, method, calls.wrap(original, op, bytes_of, title.encode(), sure=op in RANGES))
    if hasattr(group_class, "_start_coalescing") and hasattr(group_class, "_end_coalescing"):
        group_class._start_coalescing = calls.wrap_start(group_class._start_coalescing)
        group_class._end_coalescing = calls.wrap_end(group_class._end_coalescing)
    module = distributed.distributed_c10d
    make = getattr(module, "_new_process_group_helper", None)
    if make is not None:
        module._new_process_group_helper = calls.wrap_make(make)
    return calls


class Calls:
    """Numbers calls, knows groups, and files each call's issue and completion."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._distributed = session.torch.distributed
        self._groups: dict[str, Group] = {}
        self._usual: dict[int, Group] = {}
        """Groups that gloo alone serves and that have made calls, by torch's object."""
        self.made: deque[Made] = deque(maxlen=MADE_KEPT)
        """The last collectives that Python issued, until `flight` takes them out."""
        self._waited: dict[int, int] = {}
        self._waits_told = False
        self._elsewhere = os.environ.get("TORCH_NCCL_USE_COMM_NONBLOCKING", "0").lower() in ("1", "y", "yes", "true")
        self._failed = False
        self._told = False

    def wrap(
        self, original: Callable[..., Any], op: str, bytes_of: Callable[..., Bytes], title: bytes, *, sure: bool
    ) -> Callable[..., Any]:
        """`original` with its calls filed. What runs here runs before and after each call, and keeps the interpreter
        from threads that compute: of calls of gloo's alone most is done by the library.

        title: of the range that gloo executes it under, empty where there is none; sure: whether any version does
        """
        ring, now_ns, made, usual = self._session.ring, time.monotonic_ns, self.made, self._usual
        begins, ends, announce = ring.issue_begins, ring.issue_ends, ring.announce
        by_parts = bytes_of is all_to_all_base

        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            known = usual.get(id(group)) if title else None
            if known is None or known.same() is not group:
                return general(group, args, kwargs)
            issue_ns = now_ns()
            number = begins(title, known.mark)
            if not number:
                return general(group, args, kwargs)
            try:
                work = original(group, *args, **kwargs)
            except BaseException:  # no range will come; raised again: the target's own
                announce(0)
                ring.withdraw(number)
                raise
            state = ends(number, issue_ns, known.kinds if by_parts and not kwargs else None, known.n, args)
            made.append((known.name, issue_ns, now_ns()))
            if state == ISSUE_TOLD | ISSUE_SETTLED and sure:
                return work
            told = state & ISSUE_TOLD or self._issued(number, issue_ns, known, op, bytes_of, args, kwargs)
            ranged = state & ISSUE_SETTLED or self._session.windows.switches.still_on()
            self._watch(work, number, ranged=bool(ranged), told=bool(told), sure=sure)
            return work

        general = self._general(original, op, bytes_of, title, sure=sure)
        return call

    def _general(
        self, original: Callable[..., Any], op: str, bytes_of: Callable[..., Bytes], title: bytes, *, sure: bool
    ) -> Callable[[Any, Any, Any], Any]:
        """What a call takes that is not as most are: the first of a group, of a GPU, without ranges."""
        ring, now_ns, groups, made = self._session.ring, time.monotonic_ns, self._groups, self.made
        settled, announce, usual = ring.settled, ring.announce, self._usual
        between_two = op in ("send", "recv")

        def call(group: Any, args: Any, kwargs: Any) -> Any:
            if self._failed:
                self._session.windows.switches.let_go()
                return original(group, *args, **kwargs)
            issue_ns = now_ns()
            try:
                name = group.group_name
                known = groups.get(name)
                if known is None or known.same() is not group:
                    known = self._learn(group, name)
            except Exception as error:  # noqa: BLE001  fail open: the call itself goes on
                self._give_up(op, error)
                return original(group, *args, **kwargs)
            if known.gloo and not known.nccl:
                if len(usual) >= USUAL_KEPT:
                    usual.clear()
                usual[id(group)] = known
            number = ring.next_call()
            gpu = known.nccl and on_gpu(args, kwargs, known.gloo)
            if gpu or not title or not known.gloo or ring.expect(title, number, known.mark):
                # Told before it is made: it may block, and what never ends is what somebody will look for.
                if not self._issued(number, issue_ns, known, op, bytes_of, args, kwargs):
                    return original(group, *args, **kwargs)
                if gpu and known.together is not None:
                    work = self._launch(original, group, args, kwargs, [number], marked=None)
                    known.together.append(number)
                    return work
                marked = gpu and self._mark(known, number)
                work = self._launch(original, group, args, kwargs, [number], marked=marked)
                if not between_two:
                    made.append((name, issue_ns, now_ns()))
                return work
            here = settled() or self._ranges_on()
            lent = not here and self._lend()
            announce(1)
            try:
                work = original(group, *args, **kwargs)
            except BaseException:  # no range will come; raised again: the target's own
                ring.withdraw(number)
                raise
            finally:
                announce(0)
                if lent:
                    self._take_back()
            made.append((name, issue_ns, now_ns()))
            # Gloo is at it on a thread of its own by now.
            told = self._issued(number, issue_ns, known, op, bytes_of, args, kwargs)
            ranged = lent or (here and (settled() or self._session.windows.switches.still_on()))
            self._watch(work, number, ranged=bool(ranged), told=told, sure=sure)
            return work

        return call

    def _watch(self, work: Any, number: int, *, ranged: bool, told: bool, sure: bool) -> None:
        """Has a call's completion told where no range of it may tell.

        ranged: whether it was issued with ranges on, as far as can be known: a window may have closed on this thread
        meanwhile
        """
        if not ranged and self._session.ring.withdraw(number) and told:
            self._follow(work, number)
        elif not sure:
            self._wait_for(work, number)

    def wrap_make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`original`, which makes a group: threads that begin meanwhile execute its calls, and no others."""

        def make(*args: Any, **kwargs: Any) -> Any:
            before = _threads()
            made = original(*args, **kwargs)
            try:
                mark = self._session.ring.group_mark(made[0].group_name)
                for tid in _threads() - before if before else ():
                    self._session.ring.worker(tid, mark)
            except Exception as error:  # noqa: BLE001  fail open: whose threads these are is not known
                self._tell(error)
            return made

        return make

    def wrap_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def start(group: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(group, *args, **kwargs)
            if not self._failed:
                try:
                    known = self._groups.get(group.group_name) or self._learn(group, group.group_name)
                    known.together = [] if known.nccl else None
                except Exception as error:  # noqa: BLE001  fail open: the call itself has been made
                    self._give_up("_start_coalescing", error)
            return result

        return start

    def wrap_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What was issued since the start is launched by `original`, under a number of its own."""

        def end(group: Any, *args: Any, **kwargs: Any) -> Any:
            known = None if self._failed else self._groups.get(group.group_name)
            calls = None if known is None else known.together
            if known is None or not calls:
                return original(group, *args, **kwargs)
            known.together = None
            marked = self._mark(known, self._session.ring.next_call(), calls)
            return self._launch(original, group, args, kwargs, calls, marked=marked)

        return end

    def _launch(
        self,
        original: Callable[..., Any],
        group: Any,
        args: Any,
        kwargs: Any,
        calls: Sequence[int],
        *,
        marked: bool | None,
    ) -> Any:
        """What `original` gives, which makes these calls.

        marked: whether what it launches bears a number, and kernels tell the rest; None where it launches nothing yet
        """
        ring = self._session.ring
        ring.announce(1)
        try:
            work = original(group, *args, **kwargs)
        except BaseException:  # told, and raised again: the target's own
            for call in calls:
                ring.blob("comm_failed", [call])
            raise
        finally:
            ring.announce(0)
            if marked:
                ring.call_end()
        if marked is False:
            for call in calls:
                self._follow(work, call)
        return work

    def _mark(self, group: Group, number: int, together: Sequence[int] = ()) -> bool:
        """Has what is launched from now on told with the call's number; False where that cannot be.

        together: calls that are launched as this one
        A group of one launches no kernel of NCCL's, what a CUDA graph captures runs later, if at all, and a
        communicator that does not block launches on a thread of its own.
        """
        try:
            if group.n < 2 or self._elsewhere:
                return False
            cuda = self._session.torch.cuda
            capturing = cuda.is_initialized() and cuda.is_current_stream_capturing()
            if together and not capturing:
                self._session.ring.blob("comm_together", [number, *together])
            return not capturing and self._session.ring.call_begin(number) > 0
        except Exception as error:  # noqa: BLE001  fail open: the kernel is in `kernels` all the same
            self._tell(error)
            return False

    def _give_up(self, op: str, error: Exception) -> None:
        self._failed = True
        self._usual.clear()
        self._session.recorder.log("error", "communication", f"calls are no longer recorded: {op}: {error!r}")

    def _lend(self) -> bool:
        """Has ranges recorded while the next call is issued, outside windows; whether that can be."""
        try:
            return self._session.windows.switches.lend()
        except Exception as error:  # noqa: BLE001  fail open: completion is told by callbacks then
            self._tell(error)
            return False

    def _take_back(self) -> None:
        try:
            self._session.windows.switches.take_back()
        except Exception as error:  # noqa: BLE001  fail open: the call itself has been made
            self._tell(error)

    def _ranges_on(self) -> bool:
        """Whether what this thread issues now is executed under a range in the ring."""
        try:
            return self._session.windows.switches.ranges_on()
        except Exception as error:  # noqa: BLE001  fail open: completion is told by callbacks then
            self._tell(error)
            return False

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._session.recorder.log("warning", "communication", f"no execution ranges: {error!r}")

    def _tell_waits(self) -> None:
        """Wraps `wait` from the first call on whose completion it is to tell: where ranges do, it costs nothing."""
        self._waits_told = True
        work_class = self._session.torch._C._distributed_c10d.Work
        work_class.wait = self._wrap_wait(work_class.wait)

    def _wrap_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(work, *args, **kwargs)
            number = self._waited.pop(id(work), 0) if self._waited else 0
            # Negative: its range was expected, and tells by itself if it has begun.
            if number > 0 or (number and self._session.ring.withdraw(-number)):
                self._session.ring.done(abs(number))
            return result

        return wait

    def _issued(
        self, number: int, issue_ns: int, group: Group, op: str, bytes_of: Callable[..., Bytes], args: Any, kwargs: Any
    ) -> bool:
        """Files a call; whether that could be done."""
        try:
            if bytes_of is all_to_all_base and not kwargs and len(args) > 3:
                output, input, outs, ins = args[:4]
                kind = group.kinds.get(input.dtype)
                if kind is None:
                    kind = group.kinds[input.dtype] = self._session.ring.comm_kind(op, group.name, dtype_of((input,)))
                if kind and self._session.ring.uneven(kind, number, issue_ns, group.n, input, ins, output, outs):
                    return True
            sent, received = (None, None) if kwargs else bytes_of(group.me, group.n, *args)
            self._session.ring.comm(number, op, group.name, issue_ns, sent, received, dtype_of(args))
        except Exception as error:  # noqa: BLE001  fail open: the call itself goes on
            self._give_up(op, error)
            return False
        return True

    def meet(self, group: Any, name: str) -> None:
        """Takes in a group that may have made no call from Python."""
        known = self._groups.get(name)
        if known is None or known.same() is not group:
            self._learn(group, name)

    def on_gloo_alone(self) -> bool:
        """Whether all groups that are known execute the host's calls by gloo, under ranges."""
        return all(group.gloo for group in list(self._groups.values()))

    def _learn(self, group: Any, name: str) -> Group:
        """A group seen for the first time: its ranks, and by the way this process's rank."""
        distributed = self._distributed
        ranks = distributed.get_process_group_ranks(group)
        me, n = distributed.get_group_rank(group, distributed.get_rank()), len(ranks)
        self._session.learn_rank(distributed.get_rank(), distributed.get_world_size())
        row, gloo, nccl = told_of(distributed, group, name, ranks)
        known = self._groups.get(name)
        if known is not None and known.row == row:
            known.now(group)
        else:
            self._session.ring.blob("group", row)
            mark = self._session.ring.group_mark(name)
            known = self._groups[name] = Group(row, me, n, gloo, nccl, mark, group)
        return known

    def _follow(self, work: Any, number: int) -> None:
        """Has the completion of `work` recorded, on the thread that completes it."""
        done = self._session.ring.done
        if work is None:
            done(number)
            return
        try:
            work.get_future().add_done_callback(lambda _: done(number))
        except Exception:  # noqa: BLE001  sends and receives of gloo have no future: their `wait` tells
            self._remember(work, number)

    def _wait_for(self, work: Any, number: int) -> None:
        """Has the `wait` of `work` tell its completion, should no range of it have begun by then."""
        if work is not None:
            self._remember(work, -number)

    def _remember(self, work: Any, number: int) -> None:
        if not self._waits_told:
            self._tell_waits()
        self._waited[id(work)] = number
        if len(self._waited) > 10_000:
            self._waited.clear()


def _threads() -> set[int]:
    """This process's threads; none where that is not told."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return set()
