"""How much of the models people use can be analysed, cut and proven: one table, from one run (docs/coverage.md)."""
