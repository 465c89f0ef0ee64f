"""What is wrong with a recipe is reported with its line, what was found and what to do; all of it at once."""

from pathlib import Path

import pytest

from builders import problems_of, refused
from freerun.errors import listed
from freerun.methods import METHODS
from freerun.recipes import load_recipe
from tiny_recipes import TINY, TOY, changed, write

HERE = Path(__file__).parent
RATIO = 'teacher_forcing_ratio = { schedule = "linear", start = 1.0, end = 0.5 }'
COMPARE = """
[compare]
seeds = [0, 1]

[[compare.arms]]
label = "sampled"
method = { name = "free_running" }

[[compare.arms]]
label = "noise"
method = { name = "token_noise", rate = { matched_to = "sampled" } }
"""


def cases(name):
    """(old, new, complaint) of each block: lines with -, lines with +, the rest."""
    for block in (HERE / name).read_text(encoding="utf-8").strip().split("\n\n")[1:]:
        parts = {"- ": [], "+ ": [], "": []}
        for line in block.split("\n"):
            mark = line[:2] if line[:2] in parts else ""
            parts[mark].append(line.removeprefix(mark))
        yield tuple("\n".join(lines).replace("{METHODS}", listed(METHODS)) for lines in parts.values())


def problems(folder, text, overrides=()):
    return [each.removeprefix(f"{folder}/") for each in problems_of(load_recipe, write(folder, text), overrides)]


@pytest.mark.parametrize(("old", "new", "expected"), list(cases("bad_recipes.txt")))
def test_one_thing_wrong(tmp_path, old, new, expected):
    assert problems(tmp_path, changed(old, new)) == [f"tiny.toml:{expected}"]


@pytest.mark.parametrize(("old", "new", "expected"), list(cases("bad_comparisons.txt")))
def test_one_thing_wrong_in_a_comparison(tmp_path, old, new, expected):
    assert old in COMPARE
    found = problems(tmp_path, TINY + COMPARE.replace(old, new))
    assert [problem.split(": ", 1)[1] for problem in found] == [expected]


def test_what_is_right_is_read(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY))
    load_recipe(write(tmp_path, TINY + COMPARE))
    load_recipe(write(tmp_path, changed(RATIO, 'teacher_forcing_ratio = { schedule = "constant", value = 1.0 }')))
    # a later override repairs an earlier one
    assert load_recipe(write(tmp_path), ["train.updates=x", "train.updates=20"]).train.updates == 20
    # line ends of Windows and a byte order mark
    (tmp_path / "dos.toml").write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "dos.toml") == recipe


def test_matching_is_for_arms_only(tmp_path):
    text = changed(f'name = "scheduled_sampling"\n{RATIO}', 'name = "token_noise"\nrate = { matched_to = "sampled" }')
    assert problems(tmp_path, text + COMPARE) == [
        "tiny.toml:17: `matched_to` names an arm of [compare], which this method is not part of\n"
        '  help: give a number, or { measured = "RUN/metrics.jsonl" }'
    ]


def test_missing_sections(tmp_path):
    assert problems(tmp_path, "") == [
        'tiny.toml:1: [data] is missing\n  help: add [data] with kind = "cmudict"',
        'tiny.toml:1: [method] is missing\n  help: add [method] with name = "teacher_forcing"',
    ]


def test_everything_wrong_is_reported_at_once_in_order(tmp_path):
    text = TINY
    for old, new in (
        ("seed = 3", "sed = 3"), ("symbols = 6", "symbols = 99"), ("size = 16", "sise = 16"),
        ("end = 0.5", "stop = 0.5"), ("updates = 12", 'updates = "twelve"'),
        ("evaluate_every = 6", "evaluate_every = 0"),
    ):  # fmt: skip
        text = text.replace(old, new)
    found = problems(tmp_path, text + "[evaluate]\nbeams = 0\n", ["train.lr=0", "model.layers=x"])
    lines = [problem.split(": ")[0] for problem in found]
    assert lines[:-2] == [f"tiny.toml:{line}" for line in (2, 6, 13, 17, 20, 22, 25)]
    assert set(lines[-2:]) == {"--set train.lr=0", "--set model.layers=x"}


