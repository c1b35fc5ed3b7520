"""`load`: from a name to an engine. Hub id, local folder, or a registered name such as ``testbed``.

A checkpoint is somebody else's: only safetensors are read, never a pickle, and no code of it runs unless the user says
so. What can be refused without the weights is refused before them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch

from pointsman import environment
from pointsman.engine.chat import Chat
from pointsman.engine.checkpoint import (
    INDEX,
    WEIGHTS,
    no_safetensors,
    read_json,
    refuse_damaged_tokenizer,
    refuse_damaged_weights,
    refuse_incomplete_shards,
    refuse_other_tokenizer,
    refuse_unread_settings,
    refuse_unread_tokenizer,
)
from pointsman.engine.hf import HFEngine
from pointsman.engine.old_code import load_anew, old_names, serve_old_code, serve_old_config
from pointsman.engine.unused import notes_on_unused, persistent
from pointsman.errors import ModelError, NoRouters, OutOfMemory, PointsmanError, UncontrollableRouter, UsageError
from pointsman.registry import models
from pointsman.routing.routers import find_routers

Quantization = Literal["4bit", "8bit"]
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: Quantization | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | Path | None = None,
    batch_size: int | None = None,
) -> HFEngine:
    """Load an MoE chat model, find its routers and prove that they can be controlled.

    Args:
        model: Hub id, local folder, or a registered name (``testbed``, ``testbed:qwen2_moe``).
        dtype: ``auto`` (the checkpoint's), ``float64``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (all GPUs if there are any, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ...
        quantization: ``4bit`` or ``8bit`` by bitsandbytes; needs a GPU and ``pip install pointsman[quantized]``.
        revision: Hub revision.
        trust_remote_code: Run model code from the checkpoint. Off unless you say so.
        chat_template: File with a Jinja chat template that replaces the tokenizer's.
        batch_size: Rows in one forward; None chooses it from memory.

    Raises:
        UnsupportedEnvironment: The installed torch or transformers will not do.
        ModelError: Not found, no model, no tokenizer, no chat template; a file is missing or damaged; pickled weights.
        NoRouters, UncontrollableRouter, ControlFailed: See `routing.control.prove`.
    """
    environment.check()
    options = loading_options(dtype, device, quantization)
    template = None if chat_template is None else _template(Path(chat_template))
    source = resolve(model)
    checkpoint = Checkpoint(source, model, {"revision": revision, "trust_remote_code": trust_remote_code})
    config = checkpoint.config()
    tokenizer = checkpoint.tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    elif not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = checkpoint.template_of_a_processor()
    chat = Chat(tokenizer, model)
    chat.refuse_malformed()
    if chat.dated:
        checkpoint.notes.append("its chat template writes today's date: a run resumed on another day asks otherwise")
    checkpoint.refuse_uncontrollable(config, quantization)
    network, notes = checkpoint.network(config, options)
    network.eval()
    network.requires_grad_(False)
    found = getattr(network.config, "_commit_hash", None)
    engine = HFEngine(network, tokenizer, name=model, path=source, revision=found or revision, batch_size=batch_size)
    engine.info = replace(engine.info, extra={**engine.info.extra, "notes": [*checkpoint.notes, *notes]})
    return engine


def _template(path: Path) -> str:
    remedy = "Give a Jinja file"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"Cannot read the chat template {path} ({error.strerror})", remedy) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"Cannot read the chat template {path} (it is not UTF-8)", remedy) from error


def resolve(model: str) -> str:
    """A path or hub id for what the user typed."""
    if not model.strip():
        raise UsageError("The name of the model is empty", "Give a hub id, a local folder or `testbed`")
    name = model.partition(":")[0]
    if name in models:
        return str(models.get(name)(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{model} is a folder without config.json: no transformers model",
                "Give the folder that save_pretrained wrote",
            )
        return str(path)
    if path.exists():
        raise ModelError(f"{model} is a file, not a model folder", "Give the folder that save_pretrained wrote")
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder {model}", "Check the path, or give a hub id such as org/name")
    return model


class Checkpoint:
    """What a name or folder holds, read in the order of what it costs; every failure is one line.

    Args:
        source: Folder or hub id.
        model: What the user calls it.
        common: Arguments of every `from_pretrained`.

    Attributes:
        notes: What the user may want to know about it.
    """

    def __init__(self, source: str, model: str, common: Mapping[str, Any]) -> None:
        self.source, self.model, self.common = source, model, common
        self.folder = Path(source) if Path(source).is_dir() else None  # of the hub's cache, once it is known
        self.notes: list[str] = []

    def config(self) -> Any:
        """Its configuration, unless it says that this is no model for Pointsman."""
        from transformers import AutoConfig, AutoModelForCausalLM

        if self.folder:
            read_json(self.folder / "config.json")
        try:
            with self._as_it_was():
                config = AutoConfig.from_pretrained(self.source, **self.common)
        except Exception as error:
            raise self._explained(error, "configuration") from error
        serve_old_config(config)
        if getattr(config, "is_encoder_decoder", False):
            raise UncontrollableRouter(
                f"{self.model} is an encoder-decoder model ({type(config).__name__})",
                "Pointsman controls decoder-only models; token positions mean something else in this one",
            )
        method = _quantized(config)
        if method is not None and not _knows(method):
            raise ModelError(
                f"{self.model} says that its weights are quantized by {method['quant_method']!s:.40}, which "
                "transformers does not know",
                "Use a checkpoint in bfloat16, or one that is quantized in another way",
            )
        if type(config) not in AutoModelForCausalLM._model_mapping and not _brings_code(config):
            raise ModelError(
                f"{self.model} is no causal language model ({type(config).__name__})",
                "Give a Mixture-of-Experts chat model, such as allenai/OLMoE-1B-7B-0125-Instruct, or `testbed`",
            )
        self.folder = self.folder or self._cached()
        return config

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            with self._as_it_was():
                tokenizer = AutoTokenizer.from_pretrained(self.source, **self.common)
        except Exception as error:
            if self.folder:
                refuse_unread_tokenizer(self.folder)
            raise self._explained(error, "tokenizer") from error
        if self.folder:
            refuse_damaged_tokenizer(self.folder)
            refuse_other_tokenizer(self.folder, tokenizer)
        return tokenizer

    def template_of_a_processor(self) -> str | None:
        """The chat template of ``chat_template.json``, where older processors keep it and no tokenizer looks."""
        file = self._cached_file("chat_template.json", local_files_only=False)
        if file is None:
            return None
        template = read_json(file).get("chat_template")
        if not isinstance(template, str):
            raise ModelError(
                f"{file} holds no text under chat_template", "Give a chat template with --chat-template FILE"
            )
        self.notes.append(f"the chat template is that of {file.name}, which transformers reads for processors only")
        return template

    def refuse_uncontrollable(self, config: Any, quantization: str | None) -> None:
        """Raise if the model cannot have routers that Pointsman controls, whatever its weights are.

        The model is built without memory for its weights. What cannot be built so, and what comes as code of the
        checkpoint, is not judged here: the loaded model is.
        """
        from transformers import AutoModelForCausalLM

        if self.common["trust_remote_code"] and _brings_code(config):
            return
        try:
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        except Exception:
            return
        try:
            find_routers(empty)
        except NoRouters:
            raise
        except UncontrollableRouter:
            if quantization is None and _quantized(config) is None:
                raise

    def network(self, config: Any, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """The model with its weights, each of them from the checkpoint; and what of the checkpoint it does not use."""
        from transformers import AutoModelForCausalLM

        named = getattr(config, "transformers_weights", None)
        if named is not None and ".safetensors" not in str(named):
            raise no_safetensors(self.model, [str(named)])
        if self.folder and Path(self.source).is_dir():
            refuse_unread_settings(self.folder)
            if named is None:
                refuse_damaged_weights(self.folder, self.model)
        try:
            load_anew(config)
            with self._as_it_was():
                network, read = AutoModelForCausalLM.from_pretrained(
                    self.source, config=config, weights_only=True, use_safetensors=True, output_loading_info=True,
                    ignore_mismatched_sizes=True, **options, **self.common,
                )  # fmt: skip
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                f"{self.model} does not fit into the memory of this machine",
                "Load it in bfloat16 or, on a GPU, quantized",
            ) from error
        except Exception as error:
            raise self._explained(error, "weights") from error
        self._refuse_invented(network, read)
        if self.folder:
            refuse_unread_settings(self.folder)  # of the hub: they came with the weights
        serve_old_code(network)
        return network, notes_on_unused(network, read.get("unexpected_keys", ()))

    def _as_it_was(self) -> AbstractContextManager[None]:
        """Names of older transformers for the checkpoint's code, if any of it may run."""
        return old_names() if self.common["trust_remote_code"] else nullcontext()

    def _refuse_invented(self, network: Any, read: Mapping[str, Any]) -> None:
        """Raise if the checkpoint lacks parameters, which transformers would have drawn at random, or saved buffers.

        A bias that corrects the choice of experts is such a buffer: without it, it would be zero.
        """
        remedy = "Give a complete causal-LM checkpoint, and its own config.json"
        for name, *shapes in sorted(read.get("mismatched_keys", ())):
            there, wanted = (" x ".join(map(str, shape)) for shape in shapes[:2])
            raise ModelError(f"{self.model} holds {name} of shape {there}, and its config.json asks {wanted}", remedy)
        missing = sorted(set(read.get("missing_keys", ())) & persistent(network))
        if missing:
            if self.folder:
                refuse_incomplete_shards(self.folder)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"{self.model} lacks weights that its config.json asks: {missing[0]}{more}", remedy)

    def _cached(self) -> Path | None:
        """The folder of the hub's cache that holds the configuration."""
        file = self._cached_file("config.json", local_files_only=True)
        return file.parent if file else None

    def _cached_file(self, name: str, *, local_files_only: bool) -> Path | None:
        """Where a file of the checkpoint lies; None if it has none of this name."""
        from transformers.utils import cached_file

        revision = self.common["revision"]
        try:
            file = cached_file(self.source, name, revision=revision, local_files_only=local_files_only)
        except Exception:
            return None
        return Path(file) if file else None

    def _explained(self, error: Exception, part: str) -> PointsmanError:
        """One line for the many ways in which transformers says that it could not load something."""
        if isinstance(error, PointsmanError):
            return error
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            return ModelError(
                f"{self.model} needs code from its checkpoint", "Read that code, then allow it with --trust-remote-code"
            )
        if "does not recognize this architecture" in text:
            return ModelError(
                f"{self.model} is of a model type that this version of transformers does not know",
                "Upgrade transformers, or use a model that it knows",
            )
        wrong = re.search(r"Validation error for field '(\w+)': (?:\w+: )?(.*?)(?: Errors: |$)", text)
        if wrong and part == "configuration":
            return ModelError(
                f"The config.json of {self.model} holds a wrong {wrong[1]} ({wrong[2][:160].rstrip('.')})",
                "Correct it, or give the checkpoint's own",
            )
        if not self.folder and part == "configuration":
            return self._not_found()
        if part == "weights" and self.folder and not Path(self.source).is_dir():
            try:
                refuse_damaged_weights(self.folder, self.model)
            except ModelError as damaged:
                if (self.folder / WEIGHTS).exists() or (self.folder / INDEX).exists():
                    return damaged
        if part == "weights" and any(word in text.lower() for word in ("use_safetensors", "weights_only", "pickle")):
            return no_safetensors(self.model, ["pytorch_model.bin"])
        kind = type(error).__name__
        if kind == "ImportError" and part == "weights":
            return ModelError(
                f"{self.model} needs a package that is not installed ({text[:200]})", "Install it, then try again"
            )
        return ModelError(
            f"Cannot load the {part} of {self.model} ({kind}: {text[:200]})",
            "Give a folder with a complete causal-LM checkpoint and tokenizer, as save_pretrained writes it",
        )

    def _not_found(self) -> ModelError:
        near = get_close_matches(self.model, models.names(), n=1)
        if near:
            return ModelError(f"Cannot find the model {self.model!r}", f"Did you mean {near[0]}?")
        revision = f" in the revision {self.common['revision']!r}" if self.common["revision"] else ""
        return ModelError(
            f"Cannot find the model {self.model!r}{revision} on the hub or in the local cache",
            "Check the name and the network, or give a local folder; for a gated model log in with `hf auth login`",
        )


