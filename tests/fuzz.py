"""Hostile recipes and hostile files, thousands of them, through the command itself: never a fault of ours.

    python tests/fuzz.py recipes --cases 5000
    python tests/fuzz.py data --cases 5000
    python tests/fuzz.py data --only 1234 --show

A case is a function of (seed, number). It fails where the exit code is none of those of a user's mistake, a line of a
message is endless or steers the terminal, a file is written outside the run's folder, or it takes too long.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_files
import fuzz_recipes

FINE = {0, 2, 3, 4, 5, 6}
LONGEST = 1000  # of a line: twice a message's bound, for the places it names
SECONDS = 240  # a hang is no matter of minutes
MEMORY = 10 * 2**30  # of addresses: PyTorch alone asks for several GiB


class TooSlowError(BaseException):
    """The alarm rang."""


@dataclass
class Sandbox:
    """A folder in which everything of the cases happens: ``in`` and ``out`` are theirs, the rest must stay empty."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("in", "out", "tmp", "cwd", "home"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp"), "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.root / "hf"), "RUST_BACKTRACE": "0",
        }  # fmt: skip
        tempfile.tempdir = None
        os.chdir(self.root / "cwd")

    def clear(self) -> None:
        for name in ("in", "out"):
            shutil.rmtree(self.root / name)
            (self.root / name).mkdir()

    def strays(self) -> list[str]:
        """What was written where nothing belongs; taken away, so that it counts against one case only."""
        found = [path for name in ("tmp", "cwd", "home") for path in sorted((self.root / name).iterdir())]
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return [str(path.relative_to(self.root)) for path in found]


@dataclass
class Outcome:
    """How a command ended."""

    code: int | str
    out: str
    text: str
    seconds: float
    strays: list[str]

    def faults(self) -> list[str]:
        found = [] if self.code in FINE else [f"exit {self.code}"]
        if self.seconds > SECONDS:
            found.append(f"took {self.seconds:.0f} s")
        lines = self.text.split("\n")  # answers are as long as what they answer
        if long := [line for line in lines if len(line) > LONGEST]:
            found.append(f"a line of {max(map(len, long)):,} characters")
        lines += self.out.split("\n")
        if steering := [line for line in lines if any(c != "\t" and not c.isprintable() for c in line)]:
            hidden = sorted({c for line in steering for c in line if c != "\t" and not c.isprintable()})
            if any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028\u200f" for c in hidden):
                found.append(f"prints {hidden!r}")
        for word in ("Traceback", "Warning:", "panicked"):
            if word in self.text:
                found.append(f"says {word}")
        return [*found, *(f"wrote {stray}" for stray in self.strays)]


def ran(sandbox: Sandbox, command: Callable[[], int]) -> Outcome:
    """A command in this process, by the guard of the command line; what it prints is caught, also by libraries."""
    from freerun.cli.entry import guarded

    caught = [tempfile.TemporaryFile(dir=sandbox.root) for _ in range(2)]
    kept = [os.dup(number) for number in (1, 2)]
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, file in zip((1, 2), caught, strict=True):
        os.dup2(file.fileno(), number)
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    try:
        code: int | str = guarded(command, ["fuzz"])
    except TooSlowError:
        code = "too slow"
    except BaseException as error:  # a panic of a library is no Exception
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
    seconds = time.monotonic() - start
    texts: list[str] = []
    for file in caught:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
        file.close()
    # a report is known by its exit code; PyTorch makes a cache of its own
    strays = [name for name in sandbox.strays() if "freerun-report-" not in name and "torchinductor" not in name]
    return Outcome(code, *texts, seconds, strays)


def _ring(number: int, frame: Any) -> None:
    raise TooSlowError


def fuzz(kind: str, numbers: range, seed: int, *, show: bool = False, sandbox: Path | None = None) -> list[str]:
    """Try cases; a line for each that fails.

    Args:
        kind: "recipes" or "data".
        numbers: of the cases.
        seed: of all of them.
        show: print what each did.
        sandbox: where; a temporary folder if left out.
    """
    warnings.simplefilter("ignore", ResourceWarning)
    part: Any = {"recipes": fuzz_recipes, "data": fuzz_files}[kind]
    with tempfile.TemporaryDirectory(dir=sandbox) as folder:
        box = Sandbox(Path(folder).resolve())
        world = part.World(box.root / "world")
        box.strays()
        codes: Counter[str] = Counter()
        failed: list[str] = []
        for number in numbers:
            box.clear()
            rng = random.Random(f"{seed} {kind} {number}")
            title, command = part.case(rng, world, box.root / "in", box.root / "out")
            outcome = ran(box, command)
            codes[str(outcome.code)] += 1
            faults = outcome.faults()
            if show:
                print(f"{number}: {title}: exit {outcome.code}, {outcome.seconds:.1f} s\n{outcome.text[:4000]}")
            if number % 500 == 499:
                print(f"{kind} up to {number}: {dict(codes)}", flush=True)
            if faults:
                line = f"{kind} {number}: {title}: {'; '.join(faults)}: {outcome.text[-300:]!r}"
                failed.append(line)
                print(line, flush=True)
        print(f"{kind}, seed {seed}: {len(numbers)} cases, {dict(codes)}, {len(failed)} failed", flush=True)
        os.chdir("/")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("recipes", "data"))
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    numbers = (
        range(options.first, options.first + options.cases)
        if options.only is None
        else range(options.only, options.only + 1)
    )
    return 1 if fuzz(options.kind, numbers, options.seed, show=options.show) else 0


if __name__ == "__main__":
    sys.exit(main())
