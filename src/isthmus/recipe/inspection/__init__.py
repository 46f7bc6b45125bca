"""Models by themselves: what one is, what merges it comes from, how far it is from another."""
