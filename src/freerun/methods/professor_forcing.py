"""Professor forcing: a discriminator makes the states of a free run like those under teacher forcing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from freerun import objectives, targets
from freerun.arguments import whole
from freerun.batch import Batch
from freerun.draws import Draw
from freerun.errors import CheckpointError, UserError
from freerun.keys import fold
from freerun.methods.base import SHARED, Citation, TransformMethod, last_width, zero_unused
from freerun.methods.report import replacement_counts
from freerun.methods.scheduled_sampling import FreeRunning
from freerun.objectives import Objective
from freerun.rollin import Engine, eval_mode, unwrap
from freerun.rollin.training import with_hidden
from freerun.schedules import Schedule
from freerun.types import Outcome

_NUMBERS = ("accuracy", "step", "correct", "judged")

_TRAINED: WeakKeyDictionary[nn.Module, Callable[[], nn.Module | None]] = WeakKeyDictionary()
"""The modules of methods, and the model that each is trained with."""


class Discriminator(nn.Module):
    """A bidirectional GRU and, at every position, a network of three layers to a logit; a row's is their mean.

    Args:
        width: of a behaviour.
        size: of the GRU's state in each direction, and of the layers.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(width, size, batch_first=True, bidirectional=True)
        layers = [nn.Linear(2 * size, size), nn.LeakyReLU(), nn.Linear(size, size), nn.LeakyReLU(), nn.Linear(size, 1)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, behaviour: Tensor, mask: Tensor) -> Tensor:
        """Return (rows,) logits of "teacher-forced" of behaviours (rows, time, width); each row of the mask counts."""
        lengths, order = mask.sum(1), (~mask).int().argsort(dim=1, stable=True)
        first = behaviour.gather(1, order[..., None].expand_as(behaviour)).to(self.rnn.all_weights[0][0].dtype)
        packed = pack_padded_sequence(first, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        used = torch.arange(states.shape[1], device=mask.device) < lengths[:, None]
        return torch.where(used, self.mlp(states).squeeze(-1), 0.0).sum(1) / lengths


@dataclass(frozen=True, repr=False)
class ProfessorForcing(TransformMethod):
    """Teacher forcing, and a loss that a discriminator cannot tell the model's free runs from it.

    ``loss_G = -sum_t log p(y_t | y_<t, x) - w log D(B(h))``; ``loss_D = -n log D(B(y)) - n log(1 - D(B(h)))``.
    B(h) is the model's states (``hidden`` where it has it, else its outputs) on a history h ~ p(h | x) of its own, B(y)
    on gold; n is the number of a row's positions that count, which makes loss_D as large as a mean over rows. With
    weights, or a target that leaves positions out, n is what they weigh together, and w has their mean as a factor.
    Samples are constants, states carry the gradient. The total is the sum of both losses, and the weights of the
    discriminator get the gradient of loss_D alone, those of the model that of loss_G. The discriminator's
    accuracy in the update before decides whether each loss is used.

    The discriminator is a module of the method (``modules``): freerun's training loop trains it and keeps it in
    checkpoints, never in ``model/``, and does not average it. In a loop of one's own an optimizer must have it. One
    object trains one model.

    Args:
        weight: w, a number of 0 or more or a schedule; as published 1. At 0 it is teacher forcing, without a call of
            the discriminator.
        both: also ``-w log(1 - D(B(y)))``, which moves the states on gold towards those of free runs.
        size: of the discriminator, units.
        train_below: the discriminator is trained while its accuracy is below; as published 0.99.
        fool_above: the model is trained to fool it while its accuracy is above; as published 0.75.
        draw: of the free run: ``"sample"``, ``"greedy"`` or a draw; ``"auto"`` samples ids and feeds values back as
            predicted.
        engine: of the free run, as for ``scheduled_sampling``.
        objective: of the first term: ``"auto"``, ``"cross_entropy"``, ``"mse"`` or a function.

    Raises:
        UserError: arguments outside their range; a model in DDP or another wrapper; another model than before, where it
            is no copy; an optimizer without the discriminator; values that are missing.

    What it is not: a change of the history: the first term's is gold. The discriminator's size is not the paper's. Free
    runs are as long as gold: what a model goes on with after its own end symbol is judged, too.

    Reference: Lamb, Goyal, Zhang, Zhang, Courville and Bengio 2016, arXiv:1610.09038.

    >>> import freerun as fr
    >>> model, method = fr.models.TransformerLM(5, size=8, heads=2, max_positions=8), ProfessorForcing(size=4)
    >>> ids = torch.tensor([[3, 1, 4]])
    >>> batch = fr.Batch(ids, ids, ids > 0)
    >>> optimizer = torch.optim.Adam([*model.parameters(), *method.modules(model, batch, key=1).parameters()])
    >>> method(model, batch, step=0, key=1).backward()
    >>> optimizer.step()
    """

    weight: float | Schedule = 1.0
    both: bool = False
    size: int = 64
    train_below: float = 0.99
    fool_above: float = 0.75
    draw: str | Draw = "auto"
    engine: Engine = "auto"
    objective: str | Objective = "auto"

    name: ClassVar[str] = "professor_forcing"
    summary: ClassVar[str] = "gold history; a discriminator makes free-running states like teacher-forced ones"
    feeds_own: ClassVar[bool] = False
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"weight": (0.0, float("inf")), **SHARED}
    means: ClassVar[dict[str, tuple[str, str]]] = {"discriminator_accuracy": ("correct", "judged")}
    citation: ClassVar[Citation] = Citation(
        formula="loss_G = -sum_t log p(y_t | y_<t, x) - w log D(B(h)), h ~ p(h | x);  "
        "loss_D = -n log D(B(y)) - n log(1 - D(B(h)))",
        reference="Lamb, A., Goyal, A., Zhang, Y., Zhang, S., Courville, A. and Bengio, Y. (2016). Professor forcing: "
        "a new algorithm for training recurrent networks. NIPS. arXiv:1610.09038",
        bibtex="""@inproceedings{lamb2016professor,
  author    = {Lamb, Alex and Goyal, Anirudh and Zhang, Ying and Zhang, Saizheng and Courville, Aaron
               and Bengio, Yoshua},
  title     = {Professor Forcing: A New Algorithm for Training Recurrent Networks},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {29},
  year      = {2016}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        found = super().problems()
        if (whole(self.size) or 0) < 1:
            found.append(f"size must be a whole number of units, at least 1; got {self.size!r}")
        if not isinstance(self.both, bool):
            found.append(f"both must be True or False; got {self.both!r}")
        for name in ("train_below", "fool_above"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
                found.append(f"{name} must be an accuracy in [0, 1], above 1 for always or never; got {value!r}")
        return found

    @property
    def own_loss(self) -> tuple[str, ...]:
        """The losses of and through the discriminator are no part of a trainer's own loss."""
        return (*super().own_loss, "weight adds a discriminator's loss")

    @property
    def calls_model(self) -> bool:
        """True: free runs call it."""
        return True

    @cached_property
    def _memory(self) -> dict[str, Any]:
        return {}

    def modules(self, model: Any, batch: Batch, key: int = 0) -> nn.ModuleDict:
        """The discriminator that is trained with a model, for an optimizer; made at the first call, by the key alone.

        Args:
            model: whose states it judges, on its device and in its type.
            batch: any, of which one row is tried to find the width of a state.
            key: of its initial weights.
        """
        memory, inner = self._memory, unwrap(model)
        if "modules" not in memory:
            with torch.no_grad(), torch.random.fork_rng(), eval_mode(inner):
                behaviour = _behaviour(
                    inner, zero_unused(batch.select(torch.zeros(1, dtype=torch.long).to(batch.mask.device)))
                )[1]
                torch.manual_seed(fold(key, "discriminator"))
                made = Discriminator(behaviour.shape[-1], self.size)
            weights = (
                [weight for weight in inner.parameters() if weight.is_floating_point()]
                if isinstance(inner, nn.Module)
                else []
            )
            like = weights[0] if weights else behaviour
            memory["modules"] = nn.ModuleDict({"discriminator": made.to(like.device, like.dtype)})
            self._fill(memory.pop("saved", {}))
        if isinstance(inner, nn.Module):
            self._refuse_another(memory["modules"], inner)
        return memory["modules"]

    def _refuse_another(self, modules: nn.ModuleDict, model: nn.Module) -> None:
        """Refuse a model that is neither the one before nor a copy of it."""
        before = _TRAINED.get(modules, lambda: None)()
        if before is not None and before is not model:
            a, b = (dict(each.named_parameters()) for each in (before, model))
            same = a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)
            # an average of its weights may be looked at; what is trained is the same or goes on from it
            if same and not torch.is_grad_enabled():
                return
            if not (same and all(torch.equal(a[name], b[name].to(a[name])) for name in a)):
                raise self._another(model)
        _TRAINED[modules] = ref(model)

    def _another(self, model: Any) -> UserError:
        return UserError(
            f"a {self.name} object trains one model with its discriminator, and this {type(model).__name__} is another "
            "than before: make an object for each, or load_state_dict({}) to begin anew with this"
        )

    def state_dict(self) -> dict[str, float | Tensor]:
        """The discriminator's weights, its accuracy, and scores that schedules follow."""
        memory = self._memory
        weights = memory["modules"].state_dict() if "modules" in memory else memory.get("saved", {})
        return {**super().state_dict(), **{name: memory[name] for name in _NUMBERS if name in memory}, **weights}

    def load_state_dict(self, state: Mapping[str, float | Tensor]) -> None:
        """Take a state back, into the modules that there are; an empty one begins anew, with others."""
        super().load_state_dict(state)
        scores, made = super().state_dict(), self._memory.get("modules")
        self._memory.clear()
        self._memory.update({name: float(state[name]) for name in _NUMBERS if name in state})
        saved = {name: value for name, value in state.items() if isinstance(value, Tensor) and name not in scores}
        if saved and made is None:
            self._memory["saved"] = saved
        elif saved and made is not None:
            self._memory["modules"] = made
            _TRAINED.pop(made, None)  # the state may be another model's
            self._fill(saved)

    def _fill(self, saved: dict[str, Tensor]) -> None:
        try:
            if saved:
                self._memory["modules"].load_state_dict(saved)
        except RuntimeError as error:
            raise CheckpointError(f"the state of {self.name} is of another discriminator ({error})") from error

    def updated(self, means: Mapping[str, float]) -> None:
        """Take the accuracy over all micro-batches and processes of an update."""
        if (accuracy := means.get("discriminator_accuracy")) is not None:
            self._memory.update(accuracy=accuracy, correct=0.0, judged=0.0)

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch, unchanged."""
        counts = replacement_counts(batch, batch.history, 0)
        return batch, {"weight": self.value("weight", step, key), **counts, "passes": 0, "engine": "none"}

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """Teacher forcing, and both losses of the discriminator's game as far as they are open."""
        weight = self.value("weight", step, key)
        if weight == 0:
            return super().compute(model, batch, step, key)
        if unwrap(model) is not model:
            raise UserError(
                f"{self.name} reads a model's states, and the model is in a {type(model).__name__}: give it as it is; "
                "freerun's training loop makes several processes train one model and its discriminator"
            )
        if batch.present is not None and batch.missing is not None:
            raise UserError(
                f"{self.name} has no meaning for values that are missing: fill them, or use scheduled_sampling"
            )
        batch = zero_unused(batch)
        judge: Any = self.modules(model, batch, key)["discriminator"]
        train, fool = self._open(step)
        runs = FreeRunning(draw=self.draw, engine=self.engine, gradient="none")
        fed, run = runs.mix_history(model, batch, step, key)
        outputs, gold = _behaviour(model, batch)
        if gold.shape[-1] != judge.rnn.input_size:  # the one before may be gone
            raise self._another(model)
        with torch.set_grad_enabled(fool and torch.is_grad_enabled()):
            free = _behaviour(model, fed)[1]
        aimed, shares = targets.aimed(self.target, batch, last_width(outputs))
        nll, count = objectives.scored(self.objective, outputs, aimed, shares)
        positions = _positions(aimed)
        total, judged = self._game(judge, (gold, free), (batch.mask, positions), weight, (train, fool))
        if torch.is_grad_enabled():
            memory = self._memory
            self._refuse_untrained(judge, model, step)
            memory |= {"step": float(step), **{n: memory.get(n, 0.0) + judged[n] for n in ("correct", "judged")}}
        counted = positions.sum()
        # what a position counts: 1, or of values their number
        each = torch.where(counted > 0, count / counted.clamp(min=torch.finfo(counted.dtype).tiny), 0)
        report = {n: float(run[n]) + 1 for n in ("passes", "work")} | {"engine": run["engine"], **judged}
        report = {**self.mix_history(model, batch, step, key)[1], **report}
        return Outcome(nll + (each * total).to(nll.dtype), count, outputs, batch, report)

    def _refuse_untrained(self, judge: Discriminator, model: Any, step: int) -> None:
        """Refuse a loop whose optimizer lacks the discriminator: three updates left its weights and gradient alone."""
        memory = self._memory
        if memory.get("step") == step or not isinstance(model, nn.Module):
            return
        made, gradient = [_mark(model), _mark(judge)], judge.mlp[-1].bias.grad
        # an optimizer that has it lets go of the gradient, or clears it, or makes a step, be it at a rate of 0
        held = isinstance(gradient, Tensor) and gradient is memory.get("gradient") and bool(gradient.any())
        left = held and [_differ(*each) for each in zip(memory["made"], made, strict=True)] == [True, False]
        memory |= {"made": made, "gradient": gradient, "left": left * (memory.get("left", 0) + 1)}
        if memory["left"] == 3:
            raise UserError(
                f"in three updates of the model the discriminator of {self.name} had a gradient and was never changed: "
                "give the optimizer [*model.parameters(), *method.modules(model, batch, key).parameters()]"
            )

    def _open(self, step: int) -> tuple[bool, bool]:
        """Whether the discriminator is trained, and whether the model is to fool it, by the update before."""
        memory = dict(self._memory)
        if memory.get("judged") and memory["step"] != step:
            memory |= {"accuracy": memory["correct"] / memory["judged"], "correct": 0.0, "judged": 0.0}
            if torch.is_grad_enabled():
                self._memory.update(memory)
        accuracy = memory.get("accuracy", 0.5)
        return accuracy < self.train_below, accuracy > self.fool_above

    def _game(
        self,
        judge: Discriminator,
        behaviours: tuple[Tensor, Tensor],
        counted: tuple[Tensor, Tensor],
        weight: float,
        gates: tuple[bool, bool],
    ) -> tuple[Tensor, dict[str, float]]:
        """The sums over rows of both losses by what their positions count, and what the discriminator got right."""
        rows = counted[0].any(1)
        mask, positions = (each[rows] for each in counted)
        gold, free = (each[rows] for each in behaviours)
        if not len(mask):
            return behaviours[0].new_zeros(()), {"correct": 0.0, "judged": 0.0}
        train, fool = gates
        with torch.set_grad_enabled(train and torch.is_grad_enabled()):
            of_gold, of_free = judge(gold.detach(), mask), judge(free.detach(), mask)
        total = of_gold.new_zeros(())
        if train:
            total = total + (positions * (softplus(-of_gold) + softplus(of_free))).sum()
        if fool:
            with _frozen(judge):
                losses = softplus(-judge(free, mask))
                losses = losses + softplus(judge(gold, mask)) if self.both else losses
            total = total + weight * (positions / mask.sum(1) * losses).sum()
        correct = float((of_gold > 0).sum() + (of_free <= 0).sum())
        return total, {"correct": correct, "judged": 2.0 * len(mask)}


def _behaviour(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs, and what the discriminator sees of them: (batch, time, width)."""
    outputs, hidden = with_hidden(model, batch)
    if hidden is None:
        hidden = (outputs.softmax(-1) if batch.is_discrete else outputs).flatten(2)
    return outputs, hidden


def _mark(module: nn.Module) -> tuple[int, Tensor]:
    """What an optimizer's step changes: how often weights were written, and, as fused ones do not count, the least."""
    weights: list[Tensor] = list(module.parameters()) or [torch.zeros(0)]
    return sum(each._version for each in weights), min(weights, key=Tensor.numel).detach().clone()


def _differ(a: tuple[int, Tensor], b: tuple[int, Tensor]) -> bool:
    return a[0] != b[0] or not torch.equal(a[1], b[1])


def _positions(batch: Batch) -> Tensor:
    """(batch,) what a row's positions count together."""
    return (batch.mask.double() if batch.weights is None else batch.weights.double().masked_fill(~batch.mask, 0)).sum(1)


@contextmanager
def _frozen(module: nn.Module) -> Generator[None]:
    """Inside it a gradient goes through a module and not to its weights."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


professor_forcing = ProfessorForcing
