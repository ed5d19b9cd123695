"""Stage data: list the corpus and the held-out documents once, check them, and pin what they are.

It tokenises ahead where the config asks for it, and says how long the corpus lasts for the planned budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checks import check_texts
from pipeline.config import Config
from pipeline.data.corpus.crew import Crew
from pipeline.data.corpus.listing import Listing, list_source
from pipeline.data.corpus.local import local_files
from pipeline.data.corpus.overlap import held_out_hashes, refuse_overlap, write_hashes
from pipeline.data.corpus.survey import Survey, survey
from pipeline.data.corpus.tokenising import tokenise_corpus
from pipeline.data.formats.documents import format_for, format_of
from pipeline.data.formats.tokenised import is_tokenised, require_same_ids
from pipeline.data.progress import Progress
from pipeline.data.shards import Shard, build_manifest
from pipeline.data.sources import may_be_remote, no_such_place
from pipeline.data.stream.held_out import require_one_row
from pipeline.data.stream.parts import deal
from pipeline.data.texts import counted
from pipeline.data.tokens import about_encoder, encoder_hash
from pipeline.errors import RegrowError
from pipeline.files import write_json
from pipeline.inputs import HELD_OUT_HASHES, Inputs, held_out_asked, read_encoding, text_source
from pipeline.launch import cores, die_with_parent
from pipeline.places import check_ids
from pipeline.run import Run
from pipeline.stages.dealing import lanes_for
from pipeline.stages.stage import Ahead, Stage
from pipeline.world import World

#: So many special tokens' strings are named.
SHOWN = 5


def inputs(config: Config, run: Run) -> dict[str, str]:
    """The files of local sources by their content; a remote source is named by the config. Of ids, what made them."""
    files: list[Path] = []
    of_ids = config.data.tokenised is not None
    for source in (text_source(config, key) for key in config.data.texts):
        here = local_files(source.path, source.files)
        if here is None and not may_be_remote(source.path):
            raise no_such_place(source)
        base, names = here or (Path(), [])
        found = [base / name for name in names if format_for(source, name) is not None]
        tars = (path for path in found if format_of(path.name) == "tar")
        of_ids = of_ids or source.format == "tokenised" or (source.format == "auto" and any(map(is_tokenised, tars)))
        files += found
    hashes = {str(path): run.hash_of(path) for path in files}
    if of_ids:
        hashes["tokenizer and separator"] = encoder_hash(Inputs(config, run).encoder)
    return hashes


@dataclass(frozen=True)
class Found:
    """What stands in the corpus's sources and among the held-out text, and the hashes of held-out documents."""

    sources: list[Listing]
    apart: list[Listing]
    hashes: dict[bytes, str]

    @property
    def corpus(self) -> list[Shard]:
        return [shard for listing in self.sources for shard in listing.shards]

    @property
    def held_out(self) -> list[Shard]:
        return [shard for listing in self.apart for shard in listing.shards]

    @property
    def skipped(self) -> list[dict[str, str]]:
        return [entry for listing in (*self.sources, *self.apart) for entry in listing.skipped]


