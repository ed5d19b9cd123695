"""How fast the stream of rows is beside the bare tokenizer and beside other loaders, and what a resume costs.

    python benchmarks/data.py                     # the demo's text with SmolLM2's tokenizer; some 5 minutes
    python benchmarks/data.py --quick             # every step once, on little text; its figures mean nothing

One corpus, written in three ways: jsonl.zst (as SlimPajama), tars of one document a sample (as webdataset's users
write them) and tokenised shards. Every reader gives rows of one length, in one process with one tokenizer thread:

- bare: the tokenizer alone on texts that lie in memory, by transformers' batched call and by the compiled tokenizer's
  own, the latter with 1,000 texts a call and with as many as ours gives it; the fastest one counts; no file, no
  packing; a separator for each text is counted, as in the rows
- ours, from text and from tokenised shards: ``RowStream`` as the train stage has it, without worker processes
- datasets: json.zst streamed, batched map to ids, batched map to rows (run_clm's group_texts)
- webdataset: tars, decoded, tokenised, packed end to end

They take turns in one run, and the medians of their turns are compared, so that a machine that slows down slows all of
them. Each lives in a process of its own, as a loader's worker does: what one leaves in memory (datasets most of all)
otherwise slows the next by up to a third. A resume is timed in a process that has opened nothing yet, from a saved
position to the first row; ours to the first row of every lane. webdataset keeps no position: it reads again from the
start. Tokenised shards are also timed far out: synthetic ones, of the size of SlimPajama's, at row 10 and at row
1,000,000.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import datasets
import torch
from machine import show
from readers import BATCH, Datasets, Ours, Webdataset, bare, write_corpora, write_synthetic

from pipeline.data.corpus.listing import list_source
from pipeline.data.formats.documents import read_documents
from pipeline.data.sources import TextSource
from pipeline.data.stream.position import Cursor, LaneCursor, to_json
from pipeline.data.stream.strands import TEXTS
from pipeline.data.tokens import Encoder, load_tokenizer, make_encoder
from pipeline.launch import Place, take_place

GPUS, TOKENS_PER_GPU = 8, 57_000
RESUMES = 3
LANES_OF_A_RUN = 384
#: Turns are longer for what is fast, and for datasets, whose rows come in bursts of some 100,000 tokens.
AMOUNTS = {"tokenised": 20, "datasets": 4}


def tokens_per_second(source: Iterator[Any], tokens: int) -> float:
    """One turn: at least ``tokens`` tokens of rows, or of batches of the bare tokenizer."""
    read, begin = 0, perf_counter()
    while read < tokens:
        item = next(source)
        read += item if isinstance(item, int) else len(item)
    return read / (perf_counter() - begin)


def serve(pipe: Any, build: Callable[[], Iterator[Any]]) -> None:
    """The life of one reader's process: a turn for every number of tokens that comes, until None comes."""
    take_place(Place())
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    source = build()
    while (tokens := pipe.recv()) is not None:
        pipe.send(tokens_per_second(source, tokens))


def take_turns(
    sources: dict[str, Callable[[], Iterator[Any]]], amounts: dict[str, int], turns: int
) -> dict[str, float]:
    """Median tokens/s of each source over its turns, after one that opens files and fills caches."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, build in sources.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, build), daemon=True).start()
        theirs.close()  # so that the end of the process is the end of the pipe
    speeds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(1 + turns):
        for name, pipe in pipes.items():
            pipe.send(amounts[name])
            speeds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    return {name: median(found[1:]) for name, found in speeds.items()}


def apart(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    """What a function gives in a process of its own, and its seconds: nothing that it opens stays open here."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def call() -> None:
        begin = perf_counter()
        found = function(argument)
        theirs.send((found, perf_counter() - begin))

    process = context.Process(target=call)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    found = ours.recv()
    process.join()
    return found


