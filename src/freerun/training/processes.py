"""The processes that train one model together: who they are, what is the same for all, and whether all get on."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from freerun.errors import OtherProcessError, UserError
from freerun.signals import Interrupt

T = TypeVar("T")
_PATIENCE = timedelta(hours=24)
"""How long a call waits for other processes: as long as the ``Watch`` sees that they get on."""

_STILL = 120.0
"""Seconds that a process may stand still before the job ends, where no setting differs."""

_GRACE = 5.0
_LOOK = 5.0
"""Seconds in which a process that lives publishes a record, also if it does so rarely."""

_BUSY = 0.01
"""Share of a processor below which a process stands still: what works, or loads, uses far more."""

_ROOM = 2048
_MARK = "_reported_elsewhere"


class Watch:
    """Two threads beside the one that trains: one publishes where we are, one judges where all of them are."""

    def __init__(self, rank: int, size: int, store: Any, name: str) -> None:
        self.rank, self.size, self.limit = rank, size, _STILL
        self._store, self._name = store, name
        self._main = threading.get_ident()
        self._doing, self._strict, self._waiting, self._met = "the start", False, False, 0
        self._left: str | None = None
        self._verdict: dict[int, str] = {}
        self._over = threading.Event()
        self._since = self._moved = self._began = time.monotonic()
        self._busy = 0.0
        self._own_time = [0.0, 0.0]
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self._publisher = threading.Thread(target=self._repeat, args=(0, self._publish), daemon=True)
        self._publisher.start()
        threading.Thread(target=self._repeat, args=(1, self._judge), daemon=True).start()

    def at(self, doing: str, *, strict: bool = False) -> None:
        """Record what this process does from now on; strict: it takes all processes about as long."""
        self._doing, self._strict, self._since = doing, strict, time.monotonic()

    @contextmanager
    def together(self) -> Generator[None]:
        """Inside this process waits for the others."""
        before, self._waiting = self._waiting, True
        self._met += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._waiting, self._since = before, time.monotonic()

    def leave(self, why: str) -> None:
        """Take no further part, and publish why; "" where all is done."""
        self._left = why
        self._over.set()
        # a store that has gone is not to hold us up
        self._publisher.join(2)

    def lost(self) -> str:
        """Name who is gone after a connection was lost: who has left and why, or who is silent for a few seconds."""
        threading.Thread(target=self._read_closely, daemon=True).start()
        began = time.monotonic()
        while time.monotonic() < began + _LOOK:
            for rank, (record, _) in list(self._seen.items()):
                if self._verdict or record["verdict"]:  # the judge reports it, and ends this process
                    time.sleep(60)
                if record["left"]:
                    return f"rank {rank} has left, in {record['doing']}: {record['left']}"
            time.sleep(0.1)
        for rank in range(self.size):
            # its last record may have waited for us; one that lives publishes another
            if rank != self.rank and (rank not in self._seen or self._seen[rank][1] < began + 1):
                return f"rank {rank} gives no sign of life, and is waited for in {self._doing}"
        return f"another process ended, and is waited for in {self._doing}"

    def _read_closely(self) -> None:
        while not self._over.is_set():
            self._publish()
            self._over.wait(0.2)

    @property
    def _interval(self) -> float:
        return min(max(self.limit / 40, 0.1), _LOOK - 2)

    def _repeat(self, number: int, work: Any) -> None:
        while not self._over.wait(self._interval):
            work()
            self._own_time[number] = time.thread_time()
        if self._left is not None and number == 0:
            work()

    def _record(self) -> dict[str, Any]:
        now = time.monotonic()
        busy = time.process_time() - sum(self._own_time)
        if self._waiting or busy - self._busy > _BUSY * self.limit:
            self._busy, self._moved = busy, now
        return {
            "doing": self._doing,
            "strict": self._strict,
            "waiting": self._waiting,
            "met": self._met,
            "for": now - self._since,
            "idle": now - self._moved,
            "line": _line_of(self._main),
            "left": self._left,
            "verdict": self._verdict,
        }

    def _publish(self) -> None:
        try:
            # the time makes every record another one
            self._store.set(f"{self._name}/{self.rank}", json.dumps({**self._record(), "time": time.monotonic()}))
            for rank in range(self.size):
                key = f"{self._name}/{rank}"
                if rank == self.rank or not self._store.check([key]):
                    continue
                record = json.loads(self._store.get(key))
                if rank not in self._seen or self._seen[rank][0] != record:
                    self._seen[rank] = record, time.monotonic()
        except (RuntimeError, ValueError, OSError):
            # the store has gone: the others' silence is what counts
            return

    def _judge(self) -> None:
        records = {rank: record for rank, (record, _) in self._seen.items()} | {self.rank: self._record()}
        if (faults := self._faults(records)) and not self._over.is_set():
            self._end(faults)

    def _faults(self, records: dict[int, dict[str, Any]]) -> dict[int, str]:
        """Ranks at fault, and how; the verdict of another process holds for all."""
        for record in records.values():
            if record["verdict"]:
                return {int(rank): how for rank, how in record["verdict"].items()}
        now, limit, faults = time.monotonic(), self.limit, dict[int, str]()
        waits = {rank: record["for"] for rank, record in records.items() if record["waiting"]}
        for rank in range(self.size):
            record = records.get(rank)
            seen = now if rank == self.rank else self._seen.get(rank, ({}, self._began))[1]
            if record is not None and record["left"] is not None:
                if waits.get(self.rank, 0.0) > _GRACE:
                    faults[rank] = f"has left, in {record['doing']}" + (f": {record['left']}" if record["left"] else "")
            elif now - seen > limit:
                faults[rank] = f"gave no sign of life for {now - seen:.0f} s; this process is in {self._doing}"
            elif record is None or rank in waits:
                continue
            elif record["idle"] > limit:
                faults[rank] = f"has stood still for {record['idle']:.0f} s in {record['doing']}, at {record['line']}"
            elif record["strict"] and min(record["for"], max(waits.values(), default=0.0)) > limit:
                faults[rank] = f"has been in {record['doing']} for {record['for']:.0f} s, at {record['line']}"
        if not faults and len(waits) == self.size and min(waits.values()) > limit:
            least = min(record["met"] for record in records.values())
            faults = {
                rank: f"waits for others that wait for it, in {record['doing']}, at {record['line']}"
                for rank, record in records.items()
                if record["met"] == least
            }
        return faults

    def _end(self, faults: dict[int, str]) -> None:
        """Report who is at fault, and end."""
        self._verdict = faults
        # a store that has gone is not to hold us up
        last = threading.Thread(target=self._publish, daemon=True)
        last.start()
        last.join(1)
        self._over.set()
        sound = [rank for rank in range(self.size) if rank not in faults] or list(range(self.size))
        if self.rank == sound[0]:  # one reports it for all
            lines = [f"rank {rank} {how}" for rank, how in sorted(faults.items())]
            text = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")
            print(
                f"rank {self.rank}: error: {text}\n  help: the job ends, and goes on with --resume; where a process "
                f"may take longer, train.rank_timeout = {self.limit:g} is to be more",
                file=sys.stderr,
                flush=True,
            )
        # until all have come to it: a store that is gone, or a connection, makes a noise of its own
        time.sleep(self._interval + 1)
        os._exit(OtherProcessError.exit_code)


def _line_of(thread: int) -> str:
    """Where a thread is, outside of PyTorch."""
    frame = sys._current_frames().get(thread)
    inside = str(Path(torch.__file__).parent)
    here = frame
    while frame is not None and frame.f_code.co_filename.startswith((inside, __file__)):
        frame = frame.f_back
    frame = frame or here
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "its end"


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of a job, seen from one of them."""

    rank: int = 0
    size: int = 1
    group: Any = None
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        """True if this is the one that writes, evaluates and displays progress."""
        return self.rank == 0

    def at(self, doing: str, *, strict: bool = False) -> None:
        """Record what this process does from now on; strict: it takes all processes about as long."""
        if self.watch is not None:
            self.watch.at(doing, strict=strict)

    def together(self) -> AbstractContextManager[None]:
        """Inside this process waits for the others."""
        return nullcontext() if self.watch is None else self.watch.together()

    def all_gather(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the records of all processes, by rank."""
        if self.size == 1:
            return [record]
        content = json.dumps(record).encode()
        # one call of a fixed size, where gathering objects takes two
        mine = torch.zeros(_ROOM, dtype=torch.uint8)
        mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        with self.together():
            dist.all_gather(every, mine, group=self.group)
        return [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in every]

    def max_over_ranks(self, number: int) -> int:
        """Return the largest number over all ranks."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with self.together():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    @contextmanager
    def raise_on_all_ranks(self) -> Generator[None]:
        """Raise on all ranks on exit what one rank raises inside, so that none waits for one that is gone."""
        if self.size == 1:
            yield
            return
        error: Exception | Interrupt | None = None
        try:
            yield
        except (Exception, Interrupt) as raised:
            error = raised
        number = error.number if isinstance(error, Interrupt) else 0
        records = self.all_gather({"error": "" if number else _line(error), "signal": number})
        errors = [each["error"] for each in records]
        if error is not None and not number:
            if _line(error) in errors[: self.rank]:
                setattr(error, _MARK, True)
            raise error
        if any(errors):
            other = OtherProcessError([f"rank {rank} failed: {line}" for rank, line in enumerate(errors) if line])
            setattr(other, _MARK, True)
            raise other
        if number := max(each["signal"] for each in records):
            raise error or Interrupt(number)

    def on_main_rank(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first rank alone and return its result, or raise its error, on all ranks."""
        if self.size == 1:
            return work()
        box: list[Any] = [None]
        with self.raise_on_all_ranks():
            if self.first:
                box[0] = work()
        with self.together():
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def broadcast(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the first rank's tensors on every rank."""
        if self.size == 1:
            assert tensors is not None
            return tensors
        kinds = self.on_main_rank(lambda: {name: (t.shape, t.dtype) for name, t in (tensors or {}).items()})
        own = (tensors or {}) if self.first else {}
        received = {
            name: own[name].detach().cpu().contiguous() if name in own else torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in kinds.items()
        }
        for tensor in received.values():
            with self.together():
                dist.broadcast(tensor, src=0, group=self.group)
        return received


ALONE = Processes()


def _line(error: BaseException | None) -> str:
    if error is None:
        return ""
    first = (str(error).splitlines() or [""])[0]
    # room for what JSON makes of it: six bytes a character at worst
    return f"{type(error).__name__}: {first}"[:300]


def reported_elsewhere(error: BaseException) -> bool:
    """Return True if another process reports the error."""
    return bool(getattr(error, _MARK, False))


def reported_like(error: UserError, other: BaseException) -> UserError:
    """Mark an error so that the process which reports ``other`` reports it."""
    setattr(error, _MARK, reported_elsewhere(other))
    return error


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched_processes() > 1 else 0


def launched_processes() -> int:
    """Return how many processes ``torchrun`` (or whatever set the same variables) started; 1: this one alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    number = os.environ.get("WORLD_SIZE", "1")
    return int(number) if number.isdecimal() and "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


_joined: list[Processes] = []


@contextmanager
def join_processes(limit: float | None = None) -> Generator[Processes]:
    """The processes that ``torchrun`` started, joined; or this one alone.

    A process group that exists is used and left as it is; within another ``join_processes`` the result is the same.

    >>> with join_processes() as processes:
    ...     processes.rank, processes.size
    (0, 1)
    """
    if launched_processes() == 1:
        yield ALONE
        return
    with nullcontext(_joined[0]) if _joined else _meet() as processes:
        if limit is not None and processes.watch is not None:
            processes.watch.limit = limit
        yield processes
        processes.at("what follows a run")


@contextmanager
def _meet() -> Generator[Processes]:
    ours = not dist.is_initialized()
    if ours:
        if local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(local_rank())
        dist.init_process_group()
    group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    rank, size = dist.get_rank(), dist.get_world_size()
    # the group's name is another one at every meeting, and the same in all processes
    watch = Watch(rank, size, dist.distributed_c10d._get_default_store(), f"freerun/{group.group_name}")
    _joined.append(Processes(rank, size, group, watch))
    try:
        yield _joined[0]
    except BaseException as error:
        gone = watch.lost() if isinstance(error, RuntimeError) and lost(error) else ""
        watch.leave(gone or _line(error))
        if gone:
            raise OtherProcessError(
                f"{gone}; its own message says why, or the system's (killed for want of memory, a machine that is gone)"
            ) from error
        raise
    finally:
        _joined.clear()
    watch.leave("")
    # who is first to end takes the store with it
    dist.barrier(group)
    if ours:
        dist.destroy_process_group()


def lost(error: RuntimeError) -> bool:
    """Return True if an error means that another process is gone, which gloo expresses by text alone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)
