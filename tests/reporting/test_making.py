"""How a model was made and is loaded, in words that a card may have."""

import pytest

from pipeline.reporting.making import date_words, load_lines, public_command


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("regrow run /home/me/secret/a.yaml train.tokens=1e6", "regrow run a.yaml train.tokens=1e6"),
        ("regrow run c.yaml model.path=/srv/secret/dense run.folder=/srv/secret", "model.path=dense run.folder=secret"),
        ("regrow run c.yaml 'data.sources=[{path: /srv/private/a}, {path: b}]'", "[{path: a}, {path: b}]'"),
        ("regrow run c.yaml model.path=owner/model", "model.path=owner/model"),
    ],
)
def test_a_public_command_tells_no_folder_of_this_machine(command, public):
    found = public_command(command)
    assert found.endswith(public), found
    assert "/srv" not in found and "/home" not in found


def test_no_command_is_none():
    assert public_command(None) is None and date_words(None) is None


def test_dates_are_words_and_what_is_none_stays():
    assert date_words("2026-11-27T14:40:29+0000") == "27 November 2026, 14:40 (UTC)"
    assert date_words("2026-11-27T14:40:29+0530") == "27 November 2026, 14:40 (UTC+05:30)"
    assert date_words("yesterday") == "yesterday"


def test_a_folder_with_quotes_is_still_python():
    lines = load_lines('runs/a "b"', {"loader": "AutoModelForImageTextToText", "custom_code": ["own.py"]})
    compile("\n".join(lines), "card", "exec")
    assert lines[1] == ('model = AutoModelForImageTextToText.from_pretrained("runs/a \\"b\\"", trust_remote_code=True)')
