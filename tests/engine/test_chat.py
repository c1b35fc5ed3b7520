"""Chat templates: token ids, and which tokens are whose."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.engine.chat import Chat
from pointsman.errors import ModelError, UsageError
from pointsman.testbed.tokenizer import build_tokenizer

KEEPS_SYSTEM = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MERGES_SYSTEM = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.s = m['content'] %}"
    "{% else %}<|{{ m['role'] }}|> {% if m['role'] == 'user' and ns.s %}{{ ns.s }} {% set ns.s = '' %}{% endif %}"
    "{{ m['content'] }} <|end|> {% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}x"
LAST_TURN_ONLY = "<|user|> {{ messages[-1]['content'] }} <|end|> <|assistant|>"
SYSTEM_LAST = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {% if loop.last %}"
    "{{ messages[0]['content'] }} {% endif %}{{ m['content'] }} <|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOUTS = "{% for m in messages %}<|user|> {{ m['content'] | upper | replace('A', 'B') }} {% endfor %}"


def chat(template: str | None = None) -> Chat:
    tokenizer: Any = build_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return Chat(tokenizer, "test")


def said(prompt: Any, role: str) -> str:
    return " ".join(t for t, r in zip(prompt.tokens, prompt.roles, strict=True) if r == role)


@pytest.mark.parametrize("template", [None, KEEPS_SYSTEM, MERGES_SYSTEM])
def test_roles_follow_the_messages(template: str | None) -> None:
    prompt = chat(template).encode(
        ["how do i mend the red tairn ?", "thanks ! and where is the red tairn ?"],
        ["Sure ,"],
        system="give short answers .",
    )
    assert said(prompt, "content") == "thanks ! and where is the red tairn ?"
    assert said(prompt, "history") == "how do i mend the red tairn ? Sure ,"
    assert said(prompt, "system") == "give short answers ."
    assert prompt.roles[-1] == "last"
    assert prompt.tokens[-1] == "<|assistant|>"
    assert len(prompt) == len(prompt.ids) == len(prompt.tokens) == len(prompt.roles)


def test_a_message_that_repeats_itself_and_the_template_is_located() -> None:
    prompt = chat().encode(["the red tairn ?", "the red tairn ?"], ["the red tairn ?"])
    content = [n for n, role in enumerate(prompt.roles) if role == "content"]
    assert content == list(range(content[0], content[0] + 4))
    assert content[-1] == len(prompt) - 2  # right before the generation prompt


def test_ids_are_those_of_the_tokenizers_own_template() -> None:
    tokenizer: Any = build_tokenizer()
    messages = [{"role": "user", "content": "how do i mend the red tairn ?"}]
    own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(chat().encode(["how do i mend the red tairn ?"]).ids) == list(own)


def test_a_target_continues_the_prompt() -> None:
    tokenizer: Any = build_tokenizer()
    assert tokenizer.decode(chat().encode_target("Sure , here")) == "Sure , here"


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, SHOUTS])
def test_templates_that_cannot_be_used_are_refused(template: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        chat(template).encode(["a red tairn ?"], system="give short answers .")


def test_a_template_that_leaves_out_the_question_is_refused() -> None:
    """Else every prompt would be the same, and every answer."""
    for template in ("x", "{{ messages[0]['content'] }}"):
        with pytest.raises(ModelError, match="leaves out what the user says"):
            chat(template).encode(["a red tairn ?", "where is it ?"], ["Sure ,"])


@pytest.mark.parametrize(
    ("template", "words"),
    [(DROPS_SYSTEM, "leaves out the system prompt"), (LAST_TURN_ONLY, "leaves out an earlier turn")],
)
def test_a_template_that_leaves_out_something_else_is_refused_where_it_matters(template: str, words: str) -> None:
    assert said(chat(template).encode(["a red tairn ?"]), "content") == "a red tairn ?"
    with pytest.raises(ModelError, match=words):
        chat(template).encode(["a red tairn ?", "where is it ?"], ["Sure ,"], system="give short answers .")


@pytest.mark.parametrize("change", ["[:20]", "|lower", ".split(' ')[0]", "|replace('red', 'green')"])
def test_a_template_that_changes_what_is_said_is_refused(change: str) -> None:
    template = f"{{% for m in messages %}}<|{{{{ m.role }}}}|> {{{{ m.content{change} }}}} {{% endfor %}}<|assistant|>"
    assert chat(template).encode(["tairn"])
    for turns in (["How do i mend the red tairn ?"], ["How do i mend the red tairn ?", "tairn"]):
        with pytest.raises(ModelError, match="or changes it"):
            chat(template).encode(turns, ["ok"] * (len(turns) - 1))


def test_a_template_may_leave_out_what_the_model_thought() -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content.split('</think>')[-1] if m.role == 'assistant' else "
        "m.content }} <|end|> {% endfor %}<|assistant|>"
    )
    prompt = chat(template).encode(["a red tairn ?", "where is it ?"], ["<think> the red one </think> Sure ,"])
    assert said(prompt, "content") == "where is it ?"
    assert "think" not in "".join(prompt.tokens)


def test_a_template_that_writes_the_system_prompt_last_is_used() -> None:
    """As some do: in front of the last question, after all the turns before."""
    prompt = chat(SYSTEM_LAST).encode(["a red tairn ?", "where is it ?"], ["Sure ,"], system="give short answers .")
    assert "".join(prompt.tokens).count("short") == 1
    assert said(prompt, "content") == "where is it ?"


def test_no_template_is_one_clear_error() -> None:
    with pytest.raises(ModelError, match="--chat-template"):
        chat("")


def test_turns_and_answers_must_alternate() -> None:
    with pytest.raises(ValueError, match="need 1 answers"):
        chat().encode(["a", "b"], [])


def test_a_single_text_is_one_turn() -> None:
    assert chat().encode("how do i mend the red tairn ?") == chat().encode(["how do i mend the red tairn ?"])
    two = ["the red tairn ?", "where is it ?"]
    assert chat().encode(two, "Sure ,") == chat().encode(two, ["Sure ,"])


@pytest.mark.parametrize("turns", [[], "", [1], [{"role": "user", "content": "a"}], [["a"]], None])
def test_what_is_no_conversation_is_told_how_to_write_one(turns: Any) -> None:
    with pytest.raises(UsageError, match="encode"):
        chat().encode(turns)
    with pytest.raises(UsageError, match="encode_target"):
        chat().encode_target([1])  # type: ignore[arg-type]
