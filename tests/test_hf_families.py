"""Every family: teacher forcing is its own loss, free running its ``generate``, mixtures the full-prefix oracle's."""

from functools import cache
from typing import Any

import pytest
import torch

import freerun as fr
import oracles_hf as oracle
from builders import assert_same_gradients, gradients
from families import CAUSAL, FAMILIES, LENGTHS, PAD, PROMPTS, SEQ2SEQ, VOCAB, collated
from freerun import draws, hf
from freerun.batch import Batch
from freerun.types import Cached, Embedder, Encoder, Split, Stepper
from oracles_hf import KEY, NUMBERS, STEP, Row, assert_histories, engines, full_prefix, predicted, rows_of

# an encoder-decoder of two parts warns of decoder ids beside labels, which are the whole point
NO_WARNING = pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
PADDINGS = ["right", "left"]
# families that share their positions, cache and shift with one that the quick suite keeps; each takes several seconds
LATER = {"qwen3", "gemma3", "bloom", "lfm2", "falcon_h1", "gpt_neox", "cohere", "granite", "marian", "bert2gpt2",
         "m2m_100"}  # fmt: skip
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in LATER else name for name in FAMILIES]
DRAWS = {"greedy": draws.Greedy(), "sample": draws.Sample(), "gumbel": draws.Sample(coupling="gumbel")}


@cache
def built(name: str) -> Any:
    """A family's model; nobody changes it."""
    return FAMILIES[name].build()


@cache
def adapted(name: str) -> Any:
    return hf.adapt(built(name))


