"""One row per output tensor: what it is made of, with which parameters, by which arithmetic."""
