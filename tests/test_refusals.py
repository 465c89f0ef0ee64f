"""Refusals that no other test reaches, each by name."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import freerun as fr
from builders import ragged, refused, seq2seq, transformer
from freerun.checks.run import examine
from freerun.recipes import load_recipe
from freerun.rollin.model import differs_by_mode
from tiny_recipes import TINY, changed, write

IDS = fr.Batch(torch.tensor([[3, 1, 2]]))
VALUES = fr.Batch(torch.ones(1, 3, 1))


def unigram(**arguments):
    return fr.token_noise(1.0, noise="unigram", **arguments)


def test_noise_that_cannot_be_drawn():
    model = lambda batch: torch.zeros(*batch.targets.shape, 9)  # noqa: E731
    refused("noise must be one of uniform, unigram, same_sentence; got 'gauss'", fr.token_noise, 0.5, noise="gauss")
    refused("frequencies hold 2 symbols, and the history has id 3", unigram(frequencies=[1, 2]), model, IDS, 0)
    only = unigram(frequencies=(0, 0, 0, 5), exclude_gold=True)
    refused("at least two symbols with a count above 0", only, model, fr.Batch(torch.tensor([[3, 3]])), 0)
    assert unigram(frequencies=[1, 2]) == unigram(frequencies=(1, 2))
    infinite = lambda batch: torch.full_like(batch.targets, math.inf)  # noqa: E731
    refused("cannot be measured: the model's one-step error is", fr.gaussian_noise("matched"), infinite, VALUES, 0)
    nothing = fr.gaussian_noise("matched", rate=0.0).run(lambda batch: batch.history, VALUES, 0)
    assert (nothing.report["passes"], nothing.report["std"]) == (0, 0.0)


def test_contexts_of_many_parts_are_walked():
    pair = SimpleNamespace(select=lambda rows: rows)
    batch = fr.Batch(
        torch.tensor([[1], [2]]),
        context=(torch.arange(2), [torch.ones(2), pair]),
        eligible=IDS.mask[:, :1].expand(2, 1),
    )
    picked = batch.select(torch.tensor([1]))
    assert picked.context[0].tolist() == [1]
    assert picked.context[1][1].tolist() == [1]
    assert "2 eligible" in repr(batch)
    moved = batch.to("cpu")
    assert moved.context[1][0].tolist() == [1, 1]
    strange = batch.made(context={"x": 3})
    refused("a context must hold batch-first tensors or have .select", strange.select, torch.tensor([0]))


class Cut(nn.Module):
    """A Stepper whose state is what a test makes of it."""

    def __init__(self, extra):
        super().__init__()
        self.extra, self.linear = extra, nn.Linear(1, 1).double()

    def forward(self, batch):
        before = torch.cat([torch.zeros_like(batch.history[:, :1]), batch.history[:, :-1]], 1)
        return self.linear(before)

    def start(self, batch):
        return {"last": torch.zeros_like(batch.history[:, 0]), "more": (3, None), "extra": self.extra}

    def embed(self, entries):
        return entries

    def step(self, state, inputs):
        return {**state, "last": inputs}

    def output(self, state, rows=None):
        return self.linear(state["last"] if rows is None else state["last"][rows])

    def select(self, state, rows):
        return {**state, "last": state["last"][rows]}


def test_a_state_is_cut_part_by_part_or_refused():
    batch = fr.Batch(torch.ones(1, 4, 1, dtype=torch.float64))
    cut = fr.free_running(gradient=2)
    assert cut(Cut([torch.ones(1)]), batch, 0).isfinite()
    refused(["state", "holds a object", "detach(state)"], cut, Cut(object()), batch, 0)


def test_a_model_that_answers_otherwise_in_training():
    assert differs_by_mode(nn.InstanceNorm1d(2, track_running_stats=True))
    assert not differs_by_mode(nn.InstanceNorm1d(2))
    with_errors = seq2seq()
    with_errors.forward = lambda batch: (_ for _ in ()).throw(IndexError("another index"))
    with pytest.raises(IndexError, match="another index"):
        fr.teacher_forcing()(with_errors, ragged(), 0)


def test_recipes_whose_method_or_arms_are_no_tables(tmp_path):
    method = 'name = "scheduled_sampling"\nteacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.5 }'
    top = TINY.replace("[data]", "method = 3\n\n[data]").replace(f"[method]\n{method}\n", "")
    for text, words in {
        top: "a method is a table with a `name`; got 3",
        TINY + "[compare]\narms = 3\n": "arms",
        TINY + "[compare]\nseeds = [0]\n": "[compare] needs at least one [[compare.arms]]",
        TINY + "[compare]\narms = [3]\n": "an arm is a table with `method` and `label`; got 3",
        changed(method, 'name = "unheard"\nxyz = 1'): "no method has a parameter `xyz`",
    }.items():
        refused([words], load_recipe, write(tmp_path, text))


def test_checks_that_cannot_be_made_say_why():
    same = ragged()
    same = same.replace(context={name: part[:1].expand_as(part).clone() for name, part in same.context.items()})
    finding = next(each for each in examine(transformer(), same).findings if each.name == "uses_context")
    assert (finding.status, finding.explanation) == ("not applicable", "all rows have the same context")
    rows = [torch.tensor([1, 2]), torch.tensor([3])]
    refused("collate could not take a list of 2 examples", fr.check_model, transformer(), examples=rows,
            collate=lambda a, b: a)  # fmt: skip
