"""Word dropout: its history, loss and gradient are those of nested loops; its law is the ratio's; what it is for."""

import pytest
import torch

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, refused, seq2seq, transformer
from freerun.keys import fold, uniform
from freerun.methods.own_runs import with_end
from oracles_methods import coin_table, cross_entropy

KEY, STEP = 5, 3


def hidden(batch: fr.Batch, ratio: float, each: str, blank: int) -> torch.Tensor:
    """The history, one entry at a time."""
    history, coins = batch.history.clone(), coin_table(batch, ratio, fold(KEY, "gate", STEP))
    for b in range(batch.size):
        for t in range(batch.time):
            symbol = batch.history[b, t]
            coin = uniform(fold(KEY, "gate", STEP), batch.row_numbers[b], symbol)
            keep = bool(coins[b, t]) if each == "entry" else float(coin) < ratio
            if bool(batch.replaceable[b, t]) and not keep:
                history[b, t] = blank
    return history


@pytest.mark.parametrize("each", ["entry", "symbol"])
@pytest.mark.parametrize(
    ("model", "batch"),
    [(seq2seq, ragged), (transformer, ragged), (language_model, lambda: prompted("left"))],
    ids=["lstm", "transformer", "language model"],
)
def test_history_loss_and_gradient_are_those_of_nested_loops(model, batch, each):
    model, batch = model(), batch()
    outcome = fr.word_dropout(0.5, blank=4, each=each).run(model, batch, STEP, KEY)
    history = hidden(batch, 0.5, each, 4)
    assert torch.equal(outcome.fed.history, history)
    assert not torch.equal(history, batch.history)
    expected = cross_entropy(model(batch.replace(history=history)), batch)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, expected))


def test_the_share_of_blanks_is_one_minus_the_ratio():
    """20,000 entries, of which each is blank with probability 0.3: 5 standard errors, false alarms below 1e-6."""
    ids = torch.ones(2000, 10, dtype=torch.long)
    fed = fr.word_dropout(0.7, blank=0).transform(lambda batch: batch, fr.Batch(ids), 0, 1)
    assert abs(float((fed.history == 0).double().mean()) - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5


def test_equal_symbols_of_a_row_are_hidden_together_and_rows_apart():
    ids = torch.tensor([[1, 2, 1, 3, 2, 1]]).expand(200, 6)
    fed = fr.word_dropout(0.5, blank=0, each="symbol").transform(lambda batch: batch, fr.Batch(ids), 0, 1).history
    assert bool(((fed[:, 0] == 0) == (fed[:, 2] == 0)).all())
    assert bool(((fed[:, 1] == 0) == (fed[:, 4] == 0)).all())
    assert len({tuple(row) for row in (fed == 0).tolist()}) == 8  # false alarms: 8 (7/8)^200 = 2e-11


def test_values_are_zeros_or_a_number_and_only_where_they_may_be_replaced():
    values = torch.randn(5, 8, 2)
    eligible = torch.arange(8).expand(5, 8) > 2
    batch = fr.Batch(values, eligible=eligible)
    for blank, number in ((None, 0.0), (1.5, 1.5)):
        history = fr.word_dropout(0.0, blank=blank).transform(lambda each: each, batch, 0).history
        assert bool((history[eligible] == number).all())
        assert torch.equal(history[~eligible], values[~eligible])


def test_the_blank_is_the_end_symbol_of_the_data_or_of_the_models_own_generation():
    assert with_end(fr.word_dropout(0.5), 7) == fr.word_dropout(0.5, blank=7)
    assert with_end(fr.word_dropout(0.5, blank=2), 7) == fr.word_dropout(0.5, blank=2)
    refused("blank=None is no id", fr.word_dropout(0.5), seq2seq(), ragged(), 0)
    refused("blank=1.5 is no id", fr.word_dropout(0.5, blank=1.5), seq2seq(), ragged(), 0)
    refused("blank must be an id or a number", fr.word_dropout, 0.5, blank="the")
    refused("each must be one of", fr.word_dropout, 0.5, each="word")
    values = fr.Batch(torch.randn(1, 3, 1))
    refused("these targets are values", fr.word_dropout(0.5, each="symbol"), lambda batch: batch.history, values, 0)


def test_it_makes_a_decoder_read_its_context():
    """The history alone tells the next symbol in training, and nothing at test time, where all of it is blank.

    Sixteen random strings of four symbols out of four, each named by its own context id. With gold histories the
    symbol that follows can be read off the last two in nearly every string; a decoder trained on half of them has to
    know the context. Of 20 seeds the loss on blanks is 2.1 to 5.7 nats after the one and 0.002 to 0.06 after the other,
    at most 0.011 of it.
    """
    g = torch.Generator().manual_seed(0)
    strings = torch.randint(1, 5, (16, 6), generator=g)
    source = torch.arange(1, 17)[:, None]
    batch = fr.Batch(strings, context={"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)})
    losses = []
    for method in (fr.teacher_forcing(), fr.word_dropout(0.3, blank=0)):
        torch.manual_seed(0)
        model = fr.models.RecurrentSeq2Seq(17, 5, size=24)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(150):
            optimizer.zero_grad()
            method(model, batch, step, 0).backward()
            optimizer.step()
        losses.append(float(fr.word_dropout(0.0, blank=0)(model, batch, 0).detach()))
    assert losses[1] < 0.1 * losses[0]
