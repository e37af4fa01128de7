"""Sandboxes, workers and who gets one."""
