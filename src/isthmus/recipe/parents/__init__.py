"""The models that a recipe names: found, opened, headers, configurations and adapters read, their bytes hashed."""
