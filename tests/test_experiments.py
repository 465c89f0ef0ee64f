"""From a model and batches of one's own to a decision: scores against naive loops, arms and seeds, pages, refusals."""

import json
from html import escape

import pytest
import torch
from torch.utils.data import DataLoader

import freerun as fr
from browser import packed
from builders import ForwardOnly, ragged, refused, seq2seq
from freerun.comparison.results import read
from freerun.tasks.batch_data import BatchData, end_symbol
from freerun.tasks.batches import batch_task
from freerun.training import TrainSettings
from step_models import Bahdanau, Values, lively, numbers

IDS = {"train": [ragged(seed=3), ragged(seed=4)], "dev": [ragged(seed=5)], "test": [ragged(seed=6), ragged(6, seed=7)]}
NUMBERS = {"train": [numbers(), numbers(5, 8)], "dev": [numbers()], "test": [numbers(3, 5)]}
ARMS = {"gold": fr.teacher_forcing(), "own": fr.scheduled_sampling(0.5), "noise": fr.matched_noise("own")}


def distance(a: list[int], b: list[int]) -> int:
    """Edit distance by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: lively(Bahdanau), lambda: ForwardOnly(seq2seq())], ids=["step", "forward"])
def test_scores_of_ids_are_those_of_a_naive_loop(make):
    model, batches = make().eval(), IDS["test"]
    loss, positions, forced, free, edits, length, right = 0.0, 0, 0, 0, 0, 0, 0
    for batch in batches:
        outputs = model(batch)
        for row in range(batch.size):
            gold = batch.targets[row][batch.mask[row]].tolist()
            one = batch.select(torch.tensor([row]))
            history = one.made(history=torch.zeros(1, 30, dtype=torch.long), targets=torch.zeros(1, 30).long(),
                               mask=torch.ones(1, 30, dtype=torch.bool))  # fmt: skip
            output: list[int] = []
            for t in range(batch.time + 5):
                own = int(model(history)[0, t].argmax())
                history.history[0, t] = own
                output.append(own)
            logp = outputs[row].log_softmax(-1)
            loss -= sum(float(logp[t, each]) for t, each in enumerate(gold))
            forced += sum(int(outputs[row, t].argmax()) != each for t, each in enumerate(gold))
            end = output.index(0) if 0 in output else len(output)
            ended = [each if t < end else 0 for t, each in enumerate(output)]
            free += sum(ended[t] != each for t, each in enumerate(gold))
            wrong = distance(output[:end], gold[:-1])
            edits, length, right, positions = (
                edits + wrong,
                length + len(gold) - 1,
                right + (wrong == 0),
                positions + len(gold),
            )
    found = fr.evaluate(model, batches)
    rows = sum(batch.size for batch in batches)
    assert found.teacher_forced["loss"] == pytest.approx(loss / positions, rel=1e-5)
    assert found.teacher_forced["token_error"] == pytest.approx(100 * forced / positions)
    assert found.free_running["token_error"] == pytest.approx(100 * free / positions)
    assert found.free_running["edit_error"] == pytest.approx(100 * edits / length)
    assert found.free_running["exact_match"] == pytest.approx(100 * right / rows)


@torch.no_grad()
def test_scores_of_values_are_those_of_a_naive_loop():
    model, batch = lively(Values).eval(), numbers()
    counted = batch.targets[batch.mask]
    scale = ((counted - counted.mean(0)) ** 2).mean(0).sqrt()
    errors, forced = [], []
    outputs = model(batch)
    for row in range(batch.size):
        one = batch.select(torch.tensor([row]))
        entries, state = model.start(one)
        squares, own = [], []
        for t in range(int(batch.mask[row].sum())):
            entries, state = model.step(entries, state)
            squares.append(float((((entries[0] - batch.targets[row, t]) / scale) ** 2).mean()))
            own.append(float((((outputs[row, t] - batch.targets[row, t]) / scale) ** 2).mean()))
        errors.append((sum(squares) / len(squares)) ** 0.5)
        forced.append((sum(own) / len(own)) ** 0.5)
    found = fr.evaluate(model, [batch])
    assert found.free_running["nrmse"] == pytest.approx(sum(sorted(errors)[1:3]) / 2, rel=1e-9)
    assert found.teacher_forced["nrmse"] == pytest.approx(sum(sorted(forced)[1:3]) / 2, rel=1e-9)
    assert len(found.curves["free_running"]) == int(batch.mask.sum(1).max())


def test_scores_of_ones_own():
    def longest(generated, batch):
        return float(generated.lengths.max())

    found = fr.evaluate(lively(Bahdanau), IDS["test"], scores={"longest": longest})
    assert found.free_running["longest"] > 0
    refused("must be a function", fr.evaluate, lively(Bahdanau), IDS["test"], scores={"longest": 3})


def test_an_end_symbol_is_found_where_it_ends_every_row():
    assert end_symbol(IDS["train"]) == 0
    assert end_symbol([fr.Batch(torch.tensor([[0, 1, 0]]))]) is None
    assert end_symbol([numbers()]) is None
    assert end_symbol([fr.Batch(torch.tensor([[1, 2]]))]) is None  # one row is no evidence
    assert end_symbol([fr.Batch(torch.tensor([[3], [3]]))]) is None


class Copies:
    """Outputs its context, whatever it was fed."""

    def __call__(self, batch):
        return 9.0 * torch.nn.functional.one_hot(batch.context[:, : batch.time], 9).float()


def test_positions_that_do_not_count_are_in_neither_side_of_an_edit_distance():
    gold = torch.tensor([[1, 2, 3, 4, 1, 0], [2, 1, 4, 3, 0, 0]])
    mask = torch.tensor([[True, True, False, True, True, True], [True, False, True, True, True, False]])
    padded = torch.cat([gold, torch.zeros(2, 9).long()], 1)
    for end in (0, None):
        found = fr.evaluate(Copies(), fr.Batch(gold, mask=mask, context=padded), end=end)
        own = {name: value for name, value in found.free_running.items() if not name.startswith("most_frequent")}
        assert own == {"edit_error": 0.0, "token_error": 0.0, "exact_match": 100.0}


def test_a_finished_fit_goes_on_with_its_best_weights_or_is_refused(tmp_path):
    first, second = lively(Bahdanau), Bahdanau().double()
    arguments = {"updates": 3, "out": tmp_path / "run", "progress": False}
    trained = fr.fit(first, IDS, ARMS["own"], **arguments)
    again = fr.fit(second, IDS, ARMS["own"], **arguments, resume=True)
    assert again.teacher_forced == trained.teacher_forced
    assert torch.equal(first.out.weight, second.out.weight)
    refused("method", fr.fit, second, IDS, ARMS["gold"], **arguments, resume=True)
    refused("data", fr.fit, second, {**IDS, "dev": IDS["test"]}, ARMS["own"], **arguments, resume=True)
    refused("lr", fr.fit, second, IDS, ARMS["own"], **arguments, learning_rate=0.5, resume=True)


def test_a_control_of_a_model_with_batch_normalisation():
    class Normed(Bahdanau):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(8)

        def start(self, batch):
            entries, state = super().start(batch)
            return entries, state | {"hidden": self.norm(state["hidden"][0])[None]}

    arms = {"own": ARMS["own"], "noise": fr.matched_noise("own")}
    assert fr.compare(lambda: Normed().double(), IDS, arms, seeds=[0], updates=2, progress=False).verdict


@pytest.mark.parametrize(("model", "data"), [(Bahdanau, IDS), (Values, NUMBERS)], ids=["ids", "values"])
def test_a_comparison_prints_saves_and_goes_on(model, data, tmp_path, capsys):
    def make_model():
        return model().double()

    out = tmp_path / "out"
    result = fr.compare(make_model, data, ARMS, seeds=[0, 1], updates=3, out=out)
    assert "own-1" in capsys.readouterr().err
    assert {run["label"] for run in result.results["runs"]} == set(ARMS)
    assert read(out) == result.results
    again = fr.compare(make_model, data, ARMS, seeds=[0, 1], updates=3, out=out, resume=True, progress=False)
    assert again.results["summary"] == result.results["summary"]
    alone = fr.compare(make_model, data, ARMS, seeds=[0, 1], updates=3, progress=False)
    assert [run["free_running"] for run in alone.results["runs"]] == [r["free_running"] for r in result.results["runs"]]
    for text in (str(result), result.save(tmp_path / "page.html").read_text(encoding="utf-8")):
        assert "matched noise control noise" in " ".join(text.split())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("own / gold" if model is Values else "own \N{MINUS SIGN} gold") in page
    assert ("1 is better" in page) == (model is Values), "1 is equal of ratios, zero of differences"
    assert json.loads(result.save(tmp_path / "a.json").read_text())["verdict"]["sentence"] == result.verdict
    assert len(result.to_frame()) == len(result.results["summary"])
    shown = result._repr_html_()
    assert escape(result.verdict) in shown
    assert "var(--arm-1)" in shown
    assert 'class="drawing"' not in shown, "a notebook has no style sheet of ours"
    refused("save as .html", result.save, tmp_path / "a.txt")


def test_a_comparison_is_fit_of_every_arm_and_seed():
    result = fr.compare(lambda: Bahdanau().double(), IDS, {"own": ARMS["own"]}, seeds=[4], updates=3, progress=False)
    torch.manual_seed(fr.keys.fold(4, "init"))
    model = Bahdanau().double()
    alone = fr.fit(model, IDS, ARMS["own"], updates=3, seed=4, progress=False)
    assert result.results["runs"][0]["free_running"] == alone.free_running
    assert result.results["runs"][0]["teacher_forced"] == alone.teacher_forced


def test_fit_makes_the_updates_of_a_plain_loop():
    """One batch of training data, and the last weights are the best: the loop is the one of the README."""
    one = IDS["train"][:1]
    model, plain = (lively(Bahdanau) for _ in range(2))
    settings = TrainSettings(optimizer="sgd", clip=0.0, evaluate_every=3, select="teacher_forced_loss")
    data = {"train": one, "dev": one, "test": one}
    fr.fit(model, data, ARMS["own"], updates=3, learning_rate=0.02, seed=7, settings=settings, progress=False)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        ARMS["own"](plain, one[0], step=step, key=fr.keys.fold(7, "train")).backward()
        optimizer.step()
    for name, weight in plain.named_parameters():
        assert torch.allclose(weight, model.get_parameter(name), rtol=0, atol=1e-12), name


def test_a_diagnosis_prints_and_saves(tmp_path):
    for model, batches in ((lively(Bahdanau), IDS["test"]), (lively(Values), [full()])):
        found = fr.diagnose(model, batches)
        assert "free running" in str(found)
        assert "<html" in found.save(tmp_path / "d.html").read_text(encoding="utf-8")
        assert json.loads(found.save(tmp_path / "d.json").read_text())["diagnosis"]["kind"] in ("ids", "values")


def full() -> fr.Batch:
    batch = numbers(4, 6)
    return fr.Batch(batch.targets, context=batch.context)


def collate(rows):
    source, target = zip(*rows, strict=True)
    return fr.Batch(
        torch.stack(target), context={"source": torch.stack(source), "source_mask": torch.stack(source) > 0}
    )


def test_loaders_are_read_once():
    pairs = [(torch.randint(1, 6, (5,)), torch.randint(1, 5, (4,))) for _ in range(6)]
    loader = DataLoader(pairs, batch_size=4, collate_fn=collate)
    data = BatchData({"train": loader, "dev": loader, "test": iter(loader)})
    assert [len(batches) for batches in data.splits.values()] == [2, 2, 2]
    assert data.fingerprint == BatchData({name: list(loader) for name in ("train", "dev", "test")}).fingerprint
    other = BatchData({"train": list(loader)[:1], "dev": loader, "test": loader})
    assert other.fingerprint != data.fingerprint
    assert "batches of ids: 2 train, 2 dev, 2 test" in batch_task(data).header()[0]


def test_what_cannot_be_compared_is_refused_before_anything_is_made(tmp_path):
    model, out = lambda: Bahdanau().double(), tmp_path / "out"
    kept = Bahdanau().double()
    for arguments, words in {
        (model, ("train",), None): ["data['dev'] is missing", "data['test'] is missing"],
        (model, None, "class"): ["arm a must be a method"],
        (model, None, "empty"): ["arms must map labels to methods"],
        (model, None, "orphan"): ["matched_noise must name one of gold"],
        (model, None, "two"): ["arm n: matched_noise() means", "a, b do: name it, fr.matched_noise('a')"],
        (model, None, "none"): ["arm n: matched_noise() means", "there is none"],
        (model, None, "values"): ["arm a: "],
        (kept, None, None): ["make_model must be a function that returns a new model"],
        ((lambda: kept), None, None): ["returned the same model twice"],
        ((lambda: 3), None, None): ["must return a torch.nn.Module; got int"],
    }.items():
        make, splits, odd = arguments
        data = IDS if splits is None else {name: IDS[name] for name in splits}
        arms = {
            None: ARMS, "class": {"a": fr.teacher_forcing}, "empty": {}, "orphan": {"gold": fr.teacher_forcing(),
            "n": fr.matched_noise("x")}, "values": {"a": fr.pushforward(horizon=2)},
            "two": {"a": fr.free_running(), "b": fr.scheduled_sampling(0.5), "n": fr.matched_noise()},
            "none": {"a": fr.teacher_forcing(), "n": fr.matched_noise()},
        }[odd]  # fmt: skip
        refused(words, fr.compare, make, data, arms, seeds=[0], updates=2, out=out, progress=False)
        assert not out.exists()
    refused("different whole numbers", fr.compare, model, IDS, ARMS, seeds=[1, 1], updates=2)
    refused("mix ids and values", fr.evaluate, model(), [IDS["dev"][0], numbers()])
    refused(["collate function return", "got dict"], fr.evaluate, model(), [{"x": 1}])
    refused("hold nothing", fr.evaluate, model(), [])
    refused("must be freerun.Batch objects", fr.evaluate, model(), {"x": 1})
    refused("must be a torch.nn.Module", fr.fit, lambda batch: batch, IDS, fr.teacher_forcing())
    refused("must be one such as", fr.fit, model(), IDS, fr.teacher_forcing)
    refused("TrainSettings", fr.fit, model(), IDS, fr.teacher_forcing(), settings=3)


def test_a_comparison_goes_on_with_what_it_was_begun_with_or_not_at_all(tmp_path):
    def make_model(dropout=0.0):
        return Bahdanau(dropout).double()

    named = {"seeds": [0], "updates": 2, "out": tmp_path / "out", "progress": False}
    fr.compare(make_model, IDS, ARMS, **named)
    refused("holds a finished comparison: give another folder, resume=True", fr.compare, make_model, IDS, ARMS, **named)
    changed = {**ARMS, "own": fr.scheduled_sampling(0.25)}
    for data, arms, more, words in (
        (IDS, changed, {}, "run own-0 was begun with method.signature = scheduled_sampling"),
        (IDS, ARMS, {"updates": 3}, "train.updates = 2, and it is 3 now"),
        (IDS, ARMS, {"learning_rate": 0.1}, "train.lr = 0.001, and it is 0.1 now"),
        ({**IDS, "test": IDS["dev"]}, ARMS, {}, "data.fingerprint"),
    ):
        refused(words, fr.compare, make_model, data, arms, **named | more, resume=True)

    class Wider(Bahdanau):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(3, 3)

    refused("run own-0 was begun with model.modules", fr.compare, lambda: make_model(0.5), IDS, ARMS, **named,
            resume=True)  # fmt: skip
    refused(["model.name = Bahdanau, and it is Wider now", "model.parameters"], fr.compare,
            lambda: Wider().double(), IDS, ARMS, **named, resume=True)  # fmt: skip
    more = fr.compare(make_model, IDS, {**ARMS, "free": fr.free_running()}, **named | {"seeds": [0, 1]}, resume=True)
    assert len(more.results["runs"]) == 8


def test_what_needs_no_model_stands_beside_and_nothing_is_right_after_an_output_has_ended():
    gold = torch.tensor([[1, 1, 2, 0], [1, 3, 1, 0]])
    early = torch.tensor([[1, 0, 0, 0], [1, 3, 1, 0]])  # the first ends after one symbol
    found = fr.evaluate(Copies(), fr.Batch(gold, context=torch.cat([early, torch.zeros(2, 9).long()], 1)), end=0)
    # wrong: position 2, 3 and the end, which the output has had before
    assert found.free_running["token_error"] == pytest.approx(100 * 3 / 8)
    # 1 for every symbol: 2 of 6 differ
    assert found.free_running["most_frequent_edit_error"] == pytest.approx(100 * 2 / 6)
    assert found.free_running["most_frequent_token_error"] == pytest.approx(100 * 2 / 8)
    assert found.items[0]["output"] == "1"
    assert found.items[0]["references"] == ["1 1 2"]
    values = torch.tensor([[[1.0], [3.0], [4.0]], [[0.0], [0.0], [-4.0]]])
    batch = fr.Batch(values, mask=torch.tensor([[False, True, True]] * 2))
    model = lambda each: torch.nn.functional.pad(each.history, (0, 0, 1, 0))[:, :-1]  # noqa: E731
    free = fr.evaluate(model, batch).free_running
    counted = values[batch.mask].double()
    std, mean = counted.std(correction=0), counted.mean()
    expected = (((counted - torch.tensor([[1.0], [1.0], [0.0], [0.0]])) / std) ** 2).mean()
    assert free["last_value_mse"] == pytest.approx(float(expected))
    assert free["mean_mse"] == pytest.approx(float((((counted - mean) / std) ** 2).mean()))
    assert free["mse"] == pytest.approx(free["last_value_mse"])  # the model repeats its last value


def test_arguments_of_another_name_and_files_of_another_kind_are_refused(tmp_path):
    gold = torch.tensor([[1, 2, 0], [2, 1, 0]])
    batch = fr.Batch(gold, context=torch.cat([gold, torch.zeros(2, 9).long()], 1))
    refused(["'lr': did you mean learning_rate?", "TrainSettings(clip=...)", "'foo': it takes make_model"],
            fr.compare, None, {}, {}, lr=0.1, clip=1.0, foo=1)  # fmt: skip
    refused(["fr.fit has no argument 'epochs': did you mean updates?"], fr.fit, None, {}, None, epochs=3)
    refused(["fr.evaluate has no argument 'metrics': did you mean scores?"], fr.evaluate, Copies(), batch, metrics=1)
    refused(["fr.diagnose has no argument 'end'", "end_symbol=..."], fr.diagnose, Copies(), batch, end=0)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema": 3, "comparisons": [], "runs": []}))
    refused(["is a comparison's, and would be replaced"], fr.evaluate(Copies(), batch, end=0).save, path)
    for decode, word in ((["<end>", "A", "B b"], "A B\N{OPEN BOX}b"), (lambda ids: f"s{ids[0]}", "s1 s2")):
        task = batch_task(BatchData({"train": [batch], "dev": [batch], "test": [batch]}, end=0, decode=decode))
        assert task.evaluate(Copies(), "test").items[0]["references"] == [word]
    refused(["decode must be a list of the ids' names"], BatchData, {"train": [batch], "dev": [batch], "test": [batch]},
            decode=7)  # fmt: skip


class Renames(torch.nn.Module):
    """Outputs its source's ids by a table that it learns; at the start the third id is not known to it."""

    def __init__(self) -> None:
        super().__init__()
        rows = 5.0 * torch.eye(4)
        rows[3] = rows[2]
        self.rows = torch.nn.Parameter(rows)

    def forward(self, batch):
        return self.rows[batch.context["source"][:, : batch.time]]


