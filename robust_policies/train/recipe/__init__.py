"""What a recipe may say, section by section, and how one is read."""

from robust_policies.train.recipe.recipe import Recipe, load_recipe, parse_recipe, set_value

__all__ = ["Recipe", "load_recipe", "parse_recipe", "set_value"]
