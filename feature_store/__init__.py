"""The contract and the data: what an event, a user, an author is; where they live; how they stay fresh."""
