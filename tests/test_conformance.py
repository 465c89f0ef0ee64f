"""What always holds, over every method and every model: a new method is tested by being listed."""

import copy
import dataclasses
import pickle

import pytest
import torch

import freerun as fr
import step_models
import test_wrappers
from builders import (
    ForwardOnly,
    gradients,
    language_model,
    lively,
    prompted,
    ragged,
    raises,
    refused,
    seq2seq,
    transformer,
)
from freerun import schedules

KEY, STEP = 5, 3


class Bigrams(torch.nn.Module):
    """A teacher over five symbols for any batch of ids: what follows the previous one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(6)).double())

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        before = torch.nn.functional.pad(batch.history[:, :-1], (1, 0))
        return self.table[before]


def least(batch, history):
    """Another target than gold, at every position."""
    return torch.zeros_like(history)


def gold(batch, history):
    """The expert with which DAgger is scheduled sampling."""
    return batch.targets


ARGUMENTS = {
    "teacher_forcing": {},
    "free_running": {},
    "scheduled_sampling": {"teacher_forcing_ratio": 0.5},
    "two_pass": {"teacher_forcing_ratio": 0.5},
    "parallel": {"teacher_forcing_ratio": 0.5, "passes": 2},
    "confidence_aware": {"mix": "sample", "t_golden": 0.2, "t_rand": 0.5},
    "token_noise": {"rate": 0.5, "vocabulary": 5},
    "unlikelihood": {},
    "minimum_risk": {"end": 0, "num_samples": 3, "alpha": 0.5},
    "self_critical": {"end": 0, "num_samples": 3},
    "multi_step": {"horizon": 3},
    "pushforward": {"horizon": 3},
    "replay_buffer": {"share": 0.5, "capacity": 8, "age": 2, "horizon": 3},
    "sparse_teacher_forcing": {"tau": 2},
    "generalised_teacher_forcing": {"alpha": 0.3},
    "reverse_scheduled_sampling": {"context_ratio": 0.5, "teacher_forcing_ratio": 0.5},
    "data_as_demonstrator_online": {},
    "gaussian_noise": {"std": "matched", "rate": 0.5},
    "diffusion_noise": {"levels": 9, "rate": 0.7},
    "confusion_noise": {"rate": 0.5, "law": fr.methods.ErrorLaw()},
    "word_dropout": {"teacher_forcing_ratio": 0.5, "blank": 0},
    "raml": {"tau": 0.8, "vocabulary": 5},
    "sentence_oracle": {"teacher_forcing_ratio": 0.5, "end": 0},
    "teaforn": {},
    "professor_forcing": {"size": 6},
    "no_history": {},
    "optimal_completion": {"end": 0},
    "gkd": {"teacher_forcing_ratio": 0.5, "teacher": Bigrams()},
    "dagger": {"teacher_forcing_ratio": 0.5, "expert": least},
    "consistency": {"teacher_forcing_ratio": 0.5, "alpha": 0.7},
}
# arguments with which a method is off, and must be teacher forcing bit for bit
OFF = {
    "scheduled_sampling": {"teacher_forcing_ratio": 1.0},
    "two_pass": {"teacher_forcing_ratio": 1.0},
    "parallel": {"teacher_forcing_ratio": 1.0},
    "confidence_aware": {"teacher_forcing_ratio": 1.0, "mix": "sample", "gold_weight": 0.0},
    "token_noise": {"rate": 0.0, "vocabulary": 5},
    "unlikelihood": {"alpha": 0.0},
    "sparse_teacher_forcing": {"tau": 2, "teacher_forcing_ratio": 1.0},
    "generalised_teacher_forcing": {"alpha": 1.0},
    "reverse_scheduled_sampling": {"context_ratio": 1.0, "teacher_forcing_ratio": 1.0},
    "gaussian_noise": {"std": 0.0},
    "diffusion_noise": {"levels": 1},
    "confusion_noise": {"rate": 0.0, "law": fr.methods.ErrorLaw()},
    "word_dropout": {"teacher_forcing_ratio": 1.0, "blank": 0},
    "raml": {"tau": 0.0, "vocabulary": 5},
    "sentence_oracle": {"teacher_forcing_ratio": 1.0, "end": 0},
    "teaforn": {"discount": 0.0},
    "professor_forcing": {"weight": 0.0},
    "dagger": {"teacher_forcing_ratio": 1.0, "expert": gold},
    "consistency": {"teacher_forcing_ratio": 1.0},
}
IDS_ONLY = (
    "two_pass",
    "confidence_aware",
    "token_noise",
    "unlikelihood",
    "consistency",
    "optimal_completion",
    "raml",
    "sentence_oracle",
    "teaforn",
    "gkd",
)
# they learn from runs to the model's own end, for which gold must have one
OWN_RUNS = ("optimal_completion", "minimum_risk", "self_critical")
IDS_ONLY += OWN_RUNS[1:]
VALUES_ONLY = (
    "multi_step", "pushforward", "replay_buffer", "generalised_teacher_forcing", "reverse_scheduled_sampling",
    "data_as_demonstrator_online", "gaussian_noise",
)  # fmt: skip
# they have no lookup, and so take no mixtures of symbols
TAKES_IDS = ("forward only", "nn.GRU", "nn.TransformerDecoder", "a decoder step")
NEEDS_WARM_UP = ("reverse_scheduled_sampling",)
# the history they give back is as long as the horizon
SHORTER = ("multi_step", "pushforward", "replay_buffer")


def vector_model():
    torch.manual_seed(2)
    return fr.models.Seq2SeqModel(2, 7, 4).double()


def vector_batch(size: int = 4) -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(size, 6, 4, generator=g, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(2, 7, (size,), generator=g)[:, None]
    context = torch.randn(size, 5, 2, generator=g, dtype=torch.float64)
    return fr.Batch(values, mask=mask, context=context, rows=torch.arange(size) + 10)


def plain_forecaster(level: bool = False):
    torch.manual_seed(3)
    return fr.models.PlainForecaster(4, 2, size=7, level=level).double()


def warmed(size: int = 4) -> fr.Batch:
    g = torch.Generator().manual_seed(1)
    values = torch.randn(size, 7, 4, generator=g, dtype=torch.float64)
    mask = (torch.arange(7) >= 3).expand(size, 7)
    context = {"future": torch.randn(size, 7, 2, generator=g, dtype=torch.float64)}
    # the loss counts the warm-up too, all but what nothing comes before
    counted = mask | (torch.arange(7) > 0)
    return fr.Batch(values, values, counted, context, eligible=mask, rows=torch.arange(size) + 10)


def labeller():
    torch.manual_seed(4)
    return lively(fr.models.RecurrentLabeller(6, 5, size=8).double())


BACKENDS = {
    "rnn": lambda: (seq2seq("rnn"), ragged()),
    "gru": lambda: (seq2seq("gru"), ragged()),
    "labeller": lambda: (labeller(), ragged(source_time=7)),
    "lstm": lambda: (seq2seq("lstm", layers=2, tied=True), ragged()),
    "lstm without attention": lambda: (seq2seq("lstm", None, bidirectional=False), ragged()),
    "lstm, input feeding": lambda: (seq2seq("lstm", input_feeding=True), ragged()),
    "forward only": lambda: (ForwardOnly(seq2seq()), ragged()),
    "transformer": lambda: (transformer(), ragged()),
    "transformer, learned positions": lambda: (transformer("learned", norm="layer", bias=True), ragged()),
    "language model, left prompts": lambda: (language_model(), prompted("left")),
    "language model, right padding": lambda: (language_model("learned"), prompted("right")),
    "nn.GRU": lambda: (test_wrappers.MODELS["gru, two layers"](), ragged()),
    "nn.TransformerDecoder": lambda: (test_wrappers.MODELS["transformer"](), ragged()),
    "a decoder step": lambda: (step_models.lively(step_models.Bahdanau), ragged()),
    "vectors": lambda: (vector_model(), vector_batch()),
    "vectors, a decoder step": lambda: (step_models.lively(step_models.Values), step_models.numbers()),
    "vectors, warm-up": lambda: (plain_forecaster(), warmed()),
    "vectors, warm-up, level": lambda: (plain_forecaster(level=True), warmed()),
}


def fits(name: str, backend: str) -> bool:
    if name == "diffusion_noise":
        return "level" in backend
    if backend.startswith("vectors"):
        return name not in IDS_ONLY and (name not in NEEDS_WARM_UP or "warm-up" in backend)
    if name == "teaforn" and backend in TAKES_IDS:
        return False
    if name in OWN_RUNS and (backend.startswith("language model") or backend == "labeller"):
        return False  # no end, or one output for each source symbol
    return name not in VALUES_ONLY and name != "sparse_teacher_forcing"


CASES = [(name, backend) for name in fr.METHODS for backend in BACKENDS if fits(name, backend)]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_conformance(name, backend):
    model, batch = BACKENDS[backend]()
    method = fr.METHODS[name](**ARGUMENTS[name])
    before = [module.training for module in model.modules()]
    outcome = method.run(model, batch, STEP, KEY)
    history, time = outcome.fed.history, outcome.fed.time

    assert outcome.loss.isfinite()
    assert outcome.outputs.shape[:2] == outcome.fed.mask.shape
    assert name in (*SHORTER, *OWN_RUNS) or time == batch.time
    assert torch.equal(method(model, batch, STEP, KEY), outcome.loss)
    # with and without a gradient are two computations: values may differ in the last bit, ids may not
    tolerance = 1e-12 if history.is_floating_point() else 0
    alone = method.transform(model, batch, STEP, KEY).history
    torch.testing.assert_close(alone, history, rtol=tolerance, atol=tolerance)
    assert {"eligible", "replaced", "disagreeing", "passes", "engine"} <= set(outcome.report)
    assert outcome.report["disagreeing"] <= outcome.report["replaced"] <= outcome.report["eligible"]
    assert [module.training for module in model.modules()] == before
    silent = {n for n, g in gradients(model, outcome.loss).items() if not bool(g.abs().sum() > 0)}
    if name == "pushforward":  # the state is cut, and with it what an encoder wrote
        silent = {n for n in silent if not n.startswith("encoder")}
    if name == "no_history" and not batch.is_discrete:  # what zeros are multiplied by learns nothing
        silent = {n for n in silent if "weight_ih" not in n}
    assert silent == set(), f"no gradient in {silent}"

    if name in OWN_RUNS:
        own_runs_conform(method, model, batch, outcome)
        return

    # what may not be replaced is gold; the targets are those of the batch
    fixed = ~batch.replaceable[:, :time]
    if name not in NEEDS_WARM_UP:  # it replaces the warm-up on purpose
        assert torch.equal(history[fixed], batch.history[:, :time][fixed])
    assert torch.equal(outcome.fed.targets, history if name == "raml" else batch.targets[:, :time])

    # same key, same result; another key or step, another history, unless nothing is random
    assert torch.equal(method.run(model, batch, STEP, KEY).fed.history, history)
    if name in ("scheduled_sampling", "token_noise", "reverse_scheduled_sampling", "gaussian_noise", "diffusion_noise"):
        for step, key in ((STEP + 1, KEY), (STEP, KEY + 1)):
            assert not torch.equal(method.transform(model, batch, step, key).history, history)

    if name == "gaussian_noise":
        return  # matched noise is measured over the batch that it gets

    # micro-batches add up to the full batch: totals and counts, not means
    halves = [method.run(model, batch.select(torch.tensor(rows)), STEP, KEY) for rows in ([2, 0], [1, 3])]
    assert torch.allclose(sum(half.total for half in halves), outcome.total, rtol=1e-12)
    assert torch.equal(sum(half.count for half in halves), outcome.count)


def own_runs_conform(method, model, batch, outcome):
    """Each row is the row's own run: another key or step draws another, and no other row matters."""
    assert torch.equal(outcome.fed.history, outcome.fed.targets)
    for step, key in ((STEP + 1, KEY), (STEP, KEY + 1)):
        other = method.run(model, batch, step, key).fed
        assert other.time != outcome.fed.time or not torch.equal(other.history, outcome.fed.history)
    halves = [method.run(model, batch.select(torch.tensor(rows)), STEP, KEY) for rows in ([2, 0], [1, 3])]
    assert torch.allclose(sum(half.total for half in halves), outcome.total, rtol=1e-12)
    assert torch.equal(sum(half.count for half in halves), outcome.count)


