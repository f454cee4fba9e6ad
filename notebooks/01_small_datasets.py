# %% [markdown]
# # 01 · Small datasets
#
# **How little is 10,000 transitions?** Little more than a minute of a hopper's life, most of it lived by hoppers that
# fall: enough to see roughly where a hopper can be, too little to have a close neighbour for every new state.
#
# | | |
# |---|---|
# | reads | the pools in `data/offline`, `hopper-medium-replay.hdf5` above all, and their cards, the `.json` beside them |
# | draws | `01_collection`, `01_returns`, `01_coverage`, `01_neighbours`, `01_qualities`, `01_collectors` |
# | takes | under a minute in every profile; nothing is trained here |
#
# Sources, here and in all chapters: [S] and [A], two summaries of the paper; [C], the authors' development repository. We
# have not seen the paper's full text, so its words are paraphrased.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/runs; True: train now, into build/runs

# %%
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
from mbaug.reporting import figures
from mbaug.reporting.figures import show

engine.prepare()
figures.style()
task = tasks.find("hopper")
pool = read.load("hopper-medium-replay")
card = read.read_card(read.FOLDER / "hopper-medium-replay.hdf5")
origin = f"{card['name']}, {len(pool):,} transitions, seed {card['seed']}, code {card['provenance']['commit'][:7]}"

# %% [markdown]
# ## 1. Four tasks and one score
#
# The paper claims its gain on four bodies that learn to run in MuJoCo [S]. We use Gymnasium's v5 tasks; Ant with 27
# observations, because the 84 contact forces that D4RL's has besides were found to be all zero [Farama-Foundation/D4RL, issue
# 143]. An expert's returns differ by a factor of four, so results are compared as D4RL's normalised score:
#
# $$\text{score} = 100\,\frac{R - R_\text{random}}{R_\text{expert} - R_\text{random}}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $R$ | `undiscounted_return` | any | rewards, summed over an episode |
# | $R_\text{random}, R_\text{expert}$ | `task.return_random`, `task.return_expert` | one number | the same; published by D4RL |

# %%
columns = ["name", "gym_id", "state_size", "action_size", "return_random", "return_expert"]
pd.DataFrame([{key: getattr(each, key) for key in columns} for each in tasks.TASKS.values()]).set_index("name")

# %%
show(tasks.normalised_score)

# %% [markdown]
# *Check by hand.* D4RL's own Hopper files have a mean return of 467 (medium-replay) and 1,422 (medium).

# %% tags=["nbval-check-output"]
by_hand = 100 * (np.array([467, 1422]) + 20.272305) / (3234.3 + 20.272305)
assert np.allclose(tasks.normalised_score(task, np.array([467, 1422])), by_hand), "the score is the formula above"
standing_ant = tasks.normalised_score(tasks.find("ant"), 1000)
print(f"D4RL's Hopper data score {by_hand[0]:.0f} (medium-replay) and {by_hand[1]:.0f} (medium).")
print(f"An ant that only stands returns about 1,000: score {standing_ant:.0f}, and it has learned nothing.")

# %% [markdown]
# *Read.* 0 is a random policy and 100 an expert of 2020; more than 100 is possible. The scale is linear in the return,
# not in skill, and its zero is of D4RL's tasks: on Ant-v5 uniform actions score more (section 9).
#
# ## 2. How the data came about
#
# A *medium-replay* dataset is everything an agent lived through while it learned, until it was half good. Ours comes from
# SAC on `Hopper-v5`. It stops when the greedy agent holds D4RL's medium level over two consecutive evaluations. We expect
# a curve that crawls, leaps and falls back: Hopper is known for it.

# %%
show(collect.medium_steps, collect.holds)

# %%
level = task.return_medium
curve = [{"returns": [level + 1]}, {"returns": [level - 1]}, {"returns": [level]}]
held = [collect.holds(curve[:evaluations], level) for evaluations in (1, 2, 3)]
assert held == [False, False, False], "one evaluation above the level is luck: it takes two in a row"
assert collect.holds([*curve, {"returns": [level]}], level), "two in a row are enough"