def inputs_of(name: str, padding: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return collated(name, FAMILIES[name].dtype if dtype is None else dtype, padding)


def batch_of(name: str, padding: str) -> Batch:
    return adapted(name).batch(**inputs_of(name, padding), rows=torch.tensor(NUMBERS))


def examples(name: str, padding: str) -> list[Row]:
    return rows_of(built(name), inputs_of(name, padding), NUMBERS)


@cache
def oracle_histories(name: str, padding: str, ratio: float, draw: str) -> list[list[int]]:
    """The oracle's histories; a text's do not depend on its padding, an encoder's may."""
    padding = "right" if name in CAUSAL else padding
    return [full_prefix(built(name), row, ratio, draw, KEY, STEP) for row in examples(name, padding)]


def all_engines(m: Any) -> list[Any]:
    return ["auto", *engines(m), *([fr.Window(3)] if isinstance(m, Cached) else [])]


@pytest.mark.parametrize("name", EACH)
def test_a_family_is_lively(name):
    """What is tested with: every entry before moves a prediction, rows differ, and positions matter to free runs."""
    model, row = built(name), examples(name, "right")[0]
    reach = 2 * (model.config.sliding_window - 1) if name == "mistral" else len(row.gold)
    with torch.no_grad():
        before = predicted(model, row, row.gold)
        for t, symbol in enumerate(row.gold):
            other = (*row.gold[:t], (symbol + 1) % VOCAB, *row.gold[t + 1 :])
            moved = (predicted(model, row, other) - before).abs().amax(1)
            assert float(moved[: t + 1].max()) < 1e-6
            assert float(moved[t + 1 : t + 1 + reach].min()) > 1e-4
    histories = oracle_histories(name, "right", 0.0, "greedy")
    assert len({tuple(h) for h in histories}) >= 3
    assert len({symbol for history in histories for symbol in history}) >= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", EACH)
@NO_WARNING
def test_ratio_one_is_the_models_own_loss_and_gradient(name, dtype):
    family = FAMILIES[name]
    model = built(name) if dtype == family.dtype else family.build(dtype)
    m = adapted(name) if dtype == family.dtype else hf.adapt(model)
    half = dtype == torch.float64 and not family.double
    called: list[int] = []
    hook = model.register_forward_hook(lambda *_: called.append(1))
    for padding in ["right"] if half else PADDINGS:  # two of these give NaN on the left in float64
        inputs = inputs_of(name, padding, dtype)
        theirs = model(**oracle.own_arguments(model, inputs)).loss
        expected = gradients(model, theirs)
        rows = rows_of(model, inputs, NUMBERS)
        naive = oracle.loss(model, rows, [list(row.gold) for row in rows])
        naively = gradients(model, naive)
        for method in (fr.teacher_forcing(), fr.scheduled_sampling(1.0)):
            batch = m.batch(**inputs)
            called.clear()
            outcome = method.run(m, batch, STEP, KEY)
            assert len(called) == 1
            assert int(outcome.count) == sum(sum(row.counts) for row in rows)
            # their losses of causal models are taken in float32 whatever the model's type
            assert outcome.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
            assert outcome.loss.item() == pytest.approx(naive.item(), rel=family.tolerance_of(dtype))
            found = gradients(model, outcome.loss)
            # in float32 a batch and its rows one by one differ by so much in the model's own gradient
            assert_same_gradients(found, expected, 5e-6)
            assert_same_gradients(found, naively, family.gradient_tolerance(dtype))
    hook.remove()


@pytest.mark.parametrize("name", EACH)
def test_ratio_zero_is_generate(name):
    """Token for token, up to the end symbol where there is one; the roll-in goes on, and so does the loss."""
    model, m = built(name), adapted(name)
    for padding in PADDINGS:
        batch, rows = batch_of(name, padding), examples(name, padding)
        length = max(len(row.gold) - row.prompt for row in rows)
        free = oracle.generated(model, rows, length).tolist()
        spoken = [free[r][: len(row.gold) - row.prompt] for r, row in enumerate(rows)]
        fed_ids = [[*row.gold[: row.prompt], *spoken[r]] for r, row in enumerate(rows)]
        assert oracle_histories(name, padding, 0.0, "greedy") == fed_ids  # the oracle itself
        for engine in all_engines(m) if padding == "right" else ["auto"]:
            outcome = fr.free_running(draw="greedy", engine=engine).run(m, batch, STEP, KEY)
            assert_histories(outcome.fed, fed_ids)
            assert int(outcome.count) == sum(map(len, spoken)) == outcome.report["replaced"]
        end = oracle.some_end(torch.tensor(free))
        ended = oracle.generated(model, rows, length, end).tolist()
        assert [oracle.until(row, end) for row in ended] == [oracle.until(row, end) for row in free]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", EACH)
def test_mixed_histories_are_the_full_prefix_oracles(name, draw):
    m = adapted(name)
    for padding in PADDINGS:
        batch, rows = batch_of(name, padding), examples(name, padding)
        histories = oracle_histories(name, padding, 0.5, draw)
        pairs = [pair for row, h in zip(rows, histories, strict=True) for pair in zip(row.gold, h, strict=True)]
        changed = sum(a != b for a, b in pairs)
        assert changed >= 4
        for engine in all_engines(m)[1:] if padding == "right" else ["auto"]:
            outcome = fr.scheduled_sampling(0.5, draw=DRAWS[draw], engine=engine).run(m, batch, STEP, KEY)
            assert_histories(outcome.fed, histories)
            assert outcome.report["exact"] == 1.0
            assert outcome.report["disagreeing"] == changed
            assert torch.equal(outcome.fed.history[~batch.replaceable], batch.history[~batch.replaceable])


@pytest.mark.parametrize("name", EACH)
def test_the_loss_on_a_mixed_history_is_that_of_its_prefixes(name):
    family, model, m, rows = FAMILIES[name], built(name), adapted(name), examples(name, "left")
    naive = oracle.loss(model, rows, oracle_histories(name, "left", 0.5, "sample"))
    expected = gradients(model, naive)
    outcome = fr.scheduled_sampling(0.5).run(m, batch_of(name, "left"), STEP, KEY)
    assert outcome.loss.item() == pytest.approx(naive.item(), rel=family.tolerance_of(family.dtype))
    assert_same_gradients(gradients(model, outcome.loss), expected, family.gradient_tolerance(family.dtype))


@pytest.mark.parametrize("name", EACH)
def test_generate_is_generate(name):
    model, m = built(name), adapted(name)
    for padding in PADDINGS:
        inputs = inputs_of(name, padding)
        rows = rows_of(model, inputs, NUMBERS)
        if name in CAUSAL:  # prompts alone
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            known = (inputs["labels"] == -100) & mask.bool()
            keep = known.any(0)
            prompts = {"input_ids": ids.masked_fill(~known, PAD)[:, keep], "attention_mask": known.long()[:, keep]}
        else:
            prompts = {key: value for key, value in inputs.items() if key != "labels"}
        batch = m.batch(**prompts)
        free = oracle.generated(model, rows, 7)
        assert torch.equal(fr.generate(m, batch, length=7).entries, free)
        end = oracle.some_end(free)
        assert torch.equal(fr.generate(m, batch, length=7, end=end).entries, oracle.generated(model, rows, 7, end))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "mamba", "t5", "bart"])
