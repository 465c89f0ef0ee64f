"""The recurrent encoder-decoder: its settings, and what each of them computes."""

import pytest
import torch

import freerun as fr
from builders import ragged, refused, seq2seq
from freerun.checks.run import examine


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_encoder_and_decoder_are_as_deep_as_their_own_settings(cell):
    model, batch = seq2seq(cell, encoder_layers=3, decoder_layers=1, layers=2), ragged()
    assert (len(model.encoder.forwards), model.decoder.num_layers) == (3, 1)
    assert examine(model, batch).refused == ()
    assert fr.models.RecurrentSeq2Seq(**model.settings()).state_dict().keys() == model.state_dict().keys()


def test_layers_is_both_where_they_have_none_of_their_own():
    both, each = seq2seq(layers=2), seq2seq(encoder_layers=2, decoder_layers=2)
    assert torch.equal(both(ragged()), each(ragged()))
    only = seq2seq(layers=2, decoder_layers=1)
    assert (len(only.encoder.forwards), only.decoder.num_layers) == (2, 1)


def test_numbers_of_layers_are_checked_with_the_others():
    refused(
        ["encoder_layers must be at least 1, or None for `layers`; got 0", "decoder_layers must be", "cell must be"],
        seq2seq, "tanh", encoder_layers=0, decoder_layers=1.5,
    )  # fmt: skip