def doubled(outputs, batch):
    total, count = fr.objectives.resolve("auto", batch)(outputs, batch)
    return 2 * total, count


# another value for every parameter that any method has: a new one is listed, and its loss is looked at
OTHER = {
    "teacher_forcing_ratio": 0.3, "draw": {True: "greedy", False: "point"}, "gate": "sequence", "engine": 1,
    "levels": 3,
    "gradient": "none", "gold_weight": 0.75, "objective": doubled, "horizon": 2, "loss_on": "last", "mix": "expected",
    "num_samples": 2, "baseline": "mean", "include_gold": False,
    "temperature": 0.5, "top_k": 2, "passes": 1, "redraw": False, "t_golden": 0.1, "t_rand": 0.9, "rate": 0.9,
    "noise": "same_sentence", "vocabulary": 4, "frequencies": (1.0,) * 5, "exclude_gold": True, "drawn": False,
    "alpha": 0.9, "tau": 3, "context_ratio": 0.2, "std": 0.1, "end": 0, "margin": 1, "target": least,
    "blank": 1, "each": "symbol", "weighted": False, "beams": 1, "cost": "edit_distance", "discount": 0.0, "beta": 0.1,
    "expert": "optimal_completion",
}  # fmt: skip


@pytest.mark.parametrize("name", list(fr.METHODS))
def test_a_method_declares_what_of_its_loss_a_trainer_with_a_loss_of_its_own_would_drop(name):
    """The run's total is the plain loss of the fed history on the full batch, or ``own_loss`` names what it is not."""
    model, batch = BACKENDS["lstm" if fits(name, "lstm") else "vectors, warm-up, level"]()
    plain = fr.objectives.resolve("auto", batch)
    dropped, tried = set(), 0
    for field in ("", *(each.name for each in dataclasses.fields(fr.METHODS[name]) if each.init)):
        other = OTHER.get(field)
        other = {field: other[batch.is_discrete] if isinstance(other, dict) else other} if field else {}
        try:
            method = fr.METHODS[name](**ARGUMENTS[name] | other)
            outcome = method.run(model, batch, STEP, KEY)
        except fr.UserError:  # has no effect with the others, or is not for such targets
            continue
        tried += 1
        same = outcome.fed.time == batch.time and "feeds vectors" not in str(method.own_loss)
        if same:
            total, count = plain(model(batch.replace(history=outcome.fed.history, context=outcome.fed.context)), batch)
            same = bool(torch.isclose(outcome.total, total, rtol=1e-9)) and bool(outcome.count == count)
        assert same == (method.own_loss == ()), f"{method!r}: own_loss is {method.own_loss}"
        dropped |= set(method.own_loss)
    assert tried >= 3
    assert {"loss_on changes the loss", "objective changes the loss"} <= dropped or name in (
        "pushforward",
        "gkd",
        "unlikelihood",
        *OWN_RUNS,
    )


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_method_declares_whether_it_calls_the_model(name, backend):
    model, batch = BACKENDS[backend]()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    method = fr.METHODS[name](**ARGUMENTS[name])
    report = method.run(model, batch, STEP, KEY).report
    if not method.calls_model:
        assert (len(calls), report["passes"]) == (1, 0)
    elif "step" not in str(report["engine"]) and report["engine"] != "unrolled":
        assert len(calls) + report["passes"] > 1


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("name", list(OFF))
def test_off_is_teacher_forcing_bit_for_bit(name, backend):
    (model, batch), method = BACKENDS[backend](), fr.METHODS[name](**OFF[name])
    fitting = fits(name, backend) or (name == "diffusion_noise" and backend.startswith("vectors"))
    if not fitting and name != "sparse_teacher_forcing":
        refused("", method, model, batch)
        return
    a = gradients(model, fr.teacher_forcing()(model, batch, STEP, KEY))
    b = gradients(model, method(model, batch, STEP, KEY))
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("name", list(fr.METHODS))
def test_methods_are_frozen_printable_comparable_and_picklable(name):
    method = fr.METHODS[name](**ARGUMENTS[name])
    assert method == fr.METHODS[name](**ARGUMENTS[name])
    assert pickle.loads(pickle.dumps(method)) == method == copy.deepcopy(method)
    assert repr(method).startswith(f"{name}(")
    assert method.name == name
    assert method.citation.bibtex.lstrip().startswith("@")
    raises(AttributeError, "", setattr, method, "objective", "mse")


