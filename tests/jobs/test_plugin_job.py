"""A job of another package, one folder and one line there, is a verb: it runs, resumes, is saved and reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.conftest_cli import Cli, behaviors, cli, here, model, without_times, write_csv
from pointsman.errors import RunError
from pointsman.jobs.finished import read_results
from pointsman.jobs.job import Job, Work, job_of
from pointsman.runs.results import Results, dump

__all__ = ["behaviors", "cli", "here", "model"]

ENTRY = "[pointsman.jobs]\ntally = pointsman_tally:JOB\n"
PLAN = '''
"""What a tally is given, and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from pointsman.jobs.parameters import Metavar, Positive, check


@dataclass(frozen=True)
class TallyInputs:
    """What a tally is given.

    Attributes:
        requests: A file of requests.
        judge: Who judges.
    """

    requests: Path
    judge: Annotated[str, Metavar("NAME")] = "testbed"


@dataclass(frozen=True)
class Tally:
    """What a tally does.

    Attributes:
        limit: Most requests; None for all.
        rounds: How often each is asked.
        order: From which end.
        max_new_tokens: Length of answers; None for the suite's.
    """

    limit: Positive | None = 4
    rounds: Annotated[int, Ge(2)] = 2
    order: Literal["first", "last"] = "first"
    max_new_tokens: Positive | None = 4

    def __post_init__(self) -> None:
        check(self)
'''
INIT = '''
"""The job `tally`: how many requests are refused."""

from pointsman_tally.plan import Tally, TallyInputs

from pointsman.jobs.job import Job

HELP = """Count the requests that a model refuses.

And nothing else.
"""
JOB = Job("tally", "Audit", HELP, TallyInputs, Tally, module="pointsman_tally.job")
'''
WORK = '''
"""What a tally asks, does and finds."""

from dataclasses import dataclass, replace
from pathlib import Path

from pointsman.data.loaders import load_suite
from pointsman.data.types import Suite
from pointsman.judges.making import make_judge
from pointsman.judges.types import Judge
from pointsman.report.blocks import Column, Finding, Page, Row, Section, Table
from pointsman.runs.files import files_json, judge_again, judge_json, located, places, reading_manifest
from pointsman.runs.rates import AttackRates
from pointsman.runs.results import Results
from pointsman.stats.rates import Rate


@dataclass(frozen=True)
class TallyQuestion:
    suite: Suite
    judge: Judge
    file: Path


@dataclass(frozen=True, kw_only=True)
class TallyResults(Results):
    refused: Rate


results = TallyResults
older = {}


def ask(model, inputs, plan, note):
    note("a tally is only a tally")
    return TallyQuestion(load_suite(inputs.requests), make_judge(inputs.judge), inputs.requests), plan


def config(question):
    return {"prompts": {"files": files_json({"requests": question.file})}, "judge": judge_json(question.judge)}


def local(question):
    return {"files": places({"requests": question.file})}


def ask_again(run, plan, note):
    with reading_manifest(run):
        file = located(run, run.config["prompts"]["files"])["requests"]
        judge = judge_again(run, note)
    return TallyQuestion(load_suite(file), judge, file)


def perform(plan, bench):
    asked = bench.suite.restricted[: plan.limit] if plan.order == "first" else bench.suite.restricted[-plan.limit :]
    bench.say(f"{'Going on to count' if bench.run.has_begun else 'Counting'} {len(asked)} requests")
    for number in range(plan.rounds):
        with bench.stage("tally", "Tally", len(asked)) as steps:
            attempts = bench.ask(asked, key=f"tally/{number}", steps=steps)
    bench.keep_answers("tally", asked, attempts)
    refused = AttackRates.of(attempts).refused
    found = conclude(
        results(**bench.shared_fields(), job="tally", seed=0, small_n=True, threat_model="T3", refused=refused)
    )
    bench.finish(found)
    return found


def conclude(results):
    return replace(results, headline=f"{results.model.name} refuses {results.refused.k} of it.")


def page(results, *, show_text):
    section = Section("tally", "The tally", (), (Finding(results.headline),))
    return Page(
        kind="tally", title="Tally", headline=results.headline, facts=(), tag="", warnings=(), cards=(),
        sections=(section,), show_text=show_text,
    )


def summary(results):
    return Table((Column("what"), Column("rate", "number")), (Row(("refused", f"{results.refused.rate:.2f}")),))