def work(config: Config, run: Run, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    """Write data/manifest.json, and the tokenised corpus where data.tokenised says so."""
    folder, text = run.stage("data"), Inputs(config, run)
    found = _list(config, run, text, say)
    _refuse(config, text, found)
    _keep_for_later(folder, found, say)
    corpus, damaged = found.corpus, []
    if config.data.tokenised is not None:
        corpus, damaged = _tokenise(config, text, found, say)
    manifest = build_manifest(corpus, found.held_out, [*found.skipped, *damaged])
    lanes = lanes_for(config, corpus)
    dealt = deal(corpus, lanes, config.data.seed)
    surveys = _survey(text, corpus, found.sources)
    write_json(folder / "manifest.json", manifest | {"lanes": lanes})
    if config.data.lanes == "auto":
        say(f"data.lanes auto: {lanes:,}")
    return _tell(config, corpus, found.sources, surveys, say) | {
        "shards": len(corpus),
        "lanes": lanes,
        "parts": sum(len(source.parts) for source in dealt),
        "bytes": sum(shard.bytes for shard in corpus),
        "held_out_shards": len(found.held_out),
        "skipped": manifest["skipped"],
        "manifest": manifest["hash"],
    }


def _list(config: Config, run: Run, text: Inputs, say: Callable[[str], None]) -> Found:
    """List the held-out text first, so that the corpus is searched for it as it is read."""
    with Progress(run.stage("data") / "progress" / "shards.jsonl") as progress:

        def listed(key: str, kept: Mapping[bytes, str] | None = None, what: str = "") -> Listing:
            return list_source(
                text_source(config, key),
                held_out=kept,
                hash_of=run.hash_of,
                done=progress,
                say=lambda line: say(what + line),
            )

        apart = [listed(key, what="held-out ") for key in config.data.texts if key == "data.held_out"]
        held_out = [shard for listing in apart for shard in listing.shards]
        if held_out:
            require_one_row(held_out, text.encoder, held_out_asked(config), text.cache)
        hashes = held_out_hashes(held_out, text.cache)
        if hashes:
            say(f"the corpus will be searched for {len(hashes):,} held-out documents")
        return Found([listed(key, hashes) for key in config.data.texts if key != "data.held_out"], apart, hashes)


def _refuse(config: Config, text: Inputs, found: Found) -> None:
    """RegrowError on ids of another tokenizer, on too many lanes, and on documents that are held out too."""
    about = about_encoder(text.encoder)
    for shard in (*found.corpus, *found.held_out):
        if shard.format == "tokenised" and shard.kind == "local":
            require_same_ids(Path(shard.place) / shard.path, shard.name, about)
    if config.data.tokenised is None or all(shard.documents is not None for shard in found.corpus):
        # Before the hours begin; of unknown lengths tokenising tells.
        deal(found.corpus, lanes_for(config, found.corpus), config.data.seed)
    refuse_overlap(twin for listing in found.sources for twin in listing.twins)


def _keep_for_later(folder: Path, found: Found, say: Callable[[str], None]) -> None:
    """Keep the hashes for those who read remote text later, and say what is not searched yet, or never."""
    later = sum(shard.kind != "local" and shard.format != "tokenised" for shard in found.corpus)
    if found.hashes and later:
        write_hashes(folder / HELD_OUT_HASHES, found.hashes)
        say(f"{later} shards are searched for held-out documents when they are fetched")
    unseen = sum(shard.format == "tokenised" for shard in (*found.corpus, *found.held_out))
    if found.held_out and unseen:
        say(f"{unseen} shards hold token ids, which cannot be searched for held-out documents")


def _tokenise(
    config: Config, text: Inputs, found: Found, say: Callable[[str], None]
) -> tuple[list[Shard], list[dict[str, str]]]:
    """The corpus as token ids, and the shards that turned out to be damaged."""
    data = config.data
    processes = cores() if data.tokenise_processes == "auto" else data.tokenise_processes
    corpus, damaged = tokenise_corpus(
        found.corpus,
        read_encoding(config, text.model),
        data.tokenised,
        cache=text.cache,
        crew=Crew(processes, die_with_parent, say),
        on_damage=data.on_damage,
        held_out=found.hashes,
    )
    for number, source in enumerate(data.sources):
        if not of_source(corpus, number):
            raise RegrowError(f"data.sources.{number} {source.path!r}: every shard of it is damaged; replace them")
    return corpus, damaged


def of_source(corpus: list[Shard], number: int) -> list[Shard]:
    """The shards of one source."""
    return [shard for shard in corpus if shard.source == number]


def _survey(text: Inputs, corpus: list[Shard], listings: list[Listing]) -> list[Survey]:
    data = text.config.data
    kept = [
        listing.census and listing.census.characters_without(source.exclude_domains)
        for listing, source in zip(listings, data.sources, strict=True)
    ]
    return [
        survey(of_source(corpus, number), text.encoder, text.cache, count, data.on_damage)
        for number, count in enumerate(kept)
    ]


def _tell(
    config: Config, corpus: list[Shard], listings: list[Listing], surveys: list[Survey], say: Callable[[str], None]
) -> dict[str, Any]:
    """What the corpus is: printed for people, returned for the stage's record."""
    counts = [shard.documents for shard in corpus]
    domains: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    without_text = sum((Counter(dict(shard.without_text)) for shard in corpus), Counter())
    for listing, source in zip(listings, config.data.sources, strict=True):
        for name, count in (listing.census.domains if listing.census else {}).items():
            (left_out if name in source.exclude_domains else domains)[name] += count
    documents = None if None in counts else sum(counts) - left_out.total() - without_text.total()
    if documents == 0:
        gone = ", ".join(f"{count:,} of {name}" for name, count in left_out.most_common()) or counted(without_text)
        raise RegrowError(
            f"data.sources: not one document is left to train on ({gone} left out); look at exclude_domains of each "
            "source"
        )
    tokens = sum(each.tokens for each in surveys)
    known = "an unknown number of" if documents is None else f"{documents:,}"
    about = "" if all(each.exact for each in surveys) else "about "
    say(f"corpus: {len(corpus)} shards, {known} documents, {about}{tokens:,} tokens")
    if domains:
        listed = ", ".join(f"{name} {count / domains.total():.1%}" for name, count in domains.most_common())
        say(f"domains, by documents: {listed}")
    for name, count in left_out.most_common():
        say(f"left out: {count:,} documents of {name}")
    special = _special_strings(surveys, config.data.special_tokens, say)
    speeds = [each.tokens_per_second for each in surveys if each.tokens_per_second]
    if speeds:
        say(f"one process tokenizes {min(speeds):,.0f} tokens/s")
    for source, each, share in zip(config.data.sources, surveys, _passes(config, corpus, surveys), strict=True):
        if each.without_text:
            say(f"{source.path}: {counted(each.without_text)} in the shard that was looked into, all to be left out")
        say(
            f"{source.path}: {about}{each.tokens:,} tokens, which the budget of {config.train.tokens:,} reads "
            f"{share:.2f} times"
        )
    return {
        "documents": documents,
        "domains": dict(domains),
        "left_out": dict(left_out),
        "without_text": dict(sorted(without_text.items())),
        "tokens": tokens,
        "tokens_estimated": bool(about),
        "tokens_per_second": min(speeds, default=None),
        "special_strings": dict(special.most_common()),
        # Not how often the budget reads them: another budget does not make this stage anew.
        "source_tokens": [each.tokens for each in surveys],
    }


def _passes(config: Config, corpus: list[Shard], surveys: list[Survey]) -> Iterator[float]:
    """How often the budget reads each source through: a text when its share is as long as it is, instruction data when
    it has a row for each record (where their number is known; else as if rows had no padding)."""
    sources = config.data.sources
    for number, (source, each) in enumerate(zip(sources, surveys, strict=True)):
        share = source.weight / sum(one.weight for one in sources)
        counts = [shard.documents for shard in of_source(corpus, number)]
        if source.format == "instruction" and None not in counts:
            yield config.train.tokens / config.data.row_length * share / sum(counts)
        else:
            yield config.train.tokens * share / max(each.tokens, 1)


def _special_strings(surveys: list[Survey], policy: str, say: Callable[[str], None]) -> Counter[str]:
    """The strings of special tokens in the sampled documents; where there are some, it is said what they become."""
    special = sum((Counter(each.special) for each in surveys), Counter())
    if special:
        listed = ", ".join(f"{string} {count:,}" for string, count in special.most_common(SHOWN))
        become = "the tokens themselves" if policy == "parse" else "ordinary text"
        say(
            f"special tokens' strings: {special.total():,} in {sum(each.holding for each in surveys):,} of "
            f"{sum(each.sampled for each in surveys):,} sampled documents ({listed}); data.special_tokens is "
            f"{policy}: they become {become}"
        )
    return special


def check(ahead: Ahead) -> list[str]:
    """Whether there is text to read, and a place for its ids."""
    if not ahead.elsewhere:
        check_ids(ahead.config)
    return check_texts(ahead.config, ahead.elsewhere)


STAGE = Stage(
    "data",
    upstream=(),
    format=3,
    readable=2,
    work=work,
    inputs=inputs,
    launched=lambda config: False,
    check=check,
    reads_model=True,
    progress_fits_any_config=True,
)
