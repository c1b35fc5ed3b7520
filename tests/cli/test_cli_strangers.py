"""Run folders that come from somebody else, or go to somebody else: consent, privacy, and what was changed in them."""

from __future__ import annotations

import json
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import EFFORT, Cli, forget_checksums, save_moe, testbed_rows, without_times, write_csv
from test_cli_steer import EFFORT as STEER_EFFORT
from test_cli_steer import last_line, write_scenario

from pointsman.cli import main
from pointsman.runs.run import Run

EVIL = """
import os, pathlib
pathlib.Path(os.environ["PWNED"]).write_text("code of the checkpoint ran")
from transformers import OlmoeConfig, OlmoeForCausalLM
class Config(OlmoeConfig):
    model_type = "stranger"
class Model(OlmoeForCausalLM):
    config_class = Config
"""


def edit_manifest(run: Path, **load: Any) -> None:
    """Change `load` in a manifest, so that nothing but the version that made it could tell."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["load"].update(load)
    (run / "manifest.json").write_text(json.dumps(manifest))
    forget_checksums(run)


def stop(cli: Cli, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """Begin an audit, and stop it in the middle."""
    from pointsman.methods.rosais import RoSais

    def interrupt(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RoSais, "rank", interrupt)
        assert cli("audit", *arguments).code == 130


@pytest.fixture
def stopped(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An audit that was stopped in the middle."""
    save_moe(here / "model")
    write_csv(here / "b.csv", testbed_rows("restricted", 40))
    stop(cli, monkeypatch, "model", "--behaviors", "b.csv", "--out", "run", *EFFORT)
    return here / "run"


# ---------------------------------------------------------------------- consent


