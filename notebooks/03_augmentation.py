# %% [markdown]
# # 03 · Augmentation
#
# **How do imagined next states change a batch, and the targets that a critic learns from?**
#
# <!-- answer -->
# Augmentation replaces half of a batch's next states by imagined ones and changes nothing else. On HalfCheetah these states
# move by 0.47 standard deviations per dimension, while a step of the simulator moves a state by 1.17. The targets of a trained
# critic have a standard deviation of 148 rewards, and they move by +15 on average. The shift of a single target has two parts
# (root mean squares): 41 rewards stay, and 27 average out over the model's samples. With noise of the same size targets move by
# −26 on average, 31 stay, and 47 average out.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the trained networks of `halfcheetah` in `data/models`, and the pool `halfcheetah-medium-replay` |
# | gives | figures `03_batch`, `03_outside`, `03_targets`, `03_table`, and tables |
# | minutes on one core | below 1 in all profiles |
#
# We follow one imagined next state through the algorithm: into a batch, then into a target. The world model and the
# critic were trained with the settings of the recorded runs, for seed 0. We take HalfCheetah, the only one of the four
# tasks on which the model beats the guess that nothing moves ([chapter 02](02_world_model.ipynb)).

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # has no effect here: `python -m mbaug models` trains the networks of this chapter

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import studies, trained
from mbaug.method import augmentation, imagination, settings, td3, training, transitions, world_model
from mbaug.method.transitions import Batch
from mbaug.reporting import figures, looks, reliability, words
from mbaug.reporting.figures import save_figure, show
from mbaug.reporting.stored import stored

engine.prepare()
figures.style()

# %%
task, learner, rule = tasks.find("halfcheetah"), td3.TD3(), settings.Augmentation()
drawn, rest = transitions.draw(
    read.load(f"{task.name}-medium-replay"), settings.Pretraining().transitions, 0
)
fitted = trained.world_model(task.name)
unit = fitted.model.standardiser.std

count = 300 if profile == "smoke" else 1_000  # rows that we imagine next states for
watched = world_model.interior(drawn.rows(np.arange(2 * count))).rows(np.arange(count))
rows = transitions.unpack(transitions.pack(watched), task.state_size, task.action_size)
inputs = rows.state, rows.action, rows.next_state


def imagined_by(source, samples):
    """Returns `samples` imagined next states of each watched row."""
    predict = imagination.predictor(source, fitted, drawn)
    generator = streams.torch_generator(0, "imagination", source)
    return augmentation.imagined_table(predict, *inputs, samples, generator)


sources = "sample", "mean", "reconstruction", "noise", "deterministic"
imagined = {source: imagined_by(source, rule.table_samples) for source in sources}

# %%
index = torch.randperm(count, generator=streams.torch_generator(0, "one batch"))[: learner.batch_size]
before = Batch(*(part[index] for part in rows))
after = augmentation.augment(before, imagined["sample"][index, 0], rule.rate)
changed = (after.next_state != before.next_state).any(dim=-1)
x, y = (task.state_names.index(name) for name in ("torso angle (rad)", "forward velocity (m/s)"))
names = [task.state_names[i] for i in (x, y)]
columns = [*names, *(f"{name} after" for name in names)]
both = torch.cat([before.next_state[:, [x, y]], after.next_state[:, [x, y]]], dim=1)
frame = pd.DataFrame(both.numpy(), columns=columns).assign(imagined=changed.int().numpy())
frame = stored("03_batch", frame, profile)

# %%
kept, moved = (frame[frame["imagined"] == each].to_numpy() for each in (0, 1))
figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
for axis, title in zip(axes, ("before", f"after, rate {100 * rule.rate:.0f} %"), strict=True):
    cloud = drawn.next_state[:, x], drawn.next_state[:, y]
    axis.plot(*cloud, ".", color="#D5D5D5", markersize=2, zorder=0, rasterized=True)
    axis.plot(kept[:, 0], kept[:, 1], ".", color="#000000", markersize=4, label="recorded")
    axis.set(title=title, xlabel=task.state_names[x])