@pytest.mark.parametrize("name", ["scheduled_sampling", "token_noise"])
def test_a_parameter_outside_its_range_is_refused_with_its_value_and_step(name):
    parameter = "rate" if name == "token_noise" else "teacher_forcing_ratio"

    def make(value):
        return fr.METHODS[name](**(ARGUMENTS[name] | {parameter: value}))

    refused(rf"{parameter} must lie in \[0, 1\]; got 1.2", make, 1.2)
    late = make(schedules.linear(start=0.9, end=1.3, steps=100))
    refused(rf"{parameter} must lie in \[0, 1\]; linear.* gives 1.29.* at step 99", late.check, 100)
    refused(r"gives 1\.1 at step 50", late, seq2seq(), ragged(), 50)
    refused(r"linear\(start=1.2, .*gives 1.2 at step 0", make, schedules.linear(start=1.2, end=0.0, steps=10))


def test_schedules_in_epochs_need_a_step_that_knows_them():
    method = fr.scheduled_sampling(schedules.linear(start=1.0, end=0.0, steps=10, unit="epoch"))
    refused("epoch", method, seq2seq(), ragged(), 3)
    outcome = method.run(seq2seq(), ragged(), fr.Step(300, sample=9600, epoch=5.0))
    assert outcome.report["teacher_forcing_ratio"] == pytest.approx(0.5)


