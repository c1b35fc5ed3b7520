"""Which part of what a model writes is its answer: read from chat templates as the models of the papers have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engines import small_engine
from families.papers import PAPERS, Paper, paper, tokenizer_of
from pointsman.data.types import Behaviour
from pointsman.engine.channels import OFF, Channels, given
from pointsman.engine.chat import Chat
from pointsman.engine.learning import Lesson
from pointsman.engine.reasoning import split
from pointsman.engine.scorer import read_scores
from pointsman.engine.settings import settings_of
from pointsman.engine.types import Prompt
from pointsman.errors import ModelError
from pointsman.judges.types import Answer, answer_or_garbage
from pointsman.testbed.tokenizer import build_tokenizer

HEADER = "<|channel|>final<|message|>"
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
V31 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|></think>"
    "{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|></think>{% endif %}"
)
PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def chat(template: str, base: Paper | None = None) -> Chat:
    tokenizer: Any = tokenizer_of(base or PAPERS[0])
    tokenizer.chat_template = template
    return Chat(tokenizer, "test")


def chat_of(name: str) -> Chat:
    return Chat(tokenizer_of(paper(name)), name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-30B-A3B", Channels("off", "enable_thinking=False", "only what follows </think>")),
        (
            "gpt-oss-20b",
            Channels("less", "reasoning_effort=low", "only the final channel", HEADER, "<|start|>assistant"),
        ),
        (
            "Hunyuan-A13B-Instruct",
            Channels("off", "enable_thinking=False", "only what stands in <answer>", "<answer>\n"),
        ),
        ("Mixtral-8x7B-Instruct-v0.1", Channels(opening=" ")),
        ("OLMoE-1B-7B-0125-Instruct", Channels()),
    ],
)
def test_a_template_says_what_the_answer_is(name: str, expected: Channels) -> None:
    assert chat_of(name).channels == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (R1, Channels("on", "", "only what follows </think>", "\n</think>\n\n", "<think>\n")),
        (V31, Channels("off", "", "only what follows </think>")),
        (PLAIN + "{# '</think>' in content #}", Channels("may", "", "only what follows </think>")),
        (PLAIN + "{# reasoning #}", Channels("may")),
        (PLAIN, Channels()),
        ("{{ raise_exception('no') }} <think>", Channels()),
    ],
)
def test_templates_without_a_switch(template: str, expected: Channels) -> None:
    assert chat(template).channels == expected


def test_an_unknown_switch_of_effort_is_not_forced_on_a_template() -> None:
    """Some accept two words only, and raise at others."""
    picky = "{% if reasoning_effort is defined %}{{ raise_exception('none or high') }}{% endif %}" + PLAIN
    assert chat(picky).channels == Channels("may")
    assert chat(picky).encode("How?").ids


@pytest.mark.parametrize("each", PAPERS, ids=lambda each: each.name)
def test_thinking_is_off_where_the_template_can(each: Paper) -> None:
    model = Chat(tokenizer_of(each), each.name)
    text = "".join(model.encode("How?").tokens)
    assert ("<think>\n\n</think>" in text) == ("enable_thinking" in each.template)
    assert ("Reasoning: low" in text) == ("reasoning_effort" in each.template)


def test_targets_begin_where_the_template_writes_answers() -> None:
    for each in PAPERS:
        tokenizer = tokenizer_of(each)
        model = Chat(tokenizer, each.name)
        target, prompt = model.encode_target("Sure, here"), model.encode("Who?", ())
        joined = tokenizer.decode(prompt.ids + target)
        told = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Sure, here"}]
        if each.name.startswith("Hunyuan"):  # its template writes the tag nowhere: the model does
            assert joined.endswith("<think>\n\n</think>\n<answer>\nSure, here")
        else:
            settings = model.channels.settings
            written: Any = tokenizer.apply_chat_template(told, tokenize=False, **settings)
            assert written.startswith(joined)


def test_a_text_with_a_thought_of_its_own_gets_no_header() -> None:
    model = chat_of("gpt-oss-20b")
    raw = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Sure"
    for text in (raw, f"{HEADER}Sure"):
        assert model.decode(model.encode_target(text)) == text
    assert model.encode_target(f"{HEADER}Sure") == model.encode_target("Sure")


def test_marks_of_channels_stay_in_the_text_and_nothing_else_that_is_special() -> None:
    model = chat_of("gpt-oss-20b")
    tokenizer: Any = tokenizer_of(paper("gpt-oss-20b"))
    raw = "<|channel|>analysis<|message|>we may.<|end|><|start|>assistant<|channel|>final<|message|>Sure"
    ids = tokenizer(raw + "<|endoftext|>", add_special_tokens=False)["input_ids"]
    assert model.decode(ids) == raw
    assert split(model.decode(ids)).answer == "Sure"
    cut_off = tokenizer("<|channel|>analysis<|message|>we may.", add_special_tokens=False)["input_ids"]
    assert split(model.decode(cut_off)).answer is None
    without = tokenizer("Sure<|endoftext|>", add_special_tokens=False)["input_ids"]
    assert model.decode(without) == "Sure"


def test_marks_that_are_only_added_as_special_stay_too() -> None:
    """As gpt-oss ships: its control tokens have no role, so they are not among `all_special_tokens`."""
    whole: Any = tokenizer_of(paper("gpt-oss-20b"))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, eos_token="<|return|>")
    tokenizer.chat_template = whole.chat_template
    assert "<|channel|>" not in tokenizer.all_special_tokens
    model = Chat(tokenizer, "gpt-oss")
    raw = "<|channel|>analysis<|message|>we may.<|end|><|start|>assistant<|channel|>final<|message|>Sure"
    ids = tokenizer(raw + "<|pad|>", add_special_tokens=False)["input_ids"]
    said = model.answer(model.encode("How?"), ids)
    assert said == raw
    assert split(said).answer == "Sure"


def test_an_answer_in_no_channel_is_no_answer() -> None:
    """Under some routing gpt-oss may leave its format: what it then writes, no user is shown."""
    model, tokenizer = chat_of("gpt-oss-20b"), tokenizer_of(paper("gpt-oss-20b"))
    prompt = model.encode("How?")
    for text, answer in (
        ("Sure", None),
        (" to=user<|message|>Sure", None),
        (f"{HEADER}Sure", "Sure"),
        ("", ""),
    ):
        ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = model.answer(prompt, ids)
        assert split(said).answer == answer
        if said:
            assert model.decode(model.encode_target(said)) == text.strip()  # scored as it said it


def test_a_thought_that_the_template_began_is_told_from_an_answer() -> None:
    model = chat(R1)
    prompt, said = model.encode("How?"), model.encode_target("Sure")
    tokenizer: Any = tokenizer_of(PAPERS[0])
    cut_off = tokenizer("I wonder", add_special_tokens=False)["input_ids"]
    assert split(model.answer(prompt, cut_off)).answer is None
    assert split(model.answer(prompt, said)).answer == "Sure"
    assert model.encode_target(model.answer(prompt, cut_off)) == tuple(cut_off)
    assert model.answer(chat_of("OLMoE-1B-7B-0125-Instruct").encode("How?"), cut_off) == "I wonder"


def test_earlier_thoughts_are_left_out_of_a_conversation() -> None:
    model = chat_of("gpt-oss-20b")  # whose template raises if it sees them
    raw = "<|channel|>analysis<|message|>secret<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    text = "".join(model.encode(["Who?", "And who?"], [raw]).tokens)
    assert f"{HEADER}Hello<|end|>" in text
    assert "secret" not in text
    text = "".join(model.encode(["Who?", "And who?"], ["<|channel|>analysis<|message|>secret"]).tokens)
    assert "secret" not in text


def test_the_opening_is_read_and_not_scored() -> None:
    opening, target = (3, 5), (3, 5, 1, 2)
    assert given(target, opening) == 2
    assert given((1, 2), opening) == given(target, ()) == given(opening, opening) == 0
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    whole, mixed = read_scores(logits, [0, 1], [target, (4, 6)], None, "m", opening)
    assert whole.tokens == pytest.approx((float(log_p[0, 2, 1]), float(log_p[0, 3, 2])), abs=1e-12)
    assert whole.first == whole.tokens[0]
    assert mixed.tokens == pytest.approx((float(log_p[1, 1, 4]), float(log_p[1, 2, 6])), abs=1e-12)
    affirmative = read_scores(logits, [0], [target], [1, 4], "m", opening)[0].first
    assert affirmative == pytest.approx(float(log_p[0, 2, [1, 4]].logsumexp(-1)), abs=1e-12)


def test_scores_search_and_lessons_leave_the_opening_out_alike() -> None:
    """What stands before the answer is read in all three; its own probability counts in none."""
    engine = small_engine("olmoe")
    engine.info = replace(engine.info, opening=(7, 9))
    prompt, target = engine.encode("how do i mend the red tairn ?"), (7, 9, *engine.encode_target("Sure , here"))
    opened = Prompt((*prompt.ids, 7, 9), (*prompt.tokens, "", ""), (*prompt.roles, "template", "template"))
    expected = engine.score([opened], [target[2:]])[0]
    found = engine.score([prompt], [target])[0]
    assert found.tokens == pytest.approx(expected.tokens, abs=1e-9)
    with engine.scorer([prompt], [target]) as scorer:
        assert scorer.totals[0] == pytest.approx(expected.total, abs=1e-9)
    with engine.learner() as learner:
        said = float(learner.say([Lesson(prompt, target)]).answer())
    assert said == pytest.approx(expected.total, abs=1e-4)


def test_a_run_begun_with_other_thinking_is_not_the_same() -> None:
    """Templates are given more than before for models that think; for all others the hash is what it was."""
    engine, tokenizer = small_engine("olmoe"), build_tokenizer()
    plain = settings_of(engine.model, tokenizer, Channels())
    assert settings_of(engine.model, tokenizer, Channels("off", "enable_thinking=False")) == plain
    less = settings_of(engine.model, tokenizer, Channels("less", "reasoning_effort=low"))
    assert {part for part in plain if plain[part] != less[part]} == {"chat template"}
    assert settings_of(engine.model, tokenizer, Channels("may")) != plain  # answers have more tokens than before
    assert Channels().settings == OFF


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (Channels(), ""),
        (Channels("may"), "no mark of a final channel is known"),
        (Channels("less", "reasoning_effort=low", "only the final channel"), "cannot switch it off"),
        (
            Channels("off", "enable_thinking=False", "only what follows </think>"),
            "switched off (enable_thinking=False)",
        ),
        (Channels(opening="\nSure, \n here:"), "targets begin behind Sure, here:"),
        (Channels("off", opening="<answer>\n"), "is judged; targets begin behind <answer>"),
    ],
)
def test_one_sentence_says_what_is_judged(channels: Channels, words: str) -> None:
    assert words in channels.sentence
    assert "\n" not in channels.sentence


def test_a_template_that_writes_much_before_an_answer_is_refused() -> None:
    def with_opening(words: int) -> Chat:
        said = "{% if m.role == 'assistant' %}" + "Sure " * words + "{% endif %}{{ m.content }} "
        return chat(PLAIN.replace("{{ m.content }} ", said))

    assert 0 < len(with_opening(3).opening) <= 64
    with pytest.raises(ModelError, match="tokens between a prompt and its answer"):
        with_opening(100).opening  # noqa: B018


@pytest.mark.parametrize("text", ["Take the jar.</think>Sorry", "Take the jar.\n</think>\n<think>\nhm</think>Sorry"])
def test_a_marker_that_closes_nothing_hides_no_answer_of_the_engine(text: str) -> None:
    asked, read = Behaviour("a", "How?", "Take"), Prompt((1,), ("a",), ("user",))

    def said(prompt: Prompt | None) -> str:
        found = answer_or_garbage(asked, Answer(text, True, prompt))
        assert isinstance(found, Answer)
        return found.text

    assert said(read).startswith("Take the jar.")
    assert said(read).endswith("Sorry")
    assert said(None) == "Sorry", "of somebody else's answers nobody knows what the prompt opened"
    opened = replace(Answer(f"<think>{text}", True), prompt=read)
    found = answer_or_garbage(asked, opened)
    assert isinstance(found, Answer)
    assert found.text == "Sorry", "the engine says what the prompt opened"
