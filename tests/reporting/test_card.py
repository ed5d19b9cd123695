"""The model card's front matter is what the Hub reads, and its text what a user must know."""

import ast
import io
import re

import pytest
from ruamel.yaml import YAML

from pipeline.evaluation.tasks.definitions import SHORTENED_LLM
from pipeline.reporting import Records, render_card
from tests.reporting.made_up import made_up_tasks


def card_of(inputs, **changes):
    """The card's front matter, parsed, and its text with plain spaces."""
    keys = ("name", "prune", "results", "scores", "cost", "provenance")
    recipe = {"tokens": 122_880, "learning_rate": 3e-4, "schedule": "cosine", "max_hours": None}
    made = inputs["made"] | {key: changes.pop(key) for key in ("loader", "custom_code") if key in changes}
    recipe = changes.pop("recipe", recipe)
    text = render_card(Records(**{key: inputs[key] for key in keys} | {"made": made} | changes), recipe=recipe)
    assert text.startswith("---\n")
    _, front, body = text.split("---\n", 2)
    return YAML(typ="safe").load(io.StringIO(front)), body.replace("\u202f", " ")


def test_the_first_sentence_says_that_a_model_was_healed(made_up):
    for healed in (False, True):
        made_up["cost"]["train"]["healed"] = healed
        _, body = card_of(made_up)
        assert ("removed, healed by least squares towards the dense model's states, then trained" in body) is healed


def test_front_matter_holds_what_the_hub_reads(made_up):
    front, _ = card_of(made_up)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert front["tags"] == ["regrow", "depth-pruning"]
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en"]
    assert "datasets" not in front, "a local file is no data set of the Hub"
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert result["metrics"] == [
        {
            "type": "perplexity",
            "name": "perplexity (sha256 cccccccc, length 256, BOS policy: document, 20.5\u202fk tokens)",
            "value": 22.1,
        }
    ]
    assert result["task"]["type"] == "text-generation" and result["dataset"]["type"] == "held_out"


def test_how_to_load_it_is_true_of_the_folder(made_up):
    front, body = card_of(made_up)
    assert front["pipeline_tag"] == "text-generation"
    assert 'AutoModelForCausalLM.from_pretrained(".")' in body and "no custom code is needed" in body
    _, body = card_of(made_up, custom_code=["configuration_own.py", "modeling_own.py"])
    assert body.count('from_pretrained(".", trust_remote_code=True)') == 2, "model and tokenizer"
    assert "code of its own (configuration\\_own.py, modeling\\_own.py)" in body and "no custom code" not in body
    front, body = card_of(made_up, loader="AutoModelForImageTextToText")
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "import AutoModelForImageTextToText, AutoTokenizer" in body and "AutoModelForCausalLM" not in body


def test_unknown_fields_are_left_out(made_up):
    made_up["provenance"] |= {"license": None, "language": None, "model": "/somewhere/private/dense"}
    del made_up["results"]["models"]["regrown"]
    front, body = card_of(made_up)
    assert set(front) == {"library_name", "pipeline_tag", "tags"}
    assert "The license is not recorded here" in body
    assert "The regrown model was not evaluated." in body
    assert "/somewhere" not in body, "no path of this machine in a public card"


def test_hub_name_of_a_local_copy_and_hub_data_sets(made_up):
    made_up["provenance"] |= {
        "model": ".cache/demo/model",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": [
            {"path": "hf://datasets/cerebras/SlimPajama-627B/train", "documents": None},
            {"path": "owner/text", "documents": 3},
        ],
    }
    front, _ = card_of(made_up)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["datasets"] == ["cerebras/SlimPajama-627B", "owner/text"]


def test_tasks_stand_in_the_front_matter_as_the_hub_reads_them(made_up):
    made_up["results"] |= made_up_tasks(made_up["results"]["models"])
    front, body = card_of(made_up)
    results = {one["dataset"]["type"]: one for one in front["model-index"][0]["results"]}
    assert list(results) == ["held_out", *SHORTENED_LLM, "sums"]
    (metric,) = results["sums"]["metrics"]
    assert metric == {"type": "exact_match, first number", "name": f"{metric['type']} (200 items)", "value": 0.04}
    assert "Generated answers: 34.0 dense, 4.0 pruned, 4.0 regrown." in body
    assert "No downstream task" not in body


def test_tasks_stand_with_what_changed_and_with_their_mean(made_up):
    made_up["results"] |= made_up_tasks(made_up["results"]["models"])
    _, body = card_of(made_up)
    rows = {line.split("|")[1].strip(): line for line in body.splitlines() if line.startswith("|")}
    (sums,) = [row for name, row in rows.items() if name.startswith("sums (exact")]
    cells = [cell.strip() for cell in sums.split("|")[2:5]]
    assert cells[0] == "34.0 ± 3.0", "dense is compared with nothing"
    assert re.fullmatch(r"4\.0 ± 3\.0 \(\u221230\.0, p (<|&lt;|\\<) 0\.001\)", cells[1]), cells
    assert cells[2].endswith("0.001; on pruned same, p 1)"), cells
    assert "mean of 7" in rows and rows["mean of 7"].count("\u2212") == 2, "the mean, or its change, is missing"
    assert "()" not in body


def test_words_that_yaml_would_turn_stay_words(made_up):
    made_up["provenance"] |= {"language": ["no", "en"], "license": "mit: \"x\" # 'y'"}
    front, _ = card_of(made_up, name='1e-4: "odd" - name')
    assert front["language"] == ["no", "en"]
    assert front["license"] == "mit: \"x\" # 'y'"
    assert front["model-index"][0]["name"] == '1e-4: "odd" - name'


