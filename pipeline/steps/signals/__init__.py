"""Signals of a round, as steps that resume. Begin with `add.add_signals`."""
