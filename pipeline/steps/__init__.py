"""The steps of a round, each of which looks first at what is there: `plan`, `score`, `signals`, `count`, `seal`.

May import `workers`, `config` and `stages`; `pipeline.rounds` calls them in order.
"""
