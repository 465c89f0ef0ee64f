"""A tiny recipe, its data, a finished and an unfinished run of each kind, made where every extra is installed."""

import shutil
from pathlib import Path

import datasets
import polars as pl

from extras_cases import KINDS, TRAIN_ONLY
from freerun.cli import main
from huggingface_world import model_folder, rows, write_lines
from parallel_text import write_parallel

TRAIN = "updates = 4\nbatch_size = 8\nevaluate_every = 2\nsave_every = 2\nkeep = 2\nthreads = 1\n"
ARMS = (
    '[compare]\nseeds = [0]\nworkers = 2\n[[compare.arms]]\nmethod = { name = "teacher_forcing" }\n'
    '[[compare.arms]]\nmethod = { name = "scheduled_sampling", teacher_forcing_ratio = 0.5 }\n'
)
PAIRS = '[data]\nkind = "toy"\nsymbols = 6\nmax_length = 4\ntrain = 60\ndev = 10\ntest = 10\n[model]\nsize = 8\n'
CMUDICT = '[data]\nkind = "cmudict"\nlimit = 60\n[model]\nsize = 8\n'
TEXT = '[data]\nkind = "text"\npath = "text.txt"\nlength = 8\ndev = 0.1\ntest = 0.1\n' \
    "[model]\nsize = 8\nlayers = 1\nheads = 2\nmax_positions = 16\n"  # fmt: skip
FORECASTER = '[model]\nkind = "recurrent_forecaster"\nsize = 8\n'
SYSTEM = '[data]\nkind = "system"\nsystem = "lorenz63"\npast = 6\nhorizon = 5\nwindows = [40, 10, 12]\n' \
    f"trajectories = 4\n{FORECASTER}"  # fmt: skip
SERIES = '[data]\nkind = "series"\npath = "FILE"\npast = 6\nhorizon = 5\n' + FORECASTER
PARALLEL = '[data]\nkind = "parallel"\npath = "."\nsubwords = 290\n' \
    '[model]\nkind = "transformer"\nsize = 16\nlayers = 1\nheads = 2\n'  # fmt: skip
RECORDS = '[data]\nkind = "records"\npath = "FILE"\ndev = 0.15\ntest = 0.15\n' \
    '[model]\nkind = "huggingface"\npath = "model"\n'  # fmt: skip
RECIPES = {
    "pairs": PAIRS,
    "text": TEXT,
    "system": SYSTEM,
    "cmudict": CMUDICT,
    "chorales": '[data]\nkind = "chorales"\nlength = 8\n[model]\nkind = "recurrent_labeller"\nsize = 8\n',
    "csv": SERIES.replace("FILE", "series.csv"),
    "parquet": SERIES.replace("FILE", "series.parquet"),
    "parallel": PARALLEL,
    "records": RECORDS.replace("FILE", "records.jsonl"),
    "records-parquet": RECORDS.replace("FILE", "records.parquet"),
    "records-datasets": RECORDS.replace("FILE", "saved"),
    "tensorboard": PAIRS,
}
EVALUATED = {"pairs": "", "text": "[evaluate]\nblock = 16\n", "parallel": "[evaluate]\nlength_margin = 2\n"}


def make(world: Path) -> Path:
    """The world, in its folder; paths in its recipes are whole, so that they hold wherever a command is run."""
    for kind in KINDS:
        home = world / kind
        home.mkdir(parents=True)
        _data(home, kind)
        _recipe(home, kind)
        if kind not in TRAIN_ONLY:
            _runs(home)
    return world


def _data(home: Path, kind: str) -> None:
    lines = [f"{one / 10},{(one % 7) / 7}" for one in range(120)]
    (home / "series.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    (home / "text.txt").write_text("the cat sat on the mat and the dog ran to the cat.\nso it goes.\n" * 12)
    write_parallel(home)
    if kind.startswith("records"):
        model_folder(home / "model", "t5")
        write_lines(home / "records.jsonl", rows("pairs"))
    if kind == "parquet":
        pl.read_csv(home / "series.csv").write_parquet(home / "series.parquet")
    if kind == "records-parquet":
        pl.DataFrame(rows("pairs")).write_parquet(home / "records.parquet")
    if kind == "records-datasets":
        datasets.Dataset.from_list(rows("pairs")).save_to_disk(str(home / "saved"))
    answers = {
        "pairs": "abc\n",
        "cmudict": "cat\n",
        "chorales": "69 71 r\n",
        "csv": (home / "series.csv").read_text(),
        "parallel": "a man runs .\n",
    }
    (home / "input").write_text(answers.get(kind, "the cat\n"))
    if kind == "system":
        steps = [f"{step / 10},{step / 5},{20 + step / 7}\n" for step in range(12)]
        (home / "input").write_text("x,y,z\n" + "".join(steps))


def _recipe(home: Path, kind: str) -> None:
    text = RECIPES[kind]
    for name in ("text.txt", "series.csv", "series.parquet", "records.jsonl", "records.parquet", "saved", "model", "."):
        text = text.replace(f'path = "{name}"', f'path = "{home / name}"')
    more = "tensorboard = true\n" if kind == "tensorboard" else ""
    method = '[method]\nname = "scheduled_sampling"\nteacher_forcing_ratio = 0.5\n'
    (home / "recipe.toml").write_text(
        f'name = "{kind}"\nseed = 0\n{text}{method}[train]\n{TRAIN}{more}{EVALUATED.get(kind, "")}{ARMS}'
    )


def _runs(home: Path) -> None:
    """A finished run, and one that was stopped after half of its updates."""
    assert main(["train", str(home / "recipe.toml"), "--out", str(home / "run")]) == 0
    shutil.copytree(home / "run", home / "half")
    shutil.rmtree(home / "half" / "checkpoints" / "step-00000004")
    shutil.rmtree(home / "half" / "model")
    (home / "half" / "summary.json").unlink()
