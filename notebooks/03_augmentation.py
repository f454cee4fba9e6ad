# %% [markdown]
# # 03 · Augmentation
#
# **What does replacing next states do to a batch, to the targets, to the critic?** It changes one column of the batch,
# and through it one number a row, the value that the target bootstraps from; part of that movement averages out and
# part stays, and how they are divided is what tells the model's imagination from noise of the same size.
#
# | | |
# |---|---|
# | needs | the pool `hopper-medium-replay`; no recorded runs: everything here is computed now |
# | gives | figures `03_table`, `03_batch`, `03_outside`, `03_targets`, `03_critic`, and the tables of this page |
# | minutes on one core | paper and quick: about 1 · smoke: less than 1 |
#
# Chapter 02 asked how good the imagined next states are. Here we take them as they are and follow one of them through
# the algorithm: into a batch, into a target, into a critic.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/runs; True: train now, into build/runs

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy import stats

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import studies
from mbaug.experiments.models import FAST
from mbaug.method import augmentation, imagination, settings, td3, training, transitions, world_model
from mbaug.method.arms import Arm
from mbaug.method.networks import TWIN
from mbaug.method.transitions import Batch, Standardiser
from mbaug.reporting import figures
from mbaug.reporting.figures import save_figure, show

precision = engine.prepare("bfloat16" if engine.has_bfloat16() else "float32")  # of the live world model
arithmetic = replace(FAST, precision=precision)
figures.style()

# %% [markdown]
# The budgets depend on the profile, the method does not. `drawn` is what seed 0 learns from in every arm; `probe` are
# rows of the rest of the pool, one in ten, that nobody is trained on.

# %%
task, budget = tasks.find("hopper"), studies.profile(profile)
epochs, updates = (2, 100) if profile == "smoke" else (6, 500)
size = budget.transitions or settings.Pretraining().transitions
drawn, rest = transitions.draw(read.load("hopper-medium-replay"), size, seed=0)
probe = rest.rows(np.arange(0, len(rest), 10))
Markdown(f"{len(drawn):,} drawn transitions, {len(probe):,} held out, {updates:,} updates of each live critic.")

# %% [markdown]
# ## 1. The rule
#
# *Ask.* What exactly is replaced? The whole method is one line, and it would be easy to do slightly more than it says:
# to imagine a reward as well, to clear a `terminal`, or to replace a random number of rows. We expect none of that.
#
# > While pre-training, replace 50 % of the next states in each batch by the model's predictions. [S, A] Action, reward and done
# > stay as recorded; only the critic's target sees the imagined state. [C]
#
# $$ n = \operatorname{round}(\rho B), \qquad
# s'_j \leftarrow \begin{cases} \hat s'_j & j \le n \\ s'_j & j > n \end{cases}, \qquad
# (s_j, a_j, r_j, d_j) \text{ unchanged} $$
#
# | symbol | name in code | shape | unit |
# |---|---|---|---|
# | $\rho$ | `rate` | scalar in [0, 1] | share of a batch |
# | $B$ | `batch.next_state.shape[-2]` | scalar | transitions |
# | $n$ | `replaced(rate, B)` | scalar | transitions |
# | $s'$ | `batch.next_state` | `population batch state` | the environment's, or standardised |
# | $\hat s'$ | `imagined` | `population batch state` | as $s'$ |
# | $a, r, d$ | `action`, `reward`, `terminal` | `population batch` (…) | as recorded |

# %%
show(augmentation.replaced, augmentation.augment)

# %% [markdown]
# *Check by hand.* Three rows with one-dimensional states; the imagined next states lie half a unit above the real ones,
# and the second row ends its episode. At a rate of two thirds the first two rows must change, in that one column.

# %% tags=["nbval-check-output"]
real = torch.tensor([[[10.0], [20.0], [30.0]]])
scalars = {"reward": torch.tensor([[1.0, 2.0, 3.0]]), "terminal": torch.tensor([[0.0, 1.0, 0.0]])}
three = Batch(state=real - 1, action=torch.zeros(1, 3, 1), next_state=real, **scalars)
after = augmentation.augment(three, imagined=real + 0.5, rate=2 / 3)

assert np.array_equal(after.next_state, [[[10.5], [20.5], [30.0]]]), "the first two next states must be the imagined ones"
kept = [name for name in Batch._fields if torch.equal(getattr(after, name), getattr(three, name))]
assert kept == ["state", "action", "reward", "terminal"], "augmentation must touch next states alone"
print(f"Two of three next states are imagined; {', '.join(kept)} stay.")