replaced = {"color": "#E69F00", "markersize": 4, "label": "recorded, to be replaced"}
axes[0].plot(moved[:, 0], moved[:, 1], ".", **replaced)
axes[1].plot(moved[:, [0, 2]].T, moved[:, [1, 3]].T, color="#0072B2", linewidth=0.5, alpha=0.6)
imagined_look = {"color": "#0072B2", "markersize": 5, "label": "imagined, moved along a line"}
axes[1].plot(moved[:, 2], moved[:, 3], ".", **imagined_look)
axes[0].set_ylabel(task.state_names[y])
for axis in axes:
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, handletextpad=0.2)
caption = f"Next states of a batch of {learner.batch_size} before and after augmentation. "
caption += f"Grey: all drawn rows. {task.title}, seed 0."
save_figure(figure, "03_batch", frame, caption, profile)

# %% [markdown]
# *Read.* Half of the next states have moved, and nothing else has. (The island on the right is made of cheetahs on
# their backs.) In the large cloud more lines point inwards than outwards: the model is blurred, so it pulls states
# towards the middle of this cloud ([chapter 02](02_world_model.ipynb)). On the island most lines point outwards, and
# some imagined states leave the data. The picture shows only two of seventeen dimensions, and no joint angles. A point
# inside the cloud may still be an impossible posture.
#
# ## 1. The rule
#
# *Ask.* What exactly does the method replace? The rule is one line of code, and it would be easy to do slightly more:
# to imagine a reward as well, to clear a `terminal`, or to replace a random number of rows. The code must do none of
# these.
#
# > While pre-training, replace 50 % of the next states in each batch by the model's predictions. [S, A] Action, reward and
# > done stay as recorded. Only the critic's target sees the imagined state. [C]
#
# (The [overview](00_overview.ipynb) explains S, A and C, our sources for the paper.)
#
# $$\begin{gathered}
# n = \operatorname{round}(\rho B), \\
# s'_j \leftarrow \begin{cases} \hat s'_j & j \le n \\ s'_j & j > n \end{cases}, \\
# (s_j, a_j, r_j, d_j) \text{ unchanged}
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $\rho$ | `rate` | number in [0, 1] | share of a batch |
# | $B$ | `batch.next_state.shape[-2]` | number | transitions |
# | $n$ | `replaced(rate, B)` | number | transitions |
# | $s'$ | `batch.next_state` | `[agents, batch, state]` | the environment's, or standardised |
# | $\hat s'$ | `imagined` | `[agents, n, state]`, or more rows | as $s'$ |
# | $s, a$ | `batch.state`, `batch.action` | `[agents, batch, state or action]` | as recorded |
# | $r, d$ | `batch.reward`, `batch.terminal` | `[agents, batch]` | as recorded |
# | $j$ | row of the batch | – | – |

# %%
show(augmentation.replaced, augmentation.augment)

# %% [markdown]
# *Check by hand.* We take three rows with states of one dimension. The imagined next states lie half a unit above the
# recorded ones, and the second row ends its episode. At a rate of two thirds the first two rows must change, in that one
# column.

# %% tags=["nbval-check-output"]
real = torch.tensor([[[10.0], [20.0], [30.0]]])
scalars = {"reward": torch.tensor([[1.0, 2.0, 3.0]]), "terminal": torch.tensor([[0.0, 1.0, 0.0]])}
three = Batch(state=real - 1, action=torch.zeros(1, 3, 1), next_state=real, **scalars)
done = augmentation.augment(three, imagined=real + 0.5, rate=2 / 3)

wanted = [[[10.5], [20.5], [30.0]]]
assert np.array_equal(done.next_state, wanted), "the first two next states must be the imagined ones"
kept = [name for name in Batch._fields if torch.equal(getattr(done, name), getattr(three, name))]
assert kept == ["state", "action", "reward", "terminal"], "augmentation must touch next states alone"
print(f"Two of three next states are imagined; {', '.join(kept)} stay.")

# %% [markdown]
# *Read.* The count of replaced rows is exact in every batch, not only on average. We always replace the first $n$ rows.
# That is as random as any other choice, because the rows of a batch are drawn independently.

