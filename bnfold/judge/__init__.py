"""The judge: run two models on the same inputs and compare what comes out."""