# %% [markdown]
# *Look.* How many of a batch are replaced at each rate of this project.

# %% tags=["nbval-check-output"]
learner, rule = td3.TD3(), settings.Augmentation()
for rate in (0, 0.25, 0.5, 0.75, 1):
    print(f"{rate:4.0%} of a batch of {learner.batch_size}: {augmentation.replaced(rate, learner.batch_size):3d} next states")

# %% [markdown]
# *Read.* The count is exact in every batch, not only on average. It is always the first $n$ rows; that is as random as
# any other choice because the rows of a batch are drawn independently, one by one. What the rule leaves behind is a
# small contradiction: the reward of a replaced row was paid for the real next state (Hopper pays for the distance
# covered in the step), and the row now says that the same action, for the same reward, led somewhere else.

# %% [markdown]
# ## 2. What can replace a next state
#
# *Ask.* The rule asks nobody where $\hat s'$ comes from. `predict` is an argument, so besides the paper's model we can
# put in things that are wrong in a different way. Each source separates one suspicion from the others.
#
# | source | $\hat s'$ | what it holds |
# |---|---|---|
# | `sample` | $D(z + f(z, a))$, $z \sim q(z \mid s)$ | the paper's: dynamics, blur and sampling noise |
# | `mean` | the same with $z = \mu(s)$ | dynamics and blur |
# | `reconstruction` | $D(z)$, $z \sim q(z \mid s')$ | blur and sampling noise, no dynamics |
# | `noise` | $s' + \sigma n$ | as wrong as `sample` in each dimension, but knows nothing |
# | `deterministic` | $s + f(s, a)$ | dynamics of a plain network as large as the model |

# %%
show(imagination.predictor, imagination.add_noise)

# %% [markdown]
# The full fit of chapter 02 takes minutes. This chapter needs a real model, not the best one; so its batches are half
# as large as the critic's, which makes a step much cheaper, and the weight of the KL term is kept at the paper's third.
# Held-out errors are in units of the data's variance: 1 is the error of who always answers with the mean state.

