"""LRN to BN: find, swap, calibrate, retrain."""
