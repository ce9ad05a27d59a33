"""From a config to the small graph that computes what the masked full graph computes."""