# %%
batches = -(-len(world_model.interior(drawn)) // 128)
plan = settings.WorldModel(batch_size=128, kl_weight=batches / 3, epochs=epochs)
fitted = imagination.fit(plan, drawn, probe, 0, arithmetic, checks=1)
control = world_model.fit_deterministic(plan, drawn, 0, arithmetic)
fitted = imagination.with_deterministic(fitted, control, probe, 0)
held_out = {name: np.mean(error) for name, error in fitted.errors.items()}
pd.Series(held_out, name="held-out error").round(3).to_frame().T

# %%
full = settings.WorldModel()
Markdown(f"""
{batches * epochs} steps on {plan.batch_size} rows, where the recorded runs take {3 * full.epochs} on
{full.batch_size:,}. The sample errs by {held_out["sample"]:.2f}, and saying that nothing moves by
{held_out["persistence"]:.3f}. Whatever this model is good for, it is not knowing the next state; chapter 02 says why,
and the deterministic network shows that it could be known.
""")

# %% [markdown]
# Now every source imagines a next state for every drawn row: $K$ of them where it is random, one where it is not.

# %%
everything = transitions.unpack(transitions.pack(drawn), task.state_size, task.action_size)
inputs = everything.state, everything.action, everything.next_state
sources = "sample", "mean", "reconstruction", "noise", "deterministic"
tables = {}
for source in sources:
    predict = imagination.predictor(source, fitted, drawn)
    samples = 1 if source in ("mean", "deterministic") else rule.table_samples
    generator = streams.torch_generator(0, "imagination", source)
    tables[source] = augmentation.imagined_table(predict, *inputs, samples, generator)
shapes = {source: tuple(table.shape) for source, table in tables.items()}
pd.Series(shapes, name="rows, samples, state").to_frame()

# %% [markdown]
# ## 3. A table of K imagined next states
#
# *Ask.* Calling the model on every batch costs about as much as the update itself. But its inputs are always the same
# rows, so $K$ answers a row can be made beforehand and one of them picked at random; now and then the table is made
# anew. Does a batch then see the same distribution? It should: a random pick from independent samples of a distribution
# is a sample of it.
#
# $$ T_{jk} \sim p(\hat s' \mid s_j, a_j), \quad k = 1 \dots K, \qquad \kappa \sim U\{1 \dots K\}
# \quad\Rightarrow\quad T_{j\kappa} \sim p(\hat s' \mid s_j, a_j) $$
#
# | symbol | name in code | shape | unit |
# |---|---|---|---|
# | $T$ | `imagined` | `rows samples state`, one for each agent | standardised in training |
# | $K$ | `Augmentation.table_samples` | scalar | samples a row |
# | $j$ | `index` | `block population count` | row of the draw |
# | $\kappa$ | `sample` | as $j$ | column of the table |
#
# Training picks a sample of each row's table and then calls `augment`, the very function shown above.

# %%
show(augmentation.imagined_table, augmentation.pick)

# %% [markdown]
# *Check.* One row, two ways, 2,000 times each: asked directly, and picked by `pick` from tables of its
# own, a fresh table for every pick. The Kolmogorov–Smirnov statistic is the largest gap between two
# cumulative distributions. A test that cannot fail shows nothing; so the same test also compares the
# model's samples with the matched noise, which it must tell apart.

# %%
copies = [part[:1].repeat_interleave(2_000, dim=0) for part in inputs]
predict = imagination.predictor("sample", fitted, drawn)
direct = predict(*copies, streams.torch_generator(0, "direct"))
generator = streams.torch_generator(0, "tables")
fresh = augmentation.imagined_table(predict, *copies, rule.table_samples, generator)
every = torch.arange(2_000).view(1, 1, -1)  # a block of one, one agent
picked = augmentation.pick(fresh.unsqueeze(0), every, streams.torch_generators([0], "picks"))[0, 0]
noisy = imagination.add_noise(copies[-1], fitted.noise_std, streams.torch_generator(0, "noisy"))


# %%
def gaps(one, other):
    """Returns the Kolmogorov-Smirnov statistic of two sets of states, for each dimension."""
    return np.array([stats.ks_2samp(one[:, i], other[:, i]).statistic for i in range(one.shape[1])])


table_gaps, noise_gaps = gaps(direct, picked), gaps(direct, noisy)
level = stats.kstwobign.isf(0.05 / task.state_size) * np.sqrt(2 / 2_000)  # 5 % for all dimensions together
pd.DataFrame({"table": table_gaps, "matched noise": noise_gaps}, task.state_names).round(3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.1))
unit, levels = fitted.model.standardiser.std, torch.linspace(0.005, 0.995, 100)
quantiles = [torch.quantile(x / unit, levels, dim=0) for x in (direct, picked)]
quantiles = [x - quantiles[0].mean(dim=0) for x in quantiles]
left.axline((0, 0), slope=1, color="#000000", linewidth=0.8)
left.plot(*quantiles, ".", markersize=3, alpha=0.6)
left.set(xlabel="quantile, asked directly (standard deviations)", ylabel="quantile, picked from tables")
left.set_title("All dimensions of one row's next state")
left.locator_params(nbins=5)

shown = task.state_names.index("forward velocity (m/s)")
bins, outline = np.histogram_bin_edges(direct[:, shown], 30), {"histtype": "step", "linewidth": 1.8}
right.hist(direct[:, shown], bins, color="#0072B2", label="asked directly", **outline)
right.hist(picked[:, shown], bins, color="#D55E00", label="picked from tables", **outline)
ticks, place = fresh[0, :, shown], np.full(rule.table_samples, -6)
right.plot(ticks, place, "|", color="#000000", markersize=9, label="one table")
right.axvline(everything.next_state[0, shown], color="#009E73", linestyle="--", label="real next state")
right.set(xlabel=task.state_names[shown], ylabel="samples", ylim=(-14, None))
right.set_title("One of them")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
frame = pd.DataFrame({"direct": direct[:, shown], "table": picked[:, shown]})
caption = "One row's imagined next state: 2,000 samples asked of the model against 2,000 picks from tables. Seed 0."
path = save_figure(figure, "03_table", frame, caption, profile)

# %%
verdict = "within" if table_gaps.max() < level else "beyond"
Markdown(f"""
*Read.* The largest of {task.state_size} gaps between table and model is {table_gaps.max():.3f}, {verdict} what chance
gives ({level:.3f}); that between matched noise and model is {noise_gaps.max():.2f}. What is equal is the distribution
of *one* pick. Until a table is made anew, a row knows only its {rule.table_samples} ticks in the right-hand picture,
and its picks repeat: over a whole pre-training they are as many samples as tables times ticks.
""")