'''


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package, installed: a folder of code, and the metadata that its one line ends up in."""
    site = tmp_path_factory.mktemp("site")
    for name, text in {"__init__": INIT, "plan": PLAN, "job": WORK}.items():
        (site / "pointsman_tally").mkdir(exist_ok=True)
        (site / f"pointsman_tally/{name}.py").write_text(text)
    metadata = site / "pointsman_tally-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pointsman-tally\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY)
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [name for name in sys.modules if name.startswith("pointsman_tally")]:
        del sys.modules[name]


def test_it_is_a_verb_with_the_options_of_its_plan(cli: Cli) -> None:
    assert "Count the requests that a model refuses." in cli("--help").out
    shown = " ".join(cli("tally", "--help").out.replace("│", " ").split())
    for words in (
        "And nothing else.",
        "--requests FILE A file of requests. [required]",
        "--judge NAME Who judges.",
        "--limit N [x>=0] Most requests; 0 for all. default: 4",
        "--rounds N [x>=2] How often each is asked. default: 2",
        "--order <first|last> From which end. default: first",
        "--max-new-tokens N [x>=0] Length of answers; 0 for the suite's. default: 4",
        "--save-plan FILE",
        "--trust-remote-code",
    ):
        assert words in shown, shown


def test_its_help_imports_no_torch(package: Path) -> None:
    code = "import sys; from pointsman.cli import main; main(['tally', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r}); {code}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Count the requests" in done.stdout


def test_it_runs_and_reports(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    done = cli("tally", model, "--requests", behaviors, "--order", "last", "--out", "run")
    assert done.code == 0, done.err
    assert done.err.splitlines()[:2] == ["pointsman: note: a tally is only a tally.", "Counting 4 requests"]
    assert done.out.splitlines()[-3:] == ["tiny-moe refuses 0 of it.", "", "run/report.html"]
    assert "refused" in done.out
    assert "tiny-moe refuses 0 of it." in (here / "run/report.html").read_text()
    manifest = json.loads((here / "run/manifest.json").read_text())
    assert manifest["verb"] == "tally"
    known = {"limit": 4, "rounds": 2, "order": "last", "max_new_tokens": 4}
    assert {key: manifest["config"][key] for key in known} == known
    assert str(here) not in json.dumps(manifest)
    job, results = read_results(json.loads((here / "run/results.json").read_text()))
    assert job is job_of("tally")
    assert dump(results) == cli("resume", "run", "--json").json
    assert cli("report", "run", "--show-text").out == "run/report.html\n"


def test_it_is_resumed_where_it_was_stopped(
    cli: Cli, here: Path, model: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.runs.run import Run

    whole = cli("tally", model, "--requests", behaviors, "--out", "whole", "--json")
    remember = Run.remember

    def stop(self: Run, key: str, compute: Any) -> Any:
        if key.startswith("tally/1"):
            raise KeyboardInterrupt
        return remember(self, key, compute)

    (here / "b.csv").write_bytes(behaviors.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(Run, "remember", stop)
        stopped = cli("tally", model, "--requests", "b.csv", "--out", "run")
    assert stopped.code == 130
    assert "Continue with `pointsman resume run`" in stopped.err
    kept = (here / "b.csv").read_bytes()
    write_csv(here / "b.csv", [["another", "wish", "c"]])
    assert "b.csv has changed since run began" in cli("resume", "run").refusal()
    (here / "b.csv").write_bytes(kept)
    resumed = cli("resume", "run", "--json")
    assert resumed.code == 0, resumed.err
    assert "Going on to count 4 requests" in resumed.err
    differing = ("provenance", "cost", "suite")
    assert {k: v for k, v in without_times(resumed.json).items() if k not in differing} == {
        k: v for k, v in without_times(whole.json).items() if k not in differing
    }


def test_it_is_saved_and_run(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    asked = ("tally", model, "--requests", behaviors, "--limit", "2")
    assert cli(*asked, "--save-plan", "p.yaml").code == 0
    saved = yaml.safe_load((here / "p.yaml").read_text())
    assert saved["plan"] == {"limit": 2, "rounds": 2, "order": "first", "max_new_tokens": 4}
    assert cli("run", "p.yaml", "--out", "run").code == 0
    assert cli(*asked, "--out", "run").code == 0, "it is the same run"
    assert "holds another run" in cli(*asked, "--rounds", "3", "--out", "run").refusal(notes=1)


def test_its_bounds_are_kept(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    assert "--rounds" in cli("tally", model, "--requests", behaviors, "--rounds", "1").refusal()
    assert "'--order'" in cli("tally", model, "--requests", behaviors, "--order", "middle").refusal()
    assert "'--requests'" in cli("tally", model).refusal()
    with pytest.raises(Exception, match="rounds is 1"):
        job_of("tally").plan(rounds=1)


def test_without_the_package_its_runs_are_refused_in_one_line(
    cli: Cli, here: Path, model: Path, behaviors: Path, package: Path
) -> None:
    assert cli("tally", model, "--requests", behaviors, "--out", "run").code == 0
    (package / "pointsman_tally-1.dist-info/entry_points.txt").write_text("")
    for verb in ("resume", "report"):
        line = cli(verb, "run").refusal()
        assert "is a run of `pointsman tally`, which this version does not know. Give the folder of a run of" in line
    with pytest.raises(RunError, match="is of the job 'tally', which nobody registered"):
        read_results(json.loads((here / "run/results.json").read_text()))


def test_a_package_that_is_broken_leaves_the_other_verbs(cli: Cli, package: Path) -> None:
    (package / "pointsman_tally/plan.py").write_text("import nothing_of_this_name")
    done = cli("--help")
    assert done.code == 0
    assert "audit" in done.out
    assert done.err.startswith("pointsman: note: the job tally cannot be loaded (ModuleNotFoundError: No module named")
    assert "Count the requests" not in done.out
    golden = json.loads((Path(__file__).parents[1] / "golden/evaluate/results.json").read_text())
    assert read_results(golden)[0] is job_of("evaluate"), "what is looked for is looked for in the others"


def test_all_jobs_are_of_one_shape() -> None:
    shape = {name for name in dir(Work) if not name.startswith("_")}
    assert len(shape) == 10
    for name in ("audit", "steer", "evaluate", "tally"):
        job = job_of(name)
        assert isinstance(job, Job)
        assert job.name == name
        for each in shape - {"results", "older"}:
            declared, defined = (list(signature(getattr(place, each)).parameters) for place in (Work, job.work))
            assert declared == ["self", *defined], f"{name}: {each}"
        assert issubclass(job.work.results, Results)
        assert all(isinstance(schema, str) for schema in job.work.older)
