"""A recipe (mergekit's YAML, and one block of our own) to a checked plan, to a merged folder.

    recipe.yml --language--> Recipe --parents, tokens, rows, output, planning--> Plan --running--> folder

Everything up to the plan is plain data: torch is imported when the plan runs. Each sub-room imports from those before
it in this line only, `inspection` (of finished models) from `parents` and `language`; the files beside them see all.
"""

from isthmus.recipe.language.reading import read
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.plan import Plan, plan

__all__ = ["Plan", "Recipe", "plan", "read"]
