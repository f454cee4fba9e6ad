# %% [markdown]
# # 11 · Other methods
#
# **What else can be done with the same 10,000 transitions?**
#
# <!-- answer -->
# Of the arms with two seeds or more, these have the highest mean scores over the first 100,000 interactions: *LayerNorm
# critics, data kept* on Hopper (61, but *LayerNorm critics* with 55 may be as good), Walker2d (35, but *RLPD* with 29 may be as
# good), HalfCheetah (44) and Ant (76, but *LayerNorm critics, no pre-training* with 73 may be as good). On all four tasks (5
# seeds), the mean score of *LayerNorm critics, data kept* differs by +21 [+16, +26] from that of *TD3 with the data, no
# pre-training*, by +41 [+31, +51] from that of *vanilla, data kept* and by +29 [+24, +34] from that of *SAC from scratch*. Not
# yet recorded on every task: *augmented, LayerNorm critics, data kept*, *IQL, data kept* and *behaviour cloning, data kept*. No
# recorded run shows yet whether a perfect world model would help.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the recorded runs in `data/runs`, the pool `halfcheetah-medium-replay`, and `data/models` |
# | gives | figures `11_methods`, `11_off_the_data`, `11_compute`, `11_actions`, and tables |
# | minutes on one core | paper: below 1 · smoke: about 1, it trains tiny agents · quick: up to 20 (the study `hopper`) |
#
# [Chapter 05](05_online_finetuning.ipynb) compared the paper's method with its own ablations. Here we compare it with
# other methods. Each gets the same 10,000 transitions and 100,000 interactions. (TD3 and SAC from scratch get no
# transitions.) An *arm* is one way to train an agent. *Data kept* means that the transitions stay in the replay buffer
# and that learning begins after 5,000 interactions instead of 25,000. A *seed* is the number of a repetition.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/runs; True: train now, into build/<profile>/runs

# %%
import re
from dataclasses import replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import measures, records, runner, studies, trained
from mbaug.method import augmentation, bc, iql, layernorm, networks, rlpd, sac, td3, transitions
from mbaug.method.networks import Arithmetic
from mbaug.method.transitions import Batch
from mbaug.reporting import advice, claims, figures, looks, published, statistics, words
from mbaug.reporting.figures import save_figure, show
from mbaug.reporting.stored import DRAWN, stored

engine.prepare()
figures.style()

# %%
smoke = ("hopper", "algorithms") if profile == "smoke" else ("hopper",)
studied = smoke if retrain else ("core", "baselines", "methods", "algorithms", "long")
frame = pd.concat([runner.evidence(name, profile, retrain) for name in studied])
table = claims.main_runs(frame)
folder = runner.runs_folder(profile, retrain)
runs = [run for name in studied for run in studies.find(name).runs()]
metadata = records.load_metadata(folder, dict.fromkeys(runs))
plan = studies.profile(profile if retrain else "paper").apply(studies.LAYERNORM).online
end, warmup = plan.steps, plan.warmup_steps

# %%
scratch = ["td3", "sac", "td3_data", "rlpd", "td3_layernorm_data"]
pretrained = ["vanilla", "vanilla_data", "augmented", "augmented_data", "layernorm", "layernorm_data"]
pretrained += ["augmented_layernorm_data", "iql", "bc"]
arms = [*scratch, *pretrained]
score = statistics.mean_score(table, end)
figure = plt.figure(figsize=(8, 6.4))
drawn = figures.dots(figures.panels(figure), score, arms)
figure.supxlabel(f"mean score over the first {end:,} interactions", fontsize=10)
shown = table[table["arm"].isin(arms) & (table["phase"] == "finetune")]
text = "Mean online score of each arm. The first five arms do not pre-train, "
text += "and TD3 and SAC from scratch use no offline transitions. Ant has an axis of its own."
caption = figures.caption(text, shown, metadata, figures.DOTS)
save_figure(figure, "11_methods", drawn, caption, profile)

# %% [markdown]
# ## 1. The candidates
#
# *Ask.* A critic that is trained on little data can over-fit. The paper's remedy is to imagine some of the data. Other
# methods change the critic, the loss, or the online phase. If imagination is worth the cost of its world model, it
# should beat them.
#
# | arm | offline | online | its paper |
# |---|---|---|---|
# | `vanilla` | TD3+BC | TD3 | [Fujimoto & Gu 2021](https://arxiv.org/abs/2106.06860) |
# | `augmented` | TD3+BC, half of the next states imagined | TD3 | [Macaluso et al. 2023](https://arxiv.org/abs/2312.09844) |
# | `layernorm` | TD3+BC, LayerNorm in the critics | TD3, LayerNorm | [RLPD][rlpd], [SEEM][seem] |
# | `augmented_layernorm_data` | the same with imagination | the same, data kept | both |
# | `td3_layernorm_data` | none | TD3, LayerNorm, data kept | as `layernorm` |
# | `rlpd` | none | SAC, LayerNorm, half of each batch old | [Ball et al. 2023][rlpd] |
# | `iql` | IQL | IQL, data kept | [Kostrikov et al. 2021](https://arxiv.org/abs/2110.06169) |
# | `bc` | cloning, critics learn the clone's value | TD3, data kept | [Pomerleau 1988][alvinn] |
#
# [rlpd]: https://arxiv.org/abs/2302.02948
# [seem]: https://arxiv.org/abs/2310.04411
# [alvinn]: https://proceedings.neurips.cc/paper/1988/hash/812b4ba287f5ee0bc9d43bbf5bbe87fb-Abstract.html
#
# `_data` at the end of a name means that the arm keeps the data. `rlpd`, `iql` and `bc` keep them, too. Each method
# stands for one idea. `layernorm` changes one line of the critic and needs no model. `td3_layernorm_data` and `rlpd`
# ask whether pre-training is needed at all. `iql` never asks about an action that is not in the data, so errors at such
# actions never enter its targets. `bc` asks how much of a jump-start is just a good first policy.
#
# ## 2. LayerNorm: one line in the critic
#
# *Ask.* A critic is trained at the recorded actions, but its targets use the policy's actions. Where the two differ, a
# plain network extrapolates linearly, without bound. [LayerNorm](https://arxiv.org/abs/1607.06450) puts each hidden
# layer on a sphere before the ReLU:
#
# $$\begin{gathered}
# h_l = \mathrm{relu}\big(\mathrm{LN}(h_{l-1} W_l + b_l)\big), \\
# \mathrm{LN}(x) = \frac{x - \operatorname{mean} x}{\sqrt{\operatorname{var} x + \epsilon}} .
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $x$ | `hidden` | `[..., n]`, n units; mean and variance are over them | none |
# | $h_l$ | output of layer $l$; $h_0$ holds state and action | `[..., n]` | none |
# | $\epsilon$ | torch's default, 1e-5 | number | none |
# | $W_l, b_l$ | `network.layers` | a matrix and a row for each critic | none |
#
# The squared entries of $\mathrm{LN}(x)$ add up to at most $n$, and ReLU only removes some. With the last layer's weights $w$
# and bias $b$ a value is bounded everywhere, whatever its inputs:
#
# $$\boxed{\ |Q(s, a) - b| \;\le\; \lVert w \rVert \sqrt{n}\ }$$
#
# The bound holds for given $w$, and $w$ is learned. So a wrong target can raise values beyond it only through
# $\lVert w \rVert$ or $b$, while without LayerNorm a value also grows with the distance of its input from the data. We
# use no learned gain and offset: a gain can go into the next layer's weights.

