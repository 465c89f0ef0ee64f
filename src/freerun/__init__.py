"""freerun trains sequence models on the histories they will really see.

>>> import torch, freerun as fr
>>> ids = torch.tensor([[2, 1, 0]])
>>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
>>> batch = fr.Batch(targets=ids, history=ids, mask=ids >= 0, context=source)
>>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
>>> loss = fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.5, steps=100))(model, batch, step=0, key=0)
>>> loss.backward()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freerun import (
        distributions as distributions,
        draws as draws,
        gates as gates,
        hf as hf,
        keys as keys,
        lightning as lightning,
        methods as methods,
        metrics as metrics,
        models as models,
        objectives as objectives,
        schedules as schedules,
        targets as targets,
        transforms as transforms,
    )
    from freerun.batch import Batch as Batch
    from freerun.checks import check_model as check_model
    from freerun.draws import DRAWS as DRAWS
    from freerun.errors import UserError as UserError
    from freerun.experiments import (
        compare as compare,
        control as control,
        diagnose as diagnose,
        evaluate as evaluate,
        fit as fit,
        matched_noise as matched_noise,
    )
    from freerun.gates import GATES as GATES
    from freerun.generation import Generated as Generated, generate as generate
    from freerun.methods import (
        METHODS as METHODS,
        PRESETS as PRESETS,
        confidence_aware as confidence_aware,
        confusion_noise as confusion_noise,
        data_as_demonstrator as data_as_demonstrator,
        data_as_demonstrator_online as data_as_demonstrator_online,
        diffusion_noise as diffusion_noise,
        falling as falling,
        free_running as free_running,
        gaussian_noise as gaussian_noise,
        generalised_teacher_forcing as generalised_teacher_forcing,
        gkd as gkd,
        minimum_risk as minimum_risk,
        multi_step as multi_step,
        no_history as no_history,
        optimal_completion as optimal_completion,
        parallel as parallel,
        professor_forcing as professor_forcing,
        pushforward as pushforward,
        raml as raml,
        replay_buffer as replay_buffer,
        reverse_scheduled_sampling as reverse_scheduled_sampling,
        rising as rising,
        scheduled_sampling as scheduled_sampling,
        self_critical as self_critical,
        sentence_oracle as sentence_oracle,
        sparse_teacher_forcing as sparse_teacher_forcing,
        teacher_forcing as teacher_forcing,
        teaforn as teaforn,
        token_noise as token_noise,
        two_pass as two_pass,
        unlikelihood as unlikelihood,
        word_dropout as word_dropout,
    )
    from freerun.methods.consistency import consistency as consistency
    from freerun.methods.dagger import dagger as dagger
    from freerun.models import MODELS as MODELS, StepModel as StepModel
    from freerun.rollin import ENGINES as ENGINES, Draft as Draft, Window as Window
    from freerun.schedules import SCHEDULES as SCHEDULES
    from freerun.types import Outcome as Outcome, Step as Step

__version__ = "0.1.0"

# module ("": the package) -> names, imported when they are first used, so that `freerun --help` needs no torch
_NAMES = {
    "": "distributions draws gates hf keys lightning methods metrics models objectives schedules targets transforms",
    "checks": "check_model",
    "draws": "DRAWS",
    "errors": "UserError",
    "experiments": "compare control diagnose evaluate fit matched_noise",
    "gates": "GATES",
    "generation": "Generated generate",
    "methods": "METHODS PRESETS confidence_aware confusion_noise data_as_demonstrator data_as_demonstrator_online "
    "diffusion_noise falling free_running gaussian_noise generalised_teacher_forcing gkd minimum_risk "
    "multi_step no_history optimal_completion parallel professor_forcing pushforward raml replay_buffer "
    "reverse_scheduled_sampling rising scheduled_sampling self_critical sentence_oracle "
    "sparse_teacher_forcing teacher_forcing teaforn token_noise two_pass unlikelihood word_dropout",
    "models": "MODELS StepModel",
    "schedules": "SCHEDULES",
    "methods.consistency": "consistency",
    "methods.dagger": "dagger",
    "rollin": "Draft ENGINES Window",
    "types": "Batch Outcome Step",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freerun' has no attribute {name!r}")
    module = _HOMES[name]
    value = importlib.import_module(f"freerun.{module or name}")
    if module:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
