"""Training once, and batch-norm statistics."""