def test_every_bad_argument_is_named_at_once():
    names = ("draw must be", "gate must be", "engine", "gradient must be", "teacher_forcing_ratio must lie")
    refused(names, fr.scheduled_sampling, 1.5, draw="argmax", gate="tokens", engine=0, gradient="some")
    stepwise, full = fr.scheduled_sampling(0.5, engine="step"), fr.scheduled_sampling(0.5, gradient="full")
    refused("needs a model with start, embed", stepwise, ForwardOnly(seq2seq()), ragged(), step=0)
    refused("a sampled symbol carries no gradient", full, seq2seq(), ragged(), step=0)
    ids = torch.zeros(2, 3, dtype=torch.long)
    more = {"weights": torch.ones(3), "rows": torch.arange(3)}
    assert len(refused("", fr.Batch, ids, ids[:, :2], torch.ones(2, 2), **more)) == 5


def test_free_running_takes_no_ratio():
    raises(TypeError, "", lambda: fr.free_running(teacher_forcing_ratio=1.0))
    assert fr.free_running().teacher_forcing_ratio == 0.0


class TestNoise:
    """Token noise has the laws it names. Chi-square; false-alarm rate 1e-4 each."""

    gold = torch.tensor([1, 2, 2, 3, 0]).expand(10_000, 5)

    def history(self, **arguments):
        return fr.token_noise(1.0, **arguments).transform(ForwardOnly(None), fr.Batch(self.gold), 1, 2).history

    def check(self, column, law):
        from scipy import stats

        observed, law = torch.bincount(column, minlength=len(law)).double(), torch.tensor(law, dtype=torch.float64)
        assert int(observed[law == 0].sum()) == 0
        expected = law[law > 0] / law.sum() * observed.sum()
        assert stats.chisquare(observed[law > 0].numpy(), expected.numpy()).pvalue > 1e-4

    def test_uniform(self):
        self.check(self.history(vocabulary=5)[:, 1], [1, 1, 1, 1, 1])
        self.check(self.history(vocabulary=5, exclude_gold=True)[:, 1], [1, 1, 0, 1, 1])

    def test_unigram(self):
        noise = {"noise": "unigram", "frequencies": (4.0, 1.0, 3.0, 2.0)}
        self.check(self.history(**noise)[:, 1], noise["frequencies"])
        history = self.history(**noise, exclude_gold=True)
        for position, gold in ((1, 2), (4, 0), (3, 3)):
            self.check(history[:, position], [c * (v != gold) for v, c in enumerate(noise["frequencies"])])

    def test_same_sentence(self):
        self.check(self.history(noise="same_sentence")[:, 0], [1, 0, 2, 1])
        self.check(self.history(noise="same_sentence", exclude_gold=True)[:, 1], [1, 1, 0, 1])

    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("backend", ["lstm", "transformer", "language model, left prompts"])
    def test_the_vocabulary_is_the_models_own_wrapped_or_not(self, backend, wrapped):
        model, batch = BACKENDS[backend]()
        expected = fr.token_noise(1.0, vocabulary=5).transform(model, batch, STEP, KEY).history
        model = torch.nn.parallel.DataParallel(model) if wrapped else model
        assert torch.equal(fr.token_noise(1.0).transform(model, batch, STEP, KEY).history, expected)
        message = r"vocabulary=.*give ForwardOnly the attribute target_vocab"
        refused(message, fr.token_noise(1.0).transform, ForwardOnly(seq2seq()), ragged(), STEP, KEY)

    def test_the_gates_are_those_of_scheduled_sampling(self):
        model, batch = seq2seq(), ragged(size=32)
        noisy = fr.token_noise(0.3, vocabulary=5, exclude_gold=True).run(model, batch, STEP, KEY)
        mixed = fr.scheduled_sampling(0.7).run(model, batch, STEP, KEY)
        assert noisy.report["replaced"] == mixed.report["replaced"]
        kept = noisy.fed.history == batch.history
        assert bool((mixed.fed.history == batch.history)[kept].all())


