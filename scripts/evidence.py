"""Measure everything that the README and docs/ claim: `make evidence`. All runs of evidence/plan.yaml, two at a time.

    python scripts/evidence.py [--only NAME ...] [--foretell]

It says how long all will take, from the plan and from what is there, and may be killed at any moment, and each of its
runs: begun again, it goes on. A tree with changes is refused, also when a run begins and when it ends, and so is a run
that was begun on another commit. Every run is a process of one thread and lives in evidence/work/<name> (not
committed); what the tables need of it is written to evidence/<name>.json, and the outcome of each of its rows to
evidence/rows/<name>.csv.gz. The tables are made when all is there. With --foretell nothing is done but said.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from clean import note_changes, require_clean_tree, require_same_commit
from evidence_files import NotThisCommit, keep, made_on, read, write
from evidence_plan import Planned, longest_first, pace, read_plan, together

from pointsman.errors import RunError
from pointsman.runs.lock import FolderLock

ROOT = Path(__file__).resolve().parent.parent
PLAN = "evidence/plan.yaml"
PROCESSES = 2
ATTEMPTS = 5
"""How often a run that a signal ended is begun again by one driver."""
IN_VAIN = 3  # what pointsman ends with where a mask opens or holds nothing: a result like any other
HEARTBEAT = 10.0  # seconds between two notes of how long a run has taken
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass
class Going:
    """A run that is being done: by a process of this driver, or by one that an earlier driver left behind.

    Attributes:
        planned: Which.
        process: None while another's process has the folder.
        before: Seconds that it took before this driver.
        since, noted: When this driver took it up, and when it last noted its time.
        refused: Why it may not begin; empty if it may.
    """

    planned: Planned
    process: subprocess.Popen[bytes] | None
    before: float
    since: float
    noted: float
    refused: str = ""

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.since


@dataclass
class Driver:
    """Does the runs of a plan.

    Attributes:
        plan: All of it.
        evidence: Where results are kept; `work` below it holds the runs.
        commit: That all is made on.
        root: Of the repository.
        processes: How many runs go at a time.
        poll: Seconds between two looks at them.
        command: What begins or resumes a run.
        still_clean: Looks at the checkout again and gives its commit; ends with one line where it has changed.
        failed: Why, by name, of runs that did not end well.
    """

    plan: Sequence[Planned]
    evidence: Path
    commit: str
    root: Path = ROOT
    processes: int = PROCESSES
    poll: float = 0.5
    command: Callable[[Planned, Path, Path], list[str]] = Planned.command
    still_clean: Callable[[Path], str] = require_clean_tree
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.evidence / "work"

    def say(self, text: str) -> None:
        """On the terminal, and to the log of all drivers."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}"
        print(line, flush=True)
        with (self.work / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    # ------------------------------------------------------------------ what is there

    def is_done(self, planned: Planned) -> bool:
        """Whether it is kept, and made on this commit."""
        return made_on(self.evidence, planned.name) == self.commit

    def spent(self, name: str) -> float:
        """Minutes that a run has taken, as far as it is there."""
        noted = read(self.work / f"{name}.seconds") if (self.work / name).exists() else None
        return float(noted["seconds"]) / 60 if noted else 0.0

    def note(self, going: Going) -> None:
        """Write down how long a run has taken, for drivers to come."""
        write(self.work / f"{going.planned.name}.seconds", {"seconds": round(going.seconds, 1)})

    def foretold(self, wanted: Sequence[Planned]) -> float:
        """Minutes until all that is wanted is done."""
        slower = pace((run.minutes, self.spent(run.name)) for run in self.plan if self.is_done(run))
        left = []
        for run in self.queue(wanted):
            expected = run.minutes * slower
            left.append(max(expected - self.spent(run.name), 0.1 * expected))
        return together(left, self.processes)

    def queue(self, wanted: Sequence[Planned]) -> list[Planned]:
        """What is to be done, in this order."""
        todo = [run for run in wanted if not self.is_done(run)]
        return longest_first(todo, [run.name for run in todo if self.spent(run.name)])

    def ready(self, queue: Sequence[Planned]) -> Planned | None:
        """The first run in the queue that need not wait for another's steering."""
        done = {run.name for run in self.plan if self.is_done(run)}
        return next((run for run in queue if not run.of or run.of in done), None)

    # ------------------------------------------------------------------ doing it

    def drive(self, wanted: Sequence[Planned]) -> bool:
        """Do all that is wanted and not done; whether all of it ended well."""
        queue, going, attempts = self.queue(wanted), list[Going](), dict[str, int]()
        whole, begun = self.foretold(wanted), time.monotonic()
        self.say(f"{len(queue)} of {len(wanted)} runs to do on {self.commit[:12]}: about {whole:.0f} minutes")
        try:
            while queue or going:
                while len(going) < self.processes and (ready := self.ready(queue)):
                    queue.remove(ready)
                    going.append(self.begin(ready))
                if not going:
                    self.give_up(queue)
                    break
                time.sleep(self.poll)
                for each in list(going):
                    code = self.look(each)
                    if code is None:
                        continue
                    going.remove(each)
                    name = each.planned.name
                    attempts[name] = attempts.get(name, 0) + 1
                    if code < 0 and attempts[name] < ATTEMPTS:
                        self.say(f"{name}: ended by signal {-code}, goes on")
                        queue.insert(0, each.planned)
                        continue
                    self.end(each, code)
                    left = self.foretold(wanted) if queue or going else 0.0
                    spent = (time.monotonic() - begun) / 60
                    self.say(f"{spent:.0f} minutes gone of {whole:.0f} foretold; about {left:.0f} to go")
        finally:
            for each in going:
                self.note(each)
                if each.process is not None:
                    each.process.terminate()
        return not self.failed

    def begin(self, planned: Planned) -> Going:
        """Take a run up, from its beginning or from where it is."""
        now = time.monotonic()
        going = Going(planned, None, 60 * self.spent(planned.name), now, now)
        if held(self.work / planned.name):
            self.say(f"{planned.name}: an earlier driver's process is at it; waits for that")
        else:
            self.start(going)
        return going

    def start(self, going: Going) -> None:
        """Start the process of a run; what it says goes to a file of its own."""
        planned, folder = going.planned, self.work / going.planned.name
        if refused := self.tree_changed():
            going.refused = refused
            return
        verb = "goes on after" if going.before else "begins; foretold"
        minutes = going.before / 60 if going.before else planned.minutes
        self.say(f"{planned.name}: {verb} {minutes:.0f} minutes")
        with (self.work / f"{planned.name}.log").open("ab") as log:
            going.process = subprocess.Popen(
                self.command(planned, self.root, folder), cwd=self.root, env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def look(self, going: Going) -> int | None:
        """How the process ended; None while it is at work."""
        if time.monotonic() - going.noted > HEARTBEAT:
            going.noted = time.monotonic()
            self.note(going)
        if going.refused:
            return 1
        if going.process is None:
            if not held(self.work / going.planned.name):
                self.start(going)
            return None
        return going.process.poll()

    def end(self, going: Going, code: int) -> None:
        """Keep what a run found, or why it found nothing."""
        planned, minutes = going.planned, going.seconds / 60
        self.note(going)
        try:
            if going.refused:
                raise RuntimeError(going.refused)
            if code and not (code == IN_VAIN and (self.work / planned.name / "results.json").exists()):
                raise RuntimeError(f"ended with {code}: {self.last_words(planned.name)}")
            if changed := self.tree_changed():
                note_changes(self.work / planned.name, self.commit)
                raise RuntimeError(changed)
            keep(planned, self.work / planned.name, self.evidence, self.commit, minutes)
        except (RuntimeError, NotThisCommit, OSError, ValueError, KeyError) as error:
            needs = f" (needs {planned.needs})" if planned.needs else ""
            self.failed[planned.name] = f"{error}{needs}"
            self.say(f"{planned.name}: FAILED, {error}{needs}")
        else:
            self.say(f"{planned.name}: done in {minutes:.1f} minutes, foretold {planned.minutes:.0f}")

    def give_up(self, queue: Sequence[Planned]) -> None:
        """Say of every run left that what it is of is not there."""
        for run in queue:
            self.failed[run.name] = f"the steering of {run.of} is not there"
            self.say(f"{run.name}: FAILED, {self.failed[run.name]}")

    def tree_changed(self) -> str:
        """Why the checkout is no longer the one that everything is made on, in one line; empty if it is."""
        try:
            commit = self.still_clean(self.root)
        except SystemExit as why:
            return str(why)
        return "" if commit == self.commit else f"the checkout was on {self.commit[:12]}, and is on {commit[:12]} now"

    def last_words(self, name: str) -> str:
        """The last line of what a run said."""
        said = (self.work / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return said[-1].strip() if said else "without a word"

    def table(self, wanted: Sequence[Planned]) -> str:
        """What is done, and what will be, line by line."""
        lines = []
        for run in wanted:
            spent = self.spent(run.name)
            how = "done" if self.is_done(run) else "begun" if spent else "to do"
            took = f", {spent:.1f} taken" if spent else ""
            eyes = "confirms" if run.confirms else ""
            lines.append(f"{run.name:36} {how:6} {run.minutes:4.0f} min foretold{took}  {eyes}".rstrip())
        return "\n".join(lines)


def held(folder: Path) -> bool:
    """Whether a process is at a run."""
    if not (folder / "lock").exists():
        return False
    lock = FolderLock(folder / "lock")
    try:
        lock.acquire()
    except RunError:
        return True
    lock.release()
    return False


def refuse_new_plan(root: Path) -> None:
    """Refuse a plan that differs from the committed one: what confirms is written down before it is measured."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", PLAN], cwd=root, check=False).returncode:
        sys.exit(f"{PLAN} differs from the commit: commit it before anything is measured.")


def make_pages() -> None:
    """The tables and figures of the pages, from all that is kept."""
    for script in (["dominant_layer.py", "--render"], ["tables.py"]):
        subprocess.run([sys.executable, str(ROOT / "scripts" / script[0]), *script[1:]], check=True, cwd=ROOT)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Measure what the README and docs/ claim.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs of evidence/plan.yaml; else all")
    parser.add_argument("--foretell", action="store_true", help="say what is done and how long the rest takes")
    given = parser.parse_args(arguments)
    evidence = ROOT / "evidence"
    plan = read_plan(ROOT / PLAN)
    unknown = set(given.only) - {run.name for run in plan}
    if unknown:
        sys.exit(f"{sorted(unknown)[0]} is not planned. There are {', '.join(run.name for run in plan)}.")
    wanted = [run for run in plan if not given.only or run.name in given.only]
    driver = Driver(plan, evidence, require_clean_tree(ROOT))
    refuse_new_plan(ROOT)
    if given.foretell:
        print(driver.table(wanted))
        print(f"About {driver.foretold(wanted):.0f} minutes to go, {PROCESSES} runs at a time.")
        return 0
    driver.work.mkdir(exist_ok=True)
    try:
        FolderLock(driver.work / "driver.lock").acquire()
    except RunError as error:
        sys.exit(f"Another driver is at work: {error}")
    for run in driver.queue(wanted):
        require_same_commit(driver.work / run.name, driver.commit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: runs are told, and go on the next time
    if not driver.drive(wanted):
        return 1
    missing = [run.name for run in plan if not driver.is_done(run)]
    if missing:
        driver.say(f"Still to be done before the tables are made: {', '.join(missing)}")
    else:
        make_pages()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
