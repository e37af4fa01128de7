"""Usage and budgets on the bus."""
