"""Objects that hold data print in one short line, however much they hold."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch

import freerun as fr
from builders import ragged, seq2seq
from freerun import diagnostics, rollin
from freerun.data import SystemOptions, TextData, TextOptions, load_system, load_toy
from freerun.training import Evaluation
from test_conformance import vector_batch

MOST = 500
ROOMS = ("data", "diagnostics", "generation", "rollin", "types", "tasks.base")


def classes():
    """Every public dataclass of the packages whose objects hold data or results."""
    for package in map(importlib.import_module, [f"freerun.{name}" for name in ROOMS]):
        inside = pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}.")
        for module in [package, *(importlib.import_module(found.name) for found in inside)]:
            for name, cls in inspect.getmembers(module, inspect.isclass):
                own = cls.__module__ == module.__name__ and not name.startswith("_")
                if own and dataclasses.is_dataclass(cls):
                    yield cls


HELD = ("Tensor", "list", "tuple", "Mapping", "dict", "Sequence", "ndarray", "str", "Row", "Path", "Any")


@pytest.mark.parametrize("cls", sorted(set(classes()), key=lambda cls: (cls.__module__, cls.__name__)))
def test_no_class_that_holds_data_prints_all_of_it(cls):
    held = [each for each in dataclasses.fields(cls) if any(word in str(each.type) for word in HELD)]
    if held and cls not in (rollin.Window, rollin.Draft) and not cls.__module__.startswith("freerun.data.systems"):
        assert not hasattr(cls.__repr__, "__wrapped__"), f"{cls.__name__} prints {held} whole: __repr__ = brief"


def toy():
    return load_toy("copy", symbols=20, max_length=12, words={"train": 3000, "dev": 300, "test": 300})


def text():
    words = "the cat sat on the mat and the dog ran. " * 400
    return TextData({"train": words, "dev": words[:400], "test": words[:400]}, TextOptions(length=32))


def whole():
    batch = vector_batch(16)
    return batch.replace(mask=torch.ones_like(batch.mask))


def generated():
    return fr.generate(seq2seq(), ragged(64), length=40)


def values():
    return load_system("lorenz63", SystemOptions(windows=(64, 16, 64), trajectories=8))


MADE = {
    "pairs": toy, "a split": lambda: toy().splits["train"], "a codec": lambda: toy().codec,
    "a vocabulary": lambda: toy().tokeniser.target, "text": text, "a system": values,
    "generated": generated,
    "an outcome": lambda: fr.scheduled_sampling(0.5).run(seq2seq(), ragged(64), step=0),
    "a batch": lambda: ragged(64),
    "a report": lambda: fr.check_model(seq2seq(), ragged(64)),
    "an evaluation": lambda: Evaluation({"per": 0.1}, {"per": 0.2}, [{"source": "a" * 100}] * 1000),
    "a diagnosis of values": lambda: diagnostics.diagnose(fr.models.Seq2SeqModel(2, 8, 4).double(), whole()),
    "a diagnosis of ids": lambda: diagnostics.diagnose(seq2seq(), ragged(64)),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_an_object_prints_in_one_short_line(name):
    made = MADE[name]()
    text = repr(made)
    assert type(made).__name__ in text
    assert len(text) <= MOST
    assert len(text.splitlines()) == 1
    assert text.isprintable()


def test_shapes_and_counts_stand_for_numbers():
    outcome = fr.scheduled_sampling(0.5).run(seq2seq(), ragged(64), step=0)
    assert f"total={outcome.total.item():.4g}" in repr(outcome)
    assert "outputs=(64, 7, 5) float64" in repr(outcome)
    assert "entries=(64, 40) int64" in repr(generated())
    assert "sources=3,000 items" in repr(toy().splits["train"])
    assert repr(TextOptions(length=32)) == "TextOptions(length=32)"
    assert "16,000 characters" in repr(text())