#
# ## 2. What can replace a next state
#
# *Ask.* An imagined state differs from the recorded one by a bias, which stays, and by jitter, which is new in each
# sample. Which of the two matters, and do the model's dynamics matter? The function that predicts $\hat s'$ is an
# argument, `predict`, so we can replace the paper's model by other *sources* of next states, each of which errs in a
# different
# way:
#
# | source | $\hat s'$ | what it holds |
# |---|---|---|
# | `sample` | $D(z + f(z, a))$, $z \sim q(z \mid s)$ | the paper's: bias and jitter |
# | `mean` | the same with $z = \mu(s)$ | the bias |
# | `reconstruction` | $D(z)$, $z \sim q(z \mid s')$ | the blur of encoding and decoding, no dynamics |
# | `noise` | $s'_i + \sqrt{e_i}\operatorname{SD}_i\,\xi_i$ | matched noise: the held-out error $e_i$ of `sample` in each dimension, no dynamics |
# | `deterministic` | $s + g(s, a)$ | dynamics of a plain network as large as the model |

# %%
show(imagination.predictor, imagination.add_noise)

# %% [markdown]
# $D$, $f$, $g$, $q$, $\mu$, $z$, $e_i$ and $\operatorname{SD}_i$ are those of [chapter 02](02_world_model.ipynb). In
# `noise`, $\xi_i$ is a standard normal number. The sources `jitter` and `shrink` are two more controls, for [chapter
# 07](07_controls.ipynb).

# %% [markdown]
# *Look.* How far is each source from the recorded next state, and how long is one step? We take root mean squares over
# dimensions, in standard deviations of the data. *Kept* is the slope of a regression of the source's deviation from the
# mean on the recorded one, averaged over dimensions. A source whose slope is below 1 pulls states towards the middle.


# %%
def distance(one, other):
    """Returns the root mean square difference of two sets of states, in standard deviations."""
    return float(((one - other) / unit).square().mean().sqrt())


def surviving(states):
    """Returns the share of the recorded deviation from the mean that imagined states keep."""
    return reliability.slope(states.numpy(), rows.next_state.numpy()).mean()


first = {source: each[:, 0] for source, each in imagined.items()}
errors = {source: [distance(each, rows.next_state), surviving(each)] for source, each in first.items()}
errors |= {"the state before (one step)": [distance(rows.state, rows.next_state), surviving(rows.state)]}
pd.DataFrame(errors, index=["distance", "kept"]).T.round(2)

# %% [markdown]
# *Read.* `noise` is as far from the truth as `sample`, as it should be, but it keeps all of a state's deviation from
# the mean, while the model keeps a part. The plain network is much nearer, so the data allow a better model than the
# paper's. `reconstruction` errs even more than `sample`, so its error is not a part of the model's error ([chapter
# 02](02_world_model.ipynb)). [Chapter 07](07_controls.ipynb) asks which kind of error does harm.
#
# ## 3. Imagined states outside the data
#
# *Ask.* For states far from all data a critic's values are arbitrary. How many imagined states lie that far? The record
# of every run has one cheap measure: the share of components outside the range of the drawn next states.
#
# $$ o = \operatorname{mean}_{j, k, i}\,
# \mathbf 1\left[\hat s'_{jki} < \min_l s'_{li} \ \text{or}\ \hat s'_{jki} > \max_l s'_{li}\right] $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $o$ | `outside(imagined, next_state)`, `imagined_outside` in records | number | share of components |
# | $\hat s'_{jki}$ | `imagined` | `[rows, samples, state]` | the environment's |
# | $s'_{li}$ | `next_state` | `[drawn rows, state]` | the environment's |
# | $j$, $k$, $l$, $i$ | row, sample, drawn row, dimension of the state | – | – |

# %%
show(augmentation.outside)

