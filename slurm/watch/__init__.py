"""Signs of life between the nodes of a job, and the request that its run stops."""
