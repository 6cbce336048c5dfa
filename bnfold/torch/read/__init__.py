"""From a trace to the neutral graph."""
