"""From the command line to an exit code: one readable message for what a user did wrong, a report for our faults."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from freerun.errors import ResourceError, UserError

__all__ = ["guarded", "main"]

USAGE, BUG, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code.

    0 done, 1 a fault of ours (a report file is written), 2 a wrong command, recipe or data, 3 folder occupied,
    4 checkpoint not usable, 5 out of disk or memory, 6 training diverged, 130 and 143 interrupted.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def command() -> int:
        from freerun.cli.app import run

        return run(given)

    return guarded(command, given)


def guarded(command: Callable[[], int], arguments: Sequence[str] = ()) -> int:
    """Call a command and turn whatever it raises into a message on standard error and an exit code.

    Args:
        command: gives the exit code where nothing is raised.
        arguments: shown in the report of an unexpected error.
    """
    try:
        code = command()
        sys.stdout.flush()
    except UserError as error:
        return _tell([] if _said_elsewhere(error) else error.problems, error.exit_code)
    except KeyboardInterrupt:
        return _tell(["interrupted"], INTERRUPTED)
    except BrokenPipeError:
        # the reader of our output has gone (| head): nothing to say, and nothing more may be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _tell(["out of memory\n  help: a smaller train.batch_size or model.size"], ResourceError.exit_code)
    except OSError as error:
        return _tell_system(error, arguments)
    except Exception as error:
        if _said_elsewhere(error):
            return BUG
        if _out_of_memory(error):
            return _tell([f"out of memory: {error}\n  help: a smaller train.batch_size"], ResourceError.exit_code)
        return _tell_bug(error, arguments)
    return code


def _said_elsewhere(error: Exception) -> bool:
    """Whether another process of the job says it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from freerun.training.processes import said_elsewhere

    return said_elsewhere(error)


def _tell(problems: Sequence[str], code: int) -> int:
    who = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for problem in UserError(problems).problems:
        print(who + (problem if code in (INTERRUPTED, TERMINATED) else f"error: {problem}"), file=sys.stderr)
    if len(problems) > 1:
        print(f"{len(problems)} errors", file=sys.stderr)
    return code


def _tell_system(error: OSError, arguments: Sequence[str]) -> int:
    import errno

    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return _tell([f"{place}{error.strerror}"], ResourceError.exit_code)
    if error.filename and isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return _tell([f"{place}{(error.strerror or str(error)).lower()}"], USAGE)
    return _tell_bug(error, arguments)


def _out_of_memory(error: Exception) -> bool:
    # torch says it by class on accelerators and by text on the CPU
    return type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)


def _tell_bug(error: Exception, arguments: Sequence[str]) -> int:
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="freerun-report-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"freerun {_version()} with Python {sys.version}\narguments: {list(arguments)}\n\n{text}")
    first = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return _tell(
        [f"freerun failed unexpectedly: {message}\n  help: this is a fault in freerun; {file.name} says where"], BUG
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("freerun")
    except PackageNotFoundError:
        return "(not installed)"
