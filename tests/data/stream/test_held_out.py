"""Held-out rows: documents end to end under each BOS policy, spread over the whole held-out set."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.stream.held_out import RowsAsked, held_out_rows, require_one_row
from pipeline.data.tokens import about_encoder, load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from tests.data.corpora import listing_of, shard


def rows_of(shards, encoder, tmp_path, *, length=32, bos="document", rows=None):
    return held_out_rows(shards, encoder, length=length, bos=bos, rows=rows, cache=tmp_path)


def about(word: str, count: int, words: int = 20) -> list[str]:
    """``count`` documents that say one word: where a row of them came from can be read off it."""
    return [" ".join([word] * words)] * count


def words_of(rows, encoder) -> list[set[str]]:
    return [set(encoder.tokenizer.decode(row, skip_special_tokens=True).split()) for row in rows]


@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_all_rows_are_the_documents_in_file_order(corpus, encoder, tmp_path, bos):
    documents = [encoder(text) for shard in corpus for _, text in read_documents(Path(shard.name), shard.format)]
    stream = [token for ids in documents for token in (ids if bos == "document" else ids[1:])]
    room = 31 if bos == "every" else 32
    all_rows = rows_of(corpus, encoder, tmp_path, bos=bos)
    assert all_rows.shape == (len(stream) // room, 32), "rows are missing, or the incomplete one was kept"
    inner = all_rows[:, 1:] if bos == "every" else all_rows
    assert inner.flatten().tolist() == stream[: inner.numel()], "rows are not the documents end to end"
    if bos == "every":
        assert (all_rows[:, 0] == encoder.bos).all()
    assert rows_of(corpus, encoder, tmp_path, bos=bos, rows=10_000).equal(all_rows), "more than there are is not all"


@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_chosen_rows_are_stretches_of_the_documents_that_do_not_overlap(corpus, encoder, tmp_path, bos):
    documents = [encoder(text) for shard in corpus for _, text in read_documents(Path(shard.name), shard.format)]
    stream = [token for ids in documents for token in (ids if bos == "document" else ids[1:])]
    text = f" {' '.join(map(str, stream))} "
    end = 0
    rows = rows_of(corpus, encoder, tmp_path, bos=bos, rows=9)
    assert rows.shape == (9, 32)
    for row in rows.tolist():
        inside = " ".join(map(str, row[1:] if bos == "every" else row))
        place = text.find(f" {inside} ", end)
        assert place >= end, f"a row is no stretch of the documents behind the row before it: {row}"
        end = place + len(inside)
    assert rows.equal(rows_of(corpus, encoder, tmp_path, bos=bos, rows=9)), "other rows the second time"


@pytest.mark.parametrize("files", ["a file each", "one file"])
def test_a_set_ordered_by_source_is_judged_by_all_its_sources(shard_of, bytes_encoder, tmp_path, files):
    sources = {word: about(word, 40) for word in ("river", "stone", "forum", "novel", "sonnet")}
    if files == "one file":
        shard_of("all.jsonl", [text for texts in sources.values() for text in texts])
    else:
        for number, texts in enumerate(sources.values()):
            shard_of(f"{number}.jsonl", texts)
    shards = listing_of(str(tmp_path / "corpus")).shards
    found = words_of(rows_of(shards, bytes_encoder, tmp_path, length=64, rows=10), bytes_encoder)
    met = {word: sum(word in row for row in found) for word in sources}
    assert all(1 <= count <= 4 for count in met.values()), f"ten rows hold of five sources of one size {met}"


def test_a_file_gives_rows_by_its_bytes(shard_of, bytes_encoder, tmp_path):
    shard_of("0.jsonl", about("river", 30))
    shard_of("1.jsonl", about("stone", 270))
    shards = listing_of(str(tmp_path / "corpus")).shards
    found = words_of(rows_of(shards, bytes_encoder, tmp_path, length=64, rows=20), bytes_encoder)
    small = sum("river" in row for row in found)
    assert 1 <= small <= 3, f"a tenth of the text gives {small} of 20 rows"


@pytest.mark.parametrize("order", [("long", "short"), ("short", "long")])
def test_sources_of_one_file_give_rows_by_their_text_and_not_by_their_documents(
    shard_of, bytes_encoder, tmp_path, order
):
    sources = {"long": about("novel", 20, 2000), "short": about("reply", 2000, 2)}
    shard_of("all.jsonl", [text for source in order for text in sources[source]])
    shards = listing_of(str(tmp_path / "corpus")).shards
    found = words_of(rows_of(shards, bytes_encoder, tmp_path, rows=40), bytes_encoder)
    long = sum("novel" in row for row in found)
    assert 35 <= long <= 37, f"twenty long documents, 240,000 of 264,000 characters, give {long} of 40 rows"


class Watched(ShardCache):
    """Knows what was opened: the names of files."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.opened: list[str] = []

    def open(self, shard, group=None):
        self.opened.append(shard.path)
        return super().open(shard, group)


