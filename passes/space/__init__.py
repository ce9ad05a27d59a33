"""From the facts of the walk to families, frozen axes, and a space of configs."""
