"""Training: data, loss terms, averaging, the loop, and the recipes of the shipped models."""