def test_text_says_what_a_user_must_know(made_up):
    _, body = card_of(made_up)
    for expected in (
        "9 of its 30 transformer blocks removed, then trained on 123 k tokens",
        "counted from 0 in the base model: 6, 9, 10, 13, 17, 19, 21, 23, 24",
        "Protected from removal: 0, 1, 2, 3, 28, 29",
        "Criterion: ppl, on 10 calibration sequences of 128 tokens (BOS policy: document, sha256 aaaaaaaa), drawn with "
        "seed 1234, by weights 00000000, bfloat16",
        "Parameters: 134.5 M before, 102.7 M after",
        "document, 20.5 k tokens) | 14.03 (13.1 to 15.0) | 68.60 (64.1 to 73.4) | 22.10 (20.7 to 23.6) |",
        "In brackets: 95 % intervals over the choice of rows.",
        f"- Weights, regrown: sha256 `{'1' * 64}` (of the hashes of their files), computing in bfloat16",
        f"- Text, held-out text: sha256 `{'c' * 64}`",
        "**Marie Curie was**",
        "- regrown: a French scientist and writer.",
        "- Date: 27 November 2026, 14:40 (UTC)",
        "- Command: `regrow run made-up.yaml train.tokens=122880`",
        "- Hardware: processor made-up processor, cores 2",
        "training took away 71 %",
        "- Tokens: 123 k in 60 steps",
        "7.6e13 FLOPs",
        "| learning\\_rate | 0.0003 |",
        "SmolLM2 dequantised from 4 bits",
        "The dense model was dequantised from 4 bits",
        "a demonstration, not a full recovery",
        "No downstream task was measured.",
    ):
        assert expected in body, f"missing: {expected}"
    assert "max" not in body, "settings that are unset are not listed"


def test_the_card_says_how_the_blocks_were_chosen_and_what_a_control_does(compared):
    measured = {"without_map": {"held_out": 67.62}, "with_map": {"held_out": 58.93}}
    compared["prune"]["linear"] = {"runs": [{"blocks": [9, 10], "folded_into": 8}], "tokens": 9, "perplexity": measured}
    _, body = card_of(compared, comparison=compared["comparison"])
    for expected in (
        "The blocks were chosen by ppl, selection: one-shot.",
        "Each block's score has a 95 % bootstrap interval",
        "The choice is partly within noise",
        "exactly this set in 41 % of the draws, and 93 % of it on average.",
        "folded into the kept ones (blocks 9, 10 into block 8).",
        "Before training, held-out perplexity is 58.93 with the maps, 67.62 without.",
        "With 9 blocks removed and no training, the best control (random) has a held-out perplexity of 284.6;",
        "this choice has 67.62 without its maps.",
    ):
        assert expected in body, f"missing: {expected}"


def test_an_older_record_adds_no_words_on_the_choice(made_up):
    _, body = card_of(made_up)
    assert "selection" not in body and "bootstrap" not in body and "control" not in body


def test_tables_are_whole(made_up):
    """Every table's rows follow each other and have as many cells as its head."""
    made_up["results"] |= made_up_tasks(made_up["results"]["models"])
    _, body = card_of(made_up)
    tables = re.findall(r"(?:^\|.*\|\n)+", body, flags=re.MULTILINE)
    assert len(tables) == 3, "perplexities, tasks, recipe"
    for table in tables:
        rows = table.splitlines()
        assert len(rows) > 2 and re.fullmatch(r"[| :-]+", rows[1]), table
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, f"uneven cells in\n{table}"


def test_loading_takes_three_lines_of_transformers_alone(made_up):
    _, body = card_of(made_up)
    code = re.search(r"```python\n(.*?)```", body, flags=re.DOTALL).group(1)
    statements = ast.parse(code).body
    assert len(statements) == 3
    imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
    assert [s.module for s in imports] == ["transformers"]


def test_hostile_values_cannot_break_tables_or_bring_in_html(made_up):
    made_up["provenance"]["data_note"] = "<script>alert(1)</script>\n# heading"
    _, body = card_of(made_up, recipe={"a|b": "x | y\n| z"})
    assert "\n# heading" not in body and not re.search(r"(?<!\\)<script", body)
    assert "| a\\|b | x \\| y \\| z |" in body


@pytest.mark.parametrize("missing", ["results", "scores", "cost", "provenance"])
def test_each_record_may_be_missing(made_up, missing):
    front, body = card_of(made_up, **{missing: None})
    assert front["library_name"] == "transformers"
    said = {
        "results": "Perplexity was not measured.",
        "scores": "Criterion: ppl\n",
        "cost": "No training is recorded.",
        "provenance": "Text: not recorded",
    }
    assert said[missing] in body


def test_a_text_that_was_left_out_is_said(made_up):
    made_up["results"]["left_out"] = {"perplexity": {"c4": "data set allenai/c4 cannot be had (a: b)"}}
    _, body = card_of(made_up)
    assert "Perplexity on c4 was not measured: data set allenai/c4 cannot be had." in body


def test_the_card_names_a_section_s_keys_by_their_dotted_names(made_up):
    lora = {"rank": 8, "alpha": 16.0, "dropout": 0.05, "targets": ["q_proj", "up_proj"]}
    distill = {"teacher": "dense", "samples": None}
    _, text = card_of(made_up, recipe={"method": "lora", "lora": lora, "distill": distill, "max_hours": None})
    assert "| method | lora |" in text and "| lora.rank | 8 |" in text and "| distill.teacher | dense |" in text, text
    assert "max_hours" not in text and "samples |" not in text, text
