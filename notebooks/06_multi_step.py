# %% [markdown]
# # 06 · Multi-step
#
# **Can the world model look several steps ahead, and does it help an agent if it does?**
#
# <!-- answer -->
# After five steps the paper's model, re-encoded at each step, errs less than the guess that nothing moves on 3 of 4 tasks, and
# less than a deterministic network on none. After 1, 5 and 50 steps the errors are 0.40, 0.70 and 0.92 for the model, 0.048,
# 0.17 and 1.7 for the network, and 0.39, 1.2 and 2.1 for the guess (in variances of the states, median of 4 tasks; after 50
# steps the network's errors range from 0.72 to 25). Whether targets of several steps help an agent is not yet recorded.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the trained networks in `data/models`, the pools `<task>-medium` and `<task>-medium-replay`, the records of the study `horizons` |
# | gives | figures `06_fan`, `06_open_loop` and, from its records, `06_horizons`; tables |
# | minutes on one core | below 1 in all profiles |
#
# The [paper](https://arxiv.org/abs/2312.09844) imagines one step [A, C], though its model could take several [A]. We
# ask what two to five would do. The critic's target then holds more recorded rewards, but every imagined step inherits
# the error of the step before. The [overview](00_overview.ipynb) explains [A] and [C].

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # nothing is trained in this chapter: it reads networks and records

# %%
import re
from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import records, studies, trained
from mbaug.method import augmentation, imagination, td3, transitions, world_model
from mbaug.reporting import claims, figures, looks, statistics, words
from mbaug.reporting.figures import show
from mbaug.reporting.stored import stored

engine.prepare()
figures.style()

# %% [markdown]
# ## 1. A second of motion
#
# *Ask.* We start each model in one state of a Hopper episode and give it the recorded actions of the next second. It
# never sees another true state: an open-loop *roll-out*. The episode is from `hopper-medium`, and no model was fitted
# on it. The deterministic network has the smallest one-step error ([chapter 02](02_world_model.ipynb)), so we expect it
# to follow the truth for longest. The VAE draws noise, so its roll-outs should spread like a fan. We roll the VAE out
# in two ways: it stays in its latent space, or it re-encodes its own prediction at every step.

# %%
hopper, pool = tasks.find("hopper"), read.load("hopper-medium")
fitted, generator = trained.world_model("hopper"), streams.torch_generator(0, "chapter 06", "fan")
seconds_a_step = tasks.make(hopper).unwrapped.dt
row = np.flatnonzero(pool.truncated)[0] - 500  # in the middle of an episode of full length
rows = np.arange(row, row + round(1 / seconds_a_step))
state = torch.from_numpy(pool.state[rows[:1]]).repeat(20, 1)
action = torch.from_numpy(pool.action[rows]).repeat(20, 1, 1)


# %%
def step_of(model, generator, mode="sample"):
    """Returns one step of a VAE, with new noise or without, as a function of state and action."""
    return lambda state, action: imagination.predict(model, state, action, generator, mode)


deterministic = partial(imagination.predict_deterministic, fitted.deterministic)
paths = {
    "truth": torch.from_numpy(pool.next_state[rows])[None],
    "deterministic": imagination.open_loop(deterministic, state[:1], action[:1]),
    "latent": imagination.latent_rollout(fitted.model, state, action, generator),
    "encoded": imagination.open_loop(step_of(fitted.model, generator), state, action),
}

# %%
shown = ("height (m)", "forward velocity (m/s)")
columns = {"seconds": seconds_a_step * np.arange(1, len(rows) + 1)}
for kind, path in paths.items():
    for name in shown:
        for number, each in enumerate(path[:, :, hopper.state_names.index(name)]):
            columns[f"{kind} {number}: {name}"] = each.double().numpy().round(4)
fan = stored("06_fan", pd.DataFrame(columns), profile, tolerance=0.02)  # rounding errors grow, too

# %%
styles = {
    "persistence": ("persistence (nothing moves)", "#000000", ":"),
    "linear": ("linear regression", "#E69F00", "-."),
    "deterministic": ("deterministic network", "#D55E00", (0, (5, 1))),
    "latent": ("VAE, in latent space", "#0072B2", (0, (3, 1, 1, 1))),
    "encoded": ("VAE, re-encoded at each step", "#0072B2", "-"),
    "light": ("VAE, KL weight / 100, re-encoded", "#003F63", "--"),
}


def of(kind, name):
    """Returns the roll-outs of a kind, as they are drawn: a column each."""
    return fan.filter(regex=f"^{kind} .*{re.escape(name)}$").to_numpy()


# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 5.4), sharex=True, sharey="row")
for row_of_axes, name in zip(axes, shown, strict=True):
    for axis, kind in zip(row_of_axes, ("latent", "encoded"), strict=True):
        network = {"color": styles["deterministic"][1], "label": styles["deterministic"][0]}
        axis.plot(fan["seconds"], of(kind, name), color=styles[kind][1], linewidth=0.8, alpha=0.5)
        axis.plot(fan["seconds"], of("truth", name), color="black", linewidth=2.2, label="what happened")
        axis.plot(fan["seconds"], of("deterministic", name), **network)
    drawn = np.concatenate([of("latent", name), of("encoded", name)], axis=1)
    low, high = np.quantile(drawn, [0.01, 0.99])  # a few leave the picture
    truth = of("truth", name)
    row_of_axes[0].set(ylabel=name, ylim=(min(low, truth.min()), max(high, truth.max() + 0.05)))
for (upper, lower), kind in zip(axes.T, ("latent", "encoded"), strict=True):
    upper.set_title(styles[kind][0])
    lower.set_xlabel("time since the last true state (s)")
figures.legend(figure)
text = "One second of Hopper from one true state and the recorded actions: what happened, the network, "
text += (
    "and 20 roll-outs of the VAE (blue), in latent space and re-encoded at every step. Lines that leave "
)
text += "the picture go on outside. Seed 0."
figures.save_figure(figure, "06_fan", fan, text, profile)

# %% [markdown]
# *Read.* The deterministic network follows the first hop and its landing, and it diverges from the truth around the
# second hop. We expected a fan, but there is none. In latent space no noise enters after the start, so the VAE's lines
# shake less than the re-encoded ones, though more than the truth. They start apart, because $z$ is drawn once and the
# encoding is blurred. Then most of them come together at one height: the latent state has lost the phase of the stride.
# Their velocity falls far below the truth and becomes negative: these hoppers move backwards. When the VAE re-encodes
# at every step, its lines separate at the first step. They jitter, and lose the phase as well.
#
# The table shows the root mean square distance from the truth over the roll-outs of each kind.

# %%
moments = [round(part / seconds_a_step) - 1 for part in (0.05, 0.2, 1)]
table = {
    (name, styles[kind][0]): np.sqrt(((of(kind, name) - of("truth", name)) ** 2).mean(axis=1))[moments]
    for name in shown
    for kind in ("deterministic", "latent", "encoded")
}
pd.DataFrame(table, index=[f"after {fan['seconds'][k]:.2g} s" for k in moments]).T.round(3)

# %% [markdown]
# *Read.* At first the network is far closer to the truth than the VAE. After a second it has diverged as well. In
# height the VAE that re-encodes is then even closer, because it stays around the mean height. One second of one episode
# is an example, not evidence. Section 5 measures many such windows on four tasks. First we explain how a critic uses
# several steps.
#
# ## 2. Windows of recorded steps, and where they end
#
# *Ask.* An $n$-step target needs $n$ recorded steps that follow each other. What happens where the episode ends sooner?
# This depends on how it ends: after a fall there are no more rewards, but after a time limit there would be.
#
# *Check by hand.* Hopper makes four steps with rewards 1, 2, 3 and 4 and falls in the fourth. In a second episode it
# makes one step with reward 5, and the recording stops. We take $n = 3$ and $\gamma = 0.5$, and write down the expected
# window of each row.

# %%
steps = np.arange(5, dtype="f4")[:, None]  # in place of states
ends = {"terminal": np.array([0, 0, 0, 1, 0], bool), "truncated": np.array([0, 0, 0, 0, 1], bool)}
place = {"episode": np.array([0, 0, 0, 0, 1]), "part": np.zeros(5, int)}
short = transitions.Dataset("by hand", steps, 0 * steps, steps[:, 0] + 1, steps + 1, **ends, **place)
found = transitions.windows(short, horizon=3, discount=0.5)

# %% tags=["nbval-check-output"]
length = [3, 3, 2, 1, 1]
reward = [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3 + 0.25 * 4, 3 + 0.5 * 4, 4, 5]
cut = [1 - 0.5**2, 1, 1, 1, 0]  # row 0 keeps a quarter of the bootstrap, rows with the fall keep nothing
assert found.length.tolist() == length, "a window ends with its episode"
assert np.allclose(found.reward, reward), "rewards are discounted and added up to the end of the window"
assert np.allclose(found.cut, cut), "a fall cuts the bootstrap, a time limit does not"
pd.DataFrame({"steps": found.length, "rewards": found.reward, "share cut": found.cut}).rename_axis("row")

