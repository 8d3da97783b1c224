"""From counts to one decision, and from that to every row's label. Begin with `decide.decide`.

The cut is chosen in `decide` by what `fit` makes of the counts, rows are labelled in `label_table`. May import
`signals`, `score` and the nouns; neither `train` nor `export`.
"""