OVERRIDES = [
    ("train.updates=x", '`updates` must be a whole number; got "x"'),
    ("train.updates", "must be key=value, as in --set train.lr=0.002"),
    ("=3", "must be key=value, as in --set train.lr=0.002"),
    ("train..lr=3", "must be key=value, as in --set train.lr=0.002"),
    ("train.lr=[1,", "broken TOML value: "),
    ("train.bath_size=3", "unknown key `bath_size` in [train]\n  help: did you mean `batch_size`?"),
    ("trian.updates=3", "unknown key `trian`", "did you mean `train`"),
    ("train.lr=1e-320", "lr must be at least 1.2e-38"),
    ("train.clip=5e-324", "clip must be at least 1.2e-38"),
    ("model=3", "[model] must be a table of keys; got 3"),
    ("seed.x=3", "cannot set a key of `seed`: it is 3, not a table"),
    ("name=3", '`name` must be a string; got 3\n  help: write it in quotes: name = "3"'),
    ("method.teacher_forcing_ratio.start=1.5", "teacher_forcing_ratio must lie in [0, 1]; linear("),
    ("method.objective=mse",
     "`objective` mse is for values; the data of a recipe are symbols\n  help: use auto or cross_entropy"),
]  # fmt: skip


@pytest.mark.parametrize("case", OVERRIDES, ids=lambda case: case[0])
def test_an_override_is_checked_as_a_line_is_and_blamed_by_its_own_words(tmp_path, case):
    override, expected, *more = case
    (problem,) = problems(tmp_path, TINY, [override])
    assert problem.startswith(f"--set {override}: {expected}")
    assert all(part in problem for part in more)


def test_a_measured_rate_that_is_not_there(tmp_path):
    (found,) = problems(tmp_path, TINY, ['method={name="token_noise", rate={measured="/nowhere/metrics.jsonl"}}'])
    assert found.startswith('--set method={name="token_noise", rate={measured=')
    assert "there is no /nowhere/metrics.jsonl\n  help: give the metrics.jsonl of a run" in found


def test_a_key_that_is_missing_is_not_blamed_on_an_override_of_others(tmp_path):
    found = problems(tmp_path, TINY.replace('kind = "toy"\n', ""), ["train.updates=5"])
    assert "--set train.updates" not in "\n".join(found)


def test_objective_and_select_are_refused_together(tmp_path):
    found = problems(tmp_path, TINY, ["method.objective=cros_entropy", "train.select=pre", "train.lr=0"])
    assert sorted(found) == [
        "--set method.objective=cros_entropy: `objective` must be one of auto, cross_entropy; got 'cros_entropy'\n"
        "  help: did you mean cross_entropy?",
        "--set train.lr=0: `lr` must be above 0; got 0.0",
        "--set train.select=pre: `select` must be one of per, wer, sequence_accuracy (free-running), "
        "teacher_forced_per, teacher_forced_wer, teacher_forced_sequence_accuracy, teacher_forced_loss, "
        "teacher_forced_token_accuracy; got 'pre'\n  help: did you mean per?",
    ]


BROKEN = [
    ("seed = 1\nseed = 2\n", "2: `seed` is set twice (first on line 1)"),
    ("[train]\nlr = 1\n[model]\n[train]\nlr = 2\n", "4: `train` is set twice (first on line 1)"),
    ("name = tiny\n", "1:8: broken TOML: invalid value\n  help: the line reads `name = tiny`; words need quotes"),
    ("[train\nlr = 1\n", "1:7: broken TOML: "),
]


@pytest.mark.parametrize(("text", "expected"), BROKEN)
def test_broken_toml(tmp_path, text, expected):
    assert problems(tmp_path, text)[0].startswith(f"tiny.toml:{expected}")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_bytes(b'name = "x"\n# caf\xe9\n')
    refused(r"old\.toml:2: not UTF-8: byte 16 begins e9 0a\n  help: .*Latin-1.*UTF-8", load_recipe, path)
    path.write_bytes('name = "x"\n'.encode("utf-16"))
    refused(r"old\.toml:1: not UTF-8: .*\n  help: .*UTF-16", load_recipe, path)
    refused(r"there is no such file\n  help: did you mean .*old\.toml", load_recipe, tmp_path / "odl.toml")
    refused("is a folder", load_recipe, tmp_path)
    refused(r"there is no recipe 'g2p-demos'\n  help: did you mean g2p-demo\?", load_recipe, "g2p-demos")