# %% [markdown]
# *What it saves* is arithmetic on the settings: how often a row is replaced while a table lives, against how often the
# model was asked for it.

# %% tags=["nbval-check-output"]
per_update = augmentation.replaced(rule.rate, learner.batch_size)
visits = rule.redraw_interval * per_update / settings.Pretraining().transitions
redraws = settings.Pretraining().updates // rule.redraw_interval
print(f"Each row is replaced {visits:.0f} times while a table lives; the table asks the model {rule.table_samples} times a row.")
print(f"So the model works {visits / rule.table_samples:.0f} times less, and in batches as large as it likes.")
print(f"In a whole pre-training a row meets {redraws * rule.table_samples} different imagined next states.")

# %% [markdown]
# ## 4. A batch before and after
#
# *Ask.* What does the critic get to see? We draw one batch, replace half of it, and look at two of the dimensions: how
# the torso leans, and how fast it moves forward. We expect the imagined states to stay inside the cloud and to scatter
# around the real ones by much more than one step of the simulator moves them.

# %%
generator = streams.torch_generator(0, "one batch")
index = torch.randint(len(drawn), (learner.batch_size,), generator=generator)
before = Batch(*(part[index] for part in everything))
after = augmentation.augment(before, tables["sample"][index, 0], rule.rate)
changed = (after.next_state != before.next_state).any(dim=-1)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
x, y = (task.state_names.index(name) for name in ("torso angle (rad)", "forward velocity (m/s)"))
old, new = before.next_state, after.next_state
for axis, title in zip(axes, ("before", f"after, rate {100 * rule.rate:.0f} %"), strict=True):
    cloud = drawn.next_state[:, x], drawn.next_state[:, y]
    axis.plot(*cloud, ".", color="#D5D5D5", markersize=2, zorder=0, rasterized=True)
    axis.plot(old[~changed, x], old[~changed, y], ".", color="#000000", markersize=4, label="real")
    axis.set(title=title, xlabel=task.state_names[x])
axes[0].plot(old[changed, x], old[changed, y], ".", color="#E69F00", markersize=4, label="real, to be replaced")
lines = torch.stack([old[changed], new[changed]])
axes[1].plot(lines[..., x], lines[..., y], color="#0072B2", linewidth=0.5, alpha=0.6)
axes[1].plot(new[changed, x], new[changed, y], ".", color="#0072B2", markersize=5, label="imagined, and whence")
axes[0].set_ylabel(task.state_names[y])
for axis in axes:
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, handletextpad=0.2)
names = [task.state_names[i] for i in (x, y)]
frame = pd.DataFrame(np.hstack([old[:, [x, y]], new[:, [x, y]]]), columns=[*names, *(f"{name} after" for name in names)])
caption = f"Next states of one batch of {learner.batch_size} before and after augmentation; grey: all drawn rows. Seed 0."
path = save_figure(figure, "03_batch", frame.assign(imagined=changed), caption, profile)

# %% [markdown]
# The same in numbers: the distance of one step, and the distance from the real to the imagined next state, both as the
# root mean square over dimensions in standard deviations of the data.


# %%
def distance(one, other):
    """Returns the root mean square difference of two sets of states in standard deviations."""
    return float(((one - other) / unit).square().mean().sqrt())


moved = distance(before.next_state, before.state)
wrong = distance(after.next_state[changed], before.next_state[changed])
mean = fitted.model.standardiser.mean
old, new = ((x[changed] - mean) / unit for x in (before.next_state, after.next_state))
kept = ((old * new).sum(dim=0) / old.square().sum(dim=0)).mean()
Markdown(f"""
*Read.* {changed.sum()} of {learner.batch_size} next states moved, by {wrong:.2f} standard deviations a dimension; one
step of the simulator moves a state by {moved:.2f}. Here an imagined next state is thus
{"further from" if wrong > moved else "nearer to"} the real one than the state before was. The lines do not point just
anywhere: over all dimensions an imagined state keeps {100 * kept:.0f} % of the real one's deviation from the mean, and what is
lost pulls towards the middle of the cloud. Two dimensions of eleven show no joint angles, and a point inside the cloud
of each pair may still be a posture that cannot be.
""")

