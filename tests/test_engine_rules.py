"""What engines refuse and hold in memory; what ``auto`` takes; what the counts count."""

import warnings

import pytest
import torch
from torch import nn

import freerun as fr
from builders import (
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    prompted,
    ragged,
    refused,
    seq2seq,
    transformer,
)
from freerun import draws

KEY, STEP, RATIO = 5, 3, 0.3


def test_with_dropout_a_draft_has_a_certifying_pass_of_its_own():
    model, batch = transformer(dropout=0.3), ragged(time=9)
    expected = fr.scheduled_sampling(0.3, engine="step").transform(model, batch, STEP, KEY).history
    outcome = fr.scheduled_sampling(0.3, engine="draft").run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, expected)
    assert outcome.report["certified"] == "fixed point"
    assert model.training


def test_what_an_engine_cannot_honour_is_refused_by_name():
    coupled, routed = transformer(), transformer()
    coupled.feed = nn.BatchNorm1d(3, track_running_stats=False)
    routed.router = nn.Identity()
    routed.router.expert_capacity = 8
    for model, engine, message in (
        (seq2seq(), "window", r"engine='window' needs a model with .*advance and crop; RecurrentSeq2Seq"),
        (ForwardOnly(seq2seq()), "step", r"engine='step' needs a model with start.*ForwardOnly"),
        (seq2seq().forward, "draft", r"needs a torch\.nn\.Module"),
        (coupled, "jacobi", r"feed \(BatchNorm1d\) normalises over the batch in evaluation mode too"),
        (routed, "window", r"router \(Identity\) routes to experts of limited capacity"),
    ):
        refused(message, fr.scheduled_sampling(0.5, engine=engine).run, model, ragged(), STEP, KEY)


@pytest.mark.parametrize("engine", ["step", "jacobi", "window"])
def test_no_logits_or_noise_for_positions_that_are_not_sampled(engine):
    """A vocabulary of 20,000: neither logits nor Gumbel noise of batch x time x vocabulary are ever held."""
    held: list[int] = []

    class Watched(fr.models.TransformerLM):
        def head(self, hidden):
            held.append(hidden.shape[:-1].numel())
            return super().head(hidden)

    class Noted(draws.Sample):
        def noise(self, key, rows, positions, vocab):
            held.append(rows.numel())
            return super().noise(key, rows, positions, vocab)

    torch.manual_seed(0)
    vocab = 20_000
    model = Watched(vocab, size=8, layers=1, heads=1).eval()
    batch = fr.Batch(torch.randint(0, vocab, (16, 64), generator=torch.Generator().manual_seed(1)))
    method = fr.scheduled_sampling(0.7, draw=Noted(coupling="gumbel"), engine=engine)
    with torch.no_grad():
        report = method.mix_history(model, batch, STEP, KEY)[1]
    assert report["replaced"] > 250
    assert max(held) * vocab <= 2**22


def test_auto_takes_the_measured_choice_and_the_same_entries():
    batch = ragged(size=16, time=9)
    for model, ratio, engine in (
        (transformer(), 0.75, "window"), (seq2seq(), 0.75, "step"), (ForwardOnly(transformer()), 0.75, "jacobi"),
        (transformer(), 0.1, "step"), (transformer(), 1.0, "none"),
    ):  # fmt: skip
        assert fr.scheduled_sampling(ratio).run(model, batch, STEP, KEY).report["engine"] == engine
    for size, ratio, coupling, engine in (
        (2, 0.5, "gumbel", "jacobi"), (3, 0.5, "gumbel", "window"), (2, 0.5, "inverse_cdf", "window"),
        (2, 0.0, "gumbel", "window"),
    ):  # fmt: skip
        method = fr.scheduled_sampling(ratio, draw=draws.Sample(coupling=coupling))
        assert method.run(transformer(), ragged(size=size, time=9), STEP, KEY).report["engine"] == engine


def test_an_engine_that_cannot_be_honoured_is_refused_before_anything_is_own():
    """At ratio 1 too: a falling schedule must not fail in the middle of a run."""
    method = fr.scheduled_sampling(1.0, engine="window")
    refused("engine='window'", method.run, seq2seq(), ragged(), STEP, KEY)
    batch = fr.Batch(torch.randn(2, 5, 4), context=torch.randn(2, 5, 2))
    refused("keeps no gradient", method.run, fr.models.Seq2SeqModel(2, 7, 4), batch, STEP, KEY)


def test_every_forward_is_counted():
    """A confidence gate asks the model once, the loss on gold takes one more forward."""
    model, batch = language_model(), prompted("right", size=16)

    def report(**arguments):
        return fr.scheduled_sampling(0.2, engine="jacobi", **arguments).run(model, batch, STEP, KEY).report

    plain, gold = report(), report(gold_weight=0.5)
    assert (gold["work"], gold["passes"]) == (plain["work"] + 1, plain["passes"] + 1)
    gate = fr.gates.Confidence(0.2)
    gated, both = report(gate=gate), report(gate=gate, gold_weight=0.5)
    assert gated["work"] > 1
    assert both["work"] == gated["work"] + 1


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
    expected = fr.scheduled_sampling(RATIO, engine="step").run(model, batch, STEP, KEY)
    assert torch.equal(method.run(model, batch, STEP, KEY).fed.history, expected.fed.history)
    model.float()
    method.run(model, batch, STEP, KEY)


def test_what_cannot_be_drafted_is_refused():
    batch = fr.Batch(torch.randn(3, 5, 4), context=torch.randn(3, 5, 2))
    for engine in ("draft", fr.Draft(torch.float32)):
        method = fr.scheduled_sampling(RATIO, engine=engine, gradient="none")
        never = "values never are: use engine='step' or 'jacobi'"
        refused(never, method.run, fr.models.Seq2SeqModel(2, 7, 4), batch, step=0)
    model = language_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        nn.utils.weight_norm(model.blocks[0].feed.out)
    method = fr.scheduled_sampling(RATIO, engine="draft")
    refused("TransformerLM cannot be copied", method.run, model, prompted("right"), step=0)


class Rounding(nn.Module):
    """Two symbols that tie but for the last bit, and that bit depends on how many rows there are."""

    def forward(self, batch):
        bit = (batch.row_numbers >> batch.size.bit_length()) & 1
        return nn.functional.one_hot(bit, 2).double()[:, None].expand(-1, batch.time, -1) * 1e-12


def test_choices_that_depend_on_rounding_have_time_to_settle():
    """Half of the rows left change their mind in every pass, until no row is dropped any more."""
    rows = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(0))
    batch = fr.Batch(torch.zeros(64, 1, dtype=torch.int64), rows=rows)
    outcome = fr.scheduled_sampling(0.0, draw="greedy", engine="jacobi").run(Rounding(), batch, step=0)
    assert outcome.report["passes"] > 4  # one entry a row: 2 are proven to do for a function of the row alone
