"""Events: what they are, the durable log they enter by, and the workers that merge them."""
