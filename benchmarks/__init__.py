"""What is measured, against what, in one run each. `python -m benchmarks.fold_speed` and so on."""
