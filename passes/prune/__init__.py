"""Choosing units in one shot: scores and the allocator."""
