"""The `pairsan` command: parse, make one call, print the answer. Begin with `main`; flags come from the settings."""
