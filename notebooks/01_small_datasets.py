# %% [markdown]
# # 01 · Small datasets
#
# **How small is a dataset of 10,000 transitions?**
#
# <!-- answer -->
# On Hopper 10,000 transitions are 80 seconds of simulated time. We draw them from the 45,044 transitions of 318 episodes. Half
# of these episodes return less than 218, while an expert returns 3,234. The typical distance from a new state of the same
# episodes to the nearest drawn state is 0.8 simulator steps, and from a new episode 1.1. With 1,000 transitions it would be 1.4
# and 2.0.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the pools in `data/offline`, `hopper-medium-replay.hdf5` above all, and their cards, the `.json` beside them |
# | gives | figures `01_neighbours`, `01_collection`, `01_returns`, `01_coverage`, `01_qualities`, `01_collectors` |
# | minutes on one core | below 1 in all profiles, because nothing is trained |
#
# A *transition* is one step of a simulated body. A *pool* is one of the datasets that we ship. A run learns from 10,000
# transitions drawn from a pool. A *seed* is the number of a repetition, and each seed has its own draw. The
# [overview](00_overview.ipynb) explains [S], [A] and [C], our sources for the paper.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # has no effect here: this chapter trains nothing and reads the pools

# %%
from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Image, Markdown, display
from matplotlib.colors import LogNorm
from scipy.spatial.distance import cdist

from mbaug import engine, tasks
from mbaug.datasets import collect, read
from mbaug.method import td3, transitions
from mbaug.reporting import figures, words
from mbaug.reporting.figures import show

engine.prepare()
figures.style()
task = tasks.find("hopper")
pool = read.load("hopper-medium-replay")
card = read.read_card(read.FOLDER / "hopper-medium-replay.hdf5")
origin = f"{card['name']}, {len(pool):,} transitions, collected with seed {card['seed']}"


# %%
def nearest(known, asked, scale, seed=0):
    """Returns the median distance of 500 asked states to the nearest known one, in deviations."""
    chosen = np.random.default_rng(seed).permutation(len(asked))[:500]
    return np.median(cdist(asked.state[chosen] / scale, known.state / scale).min(axis=1))


scale, numbers = pool.state.std(axis=0), [100, 316, 1_000, 3_162, 10_000, 31_623]
ways = {"single rows": transitions.draw, "whole episodes": transitions.draw_episodes}
found = [
    {
        "way": way,
        "rows": number,
        "seed": seed,
        "distance": nearest(*draw(pool, number, seed), scale, seed),
    }
    for way, draw in ways.items()
    for number in numbers
    for seed in (0, 1, 2)
]
table = (
    pd.DataFrame(found).groupby(["way", "rows"], as_index=False)["distance"].agg(["mean", "min", "max"])
)
one_step = np.median(np.linalg.norm((pool.next_state - pool.state) / scale, axis=1))
table["steps"] = table["mean"] / one_step
table["seconds"] = table["rows"] * tasks.make(task).unwrapped.dt

# %%
figure, axis = plt.subplots()
styles = ("#0072B2", "-"), ("#D55E00", "--")
for (way, some), (colour, line) in zip(table.groupby("way"), styles, strict=True):
    axis.plot(some["rows"], some["mean"], "o", color=colour, linestyle=line, label=way)
    axis.fill_between(some["rows"], some["min"], some["max"], color=colour, alpha=0.15, linewidth=0)
axis.axhline(one_step, color="black", linestyle=":", label="length of one step (median)")
axis.axvline(10_000, color="#999999", linewidth=1, label="10,000 rows, as in this project")
axis.set(xscale="log", yscale="log", xlabel="rows drawn")
axis.set_ylabel("distance to the nearest known state\n(standard deviations)")
axis.set_xticks(numbers[::2], [f"{number:,}" for number in numbers[::2]])
axis.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
axis.minorticks_off()
axis.legend()
about = "Median distance of 500 new states to the nearest drawn one, mean and range of three draws. "
figures.save_figure(figure, "01_neighbours", table, f"{about}{origin}.", profile)

# %% [markdown]
# ## 1. How far is the nearest known state?
#
# *Ask.* How far is a new state from the states that a model or a critic knows? We use the Euclidean distance, after
# dividing each dimension by its standard deviation. The dotted line is the median length of one simulator step, and the
# table below has the distances in this unit. We draw in two ways, and we expect larger distances with the second.
#
# - *Single rows:* we draw $n$ rows, and take the other rows as new states. At 10,000 rows, most of these are only a few
#   steps of 8 ms from a drawn row.
# - *Whole episodes:* we draw $n$ rows as whole episodes, and take rows of other episodes as new states. Online, an
#   agent will meet such states.

