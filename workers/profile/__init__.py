"""A run's own model, data, loss and optimizer, profiled on one device; `profiled` is the door."""
