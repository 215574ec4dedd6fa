"""Who may enter: what a request will cost, when it would be done, and whether there is room for it."""
