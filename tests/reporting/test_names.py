"""Names on a public page: the Hub's whole, of folders the last part."""

from pipeline.reporting.names import public_name, text_name


def test_public_names(tmp_path):
    assert public_name("owner/model") == "owner/model"
    assert public_name(str(tmp_path / "dense")) == "dense"
    assert public_name("s3://bucket/folder/text/") == "text"
    assert public_name(None) is None


def test_texts_are_called_what_they_are(tmp_path):
    of_hub = {"dataset": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1", "split": "test", "revision": "main"}
    assert text_name(of_hub) == "Salesforce/wikitext, wikitext-2-raw-v1, test"
    assert text_name({"path": str(tmp_path / "forums.jsonl")}) == "forums.jsonl"
    assert text_name({"path": "hf://datasets/owner/text/held"}) == "owner/text"
    assert text_name({"sha256": "0"}) is None