# %%
show(transitions.draw_episodes)

# %%
at = table[table["rows"] == 10_000].set_index("way")["steps"]
slope = {
    way: np.polyfit(np.log(each["rows"]), np.log(each["mean"]), 1)[0]
    for way, each in table[table["rows"] >= 3_000].groupby("way")
}
slope = pd.Series(slope)
reach = {"distance to the nearest of 10,000 (steps)": at}
reach["times as many rows to halve it (slope of the last three points)"] = 2 ** (-1 / slope)
pd.DataFrame(reach).round(1)

# %% [markdown]
# *Read.* The lines are shallow, and the second one bends. The last column shows by what factor the number of rows must
# grow to halve the distance, given the slope from 3,162 rows on. The first column confirms our expectation: states of
# other episodes are farther away. By this measure 10,000 rows are few. The pool is too small to say what 100,000 would
# bring. Remember one warning for [chapter 02](02_world_model.ipynb): if single rows are *held out*, the error is
# measured close to known rows, so it is too optimistic.
#
# ## 2. Four tasks and one score
#
# The paper claims its gain on four bodies that learn to run in MuJoCo [S]. We use [Gymnasium's v5
# tasks](https://gymnasium.farama.org/environments/mujoco/). Our Ant has 27 observations. We leave out the 84 contact
# forces of Gym's older Ant, which [D4RL](https://arxiv.org/abs/2004.07219) used: they were [found to be all
# zero](https://github.com/Farama-Foundation/D4RL/issues/143). The returns of experts differ between tasks by a factor
# of nearly four, so we compare D4RL's normalised scores:
#
# $$\text{score} = 100\,\frac{R - R_\text{random}}{R_\text{expert} - R_\text{random}}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $R$ | `undiscounted_return` | any | rewards, summed over an episode |
# | $R_\text{random}, R_\text{expert}$ | `task.return_random`, `task.return_expert` | one number | the same, published by D4RL |

# %%
columns = ["name", "gym_id", "state_size", "action_size", "return_random", "return_expert"]
about_tasks = [{key: getattr(each, key) for key in columns} for each in tasks.TASKS.values()]
pd.DataFrame(about_tasks).set_index("name")

# %%
show(tasks.normalised_score)

# %% [markdown]
# *Check by hand.* D4RL's own Hopper files have a mean return of 467 (medium-replay) and 1,422 (medium).

# %% tags=["nbval-check-output"]
by_hand = 100 * (np.array([467, 1422]) + 20.272305) / (3234.3 + 20.272305)
scores = tasks.normalised_score(task, np.array([467, 1422]))
assert np.allclose(scores, by_hand), "the score is the formula above"
untrained = np.mean(read.read_card(read.FOLDER / "ant-medium-replay.hdf5")["curve"][0]["returns"])
standing_ant = tasks.normalised_score(tasks.find("ant"), untrained)
print(f"D4RL's Hopper data score {by_hand[0]:.0f} (medium-replay) and {by_hand[1]:.0f} (medium).")
print(f"An untrained policy lets the ant stand: {untrained:.0f} rewards, score {standing_ant:.0f}.")

# %% [markdown]
# *Read.* A score of 0 is D4RL's random policy, and 100 is its expert. Scores above 100 are possible. The scale is linear
# in the return, not in skill: an ant that only stands scores well above zero but has learned nothing. D4RL measured
# the zero on its older tasks. On Ant-v5 uniform actions score more (section 9).
#
# ## 3. How we collected the data
#
# A *medium-replay* dataset is everything that an agent experienced while it learned, until it reached D4RL's medium
# level (on Hopper a score of 44). Ours comes from [SAC](https://arxiv.org/abs/1812.05905) on `Hopper-v5`. Training
# stops when the agent, acting greedily, holds D4RL's medium level over two consecutive evaluations. On Hopper scores
# typically rise slowly at first, then jump up and fall back, and we expect such a curve.

# %%
show(collect.holds)

