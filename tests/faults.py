"""Tries to lose a run: kills at every file event and at random, signals, two runs in one folder, full disks.

``python tests/faults.py --help``; what ``docs/guarantees.md`` says was counted with it. Every number that decides where
a life ends comes from ``--seed``, so that a failure can be had again.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tiny_recipes import ARMS, FALLING, toml
from training_world import without_clock

HERE = Path(__file__).parent
# a process that is killed loses nothing that it wrote: a disk is not needed, and slow
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
RECIPE = toml(
    name="faults",
    seed=3,
    data={"kind": "toy", "symbols": 6, "max_length": 4, "train": 60, "dev": 6, "test": 6},
    model={"size": 8, "dropout": 0.2},
    method=FALLING,
    train={"updates": 15, "batch_size": 12, "accumulate": 2, "ema": 0.9, "lr": 0.01, "evaluate_every": 4}
    | {"save_every": 3},
)
# most of its time is evaluation
SLOW = RECIPE.replace("symbols = 6\nmax_length = 4", "symbols = 16\nmax_length = 5").replace(
    "dev = 6\ntest = 6", "dev = 400\ntest = 3000"
)
COMPARISON = RECIPE + toml(compare={"seeds": [3], "workers": 2, "arms": ARMS})


@dataclass(frozen=True)
class Ended:
    """How a life ended: exit code of each process (minus a signal's number), and all that it printed."""

    codes: list[int]
    text: str
    seconds: float = 0.0
    answered: float | None = None
    memory: int = 0
    hung: bool = False
    stopped: int = 0

    @property
    def code(self) -> int:
        return self.codes[0]


@dataclass
class Count:
    """A campaign: how much was tried, what failed."""

    name: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self, right: bool, what: str) -> bool:
        if not right:
            self.failures.append(what)
        return right


