# %% [markdown]
# # 00 · Overview
#
# **What does the paper claim, and how much of it do we find?**
#
# <!-- answer -->
# We have verdicts on 5 of the paper's 6 claims so far: jump-start (a) contradicted (only with Ant), 10x fewer interactions (b)
# contradicted, better than vanilla (c) undecided, actor and critic both help (e) reproduced, smoother critic (f) undecided in 1
# of 2 parts and reproduced (only with HalfCheetah) in 1 of 2 parts. With 5 seeds it is open whether imagination raises the mean
# score (−6.1 [−14, +1.8]). On all four tasks (5 seeds), the mean score of TD3 over the first 100,000 interactions is 15 [14,
# 16] from scratch, 7.9 [0.0, 16] after offline pre-training, 1.7 [−0.5, 4.0] after pre-training with imagined next states, and
# 33 [31, 34] with the data in its replay buffer instead. Without Ant the means are 10, 19, 22 and 27.
#
# With 10,000 transitions we would choose “LayerNorm critics, data kept” today. Over four tasks its mean score in the first
# 100,000 interactions is 54 [49, 59], with 5 seeds per task. The next best of 11 arms with at least two seeds on every task,
# “RLPD”, scores 44 [40, 48]. The difference is +9.7 [+3.8, +16], without Ant +8.3 [+0.8, +16].
# <!-- /answer -->
# A score of 0 is D4RL's random policy, and 100 is its expert. Square brackets hold 95 % intervals of means over seeds.
# [RLPD](https://arxiv.org/abs/2302.02948) is SAC with the data and LayerNorm critics.
#
# | | |
# |---|---|
# | needs | the recorded runs, and with `retrain = True` the offline data |
# | gives | figures `00_online_scores` and `00_method`, the table of claims |
# | minutes on 2 cores | paper: below 1 · smoke: about 1 · quick: up to 20 |
#
# The paper is *Small Dataset, Big Gains: Enhancing Reinforcement Learning by Offline Pre-Training with Model Based
# Augmentation* ([Macaluso, Sestini & Bagdanov, arXiv 2312.09844](https://arxiv.org/abs/2312.09844)).

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/runs; True: train now, into build/<profile>/runs

# %%

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from matplotlib.patches import FancyBboxPatch

from mbaug import engine
from mbaug.experiments import records, runner, studies
from mbaug.method import augmentation
from mbaug.reporting import answers, claims, figures, looks, statistics, tables

engine.prepare()
figures.style()

# %%
frame = runner.evidence("hopper", profile, retrain)
folder = runner.runs_folder(profile, retrain)
metadata = records.load_metadata(folder, studies.find("hopper").runs())
everything = frame if retrain else records.load_runs(folder)
table = claims.main_runs(everything)
plan = studies.profile(profile if retrain else "paper").apply(studies.ARMS["augmented"]).finetuning
best = [*answers.ranked(statistics.mean_score(table))][:1]  # the arm that we recommend
arms = looks.in_order((*studies.find("hopper").arms, "td3_data", "layernorm_data", *best))
shown = table[table["arm"].isin(arms) & (table["phase"] == "finetune") & (table["steps"] <= plan.steps)]
few = shown[shown["arm"].isin(["td3", "td3_data", "vanilla", "augmented", "layernorm_data", *best])]

# %%
figure = plt.figure(figsize=(8, 6.6))
above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1))
scores = statistics.mean_score(shown, plan.steps)
drawn = figures.dots(figures.panels(above), scores, arms)
above.supxlabel(f"mean D4RL-normalised score over the first {plan.steps:,} interactions", fontsize=10)
axes = figures.panels(below, "y")
lines = figures.multiples(axes, few)
for axis in axes:
    axis.axvspan(0, plan.warmup_steps / 1000, color="#EBEBEB", zorder=0)
