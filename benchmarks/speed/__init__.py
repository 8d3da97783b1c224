"""How fast it is, as ratios of things run side by side: `python -m benchmarks.speed.clean` and so on."""
