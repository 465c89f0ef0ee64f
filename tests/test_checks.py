import pytest
import torch
from torch import Tensor, nn

from builders import refused
from freerun.batch import Batch
from freerun.checks import check_model, examine
from freerun.models import RecurrentSeq2Seq
from freerun.models.article import Seq2SeqModel, UnshiftedSeq2SeqModel
from oracles_generate import SteppedTree, Tree

VOCAB, VALUE = 5, 3


def ids_batch(size: int = 4, time: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCAB, (size, time), generator=generator)
    lengths = torch.arange(size) % 3 + time - 2
    mask = torch.arange(time) < lengths[:, None]
    source = torch.randint(1, 6, (size, 4), generator=generator)
    context = {"source": source, "source_mask": source > 0}
    return Batch(ids * mask, ids * mask, mask, context=context)


def values_batch(size: int = 4, time: int = 6) -> Batch:
    values = torch.randn(size, time, VALUE, generator=torch.Generator().manual_seed(0))
    return Batch(values, context=torch.randn(size, 5, 2))


class Tiny(nn.Module):
    """An honest GRU: a Stepper, an Encoder and split in hidden and head. The planted bugs below are changes of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, 8)
        self.read = nn.Embedding(6, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, VOCAB)
        self.drop = nn.Dropout(0.5)

    def encode(self, batch: Batch) -> Batch:
        if isinstance(batch.context, Tensor):
            return batch
        return batch.replace(context=(self.read(batch.context["source"]) * torch.arange(1.0, 5)[:, None]).mean(1))

    def inputs_of(self, batch: Batch) -> Tensor:
        inputs = self.embedding(batch.history)
        return torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :-1]], 1)

    def hidden(self, batch: Batch) -> Tensor:
        context = self.encode(batch).context
        return self.gru(self.inputs_of(batch), context[None].contiguous())[0]

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(self.drop(hidden))

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.hidden(batch))

    def start(self, batch: Batch) -> Tensor:
        return self.step(self.encode(batch).context, torch.zeros(batch.size, 8))

    def embed(self, entries: Tensor) -> Tensor:
        return self.embedding(entries)

    def step(self, state: Tensor, inputs: Tensor) -> Tensor:
        return self.gru(inputs[:, None], state[None].contiguous())[1][0]

    def output(self, state: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.head(state if rows is None else state[rows])

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]


def raising(*_):
    raise RuntimeError("no such state")


def changed(**methods):
    """The honest GRU with some of its methods changed."""
    return type("Changed", (Tiny,), methods)


dropout, pad = nn.functional.dropout, nn.functional.pad
Unshifted = changed(inputs_of=lambda m, b: m.embedding(b.history))
Future = changed(inputs_of=lambda m, b: pad(m.embedding(b.history)[:, 1:], (0, 0, 0, 1)))
Bidirectional = changed(hidden=lambda m, b: Tiny.hidden(m, b) + m.inputs_of(b).flip(1).cumsum(1).flip(1))
ReadsTargets = changed(inputs_of=lambda m, b: Tiny.inputs_of(m, b.replace(history=b.targets)))
Leaks = changed(forward=lambda m, b: Tiny.forward(m, b) + 0.01 * nn.functional.one_hot(b.targets, VOCAB))
PadsCount = changed(
    hidden=lambda m, b: Tiny.hidden(m, b) + (m.embedding(b.history) * ~b.mask[..., None]).sum(1, keepdim=True)
)
Length = changed(hidden=lambda m, b: Tiny.hidden(m, b) / b.time)
RowsShare = changed(head=lambda m, h: Tiny.head(m, h - h.mean(0, keepdim=True) if h.dim() == 3 else h))
RowBefore = changed(forward=lambda m, b: sum(part * Tiny.forward(m, b).roll(n, 0) for n, part in enumerate((1, 0.1))))
AlwaysRandom = changed(head=lambda m, h: m.out(dropout(h, 0.1, training=True)))
NaN = changed(head=lambda m, h: Tiny.head(m, h) * torch.nan)
StartsWrong = changed(start=lambda m, b: m.encode(b).context)
EmbedsByPlace = changed(embed=lambda m, entries: m.embedding(entries) + 0.1 * (entries.dim() > 1))
InPlace = changed(step=lambda m, state, inputs: state.copy_(Tiny.step(m, state.clone(), inputs)))
SelectIgnores = changed(select=lambda m, state, rows: state[rows.sort().values])
OutputIgnoresRows = changed(output=lambda m, s, rows=None: m.head(s if rows is None else s[: len(rows)]))
HeadForgets = changed(
    forward=lambda m, b: 2 * m.head(m.hidden(b)), output=lambda m, s, rows=None: 2 * Tiny.output(m, s, rows)
)
StepRaises = changed(step=raising)


def names(model, batch: Batch) -> set[str]:
    return {finding.name for finding in examine(model, batch).refused}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("attention", ["luong", None])
def test_our_recurrent_models_pass_everything(cell, attention):
    torch.manual_seed(0)
    model = RecurrentSeq2Seq(6, VOCAB, size=8, layers=2, cell=cell, attention=attention, dropout=0.4)
    report = check_model(model, ids_batch())
    assert report["cache_equals_forward"].status == "not applicable"
    assert report["source_padding"].status == "not applicable"
    assert repr(report) == "Report(4 not applicable, 28 ok)"
    assert model.training


def test_honest_models_pass():
    check_model(Tiny(), ids_batch())
    check_model(Seq2SeqModel(2, 8, VALUE), values_batch())
    batch = ids_batch()
    batch = batch.replace(context=torch.arange(batch.size))
    assert check_model(Tree(VOCAB), batch)["step_equals_parallel"].status == "not applicable"
    assert check_model(SteppedTree(VOCAB), batch)["step_equals_parallel"].status == "ok"


def test_the_articles_unshifted_model_is_refused_by_name():
    message = r"^unshifted_history: .*reads the very entry it must predict"
    assert len(refused(message, check_model, UnshiftedSeq2SeqModel(2, 8, VALUE), values_batch())) == 1


class EncodesTwice(Tiny):
    def encode(self, batch):
        encoded = isinstance(batch.context, Tensor)
        return batch.replace(context=batch.context * 2) if encoded else super().encode(batch)

    def hidden(self, batch):
        context = batch.context if isinstance(batch.context, Tensor) else self.encode(batch).context
        return self.gru(self.inputs_of(batch), context[None].contiguous())[0]

    def start(self, batch):
        return self.step(Tiny.encode(self, batch).context, torch.zeros(batch.size, 8))


BUGS = [
    (Unshifted, "unshifted_history", {"step_equals_parallel"}),
    (Future, "causal", {"length_inert", "step_equals_parallel", "unshifted_history", "pads_inert"}),
    (Bidirectional, "causal", {"length_inert", "step_equals_parallel", "unshifted_history", "pads_inert"}),
    (ReadsTargets, "reads_targets", {"step_equals_parallel", "uses_history"}),
    (Leaks, "reads_targets", {"step_equals_parallel", "split_equals_forward"}),
    (PadsCount, "pads_inert", {"reads_mask", "causal", "length_inert", "step_equals_parallel"}),
    (Length, "length_inert", {"step_equals_parallel"}),
    (RowsShare, "rows_independent", {"step_equals_parallel", "split_equals_forward", "pads_inert"}),
    (RowBefore, "rows_independent", {"step_equals_parallel", "split_equals_forward"}),
    (AlwaysRandom, "deterministic", set()),
    (NaN, "finite", set()),
    (StartsWrong, "step_equals_parallel", set()),
    (EmbedsByPlace, "stepper_embed", {"stepper_select"}),
    (InPlace, "stepper_state", {"stepper_select"}),
    (SelectIgnores, "stepper_select", set()),
    (OutputIgnoresRows, "stepper_select", set()),
    (EncodesTwice, "encode_equals_forward", set()),
    (HeadForgets, "split_equals_forward", set()),
    (StepRaises, "step_equals_parallel", {"stepper_state", "stepper_select"}),
]


@pytest.mark.parametrize(("model", "own", "also"), BUGS)
def test_planted_bugs_are_refused_by_their_own_name(model, own, also):
    found = names(model(), ids_batch())
    assert {own} <= found <= {own} | also  # what the same bug may break besides
    problems = refused(rf"(?m)^{own}: ", check_model, model(), ids_batch())
    assert {problem.split(":")[0] for problem in problems} == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 40])
def test_a_faint_leak_is_found_far_down_the_sequence(dtype, size):
    def faint(batch: Batch) -> Tensor:
        outputs = torch.zeros(batch.size, batch.time, VOCAB, dtype=dtype)
        if batch.time > 30:
            outputs[:, 30, 0] = 1e-4 * (batch.history[:, 30] == 1)
        return outputs

    assert "unshifted_history" in names(faint, Batch(torch.zeros(size, 32, dtype=torch.int64)))


def test_shapes_are_refused_before_anything_else():
    narrow = r"must be \(4, 6, 3\) or, for a distribution, .*; got \(4, 6, 2\)"
    for model, batch, message in (
        (
            lambda b: torch.zeros(b.time, b.size, VOCAB),
            ids_batch(),
            r"shape: outputs must be \(4, 6, vocab\), batch first",
        ),
        (lambda b: b.history, ids_batch(), "floating-point tensor .* got torch.int64"),
        (lambda b: (torch.zeros(4, 6, VOCAB), None), ids_batch(), "got tuple"),
        (lambda b: torch.zeros(b.size, b.time, 2), ids_batch(), "2 numbers a position, and the targets hold the id 4"),
        (lambda b: torch.zeros(b.size, b.time, 2), values_batch(), narrow),
    ):
        assert len(refused(message, check_model, model, batch)) == 1


def test_a_model_without_history_is_only_warned_about():
    with pytest.warns(UserWarning, match="check_model: uses_history: no output moves"):
        report = check_model(lambda b: torch.ones(b.size, b.time, VOCAB), ids_batch().replace(context=None))
    assert report["uses_history"].status == "warning"
    assert "warning         uses_history: no output moves" in str(report)


def test_what_does_not_apply_is_reported():
    batch = ids_batch().select(torch.tensor([2]))
    report = check_model(Tiny(), batch)
    assert report["rows_independent"].explanation == "the batch has one row"
    assert report["pads_inert"].status == "not applicable"
    refused("no position that counts", check_model, Tiny(), batch.replace(mask=batch.mask & False))


def test_batch_norm_without_running_averages_is_refused_and_with_them_passes():
    class Norm(Tiny):
        def __init__(self, track: bool) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8, track_running_stats=track)

        def head(self, hidden):
            return super().head(self.norm(hidden.reshape(-1, 8)).view(hidden.shape))

    assert names(Norm(True), ids_batch()) == {"training_mode"}
    assert "rows_independent" in names(Norm(False), ids_batch())


def test_minus_infinity_rules_out_symbols_but_not_the_target():
    batch = ids_batch()
    for symbol, found in ((VOCAB, set()), (int(batch.targets[0, 0]), {"finite"})):
        outputs = torch.zeros(VOCAB + 1).index_fill(0, torch.tensor([symbol]), -torch.inf)
        assert names(lambda b, row=outputs: row.expand(b.size, b.time, -1).clone(), batch) == found


def test_modes_come_back():
    model = Tiny().train()
    model.drop.eval()
    check_model(model, ids_batch())
    assert model.training
    assert not model.drop.training
