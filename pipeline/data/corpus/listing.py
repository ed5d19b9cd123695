"""Listing: every shard of one source, once, pinned by what tells its bytes from others.

Local files are decoded whole, counted and hashed, so that damage is met here and not in the middle of a run. Remote
files are pinned by what the hub or the server says of them; of remote parquet the footers are read. A listing that is
killed and started again goes on behind the files that were decoded, the URLs whose server answered and the footers
that were read; damaged files are looked at again, and the hub is asked for its tree anew. While a local file is
decoded it is searched for held-out documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.corpus.local import list_local, local_files, natural
from pipeline.data.corpus.overlap import Search, Twins
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import Census, add_up
from pipeline.data.progress import Progress
from pipeline.data.remote.catalogue import list_hub, list_urls, look_into
from pipeline.data.remote.servers import Patience
from pipeline.data.shards import Shard
from pipeline.data.sources import TextSource, may_be_remote, no_record, no_shard, no_such_place
from pipeline.data.texts import counted, refuse_no_text
from pipeline.files import hash_file


@dataclass(frozen=True)
class Listing:
    """One source: its shards by name, the damaged ones that were left out (``{"shard", "reason"}``), and a census.

    ``census`` sums the local files; None where there are none, since nobody has read the others yet. ``twins`` are the
    shards that hold documents which are held out too.
    """

    shards: list[Shard]
    skipped: list[dict[str, str]]
    census: Census | None
    twins: list[tuple[Shard, Twins]]


def list_source(
    source: TextSource,
    *,
    held_out: Mapping[bytes, str] | None = None,
    hash_of: Callable[[Path], str] = hash_file,
    done: Progress | None = None,
    patience: Patience | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Listing:
    """Every shard of one source, in the natural order of their names (chunk2 before chunk10).

    A parquet file without a row is left out and recorded. held_out: the documents that local text is searched for, as
    ``overlap.held_out_hashes`` gives them. done: what an earlier listing finished. patience: with servers; its lines go
    to ``say`` where none is given. Raises RegrowError when there is nothing, or text beside ids; DamagedShard when a
    shard is damaged.
    """
    patience = patience or Patience(say=say)
    search = Search(held_out or {}, source.exclude_domains)
    local = None if "://" in source.path else local_files(source.path, source.files)
    if local is not None:
        found = list_local(source, *local, search=search, hash_of=hash_of, done=done, say=say)
    elif may_be_remote(source.path):
        listed = list_urls(source, patience, done) if "://" in source.path else list_hub(source, patience)
        found = look_into(sorted(listed, key=lambda shard: natural(shard.path)), patience, done)
    else:
        raise no_such_place(source)

    shards: list[Shard] = []
    skipped: list[dict[str, str]] = []
    census: list[Census] = []
    twins: list[tuple[Shard, Twins]] = []
    lacking: list[tuple[str, Census]] = []
    for shard, entry in found:
        if "damage" in entry and source.on_damage == "raise":
            raise DamagedShard(entry["damage"])
        if "damage" in entry or "empty" in entry:
            reason = entry.get("damage") or entry["empty"]
            say(f"skipped: {reason}")
            skipped.append({"shard": shard.name, "reason": reason})
            continue
        shards.append(shard)
        census += [Census.from_json(entry["census"])] if "census" in entry else []
        if shard.without_text and source.on_no_text == "raise":
            what = f"{counted(census[-1].without_text)}, the first"
            raise refuse_no_text(shard.name, census[-1].first_without_text, what)
        twins += [(shard, Twins(**entry["twins"]))] if entry.get("twins", {}).get("count") else []
        lacking += [(shard.name, census[-1])] if shard.without_text else []
    if not shards:
        raise no_shard(source, len(skipped), local[1] if local is not None else ())
    if lacking:
        _tell_no_text(lacking, add_up(census), source, say)
    return Listing(shards, skipped, add_up(census) if census else None, twins)


def _tell_no_text(
    lacking: Sequence[tuple[str, Census]], whole: Census, source: TextSource, say: Callable[[str], None]
) -> None:
    """Say how many records of a source have no text; RegrowError where it has no others."""
    name, first = lacking[0][0], lacking[0][1].first_without_text
    files = f"{len(lacking)} file{'s' * (len(lacking) > 1)}"
    if sum(whole.without_text.values()) == whole.documents:
        raise no_record(source, whole.without_text)
    say(f"left out: {counted(whole.without_text)} in {files}; the first is record {first} of {name}")