# %% [markdown]
# *Read.* Rows 1 to 3 reach the fall, so all of their bootstrap is cut. Row 4 ends with the recording: its next state
# still has a value. Row 0 has three whole steps and ends before the fall. Still, three quarters of its bootstrap are
# cut. The next section explains why.
#
# ## 3. The target of n steps
#
# *Ask.* How must [TD3](https://arxiv.org/abs/1802.09477) change to learn from such windows? It need not change at all,
# if we pack a window into a row that looks like a single step. With $m \le n$ steps in the window, $d = 1$ if the last
# of them is a fall (otherwise 0), and $\bar Q$ the smaller of the two target critics' values at $s_m$, as in [chapter
# 04](04_offline_pretraining.ipynb),
#
# $$\begin{gathered}
# y = \underbrace{\sum_{k=0}^{m-1} \gamma^k r_k}_{\texttt{reward}} + \gamma^m (1 - d)\, \bar Q \\
# {} = \texttt{reward} + \gamma\,(1 - \texttt{cut})\, \bar Q, \quad \texttt{cut} = 1 - \gamma^{m-1} (1 - d).
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $n$, $\gamma$ | `horizon`, `discount` | numbers | steps, per step |
# | $m$ | `Windows.length` | `[rows]` | steps |
# | $y$ | what `critic_target` returns | `[rows]` | discounted rewards |
# | $\bar Q$ | `next_value` in `critic_target` | `[rows]` | discounted rewards |
# | $\sum_k \gamma^k r_k$ | `Windows.reward`, then `batch.reward` | `[rows]` | rewards |
# | `cut` | `Windows.cut`, then `batch.terminal` | `[rows]` | share of the bootstrap |
# | $s_m$ | `next_state` of the window's last row | `[rows, state]` | the environment's |

# %%
show(transitions.windows)

# %% [markdown]
# *Check by hand.* We pass the five rows to `critic_target`, with target critics that return 10 for every state. The
# targets must be the $n$-step returns.

# %% tags=["nbval-check-output"]
bootstrap = [0.5**3 * 10, 0, 0, 0, 0.5 * 10]  # three steps on; after the fall; one step on
stub = SimpleNamespace(
    target_actor=lambda state: 0 * state,
    target_critics=lambda state, action: 0 * action[None, ..., 0] + 10,
)
rows = transitions.unpack(transitions.pack(short, 3, 0.5)[None], 1, 1)
target = td3.critic_target(stub, rows, td3.TD3(discount=0.5), torch.zeros(1, 5, 1))[0].numpy()
assert np.allclose(target, np.add(reward, bootstrap)), "TD3's target is the n-step return"
print("targets of the five rows:", *target)

# %% [markdown]
# *Read.* The augmentation rule of [chapter 03](03_augmentation.ipynb) needs no change either. It replaces $s_m$ by the
# end of an imagined roll-out of $m$ steps that follows the recorded actions. Rewards and cut stay as recorded. Such a
# target is off-policy: inside the window the actions are those of the agents that collected the data.
#
# ## 4. Rolling a model forward
#
# *Ask.* There are two ways to take several steps with a VAE. We can stay in the latent space and decode at the end, or
# we can decode every step and encode it again.
#
# In latent space:
#
# $$z_{k+1} = z_k + f(z_k, a_k), \quad z_0 \sim q(z \mid s_0), \quad \hat s_n = D(z_n)$$
#
# Re-encoded at every step:
#
# $$\hat s_{k+1} = D\big(z + f(z, a_k)\big), \quad z \sim q(z \mid \hat s_k) \text{ anew at each step}, \quad \hat s_0 = s_0$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $z_k$ | the path of `open_loop` in `latent_rollout` | `[rows, horizon, latent]` | none |
# | $a_k$ | `action` | `[rows, horizon, action]` | full torque is 1 |
# | $\hat s_k$ | the path of `open_loop` | `[rows, horizon, state]` | the environment's |
# | $f$, $D$, $q$ | `model.transition`, `.decoder`, `.encoder` | | [chapter 02](02_world_model.ipynb) |

# %%
show(imagination.open_loop, imagination.latent_rollout, augmentation.rollout)

