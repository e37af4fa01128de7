"""Public names for authors of functions. Imports nothing but the worker's own modules, so that a sandbox can import it."""