below.supxlabel(figures.X_LABELS["finetune"], fontsize=10)
figures.legend(figure)
text = (
    "What 10,000 transitions are worth online. Ant has its own axes of scores. Below, learning curves "
)
text += (
    "of some of these arms, means over seeds. Vanilla and augmented agents start to learn at the end "
)
text += "of the grey part, the others after 5,000 interactions."
origins = {run: about for run, about in records.load_metadata(folder).items() if run.arm in arms}
caption = figures.caption(text, shown, origins, figures.DOTS)
figures.save_figure(figure, "00_online_scores", pd.concat([drawn, lines]), caption, profile)

# %% [markdown]
# *Read.* An *arm* is one way to train an online agent. It has the same colour in every figure.
#
# - TD3 and SAC *from scratch* start without data or pre-training. *TD3 with the data* starts with the offline data in
#   its replay buffer.
# - *Vanilla* is pre-trained on the recorded data alone.
# - *Augmented* is the paper's method: during pre-training a world model imagines half of the next states.
# - *Matched noise* is our control: half of the recorded next states get noise as large as the model's held-out error.
# - *LayerNorm critics, data kept* is vanilla pre-training with LayerNorm in the critics and the offline data in the replay
#   buffer ([chapter 11](11_other_methods.ipynb)).
#
# A *seed* is the number of a repetition. It fixes which data are drawn and every other random choice.
#
# The upper row shows each run as one number, its *mean score* over the first 100,000 interactions: the area under its
# learning curve, divided by its length. The lower row shows the curves behind these numbers. Ask three questions. Do
# pre-trained agents start above TD3 from scratch, and stay there ([chapter 05](05_online_finetuning.ipynb))? Does
# imagination add anything to vanilla pre-training ([03](03_augmentation.ipynb), [04](04_offline_pretraining.ipynb))?
# Does imagination do better than matched noise ([07](07_controls.ipynb))? If noise does as well, we have no evidence
# that the model's predictions matter: any gain may come from smoothing. Last, look at SAC, which uses no offline data
# at all.
#
# ## 1. What the paper claims
#
# Offline datasets are often of poor quality and small, here 10,000 transitions. The paper says that an agent trained
# on them alone can over-fit its critic and collapse when it goes online [S]. Its remedy is to fit a world model to the
# same 10,000 transitions, and to let it imagine half of the next states that the critic learns from.
#
# | | claim | source |
# |---|---|---|
# | a | It jump-starts online learning. | S |
# | b | In some cases it needs 10 times fewer interactions. After 100K interactions it is comparable to online SAC after 1M or more. | abstract, S |
# | c | It is clearly better than vanilla offline pre-training on Ant, Hopper, Walker2d and HalfCheetah. | S |
# | d | 50 % is the best share of next states to replace. | S |
# | e | Pre-trained actor and critic both help online. The actor is important when there is no augmentation. | A |
# | f | Augmentation smooths the critic's over-fitting, which shows in the distributions of Q-values. | S, A |
#
# We do not have the paper's full text, so we quote none of its numbers. We rely on its abstract and three sources. Each
# statement about the paper in these notebooks names its source by a letter:
#
# - **S** is a summary of the paper. We have only its text, so you cannot look it up.
# - **A** is a second summary, written from the full text
#   ([`taesiri/ArXivQA`](https://github.com/taesiri/ArXivQA), `papers/2312.09844.md`).
# - **C** is the first author's public development repository of October 2023, two months before the paper appeared
#   ([`ganjiro/ContrastiveWorldModel`](https://github.com/ganjiro/ContrastiveWorldModel), branch `Pre-Training`, head
#   `54133b9`). It has no licence, so we took facts and numbers from it, but no code.
#
# **We do not know whether the published runs used exactly C.** We say this once, and it holds wherever we name C.
#
# ## 2. What we found
#
# Two tables follow, computed from the recorded runs. The first has the three *primary* comparisons of the paper's
# central idea. When we fixed them, the baselines and some pre-trained runs were already recorded, and one column leaves
# these pre-trained runs out. [Chapter 11](11_other_methods.ipynb) has a second family of primary comparisons. All other
# comparisons are *exploratory*. Once every arm has 5 seeds, the table shows a p value, corrected by Holm's method for
# three tests. The second table has the paper's claims. 100K means 100,000 interactions.

