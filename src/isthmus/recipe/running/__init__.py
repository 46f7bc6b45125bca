"""A plan done: jobs for the engine, models aligned, repaired and measured on the way, a look at what came out."""
