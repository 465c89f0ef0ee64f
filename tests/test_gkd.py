"""GKD: loss and gradient are those of nested loops and of TRL; its limits; the teacher is left as it was."""

import copy
import importlib
import pickle
import warnings

import pytest
import torch

import freerun as fr
from builders import (
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    prompted,
    ragged,
    raises,
    refused,
    seq2seq,
    transformer,
)
from freerun.keys import fold
from freerun.training.memory import peak_bytes
from oracles import coins, full_prefix
from oracles_distil import distilled

KEY, STEP = 5, 3
gkd = importlib.import_module("freerun.methods.gkd")


def weighted(batch: fr.Batch) -> fr.Batch:
    g = torch.Generator().manual_seed(0)
    return batch.replace(weights=torch.rand(batch.mask.shape, generator=g, dtype=torch.float64) + 0.5)


def other(model: torch.nn.Module) -> torch.nn.Module:
    """A teacher of the same kind, with other weights."""
    teacher = copy.deepcopy(model)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=g, dtype=weight.dtype))
    return teacher


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("made", "batch"),
    [
        (seq2seq, ragged), (lambda: seq2seq("gru"), lambda: weighted(ragged())), (transformer, ragged),
        (lambda: ForwardOnly(seq2seq()), ragged), (language_model, lambda: prompted("left")),
    ],
    ids=["lstm", "weights", "transformer", "forward only", "language model"],
)  # fmt: skip
def test_loss_and_gradient_are_those_of_nested_loops(made, batch, beta, temperature, monkeypatch):
    monkeypatch.setattr(gkd, "_CHUNK", 12)  # two positions at a time
    model, batch = made(), batch()
    teacher = other(model)
    outcome = fr.gkd(0.5, beta=beta, temperature=temperature, teacher=teacher).run(model, batch, STEP, KEY)
    keep = coins("token", batch, 0.5, KEY, STEP)
    history = full_prefix(model, batch, keep, "inverse_cdf", fold(KEY, "draw", STEP))
    assert torch.equal(outcome.fed.history, history)
    assert not torch.equal(history, batch.history)
    fed = batch.replace(history=history)
    expected = distilled(model(fed), teacher(fed).detach(), batch, beta, temperature)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, expected))


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_the_loss_and_its_gradient_are_those_of_trl(beta):
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    batch, model = prompted("right"), language_model("learned")
    teacher = other(model)
    ours = fr.gkd(1.0, beta=beta, temperature=0.9, teacher=teacher).run(model, batch, STEP, KEY)
    labels = batch.targets.masked_fill(~batch.mask, -100)
    with torch.no_grad():
        known = teacher(batch)
    theirs = GKDTrainer.generalized_jsd_loss(model(batch), known, labels, beta=beta, temperature=0.9)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert_same_gradients(gradients(model, ours.loss), gradients(model, theirs), 1e-6)


def before_an_own_end(fed: fr.Batch, gold: fr.Batch, end: int) -> torch.Tensor:
    """Position by position: whether the model's own end symbol stands before it in its stretch of the row."""
    kept = gold.mask.clone()
    for row in range(gold.size):
        ended = False
        for t in range(gold.time):
            ended &= bool(gold.mask[row, t] or gold.replaceable[row, t])
            kept[row, t] &= not ended
            ended |= bool(fed.replaced[row, t]) and int(fed.history[row, t]) == end
    return kept


