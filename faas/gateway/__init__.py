"""The node's HTTP door."""
