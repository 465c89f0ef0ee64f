"""transformers' trainers with a method: the stock path, token-exact losses, accumulation, what the log says."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

import freerun as fr
from freerun import hf
from hf_trainer_world import (
    CHECKPOINTING,
    COMPLETIONS,
    PAIRS,
    WORLDS,
    apart,
    collate,
    completions,
    falling,
    gpt2,
    llama,
    logged,
    make,
    t5,
    train,
    weights,
)


def test_nothing_of_transformers_trainers_is_loaded_before_it_is_asked_for():
    code = (
        "import sys; from freerun import hf; dir(hf)\n"
        "bad = [m for m in sys.modules if m.startswith(('transformers', 'trl'))]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="it has Callback, MethodMixin"):
        hf.Trainr  # noqa: B018


def agree(name: str, steps: int) -> None:
    build, data, ours, stock = WORLDS[name]
    # T5 with dropout: roll-ins and probes must leave PyTorch's generators alone
    dropout = {"dropout": 0.1} if name == "t5" else {}
    runs = [train(stock, build(**dropout), data, max_steps=steps)]
    runs += [train(ours, build(**dropout), data, method, max_steps=steps) for method in (None, fr.teacher_forcing())]
    assert apart(weights(runs[0]), weights(runs[1])) == 0.0
    assert logged(runs[0]) == logged(runs[1])
    # another order of summation: 1e-6 at first; optimizers make more of it, step by step
    assert logged(runs[2])[:50] == pytest.approx(logged(runs[0])[:50], rel=1e-6)
    assert logged(runs[2]) == pytest.approx(logged(runs[0]), rel=1e-3)
    # in double precision it hardly moves (T5's norms and Llama's own loss are in single precision all the same)
    double = [train(stock, build().double(), data, max_steps=steps)]
    double += [train(ours, build().double(), data, fr.teacher_forcing(), max_steps=steps)]
    assert logged(double[1])[:50] == pytest.approx(logged(double[0])[:50], rel=1e-6)
    assert logged(double[1]) == pytest.approx(logged(double[0]), rel=1e-5)
    assert apart(weights(double[0]), weights(double[1])) < 1e-3


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_none_and_teacher_forcing_are_the_stock_trainer(name):
    agree(name, 6)


@pytest.mark.slow(reason="five runs of 200 steps for each of two models")
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_none_and_teacher_forcing_are_the_stock_trainer_for_200_steps(name):
    agree(name, 200)


def accumulate(name: str, method: Any, steps: int) -> None:
    build, data, ours, _ = WORLDS[name]
    whole = train(ours, build().double(), data, method, max_steps=steps)
    parts = train(
        ours, build().double(), data, method, max_steps=steps,
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    # (T5 of transformers 5.0 takes its softmax in single precision whatever the model's is)
    assert apart(weights(whole), weights(parts)) < (1e-9 if steps < 10 and name != "t5" else 1e-6)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-6)
    for key in ("teacher_forcing_ratio", "replaced_share", "disagreeing_share"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), rel=1e-6)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("method", [fr.teacher_forcing(), falling()], ids=["teacher_forcing", "scheduled_sampling"])
def test_accumulation_is_one_big_batch(name, method):
    accumulate(name, method, 4)


@pytest.mark.slow(reason="two runs of 200 steps, one of them with four micro-batches a step, for each model and method")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("method", [fr.teacher_forcing(), falling(200)], ids=["teacher_forcing", "scheduled_sampling"])
def test_accumulation_is_one_big_batch_for_200_steps(name, method):
    accumulate(name, method, 200)


@pytest.mark.parametrize("name", WORLDS)
def test_the_logged_loss_is_the_token_mean(name):
    """Against the sum by hand; labels from the first token on, which GPT-2's stock count takes for a target too."""
    build, data, ours, _ = WORLDS[name]
    causal = name != "t5"
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} if causal else row for row in data][:8]
    trainer = train(
        ours, build(), data, fr.teacher_forcing(), max_steps=1, per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )  # fmt: skip
    model, total, count = build().eval(), 0.0, 0
    for row in data:
        given = collate([row])
        logits = model(**given).logits.detach()
        if causal:
            logits, given["labels"] = logits[:, :-1], given["labels"][:, 1:]
        total += float(F.cross_entropy(logits.flatten(0, 1), given["labels"].flatten(), reduction="sum"))
        count += given["labels"].numel()
    assert logged(trainer) == [pytest.approx(total / count, rel=1e-6)]


def test_the_log_and_all_that_read_it_are_told_the_realised_share():
    class Seen(transformers.TrainerCallback):
        lines: list[dict[str, float]]

        def __init__(self) -> None:
            self.lines = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.lines.append(dict(logs))

    seen = Seen()
    method = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.0, steps=4), engine="jacobi")
    trainer = train(hf.Seq2SeqTrainer, t5(), PAIRS, method, max_steps=6, logging_steps=2, trainer={"callbacks": [seen]})
    lines = [line for line in seen.lines if "loss" in line]
    # the last value of the schedule, and sums over the two steps of a line
    assert [line["teacher_forcing_ratio"] for line in lines] == [0.75, 0.25, 0.0]
    assert lines[-1]["replaced_share"] == 1.0
    assert 0 < lines[0]["replaced_share"] < 0.5 < lines[1]["replaced_share"] < 1
    for line in lines:
        assert 0 < line["disagreeing_share"] <= line["replaced_share"]
    # the first step of all replaces nothing and asks nothing
    assert lines[0]["passes"] < lines[1]["passes"]
    assert logged(trainer, "replaced_share") == [line["replaced_share"] for line in lines]


