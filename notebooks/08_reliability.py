# %% [markdown]
# # 08 · Reliability
#
# **Where is the world model wrong, can we tell before it hurts, and does it help to know?**
#
# <!-- answer -->
# On 4 tasks, the paper's model errs 2.6 to 21.7 times as much in the fifth of the rows that lie farthest from the 10,000 as in
# the nearest fifth. This is partly motion: the guess that nothing moves errs 1.1 to 534 times as much. The model's errors pull
# states to the middle of the data: of the steps that end in a fall (3 tasks), it imagines 90 to 100 % as standing (no target
# uses these next states). Of 5 signals that tell in advance where it errs most, the best on average is the blur of the state
# (how badly the VAE reconstructs it) with an area under the ROC curve of 0.83 to 0.96 (0.5 is chance). It is the best on 1 of 4
# tasks. The spread of the model's samples reaches 0.59 to 0.69. Whether it helps to imagine only the rows that the best signal
# calls safe is not yet recorded.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | the trained networks in `data/models`, the pools `<task>-medium-replay`, `-medium` and `-random` |
# | gives | figures `08_map`, `08_where`, `08_moments`, `08_strangest`, `08_values`, `08_signals`, `08_trusted`, tables |
# | minutes on one core | paper: about 1 · smoke and quick: below 1 |
#
# Chapter [07](07_controls.ipynb) shows that every effect of the method comes from the model's error. We measure this
# error on rows outside the 10,000 that models were fitted on, unless we say otherwise.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # nothing is trained in this chapter: it reads networks and records

# %%
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.colors import LogNorm
from scipy.stats import spearmanr

from mbaug import engine, streams, tasks
from mbaug.datasets import read, render
from mbaug.experiments import measures, records, studies, trained
from mbaug.method import augmentation, imagination, settings, transitions, world_model
from mbaug.reporting import claims, figures, looks, reliability, statistics, words
from mbaug.reporting.figures import save_figure, show
from mbaug.reporting.stored import picture, stored

engine.prepare()
figures.style()

# %% [markdown]
# ## 1. A map of states
#
# *Ask.* Are errors the same everywhere? We map states along their first two principal components: how many of the
# 10,000 rows are in a cell, and how much the paper's model errs there. If the model has learned best what it saw often,
# errors should be small where rows are many.

# %%
size, samples = settings.Pretraining().transitions, settings.Augmentation().table_samples
count = 100 if profile == "smoke" else 2_000  # rows that are asked about, per task and place
here = [name for name in tasks.TASKS if trained.path_of(name, "ensemble").is_file()]
here = [name for name in here if trained.path_of(name, "world_model").is_file()]
fits, small = ({name: load(name) for name in here} for load in (trained.world_model, trained.ensemble))
std = {name: fitted.model.standardiser.std.numpy() for name, fitted in fits.items()}
pools = {name: read.load(f"{name}-medium-replay") for name in here}


def numbered(name):
    """Returns the rows of a pool that are drawn and those that are not, by their number in the pool."""
    # `draw` returns rows, not numbers, so we put the number of each row in place of its reward
    marked = replace(pools[name], reward=np.arange(len(pools[name]), dtype=np.float32))
    return [part.reward.astype(int) for part in transitions.draw(marked, size, seed=0)]


drawn = {name: pools[name].rows(numbered(name)[0]) for name in here}


# %%
def evenly(pool, rows):
    """Returns at most `count` of these rows of a pool, evenly chosen from those that end no episode."""
    inner = rows[~(pool.terminal | pool.truncated)[rows]]
    return inner[np.linspace(0, len(inner) - 1, min(count, len(inner))).astype(int)]


asked, history = {}, {}  # rows by task and place; what the pool knows of those outside the draw
for name in here:
    inside, outside = (evenly(pools[name], rows) for rows in numbered(name))
    asked[name, "drawn"], asked[name, "outside"] = pools[name].rows(inside), pools[name].rows(outside)
    history[name] = reliability.histories(pools[name]).iloc[outside].reset_index(drop=True)
    for quality in ("medium", "random"):
        other = read.load(f"{name}-{quality}")
        asked[name, quality] = other.rows(evenly(other, np.arange(len(other))))


# %%
def predictors(name):
    """Returns what predicts one step of a task, by name: functions of s, a, s' and a generator."""
    sources = ("sample", "mean", "reconstruction", "noise", "deterministic")
    found = {source: imagination.predictor(source, fits[name], drawn[name]) for source in sources}
    linear = imagination.linear_regression(drawn[name])
    return found | {"linear": linear, "persistence": imagination.persistence}


def answers(name, rows):
    """Returns what each predictor says of rows, [rows, samples, state]; one sample if it draws none."""
    generator = streams.torch_generator(0, "chapter 08", name)
    state, action, next_state = map(torch.from_numpy, (rows.state, rows.action, rows.next_state))
    number = dict.fromkeys(("sample", "reconstruction", "noise"), samples)
    told = {
        kind: augmentation.imagined_table(ask, state, action, next_state, number.get(kind, 1), generator)
        for kind, ask in predictors(name).items()
    }
    return {kind: each.numpy() for kind, each in told.items()}


# %%
predicted = {key: answers(key[0], rows) for key, rows in asked.items()}
errors = {
    (name, where): pd.DataFrame(
        {
            kind: (((imagined - rows.next_state[:, None]) / std[name]) ** 2).mean(axis=(1, 2))
            for kind, imagined in predicted[name, where].items()
        }
    )
    for (name, where), rows in asked.items()
}


# %%
def components(name):
    """Returns the mean state of a task and its two main axes, standardised, with fixed signs."""
    known = drawn[name].state / std[name]
    axes = np.linalg.eigh(np.cov(known.T))[1][:, :-3:-1]
    return known.mean(axis=0), axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])


def cells(name, state):
    """Returns the lower edges of each state's cell on the map, half a standard deviation wide."""
    centre, axes = components(name)
    return np.floor(2 * (state / std[name] - centre) @ axes).astype(int) / 2


