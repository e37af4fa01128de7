"""Faults of FAULTS.md on real nodes; what a node is for a test is that of the end-to-end tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
