"""PyTorch front end: modules and exported programs to the neutral graph, edits back into a module or a program."""
