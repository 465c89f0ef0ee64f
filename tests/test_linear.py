"""Logits of few rows: the layer's, whatever the layer is."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import freerun as fr
from freerun.models import RecurrentSeq2Seq, TransformerLM, linear
from freerun.models.linear import as_written, logits
from freerun.rollin import Replacement
from freerun.rollin.step import step_roll_in


@pytest.fixture(autouse=True)
def _few_weights_are_many(monkeypatch):
    monkeypatch.setattr(linear, "_MANY", 1)


class Products(TorchDispatchMode):
    """The shapes of both factors of every product of matrices."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes.append(tuple(tuple(each.shape) for each in args[-2:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 12, 64, 65])
def test_it_is_the_layer(rows, bias):
    layer, hidden = nn.Linear(5, 11, bias=bias, dtype=torch.float64), torch.randn(rows, 5, dtype=torch.float64)
    with torch.no_grad():
        with Products() as products:
            found = logits(layer, hidden)
        assert torch.allclose(found, layer(hidden), rtol=0, atol=1e-13)
        assert found.is_contiguous()
        assert ((11, 5), (5, rows)) == products.shapes[0] if 2 <= rows <= 64 else (11, 5) not in products.shapes[0]
        assert torch.equal(logits(layer, hidden[None]), layer(hidden[None]))
    assert logits(layer, hidden).requires_grad, "the training forward is the layer's"


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Packed(torch.Tensor):
    """A quantized or sharded weight: a tensor of its own class, of which a linear layer alone knows the product."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.mm, torch.addmm):
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def _changed(how):
    """A layer whose call is twice ``nn.Linear``'s, and what undoes a change to all layers."""
    layer = Doubled(5, 11) if how == "subclass" else nn.Linear(5, 11)
    double = lambda *found: 2 * found[-1]  # noqa: E731
    if how == "hook":
        layer.register_forward_hook(double)
    elif how == "before":
        layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    elif how == "method":
        layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    elif how == "packed":
        layer.weight = nn.Parameter(2 * layer.weight.detach().as_subclass(Packed))
    elif how == "compiled":
        layer.compile(backend=lambda graph, _: lambda *inputs: [2 * each for each in graph(*inputs)])
    elif how == "parametrized":
        nn.utils.parametrizations.weight_norm(layer)
    elif how == "everywhere":
        return layer, nn.modules.module.register_module_forward_hook(double).remove
    return layer, lambda: None


@pytest.mark.parametrize(
    "how", ["subclass", "hook", "before", "method", "packed", "compiled", "parametrized", "everywhere"]
)
def test_a_layer_that_somebody_changed_is_called(how):
    layer, undo = _changed(how)
    hidden = torch.randn(3, 5)
    try:
        assert how in ("subclass", "packed", "parametrized") or not as_written(layer)
        with torch.no_grad():
            assert torch.equal(logits(layer, hidden), layer(hidden))
    finally:
        undo()


def test_autocast_is_the_layer_s():
    layer, hidden = nn.Linear(5, 11), torch.randn(3, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(layer, hidden).dtype == torch.bfloat16
    with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype"):
        logits(layer, hidden.double())


RUNS = {
    **{
        engine: lambda model, batch, engine=engine: (
            fr.scheduled_sampling(0.5, engine=engine).transform(model, batch, step=0).history
        )
        for engine in ("auto", "step", "window", "jacobi")
    },
    "generate": lambda model, batch: fr.generate(model, batch, length=12, draw="sample").entries,
    "beams": lambda model, batch: fr.generate(model, batch, length=12, beams=3, end=0).entries,
}


@pytest.mark.parametrize(
    ("kind", "run"),
    [(kind, run) for kind in ("recurrent", "transformer") for run in RUNS if (kind, run) != ("recurrent", "window")],
)
def test_what_a_model_makes_is_the_same_with_few_rows_as_columns(kind, run, monkeypatch):
    torch.set_default_dtype(torch.float64)
    source = {"source": torch.randint(1, 7, (5, 4)), "source_mask": torch.ones(5, 4, dtype=torch.bool)}
    recurrent = kind == "recurrent"
    model = RecurrentSeq2Seq(7, 9, size=8, embedding=5) if recurrent else TransformerLM(9, size=8, layers=1, heads=2)
    batch = fr.Batch(torch.randint(0, 9, (5, 12)), context=source if recurrent else None)
    columns, products = [], {}
    for many in (1, 10**9):
        monkeypatch.setattr(linear, "_MANY", many)
        with Products() as products[many]:
            columns.append(RUNS[run](model.eval(), batch))
    assert torch.equal(*columns)
    taken = {many: any(first == (9, 8) for first, _ in each.shapes) for many, each in products.items()}
    assert taken == {1: True, 10**9: False}


@pytest.mark.parametrize("ratio", [1.0, 0.6, 0.0])
def test_entries_that_will_be_own_are_not_embedded_before(ratio):
    model = RecurrentSeq2Seq(7, 500, size=8).eval()  # more symbols than entries: no table
    source = {"source": torch.randint(1, 7, (5, 4)), "source_mask": torch.ones(5, 4, dtype=torch.bool)}
    batch = fr.Batch(torch.randint(0, 500, (5, 12)), context=source)
    keep = torch.rand(5, 12) < ratio
    keep[0, 10:] = False  # the loop goes to the end
    embedded, embed = [], model.embed
    model.embed = lambda entries: (embedded.append(entries.numel()), embed(entries))[1]
    with torch.no_grad():
        step_roll_in(model, batch, Replacement.of(batch, keep, fr.draws.resolve("sample"), 0))
    gold = int(keep[:, :11].sum())
    assert embedded[0] == max(1, gold)
    assert sum(embedded) == max(1, gold) + int((~keep[:, :11]).sum())
