"""``hf.Callback(trainer)`` on stock trainers: scores by hand, samples, cost, refusals."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from datasets import IterableDataset
from sacrebleu.metrics import CHRF

import freerun as fr
import huggingface_world
from builders import refused
from families import CAUSAL, FAMILIES, LANGUAGE, VOCAB
from freerun import UserError, hf
from freerun.integrations.hf_scores import _Rows
from hf_trainer_world import COMPLETIONS, PAIRS, collate, completions, llama, logged, make, pairs, t5, tokenizer

NAMES = ("gpt2", "llama", "qwen3", "mistral", "gemma2", "opt", "bloom", "mamba", "t5", "bart", "mbart", "marian",
         "whisper")  # fmt: skip
PREFIX = "free_running_"


def distance(a: list[int], b: list[int]) -> int:
    """Edit distance by the table."""
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, line[0] = line[0], i
        for j, y in enumerate(b, 1):
            before, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, before + (x != y))
    return line[-1]


class Answers:
    """Rows of a family, their references taken from what the model itself generates, and the scores by hand."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name, self.causal = name, name in CAUSAL
        # Whisper's generate pads, and leaves its end out: a pad that it never predicts tells the two apart
        self.model = FAMILIES[name].build(torch.float32, **({"pad_token_id": 25} if name == "whisper" else {}))
        if name == "whisper":  # its labels begin with no start symbol
            self.model.generation_config.begin_suppress_tokens = [self.model.config.decoder_start_token_id]
        for key, value in settings.items():
            setattr(self.model.generation_config, key, value)
        g = torch.Generator().manual_seed(8)
        self.sources: list[dict[str, Any]] = []
        for length in (3, 1, 5, 2, 4, 3):
            ids = torch.randint(4, VOCAB, (length,), generator=g).tolist()
            features = torch.randn(6, 10, generator=g) if name == "whisper" else None
            self.sources.append({"input_features": features} if name == "whisper" else {"input_ids": ids})
        spoken = [self.generated(source, 6) for source in self.sources]
        self.end = next(ids[t] for t in (3, 2, 1) for ids in spoken if ids[t] not in ids[:t])
        self.model.generation_config.eos_token_id = self.model.config.eos_token_id = self.end
        self.references: list[list[int]] = []
        for number, ids in enumerate(spoken):
            cut = ids[: ids.index(self.end)] if self.end in ids else ids
            if number % 2 and cut:
                cut = [*cut[:-1], next(i for i in range(4 + number, VOCAB) if i not in (self.end, cut[-1]))]
            # mBART's labels end with their language
            self.references.append([*(cut or [5]), self.end, *[LANGUAGE] * (name == "mbart")])

    def generated(self, source: dict[str, Any], number: int) -> list[int]:
        """A row alone, without any padding, by the model's own ``generate``."""
        ready = {k: (v[None] if isinstance(v, torch.Tensor) else torch.tensor([v])) for k, v in source.items()}
        if "input_ids" in ready:
            ready["attention_mask"] = torch.ones_like(ready["input_ids"])
        ids = self.model.eval().generate(**ready, max_new_tokens=number)[0].tolist()
        if self.name == "whisper":  # it returns neither start nor end
            return ids + [self.end] * (len(ids) < number) if hasattr(self, "end") else ids
        return ids[len(source["input_ids"]) :] if self.causal else ids[1:]

    def collate(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        rows: list[dict[str, list[int]]] = []
        for number in numbers:
            reference, ids = self.references[number], self.sources[number].get("input_ids", [])
            whole = [*ids, *reference] if self.causal else ids
            rows.append({"input_ids": whole, "labels": [-100] * len(ids) * self.causal + reference})
        batch = collate(rows)
        if self.name != "whisper":
            return batch
        return {"input_features": torch.stack([self.sources[n]["input_features"] for n in numbers]),
                "labels": batch["labels"]}  # fmt: skip

    def by_hand(self, words: Any) -> dict[str, float]:
        outputs: list[list[int]] = []
        ended: list[bool] = []
        golds = [reference[: reference.index(self.end)] for reference in self.references]
        for source, gold in zip(self.sources, golds, strict=True):
            ids = self.generated(source, 2 * len(gold) + 8)
            ended.append(self.end in ids)
            outputs.append(ids[: ids.index(self.end)] if self.end in ids else ids)
        assert any(a == b for a, b in zip(outputs, golds, strict=True))
        total = sum(map(len, golds))
        texts, gold_texts = (words.batch_decode(ids, skip_special_tokens=True) for ids in (outputs, golds))
        return {
            "exact_match": sum(a.strip() == b.strip() for a, b in zip(texts, gold_texts, strict=True)) / len(golds),
            "chrf": CHRF().corpus_score([t.strip() for t in texts], [[t.strip() for t in gold_texts]]).score,
            "edit_distance": sum(map(distance, outputs, golds)) / total,
            "length_ratio": sum(map(len, outputs)) / total,
            "without_end": 1 - sum(ended) / len(ended),
        }


def scored(answers: Answers, **more: Any) -> dict[str, float]:
    trainer = make(
        transformers.Trainer, answers.model, list(range(6)), per_device_eval_batch_size=4,
        trainer={"data_collator": answers.collate, "eval_dataset": list(range(6)), **more},
    )  # fmt: skip
    trainer.add_callback(hf.Callback(trainer))
    return trainer.evaluate()


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_generates_and_a_scorer_run_by_hand(name):
    answers = Answers(name)
    # its symbols end with eos, but pads of the tokenizer's are words like others
    words = tokenizer(VOCAB, pad_token="w0")
    found, expected = scored(answers, processing_class=words), answers.by_hand(words)
    assert {key: found[f"eval_{PREFIX}{key}"] for key in expected} == pytest.approx(expected, rel=1e-9)
    m, batch = hf.adapt(answers.model), answers.collate(list(range(6)))
    for kind, method in (("teacher_forced", fr.teacher_forcing()), ("free_running", fr.free_running(draw="greedy"))):
        loss = float(method(m, m.batch(**batch), step=0).detach())
        assert found[f"eval_{kind}_loss"] == pytest.approx(loss, rel=1e-4)
    assert found["eval_free_running_rows"] == 6


def stock(name: str = "llama", callback: Any = None, data: Any = None, dev: Any = None, **changes: Any) -> Any:
    """A stock trainer with the callback, which evaluates as it trains."""
    rows = PAIRS if name == "t5" else COMPLETIONS
    more = {"eval_dataset": (pairs if name == "t5" else completions)(20, seed=5) if dev is None else dev}
    more |= {"processing_class": tokenizer(pad_token="w0", eos_token="w1")} | changes.pop("trainer", {})
    settings: Any = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, **changes}
    cls = transformers.Seq2SeqTrainer if name == "t5" else transformers.Trainer
    trainer = make(cls, t5() if name == "t5" else llama(), data or rows, trainer=more, **settings)
    trainer.add_callback(hf.Callback(trainer, rows="all") if callback is None else callback(trainer))
    return trainer


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_at_every_evaluation_of_a_stock_trainer_and_for_its_best_model(name, tmp_path):
    best = "eval_free_running_edit_distance"
    trainer = stock(
        name, folder=tmp_path, metric_for_best_model=best, greater_is_better=False, load_best_model_at_end=True,
        save_strategy="steps", save_steps=2, learning_rate=3e-2,
    )  # fmt: skip
    trainer.train()
    lines = [line for line in trainer.state.log_history if best in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert trainer.state.best_metric == min(line[best] for line in lines)
    assert all(line["eval_free_running_rows"] == 20 and "eval_loss" in line for line in lines)
    again = trainer.evaluate()  # the best model, loaded
    assert again[best] == trainer.state.best_metric
    # an evaluation outside of training, under another name
    assert trainer.evaluate(metric_key_prefix="test")["test_free_running_chrf"] == again["eval_free_running_chrf"]
    trainer.remove_callback(hf.Callback)
    assert "eval_free_running_chrf" not in trainer.evaluate()


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_model_that_is_trained_under_autocast_is_scored(name):
    """In ``bf16`` accelerate's forward rounds, which no probe takes for a later token that is seen."""
    trainer = stock(name, bf16=True)
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_teacher_forced_loss"] == pytest.approx(found["eval_loss"], rel=0.01)
    plain = float(stock(name).evaluate()["eval_teacher_forced_loss"])
    untrained = stock(name, bf16=True)
    assert 0 < abs(untrained.evaluate()["eval_teacher_forced_loss"] - plain) < 0.02  # scored under autocast


def test_evaluation_sets_without_rows_have_no_scores():
    trainer = stock(dev={"a": COMPLETIONS[:4], "none": []})
    trainer.train()
    keys = {key for line in trainer.state.log_history for key in line if "free_running_loss" in key}
    assert keys == {"eval_a_free_running_loss"}


def test_a_callback_that_was_never_added_says_so():
    trainer = make(transformers.Trainer, llama(), COMPLETIONS, trainer={"eval_dataset": COMPLETIONS[:4]})
    hf.Callback(trainer)
    with pytest.warns(UserWarning, match=r"trainer\.add_callback\(hf\.Callback\(trainer\)\)"):
        trainer.evaluate()


def test_training_is_as_without_the_callback():
    one, other = stock(), stock()
    one.remove_callback(hf.Callback)
    with pytest.warns(UserWarning, match="adds no scores"):
        one.train()
    other.train()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert logged(one) == logged(other)
    assert logged(one, "eval_loss") == logged(other, "eval_loss")
    pickle.dumps(other.evaluation_loop.func.__self__.method)


def padded_left(rows: Any) -> Any:
    batch = collate(rows)
    shift = (1 - batch["attention_mask"]).sum(1)
    return {k: torch.stack([v.roll(int(n)) for v, n in zip(part, shift, strict=True)]) for k, part in batch.items()}


def packed(rows: Any) -> Any:
    """All rows in one, as a collator without padding makes it."""
    whole = {name: torch.tensor([[t for row in rows for t in row[name]]]) for name in ("input_ids", "labels")}
    return {**whole, "position_ids": torch.tensor([[t for row in rows for t in range(len(row["labels"]))]])}


@pytest.mark.parametrize("collator", [padded_left, packed])
def test_scores_do_not_depend_on_the_layout(collator):
    found, expected = (
        stock(trainer={"data_collator": each}, per_device_eval_batch_size=3).evaluate() for each in (collator, collate)
    )
    keys = [key for key in expected if "free_running" in key or "teacher" in key]
    assert len(keys) == 10
    assert {key: found[key] for key in keys} == pytest.approx({key: expected[key] for key in keys}, rel=1e-5)


def test_every_turn_is_generated_after_the_gold_turns_before_it():
    row = {"input_ids": [5, 6, 7, 8, 9, 10, 11, 12], "labels": [-100, -100, 7, 8, -100, -100, 11, 12]}
    model = llama().eval()
    trainer = make(transformers.Trainer, model, [row], trainer={"eval_dataset": [row]})
    trainer.add_callback(hf.Callback(trainer, generation={"max_new_tokens": 2, "eos_token_id": None}))
    with pytest.warns(UserWarning, match="without a tokenizer"):
        found = trainer.evaluate()
    wrong = 0
    for prompt, reference in (([5, 6], [7, 8]), ([5, 6, 7, 8, 9, 10], [11, 12])):
        ids = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=2)
        wrong += distance(ids[0, len(prompt) :].tolist(), reference)
    assert found["eval_free_running_edit_distance"] == wrong / 4
    assert found["eval_free_running_without_end"] == 1
    assert "eval_free_running_chrf" not in found
    # a text that is learnt from its first token on has no prompt
    row["labels"] = row["input_ids"]
    with pytest.warns(UserWarning, match="no row has a prompt"):
        assert "eval_free_running_exact_match" not in trainer.evaluate()


