"""Where nodes meet, and what other programs that start processes say of this one."""