# %% [markdown]
# `open_loop` returns all steps of a roll-out, for the figures here. The arms of section 6 use `augmentation.rollout`,
# which returns only the last step of each window. It calls the model once per step, so these arms *re-encode* at every
# step.
#
# How does an error grow from step to step? For a linear system we can compute it exactly. Let $s_{k+1} = A s_k + B a_k$,
# and let a model start with an error $e_0$ and add an error $\delta_k$ in every step. Then
#
# $$ e_{k+1} = A\, e_k + \delta_k \quad\Rightarrow\quad e_n = A^n e_0 + \sum_{k=0}^{n-1} A^{n-1-k}\, \delta_k . $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $A$, $B$ | `A`, `B` | `[state, state]`, `[state, action]` | the environment's |
# | $e_n$ | `end(...) - truth` | `[rows, state]` | that of the state |
# | $\delta$ | `slip` | `[state]` | that of the state |
# | $\lambda$ | eigenvalue of $A$; `radius` is the largest $\lvert\lambda\rvert$ | number | per step |
# | $\lVert A^n \rVert$ | `longest` with $n = 49$, in standard deviations of the states | number | none |
#
# In the long run the largest absolute eigenvalue of $A$, $|\lambda|$, decides how errors grow. Below 1 the initial
# error dies out and the sum converges. Above 1 both grow like $|\lambda|^n$. At first an error can grow far more than
# the eigenvalues suggest, because a wrong velocity moves the position in every step. The norm $\lVert A^n \rVert$ is
# the most that an error of any direction grows in $n$ steps. In latent space the error of the encoding enters once, as
# $e_0$. If we re-encode, it enters at every step, as $\delta_k$. So we expect the latent roll-out to be better over
# many steps, unless the latent dynamics are poor: the loss trains $f$ for one step only.
#
# *Check by hand.* We roll out a damped oscillator with the function that these arms use. First we give it a wrong
# start, then a small error $\delta$ at each step.

# %%
A, B = torch.tensor([[1.0, 0.2], [-0.2, 0.95]]), torch.tensor([[0.0], [0.1]])
wrong_start, slip = torch.tensor([0.3, -0.2]), torch.tensor([0.01, 0.02])
state, length = torch.ones(3, 2), torch.tensor([1, 3, 8])
action = torch.linspace(-1, 1, 24).view(3, 8, 1)


def end(start, slip=0):
    """Returns the state after 1, 3 and 8 steps, with a slip at each step."""

    def predict(state, action, *_):
        return state @ A.T + action @ B.T + slip

    no_states = torch.zeros(3, 8, 2)  # recorded ones, which this model does not ask for
    return augmentation.rollout(predict, action, no_states, length)(start, None, None, None)


# %% tags=["nbval-check-output"]
truth = end(state)
found = {"a wrong start": end(state + wrong_start) - truth, "slips": end(state, slip) - truth}
power = [np.linalg.matrix_power(A.numpy(), k) for k in range(9)]
alone = [power[n] @ wrong_start.numpy() for n in length]
summed = [sum(power[:n]) @ slip.numpy() for n in length]
assert np.allclose(found["a wrong start"], alone, atol=1e-5), "a wrong start travels as A^n e_0"
assert np.allclose(found["slips"], summed, atol=1e-5), "slips add up as A^k delta"
sizes = {f"error from {name}": each.norm(dim=1).numpy() for name, each in found.items()}
pd.DataFrame(sizes, index=length.numpy()).rename_axis("steps").round(3)

# %% [markdown]
# *Read.* Here $|\lambda|$ is just below 1. The wrong start fades, and the errors of the steps add up. How large are
# $|\lambda|$ and the norm for our tasks, over the 49 steps from step 1 to step 50? A linear regression of $s'$ on $s$ and $a$ is such a system, so we can read
# $A$ from its predictions.

# %%
here = [name for name in trained.WORLD_MODELS if trained.path_of(*name).is_file()]
fits = {name: trained.world_model(*name) for name in here}
names = [task for task, name in fits if name == "world_model"]
pools = {task: read.load(f"{task}-medium") for task in names}
drawn = {task: transitions.draw(read.load(f"{task}-medium-replay"), 10_000, seed=0)[0] for task in names}
linear = {task: imagination.linear_regression(drawn[task]) for task in names}
radius, longest = {}, {}
for task in names:
    scale = drawn[task].state.std(axis=0)
    unit = torch.diag(torch.from_numpy(scale))  # a standard deviation in each dimension
    still = torch.zeros(len(unit), drawn[task].action.shape[1])
    A = (linear[task](unit, still) - linear[task](0 * unit, still)).double().numpy() / scale
    radius[task] = np.abs(np.linalg.eigvals(A)).max()
    longest[task] = np.linalg.norm(np.linalg.matrix_power(A, 49), 2)
