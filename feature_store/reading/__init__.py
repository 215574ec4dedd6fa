"""Reading the store for an answer: one ladder of steps down when it is slow, away or damaged."""
