"""What a command does, one file per verb; begin with `rounds`, the story of a round.

From the top: `cli`, `training`, the verbs of this folder, `pages`, `queries`, `steps`, `workers`, `config`.
"""