# %%
level = task.return_medium
curve = [{"returns": [level + 1]}, {"returns": [level - 1]}, {"returns": [level]}]
held = [collect.holds(curve[:evaluations], level) for evaluations in (1, 2, 3)]
assert held == [False, False, False], "one evaluation above the level is luck: it takes two in a row"
assert collect.holds([*curve, {"returns": [level]}], level), "two in a row are enough"

# %%
returns = np.array([point["returns"] for point in card["curve"]])
steps = np.array([point["environment_steps"] for point in card["curve"]])
columns = {"mean": returns.mean(1), "low": returns.min(1), "high": returns.max(1), "n_seeds": 1}
table = pd.DataFrame({"environment_steps": steps} | columns)

figure, axis = plt.subplots()
greedy = f"mean of {returns.shape[1]} greedy episodes"
axis.plot(steps / 1000, returns.mean(axis=1), color="#0072B2", label=greedy)
each = np.repeat(steps, returns.shape[1]) / 1000
axis.plot(each, returns.ravel(), ".", color="#555555", label="one of them")
axis.axhline(level, color="#D55E00", linestyle="--", label=f"D4RL's medium level, {level:,.0f}")
axis.set(xlabel="environment interactions (thousands)", ylabel="return (rewards)")
axis.set_title("The agent that collected the data")
axis.yaxis.set_major_formatter("{x:,.0f}")
axis.legend()
about = "Greedy return of the SAC agent whose replay is the data. "
about += "Training stops after two evaluations in a row above the line."
figures.save_figure(figure, "01_collection", table, f"{about} {origin}.", profile)

# %% tags=["nbval-check-output"]
print(f"command: {card['command']}")
print(f"stopped after {card['replay_transitions']:,} steps")
spread = returns.std(axis=1)
print("the last two evaluations returned {:,.0f} and {:,.0f}".format(*returns[-2:].mean(1)))
print("their ten episodes have standard deviations of {:.0f} and {:.0f}".format(*spread[-2:]))
print(f"the median standard deviation of all {len(spread)} evaluations is {np.median(spread):.0f}")
print(f"in the one before the last, {(returns[-2] < level).sum()} of ten episodes were below the level")
print(f"kept {card['transitions']:,} transitions of {card['episodes']} whole episodes")
print(f"licence {card['licence']}")

# %% [markdown]
# *Read.* This is one agent with one seed, and another seed would have collected other data. The ten returns of an
# evaluation mostly lie close together, so most jumps come from the agent itself. In the last two evaluations, which
# decided when to stop, the returns lie far apart, so the stopping time is partly luck. The replay was collected with
# exploration noise. The curve was evaluated without it.
#
# From the replay we choose whole episodes uniformly at random until we have 45,000 transitions. This pool is small enough
# to ship.

# %%
show(collect.choose_episodes)

# %% [markdown]
# ## 4. What a transition is
#
# One row is one step: the state $s$, the action $a$, the reward $r$, the next state $s'$, and whether the task ended there.

# %%
show(transitions.Batch)

# %%
row = 20  # of the first episode
step = pd.DataFrame(
    {"state": pool.state[row], "next state": pool.next_state[row]}, index=task.state_names
)
step["change"] = step["next state"] - step["state"]
step.round(3)

# %% [markdown]
# The agent does not observe the forward position. How far the hopper has come does not matter, but its speed does. One
# row covers 8 milliseconds.
#
# *Terminal* and *truncated* both end an episode, but they mean different things. **Terminal**: the hopper fell, and no
# reward follows. **Truncated**: the time limit of 1,000 steps was reached, although the hopper could hop on. A *critic*
# $Q$ estimates the discounted sum of the rewards that follow. Its target is the reward plus the discounted value of the
# next state, the *bootstrap*. This target must tell the two ends apart:
#
# $$y = r + \gamma\,(1 - d)\,\min_i Q_i'(s', \pi'(s'))$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $r$, $y$ | `batch.reward`, the value returned | `[agents, batch]` | rewards |
# | $d$ | `terminal` | `[agents, batch]` | 1 after a fall, else 0, a time limit included |
# | $\gamma$ | `settings.discount` | one number | per step |
# | $Q_i'$ | `agent.target_critics`, critic $i$ is 1 or 2 | `[2, agents, batch]` | rewards |
# | $\pi'$ | `agent.target_actor` | `[agents, batch, action]` | action in [-1, 1] |
#
# We leave out the small noise that TD3 adds to $\pi'(s')$, and the check below sets it to zero. [Chapter
# 04](04_offline_pretraining.ipynb) has the noise, and shows the function, `td3.critic_target`.
#
# *Check by hand.* We take three rows of the pool: one inside an episode, one at a fall, and one at a time limit. To test
# the rule alone, we take a critic whose value is 100 everywhere. That is the value of a reward of 1 at every step, for
# ever, at $\gamma = 0.99$.