# %%
show(networks.layer_norm, layernorm.normalised)

# %% [markdown]
# *Check by hand.* We compute LayerNorm of three rows of four units in NumPy. Then we ask a critic about inputs a
# thousand standard deviations away from the data. Its value must be within the bound. Without LayerNorm the same
# weights must give a value outside it.

# %% tags=["nbval-check-output"]
rows = np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 8.0]])
centred = rows - rows.mean(axis=1, keepdims=True)
by_hand = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
assert np.allclose(networks.layer_norm(torch.from_numpy(rows)), by_hand), "LN is (x - mean) / deviation"
assert (np.square(by_hand).sum(axis=1) <= 4).all(), "its squares add up to the number of units at most"

double = Arithmetic(precision="float64")
kinds = {"plain": td3.create, "LayerNorm": layernorm.create}
start = lambda: streams.torch_generators([0], "chapter 11")  # noqa: E731 -- the same start for both
agents = {name: make(11, 3, td3.TD3(), start(), double) for name, make in kinds.items()}
weight, bias = agents["LayerNorm"].critics.network.layers[-1]
bound = (weight.norm() * 256**0.5 + bias.abs().max()).item()
far = 1e3 * torch.randn(1, 50, 11, dtype=torch.float64), torch.zeros(1, 50, 3, dtype=torch.float64)
reach = {name: agent.critics(*far).abs().max().item() for name, agent in agents.items()}
assert reach["LayerNorm"] <= bound < reach["plain"], "LayerNorm bounds a value, a plain network does not"
print("far off all data: LayerNorm within its bound, the plain network outside")

# %% [markdown]
# *Does it matter on real states?* Both kinds of critic learn the same numbers: the values that the trained `vanilla`
# critic of HalfCheetah gives to recorded rows, in standard deviations. Then we stretch each standardised state by a
# factor: at 1 it is the recorded state, at 4 it lies four times as far from the mean. We expect both critics to agree
# at 1, and the values of the plain one to grow without bound.

# %%
known = trained.path_of("halfcheetah", "vanilla").is_file()
count, steps, small = (100, 20, (16,)) if profile == "smoke" else (1_000, 1_500, (64, 64))
drawn, _ = transitions.draw(read.load("halfcheetah-medium-replay"), 10_000, seed=0)


def taught(make, state, action, value):
    """Returns critics that have learned the values of some rows by TD3's own critic loss."""
    agent = make(17, 6, replace(td3.TD3(), hidden=small), start(), double)
    batch = Batch(state, action, value, state, torch.ones_like(value))
    for _ in range(steps):
        losses = td3.critic_loss(agent.critics, batch, value)
        networks.adam_step(losses, 1e-3, (agent.critics.network.flat, agent.moments["critics"]))
    return agent.critics


# %%
stretch, off = np.linspace(0, 6, 25), []
if known:
    teacher = trained.agent("halfcheetah", "vanilla")
    state = teacher.standardiser.apply(torch.from_numpy(drawn.state[None, :count])).double()
    action = torch.from_numpy(drawn.action[:count]).double()[None]
    value = measures.values(teacher.agent.critics, state, action).double()[0]
    value = pd.DataFrame({"value": (value - value.mean()) / value.std()})
    # Training amplifies the last bits, which differ between processors: we take the committed ones.
    value = torch.tensor(stored("11_values", value, profile).to_numpy().T)
    for name, make in kinds.items():
        critics = taught(make, state, action, value)
        for factor in stretch:
            found = measures.values(critics, factor * state, action)[0]
            off.append([name, factor, *found.quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()])
off = pd.DataFrame(off, columns=["critic", "stretch", "low", "median", "high"])
off = stored("11_off_the_data", off, profile, tolerance=0.02) if known else off

