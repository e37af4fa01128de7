"""How callers speak to the bus; `client.py` is made of it."""
