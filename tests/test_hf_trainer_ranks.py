"""Trainers on two processes: equal to one with the same global batch; resumed runs end with the same bits."""

from typing import Any

import pytest
import torch

from distributed_world import HERE, torchrun
from families import VOCAB
from hf_trainer_ranks import METHODS, cases, equal, everything, predicted, scored, stock
from hf_trainer_world import WORLDS, apart, logged, tokenizer, weights
from test_hf_callback import NAMES, Answers

pytestmark = [
    pytest.mark.slow(reason="starts two processes that import transformers, for some twenty runs"),
    # peft asks the model by an attribute's old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun([str(HERE / "hf_trainer_ranks.py"), str(folder)], timeout=1500, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in cases(folder)}


def lines(run: dict[str, Any], name: str) -> list[float]:
    return [line[name] for line in run["log"] if name in line]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WORLDS)
def test_two_processes_are_one_with_the_same_global_batch(two, name, method):
    one = equal(name, method, "whole")
    for split in ("halves", "quarters"):
        found = two[f"{name} {method} {split}"]
        assert apart(weights(one), found["weights"]) < 1e-9
        for key in ("loss", "replaced_share", "disagreeing_share", "teacher_forcing_ratio"):
            assert lines(found, key) == pytest.approx(logged(one, key), rel=1e-5)


@pytest.mark.parametrize(("kind", "draw"), [("scored", "greedy"), ("sampled", "sample")])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_scores_are_those_of_one_process(two, name, kind, draw):
    """Seven examples on two ranks: the copies that fill up the last batch do not count, and coins are an example's."""
    one = scored(name, draw=draw)
    for key in ("teacher_forced_loss", "free_running_loss", "free_running_token_accuracy"):
        assert lines(two[f"{name} {kind}"], f"eval_{key}") == pytest.approx(logged(one, f"eval_{key}"), rel=1e-6)


@pytest.mark.parametrize("rows", ["all", 5])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_stock_trainers_scores_are_those_of_one_process(two, name, rows):
    """Each row once; that both ranks have the same numbers is asserted where they run."""
    one = stock(name, rows)
    keys = sorted({key for line in one.state.log_history for key in line if "_running_" in key or "_forced_" in key})
    assert len(keys) == 11
    for key in set(keys) - {"eval_free_running_cost"}:
        assert lines(two[f"{name} stock {rows}"], key) == pytest.approx(logged(one, key), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_familys_scores_on_two_processes_are_generates_and_a_scorer_run_by_hand(two, name):
    found, expected = two[f"{name} answers"]["log"][-1], Answers(name).by_hand(tokenizer(VOCAB, pad_token="w0"))
    assert found["eval_free_running_rows"] == 6
    assert {key: found[f"eval_free_running_{key}"] for key in expected} == pytest.approx(expected, rel=1e-6)


def test_generated_ids_for_compute_metrics_are_those_of_one_process(two):
    one = predicted()
    assert logged(one, "eval_rows") == [7]
    for key in ("eval_rows", "eval_ids"):
        assert lines(two["predicted"], key) == logged(one, key)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_resumed_is_unbroken_bit_for_bit(two, name, tmp_path):
    unbroken, resumed = two[f"{name} unbroken"], two[f"{name} resumed"]
    assert apart(unbroken["weights"], resumed["weights"]) == 0.0
    one, again = (everything(name, tmp_path, resume) for resume in (False, True))
    assert apart(weights(one), weights(again)) == 0.0
    for whole, rest in ((unbroken["log"], resumed["log"]), (one.state.log_history, again.state.log_history)):
        expected = [(line["loss"], line["replaced_share"]) for line in whole if "loss" in line]
        assert [(line["loss"], line["replaced_share"]) for line in rest if "loss" in line] == expected
        assert all(share > 0 for _, share in expected)


def test_a_rank_that_raises_ends_the_job_with_its_message(tmp_path):
    script = tmp_path / "one_raises.py"
    script.write_text(
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import freerun as fr; from hf_trainer_world import COMPLETIONS, WORLDS, train\n"
        "build, data, ours, _ = WORLDS['llama']\n"
        "if os.environ['RANK'] == '1':\n"
        "    data = [{**row, 'labels': [-100] * len(row['labels'])} for row in data]\n"
        "train(ours, build(), data, fr.scheduled_sampling(0.5), max_steps=2)\n"
    )
    done = torchrun([str(script), str(HERE)], CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert "UserError: no token of the first optimizer step is to be learnt" in done.stderr