# %%
figure, axis = plt.subplots(figsize=(8, 3.4))
for (name, rows), colour in zip(off.groupby("critic", sort=False), ("#E69F00", "#7B3294"), strict=False):
    axis.plot(rows["stretch"], rows["median"], color=colour, label=name)
    axis.fill_between(rows["stretch"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
axis.axvline(1, color="#333333", linewidth=0.8)
axis.text(1.05, 0.02, "the data", transform=axis.get_xaxis_transform())
axis.set(xlabel="stretch of the states (1: as recorded)", ylabel="value (standard deviations)")
if known:
    axis.legend(loc="upper left")
text = f"Two critics that learned the same values of {count:,} rows of HalfCheetah, asked about "
text += "stretched states. Lines are medians over the rows, bands hold 80 % of them."
save_figure(figure, "11_off_the_data", off, text, profile)

# %% [markdown]
# *Read.* At 1 the two bands coincide, and beyond 1 they separate. This shows that LayerNorm bounds extrapolation. It
# does not show that extrapolation was the problem. [Chapter 04](04_offline_pretraining.ipynb) counts the critics that
# run away, and section 6 measures how well critics are calibrated.
#
# ## 3. RLPD: old and new rows in equal parts
#
# *Ask.* [RLPD](https://arxiv.org/abs/2302.02948) drops pre-training. It is SAC with LayerNorm in its critics, and it
# draws half of each online batch from the offline rows. Its actor maximises the mean of the critics:
#
# $$\begin{gathered}
# \text{batch} =
# \tfrac B2 \text{ rows of } \mathcal D_{\text{offline}} \,\cup\, \tfrac B2 \text{ rows of } \mathcal D_{\text{online}}, \\
# L(\theta) = \frac1B \sum_j \Big(\alpha \log \pi_\theta(\tilde a_j|s_j)
# - \tfrac12 (Q_1 + Q_2)(s_j, \tilde a_j)\Big), \quad \tilde a_j \sim \pi_\theta(\cdot|s_j) .
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $B$ | `batch_size` | number | transitions |
# | $\mathcal D_{\text{offline}}$ | rows 0 to `offline` of the replay | `[agents, offline, width]` | transitions |
# | $\mathcal D_{\text{online}}$ | the rows behind them | `[agents, size - offline, width]` | transitions |
# | $\tilde a_j$ | action of row $j$ from `sac.sample` | `[agents, batch, action]` | full torque is 1 |
# | $\theta$, $Q_1, Q_2$ | the actor's parameters, the critics | | discounted rewards |
# | $\alpha, \log\pi_\theta$ | as for SAC in chapter [05](05_online_finetuning.ipynb) | `[agents]`, `[agents, batch]` | rewards per nat, nats |

# %%
show(rlpd.rows, rlpd.actor_loss)

# %% [markdown]
# *Check by hand.* The replay holds 10 old and 4 new rows. Of the six that we draw, three must be old and three new.
# Then we compute the actor's loss of five random rows.

# %% tags=["nbval-check-output"]
places = torch.tensor([0.0, 0.5, 0.999, 0.0, 0.5, 0.999], dtype=torch.float64)
found = rlpd.rows(places, offline=10, size=14).tolist()
print("rows of a batch:", found)
assert found == [0, 5, 9, 10, 12, 13], "three rows are old, three are new, and every row can be drawn"

generator, alpha = torch.Generator().manual_seed(0), torch.tensor([0.3])
agent = rlpd.create(2, 1, sac.SAC(hidden=(4, 4)), [generator])
state, normal = (torch.randn(1, 5, size, generator=generator) for size in (2, 1))
batch = Batch(state, normal, state[..., 0], state, state[..., 0])  # the loss reads only the states
loss, _ = rlpd.actor_loss(agent.actor, agent.critics, batch, alpha, normal)
action, log_density = sac.sample(agent.actor, state, normal)
expected = (0.3 * log_density - agent.critics(state, action).mean(dim=0)).mean()
assert torch.isclose(loss, expected), "the actor maximises the mean of the critics"

# %% [markdown]
# ## 4. IQL and cloning: other losses
#
# *Ask.* [IQL](https://arxiv.org/abs/2110.06169) never asks a critic about an action that is not in the data. A state's
# value $V$ is an *expectile* of the recorded actions' values, and the actor clones recorded actions, the better ones
# with more weight:
#
# $$\begin{gathered}
# L_V = \frac1B\sum_j \big|\tau - 1(u_j \lt 0)\big|\, u_j^2, \\
# u_j = \min(Q'_1, Q'_2)(s_j, a_j) - V(s_j), \quad y = r + \gamma (1 - d)\, V(s'),
# \end{gathered}$$
#
# $$L_{\text{IQL}} = -\frac1B\sum_j \min\big(e^{\beta c\, u_j},\, 100\big) \log \pi(a_j|s_j) .$$
#
# The critics move towards $y$ with TD3's loss, the mean of $(Q_1 - y)^2 + (Q_2 - y)^2$.
#
# Behaviour cloning also clones the recorded actions, but all with the same weight: $L_{\text{BC}} = \frac1B \sum_j \lVert
# \pi(s_j) - a_j \rVert^2 / A$, where $A$ is the number of dimensions of an action. Its critics learn the values of the
# clone with TD3's target, so that TD3 can continue online.
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $\tau$ | `expectile` | number, 0.7 | none |
# | $\beta$ | `inverse_temperature` | number, 3 | per scaled reward |
# | $c$ | `reward_scale` | number, 0.25 | scaled rewards per reward |
# | $V$ | `agent.value` | `[agents, batch]` | discounted rewards |
# | $u$ | `surplus` in `value_loss`, `advantage` in `actor_loss` | `[agents, batch]` | discounted rewards |
# | $Q'_1, Q'_2$ | `agent.target_critics` | `[2, agents, batch]` | discounted rewards |
# | $\pi(a \mid s)$ | a normal density around `agent.actor`; for the clone $\pi(s)$ is the actor's action | `[agents, batch]` | none |
# | $y, r, \gamma, d$ | as in chapter [04](04_offline_pretraining.ipynb) | | |
# | $j$, $1(\cdot)$ | row of the batch; 1 if true, else 0 | – | – |

# %%
show(iql.value_loss, iql.critic_target, iql.actor_loss, bc.cloning_loss)

# %% [markdown]
# *Check by hand.* Three actions of one state are worth 0, 1 and 5. The expectile of 0.5 is their mean, 2. That of 0.7
# lies higher, where the weighted errors on both sides balance: 0.7 (5 − V) = 0.3 (V − 0) + 0.3 (V − 1) gives V = 2.92.
# For three rows we also compute the actor's loss, the critics' target if every state is worth 10, and the cloning loss.

# %% tags=["nbval-check-output"]
target = torch.tensor([[0.0, 1.0, 5.0]])
for expectile, expected in ((0.5, 2.0), (0.7, 3.8 / 1.3)):
    grid = torch.linspace(0, 5, 5_001)
    losses = iql.value_loss(grid[:, None].expand(-1, 3), target.expand(len(grid), -1), expectile)
    best = grid[losses.argmin()].item()
    print(f"expectile {expectile}: V = {best:.2f}")
    assert abs(best - expected) < 1e-3, "the loss is least where both pulls are equal"

advantage = torch.tensor([[-4.0, 0.0, 400.0]])  # weights exp(-3), 1, and 100, the upper limit
action, log_std = torch.tensor([[[0.5], [0.0], [1.0]]]), torch.full((1, 1, 1), 0.4)
loss = iql.actor_loss(torch.zeros(1, 3, 1), log_std, action, advantage, iql.IQL())
log_density = -0.5 * (np.array([0.5, 0.0, 1.0]) / np.exp(0.4)) ** 2 - 0.4 - 0.5 * np.log(2 * np.pi)
expected = -(np.array([np.exp(-3), 1, 100]) * log_density).mean()
assert np.isclose(loss.item(), expected), "better rows count more"

reward, terminal = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
batch = Batch(action, action, reward, action, terminal)  # neither function reads the states
ten = SimpleNamespace(value=lambda state: torch.full((1, 1, 3), 10.0))
target = iql.critic_target(ten, batch, iql.IQL(), None)
assert np.allclose(target, [[10.9, 11.9, 3.0]]), "r + 0.99 V(s'), and r alone in the terminal row"
cloned = bc.cloning_loss(lambda state: torch.zeros(1, 3, 1), None, batch, td3.TD3())
assert np.isclose(cloned.item(), (0.5**2 + 1) / 3), "cloning weights all rows alike"

# %% [markdown]
# ## 5. What was found
#
# *Ask.* Does LayerNorm help? Before any run with it was recorded, we named three comparisons as the second primary
# *family*: `layernorm_data` minus TD3 with the data, minus vanilla pre-training with data kept, and minus SAC from
# scratch. ([Chapter 05](05_online_finetuning.ipynb) has the first family.) By then we knew the runs of TD3 with the
# data and of SAC, and one of vanilla with data kept. Each comparison is over four tasks. The p values are corrected for
# the number of comparisons. Everything else here is exploratory. An arm that keeps the data acts for 5,000 steps before
# it learns: with its own policy if it is pre-trained, else at random.


# %%
def family(measure):
    """Returns the second primary family in words, in one window."""
    found = claims.compare([replace(each, measure=measure) for each in claims.METHODS], table)
    return [words.estimate(each.interval, signed=True) for each in found]


def on_each_task(comparison):
    """Returns the difference on each task that has it, without its interval."""
    pairs = statistics.by_task(score, comparison.arm, *comparison.others)
    gaps = {task: np.mean(one) - np.mean(other) for task, (one, other) in pairs.items()}
    return {tasks.find(task).title: words.number(gap, signed=True) for task, gap in gaps.items()}


names = [looks.look(each.others[0]).label for each in claims.METHODS]
decided = claims.compare(claims.METHODS, table)
plain = {"reproduced": "higher", "contradicted": "lower"}
verdicts = [plain.get(each, each) for each in map(claims.decided, decided)]
verdicts = {"p": map(claims.p_value, decided), "verdict": verdicts}
windows = {"0 to 100K": statistics.mean_score, "25K to 100K": claims.LEARNING}
second = pd.DataFrame({name: family(measure) for name, measure in windows.items()}, names)
second["0 to 100K, without one task"] = [words.without(each.interval, each.rest) for each in decided]
apart = pd.DataFrame(map(on_each_task, claims.METHODS), names)
apart = apart.reindex(columns=[task.title for task in tasks.TASKS.values()]).fillna("–")
second = pd.concat([second, apart, pd.DataFrame(verdicts, names)], axis=1)
second.rename_axis(f"{looks.look('layernorm_data').label}, minus")

# %% [markdown]
# The verdict says whether LayerNorm scores *higher* or *lower*, by the rules in the [README](../README.md), which call
# this *reproduced* and *contradicted*. The third column leaves out the task that moves the difference most.
#
# The next table shows every arm from 0 to 100K. Unfold the tables below it for the second window, and for the
# core-minutes of a run (median, smallest and largest). Several processors recorded the runs, and some were busy or
# paused, so the minutes are only a rough guide.


# %%
def of(measure, task, arm):
    """Returns the numbers of an arm's runs on a task, in words."""
    return words.estimate(statistics.arm_mean(measure, task, arm)).replace("–", looks.absent(arm, task))


def minutes(task, arm):
    """Returns the minutes that an arm's runs took: the median, the smallest and the largest."""
    own = [a["wall_seconds"] / 60 for r, a in metadata.items() if (r.task, r.arm) == (task, arm)]
    if len(own) < 2:
        return f"{own[0]:.0f}" if own else looks.absent(arm, task)
    return f"{np.median(own):.0f} ({min(own):.0f} to {max(own):.0f})"


later = statistics.mean_score(table, end, warmup)
told = {"0 to 100K": partial(of, score), "25K to 100K": partial(of, later), "core-minutes": minutes}


def by_arm(tell):
    """Returns a table with a row for each arm and a column for each task."""
    return looks.labelled(pd.DataFrame({arm: {t: tell(t, arm) for t in tasks.TASKS} for arm in arms}).T)


by_arm(told["0 to 100K"])


# %%
def as_markdown(name):
    """Returns one of these tables in Markdown."""
    rows = by_arm(told[name]).reset_index()
    return "\n".join([f"*{name}*", "", *words.table(["", *rows.columns[1:]], rows.to_numpy())])


more = "\n\n".join(map(as_markdown, ["25K to 100K", "core-minutes"]))
Markdown(words.fold("Every arm from 25K to 100K, and its minutes", more))

# %% [markdown]
# *Compared with published numbers.* How much offline score do we lose because we have only 10,000 transitions?
# [CORL](https://github.com/corl-team/CORL) trained the same algorithms on all of D4RL's medium-replay data. The table
# has the last score before going online, from its README and from our runs.

# %%
reported = {  # transitions, and the last scores of TD3+BC, IQL and behaviour cloning
    "hopper": (402_000, 64.4, 97.4, 29.8),
    "walker2d": (302_000, 85.6, 82.2, 21.8),
    "halfcheetah": (202_000, 44.8, 44.5, 35.7),
}
corl = pd.DataFrame(reported, ["transitions", "vanilla", "iql", "bc"]).T
names = {"vanilla": "TD3+BC", "iql": "IQL", "bc": "behaviour cloning"}
last = statistics.last_offline(table)
beside = {
    (names[arm], tasks.find(task).title): {
        "published": corl[arm][task],
        "its transitions": f"{corl['transitions'][task]:,.0f}",
        "ours": of(last, task, arm),
    }
    for arm in names
    for task in (corl.index if arm == "vanilla" else studies.TWO)
}
pd.DataFrame(beside).T

# %% [markdown]
# *Read.* CORL learned from 20 to 40 times as many transitions, in an older simulator and on other data. It also trained
# for a million updates, five times as many as our TD3+BC and IQL. The actor of behaviour cloning gets a million updates
# there and 25,000 here. So even a large difference is only a rough measure of what the small dataset costs.
#
# Which arm beats which? An entry is the share of pairs of runs in which the row's arm scores more than the column's,
# averaged over the tasks on which both arms have two runs. The columns are numbered like the rows. The first column has
# the number of tasks on which the arm has two runs: shares over different tasks are not comparable.


# %%
def beats(arm, other):
    """Returns how often an arm's runs beat another's."""
    pairs = statistics.by_task(score, arm, other).values()
    return statistics.probability_of_improvement([a for a, _ in pairs], [b for _, b in pairs])


twice = {arm: len(found) for arm in arms if (found := statistics.by_task(score, arm))}
square = pd.DataFrame("–", [*twice], ["tasks", *twice])
square["tasks"] = twice
for arm, other in combinations(twice, 2):
    share = beats(arm, other)
    square.loc[arm, other], square.loc[other, arm] = f"{share:.0%}", f"{1 - share:.0%}"
square.columns = ["tasks", *range(1, len(twice) + 1)]
square.index = [f"{place}. {looks.look(arm).label}" for place, arm in enumerate(twice, 1)]
square.replace("nan%", "–")

# %% [markdown]
# *Is an arm worth its compute?* The cost of a run grows with its number of updates, offline and online together, which
# does not depend on the processor. An update of SAC costs about 1.6 times as much as one of TD3 ([chapter
# 90](90_engine.ipynb)), LayerNorm slows an update down, and imagination also needs the fit of its world model. A
# band further right made more updates. No arm without pre-training makes as many updates as a pre-trained one. So a
# gain over TD3 with the data may come from LayerNorm, from pre-training, or from more updates.

# %%
points = score.groupby(["task", "arm"]).agg(mean_score="mean", n_seeds="size").reset_index()
points = points[points["arm"].isin(arms)]
points["updates"] = [studies.updates(studies.ARMS[arm]) for arm in points["arm"]]
budgets = sorted(points["updates"].unique())
alike = points.groupby(["task", "updates"])
apart = alike.cumcount() - (alike["arm"].transform("size") - 1) / 2  # places beside each other
points["place"] = points["updates"].map(budgets.index) + 0.13 * apart

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 3.6), sharex=True)
for axis, task in zip(axes, tasks.TASKS, strict=True):
    for row in points[points["task"] == task].itertuples():
        look, kept = looks.look(row.arm), studies.ARMS[row.arm].online.keep_data
        style = {"color": look.colour, "fillstyle": "full" if row.n_seeds > 1 else "none"}
        mark = "D" if row.arm == "rlpd" else "s" if kept else "o"
        axis.plot(row.place, row.mean_score, mark, label=look.label, **style)
    axis.margins(0.15)
    for number in range(len(budgets)):
        axis.axvspan(number - 0.35, number + 0.35, color="#EBEBEB", zorder=0)
    labels = [f"{updates // 1000}" for updates in budgets]
    axis.set_xticks(range(len(budgets)), labels)
    axis.grid(axis="x", visible=False)
    axis.set(title=tasks.find(task).title, xlabel="updates (thousands)")
    axis.set_ylim(min(0, axis.get_ylim()[0]), None)