# %%
parts = []
for name in here:
    rows = asked[name, "outside"]
    both = rows.state, drawn[name].state
    place, seen = (pd.DataFrame(cells(name, states), columns=["x", "y"]) for states in both)
    place["error"], seen = errors[name, "outside"]["sample"], seen.value_counts().rename("drawn")
    found = place.groupby(["x", "y"])["error"].agg(["mean", "size"]).join(seen).reset_index()
    parts.append(found.assign(task=name, drawn=found["drawn"].fillna(0)))
least = 5 if profile != "smoke" else 1  # rows in a cell, so that its mean says something
grid = stored("08_map", pd.concat(parts, ignore_index=True), profile, tolerance=0.01)


# %%
def coloured(axis, own, value, **look):
    """Draws one value per cell as a map of coloured squares."""
    table = own.assign(value=value).pivot(index="y", columns="x", values="value")
    y, x = (np.arange(edges.min(), edges.max() + 0.75, 0.5) for edges in (table.index, table.columns))
    axis.set_facecolor("#C9C9C9")  # cells without a value
    axis.grid(visible=False)
    return axis.pcolormesh(x, y, table.reindex(index=y[:-1], columns=x[:-1]), **look, rasterized=True)


# %%
figure, axes = plt.subplots(2, 4, figsize=(8, 4.6), sharex="col", sharey="col")
for (upper, lower), name in zip(axes.T, tasks.TASKS, strict=True):
    own = grid[grid["task"] == name]
    relative = own["mean"] / np.average(own["mean"], weights=own["size"])
    relative = relative.where(own["size"] >= least)
    some = own["drawn"].where(own["drawn"] > 0)
    many = coloured(upper, own, some, cmap="viridis", norm=LogNorm(1, 300))
    wrong = coloured(lower, own, relative, cmap="RdBu_r", norm=LogNorm(1 / 3, 3))
    upper.set_title(tasks.find(name).title)
    lower.set_xlabel("component 1")
for axis, drawing, label, ticks in (
    (axes[0], many, "drawn rows in the cell", (1, 10, 100)),
    (axes[1], wrong, "error / task's mean", (0.5, 1, 2)),
):
    axis[0].set_ylabel("component 2")
    ends = "both" if drawing is wrong else "neither"
    bar = figure.colorbar(drawing, ax=axis, label=label, ticks=ticks, format="%g", extend=ends)
    bar.minorticks_off()
text = f"States on two principal components (standard deviations). Above, how many of the {size:,} rows "
text += "are in a cell; below, the error of the VAE's samples on other rows, as a multiple of its mean. "
text += f"Grey cells hold no drawn or no other row (above), or fewer than {least} others (below). The "
text += "darkest blue (below the mean) and red (above it) lie beyond the scale. Seed 0."
save_figure(figure, "08_map", grid, text, profile)

# %% [markdown]
# *Read.* If our guess is right, cells that are bright in the upper map are blue in the lower one: there the model errs
# less than on average. One number sums this up, the rank correlation of the two maps over cells with at least five
# rows:

# %%
enough = grid[grid["size"] >= least].groupby("task")[["drawn", "mean"]]
alike = enough.apply(lambda own: spearmanr(own["drawn"], own["mean"]).statistic).reindex(here)
looks.titled(alike.round(2).to_frame("rank correlation of density and error"))

# %% [markdown]
# The model errs less where it has seen more, but the relation is weak on three tasks and moderate on HalfCheetah. Two
# components hide most dimensions, so we now sort the rows by other quantities.
#
# ## 2. Where is it wrong?
#
# *Ask.* We compute the error of [chapter 02](02_world_model.ipynb) for a single row $j$. If a predictor draws random
# numbers, we average over its samples:
#
# $$e_j = \operatorname{mean}_{k,\,i} \Big[\big( (s'_{j,i} - \hat s'_{j,k,i}) / \sigma_i \big)^2\Big]$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $e_j$ | `errors[task, place][predictor]` | one per row | variances |
# | $s'_{j,i}$ | `rows.next_state` | `[rows, state]` | the environment's |
# | $\hat s'_{j,k,i}$ | `predicted[task, place][predictor]` | `[rows, samples, state]` | the environment's |
# | $j$, $k$, $i$ | row, sample, dimension of the state | – | – |
# | $\sigma_i$ | `std[task]` | `[state]` | the environment's, of the drawn rows |
# | $d_j$ | `reliability.distance` | one per row | standard deviations |
#
# Four conditions may matter: how thin the data are around a state ($d_j$, the distance to its tenth neighbour among the
# 10,000), how far the body moves in the step, how high it is, and how good the episode was. We sort the rows by each
# condition, in fifths. *Persistence* is the guess that nothing moves. Its error is the condition “length of the step”,
# so its curve in that column rises by construction. The other curves are the test: a model that has learned the
# dynamics should err less than persistence on long steps, and no more than persistence on short ones.

# %%
show(reliability.distance, reliability.quantile_bins)

# %% [markdown]
# *Check by hand.* We take 21 states on a line, at 0, 1, ..., 20. The tenth neighbour of the state at 0 is at 10, and
# that of a point at −1 is at 9. Both are 10 away.

# %%
line = np.arange(21.0)[:, None]
assert reliability.distance(line[:1], line, skipped=1) == 10, "a state is not its own neighbour"
assert reliability.distance(line[:1] - 1, line) == 10, "the tenth, not the nearest"
assert (reliability.quantile_bins(line[:, 0], 3) == np.repeat([0, 1, 2], 7)).all(), "parts of equal size"


# %%
def conditions(name):
    """Returns what may matter to the error of each row outside the draw."""
    rows, scale = asked[name, "outside"], std[name]
    return {
        "distance to the data": reliability.distance(rows.state / scale, drawn[name].state / scale),
        "length of the step": errors[name, "outside"]["persistence"],
        "height": rows.next_state[:, tasks.find(name).state_names.index("height (m)")],
        "return of the episode": history[name]["return"],
    }


