"""What can be seen of single requests: traces, log lines that name them, slow requests."""
