"""A plan as people and programs read it: a picture, tables, plain values, memory."""
