"""A decoder step as a model: one loop whose roll-in is the training forward, equal to the loop that a person writes."""

import copy
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import freerun as fr
from builders import TARGET_VOCAB, assert_same_gradients, gradients, ragged, refused
from freerun.checks.run import examine
from freerun.keys import fold
from oracles import bengio_loop, coins, full_prefix
from step_models import Bahdanau, TwoLayers, Values, lively, numbers

KEY, STEP = 5, 3


both = pytest.mark.parametrize("cls", [Bahdanau, TwoLayers])


@both
@pytest.mark.parametrize("draw", ["greedy", "sample"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 1.0])
def test_one_loop_is_the_loop_that_a_person_writes(cls, draw, ratio):
    model, batch = lively(cls), ragged()
    keep = coins("token", batch, ratio, KEY, STEP)
    entries, state = model.start(batch)

    def step(previous, walk):
        outputs, walk, *_ = model.step(entries if previous is None else previous, state if walk is None else walk)
        return outputs, walk

    loss, history = bengio_loop(step, batch, keep, draw, fold(KEY, "draw", STEP))
    outcome = fr.scheduled_sampling(ratio, draw=draw).run(model, batch, STEP, KEY)
    assert torch.equal(outcome.fed.history, history)
    assert outcome.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, loss))


@both
@pytest.mark.parametrize("engine", ["auto", "step", "jacobi"])
@pytest.mark.parametrize("draw", ["greedy", "gumbel", "top 2"])
def test_every_engine_equals_the_full_prefix_oracle(cls, engine, draw):
    model, batch = lively(cls), ragged()
    draws = {"greedy": "greedy", "gumbel": fr.draws.sample(coupling="gumbel"), "top 2": fr.draws.sample(top_k=2)}
    keep = coins("token", batch, 0.4, KEY, STEP)
    expected = full_prefix(model, batch, keep, draw, fold(KEY, "draw", STEP))
    method = fr.scheduled_sampling(0.4, draw=draws[draw], engine=engine)
    assert torch.equal(method.run(model, batch, STEP, KEY).fed.history, expected)
    assert torch.equal(method.transform(model, batch, STEP, KEY).history, expected)


@both
def test_the_steps_of_an_update_are_those_of_teacher_forcing(cls):
    model, batch, calls = lively(cls), ragged(), []
    original = model.step
    model.step = lambda *a: calls.append(1) or original(*a)
    for ratio in (1.0, 0.5, 0.0):
        calls.clear()
        outcome = fr.scheduled_sampling(ratio).run(model, batch, STEP, KEY)
        assert len(calls) == batch.time
        assert outcome.report["passes"] == 0


def test_dropout_is_that_of_training():
    model, batch = lively(Bahdanau, dropout=0.5), ragged()
    torch.manual_seed(0)
    outcome = fr.free_running(draw="greedy").run(model, batch, STEP, KEY)
    own = outcome.outputs.argmax(-1)
    assert torch.equal(outcome.fed.history[batch.mask], own[batch.mask])
    assert not torch.equal(own, model.eval()(outcome.fed).argmax(-1))


@pytest.mark.parametrize("gradient", ["full", "none", 2])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_values_with_every_gradient(gradient, ratio):
    model, batch = lively(Values), numbers()
    keep = coins("token", batch, ratio, KEY, STEP)
    previous, state = model.start(batch)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(batch.time):
        outputs, state = model.step(previous, state)
        total = total + ((outputs - batch.targets[:, t]) ** 2)[batch.mask[:, t]].sum()
        own = outputs.detach() if gradient == "none" else outputs
        previous = torch.where(keep[:, t, None], batch.history[:, t], own)
        if gradient == 2 and (t + 1) % 2 == 0:
            previous, state = previous.detach(), state.detach()
    outcome = fr.scheduled_sampling(ratio, gradient=gradient).run(model, batch, STEP, KEY)
    assert outcome.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))


@both
def test_it_generates_as_it_free_runs_also_by_beams(cls):
    model, batch = lively(cls), ragged()
    blank = torch.zeros(4, 7, dtype=torch.long)
    source = fr.Batch(blank, context=batch.context, rows=batch.rows)
    everywhere = fr.Batch(batch.history, context=batch.context, rows=batch.rows)
    free = fr.free_running(draw="greedy").run(model, everywhere, 0, KEY).fed.history
    assert torch.equal(fr.generate(model, source, length=7).entries, free)
    beams = fr.generate(model, source, length=3, beams=TARGET_VOCAB**2, n_best=1)
    best, _ = exhaustive(model, source)
    assert torch.equal(beams.entries, best)


def exhaustive(model, batch) -> tuple[Tensor, Tensor]:
    """The most probable continuation of three entries, by trying all."""
    every = torch.cartesian_prod(*[torch.arange(TARGET_VOCAB)] * 3)
    scores = []
    for row in range(batch.size):
        one = batch.select(torch.full((len(every),), row))
        made = one.made(history=every, targets=every, mask=torch.ones_like(every, dtype=torch.bool))
        logp = model(made).log_softmax(-1)
        scores.append(logp.gather(-1, every[..., None]).sum((1, 2)))
    best = torch.stack(scores).argmax(1)
    return every[best], torch.stack(scores).amax(1)


