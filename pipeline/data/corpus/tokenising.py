"""Tokenising ahead: every shard of text once, by several processes, to a tokenised shard of the same documents.

The documents keep their numbers (one that is excluded has no tokens) and the row groups their places, so that the
lanes deal the same parts and give the same rows as they would from the text. A shard appears whole or not at all, and
what is finished is not done again: an index beside the shards says what each was made of and by which tokenizer.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.corpus.crew import Crew, Tell, outcomes
from pipeline.data.corpus.overlap import Search, Twins, refuse_overlap
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_records
from pipeline.data.formats.tokenised import about_tokenised, require_same_ids, write_tokenised
from pipeline.data.progress import Progress
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.texts import refuse_no_text, why_no_text
from pipeline.data.tokens import Encoder, Encoding, about_encoder
from pipeline.errors import RegrowError
from pipeline.files import hash_file, hash_json, require_space, take_lock

#: Tokens for a byte of a file, for the estimate of the space: SlimPajama has 0.70 compressed and 0.28 as plain text.
PER_COMPRESSED_BYTE, PER_PLAIN_BYTE = 0.75, 0.3
ENDING = ".tokens.tar"


@dataclass(frozen=True)
class Job:
    """One shard of text, the tokenised file that it becomes, and the key under which the index knows the pair."""

    shard: Shard
    target: Path
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return f"shard {self.shard.name}"

    @property
    def size(self) -> int:
        return self.shard.bytes

    @property
    def key(self) -> str:
        return f"{self.target.name} {hash_json(self.about)}"


def tokenise_corpus(
    shards: Sequence[Shard],
    encoding: Encoding,
    folder: Path,
    *,
    cache: ShardCache,
    crew: Crew,
    on_damage: str = "raise",
    held_out: Mapping[bytes, str] | None = None,
) -> tuple[list[Shard], list[dict[str, str]]]:
    """The tokenised shards, in the order of ``shards``, and the damaged ones that were left out.

    Shard NAME of source S becomes ``folder/ENCODER/source-S/NAME.SHARD.tokens.tar``, with hashes of what makes the ids
    and of the shard's text, so that runs with other tokenizers or other corpora may share the folder; tokenised shards
    pass through. ``cache`` holds shards that must be fetched. Remote text is searched for ``held_out``
    (``overlap.held_out_hashes``). on_damage: ``raise``, or ``skip`` damaged shards, which are given back as
    ``{"shard", "reason"}``. Started again it goes on where it was. Raises DamagedShard; RegrowError when there is no
    space, when a process dies (naming it and its shard), when another command works in ``folder``, and where a
    tokenised shard was made by another tokenizer or separator.
    """
    encoder = encoding.load()
    about = about_encoder(encoder)
    texts = [shard for shard in shards if shard.format != "tokenised"]
    of_encoder = folder / about["encoder"][:12]
    jobs = {shard: Job(shard, _target(of_encoder, shard), {**about, "source": _identity(shard)}) for shard in texts}
    if len({job.target for job in jobs.values()}) < len(texts):
        raise RegrowError(f"{folder}: two shards of one source have the same name; list each shard once")
    for shard in shards:
        if shard.format == "tokenised" and shard.kind == "local":
            require_same_ids(Path(shard.place) / shard.path, shard.name, about)
    with _alone(folder), Progress(folder / "tokenised.jsonl") as index:
        finished = {job.shard: entry for job in jobs.values() if (entry := _finished(job, index)) is not None}
        # The longest first, so that no process works alone at the end.
        todo = sorted((jobs[shard] for shard in texts if shard not in finished), key=lambda job: -job.size)
        if finished:
            crew.say(f"{len(finished)} of {len(texts)} shards were tokenised before")
        require_space(folder, sum(_estimate(job) for job in todo), f"{len(todo)} tokenised shards")
        # The compiled part alone: transformers would bring torch along, seconds and memory in every process.
        light = replace(encoder, tokenizer=None) if encoder.engine is not None else None
        skipped: dict[Shard, str] = {}
        with contextlib.closing(outcomes(crew, todo, Writer, (light, encoding, cache, held_out or {}))) as results:
            for job, outcome in results:
                if isinstance(outcome, dict):
                    finished[job.shard] = outcome
                    index.keep({"key": job.key, **outcome})
                elif on_damage == "skip":
                    skipped[job.shard] = outcome
                else:
                    raise DamagedShard(outcome)
    kept = [
        shard if shard.format == "tokenised" else _tokenised(jobs[shard], of_encoder, finished[shard])
        for shard in shards
        if shard not in skipped
    ]
    return kept, [{"shard": shard.name, "reason": skipped[shard]} for shard in shards if shard in skipped]


def _target(folder: Path, shard: Shard) -> Path:
    # What stands behind a URL's path may be a key, and is not part of the name.
    name = shard.path.partition("?")[0] if shard.kind == "url" else shard.path
    base = folder / f"source-{shard.source}"
    target = base / f"{name}.{_identity(shard)[:12]}{ENDING}"
    if not target.resolve().is_relative_to(base.resolve()):
        raise RegrowError(f"shard {shard.name}: its name leads out of {base}; list the source by its own folder")
    return target


def _identity(shard: Shard) -> str:
    """A hash of all that decides a shard's texts; with a sha256 it does not matter where the file lies."""
    pinned = [shard.sha256] if shard.sha256 else [shard.name, shard.revision, shard.bytes, shard.etag]
    return hash_json([*pinned, shard.format, shard.text_key, sorted(shard.exclude_domains)])


