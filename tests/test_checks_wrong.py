"""Models that are wrong in one way each, and the right one beside them: seen by name, and no false alarm."""

import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import freerun as fr
from builders import refused
from freerun.batch import Batch

SOURCE, VOCAB, SIZE, VALUES = 7, 5, 8, 2


def batch_of(size: int = 5, time: int = 8, padding: str | None = "right") -> Batch:
    """Ids with padding after the end, and a source of its own length, padded or not."""
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([time, time - 1, time - 3, time - 2, time])[:size]
    mask = torch.arange(time) < lengths[:, None]
    ids = torch.randint(0, VOCAB, (size, time), generator=g) * mask
    source = torch.randint(1, SOURCE, (size, 6), generator=g)
    there = torch.arange(6) < torch.tensor([6, 3, 4, 6, 5])[:size, None]  # the entries that are no padding
    there = torch.ones_like(there) if padding is None else there.flip(1) if padding == "left" else there
    return Batch(ids, ids, mask, {"source": source * there, "source_mask": there})


def values_of(size: int = 4, time: int = 7) -> Batch:
    return Batch(torch.randn(size, time, VALUES, generator=torch.Generator().manual_seed(0)))


def sinusoids(time: int) -> Tensor:
    angle = torch.arange(time)[:, None] / 20.0 ** (torch.arange(SIZE) / SIZE)
    return torch.cat([angle.sin()[:, ::2], angle.cos()[:, ::2]], 1)