SETTINGS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2}, "several returned": {"num_beams": 3, "num_return_sequences": 2},
    "no repetition": {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "a length": {"repetition_penalty": 3.0, "max_new_tokens": 3}, "suppressed": {"suppress_tokens": [1, 9]},
    "forced": {"forced_bos_token_id": 7},
}  # fmt: skip


def test_strings_that_stop_generation_are_found_by_the_trainers_tokenizer():
    words = huggingface_world.tokenizer()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(huggingface_world.config("llama", len(words))).eval()
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = None, 12
    ids = words("a man runs.").input_ids
    long = model.generate(torch.tensor([ids]))[0, len(ids) :].tolist()
    stop = next(text for n in range(1, 12) if (text := words.decode([long[n]])).strip().isascii() and text.strip())
    model.generation_config.stop_strings = [stop]
    row = {"input_ids": [*ids, *long], "labels": [-100] * len(ids) + long}
    trainer = make(transformers.Trainer, model, [row], trainer={"eval_dataset": [row], "processing_class": words})
    trainer.add_callback(hf.Callback(trainer))
    stopped = next(n for n in range(1, 12) if stop in words.decode(long[:n]))
    assert trainer.evaluate()["eval_free_running_length_ratio"] == stopped / 12 < 1


@pytest.mark.filterwarnings("ignore:labels begin with")  # of another id than what is forced
@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_generation_settings_are_the_models_own(name, case):
    settings = SETTINGS[case]
    if name == "llama" and case == "forced":  # of decoders alone it means something else
        settings = {"bad_words_ids": [[7], [9]]}
    plain, answers = Answers(name), Answers(name, **({"forced_bos_token_id": 7} if case == "forced" else {}))
    for key, value in settings.items():
        setattr(answers.model.generation_config, key, value)
    if "max_new_tokens" in settings:  # what has a length keeps it
        generated = answers.generated
        answers.generated = lambda source, number: generated(source, 3)
    words = tokenizer(VOCAB, pad_token="w0")
    found, expected = scored(answers, processing_class=words), {}
    outputs = [answers.generated(source, 2 * reference.index(answers.end) + 8) for source, reference in
               zip(answers.sources, answers.references, strict=True)]  # fmt: skip
    golds = [reference[: reference.index(answers.end)] for reference in answers.references]
    own = [ids[: ids.index(answers.end)] if answers.end in ids else ids for ids in outputs]
    expected["length_ratio"] = sum(map(len, own)) / sum(map(len, golds))
    expected["edit_distance"] = sum(map(distance, own, golds)) / sum(map(len, golds))
    assert {key: found[f"eval_{PREFIX}{key}"] for key in expected} == pytest.approx(expected)
    assert scored(plain, processing_class=words)["eval_free_running_edit_distance"] != expected["edit_distance"]


