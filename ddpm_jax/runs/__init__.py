"""A run's directory: its configuration, its checkpoints and their seals, its averages."""
