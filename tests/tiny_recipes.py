"""A recipe that trains in a second, and ways to change it."""

from pathlib import Path
from typing import Any

import tomli_w

TINY = """\
name = "tiny"
seed = 3

[data]
kind = "toy"
symbols = 6
max_length = 4
train = 200
dev = 20
test = 20

[model]
size = 16

[method]
name = "scheduled_sampling"
teacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.5 }

[train]
updates = 12
batch_size = 32
evaluate_every = 6
save_every = 6
"""
TOY = TINY[TINY.index("kind") : TINY.index("\n[model]")]

SAMPLING = {"name": "scheduled_sampling", "teacher_forcing_ratio": 0.5}
FALLING = SAMPLING | {"teacher_forcing_ratio": {"schedule": "linear", "start": 1.0, "end": 0.5}}
ARMS = [{"method": {"name": "teacher_forcing"}}, {"method": SAMPLING}]


def toml(**sections: Any) -> str:
    """A recipe's text from its sections."""
    return tomli_w.dumps(sections)


def ends(capsys: Any, code: int, *words: object) -> Any:
    """Run the command, which must end with the code; what it printed (out, err)."""
    from freerun.cli import main

    assert main([str(word) for word in words]) == code
    return capsys.readouterr()


def write(folder: Path, text: str = TINY, name: str = "tiny.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def changed(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new)