parts = []
for name in here:
    for condition, value in conditions(name).items():
        fifth = pd.Series(reliability.quantile_bins(value) + 1, name="fifth")
        found = errors[name, "outside"].groupby(fifth).mean()
        parts.append(found.reset_index().assign(task=name, condition=condition))
where = stored("08_where", pd.concat(parts, ignore_index=True), profile, tolerance=0.01)

# %%
styles = looks.PREDICTORS
figure, axes = plt.subplots(4, 4, figsize=(8, 8.4), sharex=True, sharey="row")
for line, name in zip(axes, tasks.TASKS, strict=True):
    for axis, condition in zip(line, where["condition"].unique(), strict=True):
        own = where[(where["task"] == name) & (where["condition"] == condition)]
        for kind, (label, colour, marker) in styles.items():
            style = {"color": colour, "markersize": 4, "linewidth": 1.2, "label": label}
            axis.plot(own["fifth"], own[kind], f"{marker}-", **style)
        axis.set(yscale="log", xticks=range(1, 6), title=condition if name == "hopper" else "")
        axis.title.set_fontsize(10)
    line[0].set_ylabel(f"{tasks.find(name).title}\nerror (variances)")
for axis in axes[-1]:
    axis.set_xlabel("fifth, small to large")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
text = f"Error of one step on {count:,} rows per task that were not drawn, in fifths by four conditions."
save_figure(figure, "08_where", where, text, profile)

# %%
by = where.set_index(["condition", "task", "fifth"]).sort_index()
ends, steps = by.loc["distance to the data", "sample"].unstack(), by.loc["length of the step"]
still, vae = (steps[kind].unstack() for kind in ("persistence", "sample"))
grown = {
    "VAE, sampled: thinnest / densest": ends[5] / ends[1],
    "VAE, sampled: longest / shortest step": vae[5] / vae[1],
    "persistence: longest / shortest step": still[5] / still[1],
    "VAE, sampled / persistence: shortest step": vae[1] / still[1],
    "VAE, sampled / persistence: longest step": vae[5] / still[5],
}
looks.titled(pd.DataFrame(grown).loc[here]).T.rename_axis("ratio of errors").round(2)

# %% [markdown]
# *Read.* The first row shows how much the sampled error grows from the densest fifth to the thinnest. On Ant most of
# this growth is motion: the rows nearest to the data are those in which the body hardly moves, as the persistence line
# in the figure shows. By distance, the VAE errs most relative to persistence in Ant's nearest fifth.
#
# The next two rows compare the shortest steps with the longest. The VAE's error hardly depends on the length of the
# step on Hopper and HalfCheetah, but on Ant it grows a lot. The last two rows are the test. On the longest steps the
# VAE errs less than persistence on every task, though only just on Hopper. On the shortest steps it errs far more on
# every task but HalfCheetah, because it is blurred even where the body hardly moves. Height matters much on Ant only.
# On HalfCheetah the error falls as the return rises. On Ant it falls to a third by the fourth fifth, and rises again in
# the best.
#
# ### Contact, falls, other policies
#
# *Ask.* Dynamics are hardest at impacts, where velocities jump within milliseconds. We ask the simulator whether a body
# touches anything before and after the step. We also test on the pools `medium` and `random`, which other policies
# collected.

# %%
show(reliability.histories, reliability.bodies)

# %% [markdown]
# *Check by hand.* An episode falls in its third step, and a second one has only begun. A hopper at its usual height
# stands, and one at a height of 0.3 m lies.

# %% tags=["nbval-check-output"]
short = {"reward": np.ones(4), "terminal": np.arange(4) == 2, "episode": np.array([0, 0, 0, 1])}
left = reliability.histories(SimpleNamespace(**short))["steps to a fall"]
assert np.array_equal(left, [2, 1, 0, np.nan], equal_nan=True), "only the first episode ends in a fall"
standing, lying = np.zeros(11), np.zeros(11)
standing[0], lying[0] = 1.25, 0.3
found = reliability.bodies(tasks.find("hopper"), np.stack([standing, lying]))
assert found["fallen"].tolist() == [False, True], "the task ends below a height of 0.7 m"
print("steps until the fall:", *left, "fallen:", *found["fallen"])

# %%
body = {}  # what the simulator makes of the states before and after each step
for name in here:
    rows = asked[name, "outside"]
    body[name] = [reliability.bodies(tasks.find(name), x) for x in (rows.state, rows.next_state)]


def moments(name):
    """Returns groups of a task's rows: by contact before and after, by the steps until a fall."""
    before, after = (each["contact"] for each in body[name])
    left = history[name]["steps to a fall"]
    return {
        "in the air": ~before & ~after,
        "touches down": ~before & after,
        "lifts off": before & ~after,
        "in contact": before & after,
        "falls within 5 steps": left <= 5,
        "within 6 to 20": left.between(6, 20),
    }


# %%
parts = []
for name in here:
    groups = {"all rows": slice(None)} | moments(name)
    found = {group: errors[name, "outside"][which] for group, which in groups.items()}
    found |= {f"data of {quality}": errors[name, quality] for quality in ("medium", "random")}
    table = pd.DataFrame({group: each.mean() for group, each in found.items()}).T
    table["rows"] = [len(each) for each in found.values()]
    parts.append(table.rename_axis("group").reset_index().assign(task=name))
by_moment = stored("08_moments", pd.concat(parts, ignore_index=True), profile, tolerance=0.01)
by_moment = by_moment.replace({"group": {"within 6 to 20": "falls in 6 to 20 steps"}})

# %%
order = [*by_moment["group"].unique()]
figure, axes = plt.subplots(2, 2, figsize=(8, 6.6), sharey=True)
for axis, name in zip(axes.flat, tasks.TASKS, strict=True):
    own = by_moment[(by_moment["task"] == name) & (by_moment["rows"] >= 10)]
    for place, (kind, (label, colour, marker)) in enumerate(styles.items()):
        height = own["group"].map(order.index) + 0.1 * (place - (len(styles) - 1) / 2)
        axis.plot(own[kind], height, marker, color=colour, markersize=6, label=label)
    axis.axhline(0.5, color="#999999", linewidth=1)
    axis.axhline(len(order) - 2.5, color="#999999", linewidth=1)
    ticks = [x for x in (0.003, 0.01, 0.03, 0.1, 0.3, 1) if own[[*styles]].min(axis=None) <= 1.2 * x]
    axis.set(
        title=tasks.find(name).title,
        xscale="log",
        yticks=range(len(order)),
        yticklabels=order,
        ylim=(len(order) - 0.5, -0.5),
    )
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.minorticks_off()
for axis in axes[1]:
    axis.set_xlabel("error of one step (variances)")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
