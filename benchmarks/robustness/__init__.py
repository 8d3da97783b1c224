"""Does it do the same whatever happens: kills, other commits, other schedulers, other number formats."""
