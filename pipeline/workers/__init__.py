"""Where stages run: Ray or this process. The only room that imports ray. Begin with `executors`."""