axes[0].set_ylabel("mean online score")
figures.legend(figure)
text = "Mean online score over the updates of a run, offline and online, means over seeds. "
text += (
    "Squares and the diamond (RLPD) keep the data, circles do not. Arms in one grey band make equally "
)
text += "many updates. The first figure has the intervals. The y axes differ."
text += " A hollow mark is a single seed." * bool((points["n_seeds"] == 1).any())
save_figure(figure, "11_compute", points, figures.caption(text, shown, metadata, ""), profile)

# %% [markdown]
# *How long until an arm is nearly as good as SAC after a million interactions?* We count the interactions until an
# evaluation first reaches 90 % of SAC's published mean score over the last 100,000 of a million interactions. The table
# has the median over seeds, and how many seeds get there within 100,000. A single lucky evaluation counts, so this is
# not the time until an arm *stays* that good: the curves of Hopper in [chapter 05](05_online_finetuning.ipynb) jump by
# tens of points.


# %%
def until_level(task, arm):
    """Returns the median interactions until 90 % of SAC's published end, and how many seeds reach it."""
    reached = statistics.steps_to_threshold(table, 0.9 * published.end(task))
    levels = reached.index.to_frame()
    own = reached[(levels["task"] == task) & (levels["arm"] == arm)]
    if not len(own):
        return looks.absent(arm, task)
    median = f"{own.median():,.0f}" if np.isfinite(own.median()) else f"beyond {end:,}"
    return f"{median} ({np.isfinite(own).sum()} of {len(own)})"