class Lives:
    """Lives of the command in forked processes; entered while it is used.

    Args:
        root: where runs are written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._number = 0
        self._whole: dict[tuple[str, int], dict[str, Any]] = {}

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fault_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def _answer(self) -> dict[str, Any]:
        return json.loads(self._server.stdout.readline())

    def new(self, name: str = "run") -> Path:
        """A folder that is not there yet."""
        self._number += 1
        return self.root / f"{name}-{self._number}"

    def live(self, *command: str | Path, folder: Path, **how: Any) -> Ended:
        """A life of a command; see ``fault_server`` for how it can end."""
        log = self.root / "log.txt"
        log.unlink(missing_ok=True)
        life = {"command": [str(word) for word in command], "folder": str(folder), "log": str(log), **how}
        return self._sent(life, log)

    def go_on(self, ended: Ended, log: Path | None = None) -> Ended:
        """Let a life that stopped go on to its end."""
        return self._sent({"continue": ended.stopped}, log or self.root / "log.txt")

    def _sent(self, life: dict[str, Any], log: Path) -> Ended:
        self._server.stdin.write(json.dumps(life) + "\n")
        self._server.stdin.flush()
        answer = self._answer()
        text = log.read_text(errors="replace") if log.exists() else ""
        return Ended(**{"codes": [], **answer}, text=text)

    def recipe(self, text: str = RECIPE) -> Path:
        path = self.root / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.toml"
        path.write_text(text)
        return path

    def words(self, folder: Path, *flags: str, recipe: str = RECIPE) -> list[str | Path]:
        """The command that trains or compares as a recipe says."""
        return ["compare" if "[compare]" in recipe else "train", self.recipe(recipe), "--out", folder, *flags]

    def train(self, folder: Path, *flags: str, recipe: str = RECIPE, **how: Any) -> Ended:
        return self.live(*self.words(folder, *flags, recipe=recipe), folder=folder, **how)

    def whole(self, recipe: str = RECIPE, world: int = 1) -> dict[str, Any]:
        """What a run leaves that was never stopped."""
        key = (recipe, world)
        if key not in self._whole:
            folder = self.new("whole")
            ended = self.train(folder, recipe=recipe, world=world)
            assert not any(ended.codes), ended.text
            self._whole[key] = {**fingerprints(folder), "": ended.seconds}
        return {name: content for name, content in self._whole[key].items() if name}

    def duration(self, recipe: str = RECIPE, world: int = 1) -> float:
        self.whole(recipe, world)
        return self._whole[recipe, world][""]

    def events(self, recipe: str = RECIPE, source: Path | None = None) -> list[str]:
        """The file events of a run, in place of ``source`` if there is one; of a comparison until a run starts."""
        record, folder = self.root / "events.txt", self.new("counted")
        record.unlink(missing_ok=True)
        if source is not None:
            shutil.copytree(source, folder)
        flags = [] if source is None else ["--overwrite"]
        ended = self.train(folder, *flags, recipe=recipe, record=str(record))
        assert ended.code == 0, ended.text
        events = record.read_text().splitlines()
        first = [number for number, event in enumerate(events) if event.endswith(".log")]
        return events[: first[0] + 1] if first else events


def fingerprints(folder: Path) -> dict[str, Any]:
    """All that a run or a comparison leaves, without its clocks, logs, curves and pages.

    Of checkpoints the last, and how many: a stop makes one of its own.
    """
    found: dict[str, Any] = {}
    manifests = (folder / "checkpoints").glob("step-*/manifest.json")
    steps = sorted(path.parent.name for path in manifests if not path.parent.is_symlink())
    found["checkpoints"] = len(steps)
    for path in sorted(folder.rglob("*")):
        if set(path.parts) & set(steps[:-1]):
            continue
        content = path.read_bytes().replace(bytes(folder), b".") if path.is_file() else b""
        if path.suffix == ".json" and path.name != "manifest.json":
            found[str(path.relative_to(folder))] = without_clock(json.loads(content))
        elif path.suffix == ".jsonl":
            found[str(path.relative_to(folder))] = [without_clock(json.loads(line)) for line in content.splitlines()]
        elif path.name != "manifest.json" and path.suffix not in (".log", ".html") and "tfevents" not in path.name:
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def left_running(folder: Path) -> list[int]:
    """Processes whose command names the folder."""
    found: list[int] = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(bytes(folder) + b"/") for word in words):
            found.append(int(process))
    return found


def differing(found: dict[str, Any], whole: dict[str, Any]) -> str:
    """Names of what differs, "" where nothing does."""
    names = [name for name in sorted(found.keys() | whole.keys()) if found.get(name) != whole.get(name)]
    return ", ".join(names)


def tree(folder: Path) -> dict[str, Any]:
    """Every path below a folder, with its bytes, or how many where they are many."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        size = path.stat().st_size if path.is_file() else 0
        found[str(path)] = size if size > 2**26 else path.read_bytes() if path.is_file() else None
    return found