@pytest.mark.parametrize(("ratio", "gate"), [(0.0, "token"), (0.5, "token"), (0.5, "sequence")])
@pytest.mark.parametrize("made", [
    lambda: (seq2seq("gru"), weighted(ragged())), lambda: (transformer(), ragged()),
    lambda: (language_model(), replies()),
], ids=["weights", "transformer", "replies"])  # fmt: skip
def test_nothing_is_learnt_after_the_students_own_end(made, ratio, gate):
    model, batch = made()
    teacher = other(model)
    method = fr.gkd(ratio, gate=gate, beta=0.3, teacher=teacher, end=2)
    outcome = method.run(model, batch, STEP, KEY)
    kept = before_an_own_end(outcome.fed, batch, 2)
    left_out = int((batch.mask & ~kept).sum())
    assert left_out > 0
    assert bool((kept & (outcome.fed.history != batch.history)).any())
    fed = batch.replace(history=outcome.fed.history)
    weights = torch.ones_like(model(fed)[..., 0]) if batch.weights is None else batch.weights
    total = distilled(model(fed), teacher(fed).detach(), batch.replace(mask=kept), 0.3) * weights[kept].sum()
    assert outcome.count.item() == pytest.approx(weights[batch.mask].sum().item())
    assert outcome.total.item() == pytest.approx(total.item(), rel=1e-10)
    assert_same_gradients(gradients(model, outcome.total), gradients(model, total))
    shares = {name: outcome.report[a] / outcome.report[b] for name, (a, b) in method.means.items()}
    assert shares["after_end_share"] == pytest.approx(left_out / int(batch.mask.sum()))
    assert outcome.report["support_of"] == 2 * int(kept.sum())


def replies() -> fr.Batch:
    """Rows of two replies each, between entries that are known."""
    mask = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 1, 1]]).bool().repeat(6, 1)
    g = torch.Generator().manual_seed(3)
    return fr.Batch(torch.randint(0, 5, mask.shape, generator=g), mask=mask)


def test_gold_ends_the_last_reply_and_own_ends_of_the_first_leave_the_second():
    ids = torch.tensor([[4, 3, 0, 4, 3, 0], [4, 0, 0, 4, 0, 0], [4, 0, 3, 4, 3, 0]])
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool().repeat(3, 1)
    own = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0]]).bool()
    found = gkd.until_own_end(fr.Batch(ids, mask=mask).made(replaced=own), [0])
    assert found.tolist() == [
        [True] * 6, [True, True, True, True, True, False], [True, True, False, True, True, True],
    ]  # fmt: skip
    for ends, batch in (([], fr.Batch(ids).made(replaced=own)), ([0], fr.Batch(ids))):
        assert gkd.until_own_end(batch, ends) is None


class OneHot(torch.nn.Module):
    """All of the probability on gold, which it knows from outside."""

    def __init__(self, gold: torch.Tensor) -> None:
        super().__init__()
        self.gold = gold

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        sure = torch.nn.functional.one_hot(self.gold, 5).double()
        return sure.log()


