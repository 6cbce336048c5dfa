"""Front ends: each turns models of one kind into the neutral graph and carries out the edits of a plan."""