radius, longest = pd.Series(radius), pd.Series(longest)
duration = [1000 * tasks.make(tasks.find(task)).unwrapped.dt for task in names]
table = {"largest |eigenvalue|": radius, "largest |eigenvalue|, to the power of 49": radius**49}
table |= {"most that an error grows in 49 steps": longest, "ms per step": duration}
looks.titled(pd.DataFrame(table)).round(3)

# %% [markdown]
# *Check by hand.* With a trained VAE, `latent_rollout` must encode once, step twice and decode, as the first formula says.

# %%
model, state = fitted.model, torch.from_numpy(pool.state[:3])
action = torch.from_numpy(pool.action[:6]).view(3, 2, -1)
normal = torch.randn(3, model.decoder.sizes[0], generator=torch.Generator().manual_seed(0))
z = world_model.sample(world_model.posterior(model, model.standardiser.apply(state)), normal)
for k in (0, 1):
    z = z + model.transition.alone(torch.cat([z, action[:, k]], dim=1))
by_hand = model.standardiser.invert(model.decoder.alone(z)).detach()
found = imagination.latent_rollout(model, state, action, torch.Generator().manual_seed(0))
assert torch.allclose(found[:, 1], by_hand, atol=1e-3), "the state is encoded only once"

# %% [markdown]
# ## 5. Open-loop error by horizon
#
# *Ask.* For how many steps can we trust each predictor? We take windows of 50 steps from episodes of `<task>-medium`.
# They come from a different policy than the rows that the models were fitted on. The error is in variances of these
# episodes' states,
#
# $$ E_n = \operatorname{mean}_{j,\,i} \Big[\big( (s_{n,j,i} - \hat s_{n,j,i}) / \sigma_i \big)^2\Big], $$
#
# so 1 is the error of always predicting their mean, and two unrelated states of these episodes differ by about 2.
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $E_n$ | `error` | `[horizon]` | variances |
# | $n$ | `horizon` | 1 to 50 | steps |
# | $s_{n,j,i}$, $\hat s_{n,j,i}$ | `pool.next_state[rows]`, `path` | `[count, horizon, state]` | the environment's |
# | $j$, $i$ | window, dimension of the state | – | – |
# | $\sigma_i$ | `scale` | `[state]` | the environment's |
#
# We expect three things. Persistence, the guess that nothing moves, starts low and rises to about 2. The linear
# regression and the deterministic network start far below it and rise at the rate of the eigenvalues above. The VAE
# starts high, because of its blur, so it beats persistence only after a number of steps, if at all. On Hopper we also
# draw a VAE that was fitted with a hundredth of the KL weight ([chapter 02](02_world_model.ipynb)). It is blurred much
# less.

# %%
horizons, count = range(1, 51), 10 if profile == "smoke" else 250


def whole_windows(pool):
    """Returns the rows of windows of full length, evenly chosen from a pool, [count, horizon]."""
    window = transitions.windows(pool, len(horizons), 1.0)
    whole = np.flatnonzero(window.length == len(horizons))
    return window.row[whole[np.linspace(0, len(whole) - 1, count).astype(int)]]


def steps_of(task, generator):
    """Returns what predicts one step of a task, by name: a function of state and action."""
    control = partial(imagination.predict_deterministic, fits[task, "world_model"].deterministic)
    found = {"persistence": imagination.persistence, "linear": linear[task], "deterministic": control}
    kinds = {"world_model": "encoded", "world_model_kl0.01": "light"}
    own = {kinds[name]: fitted.model for (of_task, name), fitted in fits.items() if of_task == task}
    return found | {kind: step_of(model, generator) for kind, model in own.items()}


# %%
errors = []
for task, pool in pools.items():
    rows, generator = whole_windows(pool), streams.torch_generator(0, "chapter 06", task)
    state, action = torch.from_numpy(pool.state[rows[:, 0]]), torch.from_numpy(pool.action[rows])
    scale, model = pool.state.std(axis=0), fits[task, "world_model"].model
    steps = steps_of(task, generator)
    paths = {name: imagination.open_loop(step, state, action) for name, step in steps.items()}
    paths["latent"] = imagination.latent_rollout(model, state, action, generator)
    mean = step_of(model, generator, "mean")
    paths["encoded mean"] = imagination.open_loop(mean, state, action)
    paths["latent mean"] = imagination.latent_rollout(model, state, action, generator, "mean")
    for name, path in paths.items():
        error = (((path.numpy() - pool.next_state[rows]) / scale) ** 2).mean(axis=(0, 2))
        columns = {"task": task, "predictor": name, "horizon": horizons, "error": error}
        errors.append(pd.DataFrame(columns))
