"""``eval_loss`` beside ``eval_teacher_forced_loss``: the same quantity, or named as another; the losses of TRL."""

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer

import freerun as fr
import oracles_hf as oracle
from builders import refused
from freerun import hf
from freerun.keys import fold
from hf_trainer_world import COMPLETIONS, END, PAIRS, WORLDS, falling, gpt2, llama, logged, make, tokenizer
from test_hf_trainer_losses import mixtral, shifted_loss
from test_hf_trainer_sft import Kept, Mine, sft

WORDS = tokenizer(eos_token=f"w{END}", pad_token="w0")
# as many labels in every row: means over batches are means over tokens
EVEN = [row for row in COMPLETIONS if sum(label != -100 for label in row["labels"]) == 4]
LEARNT = [{**row, "labels": row["input_ids"]} for row in EVEN]


def scores(trainer: Any) -> dict[str, float]:
    if not any(isinstance(callback, hf.Callback) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(hf.Callback(trainer, rows="all"))
    return trainer.evaluate()


@pytest.mark.parametrize("method", ["stock", None, fr.scheduled_sampling(0.5)], ids=["stock", "none", "method"])
@pytest.mark.parametrize("name", WORLDS)
def test_both_losses_are_nats_a_token(name, method):
    build, _, ours, stock = WORLDS[name]
    rows = EVEN if name != "t5" else [row for row in PAIRS if len(row["labels"]) == 4]
    assert len(rows) >= 5
    cls, more = stock if isinstance(method, str) else ours, {"eval_dataset": rows, "processing_class": WORDS}
    trainer = make(cls, build(), rows, method, per_device_eval_batch_size=len(rows), trainer=more)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = scores(trainer)
    assert found["eval_loss"] == pytest.approx(found["eval_teacher_forced_loss"], rel=1e-5)


def evaluated(cls: Any, **changes: Any) -> Any:
    trainer = sft(cls, *([fr.teacher_forcing()] if issubclass(cls, hf.MethodMixin) else []), max_steps=1, **changes)
    short = [row for row in trainer.train_dataset if sum(label != -100 for label in row["labels"]) == 4]
    trainer.eval_dataset, trainer.args.per_device_eval_batch_size = trainer.train_dataset.from_list(short), len(short)
    return trainer


@pytest.mark.parametrize("cls", [SFTTrainer, Mine], ids=["stock", "mixin"])
def test_trls_loss_is_nats_a_token(cls):
    found = scores(evaluated(cls))
    assert found["eval_loss"] == pytest.approx(found["eval_teacher_forced_loss"], rel=1e-4)


def doubled(*args: Any, **kwargs: Any) -> Any:
    return 2 * shifted_loss(*args, **kwargs)


OTHER: dict[str, tuple[Any, str]] = {
    "dft": (lambda: evaluated(SFTTrainer, loss_type="dft"), "loss_type='dft'"),
    "dft in the mixin": (lambda: evaluated(Mine, loss_type="dft"), "loss_type='dft'"),
    "smoothing": (lambda: of_rows(hf.Trainer, llama(), EVEN, None, label_smoothing_factor=0.2), "smoothing_factor=0.2"),
    "a function": (lambda: of_rows(transformers.Trainer, llama(), EVEN, compute_loss_func=doubled),
                   "compute_loss_func"),
    "routing": (lambda: of_rows(transformers.Trainer, mixtral(), EVEN), "loss on routing"),
    "a first label too many": (lambda: of_rows(transformers.Trainer, gpt2(), LEARNT), "one label a row too many"),
}  # fmt: skip


def of_rows(cls: Any, model: Any, rows: Any, *method: Any, **changes: Any) -> Any:
    more = {"eval_dataset": rows, "processing_class": WORDS}
    more |= {"compute_loss_func": changes.pop("compute_loss_func")} if "compute_loss_func" in changes else {}
    return make(cls, model, rows, *method, trainer=more, **changes)


@pytest.mark.filterwarnings("ignore:hf.Callback. no row has a prompt")
@pytest.mark.parametrize("case", OTHER)
def test_another_quantity_is_named(case):
    build, text = OTHER[case]
    trainer = build()
    with pytest.warns(UserWarning, match=f"eval_loss is another quantity than eval_teacher_forced_loss.*{text}"):
        found = scores(trainer)
    assert found["eval_loss"] != pytest.approx(found["eval_teacher_forced_loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:hf.Callback. no row has a prompt")
@pytest.mark.parametrize("case", ["a method", "no method", "mended", "another class"])
def test_first_labels_are_counted_right_elsewhere(case):
    trainer = {
        "a method": lambda: of_rows(hf.Trainer, gpt2(), LEARNT, fr.teacher_forcing()),
        "no method": lambda: mended(of_rows(hf.Trainer, gpt2(), LEARNT, None)),
        "mended": lambda: mended(of_rows(transformers.Trainer, gpt2(), LEARNT)),
        "another class": lambda: of_rows(transformers.Trainer, llama(), LEARNT),
    }[case]()
    found = scores(trainer)  # another warning fails the test
    assert found["eval_loss"] == pytest.approx(found["eval_teacher_forced_loss"], rel=1e-5)


def mended(trainer: Any) -> Any:
    trainer._loss_shifts_labels = True
    return trainer


# -- TRL's losses on swapped ids


@torch.no_grad()
def by_hand(trainer: Any, method: Any, loss: str) -> float:
    """A step's loss: histories by the full-prefix loop, each row alone, then TRL's formula."""
    model, batch = llama(), trainer.collated
    total, count, key = 0.0, 0, fold(3, "train")
    for number, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids, labels = (batch[name][number, :length].tolist() for name in ("input_ids", "labels"))
        counts = tuple(label != -100 for label in labels[1:])
        row = oracle.Row({}, ids[0], tuple(ids[1:]), counts, number)
        fed = [ids[0], *oracle.full_prefix(model, row, float(method.teacher_forcing_ratio), "sample", key, 0)]
        logits = model(input_ids=torch.tensor([fed[:-1]])).logits[0]
        nll = F.cross_entropy(logits, torch.tensor(labels[1:]), reduction="none", ignore_index=-100)
        total += float((nll if loss == "nll" else nll * (-nll).exp()).sum())
        count += sum(counts)
    return total / count


@pytest.mark.parametrize("ratio", [0.5, 0.0])
@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_a_loss_of_trls_is_the_naive_loops_on_the_methods_history(loss, ratio):
    method = fr.scheduled_sampling(ratio)
    trainer = sft(Kept, method, max_steps=1, loss_type=loss)
    assert logged(trainer) == [pytest.approx(by_hand(trainer, method, loss), rel=1e-5)]


def test_every_loss_of_the_installed_trl_is_one_of_these():
    help = SFTConfig.__dataclass_fields__["loss_type"].metadata["help"]
    named = {each for each in ("nll", "dft", "chunked_nll", "dpo", "grpo", "kl", "gold") if f"'{each}'" in help}
    assert named <= {"nll", "dft", "chunked_nll"}
    with pytest.warns(FutureWarning, match="chunked_nll"):
        trainer = sft(Mine, falling(), max_steps=1, loss_type="chunked_nll")
    assert logged(trainer) == logged(sft(Mine, falling(), max_steps=1))


def test_other_losses_are_refused_by_name_before_the_first_step():
    trainer = make(hf.Trainer, llama(), COMPLETIONS, None)
    arguments = trainer.args
    arguments.loss_type = "unheard"
    refused("loss_type='unheard' is not known", hf.Trainer, llama(), arguments, method=falling())
    arguments.loss_type, arguments.use_liger_kernel = "nll", True
    refused("use_liger_kernel=True is not tested with a method", hf.Trainer, llama(), arguments, method=falling())
    hf.Trainer(llama(), arguments)