def resume_times(readers: dict[str, Any], counts: dict[str, Sequence[int]], turns: int) -> dict[str, dict[int, float]]:
    """Median seconds of a resume of each reader behind each of its numbers of rows; the readers take turns."""
    positions = {(name, count): apart(readers[name].position, count)[0] for name in readers for count in counts[name]}
    seconds: dict[tuple[str, int], list[float]] = {place: [] for place in positions}
    for _ in range(turns):
        for (name, count), position in positions.items():
            seconds[name, count].append(apart(readers[name].resume, position)[1])
    return {name: {count: median(seconds[name, count]) for count in counts[name]} for name in readers}


def position_bytes(lanes: int, sources: int) -> int:
    """Bytes of a run's position in a checkpoint: far into SlimPajama, in every lane and source."""
    cursor = LaneCursor(tuple(Cursor(1, 153, 17_942, 1_311) for _ in range(sources)))
    return len(json.dumps(to_json({lane: cursor for lane in range(lanes)})))


def same_rows(readers: Sequence[Ours], count: int) -> bool:
    """Whether the first rows of streams are equal."""
    return all(
        len({row.tobytes() for row in rows}) == 1
        for rows in islice(zip(*(reader.rows() for reader in readers), strict=True), count)
    )


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description="The stream of rows: tokens/s and the cost of a resume.")
    parser.add_argument("--model", type=Path, default=Path(".cache/demo/model"), help="folder: a tokenizer")
    parser.add_argument("--text", type=Path, default=Path(".cache/demo/text/train"), help="shards of text")
    parser.add_argument("--separator", default="<|endoftext|>", help="token behind each document, or eos")
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--shards", type=int, default=2, help="files of the corpus, one for each lane")
    parser.add_argument("--repeat", type=int, default=2, help="times that a shard has all of the text")
    parser.add_argument("--turns", type=int, default=5, help="turns of each reader; a resume is timed 3 times")
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens in a turn (see AMOUNTS)")
    parser.add_argument("--resume-at", type=int, default=1900, help="rows behind which a resume is timed")
    parser.add_argument("--synthetic-rows", type=int, default=1_000_000, help="the same, of synthetic tokenised shards")
    parser.add_argument("--synthetic-row-length", type=int, default=128)
    parser.add_argument("--synthetic-shards", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where the corpora are written: 0.5 GB; default: temporary")
    parser.add_argument("--quick", action="store_true", help="every step once, on little text")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shards, arguments.repeat, arguments.turns, arguments.tokens = 2, 1, 1, 20_000
        arguments.row_length, arguments.resume_at, arguments.synthetic_rows = 128, 40, 2000
    take_place(Place())
    torch.set_num_threads(1)
    datasets.disable_progress_bars()

    encode = make_encoder(load_tokenizer(arguments.model), arguments.separator)
    texts = [
        text
        for shard in list_source(TextSource(str(arguments.text))).shards
        for _, text in read_documents(Path(shard.place) / shard.path, shard.format)
    ]
    if arguments.quick:
        texts = texts[:300]
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        measure(arguments, texts, encode, folder)
    finally:
        shutil.rmtree(folder)


def measure(arguments: argparse.Namespace, texts: Sequence[str], encode: Encoder, folder: Path) -> None:
    """All figures, printed."""
    length, far = arguments.row_length, arguments.resume_at
    print("writing the corpora", flush=True)
    write_corpora(texts, folder, encode, arguments.shards, arguments.repeat)
    wide = arguments.synthetic_row_length
    write_synthetic(folder / "synthetic", arguments.synthetic_shards, (arguments.synthetic_rows + 100) * wide)
    shards = {name: list_source(TextSource(str(folder / name))).shards for name in ("text", "tokenised", "synthetic")}
    readers: dict[str, Any] = {
        "text": Ours(shards["text"], encode, length, folder),
        "tokenised": Ours(shards["tokenised"], encode, length, folder),
        "datasets": Datasets(folder / "text", encode, length),
        "webdataset": Webdataset(folder / "tar", encode, length),
    }
    synthetic = {"synthetic": Ours(shards["synthetic"], encode, wide, folder)}
    counts = {name: (10, far) for name in readers}
    print("timing resumes", flush=True)
    resumes = resume_times(readers, counts, 1 if arguments.quick else RESUMES)
    resumes |= resume_times(synthetic, {"synthetic": (10, arguments.synthetic_rows)}, 5)

    print("timing rows", flush=True)
    sources: dict[str, Callable[[], Iterator[Any]]] = {name: reader.rows for name, reader in readers.items()}
    bares = {"bare_transformers": (False, BATCH), "bare_compiled": (True, BATCH), "bare_few": (True, TEXTS)}
    for name, (compiled, size) in bares.items():
        if not compiled or encode.engine is not None:
            sources[name] = partial(bare, texts, encode, compiled, size)
    amounts = {name: arguments.tokens * AMOUNTS.get(name, 1) for name in sources}
    speed = take_turns(sources, amounts, arguments.turns)
    fastest = max(speed[name] for name in bares if name in speed)
    needed = GPUS * TOKENS_PER_GPU
    figures = {
        "row_length": length,
        "shards": arguments.shards,
        "turns": arguments.turns,
        "tokens_in_a_turn": amounts,
        "documents": len(texts) * arguments.repeat * arguments.shards,
        "tokens_per_second": speed,
        "of_bare": speed["text"] / fastest,
        "of_bare_transformers": speed["text"] / speed["bare_transformers"],
        "tokenised_times_text": speed["tokenised"] / speed["text"],
        "same_rows": same_rows([readers["text"], readers["tokenised"]], far),
        "resume_seconds": resumes,
        "position_bytes": {sources: position_bytes(LANES_OF_A_RUN, sources) for sources in (1, 7)},
        "tokens_per_second_of_8_h100": needed,
        "workers_for_8_h100": math.ceil(needed / speed["text"]),
    }
    tell(arguments, figures, fastest)


def tell(arguments: argparse.Namespace, figures: dict[str, Any], fastest: float) -> None:
    """Print the figures; ``fastest`` are the tokens a second of the fastest bare tokenizer."""
    speed, needed = figures["tokens_per_second"], figures["tokens_per_second_of_8_h100"]
    row = {
        "Rows": f"of {arguments.row_length}, {arguments.shards} lanes",
        "Bare tokenizer": f"{fastest:,.0f} tokens/s",
        "transformers' call": f"{speed['bare_transformers']:,.0f} tokens/s",
        "Ours, from text": f"{speed['text']:,.0f} tokens/s, {figures['of_bare']:.1%} of bare",
        "Ours, tokenised": f"{speed['tokenised']:,.0f} tokens/s, {figures['tokenised_times_text']:.1f} times text",
        "datasets": f"{speed['datasets']:,.0f} tokens/s",
        "webdataset": f"{speed['webdataset']:,.0f} tokens/s",
    }
    names = {
        "text": "ours, from text",
        "tokenised": "ours, tokenised",
        "datasets": "datasets",
        "webdataset": "webdataset (replay)",
        "synthetic": "synthetic tokenised shards",
    }
    for name, found in figures["resume_seconds"].items():
        behind = " / ".join(f"{count:,}" for count in found)
        row[f"Resume behind row {behind}: {names[name]}"] = " / ".join(f"{seconds:.3f} s" for seconds in found.values())
    row[f"Position of {LANES_OF_A_RUN} lanes, 1 / 7 sources"] = " / ".join(
        f"{size / 1e3:.1f} kB" for size in figures["position_bytes"].values()
    )
    row["Workers for 8 H100"] = f"{needed:,} / {speed['text']:,.0f}: {figures['workers_for_8_h100']}"
    row["Libraries"] = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "datasets", "webdataset"))
    print(
        f"{GPUS} H100 that each train at {TOKENS_PER_GPU:,} tokens/s take {needed:,} tokens/s; one worker gives "
        f"{speed['text']:,.0f} from text: {figures['workers_for_8_h100']} in all"
    )
    show(torch.device("cpu"), figures, row)


if __name__ == "__main__":
    main()
