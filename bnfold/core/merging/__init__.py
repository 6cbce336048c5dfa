"""Linear layers that become one: those of one tensor that are added, and those in a row."""
