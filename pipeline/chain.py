"""A chain: a config's removal and its training in parts, as the configs of ordinary runs that follow one another.

Link number k is the run NAME-k. It removes its part of the blocks from what link k - 1 exported, scored anew, and
trains its part of the tokens on the rows behind that link's last one. Nothing here runs: a link's config says all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, ConfigError

#: What a link does before another follows it; the last one evaluates and reports too.
BEFORE_THE_LAST = STAGES[: STAGES.index("train") + 1]


def chain_links(config: Config) -> list[Config]:
    """The configs of a chain's links, in order. ConfigError where the config states no chain, or one that cannot be."""
    parts = require_chain(config)
    removed = apportion(config.prune.remove, _weights(config, parts))
    shares = config.chain.token_shares or removed
    steps = apportion(config.steps, shares)
    tokens = [count * config.tokens_per_step for count in steps]
    # The budget itself, where whole steps are more.
    tokens[-1] = config.train.tokens - sum(tokens[:-1])
    links: list[Config] = []
    for number, (count, budget) in enumerate(zip(removed, tokens, strict=True), start=1):
        own: dict[str, Any] = {
            "run.name": f"{config.run.name}-{number}",
            "chain.parts": None,
            "chain.token_shares": None,
            "prune.remove": count,
            "train.tokens": budget,
        }
        if links:
            before = links[-1]
            own |= {"model.path": str(last_export(before)), "model.revision": None, "model.architecture": None}
            own["run.from"] = None
            own |= {"data.after": str(before.run_folder), **of_first_model(config)}
        links.append(_changed(config, own))
    return links


def of_first_model(config: Config) -> dict[str, Any]:
    """The keys that name the first dense model in every link that begins with another one, by their dotted names.

    Whatever a link compares itself with, or learns from, is that model and not the link's own input.
    """
    model = config.model
    first, revision = (model.dense, model.dense_revision) if model.dense else (model.path, model.revision)
    return {"model.dense": first, "model.dense_revision": revision}


def require_chain(config: Config) -> int:
    """The number of links. ConfigError naming the key where the config states no chain, or one that cannot be."""
    parts, prune = config.chain.parts, config.prune
    if parts is None:
        raise ConfigError("chain.parts is not set, so that there is no chain; set it, to 2 or more")
    if prune.remove is None:
        stated = next(name for name in ("ratio", "parameters", "perplexity", "blocks") if getattr(prune, name))
        why = {
            "blocks": "names blocks of the first model, and each part is chosen by scores of a trained one",
            "perplexity": "is measured on an untrained model, and says of no part how much goes",
        }.get(stated, "would be taken of each part's own model, so that the parts would not add up")
        raise ConfigError(f"prune.{stated} {why}: a chain takes prune.remove, the number of blocks in all")
    if prune.blocks is not None:
        raise ConfigError(
            f"prune.blocks {prune.blocks} orders the first model's blocks, and each part of a chain is scored anew; "
            "take prune.remove alone"
        )
    if config.train.init != "pruned":
        raise ConfigError(f"train.init {config.train.init}: the parts of a chain train what they pruned; leave it out")
    if config.train.objective != "lm" and config.train.distill.samples is not None:
        raise ConfigError(
            "train.distill.samples: answers are kept from the first row on, and the rows of a chain's later links "
            "begin behind another's; leave samples out"
        )
    if prune.remove < parts or config.steps < parts:
        least = f"prune.remove {prune.remove}" if prune.remove < parts else f"train.tokens ({config.steps} steps)"
        raise ConfigError(f"chain.parts {parts}: {least} is less than one for each part; take fewer parts")
    return parts


def _weights(config: Config, parts: int) -> Sequence[float]:
    return range(parts, 0, -1) if config.chain.schedule == "front" else [1] * parts


def apportion(whole: int, weights: Sequence[float]) -> list[int]:
    """``whole`` in parts by ``weights``, each at least 1, which sum to it exactly; what is left over by rounding down
    goes to the parts that are furthest below their share, earlier ones first. ``whole`` is at least their number."""
    ideal = [whole * weight / sum(weights) for weight in weights]
    parts = [max(1, math.floor(share) - len(ideal)) for share in ideal]
    while sum(parts) < whole:
        short = [share - part for share, part in zip(ideal, parts, strict=True)]
        parts[short.index(max(short))] += 1
    return parts


def last_export(config: Config) -> Path:
    """The folder that a run's last export will have."""
    return config.run_folder / "train" / "exports" / f"step-{config.steps:08d}"


def stages_of(number: int, links: Sequence[Config]) -> list[str]:
    """The stages that link ``number``, from 0, carries out."""
    return list(STAGES if number == len(links) - 1 else BEFORE_THE_LAST)


def _changed(section: Any, values: Mapping[str, Any]) -> Any:
    """A section, or the whole config, with other ``values`` at dotted keys."""
    own = {name: value for name, value in values.items() if "." not in name}
    for name in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        inner = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        own[name] = _changed(getattr(section, name), inner)
    return section.model_copy(update=own)
