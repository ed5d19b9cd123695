"""The campaign's tables: how often which signal met which process where, and how that ended; and the chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from campaign.cases import PHASES, RECEIVERS, SIGNALS, ZERO_STAGES

#: How a command ends that was killed: by itself at once, with a checkpoint at the next step's end, at its own end.
ENDS = ("at once", "saved", "went on")


def table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row of Markdown for each receiver, signal and phase that was met, a row for all, and what was wrong."""
    counts: Counter[tuple[str, ...]] = Counter()
    passed = 0
    for line in lines:
        for kill, met in zip(line["kills"], line["met"], strict=False):
            if met["ended"] == "passed":
                passed += 1
                continue
            for row in ((kill["receiver"], kill["signal"], kill["phase"]), ("all of them", "", "")):
                counts[row] += 1
                counts[(*row, f"ZeRO {line['zero_stage']}")] += 1
                counts[(*row, met["ended"])] += 1
                counts[(*row, "cut short")] += bool(met["torn"])
                counts[(*row, "traceback")] += met["traceback"]
                counts[(*row, "wrong")] += bool(line["wrong"])
    heads = [*(f"ZeRO {stage}" for stage in ZERO_STAGES), *ENDS, "cut short", "traceback", "wrong"]
    yield f"| Receiver | Signal | Where | Kills | {' | '.join(heads)} |"
    yield f"| --- | --- | --- |{' ---: |' * (len(heads) + 1)}"
    rows = [(to, by, at) for to in RECEIVERS for by in ("SIGKILL", *SIGNALS) for at in PHASES]
    for row in [*rows, ("all of them", "", "")]:
        if counts[row]:
            cells = [str(counts[(*row, head)]) for head in heads]
            yield f"| {' | '.join(row)} | {counts[row]} | {' | '.join(cells)} |"
    wrong = [line for line in lines if line["wrong"]]
    yield ""
    yield f"{len(lines)} cases, {passed} kills that came too late; {len(wrong)} cases with something wrong"
    for line in wrong:
        yield f"- case {line['number']} of seed {line['seed']}, ZeRO {line['zero_stage']}: {'; '.join(line['wrong'])}"


def chain_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row of Markdown for each chain: its layouts, what each was gone on from, and its kills."""
    yield "| Chain | Processes and ZeRO stages | Largest difference of a loss | Samples and state |"
    yield "| --- | --- | ---: | --- |"
    for line in lines:
        words = []
        for step, link in zip([None, *line["changes"]], line["links"], strict=False):
            begun = "" if step is None else f"from step {step} "
            kills = [f"{kill['signal']} to {kill['receiver']} in its {kill['phase']}" for kill in link["kills"]]
            words.append(f"{begun}{link['processes']} x ZeRO {link['zero_stage']} ({', '.join(kills) or 'no kill'})")
        largest = "" if line["loss_difference"] is None else f"{line['loss_difference']:.1e} nats"
        said = "; ".join(line["wrong"]) or "exact"
        yield f"| {line['seed']}-{line['number']} | {'; '.join(words)} | {largest} | {said} |"
