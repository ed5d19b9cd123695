"""Stage score: how much each block matters, by every criterion asked for, from the calibration sequences.

One sweep gives PPL and all distances; its micro-batches (or, block-major, its blocks) are kept as soon as they are
known, and the other criteria when they are done, so that a killed stage goes on where it was.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from pipeline.config import Config
from pipeline.data.overlap import can_look_into, held_out_hashes
from pipeline.data.shards import read_manifest
from pipeline.importance.batch_major import own_share, sweep_by_batch
from pipeline.importance.block_major import ROOM, sweep_by_block
from pipeline.importance.distances import DISTANCES, StateDistances
from pipeline.importance.linear import find_projections, linear_entry
from pipeline.importance.ppl import TIE, windows_of
from pipeline.importance.scoring import add_uncertainty, split_for_maps, sweep_entries
from pipeline.importance.selection import write_block_order
from pipeline.importance.weights import magnitude_entry, magnitude_of, taylor_entry
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model, model_files, resolve_model
from pipeline.model.streaming import StreamedModel
from pipeline.model.structure import require_separate_blocks
from pipeline.plan import describe_dense, planned_removal
from pipeline.rows import shard_cache
from pipeline.run import RegrowError, Run, read_json, write_atomic, write_json
from pipeline.stages.texts import draw_calibration, draw_for_maps
from pipeline.world import World

FORMAT = 3
UPSTREAM = ("data",)


def launched(config: Config) -> bool:
    """Several processes share the work."""
    return True


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The dense model's files by their content."""
    folder = resolve_model(config.model.path, config.model.revision)
    return {f"model/{path.name}": run.hash_of(path) for path in model_files(folder)}


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write score/scores.json, scores.csv, calibration.json, block_order.csv (by the first criterion) and orders/."""
    folder = run.stage("score")
    dense = resolve_model(config.model.path, config.model.revision)
    sequences, origins = world.on_first(lambda: draw_calibration(config, run, dense))
    meta = describe_dense(config, dense)
    by_block = _by_block(config, meta, world)
    if by_block:
        entries = _score_by_block(config, dense, sequences, folder / "progress", world, say)
    else:
        model = load_model(
            dense, dtype=config.score.dtype, attention=config.model.attention, device=world.device,
            trust_remote_code=config.model.trust_remote_code,
        )  # fmt: skip
        require_separate_blocks(model, find_blocks(model))
        entries = _score_by_batch(config, run, dense, model, meta, sequences, world, say)
    if world.rank == 0:
        for entry in entries.values():
            add_uncertainty(entry)
        if len(sequences) == 1:
            say("one calibration sequence: no intervals and no stability; raise score.sequences")
        calibration = {
            "sequences": config.score.sequences, "length": config.score.length, "bos": config.score.bos,
            "dtype": config.score.dtype, "seed": config.score.seed,
            "overlap": {"held_out": _held_out(config, run, origins)},
            "targets": (config.score.length - 1) * config.score.sequences,
        }  # fmt: skip
        write_json(folder / "calibration.json", {"origins": origins, "input_ids": sequences.tolist()})
        blocks = len(find_blocks(meta))
        write_json(folder / "scores.json", {"blocks": blocks, "criteria": entries, "calibration": calibration})
        _write_tables(folder, entries)
        for states in (folder / "progress").glob("states-*"):
            shutil.rmtree(states)
        held_out = calibration["overlap"]["held_out"]
        known = "an unknown number" if held_out is None else held_out
        say(f"{len(origins)} calibration documents, {known} of them held out too")
        for name, entry in entries.items():
            dense_ppl = f"; dense perplexity {entry['dense']:.2f}" if "dense" in entry else ""
            say(f"{name}, least important first: {entry['order']}{dense_ppl}")
    return {"blocks": len(find_blocks(meta)), "sequences": len(sequences), "loop": "block" if by_block else "batch"}


def _by_block(config: Config, meta: nn.Module, world: World) -> bool:
    """Whether blocks are streamed through the device: as the config says, or where the weights are too large."""
    if config.score.loop != "auto":
        return config.score.loop == "block-major"
    weights = sum(p.numel() for p in meta.parameters()) * getattr(torch, config.score.dtype).itemsize
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
    else:
        memory = psutil.virtual_memory().total // world.on_this_machine
    # One answer for all: machines may differ.
    return any(world.gather(weights > ROOM * memory))


def _score_by_batch(
    config: Config, run: Run, dense: Path, model: Any, meta: nn.Module, sequences: torch.Tensor, world: World,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The entries of all criteria asked for, in that order, with the whole model on the device."""
    asked, progress = config.score.criteria, run.stage("score") / "progress"
    wanted = set(asked) & set(DISTANCES)
    if "linear" in asked:
        # Refused now, not after hours of the sweep.
        find_projections(model, [(start, 1) for start in range(len(find_blocks(model)))])
    entries = {}
    windows = windows_of(len(find_blocks(model)), config.score.ppl_n)
    if "ppl" in asked or wanted:
        losses, distances = sweep_by_batch(
            model, sequences, folder=progress, micro_batch=config.score.micro_batch, losses="ppl" in asked,
            windows=windows, position=config.score.position if wanted else None, world=world, say=say,
        )  # fmt: skip
        entries = sweep_entries(asked, losses, distances, config.score.length - 1, TIE[config.score.dtype], windows)
    reductions = _reductions(config)
    own = own_share(sequences, config.score.micro_batch, world)

    def linear() -> dict[str, Any]:
        width = model.config.get_text_config().hidden_size
        drawn = world.on_first(lambda: draw_for_maps(config, run, dense, width))
        fit, judge = split_for_maps(drawn, config.score.micro_batch, world.rank, world.size)
        say(f"linear: {len(drawn)} sequences, every fourth to judge the maps by")
        return linear_entry(model, fit, judge, lengths=_windows(config, meta), ridge=config.score.linear_ridge,
                            world=world)  # fmt: skip

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "linear": linear,
        "magnitude": lambda: magnitude_entry(model, **reductions),
        "taylor": lambda: taylor_entry(model, own, **reductions, world=world),
    }  # fmt: skip
    for name in (name for name in asked if name in makers):
        entries[name] = _kept(progress / f"{name}.json", world, makers[name])
        say(f"{name}: scored")
    return {name: entries[name] for name in asked}