def test_beam_search_is_generates(name):
    model, m, rows = built(name), adapted(name), examples(name, "right")
    inputs = inputs_of(name, "right")
    if name in CAUSAL:
        known = (inputs["labels"] == -100) & inputs["attention_mask"].bool()
        longest = max(PROMPTS)
        batch = m.batch(input_ids=inputs["input_ids"][:, :longest], attention_mask=known.long()[:, :longest])
    else:
        batch = m.batch(**{key: value for key, value in inputs.items() if key != "labels"})
    end = oracle.some_end(oracle.generated(model, rows, 6))
    theirs = oracle.generated(model, rows, 6, end, num_beams=3, length_penalty=0.0, early_stopping="never")
    assert torch.equal(fr.generate(m, batch, length=6, end=end, beams=3).entries, theirs)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", EACH)
@NO_WARNING
def test_inputs_are_the_models_own_arguments(name, padding):
    model, m, inputs = built(name), adapted(name), inputs_of(name, padding)
    batch = batch_of(name, padding)
    theirs = model(**oracle.own_arguments(model, inputs)).loss.item()
    back = m.inputs(batch)
    assert all(torch.equal(back[key], value) for key, value in inputs.items())
    assert model(**back).loss.item() == pytest.approx(theirs, rel=1e-6)
    outcome = fr.scheduled_sampling(0.5).run(m, batch, STEP, KEY)
    mixed = m.inputs(outcome.fed)
    assert torch.equal(mixed["labels"], inputs["labels"])
    key = "input_ids" if name in CAUSAL else "decoder_input_ids"
    rows, histories = examples(name, padding), oracle_histories(name, padding, 0.5, "sample")
    expected = back[key].clone()
    for r, history in enumerate(histories):
        if name in CAUSAL:
            there = inputs["attention_mask"][r].bool().nonzero()[1:, 0]
            expected[r, there] = torch.tensor(history)
        else:
            fed_ids = history[: expected.shape[1] - 1]  # nobody reads the last label, unless padding follows
            expected[r, 1 : len(fed_ids) + 1] = torch.tensor(fed_ids)
            assert int(back[key][r, 0]) == rows[r].first
            assert back[key][r, 1 : len(fed_ids) + 1].tolist() == list(rows[r].gold[: len(fed_ids)])
    assert not torch.equal(expected, back[key])
    assert torch.equal(mixed[key], expected)
    assert model(**mixed).loss.item() == pytest.approx(outcome.loss.item(), rel=1e-6)


RAGGED = {
    "gpt2",
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "opt",
    "bloom",
    "gpt_neox",
    "cohere",
    "granite",
    "t5",
    "bart",
    "mbart",
    "marian",
    "whisper",
}


