"""Rows with several turns, packed rows over micro-batches, encoders within wrappers, schedules that count samples."""

from typing import Any

import pytest
import torch

import freerun as fr
import oracles_hf as oracle
from builders import assert_same_gradients, gradients
from families import CAUSAL, FAMILIES, PAD, collated
from freerun import hf
from freerun.integrations.hf_runner import has_targets
from freerun.models.huggingface.causal import _DOCUMENTS
from hf_trainer_world import COMPLETIONS, apart, completions, llama, logged, make, train, weights
from oracles_hf import KEY, NUMBERS, STEP, Prepared, Row, assert_histories, engines, prepared
from test_hf_families import packed
from test_hf_traps import Wrapper

# one of every group: a cache of rows at positions of their own, windows, recurrent states, encoder and decoder
GROUPS = ["gpt2", "mistral", "mamba", "t5", "bart"]


def with_holes(name: str) -> Prepared:
    """The four rows of a family, two of them with labels of -100 in the middle: what a user writes between turns."""
    model = FAMILIES[name].build()
    inputs = collated(name, model.dtype, "left")
    labels = inputs["labels"]
    for row, begin, end in ((0, 1, 3), (1, 1, 2)) if name not in CAUSAL else ((0, -4, -2), (1, -5, -4)):
        labels[row, begin:end] = -100
    if name in CAUSAL:
        return Prepared(model, inputs, oracle.rows_of(model, inputs, NUMBERS), model)
    fed = model.prepare_decoder_input_ids_from_labels(labels)
    rows: list[Row] = []
    for r, number in enumerate(NUMBERS):
        source = {key: value[r : r + 1] for key, value in inputs.items() if key != "labels"}
        length = int((labels[r] != -100).nonzero().max()) + 1
        # the decoder reads a pad where no label is
        gold = tuple(PAD if label == -100 else label for label in labels[r, :length].tolist())
        counts = tuple((labels[r, :length] != -100).tolist())
        rows.append(Row(source, int(fed[r, 0]), gold, counts, number))
    return Prepared(model, inputs, rows, model)


@pytest.mark.parametrize("name", GROUPS)
def test_holes_in_a_completion_neither_count_nor_are_replaced(name):
    p = with_holes(name)
    holes = [[t for t in range(row.prompt, len(row.gold)) if not row.counts[t]] for row in p.rows]
    assert [len(each) for each in holes] == [2, 1, 0, 0]
    batch = p.batch
    for r, row in enumerate(p.rows):
        assert batch.mask[r, : len(row.gold)].tolist() == list(row.counts)
    assert not bool((batch.replaceable & ~batch.mask).any())
    family = FAMILIES[name]
    tolerance = family.tolerance_of(p.model.dtype)
    gold = [list(row.gold) for row in p.rows]
    plain = fr.teacher_forcing().run(p.m, batch, STEP)
    assert plain.loss.item() == pytest.approx(p.loss(gold).item(), rel=tolerance)
    assert plain.loss.item() == pytest.approx(
        p.model(**oracle.own_arguments(p.model, p.inputs)).loss.item(), rel=max(tolerance, 1e-6)
    )
    for ratio, method in ((0.3, fr.scheduled_sampling), (0.0, fr.scheduled_sampling)):
        expected = p.histories(ratio)
        for engine in engines(p.m):
            outcome = method(ratio, engine=engine).run(p.m, batch, STEP, KEY)
            assert_histories(outcome.fed, expected)
            for r, row in enumerate(p.rows):
                assert [int(outcome.fed.history[r, t]) for t in holes[r]] == [row.gold[t] for t in holes[r]]
            assert int(outcome.count) == sum(sum(row.counts) for row in p.rows)
            assert outcome.loss.item() == pytest.approx(p.loss(expected).item(), rel=tolerance)
    assert expected != gold


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_packed_documents_are_numbered_by_the_global_row(name):
    model, m = FAMILIES[name].build(), hf.adapt(FAMILIES[name].build())
    inputs, rows = packed()
    numbers = [4 * _DOCUMENTS, 4 * _DOCUMENTS + 1, 7 * _DOCUMENTS, 7 * _DOCUMENTS + 1]
    batch = m.batch(**inputs, rows=torch.tensor([4, 7]))
    assert batch.row_numbers.tolist() == numbers
    rows = [Row(row.source, row.first, row.gold, row.counts, n) for row, n in zip(rows, numbers, strict=True)]
    expected = [oracle.full_prefix(model, row, 0.3, "sample", KEY, STEP) for row in rows]
    assert_histories(fr.scheduled_sampling(0.3).run(m, batch, STEP, KEY).fed, expected)


