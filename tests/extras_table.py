"""Run every command in a real environment for each extra, and print the table of docs/installing.md.

Run: python tests/extras_table.py DIR [EXTRA ...]      in the environment of `make test`; DIR keeps the environments

A wheel is built from the tree and installed with one extra at a time (`none`: without), with the versions of
constraints.txt; the commands run outside the checkout. Exits with 1 where a cell is wrong.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from extras_absent import EXTRAS
from extras_cases import FEATURES, wrong
from extras_world import make

ROOT = Path(__file__).parent.parent
# nothing of the checkout, and of no other environment, is found by path
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), env=CLEAN, text=True, check=True, **options)


def wheel(folder: Path) -> Path:
    for old in folder.glob("freerun-*.whl"):
        old.unlink()
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (made,) = folder.glob("freerun-*.whl")
    return made


def environment(folder: Path, built: Path, extra: str) -> Path:
    """The interpreter of an environment that holds the wheel with an extra."""
    home = folder / (extra or "none")
    python = home / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", home)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", ROOT / "constraints.txt", f"freerun{f'[{extra}]' * bool(extra)} @ {built.as_uri()}")
    run(*pip, "--force-reinstall", "--no-deps", built)
    return python


def expected(needs: Sequence[str], extra: str) -> str:
    """The cell of what works, or of what is refused for want of other extras."""
    lacking = [FEATURES[feature][0] for feature in needs if extra not in FEATURES[feature]]
    return f"`{'`, `'.join(lacking)}`" if lacking else "yes"


def outcomes(python: Path, world: Path, extra: str) -> dict[str, str]:
    """What each case came to: "yes", the extra that it names, or what is wrong with it."""
    with tempfile.TemporaryDirectory() as scratch:
        origin = run(python, "-c", "import freerun; print(freerun.__file__)", cwd=scratch, stdout=-1).stdout
        assert "site-packages" in origin, origin
        done = run(python, ROOT / "tests" / "extras_cases.py", world, scratch, cwd=scratch, stdout=-1)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        case = json.loads(line)
        bad = wrong(case, extra)
        found[case["name"]] = f"FAILS: {bad}" if bad else expected(case["needs"], extra)
    return found


def table(cells: dict[str, dict[str, str]]) -> str:
    """Rows of commands, columns of extras; commands on one kind of data that come to the same share a row."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in next(iter(cells.values())):
        command, _, kind = name.partition(" ")
        rows.setdefault((kind, tuple(column[name] for column in cells.values())), []).append(command)
    head = ["commands", "on", *(extra or "no extra" for extra in cells)]
    lines = [head, ["---"] * len(head), *([", ".join(names), kind, *row] for (kind, row), names in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True, exist_ok=True)
    chosen = ["" if extra == "none" else extra for extra in sys.argv[2:]] or EXTRAS
    package = wheel(place)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            world = make(Path(folder))
        cells = {extra: outcomes(environment(place, package, extra), world, extra) for extra in chosen}
    print(table(cells))
    failed = [f"{extra or 'none'}: {name}: {cell}" for extra in cells for name, cell in cells[extra].items()
              if cell.startswith("FAILS")]  # fmt: skip
    print("\n".join(failed), file=sys.stderr)
    sys.exit(1 if failed else 0)
