"""What speaks for or against a pair beside its cosine; `manifests.schema` lists the fields. Begin with `write_signals`.

Repeats by hash (`repeats`, `shingles`), neighbours in a sample (`sample`, `neighbourhood`), near copies (`near_copies`), what
`witnesses` say together, what an index promised (`index`). May import `score`, `read` and the nouns.
"""
