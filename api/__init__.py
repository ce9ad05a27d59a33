"""The driver: the calls that need frontends, passes and back ends together."""