errors = stored("06_open_loop", pd.concat(errors, ignore_index=True), profile)

# %% [markdown]
# *Check by hand.* Persistence needs no model. We take the first and the third state after the start of each window of
# Hopper, and compute two numbers of the table in plain NumPy.

# %%
rows = whole_windows(pools["hopper"])
start, later = pools["hopper"].state[rows[:, :1]], pools["hopper"].next_state[rows[:, [0, 2]]]
by_hand = (((start - later) / pools["hopper"].state.std(axis=0)) ** 2).mean(axis=(0, 2))
of_hopper = errors[(errors["task"] == "hopper") & (errors["predictor"] == "persistence")]
found = of_hopper.set_index("horizon")["error"].loc[[1, 3]]
assert np.allclose(found, by_hand, rtol=1e-3), "the mean over windows and dimensions"

# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 6.4), sharex=True, sharey="row")
for axis, task in zip(axes.flat, tasks.TASKS, strict=True):
    rows = errors[errors["task"] == task]
    axis.axhline(1, color="#999999", linewidth=1)
    if rows.empty:
        axis.text(0.5, 0.5, "not yet fitted", ha="center", transform=axis.transAxes)
    for kind, (label, colour, line) in styles.items():
        own = rows[rows["predictor"] == kind]
        if len(own):
            axis.plot(own["horizon"], own["error"], color=colour, linestyle=line, label=label)
    reach = (3e-3, 30) if axis in axes[0] else (0.03, 3)
    axis.set(title=tasks.find(task).title, xscale="log", yscale="log", ylim=reach)
    axis.set(xticks=[1, 2, 5, 10, 20, 50], xticklabels=[1, 2, 5, 10, 20, 50])
for axis in axes[:, 0]:
    axis.set_ylabel("open-loop error (variances)")
for axis in axes[1]:
    axis.set_xlabel("steps since the last true state")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
text = (
    f"Open-loop error by horizon on episodes of <task>-medium, mean of {count} windows. 1 (grey) is the "
)
text += "error of always predicting the mean state. Networks of seed 0, fitted on <task>-medium-replay. "
text += "The rows have different y axes."
figures.save_figure(figure, "06_open_loop", errors, text, profile)

# %% [markdown]
# *Look.* Where do the lines cross? The first table has the first horizon at which a predictor errs less than
# persistence. The second has the first at which it errs more than the mean state. The lines may cross again later: look
# at the right edge of the figure.

# %%
wide = errors.pivot(index=["task", "horizon"], columns="predictor", values="error")
means = {kind: wide[f"{kind} mean"] for kind in ("latent", "encoded")}  # without noise, not drawn
wide = wide[[kind for kind in styles if kind in wide]]


def first(reached):
    """Returns the first horizon of each task at which a condition holds, by predictor."""
    when = reached.groupby("task").agg(lambda held: horizons[held.argmax()] if held.any() else "never")
    named = {kind: label for kind, (label, *_) in styles.items()}
    return looks.titled(when.where(wide.groupby("task").any(), "–").loc[names]).rename(columns=named)


# %%
first(wide.lt(wide["persistence"], axis=0)).drop(columns=styles["persistence"][0]).T

# %%
first(wide >= 1).T

# %%
growth = wide.groupby("task").last() / wide.groupby("task").first()
growth.insert(0, "a wrong start, by the eigenvalue", radius**98)
growth.insert(1, "a wrong start, at most", longest**2)
growth = growth.loc[names].rename(columns={kind: label for kind, (label, *_) in styles.items()})
growth = looks.titled(growth)
growth = growth.T.astype(float).round(1).astype(object).fillna("–")
growth.rename_axis(f"growth from 1 step to {len(horizons)}")

# %% [markdown]
# *Read.* Persistence starts low only where a step is short. We expected the errors of the regression and the network to
# grow at the rate of the eigenvalues, but they grow faster. Two rows of the last table show how much a wrong
# start alone would grow, in squared error: by the largest eigenvalue, and at most. These roll-outs start in a true
# state, so all of their error comes from the $\delta_k$. It grows even where each single error fades: $n$ errors that
# point the same way add up to $n$ times one error, which is $n^2$ times the squared error. The deterministic network
# begins with the smallest errors, but these grow as well: after 50 steps it is the best predictor on no task, and on
# Walker2d it is the worst by far. The VAE beats persistence after several steps on Hopper and Walker2d, as we expected,
# but at the first step on HalfCheetah and Ant, where a step is long. On Walker2d the regression starts only a little
# below persistence, and on Ant at half of it. The error of a VAE that re-encodes levels off: each encoding pulls the
# state back to states that the VAE knows, so the VAE forgets the state rather than diverging.

