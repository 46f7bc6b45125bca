"""What a recipe asks for beyond its rows, checked; what a plan holds, takes and says.

Torch is imported where a recipe has models aligned, repaired or measured, and nowhere else.
"""
