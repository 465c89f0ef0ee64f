"""A newcomer's mistakes with a model, batches and scores of his own: each is named where it is made."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

import freerun as fr
from freerun.checks import examine
from freerun.comparison.plan import plan
from freerun.recipes.recipe import Arm, MethodSettings

V = 9
IDS = fr.Batch(torch.randint(1, V, (6, 8), generator=torch.Generator().manual_seed(0)))
VALUES = fr.Batch(torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)))
WIDER = fr.Batch(torch.zeros(4, 6, 3))
DATA = dict.fromkeys(("train", "dev", "test"), IDS)
TINY: dict[str, Any] = {"updates": 2, "progress": False}


class LM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(V + 1, 16), nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, V)

    def forward(self, batch: fr.Batch) -> Any:
        begun = torch.cat([torch.full((batch.size, 1), V), batch.history[:, :-1]], 1)
        return self.out(self.gru(self.embedding(begun))[0])


class Halves(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.layer(nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1])


class NeedsTwo(nn.Module):
    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return source


class Frozen(LM):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class OwnGenerator(LM):  # its weights come from no seed
    calls = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.out.bias, float(next(self.calls)))


SHARED = LM()


class Shell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = SHARED

    def forward(self, batch: fr.Batch) -> Tensor:
        return self.inner(batch)


def evaluated(model: Any = None, batches: Any = IDS, **named: Any) -> Any:
    return fr.evaluate(LM() if model is None else model, batches, **named)


def scored(scores: Any) -> Callable[[], Any]:
    return lambda: evaluated(scores=scores)


def fitted(**named: Any) -> Callable[[], Any]:
    arguments = {"model": LM(), "data": DATA, "method": fr.scheduled_sampling(0.5), **TINY, **named}
    return lambda: fr.fit(**arguments)


def compared(arms: Any = None, make_model: Any = LM, **named: Any) -> Callable[[], Any]:
    arms = {"gold": fr.teacher_forcing(), "own": fr.scheduled_sampling(0.5)} if arms is None else arms
    return lambda: fr.compare(make_model, DATA, arms, seeds=[0], **TINY | named)


def one_value(value: Any) -> Callable[[Any, fr.Batch], Any]:
    return lambda generated, batch: value


GOLD, OWN = fr.teacher_forcing(), fr.scheduled_sampling(0.5)
CASES: list[tuple[str, Callable[[], Any], str]] = [
    ("evaluate no model", lambda: fr.evaluate(None, IDS), "model must be callable"),
    ("evaluate a class", lambda: fr.evaluate(LM, IDS), "model is the class LM: give an object of it"),
    ("evaluate swapped", lambda: fr.evaluate(IDS, LM()), r"swapped.*fr\.evaluate\(model, batches\)"),
    ("diagnose swapped", lambda: fr.diagnose(IDS, LM()), r"swapped.*fr\.diagnose\(model, batches\)"),
    ("diagnose no model", lambda: fr.diagnose(None, IDS), "model must be callable"),
    ("diagnose progress", lambda: fr.diagnose(LM(), IDS, on_progress=3), "on_progress must be a function"),
    ("another signature", lambda: evaluated(NeedsTwo()), r"called as model\(batch\) with a freerun\.Batch"),
    ("scores no mapping", scored([1]), "scores must map names to functions"),
    ("score no function", scored({"a": 3}), r"scores\['a'\] must be a function of \(generated, batch\)"),
    ("score of one argument", scored({"a": lambda g: 1.0}), r"scores\['a'\] is called as score\(generated, batch\)"),
    ("score nothing", scored({"a": one_value(None)}), r"scores\['a'\] must return a number for a batch; got NoneType"),
    ("score words", scored({"a": one_value("x")}), "must return a number for a batch; got str"),
    ("score several", scored({"a": one_value(torch.ones(3))}), r"got \(3,\) float32: use \.mean\(\)"),
    ("score taken", scored({"edit_error": one_value(1.0)}), "edit_error is computed already, and would be replaced"),
    ("score unnamed", scored({3: one_value(1.0)}), "a name of scores must be a word; got 3"),
    ("widths", lambda: evaluated(Halves(), [VALUES, WIDER]), r"different widths, \[2, 3\]"),
    ("widths of splits", fitted(model=Halves(), data={"train": VALUES, "dev": WIDER, "test": VALUES}),
     "train 2, dev 3, test 2 numbers an entry"),
    ("horizons", lambda: fr.diagnose(Halves(), [VALUES, fr.Batch(torch.zeros(4, 9, 2))]),
     r"batch 1 has horizon and values \(9, 2\), and batch 0 has \(6, 2\)"),
    ("number types", lambda: evaluated(Halves().double(), VALUES), r"weights are torch\.float64"),
    ("number types, trained", fitted(model=Halves().double(), data=dict.fromkeys(DATA, VALUES)), "torch.float64"),
    ("fit no weights", fitted(model=Frozen()), "Frozen has no weights that learn"),
    ("fit updates", fitted(updates="x"), "updates must be a whole number"),
    ("fit rate", fitted(learning_rate=None), "learning_rate must be a number above 0; got None"),
    ("fit out", fitted(out=3), "out must be the path of a folder, or left out; got int"),
    ("fit another signature", fitted(model=NeedsTwo()), r"called as model\(batch\)"),
    ("compare rate and updates", compared(updates=0, learning_rate=None), r"(?s)updates must.*learning_rate must"),
    ("compare an argument", compared(make_model=lambda size: LM()), "make_model is called without arguments"),
    ("compare weights twice", compared(make_model=Shell), "returned weights that learn twice"),
    ("compare a model twice", compared(make_model=lambda: SHARED), "returned the same model twice"),
    ("compare weights of no seed", compared(make_model=OwnGenerator), "other initial weights under the same seed"),
    ("noise of itself", compared({"own": OWN, "n": fr.matched_noise("n")}), "must name one of own; got 'n'"),
    ("noise alone", compared({"n": fr.matched_noise("own")}), "an arm with a method, and there is none"),
    ("noise of gold", compared({"gold": GOLD, "n": fr.matched_noise("gold")}), "teacher forcing and feeds no own"),
    ("noise of ratio 1", compared({"one": fr.scheduled_sampling(1.0), "n": fr.matched_noise("one")}),
     "arm one: it feeds no entry of the model's own"),
    ("falling as a schedule", lambda: fr.schedules.falling, r"fr\.falling\(steps\) is a method"),
    ("falling as a ratio", lambda: fr.scheduled_sampling(fr.falling(190)), "that fr.falling and fr.rising return"),
    ("linear in part by position", lambda: fr.schedules.linear(1.0, 0.0, steps=100),
     r"write linear\(start=1\.0, end=0\.0, steps=100\)"),
]  # fmt: skip


@pytest.mark.parametrize(("do", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_named(do, text):
    with pytest.raises(fr.UserError, match=text):
        do()


def test_noise_of_teacher_forcing_is_refused_in_a_recipe_too():
    noise = Arm("noise", MethodSettings("token_noise", {"rate": {"matched_to": "gold"}}))
    with pytest.raises(fr.UserError, match="noise is matched to the arm 'gold', which is teacher forcing"):
        plan([Arm("gold", MethodSettings("teacher_forcing")), noise], [0])


def test_a_model_that_an_earlier_run_trained_is_refused(tmp_path):
    model = LM()
    other, calls = copy.deepcopy(model), itertools.count()
    # the second call returns another one, and all others the one that the first run trains
    with pytest.raises(fr.UserError, match="own-0: make_model\\(\\) returns other initial weights than before"):
        compared(make_model=lambda: other if next(calls) == 1 else model, out=tmp_path / "out")()


def test_a_score_of_ones_own_sees_one_run_and_the_mean_over_batches():
    model, seen = LM(), list[Any]()

    def length(generated: fr.Generated, batch: fr.Batch) -> Tensor:
        seen.append(generated.entries)
        return generated.lengths.double().mean()

    batches = [IDS, IDS.select(torch.tensor([0, 1]))]
    found = evaluated(model, batches, scores={"length": length, "rows": lambda g, batch: batch.size})
    assert found.free_running["length"] == 8.0
    assert found.free_running["rows"] == (6 + 2) / 2
    expected = fr.generate(model, IDS, length=8).entries
    assert len(seen) == 2
    assert torch.equal(seen[0], expected)


# -- saving


def test_save_makes_folders_and_writes_over_its_own_alone(tmp_path):
    result = evaluated()
    page, numbers = tmp_path / "a" / "b" / "page.html", tmp_path / "numbers.json"
    assert result.save(page).exists()
    assert result.save(page) == page
    assert result.save(numbers) == result.save(str(numbers))
    for name, content in (("mine.html", "<p>notes</p>"), ("mine.json", '{"schema": 2}'), ("odd.json", "no json")):
        (tmp_path / name).write_text(content)
        with pytest.raises(fr.UserError, match="is there already, and no result of freerun"):
            result.save(tmp_path / name)
        assert (tmp_path / name).read_text() == content
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(fr.UserError, match="no result of freerun"):
        result.save(tmp_path / "folder.html")
    for wrong, text in (
        (tmp_path / "page.pdf", r"got \.pdf"),
        (tmp_path / "page", "no ending"),
        (None, "got NoneType"),
    ):
        with pytest.raises(fr.UserError, match=text):
            result.save(wrong)
    with pytest.raises(fr.UserError, match="cannot be written"):
        result.save(numbers / "below.json")
    assert json.loads(numbers.read_text())["free_running"] == result.free_running
    assert not list(tmp_path.rglob("*.part"))


# -- a decoder step


class Decoder(fr.StepModel):
    def __init__(self, extras: Callable[[Tensor, int], Any] | None = None) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(V + 1, 16), nn.GRUCell(16, 16), nn.Linear(16, V)
        self.extras, self.calls = extras, 0

    def start(self, batch: fr.Batch) -> tuple[Tensor, Tensor]:
        return torch.full((batch.size,), V), torch.zeros(batch.size, 16)

    def step(self, entries: Tensor, state: Tensor) -> Any:
        self.calls += 1
        hidden = self.cell(self.embedding(entries), state)
        outputs = self.out(hidden)
        return (outputs, hidden) if self.extras is None else (outputs, hidden, self.extras(outputs, self.calls))


@pytest.mark.parametrize("name", ["start", "step", "forward", "with_extras", "stepper", "_dims"])
def test_a_layer_under_the_name_of_a_method_is_refused_where_it_is_made(name):
    model = Decoder()
    with pytest.raises(fr.UserError, match=rf"Decoder\.{name} is a method of the model"):
        setattr(model, name, nn.Linear(2, 2))
    if name != "forward":  # a forward of one's own is anyone's right
        with pytest.raises(fr.UserError, match=rf"Mine\.{name} is a method of the model"):
            type("Mine", (Decoder,), {name: 3})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile's own
def test_a_compiled_step_and_a_copy_are_models():
    model = copy.deepcopy(Decoder())
    model.step = torch.compile(model.step, backend="eager")
    with warnings.catch_warnings(record=True) as issued:
        assert fr.scheduled_sampling(0.5).run(model, IDS, step=0).report["passes"] == 0
    assert not any("second loop" in str(each.message) for each in issued)


@pytest.mark.parametrize(
    ("extras", "text"),
    [
        (lambda outputs, t: 1.5, r"batch first, \(6, \.\.\.\); step returned float"),
        (lambda outputs, t: {"norm": outputs.norm()}, r"step returned \(\) float32"),
        (lambda outputs, t: outputs[:1], r"step returned \(1, 9\) float32"),
        (lambda outputs, t: torch.zeros(6, t), r"got \(6, 1\) at the first and \(6, 2\) at step 2"),
    ],
)
def test_extras_are_tensors_with_the_batch_first(extras, text):
    with pytest.raises(fr.UserError, match=text):
        Decoder(extras).with_extras(IDS)


@pytest.mark.parametrize(
    ("wrapped", "instead"),
    [
        (lambda model: torch.compile(model, backend="eager"), "model.step = torch.compile(model.step)"),
        (DataParallel, "DataParallel(freerun.training.MethodRun(model, method))"),
    ],
    ids=["compile", "parallel"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_wrapper_that_makes_two_loops_says_so_once(wrapped, instead, monkeypatch):
    monkeypatch.setattr("freerun.rollin.model._WARNED", WeakKeyDictionary())
    model, method = Decoder(), fr.scheduled_sampling(0.5)
    outside = wrapped(model)
    with pytest.warns(UserWarning, match=f"training is a second loop.*{re.escape(instead)}"):
        method.run(outside, IDS, step=0)
    assert model.calls == 16
    with warnings.catch_warnings(record=True) as issued:
        method.run(outside, IDS, step=1)
        fr.teacher_forcing().run(wrapped(Decoder()), IDS, step=0)
    assert not any("second loop" in str(each.message) for each in issued)


# -- what check_model finds


def test_a_context_with_time_first_of_a_square_batch_is_found():
    class TimeFirst(LM):
        def forward(self, batch: fr.Batch) -> Any:
            return super().forward(batch) + batch.context.t()[:, :, None].float()[:, : batch.time].mean(1, keepdim=True)

    batch = fr.Batch(
        IDS.targets[:, :6], context=torch.randint(1, V, (6, 6), generator=torch.Generator().manual_seed(1))
    )
    found = examine(TimeFirst(), batch)["rows_independent"]
    assert found.status == "refused"
    assert "a context that is not batch first" in found.explanation


def test_padding_of_which_no_row_is_free_is_found_and_an_end_symbol_is_none():
    class Mean(LM):
        def forward(self, batch: fr.Batch) -> Any:
            return super().forward(batch) + self.out(self.embedding(batch.context).mean(1, keepdim=True))

    source = torch.randint(2, V, (6, 9), generator=torch.Generator().manual_seed(2))
    ended = torch.cat([source, torch.ones(6, 1, dtype=torch.int64)], 1)
    assert examine(Mean(), IDS.replace(context=ended))["source_padding"].status == "not applicable"
    padded = ended.clone()
    for row, length in enumerate((3, 8, 5, 7, 4, 6)):
        padded[row, length:] = 0
    found = examine(Mean(), IDS.replace(context=padded))["source_padding"]
    assert found.status == "warning"
    assert "id 0 ends rows and looks like one" in found.explanation


@pytest.mark.parametrize("part", ["start", "step"])
def test_a_dimension_of_time_is_named(part):
    class Timed(Decoder):
        def start(self, batch: fr.Batch) -> tuple[Tensor, Tensor]:
            entries, state = super().start(batch)
            return (entries[:, None] if part == "start" else entries), state

        def step(self, entries: Tensor, state: Tensor) -> Any:
            outputs, state = super().step(entries, state)
            return outputs[:, None], state

    with pytest.raises(fr.UserError, match=rf"Timed\.{part}\(.*: a position has no dimension of time, so use \[:, 0\]"):
        fr.scheduled_sampling(0.5).run(Timed(), IDS, step=0)


class Decay(torch.nn.Module):
    """Predicts 0.9 of the distance to the level, as far as the model knows."""

    def __init__(self, level=0.0):
        super().__init__()
        self.level, self.weight = level, torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, batch):
        here = torch.nn.functional.pad(batch.history - self.level, (0, 0, 1, 0))[:, :-1]
        return self.level + self.weight * here


@pytest.mark.parametrize(("level", "unit"), [(0.0, 1.0), (20.0, 5.0), (3e7, 2e6)])
def test_errors_of_values_are_in_standard_deviations_in_any_units(level, unit):
    """NRMSE of evaluate and diagnose is one number, and that of normalised values, however far from 0 they lie."""
    plain = torch.randn(6, 8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    plain = (plain - plain.mean()) / plain.std(correction=0)
    oracle = (0.5 * torch.nn.functional.pad(plain, (0, 0, 1, 0))[:, :-1] - plain).square().mean((1, 2)).sqrt()
    free = plain.square().mean((1, 2)).sqrt()  # the first output is the level, and so are all
    batch, model = fr.Batch(level + unit * plain), Decay(level)
    scores, found = fr.evaluate(model, batch), fr.diagnose(model, batch)
    assert scores.teacher_forced["nrmse"] == pytest.approx(float(oracle.quantile(0.5)), abs=1e-9)
    assert scores.free_running["nrmse"] == pytest.approx(float(free.quantile(0.5)), abs=1e-9)
    assert scores.free_running["diverged"] == 0
    assert found.result.teacher_forced.nrmse.median == pytest.approx(scores.teacher_forced["nrmse"], abs=1e-9)
    assert found.result.free_running.nrmse.median == pytest.approx(scores.free_running["nrmse"], abs=1e-9)
    assert found.result.diverged == ()
    window = found.result.sample_windows[0]
    assert window.gold[0][0] == pytest.approx(float(batch.targets[0, 0, 0]))


class Drawn(Decay):
    """Draws its weight with NumPy and ``random``."""

    def __init__(self):
        super().__init__()
        self.weight.data += float(numpy.random.randn()) + random.random()


def _values(number, dtype=torch.float64):
    generator = torch.Generator().manual_seed(number)
    return [fr.Batch(torch.randn(4, 6, 1, dtype=torch.float64, generator=generator).to(dtype)) for _ in range(number)]


def test_weights_drawn_by_numpy_are_seeded_and_labels_may_be_chinese(tmp_path):
    data = {"train": _values(3), "dev": _values(1), "test": _values(2)}
    arms = {"教师强制": fr.teacher_forcing(), "计划采样": fr.scheduled_sampling(0.5, gradient="none")}
    state, plain = numpy.random.get_state()[1].tolist(), random.getstate()
    found = fr.compare(Drawn, data, arms, seeds=[0, 1], updates=2, out=tmp_path / "all", progress=False)
    assert sorted(path.name for path in (tmp_path / "all" / "runs").iterdir()) == [
        "教师强制-0", "教师强制-1", "计划采样-0", "计划采样-1"
    ]  # fmt: skip
    assert "计划采样" in found.verdict
    assert (numpy.random.get_state()[1].tolist(), random.getstate()) == (state, plain)


def test_messages_of_folders_name_arguments_of_the_call(tmp_path):
    data = {"train": _values(3), "dev": _values(1), "test": _values(2)}
    method, folder = fr.teacher_forcing(), tmp_path / "run"
    fr.fit(Decay(), data, method, updates=2, out=folder, progress=False)
    with pytest.raises(fr.UserError, match="resume=True") as occupied:
        fr.fit(Decay(), data, method, updates=2, out=folder, progress=False)
    with pytest.raises(fr.UserError, match=r"train\.updates: the checkpoint has 2, this run 3") as other:
        fr.fit(Decay(), data, method, updates=3, out=folder, resume=True, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    arms = {"gold": method, "own": fr.scheduled_sampling(0.5, gradient="none")}
    found = [occupied, other]
    for name in ("mine", "file"):
        with pytest.raises(fr.UserError) as foreign:
            fr.compare(Decay, data, arms, seeds=[0], updates=1, out=tmp_path / name, progress=False)
        assert "holds a comparison" not in str(foreign.value)
        found.append(foreign)
    assert not [each.value for each in found if "--" in str(each.value)]


def test_numbers_of_two_types_are_named_by_every_call():
    class Recurrent(Decay):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.RNN(1, 1, batch_first=True)

        def forward(self, batch):
            return self.rnn(torch.nn.functional.pad(batch.history, (0, 0, 1, 0))[:, :-1])[0]

    for call in (fr.evaluate, fr.diagnose, lambda model, batches: fr.check_model(model, batches[0])):
        with pytest.raises(fr.UserError, match="numbers of different types meet in the model"):
            call(Recurrent(), _values(1))


class _HidesARow(torch.nn.Module):
    """A padding mask hides the whole of a source: the softmax over nothing is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(1, 3)

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        scores = torch.zeros(batch.context.shape).masked_fill(batch.context == 0, -torch.inf).softmax(-1)
        return self.out(scores.sum(-1)[:, None, None].expand(*batch.history.shape, 1))