by_arm(until_level)

# %% [markdown]
# ## 6. Why: are LayerNorm's critics better calibrated?
#
# *Ask.* If LayerNorm works because critics no longer run away, its critics must be better calibrated, and it should
# help only where vanilla critics do run away. We compare the values that critics predict for 400 fixed states with the
# returns of their policy from there. With LayerNorm this *gap* must be nearer to zero, and values must change less when
# an action moves a little ([chapter 04](04_offline_pretraining.ipynb) explains these measures). We divide this change,
# the *roughness*, by the spread of the values, because values that differ little also change little. The *drop* is the
# last score offline minus the lowest score in the first 50,000 interactions. All arms in the table are pre-trained and
# keep the data. Numbers are medians over seeds, because a single critic that ran away would decide a mean.


# %%
def known_of(arm, task):
    """Returns medians of an arm's measures in the order of `columns`, and its seeds."""
    own = [a for r, a in metadata.items() if (r.arm, r.task) == (arm, task) and a.get("calibration")]
    rows = []
    for fixed, fit in ((a["calibration"]["all"], a["watch"]["overfitting"]) for a in own):
        spread, rough = fit["value_std"], fit["roughness"]["action"][0]
        three = fixed["value"], fixed["return"], fixed["gap"]
        rows.append((*three, abs(fixed["gap"]), spread, rough, rough / spread))
    return [*np.median(rows, axis=0), dropped.get((arm, task), np.nan), len(rows)] if rows else None


dropped = statistics.score_drop(table).groupby(["arm", "task"]).median()
own = ["vanilla_data", "augmented_data", "layernorm_data", "augmented_layernorm_data", "iql", "bc"]
asked = {
    (tasks.find(task).title, looks.look(arm).label): known_of(arm, task)
    for task in tasks.TASKS
    for arm in own
}
columns = ["value", "return", "gap", "|gap|", "spread"]
columns += ["roughness", "roughness / spread", "drop", "seeds"]
inside = pd.DataFrame({key: found for key, found in asked.items() if found}, columns).T
told = inside.drop(columns="|gap|").map(words.number).assign(seeds=inside["seeds"].astype(int))
told["roughness / spread"] = inside["roughness / spread"].map("{:.3f}".format)
told if len(inside) else Markdown("Not yet recorded.")


# %%
def below(numbers, other):
    """Returns on which tasks a number is lower for LayerNorm critics than for another arm, in words."""
    pair = [looks.look(arm).label for arm in ("layernorm_data", other)]
    both = numbers.unstack().reindex(columns=pair).dropna()
    lower = both.index[both[pair[0]] < both[pair[1]]]
    titles = [task.title for task in tasks.TASKS.values() if task.title in lower]
    return f"on {len(lower)} of {len(both)} tasks: {', '.join(titles) or 'none'}"


if len(inside):
    print("the gap of LayerNorm's critics is smaller in size", below(inside["|gap|"], "vanilla_data"))
    print("its values are less rough in rewards", below(inside["roughness"], "vanilla_data"))
    print("and relative to their spread", below(inside["roughness / spread"], "vanilla_data"))

