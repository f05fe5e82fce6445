"""Who does how many micro-batches: what each rank has computed, told to all, and what follows."""
