"""Under autocast each weight is cast once a roll-in, and nothing before or after meets a cast that was made in it."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

import freerun as fr
from builders import (
    Casts,
    ForwardOnly,
    assert_same_gradients,
    gradients,
    language_model,
    prompted,
    ragged,
    seq2seq,
    transformer,
)

KEY, STEP, RATIO = 5, 3, 0.4
BF16 = partial(torch.autocast, "cpu", torch.bfloat16)
UNCACHED = partial(BF16, cache_enabled=False)
GUMBEL = fr.draws.Sample(coupling="gumbel")
METHODS = {
    **{str(engine): fr.scheduled_sampling(RATIO, engine=engine)
       for engine in ("auto", "step", "jacobi", "window", fr.Window(3), "draft", 2)},
    "draft, Gumbel": fr.scheduled_sampling(RATIO, engine="draft", draw=GUMBEL),
    "two passes": fr.two_pass(RATIO, mix="sample"),
}  # fmt: skip


class Casting(nn.Module):
    """A model that brings an autocast of its own to every call, as ``accelerate`` makes them."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        with BF16():
            return self.inner(batch).float()


class Parts(nn.Module):
    """A small decoder whose second layer runs under an autocast of its own, or under none."""

    def __init__(self, **inside) -> None:
        super().__init__()
        self.embedding, self.inside = nn.Embedding(9, 8), inside
        self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 9)

    def forward(self, batch):
        inputs = nn.functional.pad(batch.history, (1, -1))
        hidden = torch.tanh(self.first(self.embedding(inputs).cumsum(1)))
        with torch.autocast("cpu", **self.inside):
            hidden = torch.tanh(self.second(hidden.to(self.second.weight.dtype)))
        return self.out(hidden)


def parts(**inside):
    words = torch.arange(24).view(4, 6) % 8
    return Parts(**inside), fr.Batch(words, words, torch.ones_like(words, dtype=torch.bool))


def language(size=6):
    return language_model().float(), prompted("right", size=size)


STEPPERS = {
    "transformer": lambda: (transformer().float(), ragged(size=6)),
    "dropout": lambda: (transformer(dropout=0.2).float(), ragged(size=6)),
    "language model": language,
    "gru": lambda: (seq2seq("gru").float(), ragged(size=6)),
}
FORWARDS = {
    "forward only": lambda: (ForwardOnly(language()[0]), language()[1]),
    "casts itself": lambda: (Casting(language()[0]), language()[1]),
    "casts inside": lambda: parts(dtype=torch.bfloat16),
    "casts to fp16 inside": lambda: parts(dtype=torch.float16),
    "casts nothing inside": lambda: parts(enabled=False),
}
CASES = STEPPERS | FORWARDS
WITHOUT = dict.fromkeys(FORWARDS, ("step", "window", "Window(width=3)")) | {"gru": ("window", "Window(width=3)")}
PAIRS = [(case, method) for case in CASES for method in METHODS if method not in WITHOUT.get(case, ())]


@pytest.mark.parametrize(("case", "method"), PAIRS)
def test_weights_are_cast_once_and_everything_is_what_it_is_without_a_cache(case, method):
    torch.manual_seed(1)
    (model, batch), method = CASES[case](), METHODS[method]
    with UNCACHED():
        expected = method.transform(model, batch, STEP, KEY).history
    with BF16(), Casts(model) as casts:
        history = method.transform(model, batch, STEP, KEY).history
    assert casts.most == 1
    with BF16():
        torch.manual_seed(4)  # of dropout
        outcome = method.run(model, batch, STEP, KEY)
    assert outcome.report["replaced"] > 4
    for made in (history, outcome.fed.history):
        assert torch.equal(made, expected)
    with BF16():  # the same forward, alone
        torch.manual_seed(4)
        alone = fr.teacher_forcing().run(model, outcome.fed, step=0)
    found = gradients(model, outcome.loss)
    # a draft's rows that failed went forward again, beside the others
    assert_same_gradients(found, gradients(model, alone.loss), 0.01 if "draft" in str(method) else 0.0)
    assert all(bool(gradient.any()) for name, gradient in found.items() if "embed" not in name)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in WITHOUT["casts itself"]])
