"""How records stand in files: JSON Lines, tar, parquet, and token ids."""