def ends_whole(lives: Lives, count: Count, folder: Path, where: str, recipe: str = RECIPE, world: int = 1) -> bool:
    """Nothing runs on, and ``--resume`` goes on to the same bits."""
    until = time.monotonic() + 10
    while (left := left_running(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    count.check(not left, f"{where}: processes {left} run on after 10 s")
    for process in left:
        os.kill(process, signal.SIGKILL)
    ended = lives.train(folder, "--resume", recipe=recipe, world=world)
    if not count.check(not any(ended.codes), f"{where}: --resume ends with {ended.codes}: {ended.text[-600:]}"):
        return False
    different = differing(fingerprints(folder), lives.whole(recipe, world))
    return count.check(not different, f"{where}: not the same bits: {different}")


def kills_at_events(lives: Lives, every: int = 1, recipe: str = RECIPE, among_first: int | None = None) -> Count:
    """A kill at every n-th file event, then --resume; before anything has begun a fresh start too.

    ``among_first``: the same of the first 25 events, where a folder is begun.
    """
    count = Count("kill -9 at a file event")
    lives.whole(recipe)
    events = lives.events(recipe)
    count.facts["events"] = len(events)
    for number in sorted({*range(1, len(events) + 1, every), *range(1, 26, among_first or every)}):
        where, folder = f"event {number} ({events[number - 1]})", lives.new("killed")
        ended = lives.train(folder, recipe=recipe, event=number)
        count.tried += 1
        count.check(ended.code == -signal.SIGKILL, f"{where}: not killed: {ended.code}")
        begun = ("recipe.toml", "metrics.jsonl", "checkpoints", "summary.json", "comparison.json")
        if not any((folder / name).exists() for name in begun):
            fresh = lives.new("fresh")
            if folder.exists():
                shutil.copytree(folder, fresh)
            ended = lives.train(fresh, recipe=recipe)
            if count.check(ended.code == 0, f"{where}: a fresh start ends with {ended.code}: {ended.text[-600:]}"):
                different = differing(fingerprints(fresh), lives.whole(recipe))
                count.check(not different, f"{where}: a fresh start gives other bits: {different}")
            shutil.rmtree(fresh, ignore_errors=True)
        if ends_whole(lives, count, folder, where, recipe):
            shutil.rmtree(folder)
    return count


def kills_of_overwrite(lives: Lives, every: int = 1, first: int = 1) -> Count:
    """A kill at every n-th file event of removing a finished run: --overwrite again begins it anew."""
    count = Count("kill -9 while a run is removed")
    lives.whole()
    done = lives.new("done")
    lives.train(done)
    events = lives.events(source=done)
    begun = events.index("truncate metrics.jsonl")
    for number in range(first, begun + 1, every):
        where, folder = f"event {number} ({events[number - 1]})", lives.new("killed")
        shutil.copytree(done, folder)
        lives.train(folder, "--overwrite", event=number)
        shutil.copytree(folder, again := lives.new("again"))
        ended = lives.train(folder, "--resume")
        count.tried += 1
        right = ended.code in (3, 4) or (ended.code == 0 and fingerprints(folder).keys() >= lives.whole().keys())
        count.check(right, f"{where}: --resume ends with {ended.code}: {ended.text[-400:]}")
        ended = lives.train(again, "--overwrite")
        different = differing(fingerprints(again), lives.whole()) if ended.code == 0 else "all"
        count.check(
            not different, f"{where}: --overwrite: exit {ended.code}, other bits: {different}: {ended.text[-400:]}"
        )
    return count


def random_kills(
    lives: Lives, kills: int, seed: int, world: int = 1, recipe: str = RECIPE, earliest: float = 0.0
) -> Count:
    """Kills at random moments, of every process or of one, some with the next life killed too.

    ``earliest``: share of a run that has gone by before one comes.
    """
    count = Count(f"kill -9 at a random moment, {world} process{'es' if world > 1 else ''}")
    number = random.Random(seed)
    length = lives.duration(recipe, world)
    while count.tried < kills:
        folder, where = lives.new("killed"), []
        for _ in range(number.randint(1, 4)):
            after = round(number.uniform(earliest * length, length), 3)
            rank = number.choice([None, *range(world)]) if world > 1 else None
            ended = lives.train(
                folder, *(["--resume"] if where else []), recipe=recipe, world=world, after=after, rank=rank, limit=60
            )
            if ended.answered is None:
                break  # it was faster
            count.tried += 1
            where.append(f"{after} s rank {rank}")
            others = [code for code in ended.codes if code != -signal.SIGKILL]
            # one that is gone before all have met is its launcher's to notice, and there is none here
            hung = ended.hung and "folder: " in ended.text
            message = f"seed {seed}, kills after {where}: the others end with {others}: {ended.text[-400:]}"
            count.facts["waited for a launcher"] = count.facts.get("waited for a launcher", 0) + (
                ended.hung and not hung
            )
            count.check(not hung and all(code in (0, 7) for code in others), message)
        if where and ends_whole(lives, count, folder, f"seed {seed}, kills after {where}", recipe, world):
            shutil.rmtree(folder)
    return count


def signals(lives: Lives, number: int, seed: int, recipe: str = SLOW, world: int = 1) -> Count:
    """SIGINT and SIGTERM at random moments: 130 or 143 within 10 s, and the run goes on to the same bits."""
    count = Count(f"signal at a random moment, {world} process{'es' if world > 1 else ''}")
    chance = random.Random(seed)
    length, slowest = lives.duration(recipe, world), 0.0
    while count.tried < number:
        folder = lives.new("signalled")
        kind = chance.choice([signal.SIGINT, signal.SIGTERM])
        after = round(chance.uniform(0, length), 3)
        ended = lives.train(folder, recipe=recipe, world=world, after=after, signal=int(kind), limit=60)
        if ended.answered is None:
            continue
        count.tried += 1
        where = f"seed {seed}, {kind.name} after {after} s"
        if ended.hung and "folder: " not in ended.text:
            continue  # gone before all had met: its launcher's to notice
        # what comes before the command has begun is Python's to answer
        right = {128 + kind} if folder.exists() else {128 + kind, -kind}
        if (folder / "summary.json").exists() and ended.answered < 0.3:
            right |= {0, -kind}  # it had ended, but for closing its files
        message = f"{where}: {ended.codes} after {ended.answered:.2f} s"
        count.check(set(ended.codes) <= right and ended.answered < 10, f"{message}: {ended.text[-600:]}")
        slowest = max(slowest, ended.answered)
        if ends_whole(lives, count, folder, where, recipe, world):
            shutil.rmtree(folder)
    count.facts["slowest answer, s"] = round(slowest, 2)
    return count


def stops_at_updates(lives: Lives, every: int = 1, first: int = 1) -> Count:
    """SIGTERM while the n-th of three epochs' updates is written down: 143, and each goes on to the same bits."""
    count = Count("a stop after an update")
    writes = [number for number, event in enumerate(lives.events(), 1) if event == "write metrics.jsonl"]
    updates = [line["event"] == "update" for line in lives.whole()["metrics.jsonl"]]
    for number in [write for write, update in zip(writes, updates, strict=True) if update][first - 1 :: every]:
        folder, where = lives.new("stopped"), f"SIGTERM at event {number}"
        ended = lives.train(folder, event=number, signal=int(signal.SIGTERM))
        count.tried += 1
        count.check(ended.code == 143, f"{where}: exit {ended.code}: {ended.text[-500:]}")
        if ends_whole(lives, count, folder, where):
            shutil.rmtree(folder)
    return count


def second_runs(lives: Lives, every: int = 20, first: int = 1) -> Count:
    """While a run stands still at a file event, others try its folder: one goes on, the others change nothing."""
    count = Count("a second run in the folder")
    events = lives.events()
    for number in range(first, len(events) + 1, every):
        where, folder = f"event {number} ({events[number - 1]})", lives.new("shared")
        stopped = lives.train(folder, event=number, signal=int(signal.SIGSTOP))
        (lives.root / "log.txt").rename(log := lives.root / "first.txt")
        locked = number > events.index("pwrite lock") + 1
        for flags in ([], ["--resume"], ["--overwrite"], ["--set", "train.lr=0.5"]) if locked else ([],):
            before = tree(folder)
            ended = lives.train(folder, *flags)
            if locked or ended.code:
                refused(count, ended, changes(before, tree(folder)), f"{where}, {flags}")
        before, faster = tree(folder), not locked and ended.code == 0
        ended = lives.go_on(stopped, log)
        if faster:
            refused(count, ended, changes(before, tree(folder)), f"{where}, the run that was slower")
        else:
            count.check(ended.code == 0, f"{where}: the first run ends with {ended.code}: {ended.text[-300:]}")
        different = differing(fingerprints(folder), lives.whole())
        count.check(not different, f"{where}: other bits: {different}")
    return count


def refused(count: Count, ended: Ended, changed: list[str], where: str) -> None:
    """A run whose folder another one has."""
    count.tried += 1
    count.check(ended.code == 3, f"{where}: exit {ended.code}: {ended.text[-300:]}")
    count.check(not changed, f"{where}: the refused run changed {changed}")


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name, 0) != after.get(name, 0)]