# %%
returns = np.array([point["returns"] for point in card["curve"]])
steps = np.array([point["environment_steps"] for point in card["curve"]])
table = pd.DataFrame({"environment_steps": steps, "mean": returns.mean(1), "low": returns.min(1), "high": returns.max(1)})
table["n_seeds"] = 1

figure, axis = plt.subplots()
axis.plot(steps / 1000, returns.mean(axis=1), color="#0072B2", label=f"mean of {returns.shape[1]} greedy episodes")
axis.plot(np.repeat(steps, returns.shape[1]) / 1000, returns.ravel(), ".", color="#555555", label="one of them")
axis.axhline(level, color="#D55E00", linestyle="--", label=f"D4RL's medium level, {level:,.0f}")
axis.set(xlabel="environment interactions (thousands)", ylabel="return (rewards)", title="The agent that collected the data")
axis.legend()
about = f"Greedy return of the SAC agent whose replay is the data: it stops at two evaluations in a row above the line. {origin}."
path = figures.save_figure(figure, "01_collection", table, about, profile)

# %% tags=["nbval-check-output"]
print(f"command: {card['command']}")
print(f"stopped after {card['replay_transitions']:,} steps; the last two evaluations returned {returns[-2:].mean(1).round()}")
print(f"kept {card['transitions']:,} transitions of {card['episodes']} whole episodes; licence {card['licence']}")

# %%
fall = np.diff(returns.mean(axis=1)).argmin()
high, low = returns.mean(axis=1)[fall : fall + 2]
Markdown(f"""
*Read.* One agent, one seed: another SAC would have left other data. The ten episodes of an evaluation mostly lie close
together; it is the agent that leaps, from {high:,.0f} at {steps[fall]:,} steps to {low:,.0f} at {steps[fall + 1]:,}. So the
stopping time is partly luck: in the evaluation before the last, {(returns[-2] < level).sum()} of the ten episodes were below
the level. The replay was lived with exploration noise; the curve is without.""")

# %% [markdown]
# From the replay, whole episodes are chosen uniformly at random until there are 45,000 transitions: a *pool* small enough
# to ship.

# %%
show(collect.choose_episodes)

# %% [markdown]
# ## 3. What a transition is
#
# One row is one step: the state $s$, the action $a$, the reward $r$, the next state $s'$, and whether the task ended there.

# %%
show(transitions.Batch)

# %%
row = 20  # of the first episode
step = pd.DataFrame({"state": pool.state[row], "next state": pool.next_state[row]}, index=task.state_names)
step["change"] = step["next state"] - step["state"]
step.round(3)

# %% [markdown]
# The forward position itself is not observed: how far the hopper came does not matter, how fast it is does. One row is
# 8 milliseconds.
#
# *Terminal* and *truncated* both end an episode, and mean different things. **Terminal**: the hopper fell, and nothing
# follows. **Truncated**: the clock ran out after 1,000 steps, and the hopper hops on unseen. The critic's target must
# tell them apart:
#
# $$y = r + \gamma\,(1 - d)\,\min_i Q_i'(s', \pi'(s'))$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $r$, $y$ | `reward`, what is returned | `[population, batch]` | rewards |
# | $d$ | `terminal` | `[population, batch]` | 1 after a fall, else 0, a time limit included |
# | $\gamma$ | `settings.discount` | one number | a step |
# | $Q_i'$ | `agent.target_critics` | `[twin, population, batch]` | rewards |
# | $\pi'$ | `agent.target_actor` | `[population, batch, action]` | action in [-1, 1] |

# %%
show(td3.critic_target)

# %% [markdown]
# *Check by hand.* Three real rows: one amid an episode, a fall, a time limit. To see the rule alone, take a critic that
# says 100 everywhere: what a reward of 1 a step is worth for ever, at $\gamma = 0.99$.