# %% tags=["nbval-check-output"]
data = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, 9.0]])
guesses = torch.tensor([[[-0.1, 4.0]], [[2.5, 4.0]], [[1.5, 9.1]]])
low, high = data.numpy().min(axis=0), data.numpy().max(axis=0)
by_hand = np.mean((guesses[:, 0].numpy() < low) | (guesses[:, 0].numpy() > high))
assert np.isclose(augmentation.outside(guesses, data), by_hand), "each dimension has its own range"
print(f"Three of six components lie outside: {by_hand:.3f}.")

# %% [markdown]
# The range is a weak test. A state may lie within it in every dimension and still be unlike any recorded state. So we
# also measure the distance to the nearest recorded next state of *another* row, and compare it with the same distance
# for recorded states. This distance is a root mean square over dimensions, so it is smaller than those of chapters
# [01](01_small_datasets.ipynb) and [08](08_reliability.ipynb) by the root of the number of dimensions. The third
# measure is the *worst direction*: the largest error along a principal component of the data, in standard deviations of
# the data along it.


# %%
everything = torch.from_numpy(drawn.next_state)
own_row = (rows.next_state[:, None] == everything[None]).all(dim=-1)


def nearest(states):
    """Returns each state's distance to the nearest next state of another row, per dimension."""
    apart = torch.cdist(states / unit, everything / unit) / task.state_size**0.5
    return apart.masked_fill(own_row, torch.inf).amin(dim=1).numpy()


_, _, components = torch.linalg.svd((everything - everything.mean(dim=0)) / unit, full_matrices=False)


def worst_direction(states):
    """Returns the largest error along a principal component, in standard deviations of the data."""
    error = (((states - rows.next_state) / unit) @ components.T).square().mean(dim=0)
    return float((error.sqrt() / (everything / unit @ components.T).std(dim=0)).max())


distances = {"recorded": nearest(rows.next_state)} | {s: nearest(each) for s, each in first.items()}
beyond = {source: augmentation.outside(each, everything) for source, each in imagined.items()}
apart = {name: np.median(each) for name, each in distances.items()}
far = pd.DataFrame({"outside": beyond, "nearest": apart, "error": {s: errors[s][0] for s in sources}})
far["worst direction"] = pd.Series({source: worst_direction(each) for source, each in first.items()})
far["step"] = errors["the state before (one step)"][0]
far = stored("03_outside", far.loc[["recorded", *sources]].rename_axis("source").reset_index(), profile)
shown = far.set_index("source")[["outside", "nearest", "worst direction"]]
shown.map("{:.4f}".format).replace("nan", "–")


# %%
patterns = dict(zip(sources, ("-", "--", ":", "-.", (0, (5, 1))), strict=True))


def look(source):
    """Returns colour and line style of a source, those of its arm where it has one."""
    arms = {"sample": "augmented", "noise": "noise", "deterministic": "deterministic"}
    colour = looks.look(arms.get(source, f"{source}_offline")).colour
    return {"color": colour, "linestyle": patterns[source], "label": source}


figure, axis = plt.subplots(figsize=(8, 3.8))
share = np.linspace(0, 1, 101)
spread = pd.DataFrame({name: np.quantile(d, share) for name, d in distances.items()}).assign(share=share)
spread = stored("03_distances", spread, profile)
axis.plot(spread["recorded"], 100 * share, color="#000000", label="recorded", linewidth=2.5)
for source in sources:
    axis.plot(spread[source], 100 * share, **look(source))
axis.set_xlabel("distance to the nearest other recorded next state (standard deviations per dimension)")
axis.set(ylabel="states at most that far (%)", xlim=(0, spread[[*distances]].quantile(0.97).max()))
axis.legend(loc="lower right")
caption = (
    f"How far imagined next states are from the data, {count:,} rows of each source. `mean` is the "
)
caption += f"model's prediction without noise, `reconstruction` its copy of s'. {task.title}, seed 0."
save_figure(figure, "03_outside", spread, caption, profile)

