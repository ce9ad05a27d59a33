"""A graph in, something that runs out."""
