"""Choosing: from scores to the blocks that go, where the model must run to know: greedily, within a budget, compared.

Stage prune asks here for what needs the dense model on every process's device: the rounds of greedy removal, the
perplexity of a set of blocks, linear maps. All of it is kept in prune/progress as it becomes known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.criteria import CONTROLS
from pipeline.importance.batch_major import own_share
from pipeline.importance.comparison import Maps, Perplexities, compare, compared_sets
from pipeline.importance.controls import control_blocks
from pipeline.importance.greedy import Round, greedy_rounds
from pipeline.importance.linear import find_projections, fit_maps, split_for_maps
from pipeline.importance.selection import choose_blocks, choose_window, choose_within, protected_blocks
from pipeline.inputs import Inputs
from pipeline.model.blocks import find_blocks
from pipeline.model.load import load_model
from pipeline.model.replacement import removed_runs
from pipeline.run import Run, read_json, write_json
from pipeline.world import World


def runs_model(config: Config) -> bool:
    """Whether choosing or comparing runs the model, so that several processes share the work."""
    return config.prune.runs_model


class Chooser:
    """What can be asked of the dense model before blocks are removed. Every process makes one and asks the same."""

    def __init__(self, config: Config, run: Run, dense: Path, world: World, say: Callable[[str], None]):
        self.config, self.run, self.dense, self.world, self.say = config, run, dense, world, say
        self.progress = run.stage("prune") / "progress"
        self.protect = {"protect_first": config.prune.protect_first, "protect_last": config.prune.protect_last}
        texts = world.on_first(self._texts)
        self.model = load_model(
            dense,
            dtype=config.score.dtype,
            attention=config.model.attention,
            device=world.device,
            trust_remote_code=config.model.trust_remote_code,
        )
        if config.prune.linear:
            # Refused now, not after the rounds of greedy removal.
            find_projections(self.model, [(start, 1) for start in range(len(find_blocks(self.model)))])
        self.share = own_share(texts["calibration"], config.score.micro_batch, world)
        self.perplexities = Perplexities(
            self.model, texts, config.score.micro_batch, world, self.progress / "perplexities.json"
        )

    def _texts(self) -> dict[str, torch.Tensor | None]:
        ids = read_json(self.run.stage("score") / "calibration.json")["input_ids"]
        asked, bos = self.config.prune.compare, self.config.evaluate.perplexity.bos
        held_out = Inputs(self.config, self.run, self.dense).held_out_rows(asked.length, bos, asked.rows)
        return {"calibration": torch.tensor(ids), "held_out": held_out}

    def greedy(self, remove: int | None = None, budget: float | None = None) -> list[Round]:
        """The first rounds of greedy removal: so many, or as many as a budget allows; earlier ones are not repeated."""
        file = self.progress / "greedy.json"
        kept = read_json(file) if self.world.rank == 0 and file.exists() else []
        rounds = [_round(one) for one in self.world.broadcast(kept)]
        if budget is not None:
            rounds = rounds[: next((n for n, one in enumerate(rounds) if not one.perplexity <= budget), len(rounds))]
        if remove is not None and len(rounds) >= remove:
            return rounds[:remove]
        for one in greedy_rounds(
            self.model,
            self.share,
            remove=remove,
            budget=budget,
            done=[one.removed for one in rounds],
            world=self.world,
            **self.protect,
        ):
            rounds.append(one)
            if self.world.rank == 0 and len(rounds) > len(kept):
                write_json(file, [asdict(each) for each in rounds])
            self.say(f"greedy round {len(rounds)}: block {one.removed} goes, perplexity {one.perplexity:.2f}")
        return rounds

    def within(self, order: list[int], budget: float) -> list[int]:
        """One-shot removal that stops at a budget for the perplexity of the calibration sequences."""

        def perplexity(blocks: list[int]) -> float:
            value = self.perplexities(blocks)["calibration"]
            self.say(f"without {len(blocks)} blocks: perplexity {value or float('inf'):.2f}, budget {budget:.2f}")
            return float("inf") if value is None else value

        return choose_within(order, budget, perplexity, **self.protect)

    def maps(self, removed: list[int]) -> tuple[dict[int, torch.Tensor], int]:
        """A linear map for every run of removed blocks but one that begins at block 0, and the tokens fitted on."""
        width = self.model.config.get_text_config().hidden_size
        drawn = self.world.on_first(lambda: Inputs(self.config, self.run, self.dense).for_maps(width))
        fit, _ = split_for_maps(drawn, self.config.score.micro_batch, self.world.rank, self.world.size)
        windows = [(run[0], len(run)) for run in removed_runs(removed) if run[0] > 0]
        maps = fit_maps(self.model, fit, windows, ridge=self.config.score.linear_ridge, world=self.world)
        tokens = sum(self.world.gather(sum(batch.numel() for batch in fit)))
        self.say(f"linear maps for {len(windows)} runs of blocks, fitted on {tokens:,} tokens")
        return {start: matrix for (start, _), matrix in maps.items()}, tokens

    def comparison(self, criteria: Mapping[str, Any], total: int, removed: list[int], maps: Maps) -> dict[str, Any]:
        """comparison.json: the perplexity of every way of choosing, and of this run's set, at the planned count and at
        each share."""
        asked, planned = self.config.prune.compare, len(removed)
        protected = protected_blocks(total, self.config.prune.protect_first, self.config.prune.protect_last)
        counts = sorted({planned} | {int(share * total) for share in asked.shares})
        if "linear" in criteria and str(planned) not in criteria["linear"]["windows"]:
            self.say(
                f"linear was not fitted for windows of {planned} blocks (score.linear_n): its window is not compared"
            )
        sets = list(compared_sets(criteria, total, counts, seed=self.config.prune.seed, **self.protect))
        if asked.greedy:
            free = min(total - len(protected), total - 1)
            gone = [one.removed for one in self.greedy(remove=free)]
            order = criteria["ppl"]["order"] if "ppl" in criteria else None
            for remove in range(1, free + 1):
                ways = {"greedy": sorted(gone[:remove])}
                if order is not None and remove not in counts:
                    ways["one-shot"] = choose_blocks(order, remove, **self.protect)
                sets += [
                    {"by": "ppl", "selection": way, "linear_map": False, "remove": remove, "blocks": blocks}
                    for way, blocks in ways.items()
                ]
        own = self._own(removed)
        if not any(all(one[key] == own[key] for key in ("by", "selection", "remove")) for one in sets):
            sets.append(own)
        measured = compare(sets, self.perplexities, self.say)
        measured += self._with_maps(measured, planned)
        if maps and not any(one["linear_map"] and one["blocks"] == removed for one in measured):
            measured.append({**own, "linear_map": True, "perplexity": self.perplexities(removed, maps)})
        held_out = self.perplexities.shares["held_out"] is not None
        return {
            "protected": protected,
            "planned": planned,
            "removals": counts,
            "shares": [count / total for count in counts],
            "calibration": {"sequences": self.config.score.sequences, "length": self.config.score.length},
            "held_out": {"rows": asked.rows, "length": asked.length} if held_out else None,
            "dense": self.perplexities([]),
            "sets": measured,
        }

    def _own(self, removed: list[int]) -> dict[str, Any]:
        """This run's set, as one of those compared."""
        cut = self.config.prune
        selection = "given" if cut.blocks is not None else "control" if cut.criterion in CONTROLS else cut.selection
        by = "config" if cut.blocks is not None else cut.criterion
        return {"by": by, "selection": selection, "linear_map": False, "remove": len(removed), "blocks": removed}

    def _with_maps(self, measured: list[dict[str, Any]], planned: int) -> list[dict[str, Any]]:
        """The window that linear chose at the planned count, with its map in its place."""
        chosen = [
            one
            for one in measured
            if one["by"] == "linear"
            and one["selection"] == "contiguous"
            and one["remove"] == planned
            and one["blocks"][0] > 0
        ]
        return [
            {**one, "linear_map": True, "perplexity": self.perplexities(one["blocks"], self.maps(one["blocks"])[0])}
            for one in chosen
        ]


def choose(config: Config, criteria: Mapping[str, Any], total: int, remove: int) -> list[int]:
    """``remove`` blocks of ``total`` by a criterion's order, by its best window, or by a control; sorted."""
    cut = config.prune
    protect = {"protect_first": cut.protect_first, "protect_last": cut.protect_last}
    if cut.criterion in CONTROLS:
        return control_blocks(cut.criterion, total, remove, seed=cut.seed, **protect)
    entry = criteria[cut.criterion]
    if cut.selection == "contiguous":
        return choose_window(entry["windows"], remove, **protect)
    return choose_blocks(entry["order"], remove, **protect)


def _round(plain: Mapping[str, Any]) -> Round:
    """A round as JSON kept it: the keys of its candidates were numbers."""
    return Round(plain["removed"], plain["dense"], {int(block): value for block, value in plain["candidates"].items()})
