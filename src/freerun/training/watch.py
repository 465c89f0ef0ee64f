"""Whether the processes of a job get on: each publishes where it is; one that hangs or has left ends the job."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from freerun.errors import OtherProcessError

PATIENCE = 120.0
"""Seconds that a process may stand still before the job ends, where no setting differs."""

_GRACE = 5.0
_BUSY = 0.01
"""Share of a processor below which a process stands still: what works, or loads, uses far more."""


class Watch:
    """Two threads beside the one that trains: one publishes where we are, one judges where all of them are."""

    def __init__(self, rank: int, size: int, store: Any, name: str) -> None:
        self.rank, self.size, self.limit = rank, size, PATIENCE
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
        """Name who is gone after a connection was lost, as far as can be seen within a few seconds."""
        deadline = time.monotonic() + 4 * self._interval
        while time.monotonic() < deadline:
            now = time.monotonic()
            for rank, (record, seen) in self._seen.items():
                if self._verdict or record["verdict"]:  # the judge reports it, and ends this process
                    time.sleep(60)
                if record["left"]:
                    return f"rank {rank} has left, in {record['doing']}: {record['left']}"
                if now - seen > 2.5 * self._interval:
                    return f"rank {rank} gives no sign of life, and is waited for in {self._doing}"
            time.sleep(self._interval / 4)
        return f"another process ended, and is waited for in {self._doing}"

    @property
    def _interval(self) -> float:
        return min(max(self.limit / 40, 0.1), 3.0)

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
        if verdict := self._faults(records):
            self._end(verdict)

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
        if self._over.is_set():
            return
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