def in_pairs(rows: Any) -> dict[str, torch.Tensor]:
    """Two documents a row, padded on the right."""
    made: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "position_ids": []}
    for pair in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        for name in ("input_ids", "labels"):
            made[name].append(torch.tensor([t for row in pair for t in row[name]]))
        made["position_ids"].append(torch.tensor([t for row in pair for t in range(len(row["labels"]))]))
    there = [torch.ones_like(ids) for ids in made["input_ids"]]
    fill = {"input_ids": 0, "labels": -100, "position_ids": 0, "attention_mask": 0}
    return {
        name: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill[name])
        for name, parts in {**made, "attention_mask": there}.items()
    }


def pairs_of(data: Any) -> list[Any]:
    """Documents that a collator puts two in a row: one dataset row is a pair."""
    return [{"pair": data[i : i + 2]} for i in range(0, len(data), 2)]


def collated_pairs(rows: Any) -> Any:
    return in_pairs([document for row in rows for document in row["pair"]])


def flattened(rows: Any) -> Any:
    """All documents in one row, as padding-free collators make them."""
    documents = [document for row in rows for document in row["pair"]]
    whole = {name: torch.tensor([[t for row in documents for t in row[name]]]) for name in ("input_ids", "labels")}
    return {**whole, "position_ids": torch.tensor([[t for row in documents for t in range(len(row["labels"]))]])}


def of_pairs(collator: Any, size: int, accumulate: int, data: Any = COMPLETIONS, rows: int = 2) -> Any:
    return train(
        hf.Trainer, llama().double(), pairs_of(data)[: 8 * rows], fr.scheduled_sampling(0.4), max_steps=rows,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, remove_unused_columns=False,
        train_sampling_strategy="sequential", trainer={"data_collator": collator},
    )  # fmt: skip


SLOW = pytest.mark.slow(reason="every way to divide a step: two trainers each")


@pytest.mark.parametrize("split", [pytest.param((8, 1), marks=SLOW), (2, 4), pytest.param((1, 8), marks=SLOW)], ids=str)
@pytest.mark.parametrize("collator", [collated_pairs, flattened], ids=["padded", "flattened"])
def test_packed_micro_batches_are_one_big_batch(collator, split):
    """Coins of a document depend on its number in the step's global batch, not on its row, nor on the layout."""
    whole, parts = of_pairs(collated_pairs, 8, 1), of_pairs(collator, *split)
    assert logged(parts, "replaced_share") == logged(whole, "replaced_share")
    assert apart(weights(whole), weights(parts)) < 1e-9


def test_documents_that_learn_nothing_move_no_coins():
    """Padding, or a document without labels, between those that are learnt."""

    def between(rows: Any) -> Any:
        nothing = {"input_ids": [4, 5], "labels": [-100, -100]}
        return flattened([{"pair": [row["pair"][0], nothing, *row["pair"][1:]]} for row in rows])

    whole, other = of_pairs(flattened, 8, 1), of_pairs(between, 2, 4)
    assert logged(other, "replaced_share") == logged(whole, "replaced_share")
    assert apart(weights(whole), weights(other)) < 1e-9


