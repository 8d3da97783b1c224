"""The plan: command line, settings, rounds, executors."""
