"""What a process has once: signals and exits, warnings and streams, private copies of modules."""
