"""Everything that speaks NATS; the one home of nats-py on the node's side."""
