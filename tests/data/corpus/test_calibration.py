"""Calibration sequences: a draw that depends on its seed alone, the same as ever, under each BOS policy."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data.corpus.calibration import calibration_sequences
from pipeline.data.formats.documents import read_documents
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import Shard
from pipeline.data.tokens import load_tokenizer, make_encoder
from pipeline.errors import RegrowError
from pipeline.files import hash_json
from tests.data.corpora import listing_of


def draw(corpus, encoder, tmp_path, *, sequences=10, length=32, bos="document", seed=0):
    return calibration_sequences(
        corpus, encoder, sequences=sequences, length=length, bos=bos, seed=seed, cache=tmp_path
    )


@pytest.mark.parametrize("bos", ["document", "every", "none"])
def test_crops_are_where_they_say_and_follow_the_bos_policy(corpus, encoder, tmp_path, bos):
    ids, origins = draw(corpus, encoder, tmp_path, bos=bos)
    assert ids.shape == (10, 32)
    assert len({(origin["shard"], origin["document"]) for origin in origins}) == 10, "a document was drawn twice"
    assert len({origin["shard"] for origin in origins}) == 5, "the draw does not spread over the shards"
    shards = {shard.name: shard for shard in corpus}
    for row, origin in zip(ids.tolist(), origins, strict=True):
        shard = shards[origin["shard"]]
        text = dict(read_documents(Path(shard.name), shard.format))[origin["document"]]
        document = encoder(text)[:-1] if bos == "document" else encoder(text)[1:-1]
        crop = row[1:] if bos == "every" else row
        assert document[origin["offset"] : origin["offset"] + len(crop)] == crop, f"{origin} is another crop"
        inner = row[1:] if bos == "every" or (bos == "document" and origin["offset"] == 0) else row
        assert (row[0] == encoder.bos) == (inner is not row), f"BOS policy {bos}"
        assert encoder.bos not in inner and encoder.separator not in row
    if bos == "document":
        # The shortest documents leave one place for a crop of all their tokens: it begins with their BOS.
        longest = max(len(encoder(text)) - 1 for _, text in read_documents(Path(corpus[1].name), "jsonl"))
        whole, _ = draw(corpus[1:2], encoder, tmp_path, sequences=1, length=longest)
        assert whole[0, 0] == encoder.bos, "the tokenizer's own BOS was lost"


def test_the_draw_depends_on_its_seed_alone(corpus, encoder, tmp_path):
    first, origins = draw(corpus, encoder, tmp_path)
    again, origins_again = draw(corpus, encoder, tmp_path)
    assert first.equal(again) and origins == origins_again, "the same seed draws something else"
    other, _ = draw(corpus, encoder, tmp_path, seed=1)
    assert not first.equal(other), "another seed draws the same"


@pytest.fixture
def every_kind(shard_of, bytes_encoder, server, tmp_path) -> Callable[..., list[Shard]]:
    """Made-up documents of 1 to 60 words: four local formats, a tokenised shard, a remote parquet of 3 row groups."""
    chance = random.Random(5)

    def texts(count: int) -> list[str]:
        return [
            " ".join(chance.choice(("river", "stone", "market", "bridge")) for _ in range(chance.randint(1, 60)))
            for _ in range(count)
        ]

    for number, ending in enumerate(("jsonl.zst", "jsonl", "jsonl.gz")):
        shard_of(f"part_{number}.{ending}", texts(15 + number))
    for name, size in (("part_3.parquet", 7), ("far.parquet", 9)):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts(25)}), tmp_path / "corpus" / name, row_group_size=size)
    server.files["/c/far.parquet"] = (tmp_path / "corpus" / "far.parquet").read_bytes()
    (tmp_path / "corpus" / "far.parquet").unlink()
    mixed = [
        {"text": text, "meta": {"redpajama_set_name": "RedPajamaBook" if number % 3 else "RedPajamaC4"}}
        for number, text in enumerate(texts(30))
    ]
    shard_of("part_4.jsonl", mixed)
    ids = [bytes_encoder(text) if number % 4 else [] for number, text in enumerate(texts(20))]
    write_tokenised(tmp_path / "ids" / "ids.tar", ids, about={"vocabulary": 300})

    def listed(*names: str) -> list[Shard]:
        shards = [
            *listing_of(str(tmp_path / "corpus"), exclude_domains=("RedPajamaBook",)).shards,
            *listing_of(str(tmp_path / "ids")).shards,
            *listing_of(f"{server.address}/c/far.parquet").shards,
        ]
        return [shard for shard in shards if not names or shard.path in names]

    return listed


#: Recorded from the draw that held every document of a file in memory: the first 16 hex digits of the sha256 of the ids
#: and their origins.
DRAWN = {
    "every file": ((), {"sequences": 12}, "0cea93f43bff1df6"),
    "one file": (("part_3.parquet",), {"sequences": 4}, "3bef7d16197ab734"),
    "excluded documents": (("part_4.jsonl",), {"sequences": 5, "seed": 3}, "913dd5a5af91b84f"),
    "ids": (("ids.tar",), {"sequences": 3, "bos": "none"}, "3d2a9fc82d310ec7"),
    "a remote row group": (("far.parquet",), {"sequences": 2, "seed": 2}, "c7d087b072098f9f"),
    "others make up for one": (("part_4.jsonl", "part_1.jsonl"), {"sequences": 14, "length": 150}, "4c5f8973df3fe60d"),
    "a BOS in every row": (
        ("part_2.jsonl.gz", "ids.tar"),
        {"sequences": 6, "bos": "every", "seed": 9},
        "a4b2375da0658261",
    ),
}


@pytest.mark.parametrize("case", DRAWN)
def test_the_sequences_are_those_that_were_drawn_from_a_whole_file_in_memory(every_kind, bytes_encoder, cache, case):
    names, settings, recorded = DRAWN[case]
    ids, origins = draw(every_kind(*names), bytes_encoder, cache, **{"length": 64} | settings)
    origins = [{**origin, "shard": Path(origin["shard"]).name} for origin in origins]
    assert hash_json([ids.tolist(), origins]).startswith(recorded), f"other sequences, or another order: {origins}"


def test_a_corpus_of_too_few_long_documents_is_refused(corpus, encoder, tmp_path):
    ids, _ = draw(corpus, encoder, tmp_path, sequences=5, length=1000)
    assert ids.shape == (5, 1000), "the five long documents are enough for five sequences"
    with pytest.raises(RegrowError, match=r"only 5 documents .*1000 tokens, and score\.sequences is 6"):
        draw(corpus, encoder, tmp_path, sequences=6, length=1000)
    # One shard short of long documents is made up for by the others.
    ids, origins = draw(corpus, encoder, tmp_path, sequences=40, length=16)
    assert len(ids) == 40 and len({(o["shard"], o["document"]) for o in origins}) == 40


def test_excluded_domains_are_not_drawn(corpus, encoder, tmp_path):
    excluded = [replace(shard, exclude_domains=("RedPajamaWikipedia",)) for shard in corpus]
    with pytest.raises(RegrowError, match="only 0 documents"):
        draw(excluded, encoder, tmp_path)


def test_a_bos_that_the_tokenizer_lacks_is_refused(corpus, tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.bos_token = None
    encoder = make_encoder(tokenizer)
    with pytest.raises(RegrowError, match=r"score\.bos is every, but this tokenizer has no BOS"):
        draw(corpus, encoder, tmp_path, bos="every")


def test_no_copy_stays_of_what_was_read_for_calibration(remote, corpus, encoder, cache, server):
    """From a cache with room for one shard at a time; each is fetched once, though its documents are counted first."""
    far = [remote(number) for number in range(5)]
    limited = ShardCache(cache.folder, limit=max(shard.bytes for shard in far), attempts=2, wait=0.002)
    server.requests.clear()
    assert draw(far, encoder, limited)[0].shape == (10, 32)
    fetched = {shard.path: server.bodies(f"/c/{shard.path}") for shard in corpus if shard.format != "parquet"}
    assert set(fetched.values()) == {1}, f"shards were fetched so many times: {fetched}"
    left = [path.name for path in cache.folder.iterdir() if path.suffix != ".sha256"]
    assert left == [], f"calibration shards stayed in the cache: {left}"


def test_a_large_file_is_not_held_in_memory(shard_of, bytes_encoder, tmp_path):
    documents = [f"{number} " + "river stone market winter bridge " * 12 for number in range(8000)]
    path = shard_of("large.jsonl", documents)
    shards = listing_of(str(path.parent)).shards
    del documents
    tracemalloc.start()
    ids, _ = draw(shards, bytes_encoder, tmp_path, sequences=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids.shape == (4, 32)
    assert peak < path.stat().st_size / 4, f"{peak:,} bytes were held to draw from a file of {path.stat().st_size:,}"