# %%
falls, limits = np.flatnonzero(pool.terminal), np.flatnonzero(pool.truncated)
three = transitions.pack(pool.rows(np.array([row, falls[0], limits[0]])))[None]
batch = transitions.unpack(three, task.state_size, task.action_size)
still = torch.zeros(1, 3, task.action_size)
agent = SimpleNamespace(target_actor=lambda state: still, target_critics=lambda state, action: torch.full((2, 1, 3), 100.0))
target = td3.critic_target(agent, batch, td3.TD3(), noise=still).numpy()

reward = pool.reward[[row, falls[0], limits[0]]]
assert np.allclose(target, reward + 0.99 * np.array([1, 0, 1]) * 100), "only the fall cuts the future off"
names = ["amid an episode", "terminal: a fall", "truncated: time limit"]
pd.DataFrame({"reward": reward, "target": target[0]}, index=names).round(2)

# %% tags=["nbval-check-output"]
print(f"{len(falls)} episodes end with a fall, {len(limits)} at the time limit")
lives = pd.Series(pool.reward).groupby(pool.episode).sum()
limited = lives[pool.episode[limits]]
print(f"the latter return {limited.mean():,.0f} on average, the former {lives.drop(limited.index).mean():,.0f}")

# %% [markdown]
# *Read.* Few rows, but the most precious: they are the episodes in which the hopper never fell. Call them terminal and
# the critic learns that hopping well ends in nothing; this confusion is what users of offline data report most. The usual
# reader of D4RL's files drops such rows; ours keeps them, since the file knows the next state.
#
# ## 4. Drawing 10,000
#
# > The authors' code draws 10,000 single transitions uniformly at random, without replacement. [C]
#
# So do we, anew for each seed. The authors' code means to do that, too, but it sets NumPy's seed to 42 when it builds a
# dataset: repeats 2 to 5 get the same rows, so two draws stand behind five repeats [C]. Every arm of a seed gets the same
# draw: what differs between arms is then the method, not the luck of the draw. The hash of the rows is part of each run's
# record.

# %%
show(transitions.draw)

# %%
drawn, rest = transitions.draw(pool, 10_000, seed=0)
rows_of = lambda dataset: sorted(row.tobytes() for row in transitions.pack(dataset).numpy())  # noqa: E731
assert sorted(rows_of(drawn) + rows_of(rest)) == rows_of(pool), "drawn and held-out rows make up the pool, each once"
assert transitions.draw(pool, 10_000, seed=0)[0].sha256 == drawn.sha256, "the same seed draws the same rows"

# %% tags=["nbval-check-output"]
draws = [transitions.draw(pool, 10_000, seed)[0] for seed in (0, 1, 2)]
known = {state.tobytes() for state in drawn.state}
for seed, each in enumerate(draws):
    shared = np.mean([state.tobytes() in known for state in each.state])
    ends = f"{each.terminal.sum()} falls, {each.truncated.sum()} time limits, {len(np.unique(each.episode))} episodes"
    print(f"seed {seed}: {each.sha256[:12]}  {ends}, {shared:.0%} of its rows are also in seed 0's")

# %%
seconds = len(drawn) * tasks.make(task).unwrapped.dt
followed = np.mean([state.tobytes() in known for state in drawn.next_state])
chance = len(drawn) / 402_000
Markdown(f"""
*Read.* 10,000 transitions are **{seconds:.0f} seconds** of a hopper's life. They touch nearly every episode of the pool,
but only {followed:.0%} of them are followed by a row that was drawn too: one cannot walk along an episode in them.
(Targets several steps long need whole episodes, section 7.) And two seeds share rows: {len(drawn) / len(pool):.0%} of
them on average, where D4RL's 402,000 would give {chance:.1%}. So the spread over our seeds tells about other draws and
other agents, less about other data.""")

# %% [markdown]
# ## 5. How good are they?
#
# We expect many short, poor episodes from early on, and few good ones, which are long and so hold many rows. D4RL's
# figures are published [Farama-Foundation/D4RL]; its distribution we cannot redraw here, its mean we can.

