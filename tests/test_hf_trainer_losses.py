"""Trainers with losses of their own: only the ids that the model reads are swapped; and the free-running scores."""

from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

import freerun as fr
from builders import refused
from freerun import hf
from freerun.keys import fold
from hf_trainer_world import (
    COMPLETIONS,
    PAIRS,
    VOCAB,
    apart,
    collate,
    completions,
    falling,
    llama,
    logged,
    make,
    run,
    t5,
    train,
    weights,
)

HALF = fr.scheduled_sampling(0.5)


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A user's own, for an encoder-decoder: its arguments are logits and labels, and nothing of the history."""
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


def shifted_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(("name", "function"), [("t5", mean_loss), ("llama", shifted_loss), ("gpt2", shifted_loss)])
def test_a_loss_function_gets_the_outputs_on_the_methods_history(name, function):
    """Cross-entropy by hand on swapped ids is the method's own loss, accumulation included."""
    split: Any = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    own, swapped = (
        run(name, falling(), double=True, **split, trainer=more) for more in ({}, {"compute_loss_func": function})
    )
    assert apart(weights(own), weights(swapped)) < 1e-9
    assert logged(swapped, "replaced_share") == logged(own, "replaced_share")


class Trainers(transformers.Trainer):
    """A trainer with a loss of its own that keeps its inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.inputs: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.inputs.append(dict(inputs))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Mine(hf.MethodMixin, Trainers):
    pass


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_exactly_the_completion_may_be_swapped(left):
    def collated(rows: Any) -> Any:
        batch = collate(rows)
        if not left:
            return batch
        lengths = batch["attention_mask"].sum(1).tolist()
        turned = {n: [v.roll(v.shape[0] - k) for v, k in zip(b, lengths, strict=True)] for n, b in batch.items()}
        return {n: torch.stack(rows) for n, rows in turned.items()}

    trainer = train(
        Mine, llama(), COMPLETIONS[:8], fr.free_running(), max_steps=1, train_sampling_strategy="sequential",
        trainer={"data_collator": collated},
    )  # fmt: skip
    (fed,), gold = trainer.inputs, collated(COMPLETIONS[:8])
    assert torch.equal(fed["labels"], gold["labels"])
    assert torch.equal(fed["attention_mask"], gold["attention_mask"])
    changed = fed["input_ids"] != gold["input_ids"]
    learnt = gold["labels"] != -100
    assert not bool((changed & ~learnt).any())
    # an untrained model of 23 symbols hits gold once in 23: with 40 tokens, half of them fail to change with < 1e-12
    assert float(changed.sum()) > 0.5 * float(learnt.sum())
    # and they are the entries of the method itself, computed by hand with the same key
    m = hf.adapt(llama())
    batch = m.batch(**gold)
    expected = fr.free_running().transform(m, batch, step=0, key=fold(3, "train"))
    assert torch.equal(m.inputs(expected)["input_ids"], fed["input_ids"])


def test_whose_loss_it_is():
    class Method(hf.MethodMixin, Trainers):
        loss_from = "method"

    class Strange(hf.MethodMixin, transformers.Trainer):
        loss_from = "mine"

    assert make(Mine, llama(), COMPLETIONS, HALF)._applied.loss_from == "trainer"
    assert make(Method, llama(), COMPLETIONS, HALF)._applied.loss_from == "method"
    assert make(hf.Trainer, llama(), COMPLETIONS, HALF)._applied.loss_from == "method"
    refused("must be one of auto, method, trainer; got 'mine'", make, Strange, llama(), COMPLETIONS, HALF)
    own: Any = {"compute_loss_func": shifted_loss}
    refused("never calls compute_loss_func", make, Method, llama(), COMPLETIONS, HALF, trainer=own)


SMOOTHED = fr.scheduled_sampling(0.5, objective=fr.objectives.cross_entropy(label_smoothing=0.1))
WEIGHTED = [fr.scheduled_sampling(0.5, **{name: value}) for name, value in
            (("gold_weight", 0.5), ("horizon", 3), ("loss_on", "last"))]  # fmt: skip


@pytest.mark.parametrize("method", [*WEIGHTED, SMOOTHED, fr.two_pass(0.5, mix="expected")], ids=repr)
def test_what_swapped_ids_cannot_carry_is_refused(method):
    refused(r"changes the loss|feeds vectors", make, Mine, llama(), COMPLETIONS, method)
    make(hf.Trainer, llama(), COMPLETIONS, method)


class Elsewhere:
    """A method that is not of freerun's base class, with a loss of its own that it says nothing of."""

    name, citation = "elsewhere", fr.teacher_forcing.citation

    def run(self, model: Any, batch: Any, step: int, key: int = 0) -> Any:
        return fr.teacher_forcing().run(model, batch, step=step)

    def transform(self, model: Any, batch: Any, step: int, key: int = 0) -> Any:
        return batch


