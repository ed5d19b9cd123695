"""Made-up costs of running for the layout of the report: no number here was measured, and none may be quoted."""

from __future__ import annotations

from typing import Any

from tests.reporting.made_up import made_up_models


def spread(median: float) -> dict[str, float]:
    """The median in the middle of its quartiles, and these between the ends."""
    shares = {"median": 1.0, "lowest": 0.9, "highest": 1.25, "lower_quartile": 0.95, "upper_quartile": 1.1}
    return {name: share * median for name, share in shares.items()}


def record(new_tokens: int, batch: int, token: float, memory: int | None = 2**29) -> dict[str, Any]:
    """A measured one: ``token`` seconds for each token, and four times as much for the first."""
    latency = (new_tokens + 3) * token
    return {
        "prompt_tokens": 12,
        "new_tokens": new_tokens,
        "batch": batch,
        "outcome": "measured",
        "loaded": "together",
        "rounds": 20,
        "warm_up": 10,
        "repeats": 20,
        "latency_seconds": spread(latency),
        "first_token_seconds": spread(4 * token),
        "further_token_seconds": spread(token),
        "tokens_per_second": batch * new_tokens / latency,
        "decoding_tokens_per_second": batch / token,
        "peak_memory_bytes": memory,
        "peak_memory_of": None if memory is None else "gpu",
    }


def unmeasured(new_tokens: int, batch: int, outcome: str) -> dict[str, Any]:
    return {"prompt_tokens": 12, "new_tokens": new_tokens, "batch": batch, "outcome": outcome}


def models_with_costs() -> dict[str, dict[str, Any]]:
    """The made-up models at batch 1, 4 and 16, and 128 and 512 new tokens; dense fits less than the others."""
    models = made_up_models()
    for name, token in (("dense", 0.02), ("pruned", 0.0125), ("regrown", 0.0126)):
        models[name]["weight_file_bytes"] = 2 * models[name]["parameters"]
        models[name]["cost"] = [
            record(new, batch, token * batch**0.25, 2**29 + 2**20 * batch) for new in (128, 512) for batch in (1, 4, 16)
        ]
    models["dense"]["cost"][4:] = [unmeasured(512, 4, "out of memory"), unmeasured(512, 16, "not tried")]
    return models
