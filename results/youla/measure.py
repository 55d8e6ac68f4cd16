"""What is measured of one trained policy of results/youla: a row of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from results.youla.linear import closed_loop, runaways, spectral_radius
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import Plant, load_plant
from robust_policies.errors import NotCertifiableError
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files.atomic import read_json, write_json
from robust_policies.policies import DeployedPolicy, YoulaPolicy, load_policy
from robust_policies.policies.feedback import closed_loop_bound
from robust_policies.train import RunFolder
from robust_policies.train.run.checkpoints import checkpoints_in

FACTORS = (0.5, 0.6, 0.71, 0.84, 1.0, 1.19, 1.41, 1.68, 2.0)
TRAJECTORIES, NOMINAL, EPISODES, SEED = 64, 200, 32, 777
ATTACKS = {
    "sequence_pgd": {"window": 25, "replan": 25, "steps": 4, "restarts": 2},
    "closed_loop_pgd": {"window": 25, "replan": 25, "steps": 4, "restarts": 2},
}
# A policy tolerates what leaves this share of the episodes within the allowed cost.
LEVEL = 0.9


@dataclass(frozen=True)
class Case:
    """One task and what is done to it.

    Attributes:
        task: Gymnasium id.
        recipes: by the name of the method.
        best: the return of an episode without any cost; cost = best - return.
        held: an episode is held if it costs at most this.
        sizes: of the attacks, the l2 norm of the perturbation of each observation.
        delays: in steps.
        parameters: of the plant, whose factors are FACTORS.
    """

    task: str
    recipes: dict[str, str]
    best: float
    held: float
    sizes: tuple[float, ...]
    delays: tuple[int, ...]
    parameters: tuple[str, ...]

    @property
    def plant(self) -> Plant:
        """The equations of the task."""
        return load_plant(gymnasium.spec(self.task).kwargs["task"])

    def costs(self, returns: Sequence[float | None]) -> np.ndarray:
        """Return the episodes' costs, infinite where an episode gave NaN."""
        return np.array([np.inf if value is None or np.isnan(value) else self.best - value for value in returns])

    def share(self, returns: Sequence[float | None]) -> float:
        """Return the share of the episodes that are held."""
        return float(np.mean(self.costs(returns) <= self.held))


def measure_run(case: Case, method: str, folder: Path) -> dict[str, Any]:
    """Return the row of a run, from measured.json in its folder if it has been measured."""
    done = folder / "measured.json"
    if not done.is_file():
        policy, model = load_policy(folder), linearize_plant(case.plant)
        seed = int(folder.name.partition("=")[2])
        row = {"method": method, "seed": seed, "nominal": nominal(case, policy), "attack": attacked(case, policy)}
        row |= {name: delayed(case, policy, name) for name in ("ObservationDelay", "ActionDelay")}
        row["factors"] = {name: model_error(case, policy, name) for name in case.parameters}
        row |= {"proven": proven(policy, model), "curve": learning_curve(case, folder, model)}
        write_json(done, {"schema": 1, **row})
    row = read_json(done, "measurement", 1)
    row.pop("schema")
    return row


def nominal(case: Case, policy: DeployedPolicy) -> dict[str, float | None]:
    """Return statistics of the costs of new episodes without any perturbation."""
    found = run_episodes(policy, case.task, "uniform", [0.0], NOMINAL, SEED)
    costs = case.costs(found.returns[0])
    return {"mean": round_(costs.mean()), "median": round_(np.median(costs)), "share": case.share(found.returns[0])}


def attacked(case: Case, policy: DeployedPolicy) -> dict[str, Any]:
    """Return the shares of episodes held under the attack that harms most at each size, and the size tolerated."""
    shares = {
        name: [
            case.share(returns)
            for returns in run_episodes(
                policy, case.task, name, [0.0, *case.sizes], EPISODES, SEED, options=options
            ).returns
        ]
        for name, options in ATTACKS.items()
    }
    worst = [min(values) for values in zip(*shares.values(), strict=True)]
    return {"shares": worst, **shares, "tolerated": critical_size([0.0, *case.sizes], worst)}


def delayed(case: Case, policy: DeployedPolicy, wrapper: str) -> dict[str, Any]:
    """Return the shares of episodes held with each delay, 0 first, and the longest that is tolerated."""
    delays = (0, *case.delays)
    shares = [
        case.share(
            run_episodes(
                policy, case.task, "uniform", [0.0], EPISODES, SEED, perturbations=[{wrapper: {"steps": steps}}]
            ).returns[0]
        )
        for steps in delays
    ]
    return {"shares": shares, "tolerated": tolerated_steps(delays, shares)}


