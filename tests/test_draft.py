"""Drafts: by other models on their own context, by copies that follow the model, and what cannot be drafted."""

import warnings

import pytest
import torch
from torch import nn

import freerun as fr
from builders import assert_same_gradients, gradients, language_model, prompted, ragged, seq2seq, transformer

KEY, STEP, RATIO = 5, 3, 0.3


def test_another_encoder_decoder_drafts_from_its_own_encoding():
    """Another width and another kind: what the model to be trained made of the source means nothing to them."""
    model, batch = transformer(), ragged(size=6)
    exact = fr.scheduled_sampling(RATIO, engine="step").run(model, batch, STEP, KEY)
    expected = gradients(model, exact.loss)
    for drafter in (transformer(size=4), seq2seq()):
        method = fr.scheduled_sampling(RATIO, engine=fr.Draft(drafter))
        outcome = method.run(model, batch, STEP, KEY)
        assert torch.equal(outcome.fed.history, exact.fed.history)
        assert outcome.report["certified"] == "training forward"
        assert_same_gradients(gradients(model, outcome.loss), expected)
        assert torch.equal(method.transform(model, batch, STEP, KEY).history, exact.fed.history)


def test_a_perfect_drafter_of_its_own_is_certified_at_once():
    """The same weights, apart: one drafting run, nothing redone."""
    model, batch = transformer(), ragged(size=6)
    outcome = fr.scheduled_sampling(RATIO, engine=fr.Draft(transformer(), tolerance=0.0)).run(model, batch, STEP, KEY)
    alone = fr.scheduled_sampling(RATIO, engine="jacobi").run(model, batch, STEP, KEY)
    assert outcome.report["work"] == alone.report["work"]


def test_the_copy_follows_a_model_that_was_rebuilt():
    model, batch = language_model(), prompted("right", size=8)
    method = fr.scheduled_sampling(RATIO, engine="draft")
    method.run(model, batch, STEP, KEY)
    model.out = nn.Linear(8, 5, bias=False).double()  # no longer tied
    wanted = fr.scheduled_sampling(RATIO, engine="step").run(model, batch, STEP, KEY)
    assert torch.equal(method.run(model, batch, STEP, KEY).fed.history, wanted.fed.history)
    model.float()
    method.run(model, batch, STEP, KEY)


def test_what_cannot_be_drafted_is_refused_in_words():
    values = torch.randn(3, 5, 4)
    batch = fr.Batch(values, values, torch.ones(3, 5, dtype=torch.bool), torch.randn(3, 5, 2))
    for engine in ("draft", fr.Draft(torch.float32)):
        with pytest.raises(fr.UserError, match="values never are: use engine='step' or 'jacobi'"):
            fr.scheduled_sampling(RATIO, engine=engine, gradient="none").run(
                fr.models.Seq2SeqModel(2, 7, 4), batch, step=0
            )
    model = language_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        nn.utils.weight_norm(model.blocks[0].feed.out)
    with pytest.raises(fr.UserError, match="TransformerLM cannot be copied"):
        fr.scheduled_sampling(RATIO, engine="draft").run(model, prompted("right"), step=0)


class Rounding(nn.Module):
    """Two symbols that tie but for the last bit, and that bit hangs on how many rows there are."""

    def forward(self, batch):
        bit = (batch.row_numbers >> batch.size.bit_length()) & 1
        return nn.functional.one_hot(bit, 2).double()[:, None].expand(-1, batch.time, -1) * 1e-12


def test_choices_that_hang_on_rounding_are_given_time_to_settle():
    """Half of the rows left change their mind in every pass, until no row is dropped any more."""
    ids = torch.zeros(64, 1, dtype=torch.int64)
    rows = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(0))
    batch = fr.Batch(ids, ids, ids >= 0, rows=rows)
    outcome = fr.scheduled_sampling(0.0, draw="greedy", engine="jacobi").run(Rounding(), batch, step=0)
    assert outcome.report["passes"] > 4  # one entry a row: 2 are proven to do for a function of the row alone