@pytest.mark.parametrize("name", EACH)
def test_a_family_passes_its_check_and_keeps_what_it_can(name):
    m = adapted(name)
    # an encoder that counts positions from the left knows nothing of padding there
    report = fr.check_model(m, batch_of(name, "left" if name in CAUSAL else "right"))
    assert not report.warnings, str(report)
    # a pad among its ids moves M2M's positions, otherwise over a cache than in a forward, and not at all in vectors
    assert isinstance(m, Stepper) == isinstance(m, Embedder) == (name != "m2m_100"), str(m.findings)
    # the vocabulary is read from the last vectors, at the positions requested, and with all that the model does to them
    hidden = m.hidden(batch_of(name, "right"))
    assert isinstance(m, Split)
    assert hidden.shape[-1] == 16, str(m.findings)
    assert isinstance(m, Cached) == (name in RAGGED), str(m.findings)
    # an encoding that is read otherwise than its source is left out
    assert isinstance(m, Encoder) == (name in SEQ2SEQ), str(m.findings)


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_a_state_may_be_left_and_come_back_to(name):
    """Stepped on twice, with other entries in between, and picked from after that: what it holds is its own."""
    m, batch = adapted(name), batch_of(name, "right")
    assert isinstance(m, Stepper) == (name != "m2m_100")
    if not isinstance(m, Stepper):
        return
    history, other = batch.history, (batch.history + 1) % VOCAB
    state = m.step(m.start(batch), m.embed(history[:, 0]))
    first = m.output(m.step(state, m.embed(history[:, 1])))
    away = m.step(m.step(state, m.embed(other[:, 1])), m.embed(other[:, 2]))
    again = m.step(state, m.embed(history[:, 1]))
    torch.testing.assert_close(m.output(again), first, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first, m(batch)[:, 2], rtol=1e-5, atol=1e-5)
    fed_ids = torch.cat([history[:, :1], other[:, 1:3], history[:, 3:]], 1)
    torch.testing.assert_close(m.output(away), m(batch.replace(history=fed_ids))[:, 3], rtol=1e-5, atol=1e-5)
    turned = torch.tensor([3, 1, 1])
    picked = m.step(m.select(again, turned), m.embed(history[turned, 2]))
    torch.testing.assert_close(m.output(picked), m(batch)[turned, 3], rtol=1e-5, atol=1e-5)


def test_counts_and_eligibility():
    m = adapted("llama")
    batch = batch_of("llama", "left")
    assert (batch.size, batch.time) == (4, 7)
    for r, row in enumerate(examples("llama", "right")):
        assert batch.history[r, : len(row.gold)].tolist() == list(row.gold)
        assert batch.mask[r].tolist() == [*row.counts, *[False] * (7 - len(row.counts))]
    assert torch.equal(batch.replaceable, batch.mask)
    inputs = inputs_of("llama", "left")
    some = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    some[:, -2:] = True
    part = m.batch(**inputs, replaceable=some)
    assert torch.equal(part.mask, batch.mask)
    assert int(part.replaceable.sum()) == 8
    outcome = fr.free_running(draw="greedy").run(m, part, STEP, KEY)
    assert outcome.report["replaced"] == 8
    assert int(outcome.count) == int(batch.mask.sum())


@pytest.mark.parametrize("name", [name for name in SEQ2SEQ if name not in LATER])
def test_a_prefix_that_the_user_gives_is_never_replaced(name):
    """Decoder ids of one's own: what is not the label before it is a prompt, a start symbol or a language."""
    m, inputs = adapted(name), inputs_of(name, "right")
    labels = inputs["labels"]
    fed_ids = torch.cat([torch.full((4, 1), 7), labels[:, :-1].masked_fill(labels[:, :-1] == -100, PAD)], 1)
    fed_ids[:, 2] = torch.where(labels[:, 1] == 9, 8, 9)
    batch = m.batch(**inputs, decoder_input_ids=fed_ids)
    assert int(batch.mask.sum()) == sum(LENGTHS)
    assert int(batch.replaceable.sum()) == sum(LENGTHS) - 4
    fed = m.inputs(fr.free_running(draw="greedy").run(m, batch, STEP, KEY).fed)["decoder_input_ids"]
    assert torch.equal(fed[:, [0, 2]], fed_ids[:, [0, 2]])
    assert not torch.equal(fed, fed_ids)


