"""What `robust-policies list` shows."""

from __future__ import annotations

from enum import StrEnum


class Listing(StrEnum):
    """What `list` can show."""

    envs = "envs"
    recipes = "recipes"
    policies = "policies"
    attacks = "attacks"
    perturbations = "perturbations"
    suites = "suites"
    quantities = "quantities"


_SIZES = {"none": "", "needed": "@SIZE", "possible": "[@SIZE]"}


def entries_of(what: Listing) -> dict[str, str]:
    """Return {name: one line about it}."""
    from robust_policies.files import assets

    if what is Listing.envs:
        from robust_policies.envs import ENV_IDS, load_plant
        from robust_policies.envs.registration import IDENTIFIED

        lines = {env_id: load_plant(_task_of(env_id)).task.description for env_id in ENV_IDS}
        return {**lines, IDENTIFIED: "A model made by `identify`, given as model=DIR (kwargs: {model: DIR})."}
    if what is Listing.recipes:
        from robust_policies.train import load_recipe

        return {
            name: load_recipe(assets.recipes_folder() / f"{name}.yaml").description for name in assets.recipe_names()
        }
    if what is Listing.policies:
        from robust_policies.networks import known_cells

        return {name: (cell.__doc__ or "").strip().splitlines()[0] for name, cell in known_cells().items()}
    if what is Listing.quantities:
        from robust_policies.evaluation.quantities import QUANTITIES

        return {name + _SIZES[one.size]: one.what for name, one in QUANTITIES.items()}
    from robust_policies.evaluation.attacks import ATTACKS
    from robust_policies.evaluation.noise import DESCRIPTIONS, PERTURBATIONS

    if what is Listing.attacks:
        return dict(ATTACKS)
    if what is Listing.suites:
        from robust_policies.evaluation.suite import suite_lines

        return suite_lines()
    return {name: DESCRIPTIONS[name] for name in PERTURBATIONS} | _wrapper_lines()


def _wrapper_lines() -> dict[str, str]:
    """Return {wrapper: what it does and its parameters}, for `--perturb` and a recipe's `task.perturbations`."""
    from robust_policies.envs.perturb import table

    lines: dict[str, str] = {}
    for row in table():
        unit = f" [{row.unit}]" if row.unit else ""
        begun = lines.get(row.perturbation, f"wrapper: {row.summary.rstrip('.')}; ")
        separator = "" if begun.endswith("; ") else ", "
        lines[row.perturbation] = f"{begun}{separator}{row.parameter}{unit}"
    return lines


def _task_of(env_id: str) -> str:
    import gymnasium

    return gymnasium.spec(env_id).kwargs["task"]