# %% [markdown]
# *Read.* The three lines count the tasks on which LayerNorm's medians are better than vanilla's. For the gap they take
# the size of each seed's gap, because gaps of both signs would cancel. They do not say how sure a difference is. Gap,
# spread and roughness are in rewards, and the drop is in points of score. The drop does not show that LayerNorm's
# agents lose less at the switch: an agent with a high score has more to lose. Where a critic has run away, its spread
# is huge: read the roughness in rewards there.
#
# Our second expectation, that LayerNorm helps only where vanilla critics run away, fails on HalfCheetah. No vanilla
# critic runs away there, and LayerNorm still has the higher mean score in the table of section 5. So keeping critics
# from running away is not all that LayerNorm does.
#
# *Off the data.* A small move says little about actions that nobody tried. So we walk in a straight line from each
# recorded action $a$ to a random corner $o$ of the box of actions, and ask how the value changes on the way:
#
# $$v(p) = \frac{Q(s, a + p\,(o - a)) - Q(s, a)}{\mathrm{SD}\ Q(s, a)}, \quad Q = \min(Q_1, Q_2) .$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $p$ | `SHARES` | numbers from 0 to 1 | share of the way |
# | $a, o$ | `action`, `other` | `[agents, batch, action]` | full torque is 1 |
# | $\mathrm{SD}\ Q$ | over the rows of the batch | `[agents]` | discounted rewards |
# | $v$ | returned, three quantiles over rows | `[agents, shares, 3]` | standard deviations of the values |
#
# Where $v$ rises, the critic draws the actor to actions that are not in the data, and offline nothing corrects it. On
# a tenth of the paths values rise by more than the 90 % quantile of $v$. We expect values to fall on most paths, and
# this quantile to be lower with LayerNorm.

# %%
show(trained.along_actions)

# %% [markdown]
# *Check by hand.* Take a critic whose value is the action itself, and the actions −1 and 1, whose values have a
# standard deviation of 1. On the way to 1 the first value rises by 2, and the second stays. So the median rises by 1,
# and the quantiles of 10 % and 90 % by 0.2 and 1.8.

# %% tags=["nbval-check-output"]
plain = networks.Critics(networks.perceptron((3, 1), [torch.Generator(), torch.Generator()]))
for weight, bias in plain.network.layers:
    weight[:], bias[:] = torch.tensor([[0.0], [0.0], [1.0]]), 0
ends = torch.tensor([[[-1.0], [1.0]]]), torch.ones(1, 2, 1)
found = trained.along_actions(plain, torch.zeros(1, 2, 2), *ends)[0]
assert np.allclose(found[-1], [0.2, 1, 1.8]), "quantiles of a rise by 2 and of none"
print("at the end of the way:", [round(x, 3) for x in found[-1].tolist()])

# %% [markdown]
# Critics of all arms and tasks are too large to ship. `python -m mbaug models` evaluates those that the recorded runs
# kept, and writes the values into `data/models/drawn`. For an agent that we ship we compute them here and compare.

# %% tags=["nbval-check-output"]
lines, quantiles = pd.read_csv(DRAWN / "11_actions.csv"), ["low", "median", "high"]
told = lines.query("task == 'hopper' and arm == 'vanilla' and seed == 0")[quantiles]
live = trained.values_along_actions(trained.agent("hopper", "vanilla"))[quantiles]
assert np.allclose(told, live, atol=0.02), "the shipped networks have rounded weights"
print("the vanilla agent of Hopper answers as it did when it was recorded")

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 3))
for axis, task in zip(axes, tasks.TASKS, strict=True):
    for arm in trained.ACTION_ARMS:
        for _, rows in lines[(lines["task"] == task) & (lines["arm"] == arm)].groupby("seed"):
            look = looks.look(arm)
            drawn_as = {"color": look.colour, "ls": look.line, "lw": 1, "label": look.label}
            axis.plot(rows["share"], rows["high"], **drawn_as)
    axis.axhline(0, color="#333333", linewidth=0.8)
    axis.set(
        title=tasks.find(task).title, xlabel="share of the way\nto a random action", xticks=[0, 0.5, 1]
    )
axes[0].set_ylabel("change of the value\n(90 % quantile, SD)")
figures.legend(figure)
text = "How values change on the way from a recorded action to a random corner of the actions' box. "
text += "A tenth of the rows rise by more than the line shows. A line is one seed. The y axes differ. "
text += f"Seeds per arm and task: {words.span(lines.groupby(['task', 'arm'])['seed'].nunique())}."
save_figure(figure, "11_actions", lines, text, profile)

# %%
end_of_way = lines[lines["share"] == 1].groupby(["task", "arm"])[quantiles].mean()
end_of_way = end_of_way.reindex(
    [(task, arm) for task in tasks.TASKS for arm in trained.ACTION_ARMS]
).dropna()
end_of_way = looks.labelled(end_of_way)
for other in ("vanilla", "noise"):
    label = looks.look(other).label
    print(f"`high` is lower with LayerNorm than with {label}", below(end_of_way["high"], other))
end_of_way.map("{:.2f}".format)

# %% [markdown]
# *Read.* The table has the ends of the lines, means over seeds. `high` is the 90 % quantile, which the figure draws.
# Where `median` is negative, values fall on most paths, as we expected. Where noise lowers `high` as much as LayerNorm
# does, LayerNorm is not the only remedy. On HalfCheetah LayerNorm lowers it on the way but not at the end. Where
# critics have run away, their standard deviation is huge: compare the shape of the lines there, not their height. We
# did not check whether the rises that remain are over-estimates.
#
# ## 7. What if the world model were perfect? The simulator in its place
#
# *Ask.* The paper's model makes errors, and it only predicts what follows recorded actions. What if it made no errors,
# and predicted what follows the *policy's* actions? The simulator is that model. From drawn states the policy acts for
# $k$ steps, a *branch* as in [MBPO](https://arxiv.org/abs/1906.08253). The critics learn from the transitions of the
# branch:
#
# $$\begin{gathered}
# a_t = \mathrm{clip}(\pi(s_t) + \sigma\, \xi_t), \quad \xi_t \sim \mathcal N(0, I), \\
# (s_{t+1}, r_t, d_t) = \mathrm{simulator}(s_t, a_t), \quad t = 0, \dots, k - 1,
# \end{gathered}$$
#
# $$\begin{gathered}
# \text{critics' batch} = M \text{ such transitions} \,\cup\, B - M \text{ recorded ones}, \\
# \text{actor's batch} = \text{the recorded ones} .
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $k$ | `branch` | number | steps |
# | $M / B$ | `rate` | number | share of a batch of $B$ |
# | $\sigma$ | `exploration_noise` | number, 0.1 | of an action in [-1, 1] |
# | $s_t, a_t, r_t, d_t$ | columns of the transitions that are returned | one per step | the environment's, $d$ is 0 or 1 |
# | $\xi_t$ | drawn by the learner's `act` | one per action dimension | none |
#
# The cloning term of TD3+BC keeps the policy near the recorded actions, where it sees little that is new. So we also
# reduce this term to a tenth and to zero. We expect the simulator to add little with the cloning term and more without
# it. [Edge-of-Reach](https://arxiv.org/abs/2402.12527) found that methods with roll-outs of a fitted model and a
# penalty for uncertainty fail when the true dynamics replace the model. Where true dynamics do not help, a more
# accurate model alone will not help either. A wrong model may still help by smoothing ([chapter
# 07](07_controls.ipynb)).

