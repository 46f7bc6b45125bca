"""The language of recipes: YAML, mergekit's words and ours, what is wrong with a text. No model is looked at."""
