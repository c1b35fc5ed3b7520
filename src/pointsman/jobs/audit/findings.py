"""Facts about the model as the old steering results have them; gone with these."""

from __future__ import annotations

from typing import Any

from pointsman.engine.types import Engine


def model_section(engine: Engine) -> dict[str, Any]:
    """Facts about the model."""
    info, routers = engine.info, engine.routers
    experts, top_k = {r.experts for r in routers}, {r.top_k for r in routers}
    return {
        "name": info.name,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "dtype": info.dtype,
        "device": info.device,
        "context": info.context,
        "layers": len(routers),
        "experts": experts.pop() if len(experts) == 1 else [r.experts for r in routers],
        "top_k": top_k.pop() if len(top_k) == 1 else [r.top_k for r in routers],
        "fingerprint": info.fingerprint,
        "weights": engine.weights,
        "revision": info.revision,
        "resumes": engine.resumes,
    }


def notes_on_model(engine: Engine) -> list[str]:
    """What loading noticed of the model, such as layers of the checkpoint that its configuration does not count."""
    return [str(note) for note in engine.info.extra.get("notes", [])]
