"""The prompts of other people's judges, byte for byte; NOTICE.md says whose they are. Each is held to its hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from pointsman.errors import JudgeError

SHA256 = {
    "strongreject_rubric": "0a282b857e1e53ff6ec92c91eb960d2444806e2e4518f4a40232549b599963d0",
    "strongreject_rubric_system": "7919b6d41af2dc9f32797d96eaa952934dca0713c7f3f63ddc6c299db9857248",
    "harmbench_llama2_cls": "788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0",
    "harmbench_llama2_cls_contextual": "5d6bb9e3cf4d1e5f3f7620093113222ee115af75b0b2913f00e4c7225ec9f219",
    "harmbench_mistral_cls": "c1c47e30cc03e00197f1d12be25296fc3150969bb3ddb058bfd9f550e0d66f81",
    "harmbench_mistral_cls_contextual": "df32d8fa50fe36817f2fb4ee38aa3c36a3b2726c71e30769ae26ea8a8104f16f",
}
_FOLDER = Path(__file__).parent


def prompt(name: str) -> str:
    """The text of a prompt.

    Raises:
        JudgeError: It is not the text that was published.
    """
    text = (_FOLDER / f"{name}.txt").read_bytes()
    if sha256(text).hexdigest() != SHA256[name]:
        raise JudgeError(
            f"The judge's prompt {name}.txt is not the published one: it was changed", "Install Pointsman again"
        )
    return text.decode("utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its ``{names}`` replaced, in one pass: what a value holds is never read as a name."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)
