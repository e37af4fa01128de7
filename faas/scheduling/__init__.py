"""Policies that decide and do nothing else: no await, no clock, no log."""
