"""The whole configuration as one typed, frozen tree.

A YAML file (optionally extending others) and dotted overrides are parsed here once, checked, and handed to the
stages. Nothing here imports torch, so that ``regrow --help`` and a mistyped key answer at once.
"""

from pipeline.config.keys import ConfigError, fields
from pipeline.config.pruning import CUTS, PruneSection
from pipeline.config.reading import load_config
from pipeline.config.recorded import completed, load_written, recalled
from pipeline.config.tree import STAGES, Config, Source, steps_of
from pipeline.config.writing import dump_config, json_schema, key_page, key_table

__all__ = [
    "CUTS",
    "STAGES",
    "Config",
    "ConfigError",
    "PruneSection",
    "Source",
    "completed",
    "dump_config",
    "fields",
    "json_schema",
    "key_page",
    "key_table",
    "load_config",
    "load_written",
    "recalled",
    "steps_of",
]
