"""From features to probabilities: batches of requests through the engine, with the states of users kept."""
