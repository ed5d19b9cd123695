"""The page is one whole file: well-formed, alone in the world, safe with any text, honest about gaps."""

import math
import re
from html.parser import HTMLParser

import pytest

from pipeline.reporting import figures, render_page
from pipeline.reporting.page import block_states, headline, perplexity_rows, recovered
from pipeline.run import RegrowError

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Reads a page with a stack of open elements, and collects its attributes and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> never closed" for tag in self.stack]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " "
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.stack or self.stack[-1] != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes {self.stack[-1:]}")
        else:
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.text += data


def render(inputs, folder):
    html = render_page(**inputs, out=folder).read_text(encoding="utf-8")
    page = Page(html)
    page.words = " ".join(page.text.split())
    return html, page


def test_whole_page_is_well_formed_with_its_pictures(made_up, tmp_path):
    html, page = render(made_up, tmp_path / "report")
    assert page.faults == []
    assert html.startswith("<!DOCTYPE html>")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids are unique over the whole page"
    assert page.tags.count("svg") == 4, "each figure for wide and narrow windows"
    for name in ("block-importance.png", "learning-curve.png"):
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG"), name
    assert html == render(made_up, tmp_path / "again")[0], "the same records give the same page"


def test_page_loads_nothing_from_outside(made_up, tmp_path):
    html, page = render(made_up, tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}>"
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith("#"), f"<{tag} {name}={value}>"
    assert not re.search(r"@import|url\((?!#)|https?:|src=", html), "no address in styles or text"


def test_both_themes_define_every_colour_of_the_figures(made_up, tmp_path):
    html, _ = render(made_up, tmp_path)
    dark = html[html.index("prefers-color-scheme: dark") : html.index("box-sizing")]
    for name in figures.COLOURS:
        assert html.count(f"--fig-{name}:") == 2, f"--fig-{name} is defined for light and dark"
        assert f"--fig-{name}:" in dark


def test_results_stand_on_the_page(made_up, tmp_path):
    _, page = render(made_up, tmp_path)
    text = page.words.replace("\u202f", " ")
    for expected in (
        "9 of 30 blocks removed, 23.7 % fewer parameters.",
        "from 68.60 to 22.10 after 123 k tokens of training; the dense model has 14.03.",
        "length 256, BOS policy: document, 20.5 k tokens",
        "134.5 M",
        "102.7 M",
        "\u00d7 1.58",
        "12 prompt + 64 new tokens, batch 1",
        "7.6e13",
        "6 x parameters x tokens",
        "SmolLM2 dequantised from 4 bits",
        "9,833 documents",
        "learning_rate: 0.0003",
        "deepspeed",
        "Removed: 6, 9, 10, 13, 17, 19, 21, 23, 24, counted from 0",
    ):
        assert expected in text, f"missing: {expected}"
    for sample in made_up["results"]["models"]["regrown"]["generation"]["samples"]:
        assert sample["text"].strip() in text
    assert "Not evaluated" not in text and "not recorded" not in text.lower()


@pytest.fixture(scope="module")
def whole_words(made_up_once, tmp_path_factory):
    """The words of the page that has everything."""
    return render(made_up_once, tmp_path_factory.mktemp("whole"))[1].words


HOSTILE = "</p></main><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'{{ 7*7 }}</style>"


