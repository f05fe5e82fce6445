"""The gradients of a stage, summed over all its replicas; only the trainer comes in."""