@pytest.mark.parametrize("around", ["nothing", "bf16", "disabled", "of another device"])
def test_a_model_that_casts_itself_casts_once_whatever_is_around_it(method, around):
    """The end of its own autocast clears the cache only where none is around it."""
    (model, batch), method = CASES["casts itself"](), METHODS[method]
    expected = method.transform(model, batch, STEP, KEY).history
    torch.set_autocast_enabled("cuda", around == "of another device")
    try:
        with nullcontext() if around == "nothing" else BF16(enabled=around == "bf16"), Casts(model) as casts:
            assert torch.equal(method.transform(model, batch, STEP, KEY).history, expected)
            assert casts.most == 1
            outcome = method.run(model, batch, STEP, KEY)
    finally:
        torch.set_autocast_enabled("cuda", False)
    found = gradients(model, outcome.loss)
    assert_same_gradients(found, gradients(model, fr.teacher_forcing().run(model, outcome.fed, step=0).loss), 0.0)


@pytest.mark.parametrize("engine", ["step", "jacobi", "window"])
def test_in_one_autocast_nothing_is_older_than_the_weights(engine):
    """Neither what a roll-in meets nor what it leaves, with one autocast around a whole training loop."""
    (model, batch), method = language(), fr.scheduled_sampling(RATIO, engine=engine)
    found = []

    def history(model):
        return method.transform(model, batch, STEP, KEY).history

    @torch.no_grad()
    def outputs(model):
        return model(batch)

    with BF16():
        for call in (history, outputs, history, outputs):  # what a plain call casts is kept
            found.append((call, copy.deepcopy(model), call(model)))
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.roll(1, 0))
    for call, before, result in found:
        with UNCACHED():
            assert torch.equal(call(before), result)
    assert not torch.equal(found[0][2], found[2][2])


def test_two_steps_in_one_autocast_have_the_gradients_of_two_alone():
    """Each backward goes through casts of its own step's forward, whatever was rolled in between."""
    (model, batch), method = language(), fr.scheduled_sampling(RATIO)
    with BF16():
        losses = [method(model, batch, step=step, key=KEY) for step in (1, 2)]
        method.transform(model, batch, 3, KEY)
    together = [gradients(model, loss) for loss in reversed(losses)][::-1]
    for step, found in zip((1, 2), together, strict=True):
        with BF16():
            loss = method(model, batch, step=step, key=KEY)
        assert_same_gradients(found, gradients(model, loss), 0.0)


@pytest.mark.parametrize("gradient", ["full", 3, "checkpointed"])
def test_values_with_their_gradient(gradient):
    """The unrolled loop is the training forward: its weights are cast with a graph, by pieces where it is cut."""
    torch.manual_seed(2)
    model = fr.models.Seq2SeqModel(2, 7, 4)
    batch = fr.Batch(torch.randn(3, 8, 4), context=torch.randn(3, 5, 2), mask=torch.arange(8).expand(3, 8) > 3)
    method = fr.scheduled_sampling(RATIO, gradient=gradient)
    found = []
    for around in (BF16, UNCACHED):
        with around():
            outcome = method.run(model, batch, STEP, KEY)
        found.append(gradients(model, outcome.loss))
    assert_same_gradients(*found, 0.02)  # sums over positions are rounded once a cast
    # the first cut comes before anything that is learnt
    silent = [name for name, each in found[0].items() if not bool(each.any())]
    assert all(name.startswith("encoder") for name in silent)
    assert bool(silent) == (gradient == 3)


@pytest.mark.parametrize("what", ["generate", "beams", "samples", "free running", "evaluate", "diagnose"])
def test_what_calls_a_model_many_times_casts_its_weights_a_few_times(what):
    """Once a run of entries; scores are made of several runs and passes."""
    model, batch = language()
    prompts = fr.Batch(batch.targets, batch.history, batch.mask, eligible=batch.replaceable)
    calls = {
        "generate": lambda: fr.generate(model, prompts, length=12),
        "beams": lambda: fr.generate(model, prompts, length=12, beams=3),
        "samples": lambda: fr.generate(model, prompts, length=12, draw="sample", num_samples=3),
        "free running": lambda: fr.free_running().transform(model, batch, step=0),
        "evaluate": lambda: fr.evaluate(model, [batch]),
        "diagnose": lambda: fr.diagnose(model, [batch]),
    }
    counts = []
    for around in (BF16, UNCACHED):
        with around(), Casts(model) as casts:
            calls[what]()
        counts.append(casts.most)
    runs = {"evaluate": 4, "diagnose": 10}.get(what, 1)
    assert counts[0] <= runs < counts[1]
