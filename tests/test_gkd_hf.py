"""GKD between Hugging Face models from Python and in their trainers: what does not fit is refused by name."""

import copy

import peft
import pytest
import torch

import freerun as fr
from builders import refused, tiny_llama
from freerun import hf
from freerun.integrations.hf_runner import smoothed
from freerun.methods import Teacher
from freerun.methods.own_runs import with_end
from hf_trainer_world import WORLDS, gpt2, make

# peft asks the model by an attribute's old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def changed(model):
    """The model with other weights."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=g))
    return model


def test_label_smoothing_is_refused_where_the_loss_is_the_methods_own(tmp_path):
    _, data, trainer, _ = WORLDS["gpt2"]
    method = fr.gkd(0.5, teacher=hf.adapt(changed(gpt2())))
    refused(
        "label_smoothing_factor=0.1 in the arguments: gkd has a loss of its own", make, trainer, gpt2(), data, method,
        tmp_path, label_smoothing_factor=0.1,
    )  # fmt: skip
    for each in (fr.minimum_risk(end=0), fr.self_critical(end=0)):
        refused(f"{each.name} has a loss of its own", smoothed, each, 0.1)
        assert smoothed(each, 0.0) is each
    refused("two losses", smoothed, fr.teacher_forcing(objective=lambda outputs, batch: (0, 1)), 0.1)


def test_a_model_that_is_not_adapted_is_refused_at_construction():
    wrapped = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (tiny_llama(), wrapped):
        refused(("give freerun.hf.adapt(teacher)",), fr.gkd, 0.5, teacher=model)


def rows(adapted, end=1):
    ids = torch.tensor([[3, 4, 5, 6, end], [3, 4, 7, end, 0]])
    labels = ids.masked_fill(torch.arange(5) < 2, -100).masked_fill(ids == 0, -100)
    return adapted.batch(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels)


@pytest.mark.parametrize("drawn", [False, True])  # True: adapters that do nothing yet
def test_the_students_weights_may_be_the_teachers_if_it_predicts_otherwise(tmp_path, drawn):
    model = tiny_llama()
    student = hf.adapt(model)
    same = "has weights of the student and predicts the same"
    refused(same, fr.gkd(0.5, teacher=hf.adapt(model)), student, rows(student), 0)
    build, data, trainer, _ = WORLDS["gpt2"]
    ours = build()
    refused(same, make(trainer, ours, data, fr.gkd(0.5, teacher=hf.adapt(ours)), tmp_path).train)
    assert fr.gkd(0.5, teacher=hf.adapt(changed(copy.deepcopy(model))))(student, rows(student), 0) > 0
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=drawn)
    adapter = peft.get_peft_model(tiny_llama(), config).double()
    student = hf.adapt(adapter)

    class Base(torch.nn.Module):
        """The student without its adapters, whose trained weights are its own too."""

        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, batch):
            with adapter.disable_adapter():
                return self.student(batch)

    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    other = student(rows(student)).square().mean()  # a loss of the caller's, whose graph holds the weights
    loss = fr.gkd(0.5, teacher=Base())(student, rows(student), 0)
    assert loss.item() == 0 if drawn else loss.item() > 0
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
    (other + loss).backward()


def test_ends_of_student_and_teacher_are_compared_by_the_rows():
    student, model = hf.adapt(gpt2()), changed(gpt2())
    model.generation_config.eos_token_id = 3
    teacher = hf.adapt(model)
    refused("rows end with 1 and the teacher's with 3", fr.gkd(1.0, teacher=teacher), student, rows(student), 0)
    assert fr.gkd(1.0, teacher=Teacher(teacher, follows=True))(student, rows(student), 0) > 0  # a recipe has compared
    assert fr.gkd(1.0, teacher=teacher)(student, rows(student, end=3), 0) > 0
    for ends in ([3, 1], None):
        model.generation_config.eos_token_id = model.config.eos_token_id = ends
        assert fr.gkd(1.0, teacher=hf.adapt(model))(student, rows(student), 0) > 0


def test_the_configuration_is_part_of_a_teachers_identity(tmp_path):
    one, other = tiny_llama(), tiny_llama(rope_theta=100.0)
    other.load_state_dict(one.state_dict())
    method = fr.gkd(0.5, teacher=hf.adapt(one))
    assert repr(method) != repr(fr.gkd(0.5, teacher=hf.adapt(other)))
    one.save_pretrained(tmp_path)
    again = type(one).from_pretrained(tmp_path, dtype=torch.float64)
    assert repr(method) == repr(fr.gkd(0.5, teacher=hf.adapt(again)))


def test_a_signature_of_a_teacher_is_the_same_after_its_use():
    student, teacher = hf.adapt(tiny_llama()), hf.adapt(changed(tiny_llama()))
    before = repr(fr.gkd(0.5, teacher=teacher))
    fr.gkd(0.5, teacher=teacher)(student, rows(student), 0)
    fr.evaluate(teacher, [rows(student)])
    teacher.inner.config.use_cache = False
    assert repr(fr.gkd(0.5, teacher=teacher)) == before
    other = hf.adapt(changed(tiny_llama(rope_theta=5.0)))
    assert repr(fr.gkd(0.5, teacher=other)) != before


def test_the_students_own_end_is_that_of_its_generation_and_in_a_recipe_of_the_data():
    student, teacher = hf.adapt(tiny_llama(3)), hf.adapt(changed(tiny_llama(3)))
    ids = torch.tensor([[2, 1, 1, 1, 1, 1, 0]]).repeat(8, 1)
    labels = ids.masked_fill(torch.arange(7) == 0, -100)
    for end in (0, 2):
        student.inner.generation_config.eos_token_id = teacher.inner.generation_config.eos_token_id = end
        batch = student.batch(input_ids=ids, labels=labels)
        found, named = (fr.gkd(0.0, teacher=teacher, **more).run(student, batch, 0, 5) for more in ({}, {"end": end}))
        assert found.report["after_end"] > 0
        assert found.report == named.report
        assert torch.equal(found.total, named.total)
    assert with_end(fr.gkd(0.5, teacher=teacher), 7).end == 7
    assert with_end(fr.gkd(0.5, teacher=teacher, end=2), 7).end == 2
    assert with_end(fr.gkd(0.5, teacher=teacher), None).end is None
