"""`settings_of`: what decides what a model says besides its weights, each part as a hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pointsman.engine.channels import OFF, Channels

_NOT_THE_MODEL = (
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "auto_map"),
    *("_attn_implementation", "_experts_implementation", "_commit_hash", "use_cache"),
)
"""What a configuration holds that does not change what is computed, but for its rounding."""

_ENDS = ("eos_token_id", "pad_token_id", "bos_token_id")


def settings_of(model: Any, tokenizer: Any, channels: Channels) -> dict[str, str]:
    """Hashes of the configuration, the tokenizer, the chat template and the tokens that end an answer.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer, with the chat template that is used.
        channels: What else than messages and `OFF` the template is given, what targets begin with, and whether answers
            have room for a thought.

    Returns:
        16 hex digits for each part, by its name as a user knows it.
    """
    generation = {name: getattr(model.generation_config, name, None) for name in _ENDS}
    plain = channels.settings == OFF and not channels.opening and not channels.thinks
    more = () if plain else (dict(channels.settings), channels.opening)
    return {
        "configuration": _hash(_plain(model.config.to_diff_dict())),
        "tokenizer": _hash(_tokenizer(tokenizer)),
        "chat template": _hash([tokenizer.chat_template, *more] if more else tokenizer.chat_template),
        "generation settings": _hash(generation),
    }


def _tokenizer(tokenizer: Any) -> Any:
    """The whole tokenizer where it can be written down, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else tokenizer.get_vocab()
    return [whole, {str(name): str(token) for name, token in tokenizer.special_tokens_map.items()}]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items() if name not in _NOT_THE_MODEL}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
