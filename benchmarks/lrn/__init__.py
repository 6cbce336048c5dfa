"""What LRN and BN do for small networks on real images: accuracy, latency, and the claims behind BN."""
