"""The table of all generating classes: a few of them tried here, and that it names every class."""

import copy
import re
from pathlib import Path

import pytest
import torch

from family_check import Entry, tried
from family_configs import MAPPINGS, VOCAB, classes, model_of, tiny
from family_table import apart
from freerun import hf

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
ROWS = dict(re.findall(r"^\| (\w+) \| (right|refused|not runnable|our fault) \|", PAGE.read_text(), re.M))

QUICK = {
    "GemmaForCausalLM": "right",  # float32 in places
    "ModernBertDecoderForCausalLM": "right",  # its head has the name of a decoder
    "MllamaForCausalLM": "right",  # more embeddings than symbols
    "NllbMoeForConditionalGeneration": "refused",  # experts of limited capacity
    "Speech2TextForConditionalGeneration": "right",
    "XLNetLMHeadModel": "refused",  # sees both sides
}

IMAGES = (
    "InstructBlipForConditionalGeneration",  # other arguments that go by images
    "MllamaForConditionalGeneration",  # images that layers attend to, and no id stands for
    "Qwen2_5OmniThinkerForConditionalGeneration",  # positions follow the symbols around an image
    "Qwen3_5ForConditionalGeneration",  # what is kept of an earlier call's images; steps of recurrent states
)


@pytest.mark.parametrize("name", IMAGES)
def test_a_class_with_images_two_a_row(name):
    mapping, kind = classes()[name]
    entry = tried(Entry(name, mapping), kind)
    assert (entry.verdict, entry.media) == ("right", "images"), entry


@pytest.mark.parametrize("name", QUICK)
def test_a_class_is_what_the_table_has(name):
    mapping, kind = classes()[name]
    entry = tried(Entry(name, mapping), kind)
    assert (entry.verdict, ROWS[name]) == (QUICK[name], QUICK[name]), entry
    assert (entry.verdict == "right") == bool(entry.engines)


def test_the_table_names_every_class_of_the_mappings_and_no_fault():
    import transformers

    if transformers.__version__ in PAGE.read_text():
        assert set(ROWS) == set(classes())
    assert len(ROWS) > 250
    assert "our fault" not in ROWS.values()
    assert len(MAPPINGS) == 4


def test_a_wrong_number_is_found(monkeypatch):
    """An adapter of other weights than the model's."""
    true = hf.adapt

    def of_others(model, **more):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.mul_(1 + 1e-3)
        return true(other, **more)

    monkeypatch.setattr(hf, "adapt", of_others)
    entry = tried(Entry("LlamaForCausalLM", "CAUSAL_LM"), classes()["LlamaForCausalLM"][1])
    assert entry.verdict == "our fault"
    assert "teacher-forced loss" in entry.reason


@pytest.mark.slow  # some five seconds a class: 40 minutes
@pytest.mark.parametrize("name", classes())
def test_every_class_is_what_the_table_has(name):
    entry = apart(name, *classes()[name])
    assert entry["verdict"] == ROWS[name], entry


def test_ids_beyond_the_outputs_may_be_read_and_not_predicted():
    """A table with rows for images: such ids are no labels."""
    _, kind = classes()["MllamaForCausalLM"]
    m = hf.adapt(model_of("MllamaForCausalLM", tiny(kind)).eval())
    assert m.target_vocab == VOCAB < m.inner.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[5, VOCAB, 6, 7]])
    assert m.batch(input_ids=ids, labels=torch.tensor([[-100, -100, 6, 7]])).history.tolist() == [[VOCAB, 6, 7]]
    with pytest.raises(Exception, match=f"labels holds {VOCAB}"):
        m.batch(input_ids=ids, labels=ids)


@pytest.mark.parametrize("name", ["CamembertForCausalLM", "Kosmos2_5ForConditionalGeneration", "GPT2LMHeadModel"])
def test_padding_on_the_left_of_a_model_that_counts_by_its_ids(name):
    """The first two number positions themselves, from behind their padding, by a table or by sines: none are added."""
    model = model_of(name, tiny(classes()[name][1])).eval()
    m = hf.adapt(model)
    assert m.from_zero == (name == "GPT2LMHeadModel")
    ids, there = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    batch = m.batch(input_ids=ids, attention_mask=there, labels=ids.masked_fill(there == 0, -100))
    alone = torch.nn.functional.cross_entropy(m(batch)[batch.mask], batch.targets[batch.mask])
    labels = ids.masked_fill(there == 0, -100)
    labels[0, 2] = -100  # predicted from padding
    theirs = model(**{**m.inputs(batch), "labels": labels}).loss
    assert theirs.item() == pytest.approx(alone.item(), rel=1e-5)