class Attends(nn.Module):
    """An encoder-decoder by attention, as a student writes it; the faults below are changes of it."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.source = nn.Embedding(SOURCE, SIZE)
        self.target = nn.Embedding(VOCAB, SIZE)
        self.first = nn.Parameter(torch.randn(SIZE))
        self.reads = nn.ModuleList(nn.MultiheadAttention(SIZE, 2, batch_first=True) for _ in range(layers))
        self.looks = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.out = nn.Linear(SIZE, VOCAB)

    def shifted(self, batch: Batch) -> Tensor:
        x = self.target(batch.history[:, :-1])
        return torch.cat([self.first.expand(batch.size, 1, -1), x], 1)

    def hidden_keys(self, time: int) -> Tensor:
        return torch.ones(time, time, dtype=torch.bool).triu(1)

    def positions(self, time: int) -> Tensor:
        return sinusoids(time)

    def memory(self, batch: Batch) -> tuple[Tensor, Tensor]:
        source, there = batch.context["source"], batch.context["source_mask"]
        positions = (there.cumsum(1) - 1).clamp_min(0)  # padding on either side takes none
        return self.source(source) + self.positions(source.shape[1])[positions], ~there

    def forward(self, batch: Batch) -> Tensor:
        x = self.shifted(batch) + self.positions(batch.time)
        for layer in self.reads:
            x = x + layer(x, x, x, attn_mask=self.hidden_keys(batch.time), need_weights=False)[0]
        memory, absent = self.memory(batch)
        x = x + self.looks(x, memory, memory, key_padding_mask=absent, need_weights=False)[0]
        return self.out(x)


def changed(**methods):
    """The right model with some of its methods changed."""
    return type("Changed", (Attends,), methods)


def none(time: int) -> Tensor:
    return torch.zeros(time, time, dtype=torch.bool)


def then(change, method):
    """The method after a change of its batch."""
    return lambda model, batch: (change(batch), method(model, batch))[1]


ShiftedTwice = changed(shifted=lambda m, b: Attends.shifted(m, b)[:, [0, *range(b.time - 1)]])
AttendsToPads = changed(memory=lambda m, b: (Attends.memory(m, b)[0], b.context["source_mask"] & False))
PositionsFromTheEnd = changed(  # of the source, padding included
    memory=lambda m, b: (
        m.source(b.context["source"]) + m.positions(b.context["source"].shape[1]).flip(0),
        ~b.context["source_mask"],
    )
)
ById = changed(memory=lambda m, b: (Attends.memory(m, b)[0], b.context["source"] == 0))  # right, without the mask
Probabilities = changed(forward=lambda m, b: Attends.forward(m, b).softmax(-1))
LogProbabilities = changed(forward=lambda m, b: Attends.forward(m, b).log_softmax(-1))
NoPositions = changed(positions=lambda m, time: torch.zeros(time, SIZE))
LooksAheadInTraining = changed(hidden_keys=lambda m, time: none(time) if m.training else Attends.hidden_keys(m, time))
TargetsInTraining = changed(shifted=lambda m, b: Attends.shifted(m, b.replace(history=b.targets) if m.training else b))
# right: dropout in training mode, within the layers and written into the forward
Dropped = changed(shifted=lambda m, b: nn.functional.dropout(Attends.shifted(m, b), 0.3, m.training))
IgnoresContext = changed(memory=lambda m, b: tuple(map(torch.zeros_like, Attends.memory(m, b))))
BlindToSourceOrder = changed(memory=lambda m, b: (m.source(b.context["source"]), ~b.context["source_mask"]))
TargetsInContext = changed(
    forward=lambda m, b: (
        Attends.forward(m, b) + (m.out(m.target(b.context["labels"][:, : b.time])) if "labels" in b.context else 0)
    )
)
ReadsTheMask = changed(shifted=lambda m, b: Attends.shifted(m, b) + b.mask.sum(1)[:, None, None] / 10)
NothingToLearn = changed(forward=lambda m, b: Attends.forward(m, b).detach())
FixedLength = changed(  # the forward has a length of its own
    positions=lambda m, time: sinusoids(8)[:time] if time < 7 else sinusoids(8),
    hidden_keys=lambda m, time: none(8).logical_not().triu(1),
)


class DiagonalHidden(Attends):
    """The causal mask hides the last entry, and the stream has none of it."""

    def hidden_keys(self, time):
        return torch.ones(time, time, dtype=torch.bool).triu(0).index_fill(1, torch.tensor(0), False)

    def forward(self, batch):
        x, positions = self.shifted(batch), self.positions(batch.time)
        hidden, query = self.hidden_keys(batch.time), positions.expand_as(x)
        return self.out(self.reads[0](query, x + positions, x + positions, attn_mask=hidden, need_weights=False)[0])


class MaskInverted(Attends):
    """Reads the pads and ignores what is there."""

    def memory(self, batch):
        memory, absent = super().memory(batch)
        inverted = ~absent
        inverted[:, -1] &= ~inverted.all(1)  # torch gives NaN for a row that may attend to nothing
        return memory, inverted


class MeanOverPads(Attends):
    """Pads are zeros, and yet the mean is divided by the padded length."""

    def forward(self, batch):
        memory, absent = self.memory(batch)
        mean = memory.masked_fill(absent[..., None], 0.0).mean(1, keepdim=True)
        x = self.shifted(batch) + self.positions(batch.time)
        x = self.reads[0](x, x, x, attn_mask=self.hidden_keys(batch.time), need_weights=False)[0]
        return self.out(x + mean)


class NormsInTraining(Attends):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIZE)

    def shifted(self, batch):
        return self.norm(super().shifted(batch).transpose(1, 2)).transpose(1, 2)


class NormsFrozen(NormsInTraining):
    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.eval()
        return self


class NormsTheSource(Attends):
    """Statistics over sources alone: no output sees the future, and in training each sees other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(SIZE)

    def memory(self, batch):
        memory, absent = super().memory(batch)
        return self.norm(memory.transpose(1, 2)).transpose(1, 2), absent


ChangesItsBatch = changed(
    memory=then(lambda b: b.context["source"].masked_fill_(~b.context["source_mask"], 1), Attends.memory)
)
ChangesHistory = changed(shifted=then(lambda b: b.history.masked_fill_(~b.mask, 1), Attends.shifted))


class KeepsASource(Attends):
    """The first source is kept for all calls."""

    kept = None

    def memory(self, batch):
        if self.kept is None or len(self.kept[1]) != batch.size:
            self.kept = super().memory(batch)
        return self.kept


