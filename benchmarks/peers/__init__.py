"""bnfold beside the optimisers that people have: `python -m benchmarks.peers`."""
