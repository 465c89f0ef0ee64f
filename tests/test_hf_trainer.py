"""transformers' trainers with a method: the stock path, token-exact losses, accumulation, what the log says."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

import freerun as fr
from builders import refused
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
    llama,
    logged,
    make,
    run,
    train,
    weights,
)


def test_nothing_of_transformers_trainers_is_loaded_before_it_is_used():
    code = (
        "import sys; from freerun import hf; dir(hf)\n"
        "bad = [m for m in sys.modules if m.startswith(('transformers', 'trl'))]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="it has Callback, MethodMixin"):
        hf.Trainr  # noqa: B018


QUARTERS: Any = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
ONES: Any = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
SLOW = pytest.param(200, marks=pytest.mark.slow(reason="200 steps of every run"))


@pytest.mark.parametrize("steps", [6, SLOW])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_none_and_teacher_forcing_are_the_stock_trainer(name, steps):
    # T5 with dropout: roll-ins and probes must leave PyTorch's generators alone
    dropout = 0.1 if name == "t5" else None
    stock, none, ours = (run(name, m, dropout=dropout, max_steps=steps) for m in ("stock", None, fr.teacher_forcing()))
    assert apart(weights(stock), weights(none)) == 0.0
    assert logged(stock) == logged(none)
    # another order of summation, of which optimizers make more, step by step: a stock run whose first weights are
    # moved by one unit in the last place is up to 6e-5 away by step 50, and 3e-3 by step 200
    assert logged(ours)[:20] == pytest.approx(logged(stock)[:20], rel=1e-6)
    assert logged(ours)[:50] == pytest.approx(logged(stock)[:50], rel=1e-4)
    assert logged(ours) == pytest.approx(logged(stock), rel=1e-2)
    # in double precision it hardly moves (T5's norms and Llama's own loss are in single precision all the same)
    stock, ours = (run(name, method, double=True, max_steps=steps) for method in ("stock", fr.teacher_forcing()))
    assert logged(ours)[:20] == pytest.approx(logged(stock)[:20], rel=1e-6)
    assert logged(ours) == pytest.approx(logged(stock), rel=1e-4)
    assert apart(weights(stock), weights(ours)) < 1e-3


@pytest.mark.parametrize("steps", [4, SLOW])
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("make_method", [lambda _: fr.teacher_forcing(), falling], ids=["forcing", "sampling"])
def test_accumulation_is_one_big_batch(name, make_method, steps):
    method = make_method(12 if steps == 4 else steps)
    whole = run(name, method, double=True, max_steps=steps)
    parts = run(name, method, double=True, max_steps=steps, **QUARTERS)
    # (T5 of transformers 5.0 takes its softmax in single precision whatever the model's is)
    assert apart(weights(whole), weights(parts)) < (1e-9 if steps < 10 and name != "t5" else 1e-6)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-6)
    for key in ("teacher_forcing_ratio", "replaced_share", "disagreeing_share"):
        assert logged(parts, key) == pytest.approx(logged(whole, key), rel=1e-6)


@pytest.mark.parametrize("name", WORLDS)
def test_the_logged_loss_is_the_token_mean(name):
    """Against the sum by hand; labels from the first token on, which GPT-2's stock count takes for a target too."""
    build, data, ours, _ = WORLDS[name]
    causal = name != "t5"
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} if causal else row for row in data][:8]
    trainer = train(ours, build(), data, fr.teacher_forcing(), max_steps=1, **ONES)
    model, total, count = build().eval(), 0.0, 0
    for row in data:
        logits, labels = model(**collate([row])).logits.detach(), collate([row])["labels"]
        if causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        total += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += labels.numel()
    assert logged(trainer) == [pytest.approx(total / count, rel=1e-6)]


def test_the_log_and_all_that_read_it_have_the_realised_share():
    seen: list[dict[str, float]] = []

    class Seen(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(dict(logs))

    method = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.0, steps=4), engine="jacobi")
    trainer = run("t5", method, max_steps=6, logging_steps=2, trainer={"callbacks": [Seen()]})
    lines = [line for line in seen if "loss" in line]
    # the last value of the schedule, and sums over the two steps of a line
    assert [line["teacher_forcing_ratio"] for line in lines] == [0.75, 0.25, 0.0]
    assert lines[-1]["replaced_share"] == 1.0
    assert 0 < lines[0]["replaced_share"] < 0.5 < lines[1]["replaced_share"] < 1
    for line in lines:
        assert 0 < line["disagreeing_share"] <= line["replaced_share"]
    # the first step of all replaces nothing and predicts nothing
    assert lines[0]["passes"] < lines[1]["passes"]
    assert logged(trainer, "replaced_share") == [line["replaced_share"] for line in lines]


