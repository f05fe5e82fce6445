"""What grows with the number of nodes, on one machine: nodes are simulated, the wire is real."""