def test_nan_before_the_first_update_is_not_blamed_on_the_learning_rate() -> None:
    batch = fr.Batch(torch.tensor([[2, 1, 0], [1, 2, 0]]), context=torch.tensor([[1, 2], [0, 0]]))
    with pytest.raises(fr.UserError, match="no update was made, so the learning rate is not the cause") as caught:
        fr.fit(_HidesARow(), dict.fromkeys(DATA, batch), fr.teacher_forcing(), updates=2, check=False)
    assert "lower train.lr" not in str(caught.value)
    assert "check_model" in str(caught.value)


# -- models that see their target are refused before anything is trained


class Unshifted(LM):
    def forward(self, batch: fr.Batch) -> Any:
        return self.out(self.gru(self.embedding(batch.history))[0])


class ReadsTargets(LM):
    def forward(self, batch: fr.Batch) -> Any:
        return self.out(self.gru(self.embedding(batch.targets))[0])


@pytest.mark.parametrize(("leaky", "finding"), [(Unshifted, "unshifted_history"), (ReadsTargets, "reads_targets")])
def test_a_leak_is_refused_before_anything_is_trained_or_measured(leaky, finding, tmp_path):
    data = {"train": [IDS], "dev": [IDS], "test": [IDS]}
    calls = (
        lambda **named: fr.fit(leaky(), data, fr.teacher_forcing(), updates=1, progress=False, **named),
        lambda **named: fr.compare(
            leaky, data, {"a": fr.teacher_forcing(), "b": fr.scheduled_sampling(0.5)}, seeds=[0], updates=1,
            progress=False, out=tmp_path / "out", **named,
        ),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(fr.UserError, match=f"{finding}: (?s:.*)check=False"):
            call()
        assert not (tmp_path / "out").exists()
    assert "token_error" in calls[0](check=False).free_running
    for measure in (fr.evaluate, fr.diagnose):
        with pytest.raises(fr.UserError, match=f"{finding}: (?s:.*)check=False"):
            measure(leaky(), IDS)
        measure(leaky(), IDS, check=False)
    arms = {"a": fr.teacher_forcing()}
    found = fr.compare(leaky, data, arms, seeds=[0], updates=1, check=False, progress=False)
    assert found.to_json()["recipe"]["compare"]["checked"] is False
