"""Accuracy at a budget: coppice beside its peers, with the same starts, optimisation steps and achieved cost."""