@pytest.mark.parametrize("name", ["llama", "t5", "mbart"])
def test_label_smoothing_is_that_of_the_trainer(name):
    from transformers.trainer_pt_utils import LabelSmoother

    model, m, inputs = built(name), adapted(name), inputs_of(name, "left")
    theirs = LabelSmoother(epsilon=0.2)(
        {"logits": model(**oracle.own_arguments(model, inputs)).logits}, inputs["labels"], shift_labels=name in CAUSAL
    )
    smoothed = fr.teacher_forcing(objective=fr.objectives.CrossEntropy(label_smoothing=0.2))
    assert smoothed(m, m.batch(**inputs), step=0).item() == pytest.approx(theirs.item(), rel=1e-6)


def packed(documents: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3))) -> tuple[dict[str, torch.Tensor], list[Row]]:
    """The four texts, two of them in each row, positions beginning again; and the texts as the oracle knows them."""
    from families import texts

    made, rows = texts(), []
    ids, labels, positions = [], [], []
    for row in documents:
        ids.append(torch.cat([made[d] for d in row]))
        labels.append(torch.cat([made[d].clone() for d in row]))
        positions.append(torch.cat([torch.arange(len(made[d])) for d in row]))
        at = 0
        for d in row:
            labels[-1][at : at + PROMPTS[d]] = -100
            at += len(made[d])
            counts = tuple(t + 1 >= PROMPTS[d] for t in range(len(made[d]) - 1))
            rows.append(Row({}, int(made[d][0]), tuple(made[d][1:].tolist()), counts, 0))
    time = max(map(len, ids))
    there = torch.arange(time) < torch.tensor([[len(row)] for row in ids])

    def stacked(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(p, (0, time - len(p)), value=fill) for p in parts])

    inputs = {"input_ids": stacked(ids, PAD), "labels": stacked(labels, -100), "position_ids": stacked(positions, 0),
             "attention_mask": there.long()}  # fmt: skip
    return inputs, rows


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "opt"])
def test_packed_documents_are_rows_of_their_own(name):
    m, model = adapted(name), built(name)
    inputs, rows = packed()
    batch = m.batch(**inputs, rows=torch.tensor([4, 7]))
    assert batch.size == 4
    numbers = batch.row_numbers.tolist()
    assert len(set(numbers)) == 4
    rows = [Row(row.source, row.first, row.gold, row.counts, number) for row, number in zip(rows, numbers, strict=True)]
    plain = fr.teacher_forcing().run(m, batch, step=0)
    assert plain.loss.item() == pytest.approx(
        oracle.loss(model, rows, [list(row.gold) for row in rows]).item(), rel=1e-10
    )
    histories = [full_prefix(model, row, 0.3, "sample", KEY, STEP) for row in rows]
    for engine in all_engines(m):
        outcome = fr.scheduled_sampling(0.3, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, histories)
    assert outcome.loss.item() == pytest.approx(oracle.loss(model, rows, histories).item(), rel=1e-10)
    mixed = m.inputs(outcome.fed)
    expected = inputs["input_ids"].clone()
    expected[0, :16] = torch.tensor([rows[0].first, *histories[0], rows[1].first, *histories[1]])
    expected[1, :12] = torch.tensor([rows[2].first, *histories[2], rows[3].first, *histories[3]])
    assert torch.equal(mixed["input_ids"], expected)
    assert not torch.equal(expected, inputs["input_ids"])
    assert torch.equal(mixed["labels"], inputs["labels"])
    assert isinstance(m, Embedder)
