"""Every method on every shipped kind of model, by recipe: it trains, or it is refused before anything is written."""

import json
from pathlib import Path

import pytest

from freerun.cli.entry import main
from freerun.methods import METHODS
from huggingface_world import model_folder, rows, write_lines
from parallel_text import write_parallel

SIZES = {"recurrent": "size = 8", "transformer": "size = 8\nlayers = 1\nheads = 2"}
SYSTEM = 'kind = "system"\nsystem = "lorenz63"\npast = 4\nhorizon = 3\nwindows = [16, 8, 8]\ntrajectories = 4'
TOY = 'kind = "toy"\nsymbols = 6\nmax_length = 4\ntrain = 40\ndev = 8\ntest = 8'
WORLDS = {
    "recurrent": TOY, "transformer": TOY, "transformer_lm": "text", "parallel transformer": "parallel",
    "t5": "pairs", "gpt2": "completions", "recurrent_forecaster": SYSTEM, "plain_forecaster": SYSTEM,
    "article": SYSTEM, "transformer_forecaster": SYSTEM, "shallow_plrnn": SYSTEM,
}  # fmt: skip
VALUES = [name for name, data in WORLDS.items() if data == SYSTEM]
ARGUMENTS = {
    "scheduled_sampling": "teacher_forcing_ratio = 0.5", "two_pass": "teacher_forcing_ratio = 0.5",
    "parallel": "teacher_forcing_ratio = 0.5\npasses = 2", "token_noise": "rate = 0.5", "multi_step": "horizon = 2",
    "pushforward": "horizon = 2", "sparse_teacher_forcing": "tau = 2", "generalised_teacher_forcing": "alpha = 0.5",
    "reverse_scheduled_sampling": "context_ratio = 0.5\nteacher_forcing_ratio = 0.5",
    "gaussian_noise": 'std = "matched"', "word_dropout": "teacher_forcing_ratio = 0.5",
    "consistency": "teacher_forcing_ratio = 0.5", "raml": "tau = 0.5", "sentence_oracle": "teacher_forcing_ratio = 0.5",
    "replay_buffer": "share = 0.5\ncapacity = 8\nage = 2",
    "professor_forcing": "size = 4",
}  # fmt: skip
# where the past is the context there is no warm-up in the history
PAST = ("recurrent_forecaster", "article")
# these can read the noise level of an entry
LEVELLED = ("recurrent_forecaster", "plain_forecaster", "transformer_forecaster")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tables [data] and [model] of each world."""
    known: dict[str, str] = {}
    folder = tmp_path_factory.mktemp("worlds")

    def sections(name: str) -> str:
        if name not in known:
            known[name] = f"[data]\n{_data(WORLDS[name], folder)}\n[model]\n{_model(name, folder)}\n"
        return known[name]

    return sections


def _data(data: str, folder: Path) -> str:
    if data == "text":
        (folder / "text.txt").write_text("the cat sat on the mat and the dog ran to the cat.\n" * 12)
        return f'kind = "text"\npath = "{folder / "text.txt"}"\nlength = 8\ndev = 0.2\ntest = 0.2'
    if data == "parallel":
        (folder / "parallel").mkdir()
        return f'kind = "parallel"\npath = "{write_parallel(folder / "parallel")}"\nsubwords = 290'
    if data in ("pairs", "completions"):
        path = write_lines(folder / f"{data}.jsonl", rows(data))
        return f'kind = "records"\npath = "{path}"\ndev = 0.15\ntest = 0.15'
    return data


def _model(name: str, folder: Path) -> str:
    if name in ("t5", "gpt2"):
        return f'kind = "huggingface"\npath = "{model_folder(folder / name, name)}"'
    kind = name.rsplit(maxsplit=1)[-1]
    if kind == "transformer_lm":
        return f'kind = "{kind}"\nmax_positions = 16\n{SIZES["transformer"]}'
    return f'kind = "{kind}"\n' + SIZES.get(kind, SIZES["transformer" if "transformer" in kind else "recurrent"])


def _recorded(folder: Path, world: str) -> Path:
    """The metrics of a run of one update, with an error of each kind."""
    kind, flat = ("values", [0.0, 0.1, 0.1, 0.1]) if world in VALUES else ("symbols", [1, 2, 3])
    line = {"event": "update", "step": 0, "disagreeing": 1, "eligible": 2}
    line["errors"] = [{"kind": kind, "width": len(flat), "flat": flat}]
    path = folder / "metrics.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return path


def trained(made, tmp_path: Path, world: str, method: str, more: str = "") -> int:
    """The exit code; what is refused writes nothing."""
    arguments = "\n".join(part for part in (ARGUMENTS.get(method, ""), more) if part)
    if method == "confusion_noise":
        arguments += f'\nrate = 0.5\nlaw = {{ measured = "{_recorded(tmp_path, world)}" }}'
    if method == "gkd":  # the teacher is a run on the same data
        arguments += '\nteacher_forcing_ratio = 0.5\nteacher = "none"'
        if world not in VALUES:
            (tmp_path / "teacher").mkdir()
            assert trained(made, tmp_path / "teacher", world, "teacher_forcing") == 0
            arguments = arguments.replace('"none"', f'"{tmp_path / "teacher" / "run"}"')
    recipe = tmp_path / "recipe.toml"
    block = "[evaluate]\nblock = 16\n" if world == "transformer_lm" else ""
    reads = method == "diffusion_noise" and world in LEVELLED
    sections = made(world).replace("[model]\n", "[model]\nlevel = true\n") if reads else made(world)
    recipe.write_text(
        f'name = "tiny"\n{sections}[method]\nname = "{method}"\n{arguments}\n[train]\nupdates = 2\nbatch_size = 4\n'
        f"evaluate_every = 2\nevaluate_items = 2\nsave_every = 2\n{block}"
    )
    code = main(["train", str(recipe), "--out", str(tmp_path / "run")])
    if code:
        assert not (tmp_path / "run").exists()
    else:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["method"] == method
    return code


def slow(name: str, world: str) -> bool:
    """All but the control on each kind of symbols, and each method on one model: 154 runs take minutes."""
    only = METHODS[name].only_for
    one = "plain_forecaster" if only is not None and only[0] == "values" else "recurrent"
    return world != one and (name != "token_noise" or world in VALUES)


CASES = [
    pytest.param(name, world, marks=[pytest.mark.slow] if slow(name, world) else [])
    for name in METHODS
    for world in WORLDS
]


@pytest.mark.parametrize(("name", "world"), CASES)
def test_a_method_trains_a_kind_of_model_or_is_refused_before_anything_is_written(name, world, made, tmp_path, capsys):
    only = METHODS[name].only_for
    fits = only is None or (only[0] == "values") == (world in VALUES)
    more = 'mix = "argmax"' if name == "confidence_aware" and fits else ""
    if name == "dagger":
        more = 'expert = "optimal_completion"'
    code = trained(made, tmp_path, world, name, more)
    printed = capsys.readouterr().err
    if not fits:
        assert code == 2
        assert f"{name} is for {only[0]}" in printed
    elif name == "reverse_scheduled_sampling" and world in PAST:
        assert code == 2
        assert "whose history begins with a warm-up" in printed
    elif name in ("optimal_completion", "minimum_risk", "self_critical") and world == "transformer_lm":
        assert code == 2
        assert "the model has no end symbol of its own: pass end=" in printed
    elif name == "dagger" and world in (*VALUES, "transformer_lm"):  # a recipe names an expert of sentences alone
        assert code == 2
        assert "expert: optimal completions are of symbols, up to an end symbol, which these data have not" in printed
    elif name == "word_dropout" and world == "transformer_lm":
        assert code == 2
        assert "blank=None is no id" in printed
    elif name == "diffusion_noise" and world not in LEVELLED:
        assert code == 2
        assert "reads none: make a forecaster with level=True" in printed
    else:
        assert code == 0, printed


def test_a_forecaster_without_level_is_refused_before_anything_is_written(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("test_methods_by_recipe.LEVELLED", ())
    assert trained(made, tmp_path, "plain_forecaster", "diffusion_noise") == 2
    assert "level = true below [model]" in capsys.readouterr().err


@pytest.mark.parametrize("noise", ["uniform", "unigram", "same_sentence"])
def test_every_noise_trains_a_transformer(noise, made, tmp_path, capsys):
    assert trained(made, tmp_path, "transformer", "token_noise", f'noise = "{noise}"') == 0, capsys.readouterr().err


def test_a_comparison_rehearses_every_arm_before_anything_is_written(made, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    method = 'method = { name = "reverse_scheduled_sampling", context_ratio = 0.5, teacher_forcing_ratio = 0.5 }'
    recipe.write_text(
        f'name = "tiny"\n{made("recurrent_forecaster")}[train]\nupdates = 2\nbatch_size = 4\n[compare]\nseeds = [0]\n'
        f'[[compare.arms]]\nlabel = "reversed"\n{method}\n[[compare.arms]]\nmethod = {{ name = "teacher_forcing" }}\n'
    )
    assert main(["compare", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "arm reversed: [method]: reverse_scheduled_sampling feeds own entries" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


REMEDIES = (
    "gkd", "optimal_completion", "minimum_risk", "self_critical", "consistency", "raml", "sentence_oracle",
    "unlikelihood", "word_dropout", "teaforn", "dagger", "professor_forcing",
)  # fmt: skip


@pytest.mark.slow(reason="14 runs by one comparison")
def test_a_comparison_trains_every_remedy(made, tmp_path, capsys):
    """Three updates each, unlikelihood at both levels, the teacher a run."""
    assert trained(made, tmp_path, "recurrent", "teacher_forcing") == 0
    more = {
        "gkd": f'teacher_forcing_ratio = 0.5\nteacher = "{tmp_path / "run"}"',
        "dagger": 'expert = "optimal_completion"',
        "minimum_risk": "num_samples = 2",
    }
    arms = [f'name = "{name}"\n{more.get(name) or ARGUMENTS.get(name, "")}' for name in REMEDIES]
    arms += ['name = "unlikelihood"\nlevel = "sequence"', 'name = "teacher_forcing"']
    listed = "".join(f'[[compare.arms]]\nlabel = "a{n}"\n[compare.arms.method]\n{arm}\n' for n, arm in enumerate(arms))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "tiny"\n{made("recurrent")}[train]\nupdates = 3\nbatch_size = 4\nevaluate_items = 2\n'
        f"[compare]\nseeds = [0]\n{listed}"
    )
    assert main(["compare", str(recipe), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len({run["label"] for run in found["runs"]}) == len(arms)
    assert all((tmp_path / "out" / "runs" / f"a{n}-0" / "summary.json").exists() for n in range(len(arms)))


@pytest.mark.parametrize(
    ("engine", "code"), [('{ engine = "window", width = 4 }', 0), ('{ engine = "window", wide = 4 }', 2)]
)
def test_a_recipe_names_an_engine_with_its_settings(engine, code, made, tmp_path, capsys):
    assert trained(made, tmp_path, "transformer", "scheduled_sampling", f"engine = {engine}") == code
    assert code == 0 or "did you mean `width`?" in capsys.readouterr().err


def test_a_teacher_that_is_what_the_student_begins_with_is_named(made, tmp_path, capsys):
    assert trained(made, tmp_path, "recurrent", "teacher_forcing") == 0
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    words = "the teacher predicts what the student begins with: nothing is learnt"
    text = (tmp_path / "recipe.toml").read_text()
    method = f'name = "gkd"\nteacher = "{run}"\nteacher_forcing_ratio = 0.5'
    recipe = other / "recipe.toml"
    recipe.write_text(text.replace('name = "teacher_forcing"', method))
    for seed, begin, named in (("1", ["--init", str(run)], True), ("1", [], False)):
        capsys.readouterr()
        where = ["--out", str(other / f"run{named}"), "--set", f"seed={seed}"]
        assert main(["train", str(recipe), *where, *begin]) == 0
        assert (words in capsys.readouterr().err) == named
