# %% [markdown]
# # 00 · Overview
#
# **What does the paper claim, and what of it do we find?**
#
# <!-- answer -->
# Hopper, 3 to 5 seeds: offline pre-training takes the mean score over the first 100,000 interactions from 9.1 to 34,
# pre-training with imagined next states to 27; it takes 5 seeds to tell whether imagination helps. So far none of the paper's 6
# claims can be judged. That takes 5 seeds.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the recorded runs in `data/runs`; with `retrain = True` the offline data as well |
# | gives | figures `00_method` and `00_online_scores`, the table of claims |
# | minutes on 2 cores | paper: below 1, it reads records · smoke: about 1, it trains tiny agents · quick: up to 20 |
#
# This is a companion to *Small Dataset, Big Gains: Enhancing Reinforcement Learning by Offline Pre-Training with Model Based
# Augmentation* (Macaluso, Sestini & Bagdanov, arXiv 2312.09844). It implements the method from the beginning, shows each
# function where it is explained, and records what comes out.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/runs; True: train now, into build/runs

# %%
from collections import Counter

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.patches import FancyBboxPatch

from mbaug import engine
from mbaug.experiments import records, runner, studies
from mbaug.method import augmentation
from mbaug.method.transitions import Batch
from mbaug.reporting import chapters, claims, figures, statistics, tables
from mbaug.reporting.figures import show

engine.prepare()
figures.style()

# %%
frame = runner.evidence("hopper", profile, retrain)
folder = runner.runs_folder(profile, retrain)
metadata = records.load_metadata(folder, studies.find("hopper").runs())
everything = frame if retrain else records.load_runs(folder)

# %% [markdown]
# ### The answer

# %% tags=["nbval-check-output"]
table = claims.main_runs(everything)
verdicts = Counter(claims.verdict(claims.findings(claim, table)) for claim in claims.CLAIMS)
said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
tasks_seen = table.groupby("task")["seed"].nunique()
seen = ", ".join(f"{name} with up to {count} seeds" for name, count in tasks_seen.items()) or "nothing yet"
print(f"Of the paper's {len(claims.CLAIMS)} claims: {said}. Recorded: {seen}.")

# %% [markdown]
# ## What is claimed
#
# Offline data are often few, here 10,000 transitions, and poor. An agent trained on them alone over-fits its critic and collapses
# when it goes online. The paper's remedy: fit a world model to the same 10,000 transitions, and let it imagine half of the next
# states that the critic learns from.
#
# | | claim | source |
# |---|---|---|
# | a | it jump-starts online learning | S |
# | b | in some cases it needs 10 times fewer interactions: comparable to online SAC in 100K, not 1M and more | abstract, S |
# | c | it is clearly better than vanilla offline pre-training on Ant, Hopper, Walker2d and HalfCheetah | S |
# | d | 50 % is the best share of next states to replace | S |
# | e | the pre-trained actor and the pre-trained critic both help online, the actor most when there is no augmentation | A |
# | f | augmentation smooths the critic's over-fitting, visible in the distributions of Q-values | S, A |
#
# We do not have the paper's full text, so we quote nobody's numbers from it. What we know has three sources, and each statement
# in these notebooks names its own:
#
# - **S**: a summary of the paper.
# - **A**: a second summary, written from its full text (`taesiri/ArXivQA`, `papers/2312.09844.md`).
# - **C**: the first author's public development repository of October 2023, two months before the arXiv date
#   (`ganjiro/ContrastiveWorldModel`, branch `Pre-Training`, head `54133b9`). It has no licence: we took facts and figures from
#   it, and no code.
#
# **Whether the published runs used exactly C is unknown.** This is said here once, and it holds wherever C is named.
#
# ## The method in one picture
#
# *Ask.* How little can one change and still have a new method? One column of half a batch. Everything else in the picture is
# TD3+BC offline and TD3 online, as published by others.


# %%
def box(axis, x, y, width, height, text, colour="#FFFFFF"):
    """Draws a rounded box with its text in the middle."""
    look = {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": colour, "edgecolor": "#333333"}
    axis.add_patch(FancyBboxPatch((x, y), width, height, **look))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axis, start, end, text="", place=(0, 0), bend=0.0):
    """Draws an arrow, and beside it what it carries."""
    shape = {"arrowstyle": "-|>", "color": "#333333", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=shape)
    axis.text(*place, text, ha="center", va="center", fontsize=9, style="italic")