class KeepsAState(Attends):
    state = 0.0

    def forward(self, batch):
        outputs = super().forward(batch) + self.state
        self.state = outputs[:, -1:].mean().detach()
        return outputs


class OneBuffer(Attends):
    """Every call writes into the tensor that the last one returned."""

    def forward(self, batch):
        outputs = super().forward(batch)
        if getattr(self, "kept", None) is None or self.kept.shape != outputs.shape:
            self.kept = torch.empty_like(outputs)
        with torch.no_grad():
            self.kept.copy_(outputs)
        return self.kept


REFUSED = [
    (ShiftedTwice, "reads_last_entry", r"first react to history\[:, t-2\].*shifted more than once"),
    (DiagonalHidden, "reads_last_entry", "causal mask hides the last entry"),
    (AttendsToPads, "source_padding", r"row 1 alone, without its source padding.*context\['source_mask'\]"),
    (MaskInverted, "source_padding", "must not be inverted"),
    (MeanOverPads, "source_padding", "divide by the number of entries that are there"),
    (PositionsFromTheEnd, "source_padding", "padding of the source reaches them"),
    (Probabilities, "logits", "return logits"),
    (NormsInTraining, "training_mode", r"history\[\d\] changes.*BatchNorm1d takes its statistics over all positions"),
    (LooksAheadInTraining, "training_mode", "outputs before position"),
    (TargetsInTraining, "training_mode", "only batch.targets change"),
    (ReadsTheMask, "reads_mask", "when only mask of the batch change"),
    (ChangesItsBatch, "inputs_untouched", r"batch\.context\['source'\] in place"),
    (ChangesHistory, "inputs_untouched", "batch.history in place"),
    (KeepsASource, "rows_independent", "kept from an earlier call"),
    (KeepsAState, "deterministic", "keep nothing from one call for the next"),
    (OneBuffer, "deterministic", "writes into the tensor that it returned"),
    (NothingToLearn, "learning", "nothing would be learned"),
    (FixedLength, "length_inert", "tried on the batch's first 1 of 8 positions with the context unchanged"),
]  # fmt: skip
WARNED = [
    (NoPositions, "history_order", "needs positions"),
    (BlindToSourceOrder, "source_order", "encoder needs positions"),
    (IgnoresContext, "uses_context", "feed batch.context"),
    (NormsTheSource, "training_mode", "outputs of row 0 move .* in training mode alone: batch normalisation"),
]
RIGHT = [Attends, lambda: Attends(3), ById, LogProbabilities, NormsFrozen, Dropped]


@pytest.mark.parametrize(("model", "name", "text"), REFUSED)
def test_a_wrong_model_is_refused_by_name_with_what_was_tried(model, name, text):
    refused(rf"(?m)^{name}: .*{text}", fr.check_model, model(), batch_of())


@pytest.mark.parametrize(("model", "name", "text"), WARNED)
def test_what_may_be_meant_so_is_a_warning_that_is_seen(model, name, text):
    with warnings.catch_warnings(record=True, action="always") as seen:
        report = fr.check_model(model(), batch_of())
    assert not report.refused
    assert len(seen) == len(report.warnings)
    assert any(re.search(rf"^check_model: {name}: .*{text}", str(warning.message)) for warning in seen)


@pytest.mark.parametrize("padding", ["right", "left", None])
@pytest.mark.parametrize("make", RIGHT)
def test_a_right_model_passes_in_every_mode_and_is_left_as_it_was(make, padding):
    model = make()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    for mode in (True, False):
        assert not fr.check_model(model.train(mode), batch_of(padding=padding)).refused
        assert model.training is mode
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


