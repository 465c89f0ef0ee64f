"""What engines refuse, hold in memory, and do under autocast; what ``auto`` takes; what the counts count."""

import pytest
import torch
from torch import nn

import freerun as fr
from builders import ForwardOnly, gradients, language_model, prompted, ragged, refused, seq2seq, transformer
from freerun import draws

KEY, STEP = 5, 3


def test_with_dropout_a_draft_has_a_certifying_pass_of_its_own():
    model, batch = transformer(dropout=0.3), ragged(time=9)
    wanted = fr.scheduled_sampling(0.3, engine="step").transform(model, batch, STEP, KEY).history
    outcome = fr.scheduled_sampling(0.3, engine="draft").run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, wanted)
    assert outcome.report["certified"] == "fixed point"
    assert model.training


def test_what_an_engine_cannot_honour_is_refused_by_name():
    batch = ragged()

    def run(model, engine):
        fr.scheduled_sampling(0.5, engine=engine).run(model, batch, STEP, KEY)

    refused(r"engine='window' needs a model with .*advance and crop; RecurrentSeq2Seq", run, seq2seq(), "window")
    refused(r"engine='step' needs a model with start.*ForwardOnly", run, ForwardOnly(seq2seq()), "step")
    refused(r"needs a torch\.nn\.Module", run, seq2seq().forward, "draft")
    coupled = transformer()
    coupled.feed = nn.BatchNorm1d(3, track_running_stats=False)
    refused(r"feed \(BatchNorm1d\) normalises over the batch in evaluation mode too", run, coupled, "jacobi")
    routed = transformer()
    routed.router = nn.Identity()
    routed.router.expert_capacity = 8
    refused(r"router \(Identity\) routes to experts of limited capacity", run, routed, "window")
    for wrong in (lambda: fr.Window(0), lambda: fr.Draft(tolerance=1.0)):
        refused(r"width must be|tolerance must lie", wrong)


@pytest.mark.parametrize("engine", ["step", "jacobi", "window"])
def test_no_logits_or_noise_for_positions_that_are_not_sampled(engine):
    """A vocabulary of 20,000: neither logits nor Gumbel noise of batch x time x vocabulary are ever held."""
    asked: list[int] = []

    class Watched(fr.models.TransformerLM):
        def head(self, hidden):
            asked.append(hidden.shape[:-1].numel())
            return super().head(hidden)

    torch.manual_seed(0)
    vocab, size, time = 20_000, 16, 64
    model = Watched(vocab, size=8, layers=1, heads=1).eval()
    ids = torch.randint(0, vocab, (size, time), generator=torch.Generator().manual_seed(1))
    batch = fr.Batch(ids, ids, ids >= 0)
    plan_size = []

    class Noted(draws.Sample):
        def noise(self, key, rows, positions, vocab):
            plan_size.append(rows.numel())
            return super().noise(key, rows, positions, vocab)

    method = fr.scheduled_sampling(0.7, draw=Noted(coupling="gumbel"), engine=engine)
    with torch.no_grad():
        outcome = method.mix_history(model, batch, STEP, KEY)[1]
    assert outcome["replaced"] > 250
    assert max(asked) * vocab <= 2**22
    assert max(plan_size) * vocab <= 2**22


def test_auto_takes_the_measured_choice_and_the_same_entries():
    batch = ragged(size=16, time=9)
    for model, ratio, wanted in (
        (transformer(), 0.75, "window"),
        (seq2seq(), 0.75, "step"),
        (ForwardOnly(transformer()), 0.75, "jacobi"),
        (transformer(), 0.1, "step"),
        (transformer(), 1.0, "none"),
    ):
        report = fr.scheduled_sampling(ratio).run(model, batch, STEP, KEY).report
        assert report["engine"] == wanted


def test_an_engine_that_cannot_be_honoured_is_refused_before_anything_is_own():
    """At ratio 1 too: a falling schedule must not fail in the middle of a run."""
    refused("engine='window'", lambda: fr.scheduled_sampling(1.0, engine="window").run(seq2seq(), ragged(), STEP, KEY))
    values = torch.randn(2, 5, 4)
    batch = fr.Batch(values, values, torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 2))
    with pytest.raises(fr.UserError, match="keeps no gradient"):
        fr.scheduled_sampling(1.0, engine="window").run(fr.models.Seq2SeqModel(2, 7, 4), batch, STEP, KEY)


@pytest.mark.parametrize("engine", ["step", "jacobi", "window", fr.Window(3), "draft"], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_no_engine_loses_a_gradient_to_autocast(engine, dropout):
    """A weight cast without gradient in the roll-in must not reach the training forward from autocast's cache."""
    model, batch = transformer(dropout=dropout).float(), ragged(size=6)
    with torch.autocast("cpu", torch.bfloat16):
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(model, batch, STEP, KEY)
    assert outcome.report["replaced"] > 0
    lost = [name for name, gradient in gradients(model, outcome.loss).items() if not bool(gradient.any())]
    assert lost == []


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
