"""What always holds, engine by engine: off is free, modes and statistics stay, the place in a batch does not matter."""

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

    def note(name: str):
        inner = getattr(model, name)

        def noted(*given):
            calls.append(name)
            return inner(*given)

        return noted

    for name in ("_hidden", "start", "step", "advance"):
        setattr(model, name, note(name))
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
def test_free_running_greedily_is_what_generate_says(engine, case):
    """Row by row up to the end of the row's own eligible entries; prompts are the same by being gold."""
    model, batch = CASES[case]()
    # every entry after the prompt may be replaced, as generate sees no gold
    known = (batch.mask.cumsum(1) == 0) & ~batch.replaceable
    open_ = batch.replace(mask=~known, eligible=~known)
    history = fr.scheduled_sampling(0.0, draw="greedy", engine=engine).transform(model, open_, STEP, KEY).history
    said = fr.generate(model, open_, length=batch.time).entries
    for row in range(batch.size):
        begin = int(known[row].sum())
        assert torch.equal(history[row, begin:], said[row, : batch.time - begin])


@engines
@cases
def test_place_in_the_batch_and_further_padding_do_not_matter(engine, case):
    model, batch = CASES[case]()
    method = fr.scheduled_sampling(0.4, engine=engine)
    whole = method.run(model.eval(), batch, STEP, KEY)
    rows = torch.tensor([4, 1, 3])
    part = method.transform(model, batch.select(rows), STEP, KEY).history
    assert torch.equal(part, whole.fed.history[rows])
    halves = [method.run(model, batch.select(torch.tensor(half)), STEP, KEY) for half in ([5, 0, 2], [1, 3, 4])]
    torch.testing.assert_close(sum(half.total for half in halves), whole.total, rtol=1e-12, atol=0)
    pad = torch.zeros(batch.size, 3, dtype=torch.int64)
    longer = fr.Batch(
        torch.cat([batch.targets, pad], 1),
        torch.cat([batch.history, pad], 1),
        torch.cat([batch.mask, pad.bool()], 1),
        batch.context,
        rows=batch.rows,
    )
    found = method.transform(model, longer, STEP, KEY).history
    assert torch.equal(found[:, : batch.time], whole.fed.history)
    assert torch.equal(found[:, batch.time :], pad)


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