NO_TEXT = [{"text": " "}, *[{"text": None, "x": "y" * 200}] * 20, {"text": "a"}]


@pytest.mark.parametrize(
    ("odd", "documents", "most"),
    [
        (range(0), [], 10),
        (range(35, 50), "excluded", 16),
        (range(10, 18), "excluded", 14),
        (range(15), "excluded", 16),
        ((25,), about("river", 1, 6000), 10),
        (range(47, 50), NO_TEXT, 14),
    ],
    ids=[
        "all alike",
        "the end excluded",
        "the middle excluded",
        "the beginning excluded",
        "one long document",
        "hardly a text at the end",
    ],
)
def test_of_many_files_few_are_opened(shard_of, bytes_encoder, tmp_path, odd, documents, most):
    """Ten rows of fifty files: also where a stretch of files has no text, or nearly none, for the rows placed there."""
    river = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in about("river", 20)]
    book = [{**record, "meta": {"redpajama_set_name": "RedPajamaBook"}} for record in river]
    for number in range(50):
        shard_of(f"{number:02d}.jsonl", (book if documents == "excluded" else documents) if number in odd else river)
    said = []
    shards = listing_of(str(tmp_path / "corpus"), exclude_domains=("RedPajamaBook",), say=said.append).shards
    cache = Watched(tmp_path / "cache")
    assert rows_of(shards, bytes_encoder, cache, length=64, rows=10).shape == (10, 64)
    opened = sorted(set(cache.opened))
    assert len(opened) <= most, f"for ten rows {len(opened)} files were opened: {opened}"
    with_text = [name for name in opened if int(name[:2]) not in odd]
    assert int(with_text[0][:2]) < 20 and int(with_text[-1][:2]) >= 30, f"ten rows stand in {with_text}"


def test_where_every_file_was_read_for_a_row_places_are_by_text_alone(shard_of, bytes_encoder, tmp_path):
    """Of two files the larger is excluded: the set is not tokenized whole, and its rows come from all of the other."""
    river = [f"{number:05d} river" for number in range(10_000)]
    shard_of("0.jsonl", [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in river])
    shard_of("1.jsonl", [{"text": text * 2, "meta": {"redpajama_set_name": "RedPajamaBook"}} for text in river])
    shards = listing_of(str(tmp_path / "corpus"), exclude_domains=("RedPajamaBook",)).shards
    encoded = []

    class Counting:
        tokenizer, bos = bytes_encoder.tokenizer, bytes_encoder.bos

        def __call__(self, text):
            encoded.append(text)
            return bytes_encoder(text)

    rows = rows_of(shards, Counting(), tmp_path, rows=10)
    begins = [int(bytes_encoder.tokenizer.decode(row).split("<s>")[1][:5]) for row in rows]
    gaps = [after - before for before, after in pairwise(begins)]
    assert all(abs(gap - 1000) <= 2 for gap in gaps), f"rows begin in documents {begins} of 10,000"
    assert len(encoded) < 100, f"{len(encoded)} documents were tokenized for ten rows"


