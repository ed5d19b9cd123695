"""The plan for people, its second half: the whole run's time and price, the disk, and what was seen of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.files import of_bytes
from pipeline.reporting.notation import SPACE, duration


def whole_lines(plan: dict[str, Any]) -> list[str]:
    """Every part of the run, their sum, and what may be done beside it."""
    rows, gpu, processes, price = plan["whole"], plan["gpu"], plan["training"]["processes"], plan["price"]
    if not rows:
        return []
    share = plan["time"][1]["mfu"]
    dollars = f"{'dollars':>14}" if price is not None else ""
    lines = [
        "",
        f"the whole run on {processes} of them, held from its start to its end: products at {share:.0%} MFU; a forward "
        f"of the models",
        f"that are judged takes no less than its weights ({gpu['bandwidth'] / 1e12:.2f} TB/s) and its launches "
        f"({gpu['block_seconds'] * 1e3:.2f} ms a block).",
        "Not counted: starts, loading, fetching, compiling, saving, and stage data.",
        f"  {'stage':<10}{'time':>14}{'GPU-hours':>14}{dollars}  of what",
    ]
    within = [row for row in rows if not row["beside"]]
    sums = {name: sum(row[name] or 0 for row in within) for name in ("seconds", "gpu_hours", "dollars")}
    lines += [_row(row["stage"], row, price, row["what"]) for row in within]
    lines.append(_row("in all", sums, price, ""))
    return lines + [_row("beside it", row, price, row["what"]) for row in rows if row["beside"]]


def _row(name: str, row: dict[str, Any], price: float | None, what: str) -> str:
    dollars = f"{row['dollars']:>14,.2f}" if price is not None else ""
    time = duration(row["seconds"]).replace(SPACE, " ")
    return f"  {name:<10}{time:>14}{row['gpu_hours']:>14,.2f}{dollars}  {what}".rstrip()


def disk_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """What stands on each disk at once, beside what is free there."""
    lines = []
    for disk in found:
        free = "not on this machine" if disk["free"] is None else f"{of_bytes(disk['free'])} free, this run's included"
        lines += ["", f"disk of {disk['folder']}: {of_bytes(disk['bytes'])} at once; {free}"]
        if disk["enough"] is False:
            lines.append("  NOT ENOUGH: free some, set run.folder to another place, or lower train.keep_checkpoints")
        for item in disk["items"]:
            size = "unknown" if item["bytes"] is None else of_bytes(item["bytes"])
            lines.append(f"{size:>14}  {item['what']}")
    return lines


def corpus_lines(looks: Sequence[dict[str, Any]], budget: int) -> list[str]:
    """What was seen of each source that is here; ``budget``: tokens of all steps."""
    lines = []
    for look in looks:
        lines += ["", f"text of {look['path']}, by {look['shard']} ({look['shards']} shards)"]
        read = "all" if look["whole"] else "the first"
        left_out = [f"{share:.2%} {what}" for what, share in look["without_text"].items()]
        left_out.append(f"{look['excluded']:.2%} of excluded domains")
        lines.append(f"  {read} {look['documents']:,} documents: {', '.join(left_out)}")
        if look["tokens_a_document"] is None:
            lines.append("  tokens not known: the tokenizer is not here, or made none of it")
        else:
            each = f"{look['tokens_a_document']:,.0f} tokens a document"
            if look["bytes_a_token"] is not None:
                each += f", {look['bytes_a_token']:.2f} bytes a token ({look['sampled']:,} documents tokenised)"
            lines.append(f"  {each}")
        if look["corpus_tokens"] is not None:
            lines.append(f"  about {look['corpus_tokens']:,} tokens in all its files, by their bytes")
        if look["epochs"] is not None:
            lines.append(f"  {budget:,} tokens of training are about {look['epochs']:.3g} epochs of it")
        if look["example"] is not None:
            lines.append(f"  it begins: {look['example']!r}")
    return lines