@pytest.fixture
def pwned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the code of a checkpoint writes if it is run."""
    monkeypatch.setenv("PWNED", str(tmp_path / "pwned"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "pwned"


def bring_code(model: Path) -> None:
    """Make a checkpoint one that cannot be loaded without its own code."""
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "stranger"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(EVIL)


@pytest.mark.parametrize("earlier", [False, True])
def test_code_of_a_checkpoint_runs_only_if_this_very_command_allows_it(
    cli: Cli, stopped: Path, pwned: Path, earlier: bool
) -> None:
    bring_code(stopped.parent / "model")
    if earlier:  # as earlier versions wrote it, and as a stranger would
        edit_manifest(stopped, trust_remote_code=True, source=str(stopped.parent / "model"))
        (stopped / "local.json").unlink()
    line = cli("resume", stopped).refusal(notes=2 if earlier else 1)
    assert "model needs code from its checkpoint. Read that code" in line
    assert "add --trust-remote-code to this very command" in line
    assert not pwned.exists()
    cli("resume", stopped, "--trust-remote-code")
    assert pwned.exists(), "this test proves nothing: the code does not run where it is allowed either"
    pwned.unlink()
    assert "--trust-remote-code" in cli("resume", stopped).refusal(notes=1)
    assert not pwned.exists(), "consent was kept"


def test_the_manifest_holds_no_consent(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_moe(here / "model")
    write_csv(here / "b.csv", testbed_rows("restricted", 40))
    stop(cli, monkeypatch, "model", "--behaviors", "b.csv", "--out", "run", "--trust-remote-code", *EFFORT)
    for name in ("manifest.json", "local.json"):
        assert "trust" not in (here / "run" / name).read_text()


def test_the_model_of_a_run_is_named_before_it_is_loaded(
    cli: Cli, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.engine import load as module

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("loading begins")

    with monkeypatch.context() as patch:
        patch.setattr(module, "load", refuse)
        lines = cli("resume", stopped).err.splitlines()
        assert lines[0] == (
            f"pointsman: note: loading the model that this run names: model, from {stopped.parent / 'model'}."
        )
        assert "loading begins" in lines[1]
        edit_manifest(stopped, name="stranger/model", local=False)
        (stopped / "local.json").unlink()
        lines = cli("resume", stopped).err.splitlines()
        assert "pointsman: note: loading the model that this run names: stranger/model." in lines


def test_a_model_that_has_moved_is_found_with_model(cli: Cli, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stopped.parent / "model"
    moved = model.rename(stopped.parent / "elsewhere")
    line = cli("resume", stopped).refusal()
    assert "The model model, which " in line
    assert line.endswith("is not in " + str(model) + " any more. Say where with --model FOLDER.")
    other = save_moe(stopped.parent / "other", seed=1)
    assert "is not the model that this run began with" in cli("resume", stopped, "--model", other).refusal(notes=1)
    from pointsman.methods.fsour import FSour

    with monkeypatch.context() as patch:
        patch.setattr(FSour, "search", lambda *a, **m: 1 / 0)
        assert "ZeroDivisionError" in cli("resume", stopped, "--model", "elsewhere").err
    done = cli("resume", stopped, "--json")
    assert done.code == 0, "where it lies now was not remembered: " + done.err
    assert f"names: model, from {moved}." in done.err
    assert done.json["model"]["name"] == "model"


def test_a_chat_template_goes_with_the_run_as_text(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_moe(here / "model")
    write_csv(here / "b.csv", testbed_rows("restricted", 40))
    text = (model / "chat_template.jinja").read_text() + "{# mine #}"
    (here / "t.jinja").write_text(text)
    ask = ("model", "--behaviors", "b.csv", "--out", "run", "--chat-template", "t.jinja", *EFFORT)
    stop(cli, monkeypatch, *ask)
    (here / "t.jinja").unlink()
    seen: list[str] = []
    from pointsman.engine.hf import HFEngine

    real = HFEngine.__init__

    def look(self: HFEngine, model: Any, tokenizer: Any, **more: Any) -> None:
        seen.append(tokenizer.chat_template)
        real(self, model, tokenizer, **more)

    monkeypatch.setattr(HFEngine, "__init__", look)
    assert cli("resume", "run").code == 0
    assert seen == [text]


def test_a_chat_template_of_an_earlier_version_is_read_only_if_it_is_the_one_that_is_known(
    cli: Cli, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest holds a path, and a stranger's could name any file of the user."""
    (tmp_path / "secret").write_text("the user's")
    edit_manifest(stopped, chat_template=str(tmp_path / "secret"))
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["config"]["prompts"]["files"]["chat_template"] = {"path": str(tmp_path / "secret"), "sha256": "0" * 64}
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    assert f"{tmp_path / 'secret'} has changed since" in cli("resume", stopped).refusal(notes=1)


