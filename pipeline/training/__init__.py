"""Continued pretraining: engine, loop, schedule, checkpoints and metrics."""
