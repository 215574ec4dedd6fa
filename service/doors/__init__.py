"""Who and what is let in: keys and their scopes, and the limits of a connection before there is a request."""