def full_disks(lives: Lives, sizes: Iterator[int] | list[int]) -> Count:
    """A disk that is full after so many bytes: exit 5 with path, needed and free; room made, the run goes on."""
    count = Count("a full disk")
    for size in sizes:
        folder, where = lives.new("full"), f"a disk of {size:,} bytes"
        ended = lives.train(folder, room=size)
        count.tried += 1
        if not count.check(ended.code == 5, f"{where}: exit {ended.code}: {ended.text[-500:]}"):
            continue
        message = str(folder) in ended.text and "needed" in ended.text and "free" in ended.text
        count.check(message, f"{where}: path, bytes needed or free are not named: {ended.text[-300:]}")
        metrics = folder / "metrics.jsonl"
        whole = not metrics.exists() or metrics.read_bytes()[-1:] in (b"", b"\n")
        count.check(whole, f"{where}: metrics.jsonl ends in half a line")
        left = [path.name for path in folder.rglob(".*")]
        count.check(not left, f"{where}: left behind: {left}")
        if ends_whole(lives, count, folder, where):
            shutil.rmtree(folder)
    return count


def real_disks(lives: Lives, number: int, seed: int) -> Count:
    """A file system that something else fills while a run stands still; root alone can mount one."""
    count = Count("a file system that is full")
    chance, disk, last = random.Random(seed), lives.root / "disk", len(lives.events())
    disk.mkdir()
    while count.tried < number:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
        try:
            folder, room, at = disk / "run", 4096 * chance.randint(0, 8), chance.randint(20, last)
            where = f"seed {seed}, {room:,} bytes are left at event {at}"
            stopped = lives.train(folder, event=at, signal=int(signal.SIGSTOP))
            (disk / "other").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
            ended = lives.go_on(stopped)
            if ended.code == 0:
                continue  # that was enough
            count.tried += 1
            message = all(word in ended.text for word in (str(folder), "needed", "free"))
            count.check(ended.code == 5 and message, f"{where}: exit {ended.code}: {ended.text[-500:]}")
            (disk / "other").unlink()
            ends_whole(lives, count, folder, where)
        finally:
            subprocess.run(["umount", disk], check=True)
    return count


