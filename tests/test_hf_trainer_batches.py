"""Batches of every kind in the trainers: nothing to learn, packed rows, the column ``replaceable``, calls by hand."""

from typing import Any

import pytest
import torch

import freerun as fr
from builders import refused
from freerun import hf
from hf_trainer_world import COMPLETIONS, PAIRS, apart, collate, completions, llama, logged, make, t5, train, weights

HALF = fr.scheduled_sampling(0.5)
ONE_BY_ONE: Any = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}


ROWS = {"one token": ([4], [4]), "a first token": ([4, 5], [4, -100]), "no label": ([4, 5], [-100, -100])}


@pytest.mark.parametrize("case", ROWS)
def test_a_later_batch_without_anything_to_learn_counts_nothing(case):
    """In training with accumulation and in the callback's scores."""
    row = dict(zip(("input_ids", "labels"), ROWS[case], strict=True))
    data, dev = [*COMPLETIONS[:3], row], [*COMPLETIONS[:2], row]
    options: Any = {"per_device_eval_batch_size": 1, **ONE_BY_ONE}
    more = {"eval_dataset": dev, "callbacks": [hf.Callback()]}
    trainer = train(
        hf.Trainer, llama(), data, HALF, max_steps=2, gradient_accumulation_steps=2, **options, trainer=more
    )
    expected = train(hf.Trainer, llama(), COMPLETIONS[:3], HALF, max_steps=2, gradient_accumulation_steps=2, **options)
    assert apart(weights(trainer), weights(expected)) < 1e-6
    short = make(hf.Trainer, trainer.model, data, HALF, **options, trainer={**more, "eval_dataset": dev[:2]})
    name = "eval_free_running_loss"
    assert trainer.evaluate()[name] == pytest.approx(short.evaluate()[name], rel=1e-6)


def packed(rows: Any) -> Any:
    """Two examples a row, the shorter rows with a document of padding that nothing is learnt from."""
    pairs = [[*rows[i : i + 2]] for i in range(0, len(rows), 2)]
    longest = max(sum(len(row["labels"]) for row in pair) for pair in pairs)
    packed: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for pair in pairs:
        left = longest - sum(len(row["labels"]) for row in pair)
        for row in [*pair, {"input_ids": [2] * left, "labels": [-100] * left}]:
            for name, values in ({**row, "position_ids": list(range(len(row["labels"])))}).items():
                packed[name].append(list(values)) if row is pair[0] else packed[name][-1].extend(values)
    return {name: torch.tensor(values) for name, values in packed.items()}


def test_scores_of_packed_rows_are_those_of_their_documents():
    dev = completions(8, seed=5)
    for row in dev:
        row["labels"][0] = -100
    options: Any = {"per_device_eval_batch_size": 4}
    made = [
        make(hf.Trainer, llama(), COMPLETIONS, None, **options,
             trainer={"data_collator": collator, "eval_dataset": dev, "callbacks": [hf.Callback()]})
        for collator in (collate, packed)
    ]  # fmt: skip
    one, other = (trainer.evaluate() for trainer in made)
    for name in ("teacher_forced_loss", "free_running_loss", "free_running_token_accuracy"):
        assert other[f"eval_{name}"] == pytest.approx(one[f"eval_{name}"], rel=1e-5)


def test_the_column_replaceable_is_whole_numbers():
    """The last label of every row may not be replaced; the collator pads the column with 0."""

    def collated(rows: Any) -> Any:
        batch = collate(rows)
        longest = batch["labels"].shape[1]
        column = [row["replaceable"] + [0] * (longest - len(row["replaceable"])) for row in rows]
        return {**batch, "replaceable": torch.tensor(column)}

    none = [{**row, "replaceable": [0] * len(row["labels"])} for row in PAIRS]
    every = [{**row, "replaceable": [1] * len(row["labels"])} for row in PAIRS]
    options: Any = {"max_steps": 2, "remove_unused_columns": False}
    for data, share in ((none, 0.0), (every, 1.0)):
        more = {"data_collator": collated, "eval_dataset": data[:4], "callbacks": [hf.Callback()]}
        trainer = train(hf.Seq2SeqTrainer, t5(), data, fr.free_running(), **options, trainer=more)
        assert logged(trainer, "replaced_share") == [share, share]
        assert "eval_free_running_loss" in trainer.evaluate()


def test_a_loss_by_hand_after_training_is_the_mean_of_its_own_batch():
    trainer = train(hf.Trainer, llama(), COMPLETIONS, fr.teacher_forcing(), max_steps=1, gradient_accumulation_steps=2)
    batch = collate(COMPLETIONS[:3])
    by_hand = trainer.compute_loss(trainer.model.train(), batch)
    expected = trainer.model(**batch).loss
    assert float(by_hand.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_loss_of_ones_own_that_never_calls_the_method_is_refused():
    class Silent(hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss

    class Doubling(hf.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    trainer = make(Silent, llama(), COMPLETIONS, HALF, max_steps=3)
    refused(r"compute_loss of Silent never called super\(\)\.compute_loss", trainer.train)
    assert trainer.state.global_step == 1
    twice, once = (train(cls, llama(), COMPLETIONS, HALF, max_steps=1) for cls in (Doubling, hf.Trainer))
    assert logged(twice) == [pytest.approx(2 * logged(once)[0], rel=1e-5)]
    train(Silent, llama(), COMPLETIONS, None, max_steps=2)


def test_label_smoothing_is_read_at_every_call_of_train():
    trainer = make(hf.Trainer, llama(), COMPLETIONS[:8], fr.teacher_forcing(), max_steps=1)
    trainer.args.label_smoothing_factor = 0.2
    trainer.train()
    expected = train(
        hf.Trainer, llama(), COMPLETIONS[:8], fr.teacher_forcing(), max_steps=1, label_smoothing_factor=0.2
    )
    assert logged(trainer) == logged(expected)


def test_an_example_is_needed_once():
    model = t5()
    example = collate(PAIRS[:3])
    found = hf.adapt(model, example=example).findings
    assert hf.adapt(model).findings is found
    assert hf.adapt(model, example=example).findings is found
