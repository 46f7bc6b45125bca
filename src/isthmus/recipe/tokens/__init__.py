"""The output's tokens: one vocabulary for models whose tokenizers differ, and the chat template."""
