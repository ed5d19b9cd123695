"""Documents of local files in every format, and of data sets that the library datasets reads or cannot have."""

from __future__ import annotations

import gzip
import json

import pytest

from pipeline.errors import RegrowError
from pipeline.evaluation.texts import TextPlace, Unavailable, documents, local_texts

DOCUMENTS = [" = Title = \n", "", "First text .\n"]


def lines(column="text"):
    return "".join(json.dumps({column: text}) + "\n" for text in DOCUMENTS).encode()


def of(path, **asked):
    return list(documents(TextPlace("evaluate.perplexity.own", str(path), **asked)))


def test_files_give_their_documents_the_empty_ones_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines("sentence")))
    (tmp_path / "wiki.test.raw").write_bytes("Café .\r\n\r\nEnd".encode())
    (tmp_path / "notes.md").write_text("no text of this one")
    assert of(tmp_path / "a.jsonl") == DOCUMENTS
    assert of(tmp_path / "b.jsonl.gz", column="sentence") == DOCUMENTS
    assert of(tmp_path / "wiki.test.raw") == ["Café .\r\n\r\nEnd"], "a plain file is one document, as it is"
    assert of(tmp_path / "[aw]*") == [*DOCUMENTS, "Café .\r\n\r\nEnd"]
    assert [path.name for path in local_texts(TextPlace("k", str(tmp_path)))] == [
        "a.jsonl",
        "b.jsonl.gz",
        "wiki.test.raw",
    ]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RegrowError, match=r"^evaluate\.perplexity\.own\.text '.*/none\.txt': no such file or folder"):
        of(tmp_path / "none.txt")
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(RegrowError, match=r"no file in it that ends in one of \.jsonl, .*\.txt, \.raw, \.tokens"):
        of(tmp_path / "text.json")
    (tmp_path / "latin.txt").write_bytes(b"Caf\xe9")
    with pytest.raises(RegrowError, match=r"latin\.txt: not UTF-8 at byte 3"):
        of(tmp_path / "latin.txt")
    (tmp_path / "null.jsonl").write_bytes(lines() + b'{"text": null}\n')
    with pytest.raises(RegrowError, match=r"record 3 of .*null\.jsonl has no text under 'text' \(null\)"):
        of(tmp_path / "null.jsonl")


def of_hub(dataset, **asked):
    return list(documents(TextPlace("evaluate.perplexity.own", dataset=str(dataset), **asked)))


@pytest.mark.parametrize("offline", [False, True])
def test_a_data_set_is_read_as_the_library_names_it(tmp_path, monkeypatch, offline):
    """A folder stands for the hub: the library takes both by the same call."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "validation.jsonl").write_bytes(lines("sentence"))
    assert of_hub(tmp_path / "set", split="validation", column="sentence") == DOCUMENTS
    for asked, words in (({"split": "validation"}, "no text under 'text'.*has sentence"), ({"split": "test"}, "test")):
        with pytest.raises(Unavailable, match=words):
            of_hub(tmp_path / "set", **asked)


def test_a_data_set_that_cannot_be_had_says_why(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match=r"^data set nobody/nothing-of-the-kind cannot be had \(\w+: .+\)$"):
        of_hub("nobody/nothing-of-the-kind", split="test")