@pytest.mark.parametrize(
    "load",
    [{"name": 5}, {"dtype": ["x"]}, {"revision": 1}, {"batch_size": -5}, {"batch_size": True}, {"chat_template": 5},
     {"chat_template": {"name": "x"}}, {"source": 5, "name": "org/name"}],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_other_types_is_refused_before_anything_is_loaded(
    cli: Cli, stopped: Path, load: dict[str, Any]
) -> None:
    (stopped / "local.json").unlink()
    edit_manifest(stopped, **load)
    assert "The manifest of" in cli("resume", stopped).refusal(notes=1)


def test_places_in_a_strangers_local_file_are_of_no_use(cli: Cli, stopped: Path, tmp_path: Path) -> None:
    (stopped.parent / "b.csv").unlink()
    (tmp_path / "secret").write_text("the user's")
    for place, problem in ((tmp_path / "secret", "has changed since"), (Path("/dev/zero"), "is no file")):
        (stopped / "local.json").write_text(json.dumps({"files": {"behaviors": str(place)}}))
        line = cli("resume", stopped).refusal()
        assert str(place) in line
        assert problem in line
    (stopped / "local.json").write_text("[1]")
    assert "local.json is damaged. Delete local.json." in cli("resume", stopped).refusal()


UNKNOWN = [None, "", 0, True, "0" * 63, "0" * 64 + "\n", "F" * 64, ["0" * 64], "no hash at all"]


def edit_config(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest as somebody does who writes the whole folder, checksums included."""
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest["config"])
    (run / "manifest.json").write_text(json.dumps(manifest))
    forget_checksums(run)


def private_file(folder: Path) -> Path:
    """A file of the user's that an audit could read."""
    return write_csv(folder / "private.csv", [(f"secret wish {n}", "t", "c") for n in range(40)])


def holding(folder: Path, words: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and words in path.read_bytes()]


@pytest.mark.parametrize("place", ["local", "manifest"])
def test_no_file_is_read_whose_hash_the_manifest_does_not_hold(
    cli: Cli, stopped: Path, tmp_path: Path, place: str
) -> None:
    """The stranger writes manifest and journal himself: without a hash he could name any file of the user's."""
    secret = private_file(tmp_path)
    for sha256 in [*UNKNOWN, "left out"]:

        def change(config: dict[str, Any], sha256: Any = sha256) -> None:
            entry = config["prompts"]["files"]["behaviors"]
            entry["sha256"] = sha256
            if sha256 == "left out":
                del entry["sha256"]
            if place == "manifest":
                entry["path"] = str(secret)

        edit_config(stopped, change)
        if place == "local":
            (stopped / "local.json").write_text(json.dumps({"files": {"behaviors": str(secret)}}))
        (stopped / "journal.jsonl").write_bytes(b"")  # so that everything is asked afresh
        line = cli("resume", stopped).refusal()
        assert f"The manifest of {stopped} does not say what " in line
        assert line.endswith("held. Start a new run in another folder.")
        assert holding(stopped, b"secret wish") == []


@pytest.mark.parametrize("verb", ["audit", "steer"])
def test_no_chat_template_is_read_whose_hash_the_manifest_does_not_hold(
    cli: Cli, stopped: Path, tmp_path: Path, verb: str
) -> None:
    (secret := tmp_path / "secret").write_text("the user's own words")
    for sha256 in UNKNOWN:

        def change(config: dict[str, Any], sha256: Any = sha256) -> None:
            config["load"]["chat_template"] = str(secret)
            if verb == "audit":  # they kept it in different places
                config["prompts"]["files"]["chat_template"] = {"path": str(secret), "sha256": sha256}
            else:
                config["prompts"]["chat_template"] = sha256

        edit_config(stopped, change)
        assert "does not say " in cli("resume", stopped).refusal(notes=1)
        assert holding(stopped, b"own words") == []


@pytest.mark.parametrize("suite", ["left out", "null"])
@pytest.mark.parametrize("how", ["no files", "null", "known"])
def test_no_file_of_a_scenario_is_read_whose_hash_the_manifest_does_not_hold(
    cli: Cli, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch, suite: str, how: str
) -> None:
    """A key `suite` without one must not let paths pass either, and a file is compared before it is parsed."""
    from pointsman.data.scenario import Scenario
    from pointsman.jobs.steer import job as steering_run

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    scenario = write_scenario(here / "scenario")
    with monkeypatch.context() as patch:
        patch.setattr(steering_run, "perform", stop)
        assert cli("steer", model, "--scenario", scenario, "--out", "run", *STEER_EFFORT).code == 130
    (secret := here / "secret.jsonl").write_text("the user's own words")

    def change(config: dict[str, Any]) -> None:
        config["scenario"]["prompts"]["restricted"] = str(secret)
        if suite == "null":
            config["scenario"]["prompts"]["suite"] = None
        files = config["prompts"]["files"]
        files["restricted"]["path"] = str(secret)
        if how == "no files":
            del config["prompts"]["files"]
        elif how == "null":
            files["restricted"]["sha256"] = None

    edit_config(here / "run", change)
    (here / "run/local.json").write_text("{}")
    monkeypatch.setattr(Scenario, "read", lambda *a: pytest.fail("the file was parsed"))
    line = cli("resume", "run").refusal(notes=1)
    assert ("has changed since run began" if how == "known" else "The manifest of run does not say what ") in line
    assert "own words" not in line


def test_no_steering_is_read_whose_hash_the_manifest_does_not_hold(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.jobs.evaluate import question
    from pointsman.jobs.evaluate.plan import Evaluate
    from pointsman.jobs.steer import question as steering_run

    monkeypatch.setattr(steering_run, "ask_scenario_again", lambda *a: None)
    monkeypatch.setattr(question, "read_steering", lambda *a: pytest.fail("the steering was read"))
    for number, sha256 in enumerate(UNKNOWN):
        steering = {"name": "stranger/steering", "local": False, "sha256": sha256}
        with Run.create(here / f"{number}", "evaluate", {**asdict(Evaluate()), "steering": steering}):
            pass
        assert "does not say what the steering stranger/steering held" in cli("resume", f"{number}").refusal()


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/b.csv"])
def test_a_path_that_cannot_be_is_refused_in_one_line(cli: Cli, stopped: Path, path: str) -> None:
    (stopped / "local.json").write_text(json.dumps({"files": {"behaviors": path}}))
    assert "which" in cli("resume", stopped).refusal()


def test_a_journal_that_answers_other_requests_is_refused(cli: Cli, stopped: Path) -> None:
    edit_config(stopped, lambda config: config.update(limit=10**18))
    line = last_line(cli, "resume", stopped)
    assert "The journal holds 6 answers in base, and not to the 28 requests that are asked" in line


# ---------------------------------------------------------------------- runs of earlier versions


def make_earlier(run: Path, **load: Any) -> None:
    """Make of a run what an earlier version left, with absolute paths in its manifest and no checksums."""
    manifest = json.loads((run / "manifest.json").read_text())
    config, here = manifest["config"], run.parent
    config["load"] = {
        "name": config["load"]["name"], "source": str(here / "model"), "dtype": "auto", "device": "auto",
        "quantization": None, "revision": None, "trust_remote_code": False, "chat_template": None, "batch_size": None,
        **load,
    }  # fmt: skip
    for key, entry in config["prompts"]["files"].items():
        entry["path"] = str(here / Path(entry["path"]).name)
        assert key == "behaviors"
    (run / "manifest.json").write_text(json.dumps(manifest, indent=2))
    (run / "local.json").unlink()
    forget_checksums(run)


def test_a_run_of_an_earlier_version_is_resumed(
    cli: Cli, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shutil.copytree(stopped, tmp_path / "whole")
    make_earlier(stopped)
    monkeypatch.chdir("/")
    done = cli("resume", stopped, "--json")
    assert done.code == 0, done.err
    assert "note: " + str(stopped) + " did not know its manifest's checksum; it is taken as it stands." in done.err
    again = cli("resume", whole, "--json")
    assert again.code == 0, again.err
    assert without_times(done.json) == without_times(again.json)
    assert "checksum" not in cli("resume", stopped).err, "it was not written down"


def test_the_same_command_continues_a_run_of_an_earlier_version(cli: Cli, stopped: Path) -> None:
    make_earlier(stopped)
    assert cli("audit", "model", "--behaviors", "b.csv", "--out", "run", *EFFORT).code == 0


def test_another_command_does_not(cli: Cli, stopped: Path, here: Path) -> None:
    for earlier in (False, True):
        if earlier:
            make_earlier(stopped)
        line = cli("audit", "model", "--behaviors", "b.csv", "--out", "run", *EFFORT, "--limit", "7").refusal()
        assert "holds another run" in line
        write_csv(here / "other.csv", testbed_rows("restricted", 30))
        line = cli("audit", "model", "--behaviors", "other.csv", "--out", "run", *EFFORT).refusal()
        assert "holds another run" in line


# ---------------------------------------------------------------------- links


def test_links_in_an_archive_of_a_run_are_refused(cli: Cli, stopped: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine").write_text("precious")
    for number, name in enumerate(("lock", "journal.jsonl", "artefacts/completions.jsonl")):
        copy = shutil.copytree(stopped, tmp_path / f"copy-{number}")
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(mine)
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            archive.add(copy, f"got-{number}")
        with tarfile.open(tmp_path / f"{number}.tar") as archive:
            trusting = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
            archive.extractall(**trusting)  # type: ignore[arg-type]
        for command in ("resume", "report"):
            line = cli(command, f"got-{number}").refusal()
            assert line.startswith(f"pointsman: got-{number}/{name} is a symbolic link")
    assert mine.read_text() == "precious"


# ---------------------------------------------------------------------- privacy


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A finished audit, steering and evaluation, with everything given by absolute paths into a home; and that home.

    The working folder is somewhere else.
    """
    home = tmp_path_factory.mktemp("homes") / "somebody-unique"
    here = tmp_path_factory.mktemp("somewhere-unique")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.chdir(here)
        model, data = save_moe(home / "models/m"), here / "data"
        data.mkdir()
        behaviours = write_csv(data / "b.csv", testbed_rows("restricted", 40))
        template = Path(shutil.copy(model / "chat_template.jinja", home / "t.jinja"))
        runs = home / "runs"
        ask = ["--behaviors", behaviours, "--chat-template", template, "--out", runs / "audit", *EFFORT]
        scenario = write_scenario(home / "scenario")
        for command in (
            ["audit", model, *ask],
            ["steer", "testbed", f"--scenario={scenario}", "--out", runs / "steer", *STEER_EFFORT],
            ["evaluate", "testbed", "--steering", runs / "steer", "--scenario", scenario, "--limit", "4",
             "--latency-rounds", "0", "--out", runs / "evaluate"],
        ):  # fmt: skip
            assert main([str(word) for word in command]) == 0
        yield runs, home


def test_no_file_that_is_shared_says_who_or_where(private: tuple[Path, Path]) -> None:
    runs, home = private
    words = [b"somebody-unique", b"somewhere-unique", str(home.parent.parent).encode()]
    files = [p for p in sorted(runs.rglob("*")) if p.is_file()]
    assert {"manifest.json", "results.json", "report.html", "README.md", "journal.jsonl"} <= {p.name for p in files}
    found = {
        f"{path.relative_to(runs)}: {word.decode()}"
        for path in files
        for word in words
        if path.name != "local.json" and word in path.read_bytes()
    }
    assert found == set()


def test_files_with_prompts_or_paths_are_private(private: tuple[Path, Path]) -> None:
    runs, _ = private
    names = {"journal.jsonl", "completions.jsonl", "contexts.jsonl", "local.json", "attempts.jsonl"}
    names |= {"conversations.jsonl", "routes.jsonl"}
    found = {p: stat.S_IMODE(p.stat().st_mode) for p in runs.rglob("*") if p.name in names}
    assert {p.name for p in found} == names
    assert set(found.values()) == {0o600}


def test_a_page_with_answers_is_private_as_well(cli: Cli, private: tuple[Path, Path]) -> None:
    page = private[0] / "audit/report.html"
    usual = stat.S_IMODE(page.stat().st_mode)
    cli("report", private[0] / "audit", "--show-text")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    cli("report", private[0] / "audit")
    assert stat.S_IMODE(page.stat().st_mode) == usual


def test_results_name_what_may_be_named(private: tuple[Path, Path]) -> None:
    results = json.loads((private[0] / "audit/results.json").read_text())
    assert results["model"]["name"] == "~/models/m"
    command = results["provenance"]["command"]
    assert command.startswith(
        "pointsman audit ~/models/m --behaviors data/b.csv --chat-template ~/t.jinja --out ~/runs"
    )


# ---------------------------------------------------------------------- what was changed


@pytest.fixture
def mine(private: tuple[Path, Path], here: Path) -> Path:
    """A copy of the finished runs."""
    return shutil.copytree(private[0], here / "runs")


def test_results_that_were_cut_off_are_made_again(cli: Cli, mine: Path) -> None:
    path = mine / "audit/results.json"
    whole = json.loads(path.read_text())
    for spoilt in (path.read_bytes()[:500], path.read_bytes().replace(b'"seed": 0', b'"seed": 5'), b""):
        path.write_bytes(spoilt)
        if b'"seed": 5' in spoilt:
            assert f"note: {path} is not what this run wrote" in cli("report", mine / "audit").err
        done = cli("resume", mine / "audit")
        assert done.code == 0, done.err
        assert f"note: {path} is damaged or was changed; it is made again." in done.err
        assert without_times(json.loads(path.read_text())) == without_times(whole)
    assert "made again" not in cli("resume", mine / "audit").err


@pytest.mark.parametrize("verb", ["resume", "report"])
def test_an_artefact_that_was_changed_or_deleted_is_named(cli: Cli, mine: Path, verb: str) -> None:
    assert "note:" not in cli(verb, mine / "audit").err
    completions = mine / "audit/artefacts/completions.jsonl"
    completions.write_text(completions.read_text().replace('"label": "', '"label": "not '))
    done = cli(verb, mine / "audit")
    assert done.code == 0
    (line,) = (line for line in done.err.splitlines() if "note:" in line)
    assert f"{completions} is not what this run wrote: it was changed afterwards. To make it again, delete " in line
    completions.unlink()
    assert f"{completions} is missing, which this run wrote." in cli(verb, mine / "audit").err
    (mine / "audit/results.json").unlink()
    assert cli("resume", mine / "audit").code == 0
    assert completions.exists()
    assert "note:" not in cli(verb, mine / "audit").err


def test_a_steering_that_was_changed_is_not_taken_for_that_of_the_run(cli: Cli, mine: Path, tmp_path: Path) -> None:
    data = mine / "steer/artefacts/steering/steering.json"
    assert data.exists(), sorted(data.parent.iterdir())
    data.write_text(data.read_text() + "\n")
    line = cli("fold", "testbed", "--steering", mine / "steer", "--out", tmp_path / "out").refusal()
    assert f"{data} is not what this run wrote: it was changed afterwards. Make it again (delete " in line
    line = cli("fold", "testbed", "--steering", data.parent, "--out", tmp_path / "out").refusal()
    assert "is not what this run wrote" not in line
    data.unlink()
    data.symlink_to(tmp_path / "secret")
    line = cli("fold", "testbed", "--steering", mine / "steer", "--out", tmp_path / "out").refusal()
    assert f"{data} is a symbolic link" in line


def test_a_flipped_bit_in_a_trace_is_healed_by_resume(cli: Cli, mine: Path) -> None:
    run = mine / "steer"
    shards = {p: p.read_bytes() for p in (run / "artefacts").glob("traces-*/*.safetensors")}
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").unlink()
    assert len(shards) >= 2
    for path, data in shards.items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert {p: p.read_bytes() for p in shards} == shards
    assert without_times(json.loads((run / "results.json").read_text())) == without_times(results)


def test_a_manifest_that_was_edited_is_refused(cli: Cli, mine: Path) -> None:
    path = mine / "audit/manifest.json"
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 3000'))
    for verb in ("resume", "report"):
        assert "manifest.json is not what" in cli(verb, mine / "audit").refusal()


def test_a_copied_run_is_resumed_where_nothing_lies_where_it_lay(
    cli: Cli, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was shared: without ``local.json``, in a folder that has the files under their names."""
    place = tmp_path / "other machine"
    place.mkdir()
    for name in ("run", "model", "b.csv"):
        (stopped.parent / name).rename(place / name)
    (place / "run/local.json").unlink()
    monkeypatch.chdir(place)
    (place / "model").rename(place / "m")
    assert "is not in model any more. Say where with --model FOLDER" in cli("resume", "run").refusal()
    assert cli("resume", "run", "--model", "m").code == 0
    with Run.open(place / "run", read_only=True) as run:
        assert run.local()["model"] == str(place / "m")