# %% [markdown]
# ## 5. Imagined states outside the data
#
# *Ask.* A critic that is asked about states far from all data answers with whatever its network happens to hold there.
# How many imagined states are such? The record of every run holds one cheap sign of it: the share of components outside
# the range that the drawn next states span.
#
# $$ o = \frac{1}{N K S} \sum_{j, k, i}
# \mathbf 1\left[\hat s'_{jki} < \min_j s'_{ji} \ \text{or}\ \hat s'_{jki} > \max_j s'_{ji}\right] $$
#
# | symbol | name in code | shape | unit |
# |---|---|---|---|
# | $o$ | `outside(imagined, next_state)`, `imagined_outside` in records | scalar | share of components |
# | $\hat s'_{jki}$ | `imagined` | `rows samples state` | the environment's |
# | $s'_{ji}$ | `next_state` | `rows state` | the environment's |

# %%
show(augmentation.outside)

# %% tags=["nbval-check-output"]
data = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, 9.0]])
thought = torch.tensor([[[-0.1, 4.0]], [[1.0, 4.0]], [[1.5, 9.1]]])
low, high = data.numpy().min(axis=0), data.numpy().max(axis=0)
by_hand = np.mean((thought[:, 0].numpy() < low) | (thought[:, 0].numpy() > high))
assert np.isclose(augmentation.outside(thought, data), by_hand), "two of six components lie outside"
print(f"Two of six components lie outside: {by_hand:.3f}.")

# %% [markdown]
# A range is a weak fence: a state may lie within it in every dimension and still be like no state that ever was. So
# beside it we measure the distance to the nearest real next state of *another* row, and hold it against the same
# distance of real states.


# %%
def nearest(states, rows):
    """Returns each state's distance to the nearest next state of another row, in standard deviations a dimension."""
    apart = torch.cdist(states / unit, everything.next_state / unit) / task.state_size**0.5
    apart[torch.arange(len(rows)), rows] = torch.inf
    return apart.amin(dim=1).numpy()


rows = torch.arange(min(1_000, len(drawn)))
lonely = {"real": nearest(everything.next_state[rows], rows)}
lonely |= {source: nearest(tables[source][rows, 0], rows) for source in sources}
beyond = {source: augmentation.outside(tables[source], everything.next_state) for source in sources}
apart = {name: np.median(distances) for name, distances in lonely.items()}
pd.DataFrame({"outside the range": beyond, "median distance": apart}).round(4)


# %%
def look(source):
    """Returns colour and line style of a source, those of its arm where it has one."""
    arm = {"sample": "augmented", "noise": "noise", "deterministic": "deterministic"}.get(source, f"augmented_{source}")
    return {"color": figures.look(arm).colour, "linestyle": figures.look(arm).line, "label": source}


figure, axis = plt.subplots(figsize=(8, 3.8))
share = np.linspace(0, 1, 101)
spread = pd.DataFrame({name: np.quantile(d, share) for name, d in lonely.items()})
axis.plot(spread["real"], 100 * share, color="#000000", label="real", linewidth=2.5)
for source in sources:
    axis.plot(spread[source], 100 * share, **look(source))
axis.set(xlabel="distance to the nearest other real next state (standard deviations a dimension)", ylabel="states (%)")
axis.set_xlim(0, spread.quantile(0.97).max())
axis.legend(loc="lower right")
caption = f"How far imagined next states are from the data, for {len(rows):,} rows of each source. Seed 0."
path = save_figure(figure, "03_outside", spread.assign(share=share), caption, profile)

# %%
order = sorted(sources, key=apart.get)
Markdown(f"""
*Read.* The range catches little, at most {100 * max(beyond.values()):.1f} % of the components (for
`{max(beyond, key=beyond.get)}`), but the sources differ: a real state has its nearest neighbour at {apart["real"]:.2f},
the model's sample at {apart["sample"]:.2f}, matched noise of the same size at {apart["noise"]:.2f}. From near to far
they are {", ".join(f"`{source}`" for source in order)}. Equal error does not mean equal strangeness: noise errs in each
dimension by itself, a decoder errs along the data. This is why matched noise is a fair control of *size* and not of
*direction*.
""")