def test_one_long_document_gives_rows_from_all_of_it(shard_of, bytes_encoder, tmp_path):
    path = shard_of("long.jsonl", [" ".join(map(str, range(100_000, 190_000)))])
    shards = listing_of(str(path.parent)).shards
    tracemalloc.start()
    rows = rows_of(shards, bytes_encoder, tmp_path, length=70, rows=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    numbers = [int(bytes_encoder.tokenizer.decode(row, skip_special_tokens=True).split()[1]) for row in rows]
    gaps = [after - before for before, after in pairwise(numbers)]
    assert len(rows) == 8 and min(gaps) > 5_000 and numbers[-1] > 170_000, f"rows stand at {numbers}"
    assert peak < 40 * path.stat().st_size, f"{peak:,} bytes were held for 8 rows of {path.stat().st_size:,} bytes"


def test_excluded_documents_are_passed_over(shard_of, bytes_encoder, tmp_path):
    """A quarter of the set is left out: a place in it goes on at the next document that is not."""

    def domain(name, texts):
        return [{"text": text, "meta": {"redpajama_set_name": name}} for text in texts]

    shard_of("0.jsonl", domain("RedPajamaC4", about("river", 150)))
    shard_of("1.jsonl", domain("RedPajamaBook", about("novel", 50)))
    shards = listing_of(str(tmp_path / "corpus"), exclude_domains=("RedPajamaBook",)).shards
    found = words_of(rows_of(shards, bytes_encoder, tmp_path, length=64, rows=6), bytes_encoder)
    assert len(found) == 6 and not any("novel" in row for row in found), found
    nothing = [replace(shard, exclude_domains=("RedPajamaC4", "RedPajamaBook")) for shard in shards]
    for rows in (None, 4):
        with pytest.raises(RegrowError, match="0 tokens in all"):
            rows_of(nothing, bytes_encoder, tmp_path, rows=rows)


def test_a_bos_that_the_tokenizer_lacks_is_refused(corpus, tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.bos_token = None
    with pytest.raises(RegrowError, match=r"evaluate\.perplexity\.held_out\.bos is every"):
        rows_of(corpus, make_encoder(tokenizer), tmp_path, bos="every", rows=1)


@pytest.mark.parametrize("rows", [None, 4])
def test_too_little_held_out_text_is_refused(shard_of, encoder, tmp_path, rows):
    path = shard_of("a.jsonl", ["one short text"])
    with pytest.raises(RegrowError, match=r"data\.held_out: \d+ tokens in all, not one row of 512"):
        rows_of(listing_of(str(path.parent)).shards, encoder, tmp_path, length=512, rows=rows)


@pytest.mark.parametrize("kind", ["text", "ids"])
@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_one_row_is_found_exactly_where_there_is_one(shard_of, encoder, tmp_path, bos, kind):
    """A set of n tokens under a policy has a row of n, and none of n + 1: as many as are drawn."""
    texts = ["one short text", "another", "and a third one"]
    path = shard_of("a.jsonl" if kind == "text" else "a.tar", texts)
    if kind == "ids":
        write_tokenised(path, map(encoder, texts), about=about_encoder(encoder))
    shards = [shard(path, tokenised=kind == "ids")]
    of_text = sum(len(encoder(text)) - 1 for text in texts)
    length = of_text + {"document": len(texts), "every": 1, "none": 0}[bos]
    assert rows_of(shards, encoder, tmp_path, length=length, bos=bos).shape == (1, length)
    require_one_row(shards, encoder, [RowsAsked("a.key", length, bos)], tmp_path)
    both = [RowsAsked("a.key", length, bos), RowsAsked("b.key", length + 1, bos)]
    with pytest.raises(RegrowError, match=rf"not one row of b\.key \({length + 1}\); add documents to it, or lower"):
        require_one_row(shards, encoder, both, tmp_path)


@pytest.mark.parametrize("rows", [None, 3])
def test_remote_shards_give_the_rows_of_local_ones_and_no_copy_stays(remote, corpus, encoder, cache, tmp_path, rows):
    """From a cache with room for one shard at a time; nobody has counted the documents of the remote ones."""
    far = [remote(number) for number in range(5)]
    limited = ShardCache(cache.folder, limit=max(shard.bytes for shard in far), attempts=2, wait=0.002)
    assert rows_of(far, encoder, limited, rows=rows).equal(rows_of(corpus, encoder, tmp_path, rows=rows))
    left = [path.name for path in cache.folder.iterdir() if path.suffix != ".sha256"]
    assert left == [], f"held-out shards stayed in the cache: {left}"


def test_of_many_remote_files_only_those_with_a_row_are_fetched(shard_of, bytes_encoder, server, cache, tmp_path):
    names = [f"{number:02d}.jsonl" for number in range(40)]
    for name in names:
        server.files[f"/h/{name}"] = shard_of(name, about("river", 12)).read_bytes()
    shards = [listing_of(f"{server.address}/h/{name}").shards[0] for name in names]
    server.requests.clear()
    assert rows_of(shards, bytes_encoder, cache, length=64, rows=5).shape == (5, 64)
    fetched = [number for number, name in enumerate(names) if server.bodies(f"/h/{name}")]
    assert 5 <= len(fetched) <= 10 and max(fetched) > 30, f"for five rows files {fetched} were fetched"
    assert all(server.bodies(f"/h/{name}") <= 1 for name in names), "a file was fetched twice"


def test_of_remote_parquet_only_row_groups_with_a_row_are_fetched(parquet, encoder, server, cache):
    server.files["/h/rows.parquet"] = parquet.read_bytes()
    shards = listing_of(f"{server.address}/h/rows.parquet").shards
    assert shards[0].groups == (30, 30, 20)
    kept = [text for _, text in read_documents(parquet, "parquet")]
    server.requests.clear()
    row = rows_of(shards, encoder, cache, rows=1)[0].tolist()
    # The middle of 80 documents is a third into the second group: there by its text.
    place = sum(map(len, kept[30:60])) // 3
    index = next(index for index in range(30, 60) if sum(map(len, kept[30 : index + 1])) > place)
    begin = place - sum(map(len, kept[30:index]))
    stream = [token for text in kept[index:60] for token in encoder(text)]
    skip = int(begin / len(kept[index]) * len(encoder(kept[index])))
    assert row == stream[skip : skip + 32], "the row does not begin at its place in the group's text"
    fetched = [path.name for path in cache.folder.glob("*.sha256")]
    assert len(fetched) == 1 and "-1-" in fetched[0], f"more than the second row group was fetched: {fetched}"