text = "Error of one step by contact before and after it, before a fall, and on data of other policies. "
text += "No dot: below 10 rows. Seed 0."
save_figure(figure, "08_moments", by_moment, text, profile)


# %%
wide = by_moment.set_index(["task", "group"])["sample"].unstack()[order]
ratio = wide.div(wide["all rows"], axis=0)[order[1:]].loc[here].T
looks.titled(ratio.map("{:.2f}".format).replace("nan", "–"))

# %% [markdown]
# *Read.* The table has the sampled error of each group, divided by that of all rows. Of the four groups by contact, the
# deterministic network errs most where a foot touches down (see the figure), as we expected. For the VAE contact
# matters less, because its blur outweighs it. Before a fall it errs more than on average. On other policies' data its
# error is smaller or larger, by far the largest on Hopper's `medium`.
#
# ### By quantity
#
# *Ask.* Which quantities does the model predict worst? For each task the table lists the three with the largest error
# of a sample, beside the errors of other predictors. The worst comes last.

# %%
parts = []
for name in here:
    rows = asked[name, "outside"]
    table = pd.DataFrame({"task": name, "quantity": tasks.find(name).state_names})
    for kind, imagined in predicted[name, "outside"].items():
        table[kind] = (((imagined - rows.next_state[:, None]) / std[name]) ** 2).mean(axis=(0, 1))
        table[f"slope of {kind}"] = reliability.slope(imagined.mean(axis=1), rows.next_state)
    parts.append(table)
quantities = stored("08_quantities", pd.concat(parts, ignore_index=True), profile, tolerance=0.01)
three = quantities.sort_values("sample").groupby("task", sort=False).tail(3)
three = three.set_index(["task", "quantity"])
three = three.loc[here, ["sample", "mean", "persistence", "linear", "deterministic"]]
three = three.rename(columns={kind: label for kind, (label, *_) in styles.items()})
looks.titled(three.map(words.two_digits).rename_axis([None, "quantity"]))

# %% [markdown]
# *Read.* All but one of these quantities are velocities: Hopper's torso angle hardly changes in a step, but the VAE
# blurs it.
#
# ## 3. The strangest imagined states
#
# *Ask.* What does a large error look like? We set the simulator to imagined states and draw them beside the true ones:
# the sample that is farthest off, and the sample whose body penetrates the ground or itself most deeply.

# %%
first = {name: {kind: each[:, 0] for kind, each in predicted[name, "outside"].items()} for name in here}
kinds = ("sample", "mean", "deterministic", "noise")
imagined_body = {}
for name in here:
    for kind in kinds:
        imagined_body[name, kind] = reliability.bodies(tasks.find(name), first[name][kind])
off = {name: (first[name]["sample"] - asked[name, "outside"].next_state) / std[name] for name in here}
strangest = {
    name: [
        int(np.square(off[name]).sum(axis=1).argmax()),
        int(imagined_body[name, "sample"]["depth"].argmax()),
    ]
    for name in here
}


def shots():
    """Returns a strip of true states and, after them, of imagined ones: two of each task."""
    true = {name: asked[name, "outside"].next_state[rows] for name, rows in strangest.items()}
    imagined = {name: first[name]["sample"][rows] for name, rows in strangest.items()}
    each = [reliability.photographs(tasks.find(n), both[n]) for both in (true, imagined) for n in true]
    return render.strip(np.concatenate(each))


# %%
frames = np.split(picture("08_strangest", shots), 2 * 2 * len(tasks.TASKS), axis=1)
figure, axes = plt.subplots(4, 4, figsize=(8, 8.4))
for number, frame in enumerate(frames):  # true and imagined of the farthest, then of the deepest
    imagined, (column, deepest) = number // 8, divmod(number % 8, 2)
    axis = axes[2 * deepest + imagined, column]
    axis.imshow(frame)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
for axis, name in zip(axes[0], tasks.TASKS, strict=True):
    axis.set_title(tasks.find(name).title)
labels = [f"{which}: {what}" for which in ("farthest", "deepest") for what in ("true", "imagined")]
for axis, label in zip(axes[:, 0], labels, strict=True):
    axis.set_ylabel(label)
table = pd.DataFrame(strangest, index=["farthest", "deepest"]).T.rename_axis("task").reset_index()
text = "Recorded next states, and those that the VAE imagined in their place. Upper pairs: the largest "
text += f"error of {count:,} samples. Lower pairs: the sample deepest in the ground or in itself. "
text += "Seed 0."
save_figure(figure, "08_strangest", table, text, profile)

# %% [markdown]
# *Read.* A picture shows postures only. Where a pair looks alike, the error lies in the velocities. The floor hides
# what is below it.
#
# How many are impossible? A state is *impossible* if its body penetrates the ground or itself more deeply than in any
# true state of the same rows, or if a joint exceeds its range by more. It is *fallen* if the task would end the episode
# there. *Before a fall* means at most 20 steps before it: there the true episode goes on, so a fallen imagined state is
# an error. The last column counts the reverse error: rows that do end in a fall, for which the model imagines a body
# that stands. It does no harm, because the target of a terminal row does not use $\hat s'$.

# %%
ended = {name: pools[name].rows(numbered(name)[1]) for name in here}
ended = {name: rows.rows(np.flatnonzero(rows.terminal)) for name, rows in ended.items()}
stands = {name: answers(name, rows) if len(rows) else {} for name, rows in ended.items()}


