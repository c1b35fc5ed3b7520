"""Bad input: exit 2, one line on stderr that says what to do, no traceback, nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest_cli import EFFORT, Cli, save_moe, testbed_rows, write_csv
from transformers import AutoModelForCausalLM

import pointsman
from pointsman.cli.app import application
from pointsman.cli.output import Session, explain
from pointsman.errors import WrongModel
from pointsman.jobs.audit import question

# ---------------------------------------------------------------------- models


def test_a_hub_model_that_does_not_exist(
    cli: Cli, here: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = cli("audit", "nobody/nothing", "--behaviors", behaviors).refusal()
    assert "Cannot find the model 'nobody/nothing' on the hub or in the local cache" in line
    assert not list(here.iterdir())


def test_a_model_folder_that_does_not_exist(cli: Cli, here: Path, behaviors: Path) -> None:
    assert "There is no folder ./nowhere" in cli("audit", "./nowhere", "--behaviors", behaviors).refusal()
    assert not list(here.iterdir())


def test_a_folder_that_is_no_model(cli: Cli, here: Path, behaviors: Path) -> None:
    (here / "photos").mkdir()
    for verb in ("doctor", "routers"):
        assert "photos is a folder without config.json" in cli(verb, "photos").refusal()
    assert "photos is a folder" in cli("audit", "photos", "--behaviors", behaviors).refusal()


def test_a_file_that_is_no_model(cli: Cli, behaviors: Path) -> None:
    assert "is a file, not a model folder" in cli("doctor", behaviors).refusal()


@pytest.mark.parametrize("verb", ["audit", "doctor", "routers"])
def test_a_dense_model(cli: Cli, here: Path, dense: Path, behaviors: Path, verb: str) -> None:
    more = ("--behaviors", behaviors, "--out", "run") if verb == "audit" else ()
    assert "LlamaForCausalLM" in cli(verb, dense, *more).refusal()
    assert not list(here.iterdir()), "a run that could not begin leaves nothing behind"


def test_a_model_without_a_chat_template(cli: Cli, tmp_path: Path) -> None:
    folder = save_moe(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    line = cli("doctor", folder).refusal()
    assert "no chat template" in line
    assert "--chat-template FILE" in line


def test_a_testbed_checkpoint_that_does_not_ship(cli: Cli) -> None:
    assert "No testbed checkpoint is called 'nonesuch'" in cli("doctor", "testbed:nonesuch").refusal()


def test_nan_in_a_router(cli: Cli, here: Path, tmp_path: Path, behaviors: Path) -> None:
    def spoil(model: Any) -> None:
        model.model.layers[1].mlp.gate.weight.fill_(torch.nan)

    line = cli("audit", save_moe(tmp_path / "nan", spoil=spoil), "--behaviors", behaviors, *EFFORT).refusal()
    assert "NaN" in line


def test_nan_that_only_some_prompts_meet(cli: Cli, here: Path, tmp_path: Path, behaviors: Path) -> None:
    """Not seen by the proof at loading: it must be caught when it comes."""
    from pointsman.testbed.tokenizer import build_tokenizer

    word = build_tokenizer()("the")["input_ids"][0]

    def spoil(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight[word] = torch.nan

    folder = save_moe(tmp_path / "nan", spoil=spoil)
    done = cli("audit", folder, "--behaviors", behaviors, "--out", "run", *EFFORT)
    assert done.code == 2
    assert done.out == ""
    assert "NaN or infinite" in done.err.splitlines()[-1]
    assert done.err.count("pointsman: ") == 1
    assert not (here / "run").exists()


def test_a_gpu_that_is_not_there(cli: Cli, model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "Use --device cpu" in cli("doctor", model, "--device", "cuda").refusal()
    assert "4bit loading needs a GPU" in cli("doctor", model, "--load-in", "4bit").refusal()


# ---------------------------------------------------------------------- prompts


def test_no_behaviors_for_this_model(cli: Cli, here: Path, model: Path) -> None:
    line = cli("audit", model).refusal()
    assert "--behaviors FILE (columns Goal, Target, Category" in line
    assert "Did you mean testbed?" in cli("audit", "tesbed").refusal()


@pytest.mark.parametrize("option", ["--behaviors", "--benign", "--borderline"])
def test_a_behavior_file_that_does_not_exist(cli: Cli, here: Path, model: Path, behaviors: Path, option: str) -> None:
    arguments = {"--behaviors": behaviors, option: "nowhere.csv"}
    line = cli("audit", model, *(x for pair in arguments.items() for x in pair)).refusal()
    assert "pointsman: nowhere.csv does not exist" in line
    assert not list(here.iterdir())


def test_missing_columns(cli: Cli, here: Path, model: Path) -> None:
    file = write_csv(here / "b.csv", [["a", "b"]], ["Goal", "Reply"])
    line = cli("audit", model, "--behaviors", file).refusal()
    assert "no column target; found: goal, reply" in line
    assert "Add a column target" in line


def test_an_empty_file(cli: Cli, here: Path, model: Path) -> None:
    (here / "b.csv").write_text("")
    assert "b.csv is empty" in cli("audit", model, "--behaviors", "b.csv").refusal()
    write_csv(here / "b.csv", [])
    assert "b.csv holds no rows" in cli("audit", model, "--behaviors", "b.csv").refusal()


def test_duplicate_ids(cli: Cli, here: Path, model: Path) -> None:
    rows = [["7", goal, target, kind] for goal, target, kind in testbed_rows("restricted", 2)]
    file = write_csv(here / "b.csv", rows, ["Index", "Goal", "Target", "Category"])
    assert "uses the id '7' twice (line 2 and line 3)" in cli("audit", model, "--behaviors", file).refusal()


def test_too_few_behaviors_to_split(cli: Cli, here: Path, model: Path) -> None:
    file = write_csv(here / "b.csv", testbed_rows("restricted", 1))
    line = cli("audit", model, "--behaviors", file, "--out", "run").refusal()
    assert "with different source questions" in line
    assert not (here / "run").exists()


def test_a_prompt_beyond_the_context_and_the_mended_command(cli: Cli, here: Path, model: Path) -> None:
    rows = testbed_rows("restricted", 12)
    long = [[f"{goal} {'please ' * 300}", target, kind] for goal, target, kind in rows]
    asked = ("audit", model, "--behaviors", "b.csv", "--out", "run", *EFFORT)
    write_csv(here / "b.csv", long)
    line = cli(*asked).refusal()
    assert "has a context of 256" in line
    assert "Shorten or remove it" in line
    write_csv(here / "b.csv", rows)
    assert cli(*asked).code == 0, "the mended command may use the same folder"


def test_benign_requests_beside_a_suite_that_brings_its_own(cli: Cli, here: Path, benign: Path) -> None:
    assert "leave --benign out" in cli("audit", "testbed", "--benign", benign).refusal()


# ---------------------------------------------------------------------- names, numbers, folders


def test_an_unknown_judge(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    line = cli("audit", model, "--behaviors", behaviors, "--judge", "refusl").refusal()
    assert "Unknown judge 'refusl'. Did you mean refusal? Known judges: " in line
    assert not list(here.iterdir())


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_min_gain_that_is_no_number_of_nats(cli: Cli, here: Path, model: Path, behaviors: Path, value: str) -> None:
    line = cli("audit", model, "--behaviors", behaviors, "--min-gain", value, "--out", "run").refusal()
    assert "min-gain" in line
    assert not (here / "run").exists()


def _number_options() -> list[tuple[str, str]]:
    """Every option of every verb that takes a fraction."""
    app = application()
    groups = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)]
    registered = [command for group in groups for command in group.registered_commands]
    return [
        (str(command.name), str(get_args(hint)[1].default))
        for command in registered
        if command.callback
        for hint in get_type_hints(command.callback, include_extras=True).values()
        if "float" in str(get_args(hint)[:1])
    ]


def test_an_option_that_takes_a_number_refuses_what_is_none(cli: Cli, here: Path, behaviors: Path) -> None:
    needed = {"audit": ("testbed",), "steer": ("testbed", "--scenario", "multi_turn_defence"), "label": ("x",)}
    options = _number_options()
    found = {name for _, name in options}
    assert found == {
        "--min-gain", "--noise", "--through-lambda", "--through-hold", "--conditional-hold", "--decay", "--precision",
    }  # fmt: skip
    for verb, name in options:
        for value in ("nan", "inf", "-inf", "1e999"):
            line = cli(*verb.split(), *needed[verb], name, value, "--out", "run").refusal()
            assert name.removeprefix("--") in line
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name(cli: Cli, here: Path, model: Path, behaviors: Path, name: str) -> None:
    assert "The name of the model is empty" in cli("doctor", name).refusal()
    assert "The name of the steering is empty" in cli("evaluate", model, "--steering", name).refusal()
    assert "Unknown judge" in cli("audit", model, "--behaviors", behaviors, "--judge", name).refusal()


def test_a_name_that_is_too_long_for_a_file(cli: Cli, here: Path) -> None:
    assert "cannot be written" in cli("scenario", "init", "--out", "x" * 300 + ".yaml").refusal()
    done = cli("testbed", "train", "--out", "x" * 300)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("pointsman: Cannot write xxx")


@pytest.mark.parametrize("folder", ["x" * 300, "new/" + "x" * 300])
def test_a_name_that_is_too_long_for_a_run(cli: Cli, here: Path, model: Path, behaviors: Path, folder: str) -> None:
    line = cli("audit", model, "--behaviors", behaviors, "--out", folder).refusal()
    assert line.startswith(f"pointsman: Cannot write to {folder}: File name too long. ")
    assert "--out" in line


def test_an_unwritable_output_folder(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    (here / "file").write_text("mine")
    for out in ("file", "file/run"):
        line = cli("audit", model, "--behaviors", behaviors, "--out", out).refusal()
        assert "--out" in line
    assert (here / "file").read_text() == "mine"


def test_an_output_folder_of_something_else(cli: Cli, here: Path, model: Path, behaviors: Path) -> None:
    (here / "work").mkdir()
    (here / "work/thesis.tex").write_text("mine")
    line = cli("audit", model, "--behaviors", behaviors, "--out", "work").refusal()
    assert "work is not empty and is no run" in line
    assert [p.name for p in (here / "work").iterdir()] == ["thesis.tex"]


def test_a_failed_start_leaves_an_empty_folder_as_it_was(cli: Cli, here: Path, dense: Path, behaviors: Path) -> None:
    (here / "mine").mkdir()
    cli("audit", dense, "--behaviors", behaviors, "--out", "mine").refusal()
    assert not list((here / "mine").iterdir())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["audit"], "Missing argument 'MODEL'"),
        (["audit", "m", "--limit", "many"], "--limit"),
        (["audit", "m", "--samples", "0"], "--samples"),
        (["audit", "m", "--seed", "-1"], "--seed"),
        (["audit", "m", "--load-in", "2bit"], "--load-in"),
        (["audit", "m", "--nonsense"], "--nonsense"),
        (["adit"], "audit"),
        (["testbed"], "Missing command"),
        (["testbed", "train", "--family", "llama"], "--family"),
    ],
)
def test_arguments_that_make_no_sense(cli: Cli, arguments: list[str], part: str) -> None:
    line = cli(*arguments).refusal()
    assert part in line
    assert "--help`." in line


@pytest.mark.parametrize("verb", ["resume", "report"])
def test_a_folder_that_is_no_run(cli: Cli, here: Path, verb: str) -> None:
    assert "nowhere is not a folder" in cli(verb, "nowhere").refusal()
    (here / "empty").mkdir()
    assert "empty is no run" in cli(verb, "empty").refusal()
    assert not list((here / "empty").iterdir())


def test_testbed_train_into_a_file(cli: Cli, here: Path) -> None:
    (here / "file").write_text("mine")
    done = cli("testbed", "train", "--out", "file")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("pointsman: Cannot write file")


# ---------------------------------------------------------------------- Python, and the unforeseen


def test_an_intervention_for_another_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = AutoModelForCausalLM.from_pretrained(model)
    bound = pointsman.Intervention.mask([0, 1], layers=1).for_model(pointsman.prove(one).fingerprint)
    bound.save(tmp_path / "intervention")
    loaded = pointsman.Intervention.load(tmp_path / "intervention")
    with pointsman.control(one, loaded):
        pass
    other = AutoModelForCausalLM.from_pretrained(save_moe(tmp_path / "other", seed=1))
    with pytest.raises(WrongModel) as refused, pointsman.control(other, loaded):
        pass
    assert explain(refused.value, Session()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pointsman: This intervention is for OlmoeForCausalLM-")
    assert ". " in line


def test_the_unforeseen_is_one_line_too(
    cli: Cli, here: Path, model: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(question, "read_suite", fail)
    done = cli("audit", model, "--behaviors", behaviors)
    assert done.code == 1
    assert done.err == "pointsman: ZeroDivisionError: a b. This was not foreseen: --debug shows the traceback.\n"
    debugged = cli("audit", model, "--behaviors", behaviors, "--debug")
    assert debugged.code == 1
    assert "Traceback" in debugged.err
    assert "Traceback" in cli("--debug", "resume", "nowhere").err
