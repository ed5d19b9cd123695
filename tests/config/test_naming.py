"""Keys of a config beside an error of the library: those that it is about, once, and all of them there."""

from __future__ import annotations

import pickle
import re

import pytest

from pipeline.config import load_config
from pipeline.config.keys import fields
from pipeline.config.naming import KEYS, name_keys
from pipeline.config.tree import Config
from pipeline.errors import RegrowError
from pipeline.stages.sequence import run_of
from pipeline.stages.told import told
from tests import ROOT
from tests.config.kit import LEAST, write


def test_the_keys_are_a_config_s_and_what_errors_are_about_has_some():
    known = {dotted for dotted, _ in fields(Config)}
    named = {key for keys in KEYS.values() for key in keys.split(", ")}
    assert named <= known, f"no keys of a config: {named - known}"
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    assert set(re.findall(r'about="(\w+)"', sources)) | {"scoring"} == set(KEYS)


def test_keys_are_named_once_and_only_of_errors_that_are_about_something():
    plain, about = RegrowError("gone"), RegrowError("not installed", about="attention")
    for _ in range(2):
        name_keys(plain)
        name_keys(about)
    assert (str(plain), str(about)) == ("gone", "not installed (in a config: model.attention)")
    carried = pickle.loads(pickle.dumps(RegrowError("not installed", about="attention")))
    assert (str(carried), carried.about) == ("not installed", "attention"), "a process told another what it is about"


def test_a_stage_names_the_keys_and_the_log_has_them(tmp_path):
    run = run_of(load_config(write(tmp_path / "least.yaml", LEAST), [f"run.folder={tmp_path}"]))
    with pytest.raises(RegrowError, match=r"again in float32 \(in a config: score\.dtype\)$"), told("score", run):
        raise RegrowError("score again in float32", about="scoring")
    assert "(in a config: score.dtype)" in (run.folder / "log.txt").read_text()