# %%
lengths = pd.Series(pool.episode).value_counts()
about_data = {
    "our pool": (len(pool), len(lives), lives.mean()),
    "our whole replay": (card["replay_transitions"], card["replay_episodes"], card["replay_mean_return"]),
    "D4RL hopper-medium-replay-v2": (402_000, 2_041, 467.0),
}
comparison = pd.DataFrame(about_data, index=["transitions", "episodes", "mean return"]).T
comparison["mean score"] = tasks.normalised_score(task, comparison["mean return"])
comparison["mean length"] = comparison["transitions"] / comparison["episodes"]
comparison.round(1)

# %%
edges = np.arange(0, 3_400, 100)
counts = {"episodes": np.histogram(lives, edges)[0], "transitions": np.histogram(lives[pool.episode], edges)[0]}
table = pd.DataFrame({"return_low": edges[:-1], "return_high": edges[1:]} | counts)

figure, axes = plt.subplots(1, 2, sharex=True, figsize=(8, 4))
for axis, (unit, count) in zip(axes, counts.items(), strict=True):
    axis.stairs(count / count.sum(), edges, fill=True, color="#56B4E9")
    axis.axvline(lives.mean(), color="#0072B2", label=f"mean episode, ours: {lives.mean():.0f}")
    axis.axvline(467, color="#D55E00", linestyle="--", label="mean episode, D4RL's: 467")
    axis.axvline(task.return_medium, color="black", linestyle=":", label=f"medium level: {task.return_medium:,.0f}")
    axis.set(xlabel="return of the episode (rewards)", ylabel=f"share of {unit}", title=f"{unit}, by return")
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
about = f"Undiscounted return of the pool's {len(lives)} episodes; right, each transition counts. {origin}. D4RL: published mean."
path = figures.save_figure(figure, "01_returns", table, about, profile)

# %%
good = lives >= task.return_medium
share = good[pool.episode].mean()
Markdown(f"""
*Read.* {good.sum()} of {len(lives)} episodes ({good.mean():.0%}) reach the medium level; being long, they hold
{share:.0%} of the transitions. Half of all episodes return less than {lives.median():.0f}. Our mean of {lives.mean():.0f}
beside D4RL's 467 says that our data are {"poorer" if lives.mean() < 467 else "better"}. Our SAC needed
{card["replay_transitions"]:,} steps to the medium level, D4RL's 402,000; so theirs spent more steps on the way, at which
returns we cannot see. The two are alike in kind, not the same data: no number of ours is a reproduction of one on
D4RL's.""")

# %% [markdown]
# ## 6. Where has the hopper been?
#
# Two of the eleven dimensions decide whether it lives: below a height of 0.7 m, or tilted beyond 0.2 rad, the task ends.
# With the forward velocity they show most of what a hopper does. We count rows in cells of a grid: the pool, our draw,
# and another one.

# %%
tilt, forward = "torso angle (rad)", "forward velocity (m/s)"
place = {name: task.state_names.index(name) for name in (tilt, forward)}
grids = {tilt: np.linspace(-0.2, 0.2, 41), forward: np.linspace(-3, 5, 41)}
height = np.linspace(0.65, 1.75, 45)
cells = {}
for name, each in {"pool": pool, "draw, seed 0": draws[0], "draw, seed 1": draws[1]}.items():
    for across, grid in grids.items():
        count = np.histogram2d(each.state[:, place[across]], each.state[:, 0], (grid, height))[0]
        cells[name, across] = count / len(each)

# %%
figure, axes = plt.subplots(2, 3, figsize=(8, 6), sharey=True, sharex="row")
colours = LogNorm(1 / len(pool), max(share.max() for share in cells.values()))
for axis, ((name, across), share) in zip(axes.T.ravel(), cells.items(), strict=True):
    shown = np.where(share > 0, share, np.nan).T
    image = axis.pcolormesh(grids[across], height, shown, norm=colours, cmap="viridis", rasterized=True)
    axis.set(xlabel=across, title=f"{name}: {np.count_nonzero(share):,} cells")
    axis.grid(visible=False)
