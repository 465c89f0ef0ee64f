"""Write docs/methods.md, papers.md and recipes.md from the library's own tables, so that they cannot go stale.

Run: python docs/make_pages.py          writes the pages
     python docs/make_pages.py --check  exit code 1 if a page differs from the tables
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import freerun as fr
from freerun.recipes.keys import key_rows
from freerun.recipes.recipe import MODEL_KINDS, CompareSettings
from freerun.recipes.source import shipped_recipes
from freerun.tasks import DATA_KINDS, TASKS, task_of
from freerun.training import TrainSettings

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from paper_lines import LINES  # noqa: E402

HEAD = """\
<!-- written by docs/make_pages.py from METHODS, PRESETS, SCHEDULES, GATES and DRAWS; do not edit -->

# Methods, schedules, gates and draws

Names are the same in Python and in recipes. In formulas `y` is gold, `x` the source, `h` the history
fed to the model, `r(step)` the value of the method's ratio or rate at an optimizer step. `freerun methods NAME` prints
a method's BibTeX. [What heals what](remedies.md) has them side by side.
"""

SHARED = """\
Most methods also take `horizon` (`None`, or a schedule, also one that draws; required by `multi_step` and
`pushforward`, 1 in `replay_buffer`), the number of replaceable entries of each row that are used (the rest of the row
is cut off), `loss_on` (`'all'`), the steps that carry loss: `'all'`, `'last'`, `'after_warmup'` or a weight for each
lead time, and `target` (`'gold'`), what each position should predict on the history that is fed. Where one of
the three has no effect it is refused. Not taken are {lacking}.

Which entries are gold, where the gradient is cut, which steps carry loss, what they should predict and how long the
horizon is are five independent choices: see [vectors](vectors.md).
"""

PAPERS = """\
<!-- written by docs/make_pages.py from METHODS, PRESETS, SCHEDULES and paper_lines.py; do not edit -->

# From a paper to its setting

By first author. Numbers are examples where a paper has none, or tried several; in a recipe the same line is `[method]`
with `name` and keys. What a method is *not*, and where it differs from its paper, stands in its docstring:
`help(fr.gkd)`. The last column has the shipped recipes with an arm, or the method, of that name.

```python
import freerun as fr
from freerun.schedules import choice, constant, exponential, inverse_sigmoid, join, linear, table

teacher = fr.models.TransformerLM(40, size=16, heads=2, max_positions=32)  # a trained model over the same symbols


def expert(batch, history):  # what each position should be after the history before it: ids, or values
    return batch.targets


def cost(ids, gold):  # of a run against its row's gold
    return float(ids != gold)
```
"""

NO_SETTING = """\
Not among the methods: beams in training (Wiseman, S. and Rush, A. M. (2016). Sequence-to-sequence learning as
beam-search optimization. EMNLP. arXiv:1606.02960), a divergence of whole sequences from a teacher (Gu, Y., Dong, L.,
Wei, F. and Huang, M. (2024). MiniLLM: knowledge distillation of large language models. ICLR. arXiv:2306.08543),
gold weighed by the model's own probability of it (Pang, R. Y. and He, H. (2021). Text generation by learning from
demonstrations. ICLR. arXiv:2009.07839), a penalty beside scheduled sampling that holds weights near those of teacher
forcing (Korakakis, M. and Vlachos, A. (2022). Improving scheduled sampling with elastic weight consolidation for neural
machine translation. Findings of EMNLP. arXiv:2109.06308), a divergence of occupancies with a backspace as a symbol
(Cundy, C. and Ermon, S. (2024). SequenceMatch: imitation learning for autoregressive sequence modelling with
backtracking. ICLR. arXiv:2306.05426), and own roll-outs, reversed in time, as training data (Po, R., Chan, E. R., Chen,
C. and Wetzstein, G. (2025). BAgger: backwards aggregation for mitigating drift in autoregressive video diffusion
models. arXiv:2512.12080).
"""

RECIPES = """\
<!-- written by docs/make_pages.py from the classes of a recipe's sections; do not edit -->

# Recipes: every section and key

A recipe is a TOML file with the keys `name` and `seed` and the sections `[data]`, `[model]`, `[method]`, `[train]`,
`[evaluate]` and `[compare]`. Begin with a shipped one: `freerun recipes` lists them, `freerun recipes NAME >
mine.toml` writes one to edit. Any key can be set on the command line: `--set train.updates=500`, `--set
compare.arms.1.label=falling`; `--set data.source=` removes a key, so its default holds (an empty text is `--set
data.prefix='""'`). An optional key may also be `"none"`. All errors of all sections are reported at once, and of a
data file the first 20; many wrong cells of one column are one error. Whole numbers are at most 2**53. Numbers of a
series are at most 1e30 in size and vary by at least 1e-30, because float32 has no others.

