"""What always holds, engine by engine: off is free, modes and statistics stay, the row's number does not matter."""

import pickle

import pytest
import torch
from torch import nn

import freerun as fr
from builders import gradients, language_model, prompted, ragged, transformer

KEY, STEP = 5, 3
ENGINES = [*fr.ENGINES, fr.Window(3)]
CASES = {
    "seq2seq": lambda: (transformer(), ragged(size=6, time=9)),
    "seq2seq, dropout": lambda: (transformer(dropout=0.3), ragged(size=6, time=9)),
    "lm, left prompts": lambda: (language_model("learned"), prompted("left", size=6)),
    "lm, right padding": lambda: (language_model(), prompted("right", size=6)),
}
engines = pytest.mark.parametrize("engine", ENGINES, ids=str)
cases = pytest.mark.parametrize("case", CASES)


def counted(model: nn.Module) -> list[str]:
    """The calls of the model's decoder from now on."""
    calls: list[str] = []
    for name in ("_hidden", "start", "step", "advance"):
        inner = getattr(model, name)
        setattr(model, name, lambda *args, n=name, f=inner: (calls.append(n), f(*args))[1])
    return calls


@engines
@cases
def test_off_is_free(engine, case):
    """Ratio 1: loss and gradient of teacher forcing bit for bit, the dropout's too, and its one forward."""
    model, batch = CASES[case]()
    torch.manual_seed(0)
    expected = gradients(model, fr.teacher_forcing()(model, batch, STEP, KEY))
    method = fr.scheduled_sampling(1.0, engine=engine)
    torch.manual_seed(0)
    found = gradients(model, method(model, batch, STEP, KEY))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    calls = counted(model)
    method(model, batch, STEP, KEY)
    assert calls == ["_hidden"]


@engines
@cases
def test_free_running_greedily_is_what_generate_returns(engine, case):
    """Row by row up to the end of the row's own eligible entries; prompts are the same by being gold."""
    model, batch = CASES[case]()
    # every entry after the prompt may be replaced, as generate sees no gold
    known = (batch.mask.cumsum(1) == 0) & ~batch.replaceable
    open_ = batch.replace(mask=~known, eligible=~known)
    history = fr.scheduled_sampling(0.0, draw="greedy", engine=engine).transform(model, open_, STEP, KEY).history
    generated = fr.generate(model, open_, length=batch.time).entries
    for row, begin in enumerate(known.sum(1).tolist()):
        assert torch.equal(history[row, begin:], generated[row, : batch.time - begin])


@engines
@cases
def test_position_in_the_batch_and_further_padding_do_not_matter(engine, case):
    model, batch = CASES[case]()
    method = fr.scheduled_sampling(0.4, engine=engine)
    full = method.run(model.eval(), batch, STEP, KEY)
    rows = torch.tensor([4, 1, 3])
    part = method.transform(model, batch.select(rows), STEP, KEY).history
    assert torch.equal(part, full.fed.history[rows])
    halves = [method.run(model, batch.select(torch.tensor(half)), STEP, KEY) for half in ([5, 0, 2], [1, 3, 4])]
    torch.testing.assert_close(sum(half.total for half in halves), full.total, rtol=1e-12, atol=0)
    padded = (nn.functional.pad(part, (0, 3)) for part in (batch.targets, batch.history, batch.mask))
    found = method.transform(model, fr.Batch(*padded, batch.context, rows=batch.rows), STEP, KEY).history
    assert torch.equal(found, nn.functional.pad(full.fed.history, (0, 3)))


@engines
def test_modes_and_statistics_are_left_as_they_were(engine):
    model, batch = transformer(dropout=0.3), ragged(size=6)

    class Normed(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.flatten(0, -2)).view_as(x)

    model.norm = Normed(8).double()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fr.scheduled_sampling(0.3, engine=engine).transform(model, batch, STEP, KEY)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


@engines
def test_a_method_with_an_engine_is_comparable_and_picklable(engine):
    method = fr.scheduled_sampling(0.5, engine=engine)
    again = pickle.loads(pickle.dumps(method))
    assert again == method == fr.scheduled_sampling(0.5, engine=engine)
    assert repr(again) == repr(method)
