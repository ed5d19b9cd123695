"""Stage score: how much each block matters, by every criterion asked for, from the calibration sequences.

One sweep gives PPL and all distances; its micro-batches (or, block-major, its blocks) are kept as soon as they are
known, and the other criteria when they are done, so that a killed stage goes on where it was.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Config
from pipeline.cuts import read_cut
from pipeline.data.corpus.overlap import can_look_into, held_out_hashes
from pipeline.errors import RegrowError
from pipeline.files import write_atomic, write_json
from pipeline.importance.block_major import ROOM
from pipeline.importance.criteria import Settings
from pipeline.importance.linear import JUDGED_EVERY, TOKENS_PER_INPUT
from pipeline.importance.scoring import score_blocks, score_streamed
from pipeline.importance.selection import write_block_order
from pipeline.inputs import Inputs
from pipeline.memory import total_memory
from pipeline.model.blocks import find_blocks
from pipeline.model.describe import Sizes, describe_folder
from pipeline.model.files import weights_hash
from pipeline.model.load import load_model, model_files, resolve_model
from pipeline.model.streaming import StreamedModel
from pipeline.run import Run
from pipeline.stages.growing import kept_before, progress_of
from pipeline.stages.stage import Ahead, Stage
from pipeline.stages.standing import config_differences
from pipeline.world import World


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content."""
    folder = resolve_model(config.model.path, config.model.revision)
    return {f"model/{path.name}": run.hash_of(path) for path in model_files(folder)}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write score/scores.json, scores.csv, calibration.json, block_order.csv (by the first criterion) and orders/."""
    folder, text = run.stage("score"), Inputs(config, run)
    dense = text.model
    sequences, origins = world.on_first(text.calibration)
    meta = describe_folder(dense, config.model.trust_remote_code)
    blocks, by_block = len(find_blocks(meta)), _by_block(config, meta, world)
    known = world.on_first(lambda: kept_before(run, "score"))
    asked = config.score.criteria
    made = _score(text, sequences, meta, [name for name in asked if name not in known], by_block, run, world, say)
    entries = {name: made.get(name) or known[name] for name in asked}
    if world.rank == 0:
        if len(sequences) == 1:
            say("one calibration sequence: no intervals and no stability; raise score.sequences")
        held_out = _held_out(text, origins)
        write_json(folder / "calibration.json", {"origins": origins, "input_ids": sequences.tolist()})
        calibration = _calibration(config, held_out) | {"sha256": hash_ids(sequences)}
        model = scored_model(config, run)
        write_json(
            folder / "scores.json", {"blocks": blocks, "model": model, "criteria": entries, "calibration": calibration}
        )
        _write_tables(folder, entries)
        for states in (folder / "progress").rglob("states-*"):
            shutil.rmtree(states)
        known = "an unknown number" if held_out is None else held_out
        say(f"{len(origins)} calibration documents, {known} of them held out too")
        for name, entry in entries.items():
            dense_ppl = f"; dense perplexity {entry['dense']:.2f}" if "dense" in entry else ""
            say(f"{name}, least important first: {entry['order']}{dense_ppl}")
    return {"blocks": blocks, "sequences": len(sequences), "loop": "block" if by_block else "batch"}


def _score(
    text: Inputs,
    sequences: torch.Tensor,
    meta: nn.Module,
    asked: list[str],
    by_block: bool,
    run: Run,
    world: World,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Entries of scores.json by the criteria that are ``asked``, which may be none."""
    config, dense, settings = text.config, text.model, _settings(text.config, meta)
    if not asked:
        return {}
    way = "block by block" if by_block else "with the whole model on the device"
    by = ", ".join(asked)
    length = sequences.shape[1]
    say(f"scoring {len(find_blocks(meta))} blocks by {by} on {len(sequences)} sequences of {length} tokens, {way}")
    load = {
        "dtype": config.score.dtype,
        "attention": config.model.attention,
        "device": world.device,
        "trust_remote_code": config.model.trust_remote_code,
    }
    progress = progress_of(run, "score", asked)
    if by_block:
        return score_streamed(
            StreamedModel(dense, **load),
            sequences,
            asked,
            settings,
            micro_batch=config.score.micro_batch,
            world=world,
            folder=progress,
            say=say,
        )
    return score_blocks(
        load_model(dense, **load),
        sequences.split(config.score.micro_batch),
        asked,
        settings,
        maps=lambda: _text_of_maps(text, meta, world, say),
        world=world,
        folder=progress,
        progress=say,
    )


def scored_model(config: Config, run: Run) -> dict[str, str | None]:
    """Which model's blocks are scored: its revision, where it is the hub's, and what its weights hash to."""
    folder = resolve_model(config.model.path, config.model.revision)
    return {"revision": config.model.revision, "sha256": weights_hash(folder, run.hash_of)}


def hash_ids(rows: torch.Tensor) -> str:
    """sha256 of rows of ids, as int64."""
    return hashlib.sha256(rows.long().contiguous().numpy().tobytes()).hexdigest()


def _calibration(config: Config, held_out: int | None) -> dict[str, Any]:
    """What scores.json says of the text; ``held_out`` of its sequences are of held-out documents."""
    score = config.score
    return {
        "sequences": score.sequences,
        "length": score.length,
        "bos": score.bos,
        "dtype": score.dtype,
        "seed": score.seed,
        "overlap": {"held_out": held_out},
        "targets": (score.length - 1) * score.sequences,
    }


def _by_block(config: Config, meta: nn.Module, world: World) -> bool:
    """Whether blocks are streamed through the device: as the config says, or where the weights are too large."""
    if config.score.loop != "auto":
        return config.score.loop == "block-major"
    weights = sum(p.numel() for p in meta.parameters()) * getattr(torch, config.score.dtype).itemsize
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
    else:
        memory = total_memory() // world.on_this_machine
    # One answer for all: machines may differ.
    return any(world.gather(weights > ROOM * memory))


