"""The table of recipes counts every seed, and shows means with intervals."""

from results.recipes import make as script
from robust_policies.train import load_recipe


def row(name, seed, reached_steps, reward, gamma, status="PASS"):
    target = load_recipe(name).target
    evaluations = [(reached_steps // 2, 5.0, target.return_ - 1.0), (reached_steps, 10.0 + 2.0 * seed, target.return_)]
    return {
        "recipe": name, "seed": seed, "return": reward, "gamma_raw": gamma, "status": status,
        "evaluations": evaluations,
    }  # fmt: skip


def test_a_line_has_all_seeds_and_their_intervals():
    rows = [
        row("pendulum_r2dn_gamma6", 0, 100_000, -150.0, 12.0),
        row("pendulum_r2dn_gamma6", 1, 120_000, -170.0, 11.9),
    ]
    cells = [cell.strip() for cell in script.line("pendulum_r2dn_gamma6", rows).strip("|").split("|")]
    target = load_recipe("pendulum_r2dn_gamma6").target
    assert cells[:3] == ["`pendulum_r2dn_gamma6`", f"{target.return_:g}, {target.steps:,}", "2 of 2"]
    # Half width of the interval: 12.7062 (Student's t, one degree of freedom) times half the distance.
    assert cells[3] == "110,000 [-17,062, 237,062]"
    assert cells[4] == "11 [-2, 24]"
    assert cells[5] == "-160 [-287, -33]"
    assert cells[6] == "12"


def test_a_seed_that_came_too_late_counts_as_not_reached():
    rows = [
        row("pendulum_lstm", 0, 100_000, -150.0, None, "NOT_CERTIFIED"),
        row("pendulum_lstm", 1, 10**9, -170.0, None),
    ]
    cells = [cell.strip() for cell in script.line("pendulum_lstm", rows).strip("|").split("|")]
    assert cells[2:4] == ["1 of 2", "100,000"]
    assert cells[5].startswith("-160 [")
    assert cells[6] == "none"


def test_a_change_of_the_training_makes_a_row_stale_and_a_new_target_does_not():
    name = "pendulum_r2dn_gamma6"
    same = load_recipe(name, ["target.return=-150.0", "description=other", "evaluation.episodes=3"], seed=4)
    assert script.digest(same) == script.digest(load_recipe(name))
    assert script.digest(load_recipe(name, ["algorithm.discount=0.95"])) != script.digest(load_recipe(name))
