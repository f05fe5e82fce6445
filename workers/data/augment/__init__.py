"""What is done to training images at random, one by one and to a micro-batch; for recipes."""