## [method]

`name` is one of [the methods](methods.md), the other keys are its parameters: a number, a word, or a table for an
object: `{ schedule = "linear", start = 1.0, end = 0.5 }`, `{ draw = "sample", temperature = 0.9 }`,
`{ gate = "every", tau = 2 }`, `{ engine = "window", width = 4 }`, or, for a rate that an earlier run measured,
`{ measured = "RUN/metrics.jsonl" }`. Label smoothing is a part of the loss:
`objective = { objective = "cross_entropy", label_smoothing = 0.1 }`; and by `target = "optimal_completion"` (as a table
`{ target = "optimal_completion" }`) each position of symbols learns what completes the fed history with the fewest
edits. A schedule without `steps` spans the run. `freerun train` uses this section, `freerun compare` its arms.

## [compare]

{compare}

Each arm is a table `[[compare.arms]]` with a `label` (its name in tables and folders; the method's name if left out)
and a `method`, written as in `[method]`, or a `control`.

**control** is a control by one word. `of` names the arm that it controls; it may be left out where one arm alone feeds
the model's own outputs.

```toml
[[compare.arms]]
control = "confusion"
of = "scheduled_sampling"
```

| control | the history in training | an arm that is better than it shows |
| --- | --- | --- |
| `matched` | as many random errors at each update | own errors teach more than any errors |
| `confusion` | as many errors, drawn as the arm's model made them | own errors teach more than their like |
| `equal_cost` | gold, for as many forwards as the arm's model made | that more computing is not the reason |
| `equal_seconds` | gold, for as many updates as the arm's training time had room for | nor more time |
| `no_history` | the same entry everywhere, in scoring and use too | that a history is of use |

Forwards of a teacher (`gkd`) are not counted.

Matched errors are `token_noise`, of values `gaussian_noise` as large as the arm's own. Confusions are counted in
blocks of 25 updates: what the model fed in place of each symbol; of values, how far it was off at each lead time. The
run that `confusion` controls writes what it fed in place of gold to its `metrics.jsonl` (`train.record_errors`). The
run that `equal_seconds` controls times 24 updates of teacher forcing on its own batches when it has been trained
(`train.time_gold`); its training time, in seconds of the processor, divided by theirs is the control's number of
updates. Both numbers stand in the run's `summary.json` and in `results.json` (`gold_update`), so that a resumed
comparison repeats them; another machine may come to another number. In
Python they are `fr.control("confusion", label)` and so on. What needs no model at all (the last value, the most
frequent symbol, an n-gram ...) stands below the arms in every table of series and symbols.

**matched_to** makes an arm the noise control of another: the value is the other arm's label instead of a number, and at
each update it is the one measured in that arm's run with the same seed.

```toml
[[compare.arms]]
label = "scheduled_sampling"
method = { name = "scheduled_sampling", teacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.5 } }

[[compare.arms]]
label = "matched_noise"
method = { name = "token_noise", exclude_gold = true, rate = { matched_to = "scheduled_sampling" } }
```

| method | key | what is matched |
| --- | --- | --- |
| `token_noise` | `rate` | the share of wrong entries (with `exclude_gold = true` every replaced one is wrong) |
| `gaussian_noise` | `rate`, `std` | the share of the model's own entries, and their distance from gold |

`rate = "matched"` means the one arm of the comparison that feeds the model's own outputs, and is refused where
there are several, or none. (`std = "matched"` of `gaussian_noise` is another thing: the model's own one-step error
at that update.)

So the history of the control has as many wrong entries as that of its arm, at every update, but not the model's own:
if the arm is better than its control, its own errors helped more than as many random ones. A control runs
after its arm, all its `matched_to` name one arm, and that arm is not matched itself. Outside `[compare]` write
`{ measured = "RUN/metrics.jsonl" }` with the metrics of a finished run. In Python the control is
`fr.matched_noise(label)`.

## [train]

{train}

Values of `select`, by the kind of data (a name without a prefix is free-running). The verdict of a comparison is
about the score in bold. *In italics*: scores that exposure bias cannot change, because they are measured on gold
history or, under greedy decoding, equal such a score; a run that selects by one starts with a note about this.

{select}

{data}

{model}

{evaluate}
"""


def methods() -> str:
    """The page of methods."""
    parts = [
        HEAD,
        "## Methods\n\n" + _methods(),
        SHARED.format(lacking=_lacking()),
        "## Presets\n\nPublished settings, as functions of the run's length: `fr.falling(steps)` "
        "(`bptt_sa` and `reverse` in `fr.methods`).\n\n" + _presets(),
        "## Schedules\n\nThe value at position `s`, counted in optimizer steps (`unit`: or samples, or epochs). With\n"
        "a `floor` the value is never below it. A schedule may drive any parameter marked *or a schedule* above.\n"
        "`uniform` and `choice` draw their value at every update, as a function of seed and step alone: it is the\n"
        "same for all rows, micro-batches and processes, and in a resumed run. Their parameters may be schedules.\n"
        "`plateau` follows the dev scores of a run, which `freerun train`, `fr.fit` and `fr.compare` pass to it and\n"
        "keep in their checkpoints; in a loop of your own call `schedule.observe(score, step)` after each evaluation.\n"
        'It moves when the score stops getting better; `signal="gap"` is free-running minus teacher-forced score.\n'
        "Lightning and Hugging Face trainers refuse it, as does a run with too few scores before its last update.\n\n"
        + _schedules(),
        "## Gates\n\nWhere gold is kept: the argument `gate`.\n\n" + _described(fr.GATES),
        "## Draws\n\nFrom a prediction to the entry that is fed back: the argument `draw`.\n\n" + _described(fr.DRAWS),
    ]
    return "\n".join(parts)


def papers() -> str:
    """The page that leads from a paper to its line."""
    rows: dict[str, tuple[str, list[str], str]] = {}
    used = _recipes_by_method()
    for source, what, line in LINES:
        paper = _paper(source)
        number = re.search(r"\d{4}\.\d{5}", paper)
        _, lines, _ = rows.setdefault(number[0] if number else paper, (paper, [], used.get(source, "")))
        lines.append(f"{_code(line)}, {what}" if what else _code(line))
    by_author = sorted(rows.values(), key=lambda row: _author(row[0]))
    return "\n".join(
        (PAPERS, _table(("paper", "setting", "recipes"), [(p, "<br>".join(x), r) for p, x, r in by_author]), NO_SETTING)
    )


def _paper(source: str) -> str:
    """The reference of a method, preset or schedule; of a method with two papers NAME/2 is the second."""
    name, _, part = source.partition("/")
    if name in fr.METHODS:
        text = fr.METHODS[name].citation.reference
        text = re.split(r"; (?=[a-z -]+: [A-Z])", text)[int(part or 1) - 1]
        return re.sub(r"^([a-z -]+): (.*)$", r"\2 (\1)", text)
    return fr.PRESETS[name][1] if name in fr.PRESETS else fr.SCHEDULES[name].reference if name in fr.SCHEDULES else name


def _author(paper: str) -> str:
    """The reference from its first surname on, for sorting."""
    found = re.search(r"[A-Z][\w-]+(?=,| et al\.| and )", paper)
    return paper[found.start() :] if found else paper


def _recipes_by_method() -> dict[str, str]:
    """Method -> the shipped recipes that name it."""
    recipes = {name: _method_names(tomllib.loads(path.read_text("utf-8"))) for name, path in shipped_recipes().items()}
    found: dict[str, str] = {}
    for method in fr.METHODS:
        of = [name for name, names in recipes.items() if method in names]
        found[method] = "most" if 2 * len(of) > len(recipes) else ", ".join(f"`{name}`" for name in of)
    return found


def _method_names(recipe: dict[str, Any]) -> set[str]:
    arms = [arm.get("method", {}) for arm in recipe.get("compare", {}).get("arms", [])]
    return {str(each.get("name")) for each in [recipe.get("method", {}), *arms]}


def _methods() -> str:
    rows = [
        (f"`{name}`<br>{cls.summary}", _formula(cls.citation.formula), _of_method(cls), cls.citation.reference)
        for name, cls in fr.METHODS.items()
    ]
    return _table(("method", "formula", "parameters (default)", "reference"), rows)


def _presets() -> str:
    rows = [(f"`{name}({_needed(make)})`", _first_sentence(make), paper) for name, (make, paper) in fr.PRESETS.items()]
    return _table(("preset", "what it is", "reference"), rows)


def _schedules() -> str:
    rows = [
        (f"`{name}`<br>{cls.summary}", _code(cls.formula), _parameters(cls, leave_out=("floor", "unit")), cls.reference)
        for name, cls in fr.SCHEDULES.items()
    ]
    return _table(("schedule", "formula", "parameters (default)", "reference"), rows)


def _described(catalogue: dict[str, type[Any]]) -> str:
    rows = [(f"`{name}`", _first_sentence(cls), _parameters(cls)) for name, cls in catalogue.items()]
    return _table(("name", "what it does", "parameters (default)"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _formula(text: str) -> str:
    lines = [part.strip() for line in text.splitlines() for part in line.split(";  ")]
    return "<br>".join(_code(line) for line in lines)


def _lacking() -> str:
    """Which methods do not take the arguments that most have."""
    parts: list[str] = []
    for name in ("horizon", "loss_on", "target"):
        without = [
            f"`{method}`"
            for method, cls in fr.METHODS.items()
            if name in getattr(cls, "without", {}) or name not in {each.name for each in fields(cls) if each.init}
        ]
        parts.append(f"`{name}` by {', '.join(without)}")
    return "; ".join(parts)


def _of_method(cls: type[Any]) -> str:
    """Parameters of all methods are listed once, below the table, unless a method requires one."""
    shared = [
        each.name
        for each in fields(cls)
        if each.name in ("horizon", "loss_on", "target") and each.default is not MISSING
    ]
    return _parameters(cls, leave_out=shared)


def _needed(make: Any) -> str:
    found = inspect.signature(make).parameters.values()
    return ", ".join(each.name for each in found if each.kind is each.POSITIONAL_OR_KEYWORD)


def _parameters(cls: type[Any], leave_out: Sequence[str] = ()) -> str:
    return "<br>".join(_parameter(cls, each) for each in fields(cls) if each.init and each.name not in leave_out)


def _parameter(cls: type[Any], each: Field[Any]) -> str:
    driven = ", or a schedule" if each.name in getattr(cls, "ranges", {}) else ""
    default = "required" if each.default is MISSING else f"`{each.default!r}`"
    return f"`{each.name}` ({default}{driven})"


def _first_sentence(documented: Any) -> str:
    """The docstring's first line; its double backquotes become single ones."""
    line = (inspect.getdoc(documented) or "").splitlines()[0]
    return line.replace("``", "`")


def recipes() -> str:
    """The page of recipes."""
    usual = {name: kind.models[0] for name, kind in TASKS.items()}
    data = [
        _section("data", name, cls, f"Models: {', '.join(f'`{m}`' for m in task_of(name).models)}.")
        for name, cls in DATA_KINDS.items()
    ]
    model = [
        _section("model", name, cls, f"The usual one for {' and '.join(of)}." if of else "")
        for name, cls in MODEL_KINDS.items()
        for of in [[task for task, first in usual.items() if first == name]]
    ]
    evaluate = {
        kind.evaluate_section: [t for t, k in TASKS.items() if k.evaluate_section is kind.evaluate_section]
        for kind in TASKS.values()
    }
    evaluate = {c: list(dict.fromkeys("python" if " " in t else t for t in of)) for c, of in evaluate.items()}
    scored = [
        f"### [evaluate] of {' and '.join(of)}\n\n{_first_sentence(c)}\n\n{_keys(c)}" for c, of in evaluate.items()
    ]
    parts = {
        "compare": _keys(CompareSettings, leave_out=("arms",)),
        "train": _keys(TrainSettings, leave_out=("seed",)),
        "select": _table(("data", "usual", "scores"), [_selectable(name) for name in TASKS]),
        "data": "## [data]\n\n" + "\n".join(data),
        "model": "## [model]\n\n" + "\n".join(model),
        "evaluate": "## [evaluate]\n\n" + "\n".join(scored),
    }
    text = RECIPES  # TOML has braces of its own
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part.rstrip())
    return text