# %% tags=["nbval-check-output"]
falls, limits = np.flatnonzero(pool.terminal), np.flatnonzero(pool.truncated)
picked = np.array([row, falls[0], limits[0]])
three = transitions.pack(pool.rows(picked))[None]
batch = transitions.unpack(three, task.state_size, task.action_size)
still = torch.zeros(1, 3, task.action_size)
agent = SimpleNamespace(
    target_actor=lambda state: still,
    target_critics=lambda state, action: torch.full((2, 1, 3), 100.0),
)
target = td3.critic_target(agent, batch, td3.TD3(), noise=still).numpy()

reward = pool.reward[picked]
by_hand = reward + 0.99 * np.array([1, 0, 1]) * 100
assert np.allclose(target, by_hand), "only the fall cuts the future off"
names = ["amid an episode", "terminal: a fall", "truncated: time limit"]
pd.DataFrame({"reward": reward, "target": target[0]}, index=names).astype(float).round(2)

# %%
episode_returns = pd.Series(pool.reward).groupby(pool.episode).sum()
limited = episode_returns[pool.episode[limits]]
ends = {"a fall": episode_returns.drop(limited.index), "the time limit": limited}
ends = {f"end with {end}": [len(some), some.mean()] for end, some in ends.items()}
pd.DataFrame(ends, index=["episodes", "mean return"]).T.round().astype(int)

# %% [markdown]
# *Read.* The rows at the time limit are few, but they are the most valuable ones. They belong to the episodes in which
# the hopper never fell. If we called them terminal, the critic would learn that no reward follows good hopping. The
# usual reader of D4RL's files drops such rows. Our reader keeps them, since our files have their next state. A draw of
# 10,000 holds at most a few of them on Hopper (section 5), so here the rule hardly matters. On HalfCheetah every episode
# ends at the time limit.
#
# ## 5. Drawing 10,000
#
# > The first author's code draws 10,000 single transitions uniformly at random, without replacement. [C]
#
# We do the same, with a new draw for each seed. The first author's code is meant to do so as well, but it sets NumPy's
# seed to 42 when it builds a dataset. Repeats 2 to 5 therefore get the same rows, and five repeats use only two draws
# [C].
#
# An *arm* is one way to train an agent, such as the paper's method or a control. For a given seed, every arm gets the
# same draw, so arms differ in their method, not in the luck of the draw. The hash of the rows is part of each run's
# record.

# %%
show(transitions.draw)

# %%
drawn, rest = transitions.draw(pool, 10_000, seed=0)
again = transitions.draw(pool, 10_000, seed=0)[0]
assert again.sha256 == drawn.sha256, "the same seed draws the same rows"


def rows_of(*datasets):
    """Returns the bytes of each row, sorted."""
    return sorted(row.tobytes() for each in datasets for row in transitions.pack(each).numpy())


assert rows_of(drawn, rest) == rows_of(pool), "drawn and held-out rows make up the pool, each once"

# %% tags=["nbval-check-output"]
draws = [transitions.draw(pool, 10_000, seed)[0] for seed in (0, 1, 2)]
known = {state.tobytes() for state in drawn.state}


def about_draw(each):
    """Returns what a draw holds, and how much of it seed 0 drew, too."""
    shared = np.mean([state.tobytes() in known for state in each.state])
    row = {"sha256": each.sha256[:12], "falls": each.terminal.sum(), "time limits": each.truncated.sum()}
    return row | {"episodes": len(np.unique(each.episode)), "shared with seed 0": f"{shared:.0%}"}


pd.DataFrame([about_draw(each) for each in draws]).rename_axis("seed")

# %% tags=["nbval-check-output"]
followed = np.mean([state.tobytes() in known for state in drawn.next_state])
print(f"{followed:.0%} of the drawn rows are followed by a row that was drawn too")
print(f"two draws of 10,000 from 402,000 rows, as many as D4RL has, share {10_000 / 402_000:.1%}")