# %% [markdown]
# *Read.* Few components leave the range, though noise leaves it several times as often as a sample. The distances say
# more. Noise of the same size moves states away from the data, while the predictions of `sample` and `mean` lie even
# nearer to the data than recorded states do. The pull towards the middle cannot be the whole reason: `reconstruction`
# is pulled more and lies farther away. The last column shows another reason. Noise is independent in each dimension, so
# along directions in which the data hardly vary it errs by more than the data's own spread (a number above 1). The
# model's error stays below that spread in every direction. Matched noise is therefore a fair control for the *size* of
# an error, but not for its *direction*.
#
# ## 4. How far the targets move
#
# *Ask.* The critic is fitted to a target $y$, which values the next state. How far does $\hat s'$ shift $y$? Does the shift
# average out over the model's samples, or does it stay? We take the critic of *vanilla* pre-training, which learned
# from recorded next states alone. All sources share this critic, so we see only the effect of the imagined states.
#
# $$\begin{gathered}
# y = r + \gamma (1 - d) \min(Q'_1, Q'_2)\big(s', \pi'(s') + \epsilon\big), \\
# \Delta y = y(\hat s') - y(s')
# \end{gathered}$$
#
# $$\begin{gathered}
# \underbrace{\operatorname{mean}_k \Delta y_k}_{\text{stays}} \quad\text{and}\quad
# \underbrace{\Delta y_k - \operatorname{mean}_k \Delta y_k}_{\text{averages out}}
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $y$ | `critic_target(...)`, shown in [chapter 04](04_offline_pretraining.ipynb) | `[agents, rows]` | rewards |
# | $\Delta y_k$ | `shift` | `[K, rows]` | rewards |
# | $\gamma$ | `settings.discount` | number | per step |
# | $d$ | `batch.terminal` | `[agents, rows]` | 0 or 1 |
# | $Q'_1, Q'_2$, $\pi'$ | target networks of `student.agent` | | rewards, an action |
# | $\epsilon$ | `noise`, zero here | `[agents, rows, action]` | of an action |
# | $k$ | sample of a row | $K$ of them | – |

# %%
student = trained.agent(task.name, "vanilla")
training.carry(student, studies.VANILLA.finetuning)  # targets are copies of the trained networks
batch = transitions.unpack(transitions.table([watched], student.standardiser), *student.sizes)
known = {source: student.standardiser.apply(each.transpose(0, 1)) for source, each in imagined.items()}
quiet = torch.zeros_like(batch.action)  # no target noise


def target(next_state):
    """Returns the vanilla agent's targets of the watched rows, had each led to this next state."""
    return td3.critic_target(student.agent, batch._replace(next_state=next_state), learner, quiet)[0]


truth = target(batch.next_state)
shift = {
    source: torch.stack([target(each[None]) - truth for each in known[source]]) for source in sources
}

# %% [markdown]
# *Check by hand.* Where the task ends (`terminal`), the target is the reward alone, so imagination cannot change it. At
# a time limit the target still uses the next state ([chapter 01](01_small_datasets.ipynb)). HalfCheetah never ends
# early, so for this check we mark every row as terminal.

# %% tags=["nbval-check-output"]
ending = batch._replace(terminal=torch.ones_like(batch.terminal))
replaced = augmentation.augment(ending, known["sample"][:1], rate=1)
assert not torch.equal(replaced.next_state, ending.next_state), "the next states must differ"
answer = td3.critic_target(student.agent, replaced, learner, quiet)
assert torch.equal(answer, ending.reward), "the target must be the reward alone"
print("On terminal rows the target is the reward, whatever is imagined.")

# %% [markdown]
# `averages out` is the root of $\operatorname{mean}_j \operatorname{Var}_k \Delta y_{jk}$ over rows $j$. `stays` is the
# root of $\operatorname{mean}_j (\operatorname{mean}_k \Delta y_{jk})^2 - \tfrac1K \operatorname{mean}_j
# \operatorname{Var}_k \Delta y_{jk}$: a mean of $K$ samples still holds that much of the part that averages out. The
# average shift shows whether targets rise or fall, and the last column leaves the average out of `stays`. A source that
# draws no random numbers has no part that averages out.


