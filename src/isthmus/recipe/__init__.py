"""A recipe (mergekit's YAML, and one block of our own) to a checked plan, to a merged folder.

    recipe.yml --reading--> Recipe --headers--> Plan --run--> folder

Everything up to the plan is plain data: torch is imported when the plan runs.
"""

from isthmus.recipe.plan import Plan, plan
from isthmus.recipe.reading import read
from isthmus.recipe.schema import Recipe

__all__ = ["Plan", "Recipe", "plan", "read"]
