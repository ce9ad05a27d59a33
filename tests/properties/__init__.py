"""Properties that hold for every network: random DAGs of layers, their subnets, and independent references."""