def _brings_code(config: Any) -> bool:
    """Whether a causal language model comes as code of the checkpoint."""
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _quantized(config: Any) -> Mapping[str, Any] | None:
    """What a configuration says about quantized weights."""
    for place in (config, config.get_text_config()):
        found = getattr(place, "quantization_config", None)
        if isinstance(found, Mapping):
            return found
    return None


def _knows(method: Mapping[str, Any]) -> bool:
    """Whether transformers can read weights that are quantized so."""
    from transformers.quantizers.auto import AutoHfQuantizer

    if "quant_method" not in method:
        return True  # transformers asks for it itself
    try:
        return bool(AutoHfQuantizer.supports_quant_method(method))
    except Exception:
        return True


def loading_options(dtype: str, device: str, quantization: Quantization | None) -> dict[str, Any]:
    """Arguments of the model's `from_pretrained`."""
    if dtype != "auto" and dtype not in _DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}", f"Use auto, {', '.join(_DTYPES)}")
    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else _DTYPES[dtype]}
    options["device_map"] = _device_map(device)
    if dtype == "float64":
        options["experts_implementation"] = "eager"  # the grouped kernels know no float64
    if quantization:
        options["quantization_config"] = _quantization(quantization)
    return options


def _device_map(device: str) -> str | dict[str, str]:
    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"Unknown device {device!r}", "Use auto, cpu, cuda or cuda:N") from error
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"There is no GPU for device {device!r}", "Use --device cpu")
        return {"": device}
    if torch.cuda.is_available():
        return "auto" if torch.cuda.device_count() > 1 else {"": "cuda:0"}
    return {"": "cpu"}


def _quantization(bits: Quantization) -> Any:
    if bits not in ("4bit", "8bit"):
        raise UsageError(f"Unknown quantization {bits!r}", "Use 4bit or 8bit")
    if not torch.cuda.is_available():
        raise UsageError(f"{bits} loading needs a GPU", "Load in bfloat16 on the CPU instead")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{bits} loading needs bitsandbytes", "pip install 'pointsman[quantized]'") from error
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