# %% [markdown]
# *Read.* A draw has rows of nearly every episode of the pool, but you cannot follow an episode step by step in it.
# ([Chapter 06](06_multi_step.ipynb) therefore draws whole episodes.) Two seeds share more rows than they would if we
# had D4RL's full replay. The spread over our seeds therefore reflects the luck of training in full, but the luck of the
# data only in part.
#
# ## 6. How good are the episodes?
#
# *Ask.* We expect many short, poor episodes from the beginning of training, and few good ones, which are long and so
# hold many rows. We cannot plot the distribution of D4RL's episodes here, but we know its mean from D4RL's [published
# figures](https://github.com/Farama-Foundation/D4RL).

# %%
about_data = {
    "our pool": (len(pool), len(episode_returns), episode_returns.mean()),
    "our whole replay": (
        card["replay_transitions"],
        card["replay_episodes"],
        card["replay_mean_return"],
    ),
    "D4RL hopper-medium-replay-v2": (402_000, 2_041, 467.0),
}
comparison = pd.DataFrame(about_data, index=["transitions", "episodes", "mean return"]).T
comparison["mean score"] = tasks.normalised_score(task, comparison["mean return"])
comparison["mean length"] = comparison["transitions"] / comparison["episodes"]
whole = comparison[["transitions", "episodes"]].map("{:,.0f}".format)
comparison.assign(**whole).map(lambda x: x if isinstance(x, str) else words.number(x))

# %%
edges = np.arange(0, 3_400, 100)
by_row, histogram = episode_returns[pool.episode], partial(np.histogram, bins=edges)
counts = {"episodes": histogram(episode_returns)[0], "transitions": histogram(by_row)[0]}
table = pd.DataFrame({"return_low": edges[:-1], "return_high": edges[1:]} | counts)

figure, axes = plt.subplots(1, 2, sharex=True, figsize=(8, 4))
medium = f"medium level: {task.return_medium:,.0f}"
for axis, (unit, count) in zip(axes, counts.items(), strict=True):
    axis.stairs(count / count.sum(), edges, fill=True, color="#56B4E9")
    mean = episode_returns.mean()
    axis.axvline(mean, color="#0072B2", label=f"mean return, our pool: {mean:.0f}")
    axis.axvline(467, color="#D55E00", linestyle="--", label="mean return, D4RL's data: 467")
    axis.axvline(task.return_medium, color="black", linestyle=":", label=medium)
    axis.set(xlabel="return of the episode (rewards)", ylabel=f"share of {unit}")
    axis.set_title(f"{unit}, by return")
    axis.xaxis.set_major_formatter("{x:,.0f}")
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
about = f"Undiscounted return of the pool's {len(episode_returns)} episodes. On the right each "
about += "transition counts once. Both mean returns are means over episodes; D4RL publishes only that."
figures.save_figure(figure, "01_returns", table, f"{about} {origin}.", profile)

# %%
good = episode_returns >= task.return_medium
worth = {"episodes": good.mean(), "transitions": good[pool.episode].mean()}
pd.Series(worth, name="share at the medium level or above").map("{:.0%}".format).to_frame().T

# %% [markdown]
# *Read.* Few episodes reach the medium level, but they are long, so they hold a larger share of the transitions.
#
# ## 7. Which states do the drawn rows cover?
#
# *Ask.* In practice two of the eleven dimensions decide whether an episode goes on: the task ends below a height of 0.7
# m or at a torso angle beyond 0.2 rad. We add the forward velocity, which the reward pays for. We count rows in the
# cells of a grid, for the pool, our draw, and another draw. We expect the draws to miss some of the cells.

# %%
tilt, forward = "torso angle (rad)", "forward velocity (m/s)"
place = {name: task.state_names.index(name) for name in (tilt, forward)}
grids = {tilt: np.linspace(-0.2, 0.2, 41), forward: np.linspace(-3, 5, 41)}
height = np.linspace(0.65, 1.75, 45)
cells = {}
for name, each in {"pool": pool, "draw, seed 0": draws[0], "draw, seed 1": draws[1]}.items():
    for across, grid in grids.items():
        sideways = each.state[:, place[across]]
        count = np.histogram2d(sideways, each.state[:, 0], (grid, height))[0]
        cells[name, across] = count / len(each)


# %%
def stacked(name):
    """Returns the shares of a dataset's cells in one column, both grids below each other."""
    frames = {a: pd.DataFrame(cells[name, a], grids[a][:-1], height[:-1]).stack() for a in grids}
    return pd.concat(frames)


