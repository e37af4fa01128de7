"""Who may do what, and what nobody else may know: secrets. Speaks to no network but the bus."""