# %% [markdown]
# ## 6. Three agents that differ in the rate alone
#
# *Ask.* To see targets move we need a critic that has learned something. We train three agents side by side on the
# population axis: the same seed three times, so the same rows, the same first weights, the same batches and noise; only
# $\rho$ is 0, 50 and 100 %. Whatever differs at the end was done by augmentation. The loop below is all of offline
# training; chapter 04 takes its losses apart.


# %%
def mixed(batch: Batch, imagined: torch.Tensor, rates: list[float]) -> Batch:
    """Returns the batch with each agent's own share of next states imagined."""
    agents = [
        augmentation.augment(Batch(*(part[k : k + 1] for part in batch)), imagined[k : k + 1], rate)
        for k, rate in enumerate(rates)
    ]
    return Batch(*map(torch.cat, zip(*agents, strict=True)))


rates = [0.0, 0.5, 1.0]
seeds = [0] * len(rates)
standardiser = Standardiser.fit([drawn.state] * len(rates), settings.Pretraining().standardiser_epsilon)
table = transitions.unpack(transitions.table([drawn] * len(rates), standardiser), task.state_size, task.action_size)
imagined = {}
for source, each in tables.items():
    flat = each.flatten(0, 1).expand(len(rates), -1, -1)
    imagined[source] = standardiser.apply(flat).unflatten(1, each.shape[:2])


# %%
@torch.no_grad()
def values(rows: torch.Tensor) -> torch.Tensor:
    """Returns each agent's min_i Q_i(s, a) for rows of the table."""
    return agent.critics(table.state[:, rows], table.action[:, rows]).amin(dim=TWIN)


critics = training.learner(Arm("td3", learner), task, seeds, standardiser, arithmetic=FAST)
agent, learn = critics.agent, training.updater(critics, td3.actor_loss_bc)
generator = streams.torch_generator(0, "live critic")
watched, history = torch.arange(min(1_000, len(drawn))), []
for step in range(1, updates + 1):
    index = torch.randint(len(drawn), (learner.batch_size,), generator=generator)
    sample = torch.randint(rule.table_samples, index.shape, generator=generator)
    batch = mixed(Batch(*(part[:, index] for part in table)), imagined["sample"][:, index, sample], rates)
    normal = torch.randn(1, 1, learner.batch_size, task.action_size, generator=generator)
    noise = td3.noise(normal.expand(-1, len(rates), -1, -1), learner)
    learn(Batch(*(part.unsqueeze(0) for part in batch)), noise.unsqueeze(0))  # a block of one update
    if step % (updates // 20) == 0:
        history.append(values(watched))

# %% [markdown]
# ## 7. What it does to the targets
#
# *Ask.* The critic regresses on $y$, and $\hat s'$ enters it in one place. How far does $y$ move, and does the movement
# average out over the model's samples or stay? We ask the agent that has never seen an imagined state, so that only the
# question changes, not the one who answers.
#
# $$ y = r + \gamma (1 - d) \min_i Q'_i\big(s', \pi'(s') + \epsilon\big), \qquad
# \Delta y = y(\hat s') - y(s') $$
#
# $$ \underbrace{\overline{\Delta y}^{\,k}}_{\text{stays}} \quad\text{and}\quad
# \underbrace{\Delta y_k - \overline{\Delta y}^{\,k}}_{\text{averages out}}, \qquad
# \operatorname{rms}_\rho(\Delta y) = \sqrt{\rho}\; \operatorname{rms}_1(\Delta y) \ \text{ on average over batches} $$
#
# | symbol | name in code | shape | unit |
# |---|---|---|---|
# | $y$ | `critic_target(...)` | `population batch` | rewards |
# | $\Delta y$ | `shift` | `samples batch` | rewards |
# | $\gamma$ | `settings.discount` | scalar | per step |
# | $d$ | `batch.terminal` | `population batch` | 0 or 1 |
# | $\epsilon$ | `noise` | `population batch action` | of an action |
# | $k$ | sample of the table | $K$ | – |

# %%
show(td3.critic_target)

# %% [markdown]
# *Check by hand.* Where an episode ends, nothing is bootstrapped, so the target is the reward and imagination cannot
# change it.

# %% tags=["nbval-check-output"]
ends = torch.from_numpy(np.flatnonzero(drawn.terminal)[:3])
still = torch.zeros(len(rates), len(ends), task.action_size)
ending = Batch(*(part[:, ends] for part in table))
dreamt = augmentation.augment(ending, imagined["sample"][:, ends, 0], rate=1)
assert not torch.equal(dreamt.next_state, ending.next_state), "the next states must differ"
assert torch.equal(td3.critic_target(agent, dreamt, learner, still), ending.reward), "the target must be the reward alone"
print("On rows that end an episode the target is the reward, whatever is imagined.")


# %%
def target(next_state):
    """Returns the targets of the agent that was trained at rate 0, for the watched rows, without target noise."""
    batch = Batch(*(part[:, watched] for part in table))._replace(next_state=next_state)
    still = torch.zeros(len(rates), len(watched), task.action_size)
    return td3.critic_target(agent, batch, learner, still)[0]


truth = target(table.next_state[:, watched])
shift = {
    source: torch.stack([target(each[:, watched, k]) - truth for k in range(each.shape[2])]) for source, each in imagined.items()
}


# %% [markdown]
# `stays` is the root mean square over rows of the mean over samples, with the part that $K$ samples leave of their own
# noise taken off; `averages out` is the root mean square of what is left. `mean` says whether targets rise or fall as a
# whole.


# %%
def parts(shift):
    """Returns the mean shift, its lasting and its passing part, in rewards."""
    samples = len(shift)
    passing = shift.var(dim=0).mean() if samples > 1 else torch.zeros(())
    lasting = (shift.mean(dim=0).square().mean() - passing / samples).clamp(min=0)
    return {"mean": shift.mean().item(), "stays": lasting.sqrt().item(), "averages out": passing.sqrt().item()}


moves = pd.DataFrame({source: parts(shift[source]) for source in sources}).T
moves.round(2).assign(**{"of the targets' spread (%)": (100 * moves["stays"] / truth.std().item()).round().astype(int)})

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.8))
left.axline((0, 0), slope=1, color="#000000", linewidth=0.8)
left.plot(truth, truth + shift["sample"][0], ".", markersize=2, color=look("sample")["color"])
left.set(xlabel="target, real next state (rewards)", ylabel="target, model's sample (rewards)", title="One row, one point")
steps, frame = np.linspace(0, 1, 5), []
for place, source in enumerate(sources):
    counts = [augmentation.replaced(rate, len(watched)) for rate in steps]
    rms = [float((shift[source][0, :count].square().sum() / len(watched)).sqrt()) for count in counts]
    middle.plot(100 * steps, rms, marker="o", markersize=4, **look(source))
    for offset, part, alpha in ((-0.2, "stays", 1), (0.2, "averages out", 0.4)):
        right.barh(place + offset, moves.loc[source, part], 0.38, color=look(source)["color"], alpha=alpha)
    frame.append(pd.DataFrame({"source": source, "rate": steps, "rms": rms, **moves.loc[source]}))
