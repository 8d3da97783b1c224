"""What speaks for or against a pair beside its cosine; `manifests.signals` lists the fields. Begin with `write_signals`.

Repeats by hash (`repeats`, `shingles`), neighbours in a sample (`sample`, `neighbourhood`, `accord`), near copies
(`near_copies`, `joint_doubt`), an independent tower (`witness_tower`). May import `score`, `read` and the nouns.
"""