def test_the_sample_is_the_same_rows_whatever_the_seed():
    loader = SimpleNamespace(dataset=list(range(50)), batch_sampler=(), collate_fn=list)
    order = _Rows(loader).order(20)
    assert len(set(order)) == 20
    assert order != sorted(order)
    assert _Rows(loader).order(7) == order[:7]
    scores = [stock(callback=lambda t: hf.Callback(t, rows=6), seed=seed).evaluate() for seed in (1, 2)]
    assert scores[0]["eval_free_running_rows"] == 6
    assert scores[0]["eval_free_running_loss"] == scores[1]["eval_free_running_loss"]
    # a stream: its first rows
    rows = completions(20, seed=5)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    streamed = stock(callback=lambda t: hf.Callback(t, rows="all"), dev=stream).evaluate()
    whole = stock().evaluate()
    for key in ("eval_free_running_loss", "eval_free_running_chrf"):
        assert streamed[key] == pytest.approx(whole[key], rel=1e-6)


def test_settings_that_sample_draw_the_same_again():
    def once() -> dict[str, float]:
        sampling = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 6}
        return stock(callback=lambda t: hf.Callback(t, generation=sampling)).evaluate()

    first, second, greedy = once(), once(), stock().evaluate()
    assert first["eval_free_running_edit_distance"] == second["eval_free_running_edit_distance"]
    assert first["eval_free_running_edit_distance"] != greedy["eval_free_running_edit_distance"]