def _settings(config: Config, meta: nn.Module) -> Settings:
    score, windows = config.score, config.score.linear_n
    if windows is None and "linear" in score.criteria:
        # The planned cut, where it is known before scoring.
        planned = len(read_cut(config).planned(Sizes.of(meta)))
        windows = (planned,) if planned else ()
    return Settings(
        position=score.position,
        ppl_lengths=score.ppl_n,
        linear_lengths=windows or (),
        ridge=score.linear_ridge,
        norm_power=score.norm_power,
        weight_reduction=score.weight_reduction,
        block_reduction=score.block_reduction,
    )


def _text_of_maps(text: Inputs, meta: nn.Module, world: World, say: Callable[[str], None]) -> torch.Tensor:
    width = meta.config.get_text_config().hidden_size
    drawn = world.on_first(lambda: text.for_maps(width))
    say(f"linear: {len(drawn)} sequences, every fourth to judge the maps by")
    return drawn


def _write_tables(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Orders as Shortened LLM writes them, and all scores as one table."""
    for name, entry in entries.items():
        write_block_order(folder / "orders" / f"{name}.csv", entry["order"])
    write_block_order(folder / "block_order.csv", next(iter(entries.values()))["order"])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["block", *entries])
    columns = [entry["scores"] for entry in entries.values()]
    table.writerows([block, *row] for block, row in enumerate(zip(*columns, strict=True)))
    write_atomic(folder / "scores.csv", text.getvalue())


def _held_out(text: Inputs, origins: list[dict[str, Any]]) -> int | None:
    """Calibration sequences whose documents are held out; None where held-out text is not here."""
    seen = all(can_look_into(shard) for shard in text.held_out) and all("hash" in origin for origin in origins)
    kept = {digest.hex() for digest in held_out_hashes(text.held_out, text.cache)} if seen else set()
    return sum(origin["hash"] in kept for origin in origins) if seen else None


def check(ahead: Ahead) -> list[str]:
    """Whether the windows and the maps that the config asks for are possible with this model, and the corpus has
    documents enough where its listing is done."""
    sizes = Sizes.of(ahead.model)
    total, planned = len(sizes.blocks), len(read_cut(ahead.config).planned(sizes))
    _check_windows(ahead.config, total, planned)
    width = ahead.model.config.get_text_config().hidden_size
    _check_maps(ahead.config, width, total, planned)
    if "data" not in ahead.due:
        _check_documents(ahead.config)
    return []


def _check_documents(config: Config) -> None:
    """Whether the corpus that stage data listed has a document for each calibration sequence; some may be too short,
    which is seen when they are drawn."""
    run = Run(config.run_folder)
    record = run.record("data")
    # A listing of another config, or that has lost its file, is refused as what it is when the stage begins.
    if record is None or config_differences("data", record["fingerprint"], config):
        return
    if not (run.stage("data") / "manifest.json").is_file():
        return
    corpus, asked = Inputs(config, run).corpus, config.score.sequences
    counts = [shard.documents for shard in corpus]
    if None in counts:
        return
    there = sum(counts) - sum(number for shard in corpus for _, number in shard.without_text)
    if there < asked:
        raise RegrowError(
            f"score.sequences {asked:,}: the corpus has {there:,} documents, and each gives one sequence at most; "
            "lower it, or add text to data.sources"
        )


def _check_windows(config: Config, total: int, planned: int) -> None:
    """Whether the windows of ppl fit into a model of ``total`` blocks, and hold the one that is to be removed."""
    cut = config.prune
    long = [count for count in config.score.ppl_n if count >= total]
    if long:
        raise RegrowError(f"score.ppl_n {long[0]}: the model has {total} blocks, a window holds fewer")
    if cut.criterion == "ppl" and cut.selection == "contiguous" and planned not in config.score.ppl_n:
        raise RegrowError(
            f"score.ppl_n {list(config.score.ppl_n)}: prune removes a window of {planned} blocks by ppl; add {planned} "
            "to it"
        )


def _check_maps(config: Config, width: int, total: int, planned: int) -> None:
    """Whether linear maps can be fitted as the config says: enough tokens, and windows that the model has."""
    score, cut = config.score, config.prune
    if "linear" not in score.criteria and not cut.linear:
        return
    long = [count for count in score.linear_n or () if count >= total]
    if long:
        raise RegrowError(f"score.linear_n {long[0]}: the model has {total} blocks, a window holds fewer")
    count, needed = score.linear_sequences, -(-TOKENS_PER_INPUT * width // score.length)
    if count is not None and count - count // JUDGED_EVERY < needed:
        raise RegrowError(
            f"score.linear_sequences {count}: every fourth judges, which leaves {count - count // JUDGED_EVERY} of "
            f"{score.length} tokens to fit maps of {width} x {width} on; {needed} are needed ({TOKENS_PER_INPUT} "
            "tokens for each input); raise it, or leave it null"
        )
    by_window = cut.criterion == "linear" and cut.selection == "contiguous"
    if by_window and score.linear_n is not None and planned not in score.linear_n:
        raise RegrowError(
            f"score.linear_n {list(score.linear_n)}: prune removes a window of {planned} blocks by linear; add it, or "
            "leave linear_n null"
        )


STAGE = Stage(
    "score",
    upstream=("data",),
    format=3,
    readable=2,
    work=work,
    inputs=inputs,
    launched=lambda config: True,
    check=check,
    reads_model=True,
    grows_by="score.criteria",
)
