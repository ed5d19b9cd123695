"""The page is one whole file: well-formed, alone in the world, safe with any text, honest about gaps."""

import math
import re

import pytest

from pipeline.errors import RegrowError
from pipeline.reporting import Records, drawing, notation, render_page
from pipeline.reporting.comparison import overlap, ways_of
from pipeline.reporting.model_rows import perplexity_rows, recovered
from pipeline.reporting.notation import MINUS
from pipeline.reporting.page import block_states, headline
from tests.reporting.made_up import made_up_task, made_up_tasks
from tests.reporting.reading import render


def test_whole_page_is_well_formed_with_its_pictures(whole):
    html, page, folder, inputs = whole
    assert page.faults == []
    assert html.startswith("<!DOCTYPE html>")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids are unique over the whole page"
    ways = len(overlap(inputs["comparison"], ways_of(inputs["comparison"], inputs["prune"]), 30)["rows"])
    # Three figures for wide and narrow windows; small bars of two criteria, two maps, linear windows, two of lines.
    assert page.tags.count("svg") == 6 + 2 + 2 + 1 + 2 + ways
    named = re.search(r"Pictures on their own: ([^<]+)\.", html).group(1).split(", ")
    assert sorted(named) == sorted(path.name for path in folder.glob("*.png")) and len(named) == 6
    for name in named:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


def test_the_same_records_give_the_same_page(worded, compared, tmp_path):
    inputs = worded | {"comparison": compared["comparison"] | {"removals": []}}  # drawings have a test of their own
    assert render(inputs, tmp_path / "one")[0] == render(inputs, tmp_path / "two")[0]


def test_page_loads_nothing_from_outside(whole):
    html, page, _, _ = whole
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    embedded = 0
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}>"
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            inside = tag == "image" and value.startswith("data:image/png;base64,")
            embedded += inside
            assert inside or value.startswith("#"), f"<{tag} {name}={value[:60]}>"
    assert embedded == 4, "two heat maps, each with its cells and its key as images in the page"
    assert not re.search(r"@import|url\((?!#)|https?:|src=", html), "no address in styles or text"


def test_both_themes_define_every_colour_of_the_figures(whole):
    html = whole[0]
    dark = html[html.index("prefers-color-scheme: dark") : html.index("box-sizing")]
    for name in drawing.COLOURS:
        assert html.count(f"--fig-{name}:") == 2, f"--fig-{name} is defined for light and dark"
        assert f"--fig-{name}:" in dark
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svgs), "no colour of one theme alone"


