"""What is wrong with a recipe is said with its place, what was found and what to do; all of it at once."""

from pathlib import Path

import pytest

from freerun.config import load_recipe
from freerun.errors import UserError
from tiny_recipes import TINY, changed, write

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
    found = []
    for block in (HERE / name).read_text(encoding="utf-8").strip().split("\n\n")[1:]:
        parts = {"- ": [], "+ ": [], "": []}
        for line in block.split("\n"):
            mark = line[:2] if line[:2] in parts else ""
            parts[mark].append(line.removeprefix(mark))
        found.append(tuple("\n".join(lines) for lines in parts.values()))
    return found


def problems(folder, text, overrides=()):
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_the_recipes_these_tests_change_are_right(tmp_path):
    load_recipe(write(tmp_path, TINY))
    load_recipe(write(tmp_path, TINY + COMPARE))


@pytest.mark.parametrize(("old", "new", "expected"), cases("bad_recipes.txt"))
def test_one_thing_wrong(tmp_path, old, new, expected):
    assert problems(tmp_path, changed(old, new)) == [f"tiny.toml:{expected}"]


@pytest.mark.parametrize(("old", "new", "expected"), cases("bad_comparisons.txt"))
def test_one_thing_wrong_in_a_comparison(tmp_path, old, new, expected):
    assert old in COMPARE
    found = problems(tmp_path, TINY + COMPARE.replace(old, new))
    assert [problem.split(": ", 1)[1] for problem in found] == [expected]


def test_a_constant_is_no_schedule_that_stays(tmp_path):
    load_recipe(write(tmp_path, changed(RATIO, 'teacher_forcing_ratio = { schedule = "constant", value = 1.0 }')))


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


def test_everything_wrong_is_said_at_once_in_order(tmp_path):
    changes = {
        "seed = 3": "sed = 3", "symbols = 6": "symbols = 99", "size = 16": "sise = 16", "end = 0.5": "stop = 0.5",
        "updates = 12": 'updates = "twelve"', "evaluate_every = 6": "evaluate_every = 0",
    }  # fmt: skip
    text = TINY
    for old, new in changes.items():
        text = text.replace(old, new)
    found = problems(tmp_path, text + "[evaluate]\nbeams = 0\n", ["train.lr=0", "model.layers=x"])
    places = [problem.split(": ")[0] for problem in found]
    assert places[:-2] == [f"tiny.toml:{line}" for line in (2, 6, 13, 17, 20, 22, 25)]
    assert set(places[-2:]) == {"--set train.lr=0", "--set model.layers=x"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.updates=x", '`updates` must be a whole number; got "x"'),
        ("train.updates", "must be key=value, as in --set train.lr=0.002"),
        ("=3", "must be key=value, as in --set train.lr=0.002"),
        ("train..lr=3", "must be key=value, as in --set train.lr=0.002"),
        ("train.lr=[1,", "broken TOML value: "),
        ("train.bath_size=3", "unknown key `bath_size` in [train]\n  help: did you mean `batch_size`?"),
        ("model=3", "[model] must be a table of keys; got 3"),
        ("seed.x=3", "cannot set a key of `seed`: it is 3, not a table"),
        ("name=3", '`name` must be a string; got 3\n  help: write it in quotes: name = "3"'),
        ("method.teacher_forcing_ratio.start=1.5", "teacher_forcing_ratio must lie in [0, 1]; linear("),
    ],
)
def test_overrides_are_checked_alike(tmp_path, override, expected):
    found = problems(tmp_path, TINY, [override])
    assert len(found) == 1
    assert found[0].startswith(f"--set {override}: {expected}")


def test_objective_and_select_are_refused_together(tmp_path):
    found = problems(tmp_path, TINY, ["method.objective=cros_entropy", "train.select=pre", "train.lr=0"])
    assert sorted(found) == [
        "--set method.objective=cros_entropy: `objective` must be one of auto, cross_entropy; got 'cros_entropy'\n"
        "  help: did you mean cross_entropy?",
        "--set train.lr=0: lr must be above 0 and finite; got 0.0",
        "--set train.select=pre: `select` must be one of per, wer, sequence_accuracy (free-running), "
        "teacher_forced_loss, teacher_forced_token_accuracy, teacher_forced_sequence_accuracy, teacher_forced_per, "
        "teacher_forced_wer; got 'pre'\n  help: did you mean per?",
    ]
    (mse,) = problems(tmp_path, TINY, ["method.objective=mse"])
    assert "`objective` mse is for values; the data of a recipe are symbols\n  help: use auto or cross_entropy" in mse


def test_a_measured_rate_that_is_not_there(tmp_path):
    (found,) = problems(tmp_path, TINY, ['method={name="token_noise", rate={measured="/nowhere/metrics.jsonl"}}'])
    assert found.startswith('--set method={name="token_noise", rate={measured=')
    assert "there is no /nowhere/metrics.jsonl\n  help: give the metrics.jsonl of a run" in found


def test_a_later_override_repairs_an_earlier_one(tmp_path):
    assert load_recipe(write(tmp_path), ["train.updates=x", "train.updates=20"]).train.updates == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed = 1\nseed = 2\n", "2: `seed` is set twice (first on line 1)"),
        ("[train]\nlr = 1\n[model]\n[train]\nlr = 2\n", "4: `train` is set twice (first on line 1)"),
        ("name = tiny\n", "1:8: broken TOML: invalid value\n  help: the line reads `name = tiny`; words need quotes"),
        ("[train\nlr = 1\n", "1:7: broken TOML: "),
    ],
)
def test_broken_toml(tmp_path, text, expected):
    assert problems(tmp_path, text)[0].startswith(f"tiny.toml:{expected}")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_bytes(b'name = "x"\n# caf\xe9\n')
    with pytest.raises(UserError, match=r"old\.toml:2: not UTF-8: byte 16 begins e9 0a\n  help: .*Latin-1.*UTF-8"):
        load_recipe(path)
    path.write_bytes('name = "x"\n'.encode("utf-16"))
    with pytest.raises(UserError, match=r"old\.toml:1: not UTF-8: .*\n  help: .*UTF-16"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"there is no such file\n  help: did you mean .*old\.toml"):
        load_recipe(tmp_path / "odl.toml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match=r"there is no recipe 'g2p-demos'\n  help: did you mean g2p-demo\?"):
        load_recipe("g2p-demos")


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    (tmp_path / "dos.toml").write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "dos.toml") == load_recipe(write(tmp_path))


def test_pairs_by_folder_or_by_three_files(tmp_path):
    toy = 'kind = "toy"\nsymbols = 6\nlongest = 4\ntrain = 200\ndev = 20\ntest = 20\n'
    base = changed(toy, 'kind = "pairs"\n')
    (missing,) = problems(tmp_path, base)
    assert missing.startswith("tiny.toml:4: `path` is missing: the folder that holds the train, dev and test files\n")
    assert "--set data.path=FOLDER" in missing
    (half,) = problems(tmp_path, base, ["data.train=a"])
    assert "`dev` is missing: without `path`, train, dev and test are all needed" in half
    (both,) = problems(tmp_path, base, ["data.train=a", "data.path=b"])
    assert both == "--set data.train=a: train has no effect beside `path`; give the folder or the three files"