# %%
Markdown(claims.claims_table(everything).replace("](notebooks/", "]("))

# %% [markdown]
# The next table has the scores behind the verdicts. Round brackets hold the number of seeds. In the folded table *score
# offline* is the last evaluation before the first interaction. The [README](../README.md) explains the other columns.

# %%
Markdown(tables.found_table(everything).replace("](notebooks/", "]("))

# %% [markdown]
# ## 3. The method in one picture
#
# *Ask.* How much does the method change? It fits a world model, and then changes one column in half of the rows of each
# batch. The updates themselves are published TD3+BC offline and published TD3 online.


# %%
def box(axis, x, y, width, height, text, colour="#FFFFFF"):
    """Draws a rounded box with its text in the middle."""
    look = {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": colour, "edgecolor": "#333333"}
    axis.add_patch(FancyBboxPatch((x, y), width, height, **look))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axis, start, end, text="", place=(0, 0), bend=0.0):
    """Draws an arrow with a label beside it."""
    shape = {
        "arrowstyle": "-|>",
        "color": "#333333",
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axis.annotate("", end, start, arrowprops=shape)
    axis.text(*place, text, ha="center", va="center", fontsize=9, style="italic")


# %%
arm = studies.ARMS["augmented"]
offline, online, model = arm.pretraining, arm.finetuning, arm.model
blue, grey = looks.look("augmented").colour, "#D9D9D9"
half = augmentation.replaced(arm.augmentation.rate, arm.learner.batch_size)
rows = pd.DataFrame("recorded", index=range(8), columns=["s", "a", "r", "s′", "d"])
rows.loc[: 8 * arm.augmentation.rate - 1, "s′"] = "imagined"


def batch_of(axis, x, y):
    """Draws a batch as a table of eight rows; imagined entries are blue."""
    for row, entries in enumerate(rows.to_numpy()):
        for column, entry in enumerate(entries):
            colour = blue if entry == "imagined" else grey
            axis.add_patch(
                plt.Rectangle((x + 0.5 * column, y + 2.45 - 0.35 * row), 0.45, 0.3, color=colour)
            )
    for column, name in enumerate(rows.columns):
        axis.text(x + 0.5 * column + 0.22, y + 2.95, name, ha="center", fontsize=10, style="italic")


# %%
vae = f"world model\nVAE, latent size {model.latent_size}\nz′ = z + f(z, a)"
boxes = [
    (0.2, 1.3, 2.2, 1.5, f"{offline.transitions:,}\ntransitions\n(s, a, r, s′, d)"),
    (3.0, 4.7, 2.9, 1.5, vae, "#DCE8F5"),
    (7.4, 1.3, 2.2, 1.5, f"TD3+BC\n{offline.updates:,}\nupdates"),
    (12.6, 1.3, 2.2, 1.5, f"TD3\n{online.steps:,}\nsteps"),
    (12.6, 4.7, 2.2, 1.5, "environment"),
]
arrows = [
    ((1.3, 2.8), (3.0, 5.45), "fit", (1.75, 4.6), -0.2),
    ((2.4, 2.05), (3.85, 2.05), f"{arm.learner.batch_size} rows", (3.12, 2.35)),
    ((5.62, 4.7), (5.62, 3.95), f"ŝ′ = model(s, a)\nfor {half} of the rows", (7.1, 4.32)),
    ((6.42, 2.05), (7.4, 2.05)),
    ((9.6, 2.05), (12.6, 2.05), "actor, critics,\nAdam states", (11.65, 2.6)),
    ((13.2, 2.8), (13.2, 4.7), "a", (12.95, 3.75)),
    ((14.2, 4.7), (14.2, 2.8), "s′, r, d", (14.85, 3.75)),
]

# %%
figure, axis = plt.subplots(figsize=(8, 4.1))
for x, width, colour, name in (
    (0, 10.6, "#F4F6FA", "offline: no environment"),
    (10.8, 5.2, "#FBF6EC", "online"),
):
    axis.add_patch(plt.Rectangle((x, 0), width, 7.1, color=colour, zorder=0))
    axis.text(x + 0.2, 6.65, name, weight="bold")
for each in boxes:
    box(axis, *each)
for each in arrows:
    arrow(axis, *each)
batch_of(axis, 3.9, 0.6)
note = f"replay starts empty; the first\n{online.warmup_steps:,} steps: no updates"
axis.text(13.55, 0.6, note, ha="center", va="center", fontsize=9)
axis.set(xlim=(0, 16), ylim=(0, 7.1))
axis.axis("off")
text = "The method: a world model of the same transitions imagines half of the next states "
text += "that the critic learns from."
data = rows.rename_axis("row").reset_index()
figures.save_figure(figure, "00_method", data, text, profile)

# %% [markdown]
# *Read.* Blue marks what is new: half of the next states of each batch. State, action, reward and `d` (terminal) stay as
# recorded. Only the critic's target uses the next state, so the actor's loss does not change. All numbers in the picture
# are read from the settings.
#
# > **Algorithm.** Offline pre-training with model-based augmentation
# >
# > 1. Draw 10,000 transitions. Standardise states. **Fit the world model** to them
# >    ([chapter 02](02_world_model.ipynb)).
# > 2. Repeat 200,000 times:
# >    1. Draw a batch of 256 rows $(s, a, r, s', d)$.
# >    2. **Replace the next states of 128 of them by the model's prediction** $\hat s' \sim p(\cdot\,|\,s, a)$.
# >    3. Move both critics towards $y = r + \gamma(1-d) \min_i Q'_i(s', \pi'(s') + \epsilon)$.
# >    4. Every second time, take a gradient step of the actor on $-\lambda Q_1(s, \pi(s)) + (\pi(s)-a)^2$, and move the
# >       target networks $Q'_i$ and $\pi'$ a little towards $Q_i$ and $\pi$.
# > 3. Go online. Keep actor, critics and Adam's states. Start with an empty replay buffer. Collect 25,000 steps without
# >    updates. Then make one update after each step. The actor's loss is now $-Q_1(s, \pi(s))$ alone.
#
# The world model (line 1) and its use (line 2.2) are the paper's [S, A]. The switch to online learning (line 3) follows
# the first author's code [C]. The updates are those of TD3 ([Fujimoto et al. 2018](https://arxiv.org/abs/1802.09477))
# and TD3+BC ([Fujimoto & Gu 2021](https://arxiv.org/abs/2106.06860)). In symbols, line 2.2 is
#
# $$\begin{gathered}
# s'_j \leftarrow \begin{cases}\hat s'_j & j \le n \\ s'_j & j > n\end{cases} \\
# n = \mathrm{round}(\rho B),\quad \rho = 0.5,\quad B = 256 .
# \end{gathered}$$
#
# | symbol | meaning |
# |---|---|
# | $s, a, r, s'$ | state, action, reward, next state |
# | $\hat s'$, $p$ | imagined next state, and the world model that it is drawn from |
# | $d$ | 1 if the task ended in this step, else 0 |
# | $\gamma$ | discount per step, 0.99 |
# | $\pi$, $Q_1$, $Q_2$ | actor and the two critics |
# | $\pi'$, $Q'_1$, $Q'_2$ | their target networks, which follow slowly |
# | $\epsilon$, $\lambda$ | noise on the target's action, and the weight of the value against cloning ([chapter 04](04_offline_pretraining.ipynb)) |
# | $\rho$, $B$, $n$, $j$ | rate, batch size, number of imagined rows, row of the batch |
#
# [Chapter 03](03_augmentation.ipynb) shows the function that does this, and checks it by hand.
#
# ## 4. How to read the chapters, and how to run them again
#
# Read the chapters in order, or only those whose results you want to check. Each section follows the same steps. *Ask*
# poses a question. The equation follows with a table of its symbols, then the function that ran. *Check by hand*
# recomputes a few rows. *Look* is a figure or a table, and *Read* says what it shows and what it does not.
#
# | chapter | its question |
# |---|---|
# | [01 small datasets](01_small_datasets.ipynb) | How small is a dataset of 10,000 transitions? |
# | [02 world model](02_world_model.ipynb) | Can a VAE learn to predict one step from so little? |
# | [03 augmentation](03_augmentation.ipynb) | How do imagined next states change a batch and its targets? |
# | [04 offline pre-training](04_offline_pretraining.ipynb) | What does TD3+BC learn, with and without augmentation? |
# | [05 online fine-tuning](05_online_finetuning.ipynb) | Does the pre-trained agent jump-start online learning? |
# | [06 multi-step](06_multi_step.ipynb) | Can the world model look several steps ahead, and does it help? |
# | [07 controls](07_controls.ipynb) | Does the model help, or just its error? Which part of the agent is worth keeping online? |
# | [08 reliability](08_reliability.ipynb) | Where is the model wrong, can we tell, and does it help to know? |
# | 09 stochastic dynamics, 10 data size and quality | questions beyond the paper |
# | [11 other methods](11_other_methods.ipynb) | What else can be done with the same 10,000 transitions? |
# | [90 engine](90_engine.ipynb) | How fast is training, compared with what, and what limits it? |
#
# Chapters without a link are planned and not yet written.
#
# A *profile* sets budgets, never a hyper-parameter. These are the budgets of the augmented arm:


# %% tags=["nbval-check-output"]
def budgets(name):
    """Returns what a profile spends on one run of the augmented arm."""
    arm, profile = studies.profile(name).apply(studies.ARMS["augmented"]), studies.profile(name)
    row = {"seeds": profile.seeds or len(studies.find("core").seeds)}
    row |= {"transitions": arm.pretraining.transitions, "model epochs": arm.model.epochs}
    row |= {"offline updates": arm.pretraining.updates}
    return row | {"online steps": arm.finetuning.steps, "warm-up steps": arm.finetuning.warmup_steps}


pd.DataFrame({name: budgets(name) for name in studies.PROFILES}).T.map("{:,}".format)

# %% [markdown]
# The [README](../README.md#what-it-costs) has the commands of each profile, and what they cost.
#
# ## Where we differ from the paper
#
# The main differences are in how we count and compare. We count every interaction, give an interval with each mean, and
# run a matched-noise control beside the method. We use today's tasks (`Hopper-v5`) and collected the data on them,
# because the simulator that D4RL used is no longer maintained. The [README](../README.md) lists the main differences in
# a table, and each chapter ends with its own.
#
# ## Try it
#
# Each edit is one line. Predict the result before you run it.
#
# 1. In the parameters cell, set `retrain = True` and `profile = "smoke"`. The whole method then runs in this notebook.
# 2. In the figure of scores, replace `shown` by `shown[shown["seed"] == 0]` in the call of `statistics.mean_score`. Would
#    you draw another conclusion from this one seed?
# 3. In the picture of the method, put `0.25` in place of `arm.augmentation.rate`, twice. How much blue is left?
#
# ## Questions
#
# <details><summary>The rewards are recorded, but the next states are imagined. Is that consistent?</summary>
#
# The reward belongs to the step that really happened. The imagined next state is the model's guess of where the step
# led. While imagination stays close, the target combines a true reward with the value of a plausible state. Where the
# model is wrong, the critic learns the value of a state that did not follow from this step.
# </details>
#
# <details><summary>Why does the x axis matter so much?</summary>
#
# The claim is about how few interactions are needed. If a warm-up of 25,000 steps is not drawn, every curve looks 25,000
# interactions cheaper than it was. At 100,000 that is a quarter of the budget.
# </details>
#
# **Next:** [01 · Small datasets](01_small_datasets.ipynb)
