"""Other tools that score image-caption pairs, run on the same shards with the same weights."""
