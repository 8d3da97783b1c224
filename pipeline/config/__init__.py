"""The settings of a command (`load`), by name (`profiles`), and which code made a result (`provenance`). Imports `stages`."""