def _estimate(job: Job) -> int:
    """Bytes of the tokenised file, roughly."""
    plain = job.shard.path.endswith((".jsonl", ".tar"))
    width = 2 if job.about["vocabulary"] <= 1 << 16 else 4
    return int(job.size * width * (PER_PLAIN_BYTE if plain else PER_COMPRESSED_BYTE))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two commands would do the same work, and remove each other's unfinished files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
            raise RegrowError(f"{folder}: another command is tokenising into it; wait for it to end")
        try:
            _sweep(folder)
            yield
        finally:
            _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for left in folder.rglob(f".*{ENDING}.*.new"):
        left.unlink()


def _finished(job: Job, index: Progress) -> dict[str, Any] | None:
    """The index's entry of a shard that is done, None otherwise."""
    target = job.target
    if not target.exists():
        return None
    entry, state = index.known.get(job.key), target.stat()
    if entry and (entry["bytes"], entry["modified"]) == (state.st_size, state.st_mtime_ns):
        return entry
    # Copied, or killed before it was noted, or not ours: the file itself says what it is.
    try:
        was = about_tokenised(target)
    except DamagedShard:
        return None
    found = _entry(target, was["documents"], was["tokens"])
    same = {name: was.get(name) for name in job.about} == job.about
    if not same or (entry and entry["sha256"] != found["sha256"]):
        return None
    index.keep({"key": job.key, **found})
    return found


def _entry(target: Path, documents: int, tokens: int) -> dict[str, Any]:
    state = target.stat()
    return {
        "bytes": state.st_size,
        "modified": state.st_mtime_ns,
        "sha256": hash_file(target),
        "documents": documents,
        "tokens": tokens,
    }


def _tokenised(job: Job, folder: Path, entry: dict[str, Any]) -> Shard:
    place = folder / f"source-{job.shard.source}"
    return replace(
        job.shard,
        place=str(place),
        path=job.target.relative_to(place).as_posix(),
        kind="local",
        revision=None,
        format="tokenised",
        bytes=entry["bytes"],
        sha256=entry["sha256"],
        etag=None,
        documents=entry["documents"],
    )


class Writer:
    """What one process does: it reads the texts of a shard and writes their ids."""

    def __init__(
        self,
        encoder: Encoder | None,
        encoding: Encoding,
        cache: ShardCache,
        held_out: Mapping[bytes, str],
        tell: Tell,
    ):
        self.encode = encoder or encoding.load()
        self.copies = cache.saying(lambda line: tell("say", line))
        self.held_out, self.tell = held_out, tell

    def __call__(self, job: Job) -> dict[str, Any]:
        """Tokenise one shard; its entry for the index. Raises DamagedShard."""
        tokens = documents = 0
        twins = Twins()

        def counted() -> Iterator[list[int]]:
            nonlocal tokens, documents
            known, told = job.shard.documents, time.monotonic()
            for ids in self._documents(job.shard, twins):
                tokens, documents = tokens + len(ids), documents + 1
                if time.monotonic() - told > 1:
                    told = time.monotonic()
                    self.tell("progress", (tokens, documents / known if known else 0.0))
                yield ids
            # Raised before the file has its name.
            refuse_overlap([(job.shard, twins)])
            if known not in (None, documents):
                raise DamagedShard(f"shard {job.shard.name}: {documents} documents, the manifest says {known}")

        write_tokenised(job.target, counted(), about=job.about)
        return _entry(job.target, documents, tokens)

    def _documents(self, shard: Shard, twins: Twins) -> Iterator[list[int]]:
        """Ids of every record in file order; none for one of an excluded domain or without text. ``twins`` notes what
        is held out of remote text: local text was searched when it was listed."""
        search = Search(self.held_out, shard.exclude_domains)
        groups = [None]
        if shard.kind != "local" and shard.groups is not None:
            groups = [number for number, documents in enumerate(shard.groups) if documents]
        for group in groups:
            path = self.copies.open(shard, group)
            before = sum(shard.groups[:group]) if group else 0
            watch = None if shard.kind == "local" else search.watch(twins, before)
            try:
                for index, text, domain in read_records(path, shard.format, shard.text_key):
                    kind = why_no_text(text)
                    if kind is not None and shard.on_no_text == "raise":
                        raise refuse_no_text(shard.name, before + index, f"a record without text ({kind})")
                    if watch is not None and kind is None:
                        watch(index, text, domain)
                    yield [] if kind is not None or domain in shard.exclude_domains else self.encode(text)
            finally:
                self.copies.drop(shard, group)
