"""Who is where and in which order passes are done; devices and cores of a node. Nearly all pure."""