def critical_size(sizes: Sequence[float], shares: Sequence[float]) -> float:
    """Return the size at which the share held first falls below LEVEL, between sizes linearly; the largest if never."""
    for i, share in enumerate(shares):
        if share < LEVEL:
            if i == 0:
                return 0.0
            part = (shares[i - 1] - LEVEL) / (shares[i - 1] - share)
            return float(sizes[i - 1] + part * (sizes[i] - sizes[i - 1]))
    return float(sizes[-1])


def tolerated_steps(delays: Sequence[int], shares: Sequence[float]) -> int:
    """Return the longest delay up to which every share held is at least LEVEL; 0 if none."""
    longest = 0
    for steps, share in zip(delays, shares, strict=True):
        if share < LEVEL:
            break
        longest = steps
    return longest


def model_error(case: Case, policy: DeployedPolicy, parameter: str) -> dict[str, Any]:
    """Return the shares held and median costs with a parameter of the plant multiplied by each of FACTORS."""
    found = run_episodes(
        policy, case.task, "uniform", [0.0] * len(FACTORS), EPISODES, SEED, factors={parameter: list(FACTORS)}
    )
    shares = [case.share(returns) for returns in found.returns]
    middle = FACTORS.index(1.0)
    low = high = middle
    while low > 0 and shares[low] >= LEVEL and shares[low - 1] >= LEVEL:
        low -= 1
    while high < len(FACTORS) - 1 and shares[high] >= LEVEL and shares[high + 1] >= LEVEL:
        high += 1
    medians = [round_(np.median(case.costs(returns))) for returns in found.returns]
    return {"shares": shares, "costs": medians, "low": FACTORS[low], "high": FACTORS[high]}


def proven(policy: DeployedPolicy, model: LinearModel) -> dict[str, Any]:
    """Return what is proven of the policy, and of it in feedback with the linear model."""
    try:
        certificate = policy.certificate()
    except NotCertifiableError as error:
        return {"status": "NOT_CERTIFIED", "claim": str(error)}
    row: dict[str, Any] = {"status": certificate.status, "claim": certificate.claim}
    if isinstance(policy, YoulaPolicy):
        loop = certificate.closed_loop or {}
        return {**row, "loop_gain": certificate.gamma_raw, "loop_rate": certificate.rate, "plant": loop.get("plant"),
                "parameter_gain": loop.get("parameter_gain")}  # fmt: skip
    bound = closed_loop_bound(policy, model)
    return {**row, "policy_gain": certificate.gamma_raw, "policy_rate": certificate.rate, "loop_gain": bound.gain,
            "loop_rate": bound.rate, "feedback": bound.claim(model)}  # fmt: skip


def learning_curve(case: Case, folder: Path, model: LinearModel) -> list[dict[str, Any]]:
    """Return an entry for each evaluation while training: return, and stability on the linear model."""
    run = RunFolder(folder)
    if not run.provenance.is_file():
        return []
    evaluations = {steps: mean for steps, _, mean in run.read_provenance()["evaluations"]}
    plant = case.plant
    uniform = np.random.default_rng(1).random((TRAJECTORIES, plant.reset_size))
    starts = plant.initial(torch.as_tensor(uniform), plant.nominal()) - torch.as_tensor(np.array(model.x0))
    assert model.state_range is not None
    entries = []
    for path in checkpoints_in(run.checkpoints / "policies"):
        policy, steps = load_policy(path), int(path.name.removeprefix("step_"))
        loop = closed_loop(policy, model)
        entry = {"steps": steps, "cost": round_(case.best - evaluations[steps]), "radius": spectral_radius(loop),
                 "runaways": runaways(loop, starts, model.state_range)}  # fmt: skip
        if isinstance(policy, YoulaPolicy):
            certificate = policy.certificate()
            entry |= {"proven": certificate.status == "PASS" and certificate.rate is not None, "rate": certificate.rate}
        entries.append(entry)
    return entries


def unstable(entry: dict[str, Any]) -> bool:
    """Return whether an intermediate policy is unstable on the linear model: its radius, or a runaway trajectory."""
    return entry["runaways"] > 0 or (entry["radius"] is not None and entry["radius"] >= 1.0)


def undecided(entry: dict[str, Any]) -> bool:
    """Return whether neither measure says something: no equilibrium was found, and nothing ran away."""
    return entry["radius"] is None and not entry["runaways"]


def round_(value: float) -> float | None:
    """Return a number with five digits, which is what a table can use; None if it is not finite."""
    return float(f"{float(value):.5g}") if np.isfinite(value) else None