# %%
better = {}
for kind, errors_of in {"with noise": wide, "without noise": means}.items():
    wins = (errors_of["latent"] < errors_of["encoded"]).groupby("task")
    better[f"{kind}: at how many horizons"] = wins.sum().map(f"{{}} of {len(horizons)}".format)
    better[f"{kind}: after {len(horizons)} steps"] = wins.last().map({True: "yes", False: "no"})
looks.titled(pd.DataFrame(better).loc[names]).T.rename_axis("latent space beats re-encoding")

# %% [markdown]
# *Read.* We expected the latent roll-out to be better over many steps. With noise it is better at nearly all horizons
# on Hopper and HalfCheetah, but only at a few on Ant. This mixes two causes, because the re-encoded roll-out draws new
# noise in every step and the latent one only once. The last two rows therefore set the noise of both to zero. Then the
# latent roll-out is better on Hopper alone, so on the other tasks its lead comes only from noise that it does not draw.
# The loss trains $f$ for one step only, and nothing in latent space pulls the state back as each new encoding does.
#
# Keep two things in mind. First, steps are not seconds: a step of HalfCheetah lasts several times as long as a step of
# Hopper (the table of section 4), so five steps cover much more of its stride. Second, these episodes hold fewer kinds
# of motion than the data that the models were fitted on. Where a dimension hardly varies, a small error counts as many
# variances. On Hopper the VAE's error of one step is several times that of chapter 02, mostly because another policy
# visits other states (try the third edit below).
#
# ## 6. Do targets of several steps help an agent?
#
# *Ask.* A longer target changes two things at once: it holds more recorded rewards before the critic's own estimate,
# and its imagined state is worse. So the study `horizons` has arms with and without imagination on HalfCheetah: $n$ =
# 1, 2, 3 and 5 with imagination, 1 and 3 without. All learn from whole episodes, since single transitions have no
# successors. If longer targets help by themselves, `vanilla` gains from $n = 3$ as well. If imagination several steps
# ahead helps, only the augmented arms gain. We fixed these comparisons before we ran anything, but they are
# exploratory, not primary.

# %%
study = studies.find("horizons")
table = claims.main_runs(records.load_runs(records.root(), study.runs()))
metadata = records.load_metadata(records.root(), study.runs())
score, gap = statistics.mean_score(table), statistics.calibration(metadata)
label = {arm: arm.replace("_horizon", ", n = ") for arm in study.arms}

# %%
done, wanted = len(metadata), len(study.runs())
states = {0: "Nothing of this study is recorded yet.", wanted: "All runs of this study are recorded."}
said = states.get(done, "A part of this study is recorded, and what follows is preliminary.")
Markdown(f"*{said}* ({done} of {wanted} runs)")

# %%
rows, compared = [], claims.compare(claims.HORIZONS, table)
for found in compared:
    arm, (other,) = found.comparison.arm, found.comparison.others
    critics = statistics.difference(gap, arm, other)
    numbers = [words.estimate(each, signed=True) for each in (found.interval, critics)]
    seeds, verdict = found.interval.n_seeds, claims.decided(found)
    rows.append([f"{label[arm]} minus {label[other]}", *numbers, seeds, verdict])
columns = ["", "mean score, 0 to 100K", "gap of the critics", "seeds"]
columns += ["verdict: the first arm scores higher"]
pd.DataFrame(rows, columns=columns).set_index("").rename_axis(None)

# %% [markdown]
# The *gap* is the return that the critics predict minus the return of their policy, from the fixed states of
# `data/probes`, when pre-training ends. At a gap of 0 the critics are calibrated, and above 0 they over-estimate. A
# verdict is about the score alone: *reproduced* means that the first arm is better, *contradicted* that it is worse,
# and the [README](../README.md) has the rules.


# %%
def summary(measure, quantity):
    """Returns mean and interval of a measure for each arm of the study that has been run."""
    own = {arm: measure[measure.index.get_level_values("arm") == arm].to_numpy() for arm in study.arms}
    rows = [[quantity, arm, *statistics.interval([each])[:4]] for arm, each in own.items() if len(each)]
    return pd.DataFrame(rows, columns=["quantity", "arm", "value", "low", "high", "n_seeds"])


