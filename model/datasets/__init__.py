"""From interaction logs to training samples: the simulator, the sources, the prepared columns."""