NAMES = torch.tensor([[1, 2, 3, 0], [2, 3, 1, 0], [1, 1, 2, 0], [3, 2, 1, 0]])
SPLIT = [fr.Batch(NAMES, context={"source": torch.nn.functional.pad(NAMES, (0, 9))})]
RENAMED = {"train": SPLIT, "dev": SPLIT, "test": SPLIT}
TWO = {"gold": fr.teacher_forcing(), "own": fr.scheduled_sampling(0.5)}


@pytest.mark.parametrize(("rate", "learns"), [(1e-7, False), (1.0, True)])
def test_that_no_arm_has_learnt_is_the_first_sentence_where_none_has(rate, learns):
    """Three of the twelve ids are unknown at the start: an edit error of 25 %, and 0 once they are learnt."""
    found = fr.compare(Renames, RENAMED, TWO, seeds=[0, 1], updates=4, learning_rate=rate, progress=False)
    runs = found.results["runs"]
    assert {run["untrained"] for run in runs} == {25.0}
    assert {run["free_running"]["edit_error"] for run in runs} == {0.0 if learns else 25.0}
    assert found.verdict.startswith("Training has hardly moved any arm: ") is not learns
    assert found.results["verdict"]["unlearnt"] is not learns
    assert ("Training has hardly moved any arm: " in found._repr_html_()) is not learns


