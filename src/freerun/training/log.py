"""What a run writes down while it goes: metrics.jsonl, and TensorBoard where asked for."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from freerun.errors import CheckpointError, ResourceError, needing

__all__ = ["Board", "Metrics", "Unwritten", "board_class", "jsonable"]


def jsonable(value: Any) -> Any:
    """The value with NaN and infinities as None, which JSON has no word for.

    >>> jsonable({"loss": float("nan"), "per": [1.0]})
    {'loss': None, 'per': [1.0]}
    """
    if isinstance(value, dict):
        return {str(name): jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Metrics:
    """A file of one JSON object a line, flushed after each.

    Args:
        path: the file; made where it is missing.
        size: bytes to keep of it, as ``sync`` gave them: lines behind are those of updates that are done again.

    Raises:
        CheckpointError: the file is shorter than that.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise CheckpointError(f"{path} has {present:,} bytes; {size:,} were written before the checkpoint")
        self.path = path
        self._file = path.open("ab")
        self._file.truncate(size)

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        line = json.dumps(jsonable(record), ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written: {error.strerror}; go on with --resume") from error

    def sync(self) -> int:
        """Make what was written durable; its size in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Unwritten:
    """The metrics of a process that is not the first: nobody reads them, and one file is enough."""

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> int:
        """0."""
        return 0

    def close(self) -> None:
        """Nothing."""


def board_class() -> Any:
    """What writes TensorBoard files.

    Raises:
        UserError: TensorBoard is not installed.
    """
    with needing("tensorboard", "train.tensorboard = true"):
        from torch.utils.tensorboard.writer import SummaryWriter
    return SummaryWriter


class Board:
    """TensorBoard curves beside the metrics; training never stops for them.

    Args:
        folder: the run's folder; files go to ``tensorboard/``.
        start: updates done: what an earlier life wrote behind it is dropped.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._writer: Any = board_class()(str(folder / "tensorboard"), purge_step=start)

    def write(self, record: dict[str, Any], step: int, prefix: str = "train") -> None:
        """Add every number of a record to its curve."""
        if self._writer is None:
            return
        try:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{prefix}/{name}", value, step)
        except OSError as error:
            self._writer = None
            warnings.warn(f"TensorBoard files are no longer written: {error}", stacklevel=2)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
