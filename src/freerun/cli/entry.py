"""From the command line to an exit code: one readable message for what a user did wrong, a report for our faults."""

from __future__ import annotations

import gc
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from freerun.errors import FaultError, ResourceError, StoppedError, TerminatedError, UserError, out_of_memory
from freerun.signals import LIFELINE, Interrupt, StopFlag, end_with_parent, ignore, stopped
from freerun.terminal import print_problem

_STOPPED = (StoppedError.exit_code, TerminatedError.exit_code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code, see ``freerun.errors.EXIT_CODES``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        # data are a million objects without cycles, and looking for some takes as long as loading them
        gc.set_threshold(50_000, 20, 100)
    if os.environ.pop(LIFELINE, None):
        end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character

    def command() -> int:
        from freerun.cli.app import run

        return run(words)

    code = guarded(command, words)
    if arguments is None:
        ignore()  # all is done and written: while Python takes itself apart nothing is left to stop
        if code in _STOPPED:  # and taking itself apart takes seconds where a machine is busy
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return code


def guarded(command: Callable[[], int], arguments: Sequence[str] = ()) -> int:
    """Call a command and turn whatever it raises into a message on standard error and an exit code."""
    flag = StopFlag()
    try:
        with flag:
            code = command()
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if flag.signal and not isinstance(error, StoppedError | Interrupt):
            # whatever else a process meets while it is being stopped is nobody's fault
            return _answer(stopped(flag.signal, "while it was working"), arguments)
        return _answer(error, arguments)
    return code


def _answer(error: BaseException, arguments: Sequence[str]) -> int:
    """Print what an error means; its exit code."""
    if isinstance(error, UserError):
        return _print_problems([] if _reported_elsewhere(error) else error.problems, error.exit_code)
    if isinstance(error, Interrupt):
        return _print_problems([str(error)], stopped(error.number, "").exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _print_problems(["interrupted"], StoppedError.exit_code)
    if isinstance(error, BrokenPipeError):
        # the reader of our output has gone (| head): nothing is printed, and nothing more may be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if _reported_elsewhere(error):
        return FaultError.exit_code
    if out_of_memory(error):
        reason = (str(error).splitlines() or ["no more memory"])[0]
        help = "smaller batches (train.accumulate, evaluate.batch_size) or a smaller model (model.size)"
        return _print_problems([f"out of memory: {reason}\n  help: {help}"], ResourceError.exit_code)
    users = sys.modules.get("freerun.data.user_code")  # loaded where a recipe names a file of code
    if users is not None and (blamed := users.blamed(error)) is not None:
        return _print_problems(blamed.problems, blamed.exit_code)
    if isinstance(error, SystemExit):
        raise error
    return _system_error(error, arguments) if isinstance(error, OSError) else _bug(error, arguments)


def _reported_elsewhere(error: BaseException) -> bool:
    """Return True if another process of the job reports the error."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from freerun.training.processes import reported_elsewhere

    return reported_elsewhere(error)


def _print_problems(problems: Sequence[str], code: int) -> int:
    who = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for problem in UserError(problems).problems:
        print_problem(who + (problem if code in _STOPPED else f"error: {problem}"))
    if len(problems) > 1:
        print(f"{len(problems)} errors", file=sys.stderr)
    return code


def _system_error(error: OSError, arguments: Sequence[str]) -> int:
    import errno

    name = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return _print_problems([f"{name}{error.strerror}"], ResourceError.exit_code)
    theirs = {"ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "ENAMETOOLONG", "ELOOP", "EINVAL", "EROFS"}
    if error.filename and errno.errorcode.get(error.errno or 0) in theirs:
        return _print_problems([f"{name}{(error.strerror or str(error)).lower()}"], UserError.exit_code)
    return _bug(error, arguments)


def _bug(error: BaseException, arguments: Sequence[str]) -> int:
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="freerun-report-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"freerun {_version()} with Python {sys.version}\narguments: {list(arguments)}\n\n{text}")
    first = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return _print_problems(
        [f"freerun failed unexpectedly: {message}\n  help: this is a fault in freerun; {file.name} says where"],
        FaultError.exit_code,
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("freerun")
    except PackageNotFoundError:
        return "(not installed)"