class Steps(nn.Module):
    """A Stepper with an LSTM's two parts and a count; the cell and the count are read by no output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding, self.first = nn.Embedding(VOCAB, SIZE), nn.Parameter(torch.randn(SIZE))
        self.cell, self.out, self.position = nn.LSTMCell(SIZE, SIZE), nn.Linear(SIZE, VOCAB), nn.Embedding(9, SIZE)

    def forward(self, batch):
        state, outputs = self.start(batch), []
        for t in range(batch.time):
            outputs.append(Steps.output(self, state) if isinstance(state, dict) else self.output(state))
            state = self.step(state, self.embed(batch.history[:, t])) if t + 1 < batch.time else state
        return torch.stack(outputs, 1)

    def start(self, batch):
        h, c = self.cell(self.first.expand(batch.size, -1))
        return {"h": h, "c": c, "count": torch.zeros(batch.size, dtype=torch.int64)}

    def embed(self, entries):
        return self.embedding(entries)

    def step(self, state, inputs):
        h, c = self.cell(inputs + self.position(state["count"]), (state["h"], state["c"]))
        return {"h": h, "c": c, "count": state["count"] + 1}

    def output(self, state, rows=None):
        return self.out(state["h"] if rows is None else state["h"][rows])

    def select(self, state, rows):
        return {name: part[rows] for name, part in state.items()}


class CellInPlace(Steps):
    def step(self, state, inputs):
        after = super().step(state, inputs)
        state["c"].data.copy_(after["c"])
        return after | {"c": state["c"]}


class CountInPlace(Steps):
    def step(self, state, inputs):
        after = super().step(state, inputs)
        state["count"] += 1
        return after | {"count": state["count"]}


class OutputInPlace(Steps):
    def output(self, state, rows=None):
        state["c"].mul_(0.5)
        return super().output(state, rows)


class Held:
    """A state that nobody looks into."""

    def __init__(self, parts):
        self.parts = parts


class OpaqueRight(Steps):
    def start(self, batch):
        return Held(super().start(batch))

    def step(self, state, inputs):
        return Held(super().step(state.parts, inputs))

    def output(self, state, rows=None):
        return super().output(state.parts, rows)

    def select(self, state, rows):
        return Held(super().select(state.parts, rows))


class OpaqueInPlace(OpaqueRight):
    def step(self, state, inputs):
        after = super().step(state, inputs)
        state.parts["c"].data.copy_(after.parts["c"])
        return after


class SelectsHalf(Steps):
    """The cell stays with its old rows."""

    def select(self, state, rows):
        selected = super().select(state, rows)
        return selected | {"c": state["c"][: len(rows)]} if len(rows) <= len(state["c"]) else selected


WRONG_STEPS = [
    (CellInPlace, "stepper_state", r"step changes state\['c'\], which it takes, in place"),
    (CountInPlace, "stepper_state", r"step changes state\['count'\]"),
    (OutputInPlace, "stepper_state", r"output changes state\['c'\]"),
    (OpaqueInPlace, "stepper_state", "after other steps were taken from the same states"),
    (SelectsHalf, "stepper_select", "every part of the state"),
]


@pytest.mark.parametrize(("model", "name", "text"), WRONG_STEPS)
def test_a_state_changed_in_place_in_any_part_is_seen(model, name, text):
    refused(rf"(?m)^{name}: .*{text}", fr.check_model, model(), batch_of().replace(context=None))


@pytest.mark.parametrize("model", [Steps, OpaqueRight])
def test_a_right_stepper_passes(model):
    fr.check_model(model(), batch_of().replace(context=None))


def test_a_layer_or_a_width_with_a_methods_name_is_no_method():
    class Named(Steps):
        def __init__(self):
            super().__init__()
            self.hidden, self.head, self.read = SIZE, nn.Linear(SIZE, VOCAB), nn.Linear(SIZE, SIZE)

    model, batch = Named(), batch_of().replace(context=None)
    report = fr.check_model(model, batch)
    assert report["split_equals_forward"].status == report["read_equals_steps"].status == "not applicable"
    for engine in ("step", "jacobi"):
        fr.scheduled_sampling(0.5, engine=engine)(model, batch, step=0)
    fr.generate(model, batch, length=3)


WORDS = [torch.tensor([1, 2, 3, 4, 0]), torch.tensor([4, 0]), torch.tensor([3, 1, 0]), torch.tensor([2, 0])]


def collate(words: list[Tensor]) -> Batch:
    """A source of ids alone, as long as the target; nothing in the context tells of its padding."""
    ids = nn.utils.rnn.pad_sequence(words, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(word) for word in words])[:, None]
    return Batch(ids, ids, mask, {"source": (ids + 1) * mask})


class ReadsPads(Attends):
    def memory(self, batch):
        source = batch.context["source"]
        return self.source(source) + self.positions(source.shape[1]), torch.zeros_like(source, dtype=torch.bool)


class LeavesPads(ReadsPads):
    def memory(self, batch):
        return super().memory(batch)[0], batch.context["source"] == 0


def test_each_example_alone_equals_itself_in_a_batch():
    report = fr.check_model(LeavesPads(), examples=WORDS, collate=collate)
    assert report["alone_equals_batch"].status == report["source_padding"].status == "ok"
    with pytest.warns(UserWarning, match="source_padding: .*id 0 ends rows and looks like one"):
        fr.check_model(ReadsPads(), collate(WORDS))  # nothing marks its padding
    alone = r"^alone_equals_batch: outputs of example 1 alone are .* in a batch of 4"
    assert len(refused(alone, fr.check_model, ReadsPads(), collate(WORDS), examples=WORDS, collate=collate)) == 1

    def cut(words):
        return collate([word[: 5 - len(words)] for word in words])

    for text, arguments in (
        ("alone_equals_batch: example 0 has other targets", {"collate": cut}),
        ("examples and collate go together", {}),
        ("collate must make a freerun.Batch", {"collate": lambda words: words}),
        ("1 rows of 4 examples", {"collate": lambda words: collate(words[:1])}),
    ):
        refused(text, fr.check_model, LeavesPads(), examples=WORDS, **arguments)
    refused("needs a freerun.Batch to try the model on, or examples and .*; got NoneType", fr.check_model, LeavesPads())


def test_targets_in_the_context_are_a_warning_and_only_where_they_are_read():
    batch = batch_of()
    batch = batch.replace(context=batch.context | {"labels": batch.targets})
    with pytest.warns(UserWarning, match=r"holds_targets: context\['labels'\] holds the targets"):
        fr.check_model(TargetsInContext(), batch)
    fr.check_model(Attends(), batch)


def test_a_mask_that_marks_padding_is_refused():
    batch = batch_of()
    refused(r"mask_polarity: .* all hold 0 .* use ~mask", fr.check_model, Attends(), batch.replace(mask=~batch.mask))


def test_values_a_model_of_the_last_entry_alone_and_a_delayed_one():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(VALUES, SIZE), nn.Tanh(), nn.Linear(SIZE, VALUES))

    def after(delay):
        return lambda batch: net(nn.functional.pad(batch.history, (0, 0, delay, 0))[:, : batch.time])

    # right: the next value is a function of the last alone
    assert fr.check_model(after(1), values_of())["history_order"].status == "not applicable"
    refused(r"reads_last_entry: .*history\[:, t-2\]", fr.check_model, after(2), values_of())


def test_the_price_does_not_grow_with_the_batch_or_its_length():
    calls = []
    counts = changed(
        positions=lambda m, time: torch.arange(time)[:, None] / 50.0 + torch.zeros(SIZE),
        forward=then(lambda b: calls.append(b.size), Attends.forward),
    )
    counted = []
    for time in (12, 40, 120):
        calls.clear()
        ids = torch.randint(0, VOCAB, (20, time), generator=torch.Generator().manual_seed(0))
        context = {"source": torch.randint(1, SOURCE, (20, 4)), "source_mask": torch.ones(20, 4, dtype=torch.bool)}
        fr.check_model(counts(), Batch(ids, context=context))
        counted.append(len(calls))
        assert max(calls) == 8
    assert counted[0] < counted[1] == counted[2] <= 75