def test_pairs_by_folder_or_by_three_files(tmp_path):
    base = changed(TOY, 'kind = "pairs"\n')
    (missing,) = problems(tmp_path, base)
    assert missing.startswith("tiny.toml:4: `path` is missing: the folder that holds the train, dev and test files\n")
    assert "--set data.path=FOLDER" in missing
    (half,) = problems(tmp_path, base, ["data.train=a"])
    assert "`dev` is missing: without `path`, train, dev and test are all needed" in half
    (both,) = problems(tmp_path, base, ["data.train=a", "data.path=b"])
    assert both == "--set data.train=a: train has no effect beside `path`; give the folder or the three files"


HOSTILE = [
    ("seed = 3", "seed = 18446744073709551616", "holds a whole number of more than 64 bits"),
    ('name = "tiny"', 'name = "a\\u001b[31mb"', r"a line of up to 200 characters that are all seen; got 'a\x1b[31mb'"),
    ("symbols = 6", 'symbols = [6, { a = "\\u0000" }]', "holds a character that is no text: NUL"),
    ("size = 16", "size = " + "9" * 5000, "a number, date or time is out of range"),
    ("updates = 12", "updates = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ("batch_size = 32", "batch_size = 9223372036854775807", "`batch_size` must be at most 9007199254740992"),
    ("max_length = 4", f"max_length = {2**63 - 1}", "`max_length` must be from 2 to 100; got 9223372036854775807"),
    ("end = 0.5", f"end = {10**17}", "`end` must be at most 9007199254740992"),
    ("test = 20", "test = 2000000000", "`test` must be from 1 to 10000000"),
]


@pytest.mark.parametrize(("old", "new", "expected"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_values_at_the_limits(tmp_path, old, new, expected):
    found = problems(tmp_path, changed(old, new))
    assert any(expected in problem for problem in found), found
    assert all(len(line) <= 600 and line.isprintable() for problem in found for line in problem.split("\n"))


def test_every_value_of_the_wrong_type_is_refused_by_its_key(tmp_path):
    keys = ["seed", "name", "data.symbols", "data.task", "model.size", "model.bidirectional", "model.attention",
            "method.teacher_forcing_ratio", "method.draw", "train.lr", "train.updates", "train.select",
            "evaluate.beams", "evaluate.length_penalty"]  # fmt: skip
    for key in keys:
        for value in ("[[1], 2]", "{ a = 1 }", "1979-05-27T07:32:00Z", "-9223372036854775808", '"\\u202e"'):
            found = problems(tmp_path, TINY, [f"{key}={value}"])
            assert all(problem.startswith(f"--set {key}=") for problem in found), (key, value, found)


def test_no_problem_hides_another_across_levels(tmp_path):
    text = TINY + "lrr = 3\nwarmup = 13\n[trian]\n" + COMPARE
    for old, new in (
        ('name = "scheduled_sampling"', 'name = "scheduled_samplin"'), ("start = 1.0", "stort = 1.0"),
        ('kind = "toy"', 'kind = "toi"'), ("symbols = 6", "symbols = 99\ntaks = 3"),
        ("size = 16", "size = 15\nsise = 3"),
        ('label = "noise"', "lable = 3"), ('name = "free_running"', 'name = "free_runnin", drow = 1'),
    ):  # fmt: skip
        text = text.replace(old, new)
    found = "\n".join(problems(tmp_path, text, ["train.clip=-1", "evaluate.beams=0", "method.objective=mse"]))
    for part in ("method must be one of", "`stort` has no effect", "`kind` of [data]", "`symbols` must be from 2",
                 "unknown key `taks`", "unknown key `sise`", "size must be even", "unknown key `lrr`", "warmup must be",
                 "unknown key `trian`", "unknown key `lable`", "got 'free_runnin'", "no parameter `drow`",
                 "`clip` must be", "`beams` must be", "`objective` mse is for values"):  # fmt: skip
        assert part in found, part


def test_an_unknown_parameter_does_not_hide_a_value_out_of_range(tmp_path):
    found = problems(tmp_path, changed("start = 1.0, end = 0.5", "start = 1.5, end = 0.5"), ["method.nois=1"])
    assert [("`nois`" in problem, "[0, 1]" in problem) for problem in found] == [(False, True), (True, False)]


def test_keys_can_be_taken_out(tmp_path):
    path = write(tmp_path, TINY + COMPARE)
    assert load_recipe(path, ["train.evaluate_every="]).train.evaluate_every == 500
    assert load_recipe(path, ["compare="]).compare is None
    assert load_recipe(path, ["model.size=", "model.size=8"]).model.size == 8
    for key in ("train.evaluate_evry", "nothing", "compare.arms.7", "seed.x", "compare.arms.x"):
        (problem,) = problems(tmp_path, TINY + COMPARE, [f"{key}="])
        assert problem.startswith(f"--set {key}=: without a value it removes a key, and the recipe does not set")


MATCHED = COMPARE.replace('{ matched_to = "sampled" }', '"matched"')
TWO = (
    MATCHED
    + """
[[compare.arms]]
label = "half"
method = { name = "scheduled_sampling", teacher_forcing_ratio = 0.5 }
"""
)


def test_a_matched_rate_is_that_of_the_one_arm_with_own_outputs(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY + MATCHED))
    assert recipe == load_recipe(write(tmp_path, TINY + COMPARE))
    assert recipe.compare.arms[1].reference == "sampled"
    (problem,) = problems(tmp_path, TINY + TWO)
    assert '`rate` = "matched" means the one arm that feeds the model\'s own outputs; sampled, half do' in problem
    assert 'help: name it: { matched_to = "sampled" }' in problem
    assert problem.startswith("tiny.toml:34")
    (problem,) = problems(tmp_path, TINY + MATCHED.replace('name = "free_running"', 'name = "unlikelihood"'))
    assert "there is none\n  help: add an arm such as scheduled_sampling" in problem
    alone = changed(RATIO, 'rate = "matched"').replace('"scheduled_sampling"', '"token_noise"')
    (problem,) = problems(tmp_path, alone)
    assert '`rate` = "matched" is the rate of an arm of [compare], which this method is not part of' in problem
    assert 'give a number, or { measured = "RUN/metrics.jsonl" }' in problem


def test_an_empty_text_is_no_missing_one(tmp_path):
    text = TINY.replace(TOY, 'kind = "records"\npath = "x.jsonl"\nprefix = "translate: "\n').replace(
        "size = 16", 'kind = "huggingface"\npath = "y"'
    )
    path = write(tmp_path, text)
    assert load_recipe(path).data.prefix == "translate: "
    assert load_recipe(path, ["data.prefix="]).data.prefix == ""
    assert load_recipe(path, ["data.prefix=''"]).data.prefix == ""
    (problem,) = problems(tmp_path, text, ["data.chat="])
    assert "the keys there are kind, path, prefix; an empty text is written --set data.chat='\"\"'" in problem


def test_the_finetune_recipe_turned_to_completions():
    taken = ["data.prompt=question", "data.completion=answer"]
    data = load_recipe("finetune-pairs", [*taken, "data.path=x.jsonl"]).data
    assert (data.source, data.target, data.prompt, data.completion) == (None, None, "question", "answer")


def test_none_is_a_word_where_it_is_one_of_the_choices(tmp_path):
    series = changed(TOY, 'kind = "series"\npath = "x.csv"\nnormalisation = "none"\nmissing = "last"\n')
    recipe = load_recipe(write(tmp_path, series.replace("size = 16", 'size = 16\nfed_back = "none"')))
    assert (recipe.data.normalisation, recipe.model.fed_back) == ("none", None)
    assert load_recipe(write(tmp_path, TINY), ["model.attention=none"]).model.attention is None
