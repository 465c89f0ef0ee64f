"""The processes that train one model together: who we are, and what must be the same for all of us."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from freerun.errors import OtherProcessError, UserError
from freerun.signals import Interrupt
from freerun.training.watch import Watch

T = TypeVar("T")
_PATIENCE = timedelta(hours=24)
"""How long a call waits for other processes: as long as the ``Watch`` finds that they get on."""

_ROOM = 2048
_MARK = "_reported_elsewhere"


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
        watch.leave(_line(error))
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
