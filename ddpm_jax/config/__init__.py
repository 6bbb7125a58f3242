"""A run's configuration: frozen dataclasses whose fields are checked when they are made."""
