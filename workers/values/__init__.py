"""Values that hold others: nested ones taken apart and put together, tensors in flat memory."""
