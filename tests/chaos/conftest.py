"""Faults of FAULTS.md on real nodes; what a node is for a test is that of the end-to-end tests, what a cluster is that of all."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "e2e"), str(Path(__file__).parents[1])]