# %%
def parts(shift):
    """Returns the mean shift, the part that stays and the part that averages out, in rewards."""
    passing = shift.var(dim=0).mean()
    lasting = (shift.mean(dim=0).square().mean() - passing / len(shift)).clamp(min=0)
    return {
        "mean": shift.mean().item(),
        "stays": lasting.sqrt().item(),
        "averages out": passing.sqrt().item(),
    }


moves = pd.DataFrame({source: parts(shift[source]) for source in sources}).T
moves = moves.assign(spread=truth.std().item()).rename_axis("source").reset_index()
moves = stored("03_targets", moves, profile).set_index("source")
print(f"standard deviation of the targets: {moves['spread'].iloc[0]:.0f} rewards")
moves["stays, without the average"] = (moves["stays"] ** 2 - moves["mean"] ** 2).clip(lower=0) ** 0.5
shown = moves.drop(columns=["mean", "spread"]).map(words.number)
shown.insert(0, "average shift", [words.number(shift, signed=True) for shift in moves["mean"]])
shown

# %%
points = pd.DataFrame({"recorded": truth, "imagined": truth + shift["sample"][0]})
points = stored("03_points", points, profile)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
left.axline((0, 0), slope=1, color="#000000", linewidth=0.8, label="no shift")
left.plot(points["recorded"], points["imagined"], ".", markersize=2, color=look("sample")["color"])
left.set(xlabel="target, recorded next state (rewards)", ylabel="target, model's sample (rewards)")
left.set_title("Each point is one row")
for place, source in enumerate(sources):
    for offset, part, alpha in ((-0.2, "stays", 1), (0.2, "averages out", 0.4)):
        size, colour = moves.loc[source, part], look(source)["color"]
        right.barh(place + offset, size, 0.38, color=colour, alpha=alpha)
right.set(xlabel="root mean square shift (rewards)", title="Which part stays")
right.set_yticks(range(len(sources)), sources)
right.invert_yaxis()
for part, alpha in (("stays", 1), ("averages out", 0.4)):
    right.plot([], [], linewidth=8, color="#555555", alpha=alpha, label=part)
left.legend(loc="lower right")
right.legend(loc="lower right")
caption = "Targets with imagined next states, by the critic of vanilla pre-training. A source without "
caption += f"randomness has no part that averages out. {count:,} rows of {task.title}, seed 0."
save_figure(figure, "03_targets", pd.concat([moves.reset_index(), points]), caption, profile)

# %% [markdown]
# *Read.* On average the model's samples raise the targets of this critic, and noise of the same size lowers them. Most
# of the model's shift stays, and most of the noise's averages out. What stays of the noise's shift is mostly the
# average, a shift of all targets: values bend downwards around recorded states ([chapter 07](07_controls.ipynb)). The
# model's shift differs from row to row. The part that averages out is gradient noise. It slows the regression down but
# does not change its result. (With a table of ten samples, a tenth of this part's variance stays until the next table:
# section 5.) The part that stays changes the result: the critic learns the values of the model's world. At a
# rate of 50 % half of the rows are replaced at a time. So in the long run *every* row's target moves by half of the
# part that stays. The random choice of rows adds noise.
#
# This is one critic with one world model, after its training. An agent that is trained with imagined states feeds each
# shift back into its own targets. [Chapter 04](04_offline_pretraining.ipynb) looks at such critics, and asks whether
# augmentation smooths them, as the paper says [S, A].
#
# ## 5. How the code does it: a table of K imagined next states
#
# *Ask.* Calling the model on every batch would slow every update down ([chapter
# 90](90_engine.ipynb), section 8). But the model's inputs are always the same rows, so we can draw a table of $K$
# samples per row in advance and pick one of them at random. At intervals we draw the table again. Does a batch then see
# the same distribution? It should: a random pick from independent samples of a distribution is a sample of this
# distribution.
#
# $$\begin{gathered}
# T_{lk} \sim p(\hat s' \mid s_l, a_l), \quad k = 1 \dots K, \\
# \kappa \sim U\{1 \dots K\} \quad\Rightarrow\quad T_{l\kappa} \sim p(\hat s' \mid s_l, a_l)
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $T$ | `imagined` | `[rows, K, state]`, one for each agent | standardised in training |
# | $K$ | `Augmentation.table_samples`, `samples` in the functions | number | samples per row |
# | $l$ | `index` | `[block, agents, n]` | row of the draw |
# | $\kappa$ | `drawn` | as $l$ | column of the table |
# | $p$, $U$ | the world model, the uniform distribution | – | – |

