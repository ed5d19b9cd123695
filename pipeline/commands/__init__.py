"""Commands that only read and tell: what a run will cost, where it stands, what a step saw."""
