"""One file for each family of samplers: what gives the rows of its table."""
