"""Each verb for each kind of model: what the public functions and the command call."""
