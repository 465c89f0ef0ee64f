"""Texts without a word are compared in what they have."""

import json

from freerun import report
from freerun.compare.plan import plan
from freerun.compare.results import collect, write
from simulated_runs import ARMS


def test_scores_that_count_nothing_are_left_out(tmp_path):
    # numbers, music, another script without blanks: no share of novel words, and the rest is told as ever
    runs = plan(ARMS[:2], [0, 1])
    for run in runs:
        folder = tmp_path / "runs" / run.name
        folder.mkdir(parents=True)
        items = [
            {"source": f"b{n}", "prompt": "1", "output": "2", "references": ["3"], "errors": 40 + (run.seed + n) % 3,
             "length": 20, "novel": 0, "words": 0}
            for n in range(12)
        ]  # fmt: skip
        (folder / "test-items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        free = {"trigram_divergence": 0.2, "novel_words": None, "repetition": 1.0, "text_repetition": 0.5}
        scores = {"free_running": free, "teacher_forced": {"loss": 2.0, "bits_per_character": 2.9}}
        summary = {
            "finished": True, "method": run.arm.method.name, "seed": run.seed, "updates": 9, "seconds": 1.0,
            "data": "00", "test": scores, "versions": {}, "best": {},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    results = collect({"name": "t", "data": {"kind": "text"}}, runs, tmp_path)
    assert "free_running.novel_words" not in {entry["metric"] for entry in results["summary"]}
    compared = {line["metric"] for line in results["comparisons"]}
    assert compared == {"teacher_forced.bits_per_character", "free_running.trigram_divergence"}
    write(results, tmp_path)
    assert "the text itself" in report.write(tmp_path).read_text()
