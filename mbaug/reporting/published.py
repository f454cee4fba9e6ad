"""Online scores that others published for the paper's four tasks, to compare ours with."""

from mbaug import tasks

# Mean returns of 10 seeds, by task, algorithm and environment steps. TD3: its authors' curves (sfujim/TD3, learning_curves).
# SAC: Tianshou's MuJoCo benchmark, whose x axis omits 10,000 steps.
RETURNS = {
    "hopper": {"td3": {100_000: 660}, "sac": {100_000: 1766, 1_000_000: 3515}},
    "walker2d": {"td3": {100_000: 770}, "sac": {100_000: 844, 1_000_000: 4909}},
    "halfcheetah": {"td3": {100_000: 5514}, "sac": {100_000: 6213, 1_000_000: 12139}},
    "ant": {"td3": {100_000: 586}, "sac": {100_000: 901, 1_000_000: 5813}},
}
# SAC's mean return in the twenty evaluations of the last 100,000 of a million steps, from the same benchmark.
ENDS = {"hopper": 3456, "walker2d": 4885, "halfcheetah": 11863, "ant": 5470}
# Score of TD3 from scratch after 100,000 steps in the repository of the paper's first author [C].
AUTHORS_TD3 = {"hopper": 12, "walker2d": 7, "halfcheetah": 37, "ant": 23}


def score(task: str, algorithm: str, steps: int) -> float:
    """Returns the published normalised score of an algorithm after `steps` environment steps."""
    return float(tasks.normalised_score(tasks.find(task), RETURNS[task][algorithm][steps]))


def end(task: str) -> float:
    """Returns SAC's published normalised score over the last 100,000 of a million steps."""
    return float(tasks.normalised_score(tasks.find(task), ENDS[task]))
