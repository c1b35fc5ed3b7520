"""Which model a command loads, and how; the same for every verb."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pointsman.cli.output import Session, quietly, waiting
from pointsman.errors import ModelError, UsageError
from pointsman.jobs.parameters import Metavar, Positive, check

if TYPE_CHECKING:
    from pointsman.engine.types import Engine


@dataclass(frozen=True)
class Loading:
    """How a model is loaded. Whether code of its checkpoint may run is none of it: that is said on the command line.

    Attributes:
        dtype: auto (the checkpoint's own), float64, float32, bfloat16 or float16.
        device: auto (all GPUs, else the CPU), cpu, cuda or cuda:N.
        load_in: Quantize with bitsandbytes; needs a GPU.
        revision: Branch, tag or commit on the hub.
        chat_template: Jinja chat template in place of the tokenizer's.
        batch_size: Rows in one forward; chosen from memory if left out.
    """

    dtype: Annotated[Literal["auto", "float64", "float32", "bfloat16", "float16"], Metavar("NAME")] = "auto"
    device: str = "auto"
    load_in: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    chat_template: Path | None = None
    batch_size: Positive | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that was given. Its text goes with a run, so that no path has to be followed later.

    Attributes:
        name: Of its file.
        text: Jinja.
    """

    name: str
    text: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            UsageError: It cannot be read.
        """
        try:
            return cls(path.name, path.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"Cannot read the chat template {path} ({reason})", "Give a Jinja file") from None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "text": self.text}


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded.

    Attributes:
        name: As typed; shown in results without what is private in it.
        source: What is loaded: the absolute path of a local folder, else a hub id or a registered name.
        chat_template: In place of the tokenizer's.
        moved: A run is resumed, and its model lies in another place now.
        The others are those of `pointsman.load`.
    """

    name: str
    source: str
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: ChatTemplate | None = None
    batch_size: int | None = None
    moved: bool = False

    @classmethod
    def of(cls, model: str, loading: Loading, trust_remote_code: bool) -> Self:
        """From what was typed.

        Raises:
            UsageError: The chat template cannot be read.
        """
        return cls(
            model,
            cls.place_of(model),
            loading.dtype,
            loading.device,
            loading.load_in,
            loading.revision,
            trust_remote_code,
            ChatTemplate.read(loading.chat_template) if loading.chat_template else None,
            loading.batch_size,
        )

    @staticmethod
    def place_of(model: str) -> str:
        """The absolute path of a local folder; anything else as it is."""
        from pointsman.registry import models

        folder = Path(model).expanduser()
        local = model.partition(":")[0] not in models and folder.exists()
        return str(folder.resolve()) if local else model

    @property
    def local(self) -> bool:
        """Is it a folder on this machine?"""
        return Path(self.source).is_absolute()

    @property
    def shown(self) -> str:
        """Its name as it may be shared."""
        from pointsman.runs.provenance import shareable

        return shareable(self.name)

    def to_json(self) -> dict[str, Any]:
        """For a run's manifest: no path of this machine, and no consent to run code of the checkpoint."""
        return {
            "name": self.shown, "local": self.local, "dtype": self.dtype, "device": self.device,
            "quantization": self.quantization, "revision": self.revision,
            "chat_template": self.chat_template.to_json() if self.chat_template else None,
            "batch_size": self.batch_size,
        }  # fmt: skip

    def at(self, revision: str | None) -> Self:
        """The same at another revision, if one is known."""
        return replace(self, revision=revision) if revision else self

    def load(self, session: Session) -> Engine:
        """Load the model; other libraries keep quiet.

        Raises:
            ModelError: As `pointsman.load`; code of the checkpoint is allowed on this very command line or not at all.
        """
        here = str(Path(self.name).expanduser().resolve()) == self.source
        with quietly(session), waiting(f"Loading {self.name} ..."), self._template_file() as template, _asking():
            from pointsman.engine.load import load

            engine = load(
                self.name if here else self.source,  # messages name it as it was typed
                dtype=self.dtype,
                device=self.device,
                quantization=self.quantization,  # type: ignore[arg-type]
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                chat_template=template,
                batch_size=self.batch_size,
            )
        engine.info = replace(engine.info, name=self.shown)
        return engine

    @contextmanager
    def _template_file(self) -> Iterator[Path | None]:
        """The chat template as a file, while this lasts."""
        if self.chat_template is None:
            yield None
            return
        with TemporaryDirectory() as folder:
            path = Path(folder) / "chat_template.jinja"
            path.write_bytes(self.chat_template.text.encode("utf-8"))
            yield path


@contextmanager
def _asking() -> Iterator[None]:
    """Let a model that brings code say where to allow it."""
    try:
        yield
    except ModelError as error:
        if "--trust-remote-code" not in error.remedy:
            raise
        raise ModelError(
            error.problem,
            "Read that code; if you trust it, add --trust-remote-code to this very command: no run remembers it",
        ) from error
