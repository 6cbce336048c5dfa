"""From local response normalisation to batch norm: find, swap, fit, calibrate, retrain."""