def test_results_stand_on_the_page(whole):
    _, page, _, made_up = whole
    text = page.words.replace("\u202f", " ")
    for expected in (
        "9 of 30 blocks removed, 23.7 % fewer parameters.",
        "from 68.60 (64.1 to 73.4) to 22.10 (20.7 to 23.6) after 123 k tokens of training; the dense model has 14.03 (",
        "Each forward had 8 rows of a text; another number rounds otherwise.",
        "134.5 M",
        "102.7 M",
        "Measure Dense 00000000, bfloat16 Pruned 11111111, bfloat16 Regrown 11111111, bfloat16 Blocks",
        "of 128 tokens (BOS policy: document, sha256 aaaaaaaa), drawn with seed 1234, by weights 00000000, bfloat16",
        "sha256 cccccccc, length 256, BOS policy: document, 20.5 k tokens",
        "22.10 20.7 to 23.6 \u00d7 1.58 (1.57 to 1.58)",
        "Ranges below perplexities are 95 % intervals over the choice of rows, in brackets of the ratio, on the same",
        "Folder runs/made-up/train/exports/step-00000060 Trained until 27 November 2026, 14:40 (UTC)",
        "Command regrow run configs/made-up.yaml train.tokens=122880",
        'model = AutoModelForCausalLM.from_pretrained("runs/made-up/train/exports/step-00000060")',
        f"regrown {'1' * 64} computing in bfloat16 held-out text {'c' * 64}",
        "\u00d7 1.58",
        "12 prompt + 64 new tokens, batch 1",
        "3.83 s to 4.11 s",
        "Latency is the median of 5 runs, beside it the fastest and the slowest.",
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


def test_criteria_stand_on_the_page(whole):
    _, page, _, inputs = whole
    text = page.words.replace("\u202f", " ")
    for expected in (
        "Whiskers: 95 % interval over the sequences, of what is added on each.",
        "What follows: of each such pair either choice is as good",
        "Chosen by ppl, one-shot.",
        "The choice is partly within noise",
        "exactly this set in 41 % of the draws",
        "Least for 9 blocks: blocks 12\u201320, 0.450.",
        "Linear maps in place of 9 blocks",
        "the lowest held-out perplexity before training is",
        "This run chose by ppl, one-shot: 67.62 without its linear maps, below every control",
        "3 (10 %)",
        "9 (30 %)",
        "ppl, one-shot this run 24.73 22.26 67.62 60.86",
        "not finite",
        "32 held-out rows of 256 tokens (BOS policy: document, sha256 cccccccc); 10 calibration sequences of 128 "
        "tokens (BOS policy: document, sha256 aaaaaaaa); the dense model's weights: 00000000, bfloat16",
        "free to go share 9 \u00d7 9 / 24 = 3.4 on average",
        "greedy has a perplexity that is lower at k = 1\u20133, 5\u201312 (11 of 12) and higher at k = 4 (1 of 12)",
        "Folded: 9, 10 into block 8. Fitted on 5.12 k tokens.",
        "Blocks left out 67.62 60.10",
        "Replaced by linear maps 58.93 50.20",
    ):
        assert expected in text, f"missing: {expected}"
    for one in inputs["comparison"]["sets"]:
        if one["remove"] in inputs["comparison"]["removals"]:
            for value in one["perplexity"].values():
                assert notation.perplexity(value) in text, f"{one['by']} at {one['remove']}: {value}"


#: The head of a table of models: below a name its weights.
NAMED = "Dense 00000000, bfloat16 Pruned 11111111, bfloat16 Regrown 11111111, bfloat16"
HOSTILE = "</p></main><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'{{ 7*7 }}</style>"


def test_hostile_text_stays_text(worded, tmp_path):
    worded["name"] = worded["config_yaml"] = worded["provenance"]["data_note"] = HOSTILE
    worded["cost"]["hardware"]["processor"] = HOSTILE
    worded["prune"]["self_test"] = {"note": HOSTILE}
    samples = worded["results"]["models"]["pruned"]["generation"]["samples"]
    samples[0] = {"prompt": HOSTILE, "text": HOSTILE}
    _, page = render(worded, tmp_path)
    assert page.faults == []
    assert not {"script", "img"} & set(page.tags), "no element came in with the text"
    assert page.text.count(HOSTILE) == 7, "title, heading, prompt, sample, hardware, note and config as they were given"


def test_a_text_that_was_left_out_is_said(made_up, tmp_path):
    made_up["results"]["left_out"] = {"perplexity": {"c4": "data set allenai/c4 cannot be had (a: b)"}}
    _, page = render(made_up, tmp_path)
    assert "Perplexity on c4 was not measured: data set allenai/c4 cannot be had." in page.text


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
    assert said in render(made_up | {"scores": None, "metrics": []}, tmp_path)[1].words


def test_scores_of_another_model_are_refused(made_up, tmp_path):
    made_up["scores"]["criteria"]["ppl"]["scores"] = [15.0] * 24
    with pytest.raises(RegrowError, match="different models"):
        render_page(Records(**made_up), tmp_path)


def test_tasks_get_a_table_of_their_own(worded, tmp_path):
    worded["results"]["models"]["dense"]["tasks"] = {"piqa": made_up_task(0.6812)}
    _, page = render(worded, tmp_path)
    assert f"Multiple choice {NAMED} piqa acc, 200 items 68.1 ± 3.0 not measured not measured" in page.words


def test_what_is_generated_stands_apart_and_is_said_above(worded, tmp_path):
    worded["results"] |= made_up_tasks(worded["results"]["models"])
    _, page = render(worded, tmp_path)
    assert "Multiple choice, mean of 7 tasks: 50.0 dense, 40.0 pruned, 45.0 regrown." in page.words
    assert "Generated answers: 34.0 dense, 4.0 pruned, 4.0 regrown." in page.words
    assert f"Generated answers {NAMED} sums exact_match, first number, 200 items 34.0 ± 3.0" in page.words
    assert f"4.0 ± 3.0 {MINUS}30.0, p < 0.001 on pruned same, p 1" in page.words
    assert f"mean of 7 50.0 ± 1.1 40.0 ± 1.1 {MINUS}10.0 45.0 ± 1.1 {MINUS}5.0" in page.words


def test_small_pieces(made_up):
    states = block_states(made_up["prune"])
    assert [states.count(s) for s in ("kept", "removed", "protected")] == [15, 9, 6]
    assert recovered({"dense": math.e, "pruned": math.e**3, "regrown": math.e**1.5}) == pytest.approx(0.75)
    assert recovered({"dense": 14.0, "pruned": 68.0}) is None
    assert headline(made_up["prune"], None, None).endswith("Held-out perplexity was not measured.")
