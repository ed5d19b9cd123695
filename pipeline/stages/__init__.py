"""The stages, each to be read in one go, and carrying them out in their order."""