def _selectable(task: str) -> tuple[str, str, str]:
    kind, names = TASKS[task], []
    for name in kind.report.selectable:
        side, _, score = name.rpartition("teacher_forced_")
        measure = kind.report.metric(f"{'teacher_forced' if side or name != score else 'free_running'}.{score}")
        mark = "*" if measure.fixed else "**" if measure.name == kind.report.primary.name else ""
        names.append(f"{mark}`{name}`{mark}")
    return task, f"`{kind.select}`", ", ".join(names)


def _section(section: str, name: str, cls: type[Any], more: str) -> str:
    return f'### [{section}] kind = "{name}"\n\n{_first_sentence(cls)} {more}'.rstrip() + f"\n\n{_keys(cls)}"


def _keys(cls: type[Any], leave_out: Sequence[str] = ()) -> str:
    """A table of a section's keys: type and range, default, meaning."""
    rows = key_rows(cls, (*leave_out, "kind"))
    return _table(("key", "value", "default", "meaning"), [_quoted(row) for row in rows]) if rows else "No keys.\n"


def _quoted(row: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
    key, value, default, meaning = row
    plain = default in ("none", "by the data")
    return f"`{key}`", re.sub(r'("[^"]*")', r"`\1`", value), default if plain else f"`{default}`", meaning


PAGES: dict[str, Callable[[], str]] = {"methods.md": methods, "papers.md": papers, "recipes.md": recipes}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them."""
    if list(arguments) not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    for name, make in PAGES.items():
        path, expected = FOLDER / name, make()
        if not arguments:
            path.write_text(expected, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != expected:
            print(f"{name} differs from the library: run python docs/make_pages.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