class Watch:
    """A clock of which a step of training takes 10 seconds and a row of scores 0.1."""

    def __init__(self, trainer: Any, monkeypatch: Any) -> None:
        self.now, self.rows = 0.0, list[int]()
        callback = next(each for each in trainer.callback_handler.callbacks if isinstance(each, hf.Callback))
        step, chunk = trainer.training_step, callback._chunk

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.now += 10
            return step(*args, **kwargs)

        def scored(*args: Any) -> Any:
            self.now += 0.1 * len(args[3])
            return chunk(*args)

        trainer.training_step, callback._chunk = stepped, scored
        monkeypatch.setattr("freerun.integrations.hf_scores.time.perf_counter", lambda: self.now)


def test_the_sample_is_sized_by_its_cost(monkeypatch):
    def trained(steps: int, cost: float = 0.05, **more: Any) -> Any:
        trainer = stock(callback=lambda t: hf.Callback(t, cost=cost), dev=completions(300, seed=5), **more)
        trainer.args.max_steps = steps
        Watch(trainer, monkeypatch)
        trainer.train()
        rows, costs = (logged(trainer, f"eval_free_running_{name}") for name in ("rows", "cost"))
        return trainer, rows, costs

    # 20 steps of 10 seconds: 5 % are 10 seconds, of which the first evaluation may use 8: 1 + 2 + 4 + 8 + 8 ... rows
    trainer, rows, costs = trained(60, eval_steps=20)
    assert rows == [79, 79, 79]
    assert max(costs) <= 0.05
    assert trainer.evaluate()["eval_free_running_rows"] == 79
    # decided in a hurry: it grows as the budget does, up to 64 rows
    rows, costs = trained(12, eval_steps=2)[1:]
    assert rows[0] < 8 < rows[-1] <= 64
    assert max(costs) <= 0.05
    # before any step nothing can be measured: a batch
    rows, costs = trained(20, eval_steps=20, eval_on_start=True)[1:]
    assert rows[0] == 8 < rows[1]
    with pytest.warns(UserWarning, match="evaluate less often"):
        trained(2, cost=0.001, eval_steps=1)