# %%
show(augmentation.branches, augmentation.recorded_only)

# %% [markdown]
# *Check by hand.* In this toy task the policy adds 1 to the state, and state 3 is terminal. A branch from 0 must take
# two steps, a branch from 2 only one.

# %% tags=["nbval-check-output"]
add = lambda state, action: (state + action, state[:, 0], (state + action)[:, 0] >= 3)  # noqa: E731
met = augmentation.branches(add, np.ones_like, np.array([[0.0], [2.0]]), steps=2, size=3)
assert met.next_state.ravel().tolist() == [1, 3, 2], "no branch goes on after a terminal transition"
print("states:", *met.state.ravel(), "next states:", *met.next_state.ravel())

# %% [markdown]
# We screen arms with LayerNorm critics and data kept on two tasks, with seeds that no other table uses. The simulator
# serves only in pre-training. To keep the screening within about 15 hours of one core, these arms have a quarter of the
# offline updates and half of the interactions of the others. We weaken or remove the cloning term in two of them:
# without the simulator, and with a share of 50 % and one step. The folded table has all arms. *Offline* is the mean
# score over the second half of pre-training, *gap* how far critics over-estimate their policy at its end (section 6;
# here the mean over seeds, in rewards), and *online* the mean score over all interactions.

# %%
ceiling = studies.find("ceiling")
screened = runner.evidence("ceiling") if not retrain else frame.iloc[:0]
evaluated = claims.main_runs(screened)
about = records.load_metadata(runner.runs_folder("paper", False), ceiling.runs())
found = {"offline": statistics.mean_offline(evaluated), "gap": statistics.calibration(about)}
found["online"] = claims.HALF(evaluated)


def named(arm):
    """Returns what sets an arm apart: the simulator's share and steps, the cloning term."""
    rule, cloning = studies.ARMS[arm].augmentation, studies.ARMS[arm].learner.behaviour_weight
    steps = f"simulator {100 * rule.rate:.0f} %, k = {rule.branch}" if rule else "no simulator"
    strength = round(td3.TD3().behaviour_weight / cloning, 3)
    return steps + {1.0: "", 0.1: ", cloning a tenth"}.get(strength, ", no cloning")


columns = [(task, name) for task in ceiling.tasks for name in found]
rows = [[named(arm), *(of(found[name], task, arm) for task, name in columns)] for arm in ceiling.arms]
columns = ["", *(f"{tasks.find(task).title}, {name}" for task, name in columns)]
screening = words.fold(f"All {len(rows)} arms of the screening", "\n".join(words.table(columns, rows)))
Markdown(screening if len(evaluated) else "Not yet recorded.")

# %% [markdown]
# Arms with the same cloning term differ only in the simulator. The lines below show its effect on the mean online
# score, over both tasks, with 95 % t intervals. Where an interval excludes a gain, we expect none from a better
# world model in that arm. The folded table has every effect on each task.
#
# We wrote down in advance what comes next. If on a task and for a strength of cloning the simulator's effect on the
# online score lies above zero with its whole interval, we fit five small networks to the rows (they predict changes,
# rewards and ends) and repeat that arm with them in the simulator's place. If no effect does, we stop.

# %% tags=["nbval-check-output"]
effects = claims.compare(claims.CEILING, evaluated) if len(evaluated) else []
print(f"{len(effects)} effects are recorded")
for each in effects:
    print(f"{named(each.comparison.arm)}: {words.estimate(each.interval, signed=True)}")


# %%
def effect(measure, task, arm):
    """Returns what the simulator changes on a task, with the cloning term as it is, in words."""
    alone = re.sub(r"_10|_50|_branch\d", "", arm)
    both = statistics.by_task(measure, arm, alone).get(task, [[], []])
    return words.estimate(statistics.contrast(both, [1, -1]), signed=True)


simulated = [arm for arm in ceiling.arms if studies.ARMS[arm].augmentation]
rows = [[named(a), *(effect(found[n], t, a) for t in ceiling.tasks for n in found)] for a in simulated]
listed = "\n".join(words.table(columns, rows))
Markdown(words.fold("Each effect, task by task", listed) if len(evaluated) else "Not yet recorded.")

# %% [markdown]
# ## 8. A rule before going online
#
# *Ask.* Can we tell in advance whether to keep the data, the pre-trained policy, or both? The authors of [The Three
# Regimes](https://arxiv.org/abs/2510.01460) compare two scores: that of the data, $J(\mathcal D)$, and that of the
# policy that was pre-trained on them, $J(\pi_0)$. Their rule keeps the better one:
#
# $$J(\pi_0) - J(\mathcal D) \; \begin{cases} \gt m & \text{superior: keep the policy} \\
# \text{in } [-m, m] & \text{comparable: keep both} \\ \lt -m & \text{inferior: keep the data} \end{cases}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $J(\mathcal D)$ | `data` | number | score, mean over the pool's whole episodes |
# | $J(\pi_0)$ | `policy` | number | score at the switch |
# | $m$ | `margin` | number | points of score |
#
# One arm stands for each choice: `vanilla` keeps the policy, `vanilla_data` keeps both, and `td3_data` keeps the data.
# `vanilla` has the paper's long warm-up, so the comparison includes the cost of that warm-up. We choose the margin $m$
# on the other tasks, so that each task tests the rule on data that it has not seen. We expect the rule to be right more
# often than any fixed choice.
#
# The table shows the mean online scores of the three arms. `lost` is the score of the best of the three minus that of
# the chosen one.

# %%
show(advice.regime)

# %% [markdown]
# *Check by hand.* The data score 10 and the margin is 5. Policies that score 16, 15, 5 and 4 lie above it, on its two
# ends, and below it.

