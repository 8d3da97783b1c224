"""Questions to a run or a sealed round, answered as text or JSON; nothing is written but what a command names."""