table = pd.DataFrame({name: stacked(name) for name, _ in cells})
table = table[table["pool"] > 0].rename_axis(["dimension", "from", "height_from"]).reset_index()

# %%
figure, axes = plt.subplots(2, 3, figsize=(8, 6), sharey=True, sharex="row")
colours = LogNorm(1 / len(pool), max(share.max() for share in cells.values()))
for axis, ((name, across), share) in zip(axes.T.ravel(), cells.items(), strict=True):
    shown = np.where(share > 0, share, np.nan).T
    mesh = {"norm": colours, "cmap": "viridis", "rasterized": True}
    image = axis.pcolormesh(grids[across], height, shown, **mesh)
    axis.set(xlabel=across, title=f"{name}: {np.count_nonzero(share):,} cells")
    axis.grid(visible=False)
for axis in axes[:, 0]:
    axis.set_ylabel("height (m)")
axes[0, 0].set_xticks([-0.15, 0, 0.15])
bar = {"label": "share of rows (logarithmic)", "location": "bottom", "shrink": 0.6}
figure.colorbar(image, ax=axes, **bar)
about = "Share of rows in cells of height against torso angle and forward velocity, white where there "
about += f"are none. {origin}, draws of 10,000."
figures.save_figure(figure, "01_coverage", table, about, profile)

# %%
missed = {}
for across in grids:
    every, some = (cells[name, across] for name in ("pool", "draw, seed 0"))
    cells_seen = np.count_nonzero(some) / np.count_nonzero(every)
    missed[across] = {
        "share of the pool's cells that the draw has": cells_seen,
        "share of the pool's rows in the other cells": every[some == 0].sum(),
    }
pd.DataFrame(missed).T.map("{:.1%}".format)

# %% [markdown]
# *Read.* In two dimensions 10,000 rows look like plenty. They miss only cells that the hopper rarely visited, most of
# them at the edge of the map. But a state has eleven dimensions. Section 1 shows how far new states are from the drawn
# rows in all eleven.
#
# ## 8. One scale for all dimensions
#
# *Ask.* The height changes by centimetres, while a foot turns at radians a second. In a squared error the foot would
# outweigh all other dimensions together, because it has most of the summed variance. So we standardise states
# with the mean and standard deviation of the drawn rows:
#
# $$\tilde s_k = \frac{s_k - \mu_k}{\sigma_k + \varepsilon}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $s$, $\tilde s$ | `state`, what `apply` returns | `[agents, rows, state]` | of the environment, standard deviations |
# | $\mu$, $\sigma + \varepsilon$ | `mean`, `std` | `[agents, state]` | of the environment |
# | $k$ | dimension of the state | – | – |
# | $\varepsilon$ | `epsilon` | one number | $10^{-5}$ for the world model, $10^{-3}$ for the agent [C] |

# %%
show(transitions.Standardiser)

# %%
three = drawn.state[:3]
standardiser = transitions.Standardiser.fit([three], epsilon=1e-3)
standardised = standardiser.apply(torch.from_numpy(three)[None])[0].numpy()
by_hand = (three - three.mean(axis=0)) / (three.std(axis=0) + 1e-3)
assert np.allclose(standardised, by_hand, atol=1e-4), "subtract the mean, divide by the deviation"

# %%
columns = {"mean": drawn.state.mean(0), "standard deviation": drawn.state.std(0)}
scales = pd.DataFrame(columns, index=task.state_names)
scales["one step"] = np.sqrt(np.square(drawn.next_state - drawn.state).mean(0))  # root mean square
scales["one step / deviation"] = scales["one step"] / scales["standard deviation"]
scales.round(3)