def test_a_packed_micro_batch_of_which_only_first_tokens_have_labels_has_nothing_to_learn():
    """A document's first token is predicted by nothing, as a row's is."""
    ids = [5, 6, 7, 8, 9, 10]
    sample = {
        "input_ids": torch.tensor([ids]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
        "labels": torch.tensor([[5, -100, -100, 8, -100, -100]]),
    }  # fmt: skip
    m = hf.adapt(llama())
    assert not has_targets(m, sample)
    assert has_targets(m, {**sample, "labels": torch.tensor([[5, -100, -100, 8, 9, -100]])})
    nothing = [{"input_ids": ids[begin : begin + 3], "labels": [ids[begin], -100, -100]} for begin in (0, 3)]
    data = [{"pair": nothing}, *pairs_of(completions(6))]
    options: Any = {"max_steps": 1, "remove_unused_columns": False, "trainer": {"data_collator": collated_pairs}}
    one, other = (
        train(hf.Trainer, llama(), rows, fr.teacher_forcing(), per_device_train_batch_size=1,
              gradient_accumulation_steps=len(rows), train_sampling_strategy="sequential", **options)
        for rows in (data, data[1:])
    )  # fmt: skip
    assert logged(one) == [pytest.approx(logged(other)[0], rel=1e-6)]


class Watched(Wrapper):
    """Notes what is inside of it when a module runs with gradient."""

    def forward(self, **arguments: Any) -> Any:
        self.inside, self.arguments = True, arguments
        try:
            return super().forward(**arguments)
        finally:
            self.inside = False


@pytest.mark.parametrize("name", ["t5", "bart", "bert2gpt2"])
def test_an_encoder_runs_inside_the_wrapper_where_it_has_a_gradient(name):
    """DDP counts the gradients of what its forward has seen: an encoder run before it would never be averaged."""
    model = FAMILIES[name].build()
    wrapper = Watched(model)
    wrapper.inside = False
    p = prepared(name, model, wrapper)
    batch, outside = p.batch, list[bool]()
    model.get_encoder().register_forward_pre_hook(
        lambda *_: outside.append(torch.is_grad_enabled() and not wrapper.inside)
    )
    for engine in ("auto", *engines(p.m)):
        outside.clear()
        outcome = fr.scheduled_sampling(0.4, engine=engine).run(p.m, batch, STEP, KEY)
        assert outside
        assert not any(outside)
        assert "encoder_outputs" not in wrapper.arguments
    assert_same_gradients(gradients(model, outcome.loss), gradients(model, p.loss(p.histories(0.4))))
    outside.clear()
    fr.teacher_forcing().run(p.m, batch, STEP)
    assert outside == [False]


@pytest.mark.parametrize("split", [(8, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("unit", ["step", "sample", "epoch"])
def test_schedules_count_steps_samples_and_epochs(unit, split):
    """48 rows in steps of 8: six steps are an epoch."""
    size, accumulate = split
    length = {"step": 10, "sample": 80, "epoch": 2}[unit]
    schedule = fr.schedules.linear(start=1.0, end=0.0, steps=length, unit=unit)
    trainer = train(
        hf.Trainer, llama(), COMPLETIONS, fr.scheduled_sampling(schedule), max_steps=8,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    behind = {"step": 1.0, "sample": 8.0, "epoch": 1 / 6}[unit]
    expected = [max(0.0, 1 - behind * step / length) for step in range(8)]
    assert logged(trainer, "teacher_forcing_ratio") == pytest.approx(expected, abs=1e-9)


def test_a_trainer_without_an_epoch_counts_from_zero():
    schedule = fr.schedules.linear(start=1.0, end=0.0, steps=2, unit="epoch")
    trainer = make(hf.Trainer, llama(), COMPLETIONS, fr.scheduled_sampling(schedule))
    assert trainer._applied._step().epoch == 0
