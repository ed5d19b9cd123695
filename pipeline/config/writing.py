"""Writing the tree: a resolved config as YAML, its JSON schema for editors, and the page of all keys."""

from __future__ import annotations

import io
import json
import re

from pydantic.fields import FieldInfo

from pipeline.config.keys import fields
from pipeline.config.perplexity import TextSection
from pipeline.config.reading import yaml_reader
from pipeline.config.tree import Config, Source


def dump_config(config: Config) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal tree."""
    out = io.StringIO()
    writer = yaml_reader(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    plain = config.model_dump(mode="json")
    # YAML 1.1 called these line breaks, and the reader still does: with one of them, write everything escaped.
    writer.allow_unicode = not re.search("[\x85\u2028\u2029\ufeff]", json.dumps(plain, ensure_ascii=False))
    # ruamel folds escaped text at the wrong places: what it wrote would be read as something else.
    writer.width = 1 << 30
    writer.dump(plain, out)
    return out.getvalue()


def json_schema() -> str:
    """The tree's JSON schema, for editors; a file may leave required keys to the one that it extends."""
    schema = Config.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Config that this one changes, relative to it."}
    for name, part in [("", schema), *schema["$defs"].items()]:
        if name != Source.__name__:
            part.pop("required", None)
    return json.dumps(schema, indent=2, ensure_ascii=False)


def key_page() -> str:
    """docs/config.md: what the table means, and the table."""
    return (
        "# Configuration keys\n\n"
        "One YAML file, one tree; a file states only what differs from these defaults. `extends: other.yaml` takes\n"
        "another file's keys first. `section.key=value` on the command line wins over files. A source is an item of\n"
        "`data.sources` (`data.sources.0.path` in an override), and so is `data.held_out`. A text stands under a name\n"
        "of your own in `evaluate.perplexity` (`evaluate.perplexity.wikitext2.length`).\n\n"
        "*From* says where a default comes from: the mission's recipe, a paper's code, or our own choice.\n\n"
        f"{key_table()}\n"
        "This page is generated: `python -c 'from pipeline.config import key_page; print(key_page(), end=\"\")' > "
        "docs/config.md`\n"
    )


def key_table() -> str:
    """A Markdown table of every key, its default, the default's source, and what may differ on a resume."""
    lines = ["| key | default | from | may differ on resume | what it is |", "| --- | --- | --- | --- | --- |"]
    for dotted, field in fields(Config):
        lines.append(_row(dotted, field))
        if dotted == "data.held_out":
            lines += [_row(f"source: {name}", inner) for name, inner in fields(Source)]
        if dotted == "evaluate.perplexity.held_out.rows":
            lines += [_row(f"text: {name}", inner) for name, inner in fields(TextSection)]
    return "\n".join(lines) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    default = "required" if field.is_required() else f"`{_plain(field.default)}`"
    what = field.description.replace("|", "\\|")
    return f"| `{name}` | {default} | {extra['source']} | {'yes' if extra['free'] else ''} | {what} |"


def _plain(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str, ensure_ascii=False)