# %% [markdown]
# *Read.* Compare the largest standard deviation with the smallest: without a common scale the dimension with the
# smallest would hardly count. An epsilon of 0.001 is small even beside the smallest. The last column shows how far
# one step moves a dimension. For most dimensions this is a small part of the deviation, so on Hopper *nothing moves* is
# a good guess, and [chapter 02](02_world_model.ipynb) uses it as a baseline on all four tasks.
#
# ## 9. Four tasks, four qualities of data
#
# *Ask.* So far we have seen one task and one kind of data. The paper's claim is about four tasks, and about data of
# *poor* quality. How poor are our pools? `random` comes from uniform actions. The other pools of a task come from one
# training run. `medium-replay` is drawn from all transitions of this run up to the medium level. `medium` comes from
# the agent at that moment, and `expert` from the agent at the end. (A fifth, `medium-expert`, is half `medium` and half
# `expert`.)
#
# There is one exception. Hopper's `medium-replay` comes from an earlier run of SAC, on another processor. The runs of
# the following chapters were recorded with this pool, so we keep it. We do not know D4RL's medium level of Ant. We set
# ours a third of the way from the return that scores 0 to the final return of our run.
#
# We expect random hoppers and walkers to fall at once. A fall does not end a cheetah's episode, so we expect every
# episode to last to the time limit.

# %%
qualities = {"random": "#999999", "medium-replay": "#0072B2", "medium": "#E69F00", "expert": "#D55E00"}
names = [f"{body}-{quality}" for body in tasks.TASKS for quality in qualities]
datasets = {name: read.load(name) for name in names}
files = {name: read.FOLDER / f"{name}.hdf5" for name in datasets}
cards = {name: read.read_card(file) for name, file in files.items()}
KEYS = "transitions", "episodes", "mean_return", "mean_score", "terminals"


def summary(card):
    """Returns what a card says of its pool, in a row of a table."""
    row = {key.replace("_", " "): card[key] for key in KEYS}
    quartiles = (card["return_quantiles"][share] for share in ("25", "50", "75"))
    row["quartiles of the return"] = ", ".join(f"{each:,.0f}" for each in quartiles).replace("-", "−")
    return row | {"diversity": card["state_coverage"]["effective"]}


rows = pd.DataFrame([summary(card) for card in cards.values()], index=list(cards))
decimal = ["mean return", "mean score", "diversity"]
rows[decimal] = rows[decimal].map(lambda value: "–" if np.isnan(value) else words.number(value))
whole = ["transitions", "episodes", "terminals"]
rows[whole] = rows[whole].map("{:,}".format)
rows

# %% [markdown]
# For the *diversity* we count rows in cells of height and forward velocity, and take the exponential of the entropy of
# their shares. It is the number of equally frequent cells that would be as diverse.
#
# *Read.* Random hoppers and walkers fall at once. Most episodes of random ants end early, too, but only after a few
# seconds. All cheetah episodes last to the time limit. `medium` can be better than its name says: if an agent's score
# jumps, the agent may be far above the medium level when it first holds this level. And diversity is not quality: on
# Ant `random` has more diverse heights and speeds than `medium-replay`.
#
# The card of each pool in `data/offline` says where it comes from, and has the command that made it. The data are
# licensed under CC BY 4.0.
#
# What do these data look like? You see eight moments of the episode with the median return. They are spread over one
# second, or over the whole episode if the body falls sooner.

# %%
for name in cards:
    display(Markdown(f"`{name}`"))
    display(Image(files[name].with_suffix(".png").read_bytes()))

# %% [markdown]
# *Look.* The next picture shows the share of transitions that belong to an episode of at most a given score. A curve far
# to the right means good data, a step means data that are all alike, and a ramp means a mixture.


# %%
def shares(name):
    """Returns the scores of a pool's episodes, and the share of its transitions at or below each."""
    body, data = tasks.find(name.split("-")[0]), datasets[name]
    lives = pd.Series(data.reward).groupby(data.episode).agg(["sum", "size"]).sort_values("sum")
    share = lives["size"].cumsum() / len(data)
    score = tasks.normalised_score(body, lives["sum"]).to_numpy()
    return pd.DataFrame({"pool": name, "score": [score[0], *score], "share": [0, *share]})


# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, sharey=True)
table = pd.concat(map(shares, datasets))
for axis, body in zip(axes.flat, tasks.TASKS, strict=True):
    for quality, colour in qualities.items():
        own = table[table["pool"] == f"{body}-{quality}"]
        axis.step(own["score"], own["share"], where="post", color=colour, label=quality)
    axis.set(
        title=tasks.find(body).title,
        xlabel="D4RL-normalised score of the episode",
        ylabel="share of transitions at or below",
    )
    axis.set_xlim(-10, 150)
    axis.label_outer()
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
about = "Share of each pool's transitions in episodes of at most a given score. "
about += "One training run per task (another for Hopper's medium-replay)."
figures.save_figure(figure, "01_qualities", table, about, profile)

