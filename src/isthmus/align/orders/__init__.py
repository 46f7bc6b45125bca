"""Which order is best: evidence from weights and activations, and assignments over the levels of a space."""
