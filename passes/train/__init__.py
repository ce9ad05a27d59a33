"""Training once: sparse optimizers, and statistics that follow a cut."""