def _score_by_block(
    config: Config, dense: Path, sequences: torch.Tensor, progress: Path, world: World, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The same, with one block on the device at a time."""
    asked = config.score.criteria
    whole = [f"score.criteria {name}" for name in sorted(set(asked) & {"linear", "taylor"})]
    whole += ["score.ppl_n"] * bool(config.score.ppl_n)
    if whole:
        raise RegrowError(
            f"{' and '.join(whole)}: needs the whole model on the device, and block-major order holds one block; leave "
            "it out, or set score.loop=batch-major on a device that is large enough"
        )
    streamed = StreamedModel(
        dense, dtype=config.score.dtype, attention=config.model.attention, device=world.device,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    entries = {}
    wanted = set(asked) & set(DISTANCES)
    if "ppl" in asked or wanted:
        own = own_share(sequences, config.score.micro_batch, world)
        share = torch.cat(own) if own else sequences[:0]
        distances = StateDistances(len(streamed.blocks), config.score.position) if wanted else None
        losses = None
        if len(share):
            losses = sweep_by_block(
                streamed, share, folder=progress / f"states-{world.rank}-of-{world.size}",
                micro_batch=config.score.micro_batch, losses="ppl" in asked, distances=distances, say=say,
            )  # fmt: skip
        found = [item for item in world.gather((losses, distances, len(share))) if item[2]]
        losses = torch.cat([item[0] for item in found], dim=1) if "ppl" in asked else None
        distances = found[0][1]
        for _, other, _ in found[1:] if distances is not None else ():
            distances.add(other)
        entries = sweep_entries(asked, losses, distances, config.score.length - 1, TIE[config.score.dtype])
    if "magnitude" in asked:
        entries["magnitude"] = _kept(progress / "magnitude.json", world,
                                     lambda: magnitude_of(_loaded(streamed), **_reductions(config)))  # fmt: skip
    return {name: entries[name] for name in asked}


def _loaded(streamed: StreamedModel) -> Iterator[nn.Module]:
    for index in range(len(streamed.blocks)):
        with streamed.block(index) as block:
            yield block


def _reductions(config: Config) -> dict[str, Any]:
    return {name: getattr(config.score, name) for name in ("norm_power", "weight_reduction", "block_reduction")}


def _windows(config: Config, meta: nn.Module) -> tuple[int, ...]:
    """Lengths of the windows of linear: as stated, else the planned cut, where it is known before scoring."""
    if config.score.linear_n is not None:
        return config.score.linear_n
    planned = len(planned_removal(config, meta))
    return (planned,) if planned else ()


def _kept(path: Path, world: World, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier start wrote, or what ``make`` gives, on every process; the first one writes it."""
    entry = world.broadcast(read_json(path) if world.rank == 0 and path.exists() else None)
    if entry is None:
        entry = make()
        if world.rank == 0:
            write_json(path, entry)
    return entry


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


def _held_out(config: Config, run: Run, origins: list[dict[str, Any]]) -> int | None:
    """Calibration sequences whose documents are held out; None where held-out text is not here."""
    _, held_out = read_manifest(read_json(run.stage("data") / "manifest.json"))
    seen = all(can_look_into(shard) for shard in held_out) and all("hash" in origin for origin in origins)
    kept = {digest.hex() for digest in held_out_hashes(held_out, shard_cache(config))} if seen else set()
    return sum(origin["hash"] in kept for origin in origins) if seen else None