def test_seed_and_step_decide_the_coins():
    method = fr.scheduled_sampling(0.5)
    same = [run("llama", method, max_steps=3) for _ in range(2)]
    assert apart(weights(same[0]), weights(same[1])) == 0.0
    other = run("llama", method, max_steps=3, seed=4, data_seed=3)
    assert logged(other, "replaced_share") != logged(same[0], "replaced_share")


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_label_smoothing_is_applied_where_the_stock_trainer_applies_it(name):
    """The stock trainer pops the labels, and T5's decoder is left without ids; ours adds them."""
    build, data, ours, _ = WORLDS[name]
    smoothed: Any = {"max_steps": 1, "label_smoothing_factor": 0.2, "trainer": {"eval_dataset": data[:8]}}
    trainer = make(ours, build(), data[:8], fr.teacher_forcing(), **smoothed)
    inputs = collate(data[:8])
    logits, labels = build().eval()(**inputs).logits.detach(), inputs["labels"]
    if name == "gpt2":
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert logged(trainer) == [pytest.approx(expected, rel=1e-5)]


def test_two_label_smoothings_are_one_too_many():
    method = fr.teacher_forcing(objective=fr.objectives.cross_entropy(label_smoothing=0.1))
    help = "set label_smoothing_factor=0, or leave the method's objective out"
    refused(help, make, hf.Trainer, llama(), COMPLETIONS, method, label_smoothing_factor=0.2)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_evaluation_is_the_stock_trainers(name):
    build, data, ours, stock = WORLDS[name]

    def metrics(predicted: Any) -> dict[str, float]:
        logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
        return {"sum": float(logits.sum()), "shape": logits.shape[1]}

    options = {"eval_dataset": data[:10], "compute_metrics": metrics}
    changes: Any = {"per_device_eval_batch_size": 4, "trainer": options}
    scores = make(ours, build(), data, fr.scheduled_sampling(0.2), **changes).evaluate()
    expected = make(stock, build(), data, **changes).evaluate()
    for key in ("eval_loss", "eval_sum", "eval_shape"):
        assert scores[key] == pytest.approx(expected[key], rel=1e-6)


def test_generation_in_evaluation_works():
    seen: list[Any] = []

    def metrics(predicted: Any) -> dict[str, float]:
        seen.append(predicted.predictions)
        return {"seen": float(len(predicted.predictions))}

    generation: Any = {"predict_with_generate": True, "generation_max_length": 9, "generation_num_beams": 2}
    options = {"eval_dataset": PAIRS[:4], "compute_metrics": metrics}
    trainer = run("t5", falling(), max_steps=2, eval_strategy="steps", eval_steps=2, **generation, trainer=options)
    source = {name: value for name, value in collate(PAIRS[:4]).items() if name != "labels"}
    expected = trainer.model.eval().generate(**source, max_length=9, num_beams=2)
    assert torch.equal(torch.from_numpy(seen[0])[:, : expected.shape[1]], expected)
    assert logged(trainer, "eval_seen") == [4.0]


@pytest.mark.filterwarnings("ignore:2 of the 8 rows")
def test_a_micro_batch_without_anything_to_learn_adds_nothing():
    data = completions(8)
    for row in data[2:4]:
        row["labels"] = [-100] * len(row["labels"])
    whole, parts = (run("llama", falling(), double=True, data=data, max_steps=2, **split) for split in ({}, ONES))
    assert apart(weights(whole), weights(parts)) < 1e-9


def test_gradient_checkpointing_changes_nothing():
    """Cached decoding under it is silently wrong in training mode: a roll-in runs in evaluation mode."""
    for engine in ("step", "jacobi"):
        method = fr.scheduled_sampling(0.3, engine=engine)
        for name in ("t5", "llama"):
            runs = [run(name, method, double=True, max_steps=2, **{CHECKPOINTING: on}) for on in (False, True)]
            assert apart(*map(weights, runs)) < 1e-12


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_resumed_in_the_middle_of_an_epoch_is_unbroken_bit_for_bit(name, tmp_path):
    saved: Any = {"folder": tmp_path, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    saved |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole, rest = (
        run(name, falling(5), dropout=0.1, **saved, resume=resume) for resume in (None, str(tmp_path / "checkpoint-3"))
    )
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
    runs = [run("llama", method, double=True, max_steps=2, **more) for more in ({}, compiled)]
    assert apart(*map(weights, runs)) < 1e-12
