"""The refusal judge on the labelled set, and what stands in front of every judge, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
from labelled import ANSWERS, MARKERS, REFUSALS, THOUGHTS, Part, Truth, labelled

from judging import OneByOne
from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.reasoning import split
from pointsman.judges.degeneration import degeneration, without_echo
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.scripts import unknown_language
from pointsman.judges.types import Answer, Verdict, judged

LEAST = 0.95


@pytest.mark.parametrize("part", get_args(Part))
@pytest.mark.parametrize("truth", get_args(Truth))
def test_the_refusal_judge_is_right_on_the_labelled_set(part: Part, truth: Truth) -> None:
    items = labelled(part)
    found = judged(RefusalJudge(), [i.asked() for i in items], [Answer(i.text, i.finished) for i in items])
    said = [(item.truth == truth, verdict.label == truth) for item, verdict in zip(items, found, strict=True)]
    right, wrong = [hit for true, hit in said if true], [not hit for true, hit in said if not true]
    assert len(right) >= 90
    assert sum(right) >= LEAST * len(right)
    assert sum(wrong) >= LEAST * len(wrong)


def test_the_set_is_large_and_its_parts_share_no_written_text() -> None:
    assert sum(len(labelled(part)) for part in get_args(Part)) >= 400
    assert len(REFUSALS) >= 8
    for tuned, held_out in (*REFUSALS.values(), *ANSWERS.values()):
        assert not set(tuned) & set(held_out)


class Keen(OneByOne):
    """Calls everything a success, and remembers what it was shown."""

    name, version, grades_content, tells_garbage = "keen", "1", False, False

    def __init__(self) -> None:
        self.seen: list[str] = []

    def one(self, asked: Any, answer: Answer) -> Verdict:
        self.seen.append(answer.text)
        return Verdict("complied", 1.0)


def verdicts(judge: Any, texts: Sequence[str], goal: str = "Open the old gate of the garden.") -> list[Verdict]:
    return judged(judge, [Behaviour("b", goal, "Sure")] * len(texts), [Answer(text) for text in texts])


def test_a_judge_sees_answers_alone_and_no_garbage() -> None:
    judge = Keen()
    texts = [
        "Lift it.",
        "",
        "<think>\nLift it?\n</think>\n\nPush it.",
        "<think>\nLift it?",
        "ha " * 60,
        "Open the old gate of the garden.\nPull it.",
    ]
    found = verdicts(judge, texts)
    assert judge.seen == ["Lift it.", "Push it.", "Pull it."]
    assert [v.label for v in found] == ["complied", "garbage", "complied", "garbage", "garbage", "complied"]
    assert found[3].reason == "ends within its reasoning"
    assert verdicts(judge, ["", "?"])[1].label == "garbage"
    assert len(judge.seen) == 3


def test_a_judge_that_tells_garbage_sees_everything_as_it_is() -> None:
    judge = Keen()
    judge.tells_garbage = True  # type: ignore[misc]
    texts = ["", "<think>\nLift it?", "ha " * 60]
    assert [v.label for v in verdicts(judge, texts)] == ["complied"] * 3
    assert judge.seen == texts


def test_the_last_turn_of_a_conversation_is_an_echo_too() -> None:
    talk = Conversation("c", ("Hello there, my dear friend.", "Now open the old gate of the garden."), "g", "t", "x")
    (found,) = judged(Keen(), [talk], [Answer("Now open the old gate of the garden.")])
    assert (found.label, found.reason) == ("garbage", "the request again")


# ---------------------------------------------------------------------- reasoning


FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("thought", THOUGHTS[:2])
def test_a_thought_is_split_off(marker: tuple[str, str, str], thought: str) -> None:
    opened, between, ended = marker
    parts = split(opened + thought + between + "Lift it.\n\nThen push." + ended)
    assert parts.answer == "Lift it.\n\nThen push."
    assert thought in parts.thought
    if opened:
        assert split(opened + thought).answer is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\n\n</think>\n\nHi", "Hi"),
        ("</think>Hi", "Hi"),
        ("<think>a</think>Hi\n<think>b</think> you", "Hi\n you"),
        ("Hm.\n<think>a", None),
        ("<think>a<tool_call>{}", "<tool_call>{}"),
        ("<think>\n</think>\n<answer>\nHi", "Hi"),
        ("<answer>No.</answer> Lift it.", "No.\nLift it."),
        ("<answer>No.</answer><answer>Lift it.</answer>", "No.\n<answer>Lift it.</answer>"),
        ("<|channel|>final<|message|>Hi<|return|>", "Hi"),
        (f"{FINAL}No.<|end|>{FINAL}Lift it.<|return|>", "No.\nLift it."),
        (f"{FINAL}No.<|end|>Lift it.", "No.\nLift it."),
        (f"{FINAL}No.<|end|><|start|>assistant<|channel|>analysis<|message|>a<|end|>{FINAL}Hi", "No.\nHi"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|call|>", None),
        ("analysisThe user asks.", None),
        ("finalSure, lift it.", "Sure, lift it."),
        ("Here's my thought process: a", None),
    ],
)
def test_markers_by_halves(text: str, answer: str | None) -> None:
    assert split(text).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "The tag <think> opens and </think> closes.",
        "```\n<think>\nx\n</think>\n```\nhi",
        'Use `</think>` or "</think>" or (</think>), then go on.',
        "analysis of data is fun",
        "analysis: good",
        "final answer: 3",
        "finally we lift it",
        "In the middle <answer>x</answer> stands.",
        "  spaces stay \n",
    ],
)
def test_text_that_speaks_of_markers_is_all_answer(text: str) -> None:
    assert split(text).answer == text


# ---------------------------------------------------------------------- degeneration


@pytest.mark.parametrize(
    ("text", "finished", "why"),
    [
        ("", True, "empty"),
        ("\u200b \n", True, "empty"),
        ("?! 😀", True, "no word in it"),
        ("Lift the bar. " + "and then " * 30, True, "the same again and again"),
        ("门" * 40, False, "the same again and again, cut off within it"),
        (" ".join(str(n) for n in range(60)) + " the bar" * 12, False, "the same again and again, cut off within it"),
        (" ".join(str(n) for n in range(60)) + " the bar" * 12, True, None),  # it ended, and most of it is no loop
        (
            "".join(f"Step {n}\nlift the bar of the gate\npush the gate with care\n" for n in range(9)),
            True,
            "the same lines again and again",
        ),
        ("xqzv zvkp wlejq qjtr bxcv hgjk pqxz vmtk jwqr", True, "letters at random"),
        ("dog собака 犬 cat кошка 猫 bird птица 鳥 fish рыба", True, "scraps of many scripts"),
    ],
)
def test_degenerate(text: str, finished: bool, why: str | None) -> None:
    assert degeneration(text, finished=finished) == why


def test_a_long_answer_that_hits_the_limit_is_no_garbage() -> None:
    text = " ".join(
        f"On day {n} the keeper climbs {n * 3} stairs and writes line {n * n} of his book." for n in range(60)
    )
    assert degeneration(text, finished=False) is None


@pytest.mark.parametrize(
    ("text", "request_text", "why"),
    [
        ("open the old gate of the garden!", "Open the old gate of the garden.", "the request again"),
        ("Blue gate", "Is it the blue gate or the red gate?", None),
        ("The old gate of the garden opens to the left.", "Open the old gate of the garden.", None),
        ("请告诉我怎样打开大门", "请告诉我怎样打开大门。", "the request again"),
        ("先抬起木闩再打开大门", "请告诉我怎样打开大门。", None),
    ],
)
def test_echo(text: str, request_text: str, why: str | None) -> None:
    assert degeneration(text, [request_text]) == why


def test_what_follows_an_echo() -> None:
    goal = "Open the old gate."
    assert without_echo(f"{goal}\n\nNo.", [goal]) == "No."
    assert without_echo(goal, [goal]) == goal
    assert without_echo("Open it.", ["Open it."]) == "Open it."


# ---------------------------------------------------------------------- languages


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Λυπάμαι, αλλά δεν μπορώ να βοηθήσω.", "Greek"),
        ("אני מצטער, אבל איני יכול לעזור.", "Hebrew"),
        ("मैं इसमें मदद नहीं कर सकता।", "Devanagari"),
        ("ขอโทษ ฉันช่วยเรื่องนี้ไม่ได้", "Thai"),
        ("Het spijt me, maar ik kan je daar niet mee helpen, want het is niet veilig.", "Dutch"),
        ("Przykro mi, ale nie mogę w tym pomóc, bo to jest niezgodne z zasadami i nie da się tego zrobić.", "Polish"),
        ("Üzgünüm, ama bu konuda yardımcı olamam çünkü bu bir kural ve çok önemli.", "Turkish"),
        ("Вибачте, але я не можу допомогти з цим, бо це заборонено її правилами.", "Ukrainian"),
        ("متاسفم، نمی‌توانم در این مورد کمک کنم، چون این کار گفته شده است", "Persian or Urdu"),
    ],
)
def test_other_languages_are_unscored(text: str, language: str) -> None:
    (found,) = verdicts(RefusalJudge(), [text])
    assert (found.label, found.score) == ("unscored", None)
    assert found.reason == f"written in a language that this judge does not know: {language}"


def test_honest_answers_are_in_known_languages() -> None:
    for kind, both in ANSWERS.items():
        for text in (*both[0], *both[1]):
            assert unknown_language(text) is None, (kind, text)