# %% tags=["nbval-check-output"]
found = [advice.regime(10, policy, margin=5) for policy in (16, 15, 5, 4)]
assert found == ["superior", "comparable", "comparable", "inferior"], "the ends belong to the margin"
print(*found)

# %%
known_cases = advice.cases(frame) if not retrain else pd.DataFrame()
judged = advice.leave_one_task_out(known_cases) if len(known_cases) else known_cases
if len(judged):
    judged["named"] = [looks.look(arm).label for arm in judged["named"]]
    heads = {"named": "arm chosen", "policy": "score of the policy", "data": "score of the data"}
    judged = judged.rename(columns=heads)
    judged = judged.set_index("task").loc[[task for task in tasks.TASKS if task in {*judged["task"]}]]
    judged = looks.labelled(judged.map(lambda x: words.number(x) if isinstance(x, float) else x))
judged if len(judged) else Markdown("Not yet recorded.")

# %% tags=["nbval-check-output"]
if len(known_cases):
    told = advice.track_record(known_cases)
    print(f"{told[0].upper()}{told[1:]}.")
    lower = (known_cases["policy"] < known_cases["data"]).sum()
    print(f"In {lower} of {len(known_cases)} cases the policy scored less than the data.")
    other = advice.without_rule(frame, known_cases)
    print(f"{other[:1].upper()}{other[1:]}.")
else:
    print("no case is recorded with these budgets")

# %% [markdown]
# *Other data.* All cases above have the quality medium-replay. What would the rule say of every dataset at hand? We
# need a policy for each. `python -m mbaug models` trained them as `python -m mbaug advise` does, for a tenth of the
# updates. So the policies of medium-replay differ from those above. The margin is the one that loses least with such
# policies. A draw of medium-expert takes half of its rows from medium and half from expert. We planned all three arms
# only on medium-replay, so the advice on other data is not tested.


# %%
def kept(row):
    """Returns both scores of a dataset, its regime and the advice."""
    parts = read.COMPOSED.get(row.quality, (row.quality,))
    cards = [read.read_card(read.bundled()[f"{row.task}-{part}"]) for part in parts]
    data = np.mean([card["mean_score"] for card in cards])
    found = advice.regime(data, row.policy, margin)
    keep = advice.KEEPS[found][1].partition(":")[0]
    return [words.number(data), words.number(row.policy), found, keep]


policies = pd.read_csv(advice.POLICIES)
margin = advice.best_margin(advice.cases(frame, advice.UPDATES)) if len(known_cases) else 0.0
advised = [kept(row) for row in policies.itertuples()]
index = pd.MultiIndex.from_frame(policies[["task", "quality"]])
print(f"A difference of {margin:.0f} points or less counts as none.")
columns = ["score of the data", "score of the policy", "regime", "keep"]
looks.titled(pd.DataFrame(advised, index, columns))

# %% [markdown]
# *Read.* In the recorded cases hardly any policy scores more than its data, so *superior* is hardly tested. With so few
# cases of only four tasks, a rule that is right somewhat more often than a fixed choice may be lucky. For your own
# data, `python -m mbaug advise DATASET` computes in minutes both scores, whether a world model of your rows beats the
# guess that nothing changes, how far a critic over-fits them, and what the rule says. It also names the arm that we
# recommend, which is none of the three.
#
# ## 9. What is worth trying next
#
# 1. *Equal compute without pre-training.* TD3 with the data, LayerNorm and three updates a step would show how much of
#    a gain comes only from more updates.
# 2. *A shorter pre-training.* On Hopper the scores of [chapter 04](04_offline_pretraining.ipynb) fall towards the end.
#    A quarter of the updates costs less and may keep more.
# 3. *A fitted model of the policy's actions*, if section 7 leaves room for one. Rows on which its five networks disagree
#    most would keep their recorded action.
# 4. *More critics and more updates a step*, as in RLPD's paper, on a machine with a GPU.
#
# ## Where we differ from the papers
#
# | | method | the paper | here | why |
# |---|---|---|---|---|
# | 1 | LayerNorm | learned gain and offset | neither | equally many parameters with and without it |
# | 2 | RLPD | ten critics, up to 20 updates a step | two, one update a step | the compute of every other arm |
# | 3 | RLPD, IQL | raw states | standardised states | as every arm that keeps the data |
# | 4 | IQL | a million offline updates | 200,000 | as TD3+BC here |
# | 5 | RLPD, IQL | Glorot-uniform, orthogonal start | that of `torch.nn.Linear` | as every arm |
# | 6 | RLPD | temperature's loss in $\alpha$ | in $\log\alpha$ | as our SAC |
# | 7 | IQL | learning rate of the actor decays | constant | training continues online |
# | 8 | IQL | learns from the first step online | after 5,000 steps | as every arm that keeps the data |
# | 9 | IQL | rewards times 1,000 / (range of the returns) | advantages times 0.25 | values in the same unit in every arm |
# | 10 | TD3+BC | a million rows | 10,000 | the question of this project |
# | 11 | cloning | no critics | critics learn the clone's values by TD3's target | TD3 needs critics online |
# | 12 | cloning | the policy learns in each update | in every second update | as TD3 |
# | 13 | RLPD, IQL | recorded actions clipped to ±(1 − 1e-5) | not clipped | as every arm |
# | 14 | LayerNorm, RLPD | adds 1e-6 to the variance | 1e-5 | the default of torch |
#
# ## Try it
#
# Each is one line. Predict the result before you run it.
#
# 1. In section 2, set `far = 1e6 * ...`, and add `reach` as the last line of the cell. Which of the two numbers has
#    grown?
# 2. In section 3, set `offline=1`. Which rows can the first half of a batch hold now? (Then the assert fails.)
# 3. In section 4, put `0.9` in place of `0.7`. At which value do the errors balance now? (Then the assert fails.) Can
#    it exceed the value of the best action?
#
# ## Questions
#
# <details><summary>Why does a bound on values not limit what a critic can represent?</summary>
#
# The bound grows with the last layer's weights, which are learned. Only the mean and the *scale* of a layer are lost:
# LayerNorm keeps the direction of its centred pre-activations. On the data this is enough, as the picture of section 2
# shows.
# </details>
#
# <details><summary>Is the comparison with RLPD fair?</summary>
#
# It is fair to RLPD's idea: SAC, LayerNorm and batches that are half old. It is not fair to RLPD's published numbers:
# that paper makes up to twenty updates a step, twenty times as many as our RLPD, and in all six to seven times as many
# as TD3+BC with its online updates here. Our results only hold for RLPD with one update a step.
# </details>
#
# **Next:** [90 · Engine](90_engine.ipynb): how fast all of this is. The [overview](00_overview.ipynb) lists all chapters.
