"""The trainer: views, losses, batches of a sealed round, and the models that learn. Begin with `learner.Learner`.

May import `score`, `read` and the nouns; neither `label` nor `export`.
"""
