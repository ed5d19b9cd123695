"""Tests of tasks: real lm-eval on a tiny model and on items that the tests make, in the fields of public sets."""