# %%
show(augmentation.imagined_table, augmentation.pick)

# %% [markdown]
# *Check.* We imagine the next state of one row in two ways, 2,000 times each: directly, and by `pick` from tables, with a
# fresh table for every pick. The [Kolmogorov–Smirnov
# statistic](https://en.wikipedia.org/wiki/Kolmogorov%E2%80%93Smirnov_test) is the largest gap between two cumulative
# distributions. A test that cannot fail shows nothing. So the same test also compares the model's samples with the
# matched noise, and it must tell these two apart.

# %%
copies = [part[:1].repeat_interleave(2_000, dim=0) for part in inputs]
predict = imagination.predictor("sample", fitted, drawn)
direct = predict(*copies, streams.torch_generator(0, "direct"))
generator = streams.torch_generator(0, "tables")
fresh = augmentation.imagined_table(predict, *copies, rule.table_samples, generator)
every = torch.arange(2_000).view(1, 1, -1)  # a block of one, one agent
picked = augmentation.pick(fresh.unsqueeze(0), every, streams.torch_generators([0], "picks"))[0, 0]
share = (fresh == picked[:, None]).all(dim=-1).float().mean(dim=0)  # how often each sample is picked
noisy = imagination.add_noise(copies[-1], fitted.noise_std, streams.torch_generator(0, "noisy"))


def gap(one, other):
    """Returns the largest Kolmogorov-Smirnov statistic of two sets of states over dimensions."""
    return max(stats.ks_2samp(one[:, i], other[:, i]).statistic for i in range(one.shape[1]))


# chance exceeds this gap in 5 % of cases, in at least one dimension
chance = stats.kstwobign.isf(0.05 / task.state_size) * np.sqrt(2 / 2_000)
gaps = {"picked from tables": gap(direct, picked), "matched noise": gap(direct, noisy)}
assert gaps["picked from tables"] < chance < gaps["matched noise"], "a pick is a sample, noise is not"
assert (share - 1 / rule.table_samples).abs().max() < 0.03, (
    "each sample of a row is picked equally often"
)
pd.Series(gaps | {"exceeded by chance in 5 % of cases": chance}).to_frame("largest gap").round(3)

# %%
levels = torch.linspace(0.005, 0.995, 100)
quantiles = [torch.quantile(each / unit, levels, dim=0) for each in (direct, picked)]
quantiles = torch.cat([each - quantiles[0].mean(dim=0) for each in quantiles], dim=1).numpy()
columns = [f"{name}, {way}" for way in ("direct", "table") for name in task.state_names]
quantiles = stored("03_quantiles", pd.DataFrame(quantiles, columns=columns), profile).to_numpy()
frame = pd.DataFrame({"direct": direct[:, y], "table": picked[:, y]})
frame = stored("03_picks", frame, profile)
ticks = stored("03_one_table", pd.DataFrame({"sample": fresh[0, :, y]}), profile)["sample"]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.1))
left.axline((0, 0), slope=1, color="#000000", linewidth=0.8)
left.plot(*np.split(quantiles, 2, axis=1), ".", color="#555555", markersize=3, alpha=0.6)
left.set(
    xlabel="quantile, sampled directly (standard deviations)", ylabel="quantile, picked from tables"
)
left.set_title("All dimensions of one row's next state")
left.locator_params(nbins=5)

bins = np.histogram_bin_edges(frame["direct"], 30)
outline = {"histtype": "step", "linewidth": 1.8}
right.hist(frame["direct"], bins, color="#0072B2", label="sampled directly", **outline)
right.hist(frame["table"], bins, color="#D55E00", label="picked from tables", **outline)
place = np.full(rule.table_samples, -6)
right.plot(ticks, place, "|", color="#000000", markersize=9, label="one table")
right.axvline(rows.next_state[0, y], color="#000000", linestyle="--", label="recorded next state")
right.set(xlabel=task.state_names[y], ylabel="samples", ylim=(-14, None))
right.set_title("One of these dimensions")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
caption = (
    "One row's imagined next state: 2,000 samples of the model compared with 2,000 picks from tables. "
)
save_figure(figure, "03_table", frame, f"{caption}{task.title}, seed 0.", profile)