for axis in axes[:, 0]:
    axis.set_ylabel("height (m)")
axes[0, 0].set_xticks([-0.15, 0, 0.15])
bar = figure.colorbar(image, ax=axes, label="share of rows (logarithmic)", location="bottom", shrink=0.6)

# %%
drawn_cells = {key: pd.DataFrame(share, grids[key[1]][:-1], height[:-1]).stack() for key, share in cells.items()}
table = pd.DataFrame({name: pd.concat({across: drawn_cells[name, across] for across in grids}) for name, _ in cells})
table = table[table["pool"] > 0].rename_axis(["dimension", "from", "height_from"]).reset_index()
about = f"Share of rows in cells of height against torso angle and forward velocity; white: none. {origin}; draws of 10,000."
path = figures.save_figure(figure, "01_coverage", table, about, profile)

# %%
sizes = {key: np.count_nonzero(share) for key, share in cells.items()}
unseen = {across: cells["pool", across][cells["draw, seed 0", across] == 0].sum() for across in grids}
part = {across: f"{sizes['draw, seed 0', across] / sizes['pool', across]:.0%}" for across in grids}
Markdown(f"""
*Read.* Across the {tilt}, the draw has been in {part[tilt]} of the pool's cells; the others hold {unseen[tilt]:.1%} of the
pool's rows. Across the {forward}, in {part[forward]}; the others hold {unseen[forward]:.1%}. In two dimensions 10,000 rows
look like plenty: what they miss is the rim, where few have been. But a state has eleven dimensions.""")

# %% [markdown]
# ## 7. How far is the nearest known state?
#
# What counts for a model, or a critic, is how far a new state is from those it knows. Distance here is Euclidean, after each
# dimension was divided by its standard deviation. Two ways to ask, and we expect the second to be harder:
#
# - *single rows*: draw $n$ rows, ask at rows that were left out; most of them are milliseconds from a drawn one;
# - *whole episodes*: draw $n$ rows as whole episodes, ask in other episodes; this is what an agent online will meet.

# %%
show(transitions.draw_episodes)


# %%
def nearest(known, asked, scale, seed=0):
    """Returns the median distance of 500 asked states to the nearest known one, in standard deviations."""
    chosen = np.random.default_rng(seed).permutation(len(asked))[:500]
    return np.median(cdist(asked.state[chosen] / scale, known.state / scale).min(axis=1))


# %%
scale, numbers = pool.state.std(axis=0), [100, 316, 1_000, 3_162, 10_000, 31_623]
ways = {"single rows": transitions.draw, "whole episodes": transitions.draw_episodes}
found = [
    {"way": way, "rows": number, "seed": seed, "distance": nearest(*draw(pool, number, seed), scale, seed)}
    for way, draw in ways.items()
    for number in numbers
    for seed in (0, 1, 2)
]
table = pd.DataFrame(found).groupby(["way", "rows"], as_index=False)["distance"].agg(["mean", "min", "max"])
one_step = np.median(np.linalg.norm((pool.next_state - pool.state) / scale, axis=1))