def test_a_method_that_says_nothing_of_its_loss_is_refused_where_the_loss_is_the_trainers():
    refused("does not declare own_loss", make, Mine, llama(), COMPLETIONS, Elsewhere())
    make(hf.Trainer, llama(), COMPLETIONS, Elsewhere())

    class Declared(Elsewhere):
        own_loss = ()

    make(Mine, llama(), COMPLETIONS, Declared())


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts: Any = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1}
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=VOCAB, output_router_logits=True, router_aux_loss_coef=0.5, **sizes, **experts)
    )


def test_a_loss_on_routing_is_kept():
    stock = train(transformers.Trainer, mixtral(), COMPLETIONS, max_steps=3)
    ours = train(hf.Trainer, mixtral(), COMPLETIONS, fr.teacher_forcing(), max_steps=3)
    assert logged(ours) == pytest.approx(logged(stock), rel=1e-6)
    sampled = train(hf.Trainer, mixtral(), COMPLETIONS, HALF, max_steps=3)
    assert min(logged(sampled, "replaced_share")) > 0


def by_hand(model: Any, data: list[Any]) -> dict[str, float]:
    """A token at a time on the model's own choices over the gold length, and all at once on gold."""
    model.eval()
    total = dict.fromkeys(("teacher_forced", "free_running"), 0.0)
    right, count = dict.fromkeys(total, 0), 0
    for row in data:
        start = next(t for t, label in enumerate(row["labels"]) if label != -100)
        gold, own = list(row["input_ids"][:start]), list(row["input_ids"][:start])
        for label in row["labels"][start:]:
            for name, history in (("teacher_forced", gold), ("free_running", own)):
                logits = model(input_ids=torch.tensor([history])).logits[0, -1].detach()
                total[name] -= float(logits.log_softmax(-1)[label])
                right[name] += int(logits.argmax() == label)
                if name == "free_running":
                    own = [*own, int(logits.argmax())]
            gold, count = [*gold, label], count + 1
    scores = {f"{name}_loss": total[name] / count for name in total}
    return scores | {f"{name}_token_accuracy": right[name] / count for name in right}


@pytest.mark.parametrize("method", [None, HALF], ids=["stock path", "method"])
def test_free_running_scores_stand_beside_the_teacher_forced_ones(method):
    dev = completions(7, seed=5)
    trainer = train(
        hf.Trainer, llama(), COMPLETIONS, method, max_steps=4, eval_strategy="steps", eval_steps=4, save_steps=4,
        save_strategy="steps", per_device_eval_batch_size=3, load_best_model_at_end=True, greater_is_better=False,
        metric_for_best_model="eval_free_running_loss",
        trainer={"eval_dataset": dev, "callbacks": [hf.Callback()]},
    )  # fmt: skip
    expected = by_hand(trainer.model, dev)
    for name, value in expected.items():
        assert logged(trainer, f"eval_{name}") == [pytest.approx(value, rel=1e-5)]
    assert trainer.state.best_metric == pytest.approx(expected["free_running_loss"], rel=1e-5)
    again = trainer.evaluate(metric_key_prefix="test")["test_free_running_loss"]
    assert again == pytest.approx(expected["free_running_loss"], rel=1e-5)


def test_scoring_leaves_training_as_it_is():
    """Neither modes nor generators: a run with dropout ends with the same bits."""
    options: Any = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    runs = [
        train(
            hf.Seq2SeqTrainer,
            t5(0.3),
            PAIRS,
            HALF,
            **options,
            trainer={"eval_dataset": PAIRS[:4], "callbacks": callbacks},
        )
        for callbacks in ([], [hf.Callback(batches=1)])
    ]
    assert apart(weights(runs[0]), weights(runs[1])) == 0.0
    assert len(logged(runs[1], "eval_free_running_token_accuracy")) == 3
    # and one that is added afterwards
    late = make(hf.Seq2SeqTrainer, t5(), PAIRS, HALF, trainer={"eval_dataset": PAIRS[:4]})
    late.add_callback(hf.Callback())
    assert "eval_free_running_loss" in late.evaluate()
