import math

import pytest
import torch
from torch import Tensor

import freerun as fr
from builders import ForwardOnly
from freerun.batch import Batch
from freerun.draws import Sample
from freerun.generation import generate
from freerun.models.article import Seq2SeqModel
from freerun.models.transformer import TransformerLM, TransformerSeq2Seq
from oracles_generate import SteppedTree, Tree, beam_search, log_probs_of

VOCAB = 5
PROMPTS = torch.tensor([3, 0, 1, 4, 1])
"""Known entries of each row, one of them none."""


def language_model(positions: str = "rope") -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(VOCAB, size=8, layers=2, heads=2, positions=positions, dropout=0.3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def translator() -> TransformerSeq2Seq:
    torch.manual_seed(0)
    model = TransformerSeq2Seq(6, VOCAB, size=8, layers=1, heads=2, dropout=0.3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def recurrent() -> fr.models.RecurrentSeq2Seq:
    torch.manual_seed(0)
    model = fr.models.RecurrentSeq2Seq(6, VOCAB, size=8, dropout=0.3).double()
    with torch.no_grad():
        model.out.weight.mul_(8)
    return model


MODELS = {
    "rope": language_model, "learned": lambda: language_model("learned"),
    "forward only": lambda: ForwardOnly(language_model()), "translator": translator, "recurrent": recurrent,
    "tree": lambda: Tree(VOCAB, key=1), "stepped tree": lambda: SteppedTree(VOCAB, key=1),
}  # fmt: skip
LANGUAGE_MODELS = ("rope", "learned", "forward only")


def prompted(kind: str, told: Tensor, time: int = 9) -> Batch:
    """Random ids whose first ``told`` entries are known, the rest to be said."""
    g = torch.Generator().manual_seed(2)
    size = len(told)
    ids = torch.randint(0, VOCAB, (size, time), generator=g)
    said = torch.arange(time) >= told[:, None]
    context = None
    if kind in ("translator", "recurrent"):
        mask = torch.arange(4) < torch.randint(1, 5, (size, 1), generator=g)
        context = {"source": torch.randint(1, 6, (size, 4), generator=g) * mask, "source_mask": mask}
    elif kind.endswith("tree"):
        context = torch.arange(size) * 7 + 3
    return Batch(ids, ids, said, context=context, eligible=said, rows=torch.arange(size) + 20)


def left_padded(batch: Batch, told: Tensor) -> Batch:
    """The same prompts, moved to the right so that all end together; rubbish stands before them."""
    longest, time = int(told.max()), batch.time
    index = torch.arange(longest + time) - (longest - told)[:, None]
    ids = batch.history.gather(1, index.clamp(0, time - 1))
    ids = torch.where(index < 0, torch.arange(longest + time) % VOCAB, ids)
    present = (index >= 0)[:, :longest]
    said = (torch.arange(longest + time) >= longest).expand_as(ids)
    return Batch(ids, ids, said, context={"present": present}, eligible=said, rows=batch.rows)


def evaluated(model):
    return model.eval() if isinstance(model, torch.nn.Module) else model


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", list(MODELS))
def test_each_row_goes_on_from_its_own_prompt_as_the_naive_search_does(kind, beams):
    model, batch = evaluated(MODELS[kind]()), prompted(kind, PROMPTS)
    found = generate(model, batch, length=5, end=0, beams=beams, n_best=beams)
    for row, count in enumerate(PROMPTS.tolist()):
        rule, prompt = log_probs_of(model, batch, row), tuple(batch.history[row, :count].tolist())
        expected = beam_search(lambda entries: rule((*prompt, *entries)), beams, 5, 0, 0.0, beams)  # noqa: B023
        entries, scores = found.entries[row].view(beams, 5), found.scores[row].view(beams)
        for i, hypothesis in enumerate(expected):
            assert entries[i].tolist() == [*hypothesis.entries, *[0] * (5 - len(hypothesis.entries))]
            assert float(scores[i]) == pytest.approx(hypothesis.score, abs=1e-10)


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
def test_free_running_is_told_what_generate_says(kind, draw):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS)
    batches = [(batch, PROMPTS)]
    if kind in LANGUAGE_MODELS:
        batches.append((left_padded(batch, PROMPTS), torch.full_like(PROMPTS, 4)))
    for given, told in batches:
        said = generate(model, given, length=given.time - int(told.min()), draw=draw, key=9).entries
        for fed in (
            fr.free_running(draw=draw).transform(model, given, step=0, key=9).history,
            fr.scheduled_sampling(0.0, draw=draw).transform(model, given, step=0, key=9).history,
        ):
            for row, count in enumerate(told.tolist()):
                assert torch.equal(fed[row, :count], given.history[row, :count])
                assert torch.equal(fed[row, count:], said[row, : given.time - count])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", ["rope", "forward only", "recurrent"])
def test_nothing_after_the_prompt_is_seen_and_all_of_it_is(kind, beams):
    model, batch = MODELS[kind](), prompted(kind, PROMPTS)
    said = batch.mask
    other = batch.made(
        targets=(batch.targets + 1) % VOCAB,
        history=torch.where(said, 10**9, batch.history),  # an id that no embedding has
        weights=torch.where(said, math.nan, 1.0),
    )
    ours, poisoned = (generate(model, each, length=6, end=0, beams=beams) for each in (batch, other))
    assert torch.equal(ours.entries, poisoned.entries)
    assert torch.equal(ours.scores, poisoned.scores)
    told_otherwise = batch.replace(history=torch.where(said, batch.history, (batch.history + 1) % VOCAB))
    moved = (generate(model, told_otherwise, length=6, end=0, beams=beams).scores - ours.scores).abs() > 1e-9
    assert moved.tolist() == (PROMPTS > 0).tolist()


def test_a_prompt_is_read_in_one_call(monkeypatch):
    model, batch, calls = language_model(), prompted("rope", PROMPTS), []
    read = type(model)._read
    monkeypatch.setattr(type(model), "_read", lambda self, *args: calls.append(args[2]) or read(self, *args))
    generate(model, batch, length=6)
    told = [counts.tolist() for counts in calls if counts is not None]
    assert told == [PROMPTS.tolist()]
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
    told = torch.tensor([2, 0, 5, 2])
    known = torch.arange(5) < told[:, None]
    history = values.masked_fill(~known[..., None], math.nan)
    for made in (model, ForwardOnly(model)):
        batch = Batch(values, mask=~known, context=context).made(targets=history, history=history)
        found = generate(made, batch, length=3)
        ours = found.entries
        assert (found.lengths.tolist(), found.scores.tolist(), ours.requires_grad) == ([3] * 4, [0.0] * 4, False)
        for row, count in enumerate(told.tolist()):
            _, hidden = model.encoder(context[row][:, None])
            fed, said = torch.zeros(1, 1, 3, dtype=torch.float64), []
            for t in range(count + 3):
                out, hidden = model.decoder(fed, hidden)
                said.append(model.fc(out))
                fed = values[row, t].view(1, 1, 3) if t < count else said[-1]
            torch.testing.assert_close(ours[row], torch.cat(said[count:])[:, 0])


def test_an_entry_that_counts_in_the_loss_is_said_and_not_told():
    ids = torch.tensor([[3, 1, 2]])
    said = torch.ones_like(ids, dtype=torch.bool)
    for eligible in (said, ~said):
        ours = generate(Tree(4), Batch(ids, ids, said, context=torch.ones(1).long(), eligible=eligible), length=3)
        blank = Batch(ids * 0, ids * 0, said, context=torch.ones(1).long())
        assert torch.equal(ours.scores, generate(Tree(4), blank, length=3).scores)