# %%
figure, axis = plt.subplots()
for (way, rows_of_way), colour, line in zip(table.groupby("way"), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
    axis.plot(rows_of_way["rows"], rows_of_way["mean"], "o", color=colour, linestyle=line, label=way)
    axis.fill_between(rows_of_way["rows"], rows_of_way["min"], rows_of_way["max"], color=colour, alpha=0.15, linewidth=0)
axis.axhline(one_step, color="black", linestyle=":", label="length of one step (median)")
axis.axvline(10_000, color="#999999", linewidth=1)
axis.set(xscale="log", yscale="log", xlabel="rows drawn", ylabel="distance to the nearest known state\n(standard deviations)")
axis.set_xticks(numbers[::2], [f"{number:,}" for number in numbers[::2]])
axis.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
axis.minorticks_off()
axis.legend()
about = f"Median distance of 500 new states to the nearest drawn one; mean and range of three draws. {origin}."
path = figures.save_figure(figure, "01_neighbours", table, about, profile)

# %%
at = table[table["rows"] == 10_000].set_index("way")["mean"]
slope = {way: np.polyfit(np.log(each["rows"]), np.log(each["mean"]), 1)[0] for way, each in table.groupby("way")}
Markdown(f"""
*Read.* With 10,000 single rows the nearest known state is {at["single rows"] / one_step:.1f} steps away; in an episode
nobody has seen, {at["whole episodes"] / one_step:.1f}. The lines are shallow: to halve the distance takes
{2 ** (-1 / slope["single rows"]):.0f} times as many single rows, or {2 ** (-1 / slope["whole episodes"]):.0f} times as
many rows in whole episodes. That is how little 10,000 is; yet ten times as many rows would bring the nearest only
{1 - 10 ** slope["single rows"]:.0%} closer. A warning for chapter 02: an error *held out* at single rows is measured
close to known rows, and flatters.""")

# %% [markdown]
# ## 8. One scale for all dimensions
#
# Height moves by centimetres, a foot turns by radians a second. A squared error would see the foot alone. So states are
# standardised, with the drawn rows' own mean and standard deviation:
#
# $$\tilde s_i = \frac{s_i - \mu_i}{\sigma_i + \varepsilon}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $s$ | `state` | `[population, rows, state]` | of the environment |
# | $\mu$, $\sigma + \varepsilon$ | `mean`, `std` | `[population, state]` | of the environment |
# | $\varepsilon$ | `epsilon` | one number | $10^{-5}$ for the world model, $10^{-3}$ for the agent [C] |

# %%
show(transitions.Standardiser)

# %%
three = drawn.state[:3]
standardiser = transitions.Standardiser.fit([three], epsilon=1e-3)
standardised = standardiser.apply(torch.from_numpy(three)[None])[0].numpy()
by_hand = (three - three.mean(axis=0)) / (three.std(axis=0) + 1e-3)
assert np.allclose(standardised, by_hand, atol=1e-4), "subtract the mean, divide by the standard deviation plus epsilon"

# %%
scales = pd.DataFrame({"mean": drawn.state.mean(0), "standard deviation": drawn.state.std(0)}, index=task.state_names)
scales["one step"] = np.sqrt(np.square(drawn.next_state - drawn.state).mean(0))  # root mean square
scales["one step / deviation"] = scales["one step"] / scales["standard deviation"]
scales.round(3)

# %%
deviation, moved = scales["standard deviation"], scales["one step / deviation"].sort_values()
Markdown(f"""
*Read.* The largest standard deviation ({deviation.idxmax()}) is {deviation.max() / deviation.min():.0f} times the
smallest ({deviation.idxmin()}); against the smallest, epsilon = 0.001 is {1e-3 / deviation.min():.1%}, so it hardly
matters for Hopper. In one step the {moved.index[-1].split(" (")[0]} moves by {moved.iloc[-1]:.2f} of its deviation, the
median dimension by {moved.median():.2f}: *nothing moves* is a good guess, and chapter 02 takes it seriously.""")

# %% [markdown]
# ## 9. Four bodies, four qualities
#
# *Ask.* So far one body and one kind of data. The paper's claim is about four, and about data that are *poor*. How poor?
# `random` is of uniform actions. A task's other pools come from one training: `medium-replay` from all that was lived until the
# medium level, `medium` and `expert` from the agent of that moment and of the end. (A fifth, `medium-expert`, is half `medium`
# and half `expert`.) One exception: Hopper's `medium-replay` is of an earlier SAC, on another processor; the chapters that
# follow were recorded from it, so it stays. D4RL's medium level of Ant is not known here; ours is a third of the way from the
# return that scores 0 to the final one. We expect random hoppers and walkers to fall at once, and cheetahs, which cannot fall,
# to fill every episode.

# %%
qualities = {"random": "#999999", "medium-replay": "#0072B2", "medium": "#E69F00", "expert": "#D55E00"}
names = [f"{body}-{quality}" for body in tasks.TASKS for quality in qualities]
datasets = {name: read.load(name) for name in names}
files = {name: read.FOLDER / f"{name}.hdf5" for name in datasets}
cards = {name: read.read_card(file) for name, file in files.items()}


def summary(card):
    """Returns what a card says of its pool, in a row of a table."""
    row = {key: card[key] for key in ("transitions", "episodes", "mean_return", "mean_score", "terminals", "timeouts")}
    row["quartiles of the return"] = ", ".join(f"{card['return_quantiles'][share]:,.0f}" for share in ("25", "50", "75"))
    row["diversity"] = card["state_coverage"]["effective"]
    return row | {"D4RL's mean return": (card["d4rl"] or {}).get("mean_return")}


pd.DataFrame([summary(card) for card in cards.values()], index=list(cards)).round(1).astype(object).fillna("–")

# %% [markdown]
# *Diversity*: how many equally frequent cells of height by forward velocity would be as diverse (the exponential of the
# entropy of the cells' shares). Where each pool comes from:


# %%
def origin_of(card):
    """Returns what a card says of how its pool was made, in a row of a table."""
    made = card["provenance"]
    row = {"command": card["command"], "seed": card["seed"], "commit": made["commit"][:7], "processor": made["cpu"]}
    return row | {"licence": card["licence"], "SHA-256": card["sha256"][:12]}


pd.DataFrame([origin_of(card) for card in cards.values()], index=list(cards))

# %%
packages = ("python", "torch", "numpy", "gymnasium", "mujoco")
versions = {", ".join(f"{name} {card['provenance'][name]}" for name in packages) for card in cards.values()}
level = cards["ant-medium-replay"]["medium_level"]
leap = cards["hopper-medium"]
still = cards["ant-random"]
Markdown(f"""
*Read.* All with {" or ".join(sorted(versions))}. Random hoppers, walkers and most ants fall at once: {still["timeouts"]} of
{still["episodes"]} ants reach the time limit; cheetahs fill every episode. Ant's medium level is {level:,.0f}, a score of
{tasks.normalised_score(tasks.find("ant"), level):.0f}. `medium` can be better than its name: Hopper's scores
{leap["mean_score"]:.0f}, D4RL's {tasks.normalised_score(task, task.return_medium):.0f}, because an agent that leaps may be far
above the level when it first holds it. And diversity is not quality: of Ant's heights and speeds `random` holds more than
`medium-replay`.""")

# %% [markdown]
# What do such data look like? Eight moments of the episode with the median return, spread over a second, or over the whole
# life of a body that falls sooner.

# %%
for name, card in cards.items():
    display(Markdown(f"`{name}`; half of its episodes return less than {card['return_quantiles']['50']:,.0f}:"))
    display(Image(files[name].with_suffix(".png").read_bytes()))

# %% [markdown]
# *Look.* The share of transitions that belong to an episode of at most a given score: a curve far to the right is good data, a
# step is data that are all alike, a ramp is a mixture.


# %%
def shares(name):
    """Returns the scores of a pool's episodes, in rising order, and which share of its transitions lies at or below each."""
    body, data = tasks.find(name.split("-")[0]), datasets[name]
    lives = pd.Series(data.reward).groupby(data.episode).agg(["sum", "size"]).sort_values("sum")
    share = lives["size"].cumsum() / len(data)
    return pd.DataFrame({"pool": name, "score": tasks.normalised_score(body, lives["sum"]), "share": share})


# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, sharey=True)
table = pd.concat(map(shares, datasets))
for axis, body in zip(axes.flat, tasks.TASKS, strict=True):
    for quality, colour in qualities.items():
        own = table[table["pool"] == f"{body}-{quality}"]
        axis.step(own["score"], own["share"], where="post", color=colour, label=quality)
    axis.set(title=body, xlabel="D4RL-normalised score of the episode", ylabel="share of transitions", xlim=(-10, 150))
    axis.label_outer()
figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
about = "Share of each pool's transitions in episodes of at most a score. One training a task (Hopper's medium-replay: another)."
path = figures.save_figure(figure, "01_qualities", table, about, profile)

# %% [markdown]
# *Look.* And the agents whose lives the data are: when did each hold the medium level?

# %%
collectors = {name: card for name, card in cards.items() if name.endswith("-medium-replay")}
figure, axes = plt.subplots(2, 2, figsize=(8, 5.2), sharex=True, sharey=True)
for axis, each in zip(axes.flat, tasks.TASKS.values(), strict=True):
    card = collectors[f"{each.name}-medium-replay"]
    steps = np.array([point["environment_steps"] for point in card["curve"]]) / 1000
    score = tasks.normalised_score(each, np.array([point["returns"] for point in card["curve"]]))
    axis.plot(steps, score.mean(axis=1), color="#0072B2")
    axis.fill_between(steps, score.min(axis=1), score.max(axis=1), color="#0072B2", alpha=0.15, linewidth=0)
    axis.axhline(tasks.normalised_score(each, card.get("medium_level", each.return_medium)), color="#D55E00", linestyle="--")
    axis.set(title=each.name, xlabel="environment interactions (thousands)", ylabel="D4RL-normalised score", ylim=(-5, 105))
    axis.label_outer()
curve = [{"pool": name, **point} for name, card in collectors.items() for point in card["curve"]]
curve = pd.DataFrame(curve).explode("returns")
about = "Greedy score of the SAC that collected each pool (mean and range of ten episodes); dashed: the medium level. Seed 0."
path = figures.save_figure(figure, "01_collectors", curve, about, profile)


# %%
def compared(body, card):
    """Returns in words when a task's medium level was held and what its data return, D4RL's in brackets."""
    theirs = card["d4rl"].get("mean_return")
    brackets = "not known here" if theirs is None else f"{theirs:,.0f}"
    when = f"{body} after {card['replay_transitions']:,} ({card['d4rl']['transitions']:,})"
    return f"{when}, mean return {card['mean_return']:,.0f} ({brackets})"


sentences = [compared(body, collectors[f"{body}-medium-replay"]) for body in tasks.TASKS]
Markdown(f"""
*Read.* The medium level was held, D4RL's SAC in brackets, by {"; ".join(sentences)}. All four of our agents were
faster than D4RL's, and where D4RL's mean return is known ours is lower: a short life has a larger share of beginnings, we
suppose, but D4RL's episodes are not here to be counted. *Medium-replay* says how data came about, not how good they are. A
result on ours and one on D4RL's are results on two datasets.""")

# %% [markdown]
# ## Where we differ from the paper
#
# - Data: our own SAC on `Hopper-v5`, not D4RL's on its older Hopper; a pool of whole episodes, not the full replay.
# - Time limits are kept as transitions that bootstrap. How the authors' reader treats them we do not know.
# - Seeds share rows of the pool, as section 4 shows.
#
# ## Try it
#
# - In section 4, `transitions.draw(pool, 1_000, seed=0)`: how many falls are left to learn from?
# - In section 6, give `forward` the value `"foot velocity (rad/s)"`, and its grid `np.linspace(-10, 10, 41)`: what piles up at
# the ends?
# - In section 3, set `d` to 1 for the third row by hand: by how much does its target fall?
#
# ## Questions
#
# <details><summary>Why is a time limit not the end?</summary>
#
# The state has no clock. A hopper at step 999 looks like one at step 10; if the first has no future, the second has none
# either, and the critic averages both. Since only good hoppers reach the limit, the best states lose most.
# </details>
#
# <details><summary>Why the same draw for every arm?</summary>
#
# Draws differ in luck. If two arms had different draws, their difference would hold that luck twice; paired, it cancels.
# Fewer seeds then tell as much.
# </details>
#
# <details><summary>Why divide by the data's standard deviation, and not by the range the task allows?</summary>
#
# Most dimensions have no such range, and where they do (velocities are cut at 10) the data rarely fill it. What matters
# to a network is how the inputs it meets are spread.
# </details>
#
# **Next:** [02 · World model](02_world_model.ipynb): can a VAE predict one step from so little?
