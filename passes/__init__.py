"""What is done to a graph, one folder a stage, in the order a model meets them."""