def damaged(campaign: str, lives: Lives, *numbers: int) -> Count:
    import fault_damage

    return getattr(fault_damage, campaign)(lives, *numbers)


def full_sizes(number: int, seed: int) -> list[int]:
    return [random.Random(seed + each).randint(1, 60_000) for each in range(number)]


CAMPAIGNS: dict[str, tuple[str, Callable[[Lives, int, int], Count], int]] = {
    "events": ("a kill at every N-th file event", lambda lives, n, _: kills_at_events(lives, n), 1),
    "overwrite": ("a kill at every N-th file event of a removal", lambda lives, n, _: kills_of_overwrite(lives, n), 3),
    "kills": ("N kills at random moments", random_kills, 100),
    "kills-of-two": ("the same of two processes", lambda lives, n, seed: random_kills(lives, n, seed, 2), 40),
    "signals": ("N signals at random moments", signals, 50),
    "signals-to-two": ("the same to two processes", lambda lives, n, seed: signals(lives, n, seed, RECIPE, 2), 20),
    "updates": ("SIGTERM at every N-th update", lambda lives, n, _: stops_at_updates(lives, n), 1),
    "second": ("a second run at every N-th file event", lambda lives, n, _: second_runs(lives, n), 5),
    "full": ("N sizes of a full disk", lambda lives, n, seed: full_disks(lives, full_sizes(n, seed)), 60),
    "real-disks": ("N file systems that are filled; needs root", real_disks, 20),
    "damage": ("N of all damages to files", lambda lives, n, seed: damaged("damages", lives, n, seed), 2000),
    "links": ("links in place of every N-th file", lambda lives, n, _: damaged("links", lives, n), 1),
    "theirs": ("1: files of the user", lambda lives, _, __: damaged("users_files", lives), 1),
    "compare-events": (
        "a comparison killed at every N-th file event of its start",
        lambda lives, n, _: kills_at_events(lives, n, COMPARISON), 1,
    ),
    "compare-kills": (
        "a comparison killed N times",
        lambda lives, n, seed: random_kills(lives, n, seed, recipe=COMPARISON), 10,
    ),
    "compare-signals": ("N signals to a comparison", lambda lives, n, seed: signals(lives, n, seed, COMPARISON), 10),
}  # fmt: skip
"""What is tried, how often in a full count, and what is tried so often."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, (what, _, full) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} ({full} in a full count)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = vars(parser.parse_args(arguments))
    failed = 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as root, Lives(Path(root)) as lives:
        for name, (_, campaign, _) in CAMPAIGNS.items():
            if number := chosen[name.replace("-", "_")]:
                began = time.monotonic()
                count = campaign(lives, number, chosen["seed"])
                facts = "".join(f", {fact}: {value}" for fact, value in count.facts.items())
                seconds = time.monotonic() - began
                print(f"--{name} {number}: {count.tried} tried, {len(count.failures)} failed{facts}, {seconds:.0f} s")
                print("".join(f"  {failure}\n" for failure in count.failures), end="", flush=True)
                failed += len(count.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
