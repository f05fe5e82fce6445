"""What a step does to the parameters: learning rate, clipping, the optimizer and what it keeps."""
