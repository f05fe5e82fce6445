"""Pure, or nearly: devices and cores of a node, who is where, and in which order passes are done."""