def test_seed_and_step_decide_the_coins():
    method = fr.scheduled_sampling(0.5)
    same = [train(hf.Trainer, llama(), COMPLETIONS, method, max_steps=3) for _ in range(2)]
    assert apart(weights(same[0]), weights(same[1])) == 0.0
    other = train(hf.Trainer, llama(), COMPLETIONS, method, max_steps=3, seed=4, data_seed=3)
    assert logged(other, "replaced_share") != logged(same[0], "replaced_share")


@pytest.mark.parametrize("build", [t5, gpt2], ids=["t5", "gpt2"])
def test_label_smoothing_is_applied_where_the_stock_trainer_applies_it(build):
    """The stock trainer pops the labels, and T5's decoder is left without ids; ours says them."""
    name = build.__name__
    _, data, ours, _ = WORLDS[name]
    trainer = make(
        ours, build(), data[:8], fr.teacher_forcing(), max_steps=1, label_smoothing_factor=0.2,
        trainer={"eval_dataset": data[:8]},
    )  # fmt: skip
    given = collate(data[:8])
    logits, labels = build().eval()(**given).logits.detach(), given["labels"]
    if name == "gpt2":
        logits, labels = logits[:, :-1], labels[:, 1:]
    wanted = float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    trainer.train()
    assert logged(trainer) == [pytest.approx(wanted, rel=1e-5)]


def test_two_label_smoothings_are_one_too_many():
    method = fr.teacher_forcing(objective=fr.objectives.cross_entropy(label_smoothing=0.1))
    with pytest.raises(fr.UserError, match="set label_smoothing_factor=0, or leave the method's objective out"):
        make(hf.Trainer, llama(), COMPLETIONS, method, label_smoothing_factor=0.2)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_evaluation_is_the_stock_trainers(name):
    build, data, ours, stock = WORLDS[name]

    def metrics(predicted: Any) -> dict[str, float]:
        logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
        return {"sum": float(logits.sum()), "shape": logits.shape[1]}

    given = {"eval_dataset": data[:10], "compute_metrics": metrics}
    changes: Any = {"per_device_eval_batch_size": 4, "trainer": given}
    ours_says = make(ours, build(), data, fr.scheduled_sampling(0.2), **changes).evaluate()
    stock_says = make(stock, build(), data, **changes).evaluate()
    for key in ("eval_loss", "eval_sum", "eval_shape"):
        assert ours_says[key] == pytest.approx(stock_says[key], rel=1e-6)


def test_generation_in_evaluation_works():
    seen: list[Any] = []

    def metrics(predicted: Any) -> dict[str, float]:
        seen.append(predicted.predictions)
        return {"seen": float(len(predicted.predictions))}

    trainer = train(
        hf.Seq2SeqTrainer, t5(), PAIRS, falling(), max_steps=2, eval_strategy="steps", eval_steps=2,
        predict_with_generate=True, generation_max_length=9, generation_num_beams=2,
        trainer={"eval_dataset": PAIRS[:4], "compute_metrics": metrics},
    )  # fmt: skip
    source = {name: value for name, value in collate(PAIRS[:4]).items() if name != "labels"}
    wanted = trainer.model.eval().generate(**source, max_length=9, num_beams=2)
    assert torch.equal(torch.from_numpy(seen[0])[:, : wanted.shape[1]], wanted)
    assert logged(trainer, "eval_seen") == [4.0]


def test_a_micro_batch_without_anything_to_learn_adds_nothing():
    data = completions(8)
    for row in data[2:4]:
        row["labels"] = [-100] * len(row["labels"])
    whole = train(hf.Trainer, llama().double(), data, falling(), max_steps=2)
    parts = train(
        hf.Trainer, llama().double(), data, falling(), max_steps=2, per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )  # fmt: skip
    assert apart(weights(whole), weights(parts)) < 1e-9


def test_gradient_checkpointing_changes_nothing():
    """Cached decoding under it is silently wrong in training mode: a roll-in runs in evaluation mode."""
    for engine in ("step", "jacobi"):
        method = fr.scheduled_sampling(0.3, engine=engine)
        for name in ("t5", "llama"):
            build, data, ours, _ = WORLDS[name]
            runs = [
                weights(train(ours, build().double(), data, method, max_steps=2, **{CHECKPOINTING: on}))
                for on in (False, True)
            ]
            assert apart(*runs) < 1e-12


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_resumed_in_the_middle_of_an_epoch_is_unbroken_bit_for_bit(name, tmp_path):
    build, data, ours, _ = WORLDS[name]
    given: Any = {"folder": tmp_path, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    given |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = train(ours, build(0.1), data, falling(5), **given)
    rest = train(ours, build(0.1), data, falling(5), **given, resume=str(tmp_path / "checkpoint-3"))
    assert apart(weights(whole), weights(rest)) == 0.0
    for key in ("loss", "replaced_share", "teacher_forcing_ratio"):
        assert logged(whole, key) == logged(rest, key)


@pytest.mark.parametrize("engine", ["step", "jacobi", 1])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_under_autocast_every_weight_gets_its_gradient(name, engine):
    """A weight that a roll-in left in autocast's cache would get none."""
    build, data, ours, _ = WORLDS[name]
    method = fr.scheduled_sampling(0.3, engine=engine)
    trainer = train(ours, build(), data, method, max_steps=1, bf16=True, weight_decay=0.0, max_grad_norm=0.0)
    before, after = weights(make(ours, build(), data, method)), weights(trainer)
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == []
    assert logged(trainer, "replaced_share") != [0.0]


def test_a_compiled_model_is_the_same_model():
    method = fr.scheduled_sampling(0.5)
    compiled: Any = {"torch_compile": True, "torch_compile_backend": "eager"}
    runs = [train(hf.Trainer, llama().double(), COMPLETIONS, method, max_steps=2, **more) for more in ({}, compiled)]
    assert apart(*map(weights, runs)) < 1e-12