def test_a_comparison_tells_how_many_updates_are_made(capsys, monkeypatch):
    monkeypatch.setattr("freerun.training.log._MANY", 0.0)  # a line an update
    fr.compare(Renames, RENAMED, TWO, seeds=[0, 1], updates=3)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("loading", "reading"))]
    counts = [int(line.split("/")[0].split()[1]) for line in lines if line.startswith("update ")]
    assert counts == list(range(1, 13)), "every update of four runs"
    assert all("/12  " in line for line in lines if line.startswith("update "))
    of_runs = [line.rpartition("  ")[2] for line in lines if line.startswith("update ")]
    assert of_runs == [f"{done} of 4 runs done" for done in range(4) for _ in range(3)]
    own = [line.split()[:2] for line in lines if line.startswith("  ") and "/3  " in line]
    names = ["gold-0", "own-0", "gold-1", "own-1"]
    assert own == [[f"{n}/3", name] for name in names for n in (1, 2, 3)]
    ends = [line.partition(":")[0] for line in lines if line.endswith("of 4)")]
    assert ends == names


def test_names_of_ids_are_what_the_page_displays(tmp_path):
    arguments = {"seeds": [0], "updates": 2, "learning_rate": 1e-7, "progress": False}
    found = fr.compare(Renames, RENAMED, TWO, **arguments, decode=["<end>", "ah", "bee", "sea"])
    page = found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    items, fed = packed(page, "items"), packed(page, "fed")
    assert items["gold"] == [["ah bee sea"], ["bee sea ah"], ["ah ah bee"], ["sea bee ah"]]
    # the third name is not known; 0: as gold
    assert [run["out"] for run in items["runs"]] == [["ah bee bee", "bee bee ah", 0, "bee bee ah"]] * 2
    assert fed["gold"] == [[gold[0].split()] for gold in items["gold"]]
    assert fed["runs"][1]["out"] != [0, 0, 0, 0]
    assert {name for row in fed["runs"][1]["out"] if row for name in row} <= {"ah", "bee", "sea"}
    assert items["source"] == fed["source"] == ["row 1", "row 2", "row 3", "row 4"]
    refused("decode belongs to the BatchData", fr.compare, Renames, BatchData(RENAMED), TWO, decode=["a"])


def test_results_of_another_comparison_are_not_replaced(tmp_path):
    arguments = {"updates": 2, "progress": False}
    first = fr.compare(Renames, RENAMED, TWO, seeds=[0], out=tmp_path / "one", **arguments)
    second = fr.compare(Renames, RENAMED, TWO, seeds=[1], out=tmp_path / "two", **arguments)
    path = tmp_path / "one" / "results.json"
    before = path.read_bytes()
    refused([f"{path} is another comparison's, and would be replaced: save under another name"], second.save, path)
    assert path.read_bytes() == before
    page = first.save(tmp_path / "one" / "report.html")
    kept = page.read_bytes()
    refused([f"{page} is another comparison's, and would be replaced"], second.save, page)
    assert page.read_bytes() == kept
    first.save(path)  # its own
    copied = second.save(tmp_path / "copy.json")
    assert json.loads(first.save(copied).read_text()) == first.results, "beside no runs a saved result may be replaced"
