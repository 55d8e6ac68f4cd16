"""The table of recipes counts every seed, and shows means with how far the seeds lie apart."""

from results.recipes import make as script
from robust_policies.train import load_recipe


def row(name, seed, reached_steps, reward, gamma, status="PASS"):
    target = load_recipe(name).target
    evaluations = [(reached_steps // 2, 5.0, target.return_ - 1.0), (reached_steps, 10.0 + 2.0 * seed, target.return_)]
    return {
        "recipe": name, "seed": seed, "return": reward, "gamma_raw": gamma, "status": status,
        "evaluations": evaluations,
    }  # fmt: skip


def test_a_line_has_all_seeds_and_of_few_the_least_and_the_largest():
    rows = [
        row("pendulum_r2dn_gamma6", 0, 100_000, -150.0, 12.0),
        row("pendulum_r2dn_gamma6", 1, 120_000, -170.0, 11.9),
    ]
    cells = [cell.strip() for cell in script.line("pendulum_r2dn_gamma6", rows).strip("|").split("|")]
    target = load_recipe("pendulum_r2dn_gamma6").target
    assert cells[:3] == ["`pendulum_r2dn_gamma6`", f"{target.return_:g}, {target.steps:,}", "2 of 2"]
    assert cells[3] == "110,000 (100,000 to 120,000)"
    assert cells[4] == "11 (10 to 12)"
    assert cells[5] == "-160 (-170 to -150)"
    assert cells[6] == "12"


def test_from_five_seeds_on_the_interval_is_of_the_mean():
    rows = [row("pendulum_r2dn_gamma6", seed, 100_000, -160.0 + 10 * seed, 12.0) for seed in range(5)]
    cells = [cell.strip() for cell in script.line("pendulum_r2dn_gamma6", rows).strip("|").split("|")]
    # Half width: t(0.975, 4) = 2.776445 times the deviation 15.811388 over sqrt(5), 19.6.
    assert cells[5] == "-140 [-160, -120]"
    assert cells[3] == "100,000 [100,000, 100,000]"


def test_the_readme_has_six_of_the_page_s_rows():
    page = (script.RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    readme = (script.ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.split(script.MARKS[0])[1].splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == sorted(script.IN_README) and len(rows) == 6
    assert set(rows) <= set(page)


def test_a_seed_that_came_too_late_counts_as_not_reached():
    rows = [
        row("pendulum_lstm", 0, 100_000, -150.0, None, "NOT_CERTIFIED"),
        row("pendulum_lstm", 1, 10**9, -170.0, None),
    ]
    cells = [cell.strip() for cell in script.line("pendulum_lstm", rows).strip("|").split("|")]
    assert cells[2:4] == ["1 of 2", "100,000"]
    assert cells[5].startswith("-160 (")
    assert cells[6] == "none"


def test_a_change_of_the_training_makes_a_row_stale_and_a_new_target_does_not():
    name = "pendulum_r2dn_gamma6"
    same = load_recipe(name, ["target.return=-150.0", "description=other", "evaluation.episodes=3"], seed=4)
    assert script.digest(same) == script.digest(load_recipe(name))
    assert script.digest(load_recipe(name, ["algorithm.discount=0.95"])) != script.digest(load_recipe(name))
