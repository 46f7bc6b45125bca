"""The models that a recipe names: found, their headers, configurations and adapters read; no tensor is."""
