"""From a graph back to ``nn.Module``."""