def test_a_resumed_run_scores_the_same_rows(tmp_path, monkeypatch):
    options: Any = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 2}
    trainer = stock(callback=lambda t: hf.Callback(t, cost=1.0), **options)
    Watch(trainer, monkeypatch)
    trainer.train()
    again = stock(callback=lambda t: hf.Callback(t, cost=1e-9), **options)
    Watch(again, monkeypatch)
    with pytest.warns(UserWarning, match="more than cost"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    rows = logged(again, "eval_free_running_rows")
    assert rows == [logged(trainer, "eval_free_running_rows")[0]] * 2
    assert rows[0] > 1


@pytest.mark.parametrize("call", ["evaluate", "train"])
def test_a_callback_that_no_trainer_is_bound_to_is_refused(call):
    trainer = stock(callback=lambda _: hf.Callback())
    refused("does not know its trainer", getattr(trainer, call))


class Batches(torch.utils.data.IterableDataset):
    """A dataset of complete batches."""

    def __iter__(self) -> Any:
        yield collate(COMPLETIONS[:4])


def unlabelled(rows: Any) -> Any:
    return {name: value for name, value in collate(rows).items() if name != "labels"}


REFUSED: dict[str, tuple[Any, Any]] = {
    "the worst kept": ({"metric_for_best_model": "eval_free_running_edit_distance", "greater_is_better": True},
                       "would keep the worst by free_running_edit_distance: greater_is_better=False"),
    "the worst kept of a set": (
        {"metric_for_best_model": "eval_a_free_running_edit_distance", "greater_is_better": True,
         "dev": {"a": COMPLETIONS[:2], "b": COMPLETIONS[2:4]}},
        "would keep the worst by free_running_edit_distance: greater_is_better=False",
    ),
    "no direction": ({"metric_for_best_model": "free_running_length_ratio", "greater_is_better": True},
                     "has no better direction"),
    "no texts": ({"metric_for_best_model": "eval_free_running_chrf", "trainer": {"processing_class": None}},
                 "needs texts"),
    "no labels": ({"trainer": {"data_collator": unlabelled}}, "has no labels; it has input_ids, attention_mask"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_refused_before_the_first_step(case):
    changes, text = REFUSED[case]
    trainer = stock(**changes)
    refused(text, trainer.train)
    assert trainer.state.global_step == 0


def test_arguments_and_trainers_that_are_refused():
    trainer = make(transformers.Trainer, llama(), COMPLETIONS, trainer={"callbacks": [hf.Callback()]})
    refused(r"trainer\.add_callback\(hf\.Callback\(trainer\)\)", trainer.train)
    refused("batches must be at least 1", hf.Callback, batches=0)
    refused(["rows must be", "cost must lie in"], hf.Callback, trainer, rows=0, cost=7)
    refused("draw='sample' is an argument", hf.Callback, "sample")
    complete = make(transformers.Trainer, llama(), COMPLETIONS)
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
    refused("makes complete batches", hf.Callback(complete).scores, complete, loader)
    short = stock(callback=lambda t: hf.Callback(t, generation={"max_length": 2}))
    refused("generation={'max_new_tokens': 64}", short.evaluate)


@pytest.mark.parametrize(("given", "name"), [(transformers.Trainer, "type"), (torch.nn.Linear(1, 1), "Linear")])
def test_what_is_no_trainer_is_named_by_its_class(given, name):
    with pytest.raises(UserError, match=f"the first argument is the trainer; got {name}$"):
        hf.Callback(given)
    assert "evaluation_loop" in vars(transformers.Trainer)


@pytest.mark.parametrize("given", ["scheduled_sampling", fr.scheduled_sampling])
def test_a_method_that_is_none_is_refused_at_construction(given):
    with pytest.raises(UserError, match="method must be a method, such as"):
        hf.Trainer(model=None, method=given)