def strange(name, kind):
    """Returns the shares of imagined states that are impossible or fallen, and of falls that stand."""
    found, falling = imagined_body[name, kind], history[name]["steps to a fall"] <= 20
    beyond = [found[part] > max(each[part].max() for each in body[name]) for part in ("depth", "bent")]
    shares = [*(each.mean() for each in (*beyond, found["fallen"])), found["fallen"][falling].mean()]
    if not stands[name]:
        return [*shares, np.nan]
    return [*shares, 1 - reliability.bodies(tasks.find(name), stands[name][kind][:, 0])["fallen"].mean()]


# %%
columns = ["too deep", "bent too far", "fallen", "fallen, of rows before a fall", "standing, of falls"]
shares = [[name, kind, *strange(name, kind)] for name in here for kind in kinds]
shares = pd.DataFrame(shares, columns=["task", "source", *columns])
shares = stored("08_strange", shares, profile, tolerance=0.02).set_index(["task", "source"])
told = shares.map(lambda share: "–" if np.isnan(share) else f"{share:.1%}")
looks.titled(told)

# %% [markdown]
# *Read.* Compare the VAE's `sample` with the deterministic network. The last column shows the largest difference: when
# a body falls in this step, the VAE nearly always imagines a body that stands. Falls lie at the edge of the data, and
# the blur pulls them back inside. Neither model was fitted on rows that end an episode, so that does not explain the
# difference. Noise of the same size makes impossible states more often. But it starts at $s'$, so many of the fallen
# bodies stay fallen. On HalfCheetah a sixth of the samples penetrate the ground or the body itself more deeply than any
# true state, and on Ant a quarter, several times as many as for the deterministic network.
#
# ## 4. Which way is it wrong?
#
# *Ask.* An error without a direction averages out in the state, and in a value as far as the value is linear ([chapter
# 07](07_controls.ipynb)). An error with a direction stays. How far do errors pull the prediction towards the mean,
# given the true next state? The slope of a regression of the prediction on the true next state shows this:
#
# $$\begin{gathered}
# b_i = \frac{\operatorname{cov}(\hat s'_i, s'_i)}{\operatorname{var}(s'_i)}, \\
# \hat s' \approx \bar s' + b\,(s' - \bar s') \\
# \Rightarrow\quad V(\hat s') - V(s') \approx -(1 - b)\,\big(V(s') - V(\bar s')\big) .
# \end{gathered}$$
#
# The right side is exact if $V$ is linear and all slopes are the same. Good states then look worse than they are, poor
# states look better, and values are compressed by $1 - b$. If the VAE's blur is such a pull and the formula holds, the
# VAE should compress values on every task, and matched noise, whose slope is 1, on none.
#
# The slope does not show *why* a model errs. For every regression whose errors are not correlated with its predictions,
# it is 1 minus the error of section 2. The decoder is such a regression on the sampled latent. The mean prediction
# decodes the latent's mean instead, so it shrinks as much but errs less.
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $b_i$ | `reliability.slope` | `[state]` | none |
# | $b$ | the common slope, if all $b_i$ are equal | number | none |
# | $\bar s'$ | the mean next state | `[state]` | the environment's |
# | $V$ | `value_of`: $\min(Q_1, Q_2)$ at $(s, \pi(s))$, of the critics and the actor of `vanilla` | one per row | rewards |

# %%
show(reliability.slope)

# %% [markdown]
# *Check by hand.* First we take a linear system $s' = A s$, a model that shrinks by 0.8, and the value of a linear
# critic. Then we compute the slope of three rows of one dimension.

# %% tags=["nbval-check-output"]
A, weight = np.array([[1.0, 0.1], [-0.1, 0.9]]), np.array([2.0, -1.0])
states = np.random.default_rng(0).normal(size=(500, 2)) @ A.T  # next states
blurred = states.mean(axis=0) + 0.8 * (states - states.mean(axis=0))
assert np.allclose(reliability.slope(blurred, states), 0.8), "every dimension shrinks by the same factor"
true, imagined = states @ weight, blurred @ weight
compressed = reliability.slope(imagined - true, true)
assert np.isclose(compressed, 0.8 - 1), "values are compressed by 1 - b"
three, told = np.array([0.0, 1.0, 5.0]), np.array([1.0, 1.5, 3.5])
assert np.isclose(reliability.slope(told, three), 0.5), "half of every difference is left"
print(f"slope {0.8}: V(imagined) - V(true) falls by {-compressed:.1f} for each unit of V(true)")

# %%
medians = quantities.groupby("task").median(numeric_only=True).loc[here]
columns = [*styles, "noise"]
labels = [*(label for label, *_ in styles.values()), "matched noise"]
slopes = {"slope": medians[[f"slope of {kind}" for kind in columns]], "1 − error": 1 - medians[columns]}
slopes = pd.concat({name: each.set_axis(labels, axis=1) for name, each in slopes.items()})
looks.titled(slopes).T.round(2) if here else slopes

# %% [markdown]
# *Read.* The table has medians over quantities. For the deterministic network, linear regression and the VAE's samples
# the slope is 1 minus the error: these predictions shrink as much as their error implies. The VAE's mean prediction
# shrinks more than its error implies, on HalfCheetah and Ant a reconstruction less: there the decoder is trained on
# predictions more than on reconstructions. Matched noise errs as much as the samples but does not shrink.
#
# Next we ask agents that never learned from an imagined state (`vanilla`) for the values of imagined states. We ship
# such agents for two tasks only.


# %%
def value_of(learner, state):
    """Returns V(s) = min_i Q_i(s, pi(s)) of an agent, for states in the environment's units."""
    known = learner.standardiser.apply(torch.from_numpy(state)[None])
    return measures.values(learner.agent.critics, known, learner.agent.actor(known).detach())[0].numpy()


def groups(name, true):
    """Returns groups of a task's rows: by their episode's return, before a fall, by their value."""
    quarter = reliability.quantile_bins(history[name]["return"], 4)
    found = {"all": np.ones(len(true), bool)}
    found |= {f"return, quarter {k + 1}": quarter == k for k in range(4)}
    found |= {"a fall within 20 steps": (history[name]["steps to a fall"] <= 20).to_numpy()}
    found |= {f"value, tenth {k + 1}": reliability.quantile_bins(true, 10) == k for k in range(10)}
    return {group: which for group, which in found.items() if which.any()}


