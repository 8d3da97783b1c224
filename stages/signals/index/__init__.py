"""What an index promised of the data, and what came. Begin with `promises`; `join` finds rows, `vectors` compares pictures."""