def test_a_teacher_that_is_sure_of_gold_is_teacher_forcing_at_beta_0():
    model, batch = seq2seq(), ragged()
    ours = fr.gkd(1.0, beta=0.0, teacher=OneHot(batch.targets))(model, batch, STEP, KEY)
    gold = fr.teacher_forcing()(model, batch, STEP, KEY)
    assert ours.item() == pytest.approx(gold.item(), rel=1e-12)
    assert_same_gradients(gradients(model, ours), gradients(model, gold))
    for beta in (0.5, 1.0):  # symbols without probability do no harm where the limit is finite
        total = fr.gkd(1.0, beta=beta, teacher=OneHot(batch.targets))
        loss = total.run(model, batch, STEP, KEY).total
        assert bool(loss.isfinite()) == (beta < 1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_nothing_is_left_to_learn_from_a_teacher_with_the_same_weights(beta):
    model, batch = transformer(), ragged()
    outcome = fr.gkd(0.0, beta=beta, teacher=copy.deepcopy(model)).run(model, batch, STEP, KEY)
    assert abs(outcome.total.item()) < 1e-13
    assert max(float(g.abs().max()) for g in gradients(model, outcome.loss).values()) < 1e-13
    assert outcome.report["support_common"] == outcome.report["support_of"] == 2 * int(batch.mask.sum())


@pytest.mark.parametrize(("vocab", "near"), [(1, 1), (3, 1), (8, 4), (20, 10), (50, 10)])
def test_the_overlap_is_of_the_likeliest_symbols_never_of_all_of_several(vocab, near):
    """Student and teacher rank the symbols in opposite order."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    logits = torch.arange(vocab).double().expand(1, 2, vocab)
    report = fr.gkd(1.0, teacher=lambda batch: -logits).run(lambda batch: logits, fr.Batch(ids), 0).report
    assert (report["support_common"], report["support_of"]) == (2 * (vocab == 1), 2 * near)


def test_ratio_1_is_distillation_on_the_data_bit_for_bit_and_calls_each_model_once():
    model, batch = transformer(), ragged()
    teacher, calls = other(model), []
    student, known = ForwardOnly(model), ForwardOnly(teacher)
    student.register_forward_pre_hook(lambda *_: calls.append("student"))
    known.register_forward_pre_hook(lambda *_: calls.append("teacher"))
    fr.gkd(0.5, teacher=known).run(student, batch, STEP, KEY)  # what is tried once of a new model
    calls.clear()
    outcome = fr.gkd(1.0, teacher=known).run(student, batch, STEP, KEY)
    assert calls == ["student", "teacher"]
    assert torch.equal(outcome.fed.history, batch.history)
    with torch.no_grad():
        logits = known(batch)[batch.mask]
    total = gkd.divergence(model(batch)[batch.mask], logits, 0.5).sum()
    assert torch.equal(outcome.total, total)


def test_the_teacher_runs_in_evaluation_mode_without_gradient_and_stays_as_it_was():
    model, batch = transformer(dropout=0.3), ragged()
    teacher = other(model).train()
    before = copy.deepcopy(teacher.state_dict())
    method = fr.gkd(0.5, teacher=teacher)
    method(model, batch, STEP, KEY).backward()
    assert teacher.training
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    gold = fr.gkd(1.0, teacher=teacher)  # dropout of the teacher would make it another function at each call
    student = transformer().eval()
    assert torch.equal(gold(student, batch, STEP, KEY), gold(student, batch, STEP, KEY))


def test_its_identity_is_the_teachers_weights():
    teacher = seq2seq()
    method, same = fr.gkd(0.5, teacher=teacher), fr.gkd(0.5, teacher=copy.deepcopy(teacher))
    assert method == same == pickle.loads(pickle.dumps(method))
    assert repr(method) == repr(same)
    assert "0x" not in repr(method)
    assert fr.gkd(0.5, teacher=other(teacher)) != method
    assert repr(fr.gkd(0.5, teacher=other(teacher))) != repr(method)


class Half(torch.nn.Module):
    """A model whose logits are multiplied by a number that is no weight."""

    def __init__(self, model: torch.nn.Module, factor: float = 0.5) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return self.factor * self.model(batch)


def test_teachers_of_the_same_weights_and_other_settings_differ():
    pairs = [[Half(seq2seq(), 0.5), Half(seq2seq(), 0.25)], [language_model(heads=n) for n in (1, 2)]]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
        assert fr.gkd(0.5, teacher=one) == fr.gkd(0.5, teacher=copy.deepcopy(one).eval())
        assert fr.gkd(0.5, teacher=one) != fr.gkd(0.5, teacher=other)
        assert repr(fr.gkd(0.5, teacher=one)) != repr(fr.gkd(0.5, teacher=other))


def test_a_teacher_with_the_students_weights_is_refused_where_it_predicts_the_same():
    model, batch = transformer(dropout=0.3), ragged()
    same = "has weights of the student and predicts the same"
    refused(same, fr.gkd(1.0, teacher=ForwardOnly(model)), model, batch, STEP)
    assert fr.gkd(1.0, teacher=ForwardOnly(copy.deepcopy(model)))(model, batch, STEP) > 0
    assert fr.gkd(1.0, teacher=Half(model))(model, batch, STEP) > 0  # it predicts otherwise
    nothing = batch.replace(mask=torch.zeros_like(batch.mask), eligible=batch.mask)
    assert fr.gkd(1.0, teacher=ForwardOnly(model))(model, nothing, STEP) == 0


def test_what_does_not_fit_is_refused_by_name():
    model, batch = seq2seq(), ragged()
    larger = fr.models.RecurrentSeq2Seq(6, 7, size=8).double()
    refused("the teacher has 7 symbols and the student 5", fr.gkd(1.0, teacher=larger), model, batch, STEP)
    smaller = fr.gkd(1.0, teacher=fr.models.TransformerLM(2, size=8, layers=1, heads=1).double())
    refused("was fed an id that its embedding does not have", smaller, model, batch, STEP)
    refused("the teacher is the student itself", fr.gkd(1.0, teacher=model), model, batch, STEP)
    refused("teacher must be a model", fr.gkd, 0.5, teacher=7)
    refused("is a folder, which recipes load", fr.gkd(0.5, teacher="runs/a"), model, batch, STEP)
    refused("that is a class", fr.gkd, 0.5, teacher=torch.nn.GRU)
    refused("beta must lie", fr.gkd, 0.5, teacher=larger, beta=1.5)
    for draw in ("soft_argmax", fr.draws.soft_argmax(2.0)):
        refused("feeds mixtures, which a teacher cannot read", fr.gkd, 0.5, teacher=larger, draw=draw)
    refused("temperature must be above 0", fr.gkd, 0.5, teacher=larger, temperature=0.0)
    refused("target has no effect with gkd", fr.gkd, 0.5, teacher=larger, target="optimal_completion")
    values = fr.Batch(torch.zeros(1, 3, 2))
    refused("these targets are values", fr.gkd(1.0, teacher=larger), lambda each: each.history, values, 0)
    elsewhere = copy.deepcopy(model).to("meta")
    refused("the teacher lies on meta and the batch on cpu", fr.gkd(1.0, teacher=elsewhere), model, batch, STEP)


@pytest.mark.parametrize("gate", ["token", "sequence", "prefix"])
def test_a_schedule_goes_from_gold_to_own(gate):
    model, batch = transformer(), ragged()
    falling = fr.schedules.linear(start=1.0, end=0.0, steps=10)
    method = fr.gkd(falling, gate=gate, teacher=other(model))
    shares = [method.run(model, batch, step, KEY).report["replaced"] for step in (0, 10)]
    assert shares == [0, int(batch.replaceable.sum())]


class Wide(torch.nn.Module):
    """A large vocabulary behind little else; without halves, and with the outputs time by time."""

    def __init__(self, seed: int, vocab: int = 256) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.before = torch.nn.Parameter(torch.randn(vocab + 1, 2, generator=g, dtype=torch.float64))
        self.after = torch.nn.Parameter(torch.randn(2, vocab, generator=g, dtype=torch.float64))

    def read(self, batch: fr.Batch) -> torch.Tensor:
        return self.before[torch.nn.functional.pad(batch.history[:, :-1], (1, 0), value=len(self.before) - 1)]

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return (self.read(batch).transpose(0, 1) @ self.after).transpose(0, 1)


class WideHalves(Wide):
    """The same function in halves."""

    def hidden(self, batch: fr.Batch) -> torch.Tensor:
        return self.read(batch)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.after

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        return self.head(self.hidden(batch))


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """(n,) of logits whose probabilities are all above 0."""
    s, t = student.softmax(-1), teacher.softmax(-1)
    mixed = beta * t + (1 - beta) * s
    return (beta * t * (t / mixed).log() + (1 - beta) * s * (s / mixed).log()).sum(-1)


@pytest.mark.parametrize(("made", "teacher", "share", "times"), [
    (Wide, WideHalves, 1.0, 2), (WideHalves, WideHalves, 1.0, 2), (Wide, WideHalves, 0.5, 2),
    (WideHalves, WideHalves, 0.5, 1), (Wide, Wide, 1.0, 3),
])  # fmt: skip
def test_in_memory_are_the_logits_and_their_gradient_once(made, teacher, share, times, monkeypatch):
    """A teacher without halves has its logits there too; gold's cross-entropy alone takes 3 times the logits."""
    monkeypatch.setattr(gkd, "_CHUNK", 2048)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(256, (16, 64), generator=g)
    batch = fr.Batch(ids, ids, torch.rand(16, 64, generator=g) < share)
    model, known = made(0), teacher(1)
    method = fr.gkd(1.0, beta=0.4, teacher=known)
    found: list[torch.Tensor] = []

    def update() -> None:
        model.zero_grad()
        found[:] = [method(model, batch, STEP, KEY)]
        found[0].backward()

    update()  # what is tried once of a new model
    assert peak_bytes(update, torch.device("cpu")) < (times + 0.2) * ids.numel() * 256 * 8
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        target = known(batch)[batch.mask]
    naive = jsd(model(batch)[batch.mask], target, 0.4).mean()
    assert found[0].item() == pytest.approx(naive.item(), rel=1e-10)
    assert_same_gradients(ours, gradients(model, naive))


def test_its_gradient_is_passed_on_once():
    model, batch = transformer(), ragged()
    loss = fr.gkd(1.0, teacher=other(model))(model, batch, STEP, KEY)
    loss.backward(retain_graph=True)
    raises(fr.errors.UserError, "a second backward through the same divergence from a teacher", loss.backward)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_in_float16_under_loss_scaling_small_gradients_are_not_lost(beta, monkeypatch):
    """At scale 1 up to 64 % of these would be 0, and the error 19 %; autograd's own loses under 0.1 %."""
    monkeypatch.setattr(gkd, "_CHUNK", 100_000)  # two positions at a time
    g = torch.Generator().manual_seed(0)
    student = torch.randn(1, 5, 50_000, generator=g)
    teacher = (student + 0.01 * torch.randn(1, 5, 50_000, generator=g)).half()
    ids, scale = torch.zeros(1, 5, dtype=torch.long), 2**16 / 5
    batch = fr.Batch(ids, ids, torch.arange(5)[None] != 2)
    logits = student.half().requires_grad_()
    (fr.gkd(1.0, beta=beta, teacher=lambda batch: teacher).run(lambda batch: logits, batch, 0).total * scale).backward()
    exact = student.half().double().requires_grad_()
    gkd.divergence(exact[batch.mask], teacher.double()[batch.mask], beta).sum().backward()
    found = logits.grad.double() / scale
    assert found.dtype != logits.grad.dtype == torch.float16
    assert (found[batch.mask] == 0).double().mean() < 1e-3
    assert (found - exact.grad).norm() < 1e-3 * exact.grad.norm()
    assert not found[~batch.mask].any()


class Bigram(torch.nn.Module):
    """A language over six symbols that depends on the previous one."""

    def __init__(self, seed: int, scale: float) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(scale * torch.randn(7, 6, generator=g))

    def forward(self, batch: fr.Batch) -> torch.Tensor:
        before = torch.nn.functional.pad(batch.history[:, :-1], (1, 0), value=6)
        return self.table[before]


def test_on_its_own_histories_the_student_learns_what_the_teacher_would_do_there():
    """The data hold two symbols only; after the others, where own histories lead, only a teacher's word is heard.

    Over 20 seeds, at beta 0.5, on gold 0.48 to 1.16 nats are left there, on own at most 0.0022, and from gold to own at
    most 0.0002.
    """
    teacher, ids = Bigram(0, 2.0), torch.tensor([[0, 1] * 8]).expand(8, 16)
    batch = fr.Batch(ids)
    gaps = []
    for ratio in (1.0, 0.0, fr.schedules.linear(start=1.0, end=0.0, steps=75)):
        student = Bigram(1, 0.1)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
        for step in range(150):
            optimizer.zero_grad()
            fr.gkd(ratio, teacher=teacher)(student, batch, step, 0).backward()
            optimizer.step()
        apart = gkd.divergence(student.table[2:6], teacher.table[2:6], 0.0)
        gaps.append(float(apart.mean().detach()))
    gold, own, falling = gaps
    assert gold > 0.3
    assert max(own, falling) < 0.01