# %%
arm = studies.ARMS["augmented"]
offline, online, model = arm.pretraining, arm.finetuning, arm.model
blue, grey = figures.look("augmented").colour, "#D9D9D9"
half = augmentation.replaced(arm.augmentation.rate, arm.learner.batch_size)
rows = pd.DataFrame("recorded", index=range(8), columns=["s", "a", "r", "s′", "d"])
rows.loc[: 8 * arm.augmentation.rate - 1, "s′"] = "imagined"


def batch_of(axis, x, y):
    """Draws a batch as a table of eight rows; imagined entries are blue."""
    for row, entries in enumerate(rows.to_numpy()):
        for column, entry in enumerate(entries):
            colour = blue if entry == "imagined" else grey
            axis.add_patch(plt.Rectangle((x + 0.5 * column, y + 2.45 - 0.35 * row), 0.45, 0.3, color=colour))
    for column, name in enumerate(rows.columns):
        axis.text(x + 0.5 * column + 0.22, y + 2.95, name, ha="center", fontsize=10, style="italic")


# %%
boxes = [
    (0.2, 1.3, 2.2, 1.5, f"{offline.transitions:,}\ntransitions\n(s, a, r, s′, d)"),
    (3.0, 4.7, 2.9, 1.5, f"world model\nVAE, latent size {model.latent_size}\nz′ = z + f(z, a)", "#DCE8F5"),
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
for x, width, colour, name in ((0, 10.6, "#F4F6FA", "offline: no environment"), (10.8, 5.2, "#FBF6EC", "online")):
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
text = "The method: a world model of the same transitions imagines half of the next states that the critic learns from."
saved = figures.save_figure(figure, "00_method", rows.rename_axis("row").reset_index(), text, profile)

# %% [markdown]
# *Read.* Blue is all that is new: half of the next states of each batch. State, action, reward and `d` (terminal) stay as
# recorded, and only the critic's target looks at the next state, so the actor's loss is what it was. All numbers in the picture
# are read from the settings.
#
# ## The method in one box
#
# > **Algorithm.** Offline pre-training with model-based augmentation
# >
# > 1. Draw 10,000 transitions. Standardise states. **Fit the world model** to them (chapter 02).
# > 2. Repeat 200,000 times (chapters 03 and 04):
# >    1. draw a batch of 256 rows $(s, a, r, s', d)$;
# >    2. **replace the next states of 128 of them by the model's prediction** $\hat s' \sim p(\cdot\,|\,s, a)$;
# >    3. move the critics towards $y = r + \gamma(1-d)\min_i Q'_i(s', \pi'(s') + \epsilon)$;
# >    4. every second time move the actor down $-\lambda Q_1(s, \pi(s)) + (\pi(s)-a)^2$, and the targets a little.
# > 3. Go online (chapter 05): carry actor, critics and Adam states, start with an empty replay, collect 25,000 steps without
# >    updates; then one step, one update, the actor's loss being $-Q_1(s, \pi(s))$ alone.
#
# Lines 1 and 2.2 are the paper; the rest is TD3 (Fujimoto et al. 2018) and TD3+BC (Fujimoto & Gu 2021). In symbols, line 2.2 is
#
# $$s'_b \leftarrow \begin{cases}\hat s'_b & b \le n \\ s'_b & b > n\end{cases}
# \qquad n = \mathrm{round}(\rho B),\quad \rho = 0.5,\quad B = 256 .$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $s'$ | `batch.next_state` | `[P, B, S]` | standard deviations of the data |
# | $\hat s'$ | `imagined` | `[P, B, S]` | the same |
# | $\rho$ | `rate` | number | share of a batch |
# | $n$ | `replaced(rate, B)` | number | rows |
# | $P$ | first axis everywhere | number | agents that train side by side |
#
# This is the function that really ran, not a copy of it:

# %%
show(augmentation.augment, augmentation.replaced)

# %% [markdown]
# *Check by hand.* Four rows, a rate of 0.5, and an imagination that always says 9: two next states become 9, and nothing else
# changes.

# %% tags=["nbval-check-output"]
ones = torch.ones(1, 4, 2)
batch = Batch(state=ones, action=2 * ones, reward=torch.zeros(1, 4), next_state=3 * ones, terminal=torch.zeros(1, 4))
augmented = augmentation.augment(batch, torch.full((1, 4, 2), 9.0), rate=0.5)
print("next states, first component:", augmented.next_state[0, :, 0].tolist())
assert augmented.next_state[0, :, 0].tolist() == [9, 9, 3, 3], "the first half is imagined, the second recorded"
assert all(torch.equal(getattr(augmented, name), getattr(batch, name)) for name in ("state", "action", "reward", "terminal"))

# %% [markdown]
# ## What we found
#
# Every line is computed from the recorded runs, by the rules below the table. "Not attempted" means what it says: nobody has
# run it here.

# %%
display(Markdown(claims.claims_table(everything).replace("](notebooks/", "](")))

# %% [markdown]
# The scores behind it. *Offline* is the last evaluation before the first interaction; the *mean score* is the area under the
# online curve, divided by its length.

# %%
display(Markdown(tables.found_table(everything)))

# %% [markdown]
# *Look.* Above, one number a run: the mean score over the first 100,000 interactions, warm-up included. Below, how it came about.

# %%
plan = studies.profile(profile if retrain else "paper").apply(studies.ARMS["augmented"]).finetuning
arms = figures.in_order((*studies.find("hopper").arms, "td3_data"))
table = claims.main_runs(everything)
shown = table[table["arm"].isin(arms) & (table["phase"] == "finetune") & (table["steps"] <= plan.steps)]
few = shown[shown["arm"].isin(["td3", "td3_data", "vanilla", "augmented"])]

# %%
figure = plt.figure(figsize=(8, 5.6))
above, below = figure.subfigures(2, 1)
drawn = figures.dots(above.subplots(1, 4, sharex=True, sharey=True), statistics.mean_score(shown, plan.steps), arms)
above.supxlabel(f"mean D4RL-normalised score over the first {plan.steps:,} interactions", fontsize=10)
figures.multiples(below.subplots(1, 4, sharex=True, sharey=True), few)
below.supxlabel(figures.STEPS["finetune"], fontsize=10)
text = "What 10,000 transitions are worth online. Below, the curves of four of the arms, in the same colours."
dots = "A dot is a mean over seeds with its 95 % t interval, small dots are the seeds, and a hollow dot is a single one"
origins = {run: about for run, about in records.load_metadata(folder).items() if run.arm in arms}
saved = figures.save_figure(figure, "00_online_scores", drawn, figures.caption(text, shown, origins, dots), profile)

# %% [markdown]
# *Read.* Three questions to ask of the picture, each with a chapter. Does blue start above black, and stay there? (05.) Is blue
# above orange, that is, does imagination add anything to plain pre-training? (03, 04, 05.) And is it above green, which is
# noise of the same size as the model's error? If not, what helps is smoothing. Last, look at SAC: it needed no data at all.
#
# ## How to read, and how to run it again
#
# Read the chapters in order, or only the ones you doubt. Each section asks, gives the equation with a table of its symbols, shows
# the function that ran, checks it by hand on a few rows, looks, and says what the look does not show.
#
# A profile sets budgets, never a hyper-parameter. These are the budgets of the augmented arm:


# %%
def budgets(name):
    """Returns what a profile spends on one run of the augmented arm."""
    arm, profile = studies.profile(name).apply(studies.ARMS["augmented"]), studies.profile(name)
    row = {"seeds": profile.seeds or len(studies.find("hopper").seeds)}
    row |= {"transitions": arm.pretraining.transitions, "model epochs": arm.model.epochs}
    row |= {"offline updates": arm.pretraining.updates}
    return row | {"online steps": arm.finetuning.steps, "of them warm-up": arm.finetuning.warmup_steps}


pd.DataFrame({name: budgets(name) for name in studies.PROFILES}).T

# %% [markdown]
# | command | what it does | on 2 cores |
# |---|---|---|
# | `make figures` | every figure from the recorded runs; the world models are trained live | a few minutes |
# | `make test` | all tests | a few minutes |
# | `make smoke` | every notebook with tiny budgets, training included: the same code path | a few minutes |
# | `make quick` | Hopper from nothing, one seed, reduced budgets | up to 20 minutes |
# | `make record` | records what the programme lacks; goes on where interrupted | hours, see below |
#
# The README has measured minutes. What a recorded run cost, from its own clock, on one core, while another one trained beside it:

# %%
seconds = pd.Series({str(run): about["wall_seconds"] for run, about in metadata.items()}, dtype=float)
hours = seconds / 3600
by_arm = hours.groupby([name.split("/")[2] for name in hours.index]).agg(["count", "mean"])
by_arm.rename(columns={"count": "runs", "mean": "hours a run"}).round(2)

# %% [markdown]
# ## Map of the chapters
#
# | chapter | its question |
# |---|---|
# | 00 overview | what is claimed, what did we find? |
# | [01 small datasets](01_small_datasets.ipynb) | how little is 10,000 transitions? |
# | [02 world model](02_world_model.ipynb) | can a VAE predict one step from so little? |
# | [03 augmentation](03_augmentation.ipynb) | what does replacing next states do to a batch, to the targets, to the critic? |
# | [04 offline pre-training](04_offline_pretraining.ipynb) | what does TD3+BC learn, with and without augmentation? |
# | [05 online fine-tuning](05_online_finetuning.ipynb) | does it jump-start? |
# | [06 multi-step](06_multi_step.ipynb) | can the world model look several steps ahead, and does it help? |
# | [07 controls](07_controls.ipynb) | is it the model, or just its error? what of the agent is worth carrying? |
# | [08 reliability](08_reliability.ipynb) | where is the model wrong, can we tell, does it help to know? |
# | 09 stochastic dynamics, 10 data size and quality | the paper's open questions |
# | [11 other methods](11_other_methods.ipynb) | what else can be done with the same 10,000 transitions? |
# | [90 engine](90_engine.ipynb) | how fast, against what, and what is the limit? |
#
# Chapters without a link are planned and not yet written. What there is today:

# %% tags=["nbval-check-output"]
print(*chapters.CONTENTS, sep="\n")

# %% [markdown]
# ## Where we differ from the paper
#
# The main difference is what we count and how much we say of it: every interaction counts, intervals stand beside points, and
# a matched-noise control stands beside the method. The task is today's (`Hopper-v5`) and the data were collected on it,
# because D4RL's simulator no longer installs. The README has the whole table; each chapter ends with its own.
#
# ## Try it
#
# Each is one line. Say what will happen before you run it.
#
# 1. In the check by hand, set `rate=0.25`. How many nines? And with 0.125, where half a row would be replaced?
# 2. In the parameters cell, set `retrain = True` and `profile = "smoke"`: the whole method runs before your eyes.
# 3. In the figure of scores, replace `shown` by `shown[shown["seed"] == 0]` in the call of `statistics.mean_score`. Would you
#    have drawn another conclusion from this one seed?
#
# ## Questions
#
# <details><summary>The rewards are recorded, the next states imagined. Does that fit together?</summary>
#
# The reward belongs to the step that really happened; the imagined next state is another one that could have followed. While
# imagination stays close, the target joins an honest reward to the value of a plausible place. Where the model is wrong, the
# critic learns the value of a place that this reward never led to (chapter 03 measures how far that goes).
# </details>
#
# <details><summary>Why is a control with noise decisive?</summary>
#
# Noise on next states smooths the critic: near states get near values. A blurred model does that too. If noise of the same size
# does as well as the model, there is no need for a model, and "imagination" explains nothing.
# </details>
#
# <details><summary>Why does the x axis matter so much?</summary>
#
# The claim is about how few interactions are needed. A warm-up of 25,000 steps that is not drawn makes every curve 25,000
# interactions cheaper than it was; at 100,000 that is a quarter of the budget.
# </details>
#
# **Next:** [01 · Small datasets](01_small_datasets.ipynb)