def test_the_infinite_capacity_limit_is_the_posterior_predictive():
    """Two symbols, tabular model: Q(x2|x1) -> r P(x2|x1) + (1-r) P(x2) (Huszar 2015), here at r = 0.25.

    Fitted by Adam on the exact expectation over 10,000 fixed rows of data; the tolerance 0.03 is five
    standard errors of the sampled law, and the undamped conditional lies 0.5 away.
    """
    g = torch.Generator().manual_seed(0)
    first = (torch.rand(10_000, generator=g) < 0.3).long()
    second = torch.where(first == 1, torch.rand(10_000, generator=g) < 0.9, torch.rand(10_000, generator=g) < 0.2)
    data = torch.stack([first, second.long()], 1)
    batch = fr.Batch(data, data, torch.ones_like(data, dtype=torch.bool))

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Parameter(torch.zeros(2))
            self.second = torch.nn.Parameter(torch.zeros(2, 2))

        def forward(self, b):
            return torch.stack([self.first.expand(b.size, 2), self.second[b.history[:, 0]]], 1)

    model, method = Table(), fr.scheduled_sampling(0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(80):
        optimizer.zero_grad()
        method(model, batch, step, 0).backward()
        optimizer.step()
    p2 = 0.3 * 0.9 + 0.7 * 0.2
    law = torch.tensor([[0.25 * p + 0.75 * p2 for p in (1 - 0.2, 0.2)], [0.25 * p + 0.75 * p2 for p in (0.1, 0.9)]])
    law[:, 0] = 1 - law[:, 1]
    assert torch.allclose(model.second.detach().softmax(1), law, atol=0.03)


class Random(torch.nn.Module):
    """A model that draws random numbers in evaluation mode too, and has all methods of the one within."""

    reads_level = True

    def __init__(self, model, rate=0.3):
        super().__init__()
        self.model, self.rate = model, rate

    def noisy(self, outputs):
        return torch.nn.functional.dropout(outputs, self.rate, training=True)

    def forward(self, batch):
        return self.noisy(self.model(batch))


class RandomSteps(Random):
    def __init__(self, model, rate=0.3):
        super().__init__(model, rate)
        for name in ("start", "embed", "step", "select", "detach"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def output(self, state, rows=None):
        return self.noisy(self.model.output(state, rows))


class Coupled(torch.nn.Module):
    """Rows that share statistics in evaluation mode too."""

    reads_level = True

    def __init__(self, model, width):
        super().__init__()
        self.model, self.norm = model, torch.nn.BatchNorm1d(width, track_running_stats=False).double()

    def forward(self, batch):
        return self.norm(self.model(batch).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrong", ["random", "random steps", "coupled"])
@pytest.mark.parametrize("name", list(fr.METHODS))
def test_every_method_that_calls_the_model_refuses_what_has_no_own_output(name, wrong, training):
    model, batch = BACKENDS["lstm" if fits(name, "lstm") else "vectors, warm-up, level"]()
    kind = RandomSteps if wrong == "random steps" else Random
    broken = Coupled(model, 5 if batch.is_discrete else 4) if wrong == "coupled" else kind(model)
    broken.train(training)
    coupled, drawn = "normalises over the batch", r"random in evaluation mode|change\s+from call to call"
    known = {each.name for each in dataclasses.fields(fr.METHODS[name]) if each.init}
    others = {"gold_weight": 0.5, "engine": 1, "gradient": "none", "gate": "confidence"}
    tried = 0
    for field, other in (("", None), *others.items(), ("engine", "step")):
        if field and field not in known:
            continue
        try:
            method = fr.METHODS[name](**ARGUMENTS[name] | ({field: other} if field else {}))
            # draws random numbers, to no effect
            loss = method(kind(model, 0.0).train(training), batch, STEP, KEY)
        except fr.UserError:
            continue  # has no effect, needs a Stepper, or is not for such targets
        assert loss.isfinite()
        if not method.calls_model:
            assert method(broken, batch, STEP, KEY).isfinite()
            return
        refused(coupled if wrong == "coupled" else drawn, method, broken, batch, STEP, KEY)
        tried += 1
    assert tried or name in ("pushforward", "teaforn")  # a model around another has no lookup
