"""The notebook: it runs from top to bottom in a real kernel, and what is kept in it is what a reader should see."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "decide.ipynb"
LARGEST = 100_000


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """The last output of every code cell that has one: HTML where there is some, else text."""
    last = [cell["outputs"][-1]["data"] for cell in notebook["cells"] if cell.get("outputs")]
    return [data.get("text/html", data["text/plain"]) for data in last]


def check(notebook: nbformat.NotebookNode) -> None:
    kinds = {output["output_type"] for cell in notebook["cells"] for output in cell.get("outputs", [])}
    assert kinds == {"execute_result"}, "nothing is printed beside the results"
    scores, diagnosis, result, saved = shown(notebook)
    assert "teacher forced" in scores
    assert "free-running" in diagnosis
    assert "<svg" in result
    assert any(words in result for words in ("is better than", "is worse than", "was not shown to differ from"))
    assert "report.html" in saved


def test_what_is_kept_in_the_notebook_is_whole_and_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < LARGEST


@pytest.mark.slow(reason="ten short trainings in a real kernel")
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    check(notebook)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "results.json"}