middle.set(xlabel="rate (%)", ylabel="root mean square shift (rewards)", title="How far targets move")
right.set(xlabel="shift at 100 % (rewards)", title="What becomes of it")
right.set_yticks(range(len(sources)), sources)
right.invert_yaxis()
for part, alpha in (("stays", 1), ("averages out", 0.4)):
    right.plot([], [], linewidth=8, color="#555555", alpha=alpha, label=part)
right.legend(loc="lower right")
figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=5)
caption = f"Targets with imagined next states, by a critic after {updates:,} updates at rate 0; {len(watched):,} rows, seed 0."
path = save_figure(figure, "03_targets", pd.concat(frame), caption, profile)

# %%
own, control = moves.loc["sample"], moves.loc["noise"]
Markdown(f"""
*Read.* At a rate of 100 % the model's sample moves targets by {np.hypot(own["stays"], own["averages out"]):.2f}
rewards, where the targets themselves spread by {truth.std().item():.2f}. Of that, {own["stays"]:.2f} stays with a row
and {own["averages out"]:.2f} averages out over samples; for matched noise it is {control["stays"]:.2f} and
{control["averages out"]:.2f}. What averages out is gradient noise: it slows the regression down and does not move where
it ends. What stays is another regression: the critic learns the value of the model's world. A rate of 50 % takes half
of the rows at a time, so in the long run *every* row's target moves by half of what stays, with coin-flip noise on top.
One critic, {updates:,} updates young, with one world model: sizes, and shares too, may change as they grow.
""")

