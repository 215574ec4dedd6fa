"""HTTP load from a process of its own: a closed loop of clients, or Poisson arrivals."""
