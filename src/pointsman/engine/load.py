"""`load`: from a name to an engine. Hub id, local folder, or a registered name such as ``testbed``."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch

from pointsman import environment
from pointsman.engine.hf import HFEngine
from pointsman.errors import ModelError, PointsmanError, UsageError
from pointsman.registry import models

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
        ModelError: Not found, no model, no tokenizer, no chat template.
        NoRouters, UncontrollableRouter, ControlFailed: See `routing.control.prove`.
    """
    environment.check()
    source = _resolve(model)
    network, tokenizer = _read(source, model, dtype, device, quantization, revision, trust_remote_code)
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f"Cannot read the chat template {chat_template} ({error.strerror})", "Give a Jinja file"
            ) from error
    network.eval()
    network.requires_grad_(False)
    found = getattr(network.config, "_commit_hash", None)
    return HFEngine(network, tokenizer, name=model, path=source, revision=found or revision, batch_size=batch_size)


def _resolve(model: str) -> str:
    """A path or hub id for what the user typed."""
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


def _read(
    source: str,
    model: str,
    dtype: str,
    device: str,
    quantization: Quantization | None,
    revision: str | None,
    trust: bool,
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if dtype != "auto" and dtype not in _DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}", f"Use auto, {', '.join(_DTYPES)}")
    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else _DTYPES[dtype]}
    options["device_map"] = _device_map(device)
    if dtype == "float64":
        options["experts_implementation"] = "eager"  # the grouped kernels know no float64
    if quantization:
        options["quantization_config"] = _quantization(quantization)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        network = AutoModelForCausalLM.from_pretrained(
            source, config=config, weights_only=True, use_safetensors=None, **options, **common
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    except PointsmanError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        raise _explain(model, source, error) from error
    return network, tokenizer


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


def _explain(model: str, source: str, error: Exception) -> ModelError:
    """One line for the many ways in which transformers says that it could not load something."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(
            f"{model} needs code from its checkpoint", "Read that code, then allow it with --trust-remote-code"
        )
    if not Path(source).is_dir():
        near = get_close_matches(model, models.names(), n=1)
        if near:
            return ModelError(f"Cannot find the model {model!r}", f"Did you mean {near[0]}?")
        return ModelError(
            f"Cannot find the model {model!r} on the hub or in the local cache",
            "Check the name and the network, or give a local folder; for a gated model log in with `hf auth login`",
        )
    return ModelError(
        f"Cannot load a model from {model} ({type(error).__name__}: {text[:200]})",
        "Give a folder with a complete causal-LM checkpoint and tokenizer, as save_pretrained writes it",
    )