# %% [markdown]
# *Read.* The table preserves only the distribution of a *single* pick. Until the table is drawn again, this row has only
# the samples marked by ticks in the right-hand picture, and its picks repeat. The settings tell how much the table
# saves: we compare how often a row is replaced while one table is in use with how often the model is called for this
# row.

# %% tags=["nbval-check-output"]
per_update, plan = augmentation.replaced(rule.rate, learner.batch_size), settings.Pretraining()
visits = rule.redraw_interval * per_update / plan.transitions
different = plan.updates // rule.redraw_interval * rule.table_samples
saving = {"times a row is replaced while a table is used": visits, "samples per row": rule.table_samples}
saving |= {
    "times less work for the model": visits / rule.table_samples,
    "different samples per row in a run": different,
}
pd.Series(saving, name="by the settings").round().astype(int).to_frame()

# %% [markdown]
# ## Where we differ from the paper
#
# - **A table instead of calls.** The first author's code asks the model for each batch [C]. We make $K$ samples per row at a
#   time. Section 5 shows that a single pick has the same distribution, but that picks repeat until the next table.
#   [Chapter 07](07_controls.ipynb), section 5, asks whether that matters.
# - **Noise as a control.** The first author's code has a variant that adds Gaussian noise of standard deviation 0.1 to the
#   next states, whatever the model's error [C]. Our control has the size of the model's held-out error, dimension by
#   dimension. On the rows that are imagined the model's own error is a little smaller, because the model was fitted to
#   these rows.
# - **The first rows instead of random ones.** The distribution is the same, because rows of a batch are drawn
#   independently.
# - **Rows that end an episode** may be replaced too, although the model was not fitted on such rows. At a terminal row
#   the target does not use the next state (section 4). At a time limit it does.
#
# ## Try it
#
# Each edit is one line. Set `profile = "quick"` first, because the profile "paper" compares what you compute with the
# committed tables.
#
# 1. Write `settings.Augmentation(rate=0.25)` in place of `settings.Augmentation()`. How much blue is left in the first
#    picture?
# 2. Put `"hopper"` in place of `"halfcheetah"`. How does the first picture change?
# 3. In section 4, put `"augmented"` in place of `"vanilla"`. Do the targets of a critic that learned from imagined states
#    move as far?
#
# ## Questions
#
# <details><summary>Why is the reward not imagined as well?</summary>
#
# The rule leaves the reward as recorded [C], and the model does not predict one. A replaced row therefore combines the
# reward of the real step with the value of the imagined state. The inconsistency concerns a single reward. It is small
# beside the value of the next state, which sums up about a hundred rewards. [MBPO](https://arxiv.org/abs/1906.08253)
# and related methods learn the reward, because there the policy chooses the actions, and no recorded reward belongs to
# these actions.
#
# </details>
#
# <details><summary>Does a sampled prediction regularise more than its mean?</summary>
#
# Only where the value bends. In the long run the critic learns the mean of the targets over samples. If the value is
# linear in $s'$ near the prediction, the mean target of the samples equals the target of the mean. Samples then only
# add gradient noise. Where the value bends, for example where the robot is about to fall, the samples average over the
# bend. That is smoothing. In section 4, compare what stays with `sample` and with `mean`.
#
# </details>
#
# <details><summary>Why can 100 % be worse than 50 % even if every imagined state is plausible?</summary>
#
# At 100 % no target ever uses the state to which the action really led. The whole part of the error that stays enters the
# values and spreads by bootstrapping from state to state. At 50 % only half of it does.
#
# </details>
#
# **Next:** [04 · Offline pre-training](04_offline_pretraining.ipynb): the losses one by one, and the critics after
# 200,000 updates.