# %%
agents = [name for name in here if name in studies.TWO]  # for these we ship vanilla agents
parts = []
for name in agents:
    learner, rows = trained.agent(name, "vanilla"), asked[name, "outside"]
    true = value_of(learner, rows.next_state)
    told = {kind: value_of(learner, first[name][kind]) for kind in kinds}
    for group, which in groups(name, true).items():
        moved = {kind: (each - true)[which].mean() for kind, each in told.items()}
        slope = {kind: reliability.slope(each - true, true) for kind, each in told.items()}
        compression = {f"compressed by {kind}": -each for kind, each in slope.items()}
        found = {"task": name, "group": group, "rows": which.sum(), "value": true[which].mean()}
        parts.append(found | moved | compression)
values = stored("08_values", pd.DataFrame(parts), profile, tolerance=0.01)

# %%
all_sources = styles | {"noise": ("matched noise", looks.look("noise").colour, "X")}
tenths = values["group"].str.startswith("value")
figure, axes = plt.subplots(1, len(agents), figsize=(8, 3.8))
for axis, name in zip(axes, agents, strict=True):
    own = values[tenths & (values["task"] == name)]
    for kind in kinds:
        label, colour, marker = all_sources[kind]
        axis.plot(own["value"], own[kind], color=colour, marker=marker, label=label)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title=tasks.find(name).title, xlabel="V(true next state), in tenths (rewards)")
axes[0].set_ylabel("V(imagined) − V(true) (rewards)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
text = "How far imagined next states move values, by the value of the true next state: critics of "
text += f"vanilla agents, seed 0, {count:,} rows outside the draw."
save_figure(figure, "08_values", values, text, profile)

# %%
shown = values[~tenths].set_index(["task", "group"])
moved = shown[[*kinds]].map(lambda shift: words.number(shift, signed=True))
looks.titled(shown[["rows", "value"]].map(words.number).join(moved))

# %%
told = values.groupby("task", sort=False).first().filter(like="compressed by ")
told = told.rename(columns=lambda name: name.removeprefix("compressed by "))
looks.titled(told.rename_axis(columns="values compressed by")).map("{:.1%}".format)

# %% [markdown]
# *Read.* The best states lose value and most others gain it. On Hopper the formula has the right shape: the poorer the
# state, the more value it gains. On HalfCheetah it fails: the poorest tenth gains less than the middle. The formula
# takes $V$ as linear in the state, which it is not. We have not tested whether that is the reason.
#
# The size is wrong as well. By the formula, the spread of the values should shrink by 1 minus the median slope above,
# so more on HalfCheetah than on Hopper. The last table shows by which share it really shrinks (from a straight line
# fitted to the shift). On Hopper the model compresses values several times as much as noise does. On HalfCheetah noise,
# which pulls nothing to the middle, compresses them as much. So there the compression need not come from the pull.
#
# The row `a fall within 20 steps`, where there is one, shows how much value the model adds to bodies that are about to
# fall. The deterministic network hardly moves values. Noise of the same size lowers the mean value of every tenth. A
# part of that is the penalty from the minimum of the two critics, and the larger part is the curvature of the value
# ([chapter 07](07_controls.ipynb)).
#
# ## 5. Can we tell in advance which rows have large errors?
#
# *Ask.* We can compute the error only if we know the true next state. Which signal tells us where the error is large
# without it? We compare five candidates. If the VAE expressed its own uncertainty well, the first would be enough.
#
# | signal | in code | needs |
# |---|---|---|
# | spread of the VAE's samples | variance of `predicted[...]["sample"]` over samples, in units of $\sigma_i^2$, mean over dimensions | the VAE |
# | length of its mean step | $\operatorname{mean}_i ((\hat s'_i - s_i) / \sigma_i)^2$ of `predicted[...]["mean"]` | the VAE |
# | distance to the data | $d_j$ of section 2, the tenth neighbour of $s$ | the data |
# | spread over five fits | variance of `small[task]` over seeds, in units of $\sigma_i^2$, mean over dimensions | five small deterministic networks |
# | blur of the state | `imagination.doubt`: how badly the VAE reconstructs $s$ itself | the VAE |
#
# We measure each signal by the area under the ROC curve for the *worst tenth* of rows: the probability that a row of
# the worst tenth has a larger signal than another row. 1/2 is chance, 1 is perfect.
#
# $$\begin{gathered}
# \text{area} = \Pr\big(u_j > u_l \mid j \text{ worst}, l \text{ not}\big) \\
# {} = \frac{\sum_{j\ \text{worst}} \operatorname{rank}(u_j) - n(n+1)/2}{n\,\bar n}
# \end{gathered}$$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $u_j$ | `signal` | one per row | that of the signal |
# | $n$, $\bar n$ | `worst.sum()`, `(~worst).sum()` | numbers | rows |
# | $l$ | a row that is not among the worst | – | – |

# %%
show(reliability.auroc, imagination.doubt)

# %% [markdown]
# *Check by hand.* Of three rows the second is the worst. Its signal lies above one other row and below the other, so
# the area is a half. For three rows we also compute `imagination.doubt` step by step: encode the state, decode the mean
# of the latent, and average the squared error over the dimensions.

# %%
worst = np.array([False, True, False])
assert reliability.auroc(np.array([1.0, 2.0, 3.0]), worst) == 0.5, "one of two pairs is in order"
assert reliability.auroc(np.array([1.0, 9.0, 3.0]), worst) == 1, "the worst row has the largest signal"
top = np.array([True, False, False])
assert reliability.auroc(np.array([2.0, 2.0, 2.0]), top) == 0.5, "ties count half"
if here:
    model, three = fits[here[0]].model, torch.from_numpy(asked[here[0], "outside"].state[:3])
    known = model.standardiser.apply(three)
    decoded = model.decoder.alone(world_model.posterior(model, known).mean).detach()
    by_hand = ((decoded - known) ** 2).numpy().mean(axis=1)
    assert np.allclose(imagination.doubt(model, three), by_hand, rtol=1e-4), "the mean over dimensions"


# %%
def signals(name, place):
    """Returns what is known of rows without their next states, by name."""
    rows, told, scale = asked[name, place], predicted[name, place], std[name]
    state, action = torch.from_numpy(rows.state), torch.from_numpy(rows.action)
    five = [imagination.predict_deterministic(one, state, action).numpy() / scale for one in small[name]]
    known = drawn[name].state / scale
    return {
        "spread of the samples": (told["sample"] / scale).var(axis=1, ddof=1).mean(axis=1),
        "length of the mean step": (((told["mean"][:, 0] - rows.state) / scale) ** 2).mean(axis=1),
        "distance to the data": reliability.distance(rows.state / scale, known, place == "drawn"),
        "spread over five fits": np.var(five, axis=0, ddof=1).mean(axis=1),
        "blur of the state": imagination.doubt(fits[name].model, state).numpy(),
    }


# %%
signal_of, parts = {key: signals(*key) for key in asked}, []
for name, place in asked:
    error = errors[name, place]["sample"].to_numpy()
    worst = error >= np.quantile(error, 0.9)
    for signal, value in signal_of[name, place].items():
        rank = spearmanr(value, error).statistic
        parts.append([name, place, signal, reliability.auroc(value, worst), rank])
found = pd.DataFrame(parts, columns=["task", "place", "signal", "area", "rank correlation"])
areas = stored("08_signals", found, profile, tolerance=0.01)

# %%
ranked = areas[areas["place"] == "outside"].groupby("signal")["area"].mean()
order = [*ranked.sort_values(ascending=False).index]
places = {"outside": ("not drawn", "o"), "drawn": ("drawn: what the model was fitted on", "x")}
places |= {"medium": ("medium dataset", "^"), "random": ("random dataset", "v")}
shades = dict(zip(places, ("#0072B2", "#000000", "#E69F00", "#999999"), strict=True))

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 3.6), sharex=True, sharey=True)
for axis, name in zip(axes, tasks.TASKS, strict=True):
    for number, (place, (label, marker)) in enumerate(places.items()):
        own = areas[(areas["task"] == name) & (areas["place"] == place)]
        height = own["signal"].map(order.index) + 0.12 * (number - 1.5)
        axis.plot(own["area"], height, marker, color=shades[place], label=label, markersize=6)
    axis.axvline(0.5, color="black", linewidth=0.8)
    axis.set(
        title=tasks.find(name).title,
        xlim=(0.35, 1.03),
        ylim=(len(order) - 0.6, -0.4),
        xticks=[0.5, 0.75, 1],
        xticklabels=["0.5", "0.75", "1"],
    )
    axis.set_yticks(range(len(order)), order)
