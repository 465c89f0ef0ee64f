"""Generation equals the naive search, with and without prompts, and sees nothing of gold."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

import freerun as fr
from builders import ForwardOnly, refused
from freerun.batch import Batch
from freerun.draws import Sample
from freerun.generation import _top, generate
from freerun.models.article import Seq2SeqModel
from freerun.models.transformer import TransformerLM, TransformerSeq2Seq
from oracles_generate import SteppedTree, Tree, beam_search, everything, log_probs_of

VOCAB = 5
PROMPTS = torch.tensor([3, 0, 1, 4, 1])  # known entries of each row, one of them none


def grown(model, factor: float = 4, part: str = ""):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.mul_(factor)
    return model


def recurrent(attention: str | None = "luong", cell: str = "lstm") -> fr.models.RecurrentSeq2Seq:
    torch.manual_seed(0)
    model = fr.models.RecurrentSeq2Seq(6, VOCAB, size=8, cell=cell, attention=attention, dropout=0.3).double()
    return grown(model, 8, "out.weight")


def language_model(positions: str = "rope") -> TransformerLM:
    torch.manual_seed(0)
    return grown(TransformerLM(VOCAB, size=8, layers=2, heads=2, positions=positions, dropout=0.3).double())


def translator() -> TransformerSeq2Seq:
    torch.manual_seed(0)
    return grown(TransformerSeq2Seq(6, VOCAB, size=8, layers=1, heads=2, dropout=0.3).double())


MODELS = {
    "rope": language_model, "learned": lambda: language_model("learned"), "translator": translator,
    "forward only": lambda: ForwardOnly(language_model()), "recurrent": recurrent,
    "tree": lambda: Tree(VOCAB, key=1), "stepped tree": lambda: SteppedTree(VOCAB, key=1),
}  # fmt: skip
LANGUAGE_MODELS = ("rope", "learned", "forward only")


def prompted(kind: str, known: Tensor, time: int = 9) -> Batch:
    """Random ids whose first ``known`` entries are the prompt, the rest to be predicted."""
    g = torch.Generator().manual_seed(2)
    size = len(known)
    ids = torch.randint(0, VOCAB, (size, time), generator=g)
    own = torch.arange(time) >= known[:, None]
    context = None
    if kind in ("translator", "recurrent"):
        mask = torch.arange(4) < torch.randint(1, 5, (size, 1), generator=g)
        context = {"source": torch.randint(1, 6, (size, 4), generator=g) * mask, "source_mask": mask}
    elif kind.endswith("tree"):
        context = torch.arange(size) * 7 + 3
    return Batch(ids, ids, own, context=context, eligible=own, rows=torch.arange(size) + 20)


def left_padded(batch: Batch, known: Tensor) -> Batch:
    """The same prompts, moved to the right so that all end together; rubbish stands before them."""
    longest, time = int(known.max()), batch.time
    index = torch.arange(longest + time) - (longest - known)[:, None]
    ids = batch.history.gather(1, index.clamp(0, time - 1))
    ids = torch.where(index < 0, torch.arange(longest + time) % VOCAB, ids)
    own = (torch.arange(longest + time) >= longest).expand_as(ids)
    return Batch(ids, ids, own, context={"present": (index >= 0)[:, :longest]}, eligible=own, rows=batch.rows)


def evaluated(model):
    return model.eval() if isinstance(model, torch.nn.Module) else model


def tree_batch(size: int) -> Batch:
    blank = torch.zeros(size, 1, dtype=torch.int64)
    return Batch(blank, blank, blank == 0, context=torch.arange(size) * 7 + 3)


def source_batch(size: int, time: int = 4, vocab: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(1, 6, (size, 4), generator=generator)
    mask = torch.arange(4) < torch.randint(1, 5, (size, 1), generator=generator)
    ids = torch.randint(0, vocab, (size, time), generator=generator)
    return Batch(ids, ids, ids >= 0, context={"source": source * mask, "source_mask": mask})


def assert_hypotheses(generated, row, expected, length, fill):
    entries, lengths, scores = generated.entries[row], generated.lengths[row], generated.scores[row]
    if entries.dim() == 1:
        entries, lengths, scores = entries[None], lengths[None], scores[None]
    for i, hypothesis in enumerate(expected):
        assert entries[i].tolist() == [*hypothesis.entries, *[fill] * (length - len(hypothesis.entries))]
        assert float(scores[i]) == pytest.approx(hypothesis.score, abs=1e-10)
        ended = hypothesis.entries[-1] == fill
        assert int(lengths[i]) == len(hypothesis.entries) - ended


@pytest.mark.parametrize("penalty", [0.0, 0.8])
@pytest.mark.parametrize("kind", [Tree, SteppedTree])
def test_a_beam_as_wide_as_everything_finds_the_global_best(kind, penalty):
    vocab, length = 3, 4
    batch, model = tree_batch(4), kind(vocab, key=5)
    best = generate(model, batch, length=length, end=0, beams=vocab**length, n_best=6, length_penalty=penalty)
    assert best.entries.shape == (4, 6, length)
    for row in range(4):
        expected = everything(log_probs_of(Tree(vocab, key=5), batch, row), vocab, length, 0, penalty)[:6]
        assert_hypotheses(best, row, expected, length, 0)


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize(("end", "penalty"), [(0, 0.0), (2, 0.7), (0, 2.0), (None, 0.0)])
@pytest.mark.parametrize("kind", [Tree, SteppedTree])
def test_beam_search_equals_the_naive_one(kind, beams, end, penalty):
    for seed in range(6):
        vocab, length = 3 + seed % 3, 5
        batch, model = tree_batch(3), kind(vocab, key=seed)
        for n_best in {1, beams}:
            ours = generate(model, batch, length=length, end=end, beams=beams, n_best=n_best, length_penalty=penalty)
            for row in range(3):
                rule = log_probs_of(Tree(vocab, key=seed), batch, row)
                expected = beam_search(rule, beams, length, end, penalty, n_best)
                assert_hypotheses(ours, row, expected, length, -1 if end is None else end)


@pytest.mark.parametrize("attention", ["luong", None])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_models_stepped_and_by_forward(cell, attention):
    model, batch = recurrent(attention, cell), source_batch(5)
    for beams in (1, 3):
        stepped = generate(model, batch, length=6, end=0, beams=beams)
        forward = generate(ForwardOnly(model), batch, length=6, end=0, beams=beams)
        assert torch.equal(stepped.entries, forward.entries)
        torch.testing.assert_close(stepped.scores, forward.scores)
        model.eval()
        for row in range(5):
            expected = beam_search(log_probs_of(model, batch, row), beams, 6, 0, 0.0, 1)
            assert_hypotheses(stepped, row, expected, 6, 0)
        model.train()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("wrap", [ForwardOnly, lambda model: model], ids=["forward only", "stepped"])
def test_gold_is_never_seen(wrap, beams):
    model, batch = recurrent().eval(), source_batch(5)
    other = (batch.targets + 1) % 5
    half = torch.arange(5)[:, None] % 2 == torch.zeros(1, 4)
    eligible = torch.ones_like(half)
    poisoned = batch.made(targets=other, history=other, mask=half, weights=half * math.nan, eligible=eligible)
    a, b = (generate(wrap(model), each, length=6, end=0, beams=beams) for each in (batch, poisoned))
    assert torch.equal(a.entries, b.entries)
    assert torch.equal(a.scores, b.scores)


def test_after_the_end_there_is_only_the_end():
    ours = generate(SteppedTree(4, key=1), tree_batch(40), length=8, end=2)
    for entries, length in zip(ours.entries.tolist(), ours.lengths.tolist(), strict=True):
        assert 2 not in entries[:length]
        assert entries[length:] == [2] * (8 - length)
    assert len(set(ours.lengths.tolist())) > 3


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_that_have_ended_leave_the_model(beams):
    model = SteppedTree(4, key=1)
    ours = generate(model, tree_batch(64), length=12, end=2, beams=beams)
    needed = int((ours.lengths).clamp(max=11).sum())
    # three quarters of a batch may have to wait for the rest, never more
    assert model.stepped <= 1.35 * beams * needed + 64 or beams > 1
    assert model.stepped < 64 * 11 * beams * 0.8
    alone = [
        generate(SteppedTree(4, key=1), tree_batch(64).select(torch.tensor([row])), length=12, end=2, beams=beams)
        for row in range(0, 64, 9)
    ]
    assert torch.equal(torch.cat([each.entries for each in alone]), ours.entries[::9])


def test_sampling_has_the_law_of_the_model_and_is_a_function_of_the_key():
    size, vocab, length = 20_000, 3, 2
    blank = torch.zeros(size, 1, dtype=torch.int64)
    batch = Batch(blank, blank, blank == 0, context=torch.zeros(size, dtype=torch.int64))
    model = SteppedTree(vocab, key=3, spread=2.0)
    ours = generate(model, batch, length=length, draw="sample", key=11)
    rule = log_probs_of(Tree(vocab, key=3, spread=2.0), batch, 0)
    counts = torch.bincount(ours.entries[:, 0] * vocab + ours.entries[:, 1], minlength=vocab**2).double()
    expected = size * torch.tensor([math.exp(rule(())[a] + rule((a,))[b]) for a, b in product(range(vocab), repeat=2)])
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 31.8  # chi-square, 8 degrees of freedom: exceeded once in 10,000 right programs
    assert float(ours.scores[0]) == pytest.approx(
        rule(())[ours.entries[0, 0]] + rule((int(ours.entries[0, 0]),))[ours.entries[0, 1]]
    )
    same = generate(model, batch, length=length, draw="sample", key=11)
    assert torch.equal(same.entries, ours.entries)
    assert not torch.equal(generate(model, batch, length=length, draw="sample").entries, ours.entries)


@pytest.mark.parametrize("coupling", ["inverse_cdf", "gumbel"])
def test_sampling_depends_on_the_row_number_and_not_on_its_place_or_the_length(coupling):
    model, batch, draw = SteppedTree(6, key=2), tree_batch(30), Sample(coupling=coupling)
    ours = generate(model, batch, length=9, end=0, draw=draw, key=4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    moved = generate(model, batch.select(order), length=9, end=0, draw=draw, key=4)
    assert torch.equal(moved.entries, ours.entries[order])
    longer = generate(model, batch, length=14, end=0, draw=draw, key=4)
    assert torch.equal(longer.entries[:, :9], ours.entries)
    forward = generate(Tree(6, key=2), batch, length=9, end=0, draw=draw, key=4)
    assert torch.equal(forward.entries, ours.entries)


def test_ties_go_to_the_lowest_index():
    flat = generate(SteppedTree(4, spread=0.0), tree_batch(2), length=2, beams=4, n_best=4)
    assert flat.entries[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert generate(Tree(4, spread=0.0), tree_batch(2), length=2).entries.tolist() == [[0, 0]] * 2


def test_top_keeps_the_lowest_places_among_equals():
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 13):
        scores = torch.randint(0, 3, (50, 12), generator=generator).double()
        values, places = _top(scores, count)
        for row in range(50):
            expected = sorted(range(12), key=lambda place: -float(scores[row, place]))[:count]
            assert places[row].tolist() == expected
            assert torch.equal(values[row], scores[row, expected])


def test_symbols_of_probability_zero_are_never_predicted():
    def only_two(batch: Batch) -> torch.Tensor:
        outputs = torch.zeros(batch.size, batch.time, 4)
        outputs[..., [0, 2]] = -torch.inf
        return outputs

    ours = generate(only_two, tree_batch(1), length=1, beams=4, n_best=3)
    assert ours.entries[0, :2].tolist() == [[1], [3]]
    assert ours.scores[0, 2] == -torch.inf
    assert int(ours.lengths[0, 2]) == 0


def test_modes_come_back_and_nothing_is_learned():
    model, batch = recurrent(), source_batch(5)
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    a = generate(model, batch, length=6, end=0)
    b = generate(model, batch, length=6, end=0)
    assert torch.equal(a.scores, b.scores)  # dropout was off
    assert [module.training for module in model.modules()] == before
    assert not a.scores.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_source_is_encoded_once(monkeypatch):
    model, batch, calls = recurrent(), source_batch(5), []
    forward = type(model.encoder).forward
    monkeypatch.setattr(type(model.encoder), "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    generate(model, batch, length=6, beams=2)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"length": 0, "beams": -1, "n_best": 0}, ["length must", "got 0", "beams must", "got -1", "n_best must"]),
        ({"length": 2, "beams": 2, "n_best": 3}, ["n_best must not exceed beams = 2; got 3"]),
        ({"length": 2, "draw": "nucleus", "length_penalty": -1}, ["draw must be one of", "length_penalty must"]),
    ],
)
def test_bad_arguments_are_named_all_at_once(arguments, parts):
    refused(parts, generate, Tree(4), tree_batch(2), **arguments)


def test_values_have_no_beams_no_end_and_no_sampling():
    values = torch.zeros(1, 2, 3)
    batch = Batch(values, values, torch.ones(1, 2, dtype=torch.bool), context=torch.zeros(1, 2, 2))
    assert len(refused("", generate, Seq2SeqModel(2, 4, 3), batch, length=3, beams=2, end=0, draw="sample")) == 3


def test_nan_outputs_are_refused():
    for beams in (1, 2):
        refused(
            "NaN", generate, lambda b: torch.full((b.size, b.time, 4), math.nan), tree_batch(2), length=3, beams=beams
        )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", list(MODELS))
def test_each_row_goes_on_from_its_own_prompt_as_the_naive_search_does(kind, beams):
    model, batch = evaluated(MODELS[kind]()), prompted(kind, PROMPTS)
    found = generate(model, batch, length=5, end=0, beams=beams, n_best=beams)
    for row, count in enumerate(PROMPTS.tolist()):
        rule, prompt = log_probs_of(model, batch, row), tuple(batch.history[row, :count].tolist())
        expected = beam_search(lambda entries: rule((*prompt, *entries)), beams, 5, 0, 0.0, beams)  # noqa: B023
        assert_hypotheses(found, row, expected, 5, 0)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_left_padding_changes_nothing(kind, beams):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS)
    ragged = generate(model, batch, length=5, end=0, beams=beams)
    padded = generate(model, left_padded(batch, PROMPTS), length=5, end=0, beams=beams)
    assert torch.equal(padded.entries, ragged.entries)
    torch.testing.assert_close(padded.scores, ragged.scores, rtol=0, atol=1e-10)
    for row, count in enumerate(PROMPTS.tolist()):
        ids = batch.history[row : row + 1, : max(count, 1)]
        one = Batch(ids, ids, torch.full_like(ids, count == 0, dtype=torch.bool))
        alone = generate(model, one, length=5, end=0, beams=beams)
        assert torch.equal(alone.entries[0], ragged.entries[row])
        assert float(alone.scores[0]) == pytest.approx(float(ragged.scores[row]), abs=1e-10)


@pytest.mark.parametrize(
    "draw", ["greedy", Sample(top_k=4), Sample(coupling="gumbel")], ids=["greedy", "inverse_cdf", "gumbel"]
)
@pytest.mark.parametrize("kind", list(MODELS))
def test_free_running_feeds_what_generate_returns(kind, draw):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS)
    batches = [(batch, PROMPTS)]
    if kind in LANGUAGE_MODELS:
        batches.append((left_padded(batch, PROMPTS), torch.full_like(PROMPTS, 4)))
    for each, known in batches:
        own = generate(model, each, length=each.time - int(known.min()), draw=draw, key=9).entries
        for method in (fr.free_running(draw=draw), fr.scheduled_sampling(0.0, draw=draw)):
            fed = method.transform(model, each, step=0, key=9).history
            for row, count in enumerate(known.tolist()):
                assert torch.equal(fed[row, :count], each.history[row, :count])
                assert torch.equal(fed[row, count:], own[row, : each.time - count])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", ["rope", "forward only", "recurrent"])
def test_nothing_after_the_prompt_is_seen_and_all_of_it_is(kind, beams):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS)
    own, foreign = batch.mask, 10**9  # an id that no embedding has
    history, weights = torch.where(own, foreign, batch.history), torch.where(own, math.nan, 1.0)
    other = batch.made(targets=(batch.targets + 1) % VOCAB, history=history, weights=weights)
    ours, poisoned = (generate(model, each, length=6, end=0, beams=beams) for each in (batch, other))
    assert torch.equal(ours.entries, poisoned.entries)
    assert torch.equal(ours.scores, poisoned.scores)
    other_prompts = batch.replace(history=torch.where(own, batch.history, (batch.history + 1) % VOCAB))
    moved = (generate(model, other_prompts, length=6, end=0, beams=beams).scores - ours.scores).abs() > 1e-9
    assert moved.tolist() == (PROMPTS > 0).tolist()


def test_a_prompt_is_read_in_one_call(monkeypatch):
    model, batch, calls = language_model(), prompted("rope", PROMPTS), []
    read = type(model)._read
    monkeypatch.setattr(type(model), "_read", lambda self, *args: calls.append(args[2]) or read(self, *args))
    generate(model, batch, length=6)
    assert [counts.tolist() for counts in calls if counts is not None] == [PROMPTS.tolist()]
    assert len(calls) == 1 + 1 + 5  # the start vector, the prompts, entry by entry


def test_samples_do_not_depend_on_who_stands_beside_a_row():
    order = torch.tensor([4, 2, 0, 3, 1])
    for kind in ("rope", "recurrent", "stepped tree"):
        model, batch = MODELS[kind](), prompted(kind, PROMPTS)
        ours = generate(model, batch, length=7, end=0, draw="sample", key=4)
        moved = generate(model, batch.select(order), length=7, end=0, draw="sample", key=4)
        assert torch.equal(moved.entries, ours.entries[order])
        assert torch.equal(moved.lengths, ours.lengths[order])


def test_values_go_on_from_a_prompt():
    torch.manual_seed(0)
    model = Seq2SeqModel(2, 8, 3).double()
    values, context = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 6, 2, dtype=torch.float64)
    counts = torch.tensor([2, 0, 5, 2])
    known = torch.arange(5) < counts[:, None]
    history = values.masked_fill(~known[..., None], math.nan)
    for made in (model, ForwardOnly(model)):
        batch = Batch(values, mask=~known, context=context).made(targets=history, history=history)
        found = generate(made, batch, length=3)
        ours = found.entries
        assert (found.lengths.tolist(), found.scores.tolist(), ours.requires_grad) == ([3] * 4, [0.0] * 4, False)
        for row, count in enumerate(counts.tolist()):
            _, hidden = model.encoder(context[row][:, None])
            fed, outputs = torch.zeros(1, 1, 3, dtype=torch.float64), []
            for t in range(count + 3):
                out, hidden = model.decoder(fed, hidden)
                outputs.append(model.fc(out))
                fed = values[row, t].view(1, 1, 3) if t < count else outputs[-1]
            torch.testing.assert_close(ours[row], torch.cat(outputs[count:])[:, 0])


def test_an_entry_that_counts_in_the_loss_is_predicted_and_not_read():
    ids = torch.tensor([[3, 1, 2]])
    every = torch.ones_like(ids, dtype=torch.bool)
    for eligible in (every, ~every):
        ours = generate(Tree(4), Batch(ids, ids, every, context=torch.ones(1).long(), eligible=eligible), length=3)
        blank = Batch(ids * 0, ids * 0, every, context=torch.ones(1).long())
        assert torch.equal(ours.scores, generate(Tree(4), blank, length=3).scores)


def same_as_one_call(model, batch: Batch, parts: tuple[int, ...], **options) -> None:
    """Entries, lengths and scores of a stream are those of one call, to the bit; a state may be gone on from twice."""
    whole = generate(model, batch, length=sum(parts), **options)
    found, state, made = [], True, 0
    for length in parts:
        one = generate(model, batch, length=length, state=state, **options)
        if state is not True:
            again = generate(model, batch, length=length, state=state, **options)
            assert torch.equal(one.entries, again.entries)
        found.append(one)
        state, made = one.state, made + length
        lengths = sum(each.lengths for each in found)
        assert torch.equal(lengths, whole.lengths.clamp_max(made))
    axis = 2 if options.get("num_samples", 1) > 1 else 1
    assert torch.equal(torch.cat([each.entries for each in found], axis), whole.entries)
    torch.testing.assert_close(sum(each.scores for each in found), whole.scores, rtol=1e-12, atol=1e-12)
    assert whole.state is None


@pytest.mark.parametrize("parts", [(3, 5), (1, 1, 6), (7, 1)])
@pytest.mark.parametrize("draw", ["greedy", "sample"])
@pytest.mark.parametrize("kind", MODELS)
def test_two_calls_make_the_entries_of_one(kind, draw, parts):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS if kind in LANGUAGE_MODELS else PROMPTS * 0)
    for end in (None, 0, (0, 2)):
        same_as_one_call(model, batch, parts, draw=draw, end=end, key=4)
    if kind != "tree" and draw == "sample":
        same_as_one_call(model, batch, parts, draw=draw, end=0, key=4, num_samples=3)


def one_step_map() -> fr.models.OneStepMap:
    return fr.models.OneStepMap(torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)))


VALUES = {
    "plain": lambda: fr.models.PlainForecaster(2, size=6),
    "lstm": lambda: fr.models.PlainForecaster(2, size=6, cell="lstm"),
    "transformer": lambda: fr.models.TransformerForecaster(2, size=8, heads=2, layers=2),
    "plrnn": lambda: fr.models.ShallowPLRNN(2, size=9),
    "gaussian": lambda: fr.models.PlainForecaster(2, size=6, head="gaussian"),
    "scaled": lambda: fr.models.WindowScaled(fr.models.RecurrentForecaster(2, size=6), values=2, centre="last"),
    "map": one_step_map, "forward only": lambda: ForwardOnly(fr.models.PlainForecaster(2, size=6)),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_two_calls_make_the_values_of_one(kind):
    torch.manual_seed(0)
    model, x = VALUES[kind]().double(), torch.randn(4, 7, 2, dtype=torch.float64)
    known = 0 if kind in ("map", "scaled") else 3
    own = (torch.arange(7) >= known).expand(4, -1)
    batch = Batch(x, x, own, eligible=own, context={"map": x[:, 0], "scaled": {"past": x[:, :1]}}.get(kind))
    for draw in ("gaussian", fr.draws.Expected("gaussian")) if kind == "gaussian" else ("greedy",):
        for parts in ((3, 4), (1, 1, 5)):
            same_as_one_call(model, batch, parts, key=4, draw=draw)
    if kind == "gaussian":
        same_as_one_call(model, batch, (2, 4), draw="gaussian", num_samples=3)


def test_what_cannot_be_gone_on_from_is_refused():
    model, batch = language_model(), prompted("rope", PROMPTS)
    first = generate(model, batch, length=2, state=True)
    assert repr(first.state) == "Stream(5 rows, 2 entries each)"
    refused("state is that of another model", generate, recurrent(), batch, length=2, state=first.state)
    few = batch.select(torch.arange(2))
    refused("state is of 5 rows; the batch has 2", generate, model, few, length=2, state=first.state)
    refused("state must be True, or the state of a result; got dict", generate, model, batch, length=2, state={})
    refused("beam search keeps no state", generate, model, batch, length=2, state=True, beams=2)
    more = {"draw": "sample", "num_samples": 2, "state": first.state}
    refused("state has num_samples = 1; got 2", generate, model, batch, length=2, **more)
    short = TransformerLM(VOCAB, size=8, layers=1, heads=2, max_positions=6)
    begun = generate(short, prompted("rope", PROMPTS * 0), length=5, state=True)
    refused("max_positions", generate, short, prompted("rope", PROMPTS * 0), length=5, state=begun.state)
