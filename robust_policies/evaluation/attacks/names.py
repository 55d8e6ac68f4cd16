"""What attacks are called, for those who only read their results."""

ATTACKS: dict[str, str] = {
    "random": "random on the budget's surface, each step on its own; the yardstick",
    "mad_pgd": "each action is driven away from the clean one, step by step",
    "critic_pgd": "each action is driven to where a fitted critic expects the least, step by step",
    "sequence_pgd": "the actions of a window are driven away from the clean ones, through the recurrent state",
    "closed_loop_pgd": "our differentiable plants: the return of a window is minimised through plant and policy",
    "learned": "a recurrent adversary trained with PPO on other episodes; no gradient of the policy is used",
    "transfer": "perturbations found on another policy, replayed or adapted: no gradient of this one is used",
}
OBSERVATION = "of the observation"
"""The unit of sizes of noise and attacks."""
