"""The launching agent for the stages that are due: what it and its ranks will need is imported once, at the start."""

from __future__ import annotations

import os
from collections.abc import Collection

from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.launch import Place
from pipeline.stages.stage import load_stage

#: What a process imports at its first model and tokenizer.
AT_FIRST_MODEL = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
)


def warm_agent(due: Collection[str], config: Config, place: Place) -> Agent:
    """An agent for the stages that are ``due``, whose modules are imported here now; it is started where we launch.

    To be called before anything is computed: the agent is a fork of this process.
    """
    agent = Agent([f"pipeline.stages.{name}" for name in ("preflight", *due)] if due else ())
    if place.launcher is None and any(load_stage(name).launched(config) for name in due):
        # DeepSpeed settles, as it is imported, whether there is a GPU. Where there may be one a rank alone can ask.
        trains_on_cpu = "train" in due and os.environ.get("DS_ACCELERATOR") == "cpu"
        for_training = ["deepspeed", *(["peft"] if config.train.method == "lora" else [])]
        agent.warm([*AT_FIRST_MODEL, *(for_training if trains_on_cpu else [])])
    return agent
