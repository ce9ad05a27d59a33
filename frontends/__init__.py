"""Anything in, a graph out."""