# %% [markdown]
# ## 8. What it does to the critic
#
# *Ask.* Do the three critics now differ in how far their values spread over the data? The paper says that augmentation
# smooths the critic. [S, A] If its values spread less at a higher rate, that is a first sign; a critic that merely
# learns more slowly would show the same.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
arms = ["vanilla", "augmented", "augmented_100"]
when = updates // 20 * np.arange(1, len(history) + 1)
spreads = torch.stack(history).std(dim=-1)
for k, arm in enumerate(arms):
    style = {"color": figures.look(arm).colour, "linestyle": figures.look(arm).line}
    style["label"] = f"{100 * rates[k]:.0f} %"
    left.plot(when, spreads[:, k], **style)
    right.hist(history[-1][k], 40, histtype="step", linewidth=1.8, density=True, **style)
left.set(xlabel="updates", ylabel="standard deviation of values (rewards)", title="Spread over the data, as it grows")
right.set(xlabel="value of the data's actions (rewards)", ylabel="density", title=f"After {updates:,} updates")
left.legend(title="rate")
frame = pd.DataFrame({"updates": when, **{f"rate {rate:.0%}": spreads[:, k] for k, rate in enumerate(rates)}})
caption = f"Values of {len(watched):,} data rows for three critics that differ in the rate alone, {updates:,} updates, seed 0."
path = save_figure(figure, "03_critic", frame, caption, profile)

# %%
none, half, whole = (history[-1][k] for k in range(len(rates)))
together = np.corrcoef(torch.stack([none, half, whole]))
Markdown(f"""
*Read.* After {updates:,} updates the values spread by {none.std():.2f} rewards without augmentation, {half.std():.2f}
at 50 % and {whole.std():.2f} at 100 %; their means are {none.mean():.2f}, {half.mean():.2f} and {whole.mean():.2f}. The
rows are still ranked nearly alike: the correlation with the critic without augmentation is {together[0, 1]:.3f} at 50 %
and {together[0, 2]:.3f} at 100 %. One seed, and early: over-fitting is a matter of many passes over the same rows,
which chapter 04 measures where it can be measured, on rows that no critic was trained on.
""")

# %% [markdown]
# ## Where we differ from the paper
#
# - **A table instead of calls.** The authors' code asks the model for each batch [C]; ours makes $K$ samples a row at a
# time. Section 3 shows what is equal (the distribution of a pick) and what is not (picks repeat while a table lives).
# - **Noise as a control.** The authors' code has a variant that adds Gaussian noise of standard deviation 0.1 to the next
# states, whatever the model's error [C]. Our control has the size of the model's held-out error, dimension by dimension.
# - **The first rows instead of random ones.** Equal in law, because rows of a batch are drawn independently.
# - **Rows that end an episode** may be replaced too; there the target does not look at the next state (section 7).
# - **The model of this chapter** is a short fit on small batches; the recorded runs use the paper's 300 epochs.
#
# ## Try it
#
# 1. `rule = settings.Augmentation(table_samples=1)`: how strongly do picks repeat, and what is left in the column
# `averages out`?
# 2. In section 6, `imagined["noise"]` in place of `imagined["sample"]`: do the three critics differ as much?
# 3. `plan = settings.WorldModel(batch_size=128, kl_weight=0, epochs=epochs)`: no KL term, no blur; follow it to the
# targets.
#
# ## Questions
#
# <details><summary>Why is the reward not imagined as well?</summary>
#
# The rule leaves it as recorded [C], and the model does not predict one. A replaced row is therefore a mixed statement:
# the reward of what happened, the value of what was imagined. With a step of the simulator so short the contradiction
# is small beside the model's error; MBPO and its kin learn the reward because they imagine many steps.
#
# </details>
#
# <details><summary>Does a sampled prediction regularise more than its mean?</summary>
#
# In the long run the critic follows the mean of the targets over samples. For a value that is linear in $s'$ near the
# prediction the mean target of samples is the target of the mean: only gradient noise is left of the difference. Where
# the value bends, as at the edge of falling, the samples average over the bend: that is smoothing. The columns of
# section 7 measure both.
#
# </details>
#
# <details><summary>Why can 100 % be worse than 50 % even if every imagined state is plausible?</summary>
#
# At 100 % no row's target ever sees where its action really led; all that stays of the model's error enters the values,
# undiluted, and is bootstrapped from state to state. At 50 % half of it does.
#
# </details>
#
# **Next:** [04 · Offline pre-training](04_offline_pretraining.ipynb): the losses one by one, and what 200,000 updates
# make of them.