# %% [markdown]
# *Look.* The last figure shows the agents that collected the data. When did each hold the medium level?

# %%
collectors = {name: card for name, card in cards.items() if name.endswith("-medium-replay")}
figure, axes = plt.subplots(2, 2, figsize=(8, 5.2), sharex=True, sharey=True)
for axis, each in zip(axes.flat, tasks.TASKS.values(), strict=True):
    card = collectors[f"{each.name}-medium-replay"]
    steps = np.array([point["environment_steps"] for point in card["curve"]]) / 1000
    score = tasks.normalised_score(each, np.array([point["returns"] for point in card["curve"]]))
    axis.plot(steps, score.mean(axis=1), color="#0072B2", label="mean of ten episodes")
    shade = {"color": "#0072B2", "alpha": 0.15, "linewidth": 0, "label": "their range"}
    axis.fill_between(steps, score.min(axis=1), score.max(axis=1), **shade)
    medium = tasks.normalised_score(each, card.get("medium_level", each.return_medium))
    axis.axhline(medium, color="#D55E00", linestyle="--", label="medium level")
    axis.set(title=each.title, ylim=(-5, 105), ylabel="D4RL-normalised score")
    axis.set_xlabel("environment interactions (thousands)")
    axis.label_outer()
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
curve = [{"pool": name, **point} for name, card in collectors.items() for point in card["curve"]]
curve = pd.DataFrame(curve).explode("returns")
about = "Greedy score of the SAC that collected each pool, seed 0."
figures.save_figure(figure, "01_collectors", curve, about, profile)


# %%
def compared(card):
    """Returns when a task's medium level was held and what its data return, beside D4RL's."""
    steps, theirs = card["replay_transitions"], card["d4rl"].get("mean_return")
    row = {
        "steps to the medium level": f"{steps:,}",
        "D4RL's transitions": f"{card['d4rl']['transitions']:,}",
    }
    row["mean return"] = f"{card['mean_return']:,.0f}"
    return row | {"D4RL's mean return": "not known here" if theirs is None else f"{theirs:,.0f}"}


rows = {body: compared(collectors[f"{body}-medium-replay"]) for body in tasks.TASKS}
pd.DataFrame(rows).T

# %% [markdown]
# *Read.* On the three tasks whose medium level we know, our agents reached it in fewer steps than D4RL's. (On Ant the
# two levels may differ.) Where we know D4RL's mean return, ours is lower. We suppose that the early, poor episodes are
# a larger share of a short training run, but we do not have D4RL's episodes to check this. The name *medium-replay*
# says how data were collected, not how good they are. Our data and D4RL's are similar in kind, but none of our numbers
# reproduces a number on D4RL's data.
#
# ## Where we differ from the paper
#
# - Data: our own SAC on `Hopper-v5`, not D4RL's on its older Hopper, and a pool of whole episodes, not the full replay.
# - Seeds share rows of the pool, as section 5 shows.
#
# ## Try it
#
# - In section 5, write `1_000` in place of `10_000` in `draws`. How many falls are left to learn from?
# - In section 7, give `forward` the value `"foot velocity (rad/s)"`, and its grid `np.linspace(-10, 10, 41)`. What piles
#   up at the ends?
# - In section 4, use `np.array([1, 0, 0])` in `by_hand`, as if the time limit were a fall. What does the assert say, and
#   by how much would the target of the third row fall?
#
# ## Questions
#
# <details><summary>Why is a time limit not terminal?</summary>
#
# The state does not contain the time. A hopper at step 999 looks like a hopper at step 10, so the critic cannot tell
# the two apart. If we give the state at step 999 no future, the critic learns an average of both values. Since only
# good hoppers reach the limit, the best states lose the most value.
# </details>
#
# <details><summary>Why the same draw for every arm?</summary>
#
# Some draws are luckier than others. If two arms had different draws, their difference would contain this luck twice.
# With the same draw it cancels. Our intervals do not use this: they treat the seeds of two arms as independent, so they
# tend to be too wide.
# </details>
#
# <details><summary>Why divide by the data's standard deviation, and not by the range the task allows?</summary>
#
# Most dimensions have no such range. Where they have one (velocities are clipped at 10), most dimensions do not fill
# it. A network needs inputs whose spread is about one.
# </details>
#
# **Next:** [02 · World model](02_world_model.ipynb): can a VAE predict one step from so little?
