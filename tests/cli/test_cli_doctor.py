"""`doctor` says plainly what it checked, and is never content where an audit cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import Cli
from transformers import OlmoeForCausalLM

from families.papers import checkpoint_of, paper
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import Learner
from pointsman.engine.scorer import ResumedScorer

pytestmark = pytest.mark.versions


def test_doctor_says_plainly_what_was_checked(cli: Cli, model: Path) -> None:
    done = cli("doctor", model)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("✓") == 9
    assert done.out.rstrip().endswith("Everything needed is in order.")
    assert "3 that choose 2 of 8 experts for every token (no expert groups), in decoder layers 0 to 2" in done.out


def test_doctor_json(cli: Cli, model: Path) -> None:
    found = cli("doctor", model, "--json").json
    assert found["ok"] is True
    assert found["proof"]["routers"] == 3
    assert found["proof"]["identical"] is True
    assert found["proof"]["logits_moved"] > 0
    assert found["proof"]["paths"]["tokens"] >= 20
    assert found["chat"] == {
        "template": True, "system_prompt": True, "thinking": "none", "setting": "", "judged": "the whole answer",
        "opening": "",
    }  # fmt: skip
    assert found["learns"] is True
    assert found["model"]["context"] == 256
    assert len(found["routers"]) == 3


@pytest.mark.parametrize("verb", ["doctor", "routers", "audit"])
def test_a_cache_argument_with_a_new_name_is_caught(
    cli: Cli, here: Path, model: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A stand-in for the next release of transformers: the cache has a name that nothing tells."""
    original = OlmoeForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, kept: Any = None, **others: Any) -> Any:
        others = {name: value for name, value in others.items() if not hasattr(value, "get_seq_length")}
        return original(self, input_ids, attention_mask, **others)

    monkeypatch.setattr(OlmoeForCausalLM, "forward", forward)
    more = ("--behaviors", behaviors, "--out", "run") if verb == "audit" else ()
    line = cli(verb, model, *more).refusal()
    assert "OlmoeForCausalLM.forward has no parameter that is known to take a cache" in line
    assert "Use a version of transformers that Pointsman was tested with" in line
    assert not list(here.iterdir())


def test_a_generate_that_goes_wrong_is_caught(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = OlmoeForCausalLM.prepare_inputs_for_generation

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = original(self, *args, **kwargs)
        return {**inputs, "input_ids": torch.full_like(inputs["input_ids"], 3)}

    monkeypatch.setattr(OlmoeForCausalLM, "prepare_inputs_for_generation", prepare)
    assert "does not say in `generate` what it says in one full forward" in cli("doctor", model).refusal()


def test_a_search_that_scores_otherwise_is_caught(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResumedScorer.tries

    def tries(self: Any, *args: Any) -> Any:
        return {row: values - 1.0 for row, values in original(self, *args).items()}

    monkeypatch.setattr(ResumedScorer, "tries", tries)
    assert "nats a token apart in a search and by itself" in cli("doctor", model).refusal()


def test_a_trace_of_other_experts_is_caught(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = HFEngine.trace
    monkeypatch.setattr(HFEngine, "trace", lambda self, prompts, routing=None: original(self, prompts))
    assert "does not show the experts that were forced" in cli("doctor", model).refusal()


def test_a_model_that_cannot_learn_can_still_be_audited(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(self: Any, *args: Any) -> Any:
        raise NotImplementedError("derivative for this kernel is not implemented")

    monkeypatch.setattr(Learner, "gradients", gradients)
    done = cli("doctor", model)
    assert done.code == 0
    assert "✗ No gradients reach the routers" in done.out
    assert "derivative for this kernel" in done.out
    assert done.out.rstrip().endswith("All is in order but for what is marked.")


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_TURNS = "<|user|> {{ messages[-1]['content'] }} <|end|> <|assistant|>"


def test_doctor_sees_what_a_template_leaves_out(cli: Cli, here: Path, model: Path) -> None:
    template = here / "template.jinja"
    template.write_text(NO_SYSTEM)
    done = cli("doctor", model, "--chat-template", template)
    assert "it leaves a system prompt out, so that none is accepted." in done.out
    assert cli("doctor", model, "--chat-template", template, "--json").json["chat"]["system_prompt"] is False
    template.write_text(NO_TURNS)
    assert "leaves out an earlier turn" in cli("doctor", model, "--chat-template", template).refusal()
    template.write_text("<|user|> hello <|end|> <|assistant|>")
    assert "leaves out what the user says" in cli("doctor", model, "--chat-template", template).refusal()


@pytest.mark.parametrize("change", ["[:20]", "|lower"])
def test_doctor_sees_what_a_template_changes(cli: Cli, here: Path, model: Path, change: str) -> None:
    template = here / "template.jinja"
    template.write_text(
        f"{{% for m in messages %}}<|{{{{ m.role }}}}|> {{{{ m.content{change} }}}} {{% endfor %}}<|assistant|>"
    )
    assert "or changes it" in cli("doctor", model, "--chat-template", template).refusal()


def test_doctor_sees_a_system_prompt_that_is_written_only_if_it_is_short(cli: Cli, here: Path, model: Path) -> None:
    template = here / "template.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role != 'system' or m.content|length < 20 %}<|{{ m.role }}|> {{ m.content }} "
        "{% endif %}{% endfor %}<|assistant|>"
    )
    assert "it leaves a system prompt out" in cli("doctor", model, "--chat-template", template).out


def test_doctor_notes_layers_that_the_configuration_leaves_out(cli: Cli, here: Path, model: Path) -> None:
    """Such a model answers, and is another one than its weights were trained as."""
    shutil.copytree(model, here / "model")
    config = here / "model/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 2}))
    done = cli("doctor", "model")
    assert done.code == 0
    (note,) = [line for line in done.out.splitlines() if line.startswith("Note: ")]
    assert "model.layers.2" in note
    assert cli("doctor", "model", "--json").json["notices"]


def test_doctor_says_what_is_judged_of_a_model_that_thinks(cli: Cli, tmp_path: Path) -> None:
    folder = checkpoint_of(paper("gpt-oss-20b"), tmp_path / "gpt-oss")
    done = cli("doctor", folder)
    line = next(line for line in done.out.splitlines() if "hinking" in line)
    assert line == (
        "  ✓ Thinking is turned down (reasoning_effort=low); the chat template cannot switch it off; only the final "
        "channel is judged; targets begin behind <|channel|>final<|message|>."
    )
    assert "today's date" in done.out
    found = cli("doctor", folder, "--json").json["chat"]
    assert (found["thinking"], found["judged"]) == ("less", "only the final channel")