figure.supxlabel("area under the ROC curve for the worst tenth (1/2 is chance)", fontsize=10)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
text = "How well five signals find the tenth of rows with the largest sampled error. On top is the "
text += "signal with the largest mean area on rows that were not drawn. "
text += f"{count:,} rows per task and place. Seed 0."
save_figure(figure, "08_signals", areas, text, profile)

# %%
wide = areas.set_index(["place", "signal", "task"])[["area", "rank correlation"]].unstack("task")
wide = wide.reindex(columns=here, level="task").loc["outside"].reindex(order)
wide["area", "mean"] = wide["area"].mean(axis=1)
wide = wide[["area", "rank correlation"]].sort_values(("area", "mean"), ascending=False)
looks.titled(wide.rename_axis(columns=(None, None))).round(2)

# %% [markdown]
# *Read.* The signals are sorted by their mean area over the tasks. The blur of the state costs only one pass through a
# model that we have anyway. Its lead over the distance to the data is small, comes from Hopper, and rests on one model
# per task. So read "best" as "good everywhere". The spread of the VAE's samples ranks all rows moderately well, but
# finds the worst ones poorly. The spread over five fits shows where those networks err, not where the VAE blurs.
#
# [Chapter 02](02_world_model.ipynb) suggests a reason, tested on Hopper only: most of the error comes from encoding and
# decoding. If the VAE cannot encode a state, it cannot predict from it. And we can see how well it encodes a state
# without knowing the next one.
#
# ## 6. Does it help to imagine only reliable rows?
#
# *Ask.* The method imagines a random half of each batch. With the best signal, the blur of the state, we can choose the
# half: the rows that the signal trusts most (`augmented_trusted_offline`) or least (`augmented_distrusted_offline`). We
# chose the signal by its area before we trained anything. All else is as in the arm `augmented` (an *arm* is one way to
# train an agent). How much does the choice change the error?

# %%
halves = []
for name in here:
    doubt, error = signal_of[name, "drawn"]["blur of the state"], errors[name, "drawn"]
    half = np.where(reliability.quantile_bins(doubt, 2) == 0, "trusted half", "distrusted half")
    own = error[["sample", "persistence"]].groupby(half).mean()
    own.loc["both"] = error[["sample", "persistence"]].mean()
    halves.append(own.rename_axis("rows").reset_index().assign(task=name))
halves = stored("08_halves", pd.concat(halves, ignore_index=True), profile, tolerance=0.01)
halves = halves.set_index(["rows", "task"]).unstack("task").reindex(columns=here, level="task")
looks.titled(halves.rename_axis(columns=(None, None))).map(words.two_digits)

# %% [markdown]
# *Read.* The VAE errs far more on the distrusted half. Its steps are longer, too, as the error of persistence shows. In
# a batch of 256 rows the rank of a row is nearly its rank among all rows, so each arm nearly always imagines the same
# half of the data.
#
# By the formula of chapter 07, errors do the harm. So we expect the trusted half to do less harm than a random half,
# and the distrusted half to do more. This can fail: if augmentation works as a regulariser, the distrusted half
# regularises more, and the trusted arm scores *below* the distrusted one.

# %%
show(augmentation.by_doubt)

