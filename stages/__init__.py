"""The work on shards: reading pairs, scoring them, signals, labels, training, export. Torch lives here, ray never.

Rooms, from the ground up: `read`, `score`, `signals`, then `label`, `train` and `export`, which know nothing of each other. The
root holds the nouns that all of them use; begin with `pair` and `stage`.
"""