@both
def test_rows_of_a_state_are_picked(cls):
    model, batch = lively(cls), ragged()
    steps, rows = model.stepper, torch.tensor([2, 0, 0, 3, 1])
    state = steps.step(steps.start(batch), batch.history[:, 0])
    ahead = steps.step(steps.select(state, rows), batch.history[rows, 1])
    expected = steps.step(state, batch.history[:, 1])
    assert torch.allclose(steps.output(ahead), steps.output(expected)[rows], atol=1e-14)


@both
def test_a_step_model_passes_its_check(cls):
    # both encoders read their padding on purpose
    findings = {each.name: each.status for each in examine(lively(cls), ragged()).findings}
    assert {name for name, status in findings.items() if status == "refused"} <= {"source_padding"}
    assert findings["step_equals_parallel"] == findings["stepper_select"] == findings["stepper_state"] == "ok"


def test_extras_of_all_steps():
    model, batch = lively(Bahdanau), ragged()
    outputs, extras = model.with_extras(batch)
    assert torch.equal(outputs, model(batch))
    assert extras["attention"].shape == (4, 7, 5)
    assert torch.allclose(extras["attention"].sum(-1), torch.ones(4, 7, dtype=torch.float64))
    refused("returns no extras", lively(TwoLayers).with_extras, batch)


@pytest.mark.parametrize(
    "method", ["teacher_forcing", "free_running", "two_pass", "parallel", "token_noise", "confidence_aware"]
)
def test_names_of_other_protocols_are_the_owners(method):
    """A layer or function called encode, head, hidden or read means what its owner means."""

    class Named(TwoLayers):
        def encode(self, source):
            raise AssertionError("an owner's own encode")

        def hidden(self, a, b, c):
            raise AssertionError("an owner's own hidden")

        head = read = detach = advance = crop = lookup = outputs_from = embed = output = hidden

    arguments = {
        "two_pass": {"teacher_forcing_ratio": 0.5, "mix": "argmax"},
        "token_noise": {"rate": 0.5, "vocabulary": 5},
        "parallel": {"teacher_forcing_ratio": 0.5},
        "confidence_aware": {"mix": "sample"},
    }
    made = fr.METHODS[method](**arguments.get(method, {}))
    ours, plain = lively(Named), lively(TwoLayers)
    assert torch.equal(made(ours, ragged(), STEP, KEY), made(plain, ragged(), STEP, KEY))


def test_what_start_and_step_return_is_checked():
    batch = ragged()

    class Wrong(TwoLayers):
        begun: object = None
        stepped: object = None

        def start(self, batch):
            return super().start(batch) if self.begun is None else self.begun

        def step(self, entries, state):
            return super().step(entries, state) if self.stepped is None else self.stepped

    ids, state = TwoLayers().start(batch)
    for begun, words in (
        (ids, "must return (entries, state); got (4,) int64"),
        ((ids[:, None], state), "first entries of shape (4,), ids; got (4, 1) int64"),
        ((ids.double(), state), "first entries of shape (4,), ids; got (4,) float64"),
        ((ids, {"hidden": state[0][0]}), "declare batch_dim = 0"),
        ((ids, {"hidden": state[0], "all": object()}), "holds a object"),
        ((ids, {"hidden": state[0], "count": 3}), "holds a int"),
    ):
        model = Wrong()
        model.begun = begun
        refused([words], model, batch)
    for stepped, words in (
        (torch.zeros(4, 5), "must return (outputs, state) or (outputs, state, extras); got (4, 5) float32"),
        ((torch.zeros(4, 1, 5), state), "outputs of one position, (4, vocabulary or values); got (4, 1, 5) float32"),
        ((torch.zeros(4, 5), (state[0].transpose(0, 1),) * 2), "whose dimension 1 is not 4: declare batch_dim = 0"),
    ):
        model = Wrong()
        model.stepped = stepped
        refused([words], model, batch)
    refused(["must define start(batch)"], fr.StepModel(), batch)


def test_copies_and_wrappers_keep_it(monkeypatch):
    monkeypatch.setattr("freerun.rollin.model._WARNED", WeakKeyDictionary())
    model, batch = lively(Bahdanau), ragged()
    method = fr.scheduled_sampling(0.5)
    loss = method(model, batch, STEP, KEY)
    assert torch.equal(method(copy.deepcopy(model), batch, STEP, KEY), loss)
    # a wrapper hides the step: the history is rolled in by steps, the training forward goes through the wrapper
    wrapped = nn.DataParallel(model)
    with pytest.warns(UserWarning, match="training is a second loop"):
        assert torch.allclose(method(wrapped, batch, STEP, KEY), loss, atol=1e-12)
    assert torch.allclose(F.softmax(model(batch), -1).sum(-1), torch.ones(4, 7, dtype=torch.float64))


def test_a_batch_dim_that_fits_nothing_is_refused():
    class Named(Bahdanau):
        pass

    for dim, words in (
        ({"hiden": 1}, "names 'hiden'; the state has 'hidden', 'memory', 'mask'"),
        ((1, 0), "must be a number, or map names to numbers"),
        (True, "must be a number, or map names to numbers"),
    ):
        Named.batch_dim = dim
        refused([words], Named(), ragged())