# %% [markdown]
# *Check by hand.* We imagine half of a batch of four rows, whose doubts are 3, 1, 2 and 1 again.

# %% tags=["nbval-check-output"]
index, doubt = torch.tensor([[[0, 1, 2, 1]]]), torch.tensor([[3.0, 1.0, 2.0]])
trusted, distrusted = (augmentation.by_doubt(index, doubt, picks) for picks in ("trusted", "distrusted"))
assert trusted.flatten().tolist() == [1, 1, 2, 0], "the row of doubt 1, drawn twice, comes first"
assert distrusted.flatten().tolist() == [0, 2, 1, 1], "and last where the most doubtful are imagined"
for picks, rows in (("trusted", trusted), ("distrusted", distrusted)):
    print(f"{picks}: the rows {rows[0, 0, :2].tolist()} are imagined")

# %%
study = studies.find("trusted")
arms = ["vanilla", "augmented", *study.arms]
table = claims.main_runs(records.load_runs(records.root()))
table = table[table["arm"].isin(arms) & table["task"].isin(study.tasks) & (table["phase"] == "pretrain")]
offline, done = statistics.mean_offline(table), len(records.recorded(records.root(), study.runs()))
said_so = "Recorded" if done else "Not recorded yet"
Markdown(f"*{said_so}: {done} of {len(study.runs())} runs of the two arms.*")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
shown = figures.dots(axes, offline, arms, study.tasks)
for axis in axes:
    axis.set(xlabel="offline score, second half of pre-training", xlim=(0, 1.1 * axis.get_xlim()[1]))
text = "Offline score with no imagined next states, with half of them in random rows, or with half in "
text += "the rows that are trusted most or least."
text += "" if done else " The last two are not recorded yet."
caption = figures.caption(text, table, drawn=figures.DOTS)
save_figure(figure, "08_trusted", shown, caption, profile)


# %%
def minus(arm, other, name):
    """Returns the difference of two arms on a task in words."""
    groups = statistics.by_task(offline, arm, other, least=1)
    found = statistics.contrast(groups.get(name, [[], []]), [1, -1])
    return words.estimate(found, signed=True) if found.n_seeds else "not recorded yet"


trusted, distrusted = study.arms
pairs = [(trusted, distrusted), (trusted, "augmented"), (distrusted, "augmented"), (trusted, "vanilla")]
columns = {name: [minus(*pair, name) for pair in pairs] for name in study.tasks}
names = [" − ".join(looks.look(arm).label for arm in pair) for pair in pairs]
looks.titled(pd.DataFrame(columns, names))

# %% [markdown]
# *How to read it.* Where the interval of the first row excludes zero, its sign supports one of the two explanations.
# With three seeds it is a direction, not a verdict. Only this row compares arms that differ in nothing but the rows
# that are imagined: `augmented` also imagines other rows each time.
#
# Four lines sum up the chapter. They are not tests: we chose the limits after seeing the results, and the signal on the
# same rows.

# %% tags=["nbval-check-output"]
area = areas[areas["place"] == "outside"].pivot(index="signal", columns="task", values="area")
standing = shares.xs("sample", level="source")["standing, of falls"].dropna()
shrunk = medians["slope of sample"] < medians["slope of deterministic"]
best = area.mean(axis=1).idxmax() == "blur of the state"
print("Is the blur of the state the best of the five signals, on average?", best)
print("Is it above 0.8 on every task?", bool((area.loc["blur of the state"] > 0.8).all()))
print("Do samples shrink more than the deterministic network on every task?", bool(shrunk.all()))
print("Of falls, are more than 3 in 4 imagined standing?", bool((standing > 0.75).all()))

# %% [markdown]
# ## Where we differ from the paper
#
# - **Which rows are imagined.** The first author's code chooses them at random ([C] of [chapter
#   00](00_overview.ipynb)). The two arms of section 6 are ours.
# - **Trust.** Our sources do not say whether the paper asks where its model is reliable.
#   [MOPO](https://arxiv.org/abs/2005.13239) asks an ensemble and lowers the reward, and
#   [MOReL](https://arxiv.org/abs/2005.05951) ends the episode where members disagree. We only choose rows.
# - **One draw.** All networks here have seed 0 and one quality, medium-replay.
#
# ## Try it
#
# Each is one line. Predict the result before you run it. Set `profile = "quick"` first, because the profile "paper"
# compares what you compute with the committed tables.
#
# 1. In `components`, `[:, :-3:-1]` takes the two largest components. Take the two smallest, `[:, :2]`. What is left of
#    the map? What happens to the rank correlation of section 1, and why?
# 2. In section 5, put `errors[name, place]["deterministic"]` in place of `errors[name, place]["sample"]`. Which signal is
#    now the best?
# 3. At the end of section 2, set `reliability.NEIGHBOUR = 1`. Is the nearest neighbour a better signal than the tenth?
#
# ## Questions
#
# <details><summary>Why not weight each row by its signal, rather than choose half?</summary>
#
# You could. Choosing half keeps everything else equal: the same share of imagined states, the same table, the same
# random numbers. A difference in score between the two then comes only from *which* rows are imagined.
# </details>
#
# <details><summary>Is the blur of s not simply the distance to the data?</summary>
#
# The two often agree: both are large at the edge of the data. But the blur is also large where the VAE has no latent
# dimension for a quantity, however dense the data are there.
# </details>
#
# <details><summary>Why does the ensemble do worse on most tasks, although it is so widely used?</summary>
#
# The spread of an ensemble shows its own errors. Most of the VAE's error comes from its loss, at least on Hopper
# ([chapter 02](02_world_model.ipynb)): the KL term makes detail expensive everywhere. The five small networks have no
# such term. The second edit of "Try it" turns the question around.
# </details>
#
# <details><summary>The model imagines falls as standing. Does that harm the agent?</summary>
#
# Not in the row of the fall itself, whose target does not use the next state. It can do harm in the rows just before.
# There the next state is about to fall, but the imagined state stands more upright.
# </details>
#
# **Next:** [11 · Other methods](11_other_methods.ipynb): what else can be done with the same 10,000 transitions?