def test_hostile_text_stays_text(made_up, tmp_path):
    made_up["name"] = made_up["config_yaml"] = made_up["provenance"]["data_note"] = HOSTILE
    made_up["cost"]["hardware"]["processor"] = HOSTILE
    made_up["prune"]["self_test"] = {"note": HOSTILE}
    samples = made_up["results"]["models"]["pruned"]["generation"]["samples"]
    samples[0] = {"prompt": HOSTILE, "text": HOSTILE}
    _, page = render(made_up, tmp_path)
    assert page.faults == []
    assert not {"script", "img"} & set(page.tags), "no element came in with the text"
    assert page.text.count(HOSTILE) == 7, "title, heading, prompt, sample, hardware, note and config as they were given"


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ({"held_out": []}, "No held-out evaluation was recorded during training."),
        ({"metrics": []}, "No training steps were recorded."),
        ({"metrics": [], "held_out": []}, "No held-out evaluation was recorded during training."),
        ({"scores": None}, "No block scores were recorded"),
        ({"results": None}, "Not evaluated in this run: dense, pruned, regrown."),
        ({"results": {"models": {}}}, "Held-out perplexity was not measured."),
        ({"cost": None}, "No training was recorded."),
        ({"config_yaml": ""}, "The configuration was not recorded."),
        ({"provenance": None}, "Text not recorded"),
    ],
)
def test_missing_parts_are_said(made_up, whole_words, tmp_path, gap, said):
    assert said not in whole_words, "the whole page does not say so"
    _, page = render(made_up | gap, tmp_path)
    assert page.faults == []
    assert said in page.words, f"the page says: {said}"


def test_missing_regrown_results_are_said(made_up, tmp_path):
    del made_up["results"]["models"]["regrown"]
    _, page = render(made_up, tmp_path)
    assert "Not evaluated in this run: regrown." in page.words
    assert "68.60 after pruning; the regrown model was not measured" in page.words
    assert page.words.count("not generated") == 2, "both samples lack the regrown text"


def test_the_least_that_can_be_reported(made_up, tmp_path):
    _, page = render({"name": "bare", "prune": made_up["prune"]}, tmp_path)
    assert page.faults == []
    assert "svg" not in page.tags
    assert "9 of 30 blocks removed" in page.words


def test_values_that_are_not_finite_do_not_end_the_report(made_up, tmp_path):
    made_up["results"]["models"]["pruned"]["perplexity"]["held_out"]["value"] = math.inf
    made_up["held_out"][0]["held_out_perplexity"] = math.inf
    made_up["metrics"][3]["loss"] = math.nan
    _, page = render(made_up, tmp_path)
    assert page.faults == []
    assert "from not finite to 22.10" in page.words


def test_perplexities_measured_differently_never_share_a_row(made_up):
    models = made_up["results"]["models"]
    assert [sorted(row["values"]) for row in perplexity_rows(models)] == [["dense", "pruned", "regrown"]]
    models["dense"]["perplexity"]["held_out"]["length"] = 128
    rows = perplexity_rows(models)
    assert [(row["length"], sorted(row["values"])) for row in rows] == [(256, ["pruned", "regrown"]), (128, ["dense"])]


def test_a_curve_measured_differently_from_the_table_is_said(made_up, whole_words, tmp_path):
    said = "read the dashed lines as a guide"
    assert said not in whole_words
    made_up["held_out"][0]["held_out_perplexity"] = 60.0
    assert said in render(made_up, tmp_path)[1].words


def test_scores_of_another_model_are_refused(made_up, tmp_path):
    made_up["scores"]["criteria"]["ppl"]["scores"] = [15.0] * 24
    with pytest.raises(RegrowError, match="different models"):
        render_page(**made_up, out=tmp_path)


def test_tasks_get_a_table_of_their_own(made_up, tmp_path):
    made_up["results"]["models"]["dense"]["tasks"] = {"piqa": {"acc": 0.6812, "alias": "piqa"}}
    _, page = render(made_up, tmp_path)
    assert "piqa acc 0.6812 not measured not measured" in page.words


def test_blocks_given_by_hand_are_not_ascribed_to_the_scores(made_up, tmp_path):
    made_up["prune"]["criterion"] = None
    assert "The blocks were not chosen by these scores." in render(made_up, tmp_path)[1].words


def test_small_pieces(made_up):
    states = block_states(made_up["prune"])
    assert [states.count(s) for s in ("kept", "removed", "protected")] == [15, 9, 6]
    assert recovered({"dense": math.e, "pruned": math.e**3, "regrown": math.e**1.5}) == pytest.approx(0.75)
    assert recovered({"dense": 14.0, "pruned": 68.0}) is None
    assert headline(made_up["prune"], {}, {}).endswith("Held-out perplexity was not measured.")