quantities = {"mean score, 0 to 100K": score, "gap of the critics (discounted rewards)": gap}
found = pd.concat([summary(measure, quantity) for quantity, measure in quantities.items()])
found["family"], found["n"] = found["arm"].str.split("_").str[0], found["arm"].str[-1:].astype(int)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8))
for axis, quantity in zip(axes, quantities, strict=True):
    for offset, family in ((-0.05, "vanilla"), (0.05, "augmented")):
        own = found[(found["quantity"] == quantity) & (found["family"] == family)]
        look = looks.look(family)
        reach = np.abs(own[["low", "high"]].to_numpy().T - own["value"].to_numpy())
        style = {"color": look.colour, "capsize": 3, "label": look.label}
        axis.errorbar(own["n"] + offset, own["value"], reach, fmt="o-", **style)
    axis.set(xlabel="n, steps of the target", ylabel=quantity, xticks=[1, 2, 3, 5], xlim=(0.5, 5.5))
figures.legend(figure)
text = "HalfCheetah, targets of n steps on whole episodes, with and without imagined next states: score "
text += "online, and the return that critics predict minus that of their policy when pre-training ends."
caption = figures.caption(text, table, metadata, figures.MEANS)
figures.save_figure(figure, "06_horizons", found, caption, profile)

# %% [markdown]
# *How to read it.* The two lines of the left panel separate the two changes. Where both lines rise with $n$, longer
# targets help by themselves. Imagination helps where the augmented line lies above the vanilla one. Where only the
# augmented line rises, imagination may merely do less harm at larger $n$. Where the gap grows with $n$ and the score
# falls, the critic may over-estimate states that the roll-outs made up.
#
# ## Where we differ from the paper
#
# - **More than one step.** The paper's model predicts one step [A, C], so this chapter tests an extension, not a claim.
# - **Whole episodes.** [C] draws single transitions, which have no successors. All arms of the study `horizons`,
#   including those with $n = 1$, learn from whole episodes with 10,000 transitions in total. You can compare them with
#   each other, but not with the arms of [chapter 05](05_online_finetuning.ipynb).
# - **Recorded actions.** Our roll-outs follow the recorded actions. Methods such as
#   [MBPO](https://arxiv.org/abs/1906.08253) let the policy act inside the model and learn the reward too.
#
# ## Try it
#
# Each is one line. Predict the result before you run it. Set `profile = "quick"` first, because the profile "paper"
# compares what you compute with the committed tables.
#
# 1. In section 1, `row = np.flatnonzero(pool.terminal)[6] - 124` starts all roll-outs a second before a fall. Which of the two
#    quantities goes wrong first?
# 2. In section 4, put `1.1` in place of `0.95` in `A`, so that $|\lambda|$ is above 1. Does a wrong start still fade?
# 3. In section 5, use `drawn[task].state.std(axis=0)` for `scale`. Errors are then in variances of the rows that the
#    models were fitted on. Which task changes most, and what does that tell you about its two datasets?
#
# ## Questions
#
# <details><summary>Why can a fitted model be worse than predicting the mean?</summary>
#
# The model was fitted to predict one step from a true state. Fed its own predictions, it may leave the states that it
# knows, and no term of its loss penalises that. The mean state has an error of 1 by definition. A model that predicts
# an unrelated state is worse than the mean state, because the squared difference of two unrelated states is twice the
# variance on average.
# </details>
#
# <details><summary>Does a larger horizon make the critic's target better or worse?</summary>
#
# It does both. The bootstrap is discounted by $\gamma^n$, so the critic's own errors count a little less, and the target
# holds $n$ recorded rewards. But these rewards belong to the recorded actions. If the policy would have acted better, the
# target is too low ([Munos et al. 2016](https://arxiv.org/abs/1606.02647) correct for that, and we do not).
# </details>
#
# <details><summary>Why do the augmented arms not roll out in latent space?</summary>
#
# The augmentation takes any one-step `predict` ([chapter 03](03_augmentation.ipynb)), including noise and the other
# controls. It makes a roll-out by calling this function again. Only a VAE has a latent space to stay in. Section 5
# shows what a roll-out in latent space would gain or lose.
# </details>
#
# <details><summary>The deterministic network predicts so much better. Is it the better augmentation?</summary>
#
# Only agents can tell. The arm `deterministic` trains them, and the [README](../README.md) has their scores. If
# the model's error is what regularises, a better prediction may help less.
# </details>
#
# **Next:** [07 · Controls](07_controls.ipynb): does the model help, or just its error?
