"""The referee: the same poisoned shards, model, seeds and number of pairs for every defence, and what came of each."""
