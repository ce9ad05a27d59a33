"""Budgets, scores and the allocator."""
