# %% [markdown]
# # 90 · Engine
#
# **How fast is an update, compared with what, and what limits it?**
#
# <!-- answer -->
# On one core (Intel(R) Xeon(R) Processor, family 6, model 167), an agent on Hopper makes this many updates of TD3+BC a second:
# 300 in float32 and 483 in bfloat16. That is 62 % and 17 % of what the matrix products alone allow. TD3 without BC makes, in
# float32, 279 with mbaug, 193 with plain torch, 159 with Stable-Baselines3 and 248 with SBX. SAC makes, in float32, 187 with
# mbaug, 132 with plain torch, 97 with Stable-Baselines3 and 192 with SBX.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | `data/benchmarks/*.json`, one for each processor measured (if none, it measures briefly), and `data/runs` |
# | gives | figures `90_updates`, `90_parts`, `90_threads`, `90_population`, `90_dataset`, `90_precision`, and tables |
# | minutes on one core | paper: below 1 · smoke and quick, which measure live: about 1.5 |
#
# Why does speed matter? A study of this paper takes tens of millions of updates. At a hundred a second it takes days on a
# laptop, and nobody repeats a study that takes days.
#
# Nearly all the arithmetic of an update is some sixteen matrix products, so the speed of products sets the limit. The
# rest is hundreds of small calls. In our code as written, these calls take about as long as the products, and in
# bfloat16 nearly three times as long (section 3). So the engine records the calls once and then replays them.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/benchmarks; True: measure now, briefly

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results, speed
from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.engine import graphs, perceptron
from mbaug.experiments import records, studies
from mbaug.method import networks, settings, td3, training, transitions, world_model
from mbaug.reporting import figures, looks, statistics
from mbaug.reporting.figures import show

engine.prepare()
figures.style()

# %%
kept = [] if retrain else [each for each in results.load() if "device" not in each["provenance"]]
document = kept[0] if kept else results.measure(speed.TINY, "cpu", speed.LIVE)
measured = {name: results.table(rows) for name, rows in document["sections"].items()}
drawn_as = profile if kept or retrain else "smoke"
made = document["provenance"]
about = f"{made['cpu']}, torch {made['torch']}. "
about += f"Median and range of {document['repeats']} measurements"
COLOURS = {"float32": "#0072B2", "bfloat16": "#D55E00"}
print(f"recorded at commit {made['commit'][:9]}" if kept else "measured now: no evidence")
print(about)

# %%
rows = measured["updates"]
alone = rows[rows["population"] == 1]
hopper = alone[alone["task"] == "hopper"].set_index("precision")
peers = measured["peers"].assign(
    who=lambda t: t["by"].str.replace(r" [0-9.]+$", "", regex=True) + "\n" + t["precision"]
)
frame = pd.concat([rows, peers.drop(columns="who")]).assign(cpu=made["cpu"])


def reach(some):
    """Returns how far the slowest and the fastest measurement lie from the median."""
    middle = some["updates_per_second"]
    return [middle - some["updates_per_second_low"], some["updates_per_second_high"] - middle]


# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), width_ratios=(3, 2))
for number, (precision, some) in enumerate(alone.groupby("precision", sort=False)):
    place = np.arange(len(some)) + 0.4 * number
    middle = some["updates_per_second"]
    look = {"label": precision, "color": COLOURS[precision]}
    left.errorbar(place, middle, yerr=reach(some), fmt="os"[number], **look)
    bound = middle / some["fraction_of_limit"]
    left.hlines(bound, place - 0.18, place + 0.18, color=COLOURS[precision], linewidth=2.5)
left.set(ylabel="updates a second, one agent, one core", title="TD3+BC", yscale="log", ylim=(100, 4_000))
left.set_yticks([100, 200, 500, 1_000, 2_000], ["100", "200", "500", "1,000", "2,000"])
left.minorticks_off()
titles = [[tasks.find(name).title for name in each.split(", ")] for each in some["task"]]
left.set_xticks(np.arange(len(some)) + 0.2, map("\n".join, titles))
left.plot([], "_", color="#666666", markersize=14, markeredgewidth=2.5, label="limit of the products")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
for number, (algorithm, some) in enumerate(peers.groupby("algorithm", sort=False)):
    look = {"label": algorithm, "color": ["#000000", "#888888"][number]}
    right.errorbar(some["updates_per_second"], some["who"], xerr=reach(some), fmt="os"[number], **look)
right.set(xlabel="updates a second, Hopper", xlim=(0, None), title="Compared with other libraries")
right.margins(y=0.15)
right.invert_yaxis()
figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
text = "Left: updates a second of TD3+BC, and the limit of the matrix products. Walker2d and "
text += "HalfCheetah have networks of the same shape, so they share a mark. "
text += f"Right: TD3 and SAC, compared with other libraries. {about}."
figures.save_figure(figure, "90_updates", frame, text, drawn_as)

# %% [markdown]
# *Read.* The left panel has one agent on one core. The short line above each mark is the limit that the matrix products
# set (section 2). We timed it right beside the updates. We measured the sections of this page one after another on a
# shared machine, so compare numbers within a section only. The right panel compares plain TD3 and SAC with
# [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3), [SBX](https://github.com/araffin/sbx) (JAX) and the
# same method on plain torch, as far as we measured them. The timed part of each includes drawing batches and noise. All
# have 2 x 256 units and batches of 256.

# %%
ours = hopper[["updates_per_second", "updates_per_second_low", "fraction_of_limit"]]
ours = ours.set_axis(["updates a second", "the slowest", "share of the limit"], axis=1)
ours["minutes for 200,000 updates"] = 200_000 / ours["updates a second"] / 60
ours.round(2)

# %% [markdown]
# How many times as fast are we? Each row is one of our precisions. Each column is one other library, which computes in
# float32. Where a number is below 1, that library is faster.

# %%
faster = results.pairs(document["sections"]["peers"])
ahead = [f"{row.by_peer} for {row.algorithm} (float32)" for row in faster.itertuples() if row.times < 1]
print("Libraries that are faster than mbaug:", ", ".join(ahead) or "none")
faster = faster.pivot(index=["algorithm", "precision"], columns="by_peer", values="times")
faster.rename_axis(columns="times as fast as").round(2)

# %% [markdown]
# What does LayerNorm in the critics cost? It adds passes over the hidden units, but no products. The table has the
# share of the updates a second that it takes. All recorded runs with LayerNorm are in float32.

# %%
pace = measured.get("critics", pd.DataFrame(columns=["precision", "algorithm", "updates_per_second"]))
pace = pace.pivot(index="precision", columns="algorithm", values="updates_per_second")
later = Markdown("This file is older than the measurement. `python -m benchmarks` prints it.")
cost = [f"{1 - row['TD3+BC, LayerNorm'] / row['TD3+BC']:.0%}" for _, row in pace.iterrows()]
pd.DataFrame({"what LayerNorm costs": cost}, pace.index) if cost else later

# %% [markdown]
# The table below lists every processor that we measured, with one agent on Hopper. Where `replayed` is "no", we
# measured before we added the graph of section 3.


# %%
def everywhere(section):
    """Returns the rows of a section for every processor that was measured."""
    each = kept or [document]
    rows = [results.table(one["sections"][section]).assign(cpu=one["provenance"]["cpu"]) for one in each]
    return pd.concat(rows)


found = everywhere("updates").query("population == 1 and task == 'hopper'")
found = found.pivot(index="cpu", columns="precision", values="updates_per_second").round()
replays = everywhere("parts").groupby("cpu")["part"].agg(lambda parts: "whole, as a graph" in set(parts))
found = found.astype(object).fillna("–").rename_axis(index=None)
found.assign(replayed=replays.map({True: "yes", False: "no"}))

# %% [markdown]
# ## 1. What an update computes
#
# *Ask.* How much arithmetic is one update of [TD3+BC](https://arxiv.org/abs/2106.06860)? We count only the matrix
# products and expect them to be nearly all of it. A network of 2 x 256 units has one large product a pass, 256 by 256,
# and all other products are thin.
#
# A product of a batch with a weight, $[B, n] \cdot [n, m]$, is $2 B n m$ operations: a multiplication and an addition
# each. The backward pass takes as much for the gradient of the weight, and as much again for the gradient of the input,
# where they are needed. The gradient of a network's own input is needed in one place only, where the actor's loss goes
# back through $Q_1$ to the action:
#
# $$ C = 2B \Big[ \underbrace{p + 2q}_{\text{target}} + \underbrace{2q + 2\,(q + \tilde q)}_{\text{critics}}
# + \tfrac1k \big( \underbrace{p + q + q}_{\text{through } Q_1} + \underbrace{p + \tilde p}_{\text{actor}} \big) \Big] $$
#
# | symbol | in code | value | unit |
# |---|---|---|---|
# | $B$, $k$ | `batch_size`, `policy_delay` | 256, 2 | rows, updates |
# | $p$, $q$ | `actor`, `critic` in `operations` | sum of inputs × outputs over the layers | multiplications per row |
# | $\tilde p$, $\tilde q$ | `hidden_gradients`, for the critic | the same without the first layer | multiplications per row |
# | $C$ | `operations` | below | floating-point operations per update |

# %%
show(speed.operations)

# %% [markdown]
# *Check by hand.* We count the operations on Hopper, product by product. Then we run the networks as
# `networks.plain_forward` defines them, with autograd, and let torch's own counter count.

# %%
layers = [11 * 256, 256 * 256, 256 * 3], [14 * 256, 256 * 256, 256 * 1]
pi, q = map(np.array, layers)
passes = {
    "target actor": (1, pi.sum()),
    "target critics": (2, q.sum()),
    "critics": (2, q.sum()),
    "critics, back to weights": (2, q.sum()),
    "critics, back to units": (2, q[1:].sum()),
    "first critic, and back to its input": (2 / 2, q.sum()),
    "actor, and back to weights": (2 / 2, pi.sum()),
    "actor, back to units": (1 / 2, pi[1:].sum()),
}
work = pd.DataFrame.from_dict(passes, orient="index", columns=["times", "multiplications per row"])
work["GFLOP"] = 2 * 256 * work["times"] * work["multiplications per row"] / 1e9
counted = speed.operations(11, 3, td3.TD3())
assert np.isclose(work["GFLOP"].sum() * 1e9, counted), "the count is the formula's"
work.round(3)

# %%
generator = streams.torch_generator(0, "chapter 90")
network = networks.perceptron((14, 256, 256, 1), [generator] * 2)
inputs = torch.randn(2, 256, 14)
with FlopCounterMode(display=False) as counter:
    outputs = networks.plain_forward(inputs, network.flat, network.layers)
    torch.autograd.grad(outputs.sum(), network.flat)
by_hand = 2 * 256 * 2 * (2 * q.sum() + q[1:].sum())
assert counter.get_total_flops() == by_hand, "torch counts the critics' three passes alike"

# %% tags=["nbval-check-output"]
sizes = {name: (task.state_size, task.action_size) for name, task in tasks.TASKS.items()}
each = {name: speed.operations(*size, td3.TD3()) / 1e9 for name, size in sizes.items()}
wide = 2 * 256 * 256**2 * (1 + 2 + 2 + 2 + 2 + 1 + 1 + 0.5) / (work["GFLOP"].sum() * 1e9)
print(f"{wide:.0%} of Hopper's operations are products of 256 by 256")
pd.Series(each, name="GFLOP an update").round(3).to_frame().T

# %% [markdown]
# *Read.* The number of state dimensions hardly matters. That is why Ant, with 27, costs little more than Hopper, with
# 11. What we do *not* compute matters as well: the actor's step goes through the first critic but needs no gradient of
# its weights. Code that computes this gradient pays for one more pass.
#
# ## 2. The limit
#
# *Ask.* How many operations a second can one core do? We time products alone, at the shapes of an update
# ([`benchmarks/speed.py`](../benchmarks/speed.py), `product_rate`).
#
# $$ u_{\max} = \frac{R}{C} $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $R$ | `product_rate`, at 256 by 256 | one number per precision | floating-point operations a second |
# | $C$ | `operations` | one number per task | operations an update |
# | $u_{\max}$ | `limit` | one number per precision | updates a second |

# %%
rates = measured["products"]
best = rates[(rates["inputs"] == 256) & (rates["outputs"] == 256)].set_index("precision")["gflops"]
limit = best / work["GFLOP"].sum()
rates = rates.rename(columns={"gflops": "GFLOP/s", "gflops_low": "lowest", "gflops_high": "highest"})
rates.set_index(["precision", "inputs", "outputs"]).round(1)

# %%
limits = {"GFLOP/s at 256 by 256": best, "no update on Hopper is faster than (1/s)": limit}
pd.DataFrame(limits).round().astype(int)

# %% [markdown]
# *Read.* The thinnest product does few operations for each number that it reads, so its rate stays far below the wide
# one's. The limits in the first figure are lower, because they were timed beside the updates. A processor without
# bfloat16 products has no second row.
#
# ## 3. Where the time goes
#
# *Ask.* If products are nearly all of the arithmetic, do they take nearly all of the time? We run Python's profiler on
# the updates as `td3` writes them, with their draws of batches and noise, and sort the calls. We expect products to take
# two thirds.

# %%
parts = measured["parts"].set_index(["precision", "part"])
wholes = ["whole, without the profiler", "whole, as a graph"]
whole, replayed = (parts.xs(name, level="part")["microseconds"] for name in wholes)
parts = parts.drop(index=wholes, level="part")
table = parts["microseconds"].unstack("precision")
table = table.loc[table.sum(axis=1).sort_values(ascending=False).index]

# %%
figure, axis = plt.subplots(figsize=(8, 4))
for number, precision in enumerate(table):
    ends = parts.loc[precision].loc[table.index]
    middle, place = ends["microseconds"], np.arange(len(table)) + 0.4 * number
    spread = [middle - ends["microseconds_low"], ends["microseconds_high"] - middle]
    axis.barh(place, middle, 0.36, xerr=spread, color=COLOURS[precision], label=precision)
axis.set(yticks=np.arange(len(table)) + 0.2, yticklabels=table.index, xlabel="microseconds of an update")
axis.invert_yaxis()
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.legend(loc="lower right")
text = "Where the time of an update goes: TD3+BC on Hopper as it is written, by Python's profiler. "
figures.save_figure(figure, "90_parts", parts.reset_index(), f"{text}{about}.", drawn_as)

# %%
share = table / table.sum()
share.loc["the profiler itself adds"] = table.sum() / whole - 1
share.map("{:.1%}".format).rename_axis(index=None, columns=None)

# %% [markdown]
# *Read.* Our guess was too high: in float32 products take only about half of the profile. The rest is mostly bias,
# ReLU, the last layer (a weighted sum rather than a product), and the losses as they are written in `td3`. bfloat16
# makes only the products cheaper and adds casts, so there the rest takes a larger share. The profiler adds a cost to
# each call, so it exaggerates the rest. This profile already includes the backward pass that section 4 derives by hand.
# Two more ways reduce the rest, and neither changes an equation: a graph, and arithmetic without tiny numbers.
#
# **A graph.** An update is the same sequence of operations each time, on tensors of the same shapes. Python, autograd
# and the allocator need to produce that sequence only once. So we run a stretch of updates once as it is written, up to
# and including a step of the actor. Below autograd, a recorder lists the operations that torch executes. From then on
# we replay this list in fixed memory. On a GPU that is a [CUDA
# graph](https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). On the CPU torch has no such graph, so we
# wrote our own, one page of code.

# %%
show(graphs.captured, graphs.cpu_graph)

# %% [markdown]
# *Check by hand.* We capture a small graph, the mean square of a product and its gradient, and replay it on another
# vector.

# %%
vector, weight = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0], requires_grad=True)
gradient = torch.zeros(2)


def small():
    """Sets `gradient` to that of the mean of (w x)^2."""
    gradient.copy_(torch.autograd.grad((weight * vector).square().mean(), weight)[0])


replay = graphs.cpu_graph(small)
vector.copy_(torch.tensor([5.0, -1.0]))
replay()
assert torch.equal(gradient, weight.detach() * vector**2), "2 w x^2 / 2, of the new vector"
with graphs._Recorder() as recorder:
    small()
with torch.no_grad():
    kept_calls = len(list(graphs._compile(recorder.operations)))
text = f"{kept_calls} of {len(recorder.operations)} recorded operations compute"
print(text + ", the others describe memory or make constants")

# %%
gains = pd.DataFrame(
    {"as written (µs)": whole, "as a graph (µs)": replayed, "times as fast": whole / replayed}
)
gains.round(2)

# %% [markdown]
# *Read.* The results are the same to the last bit, because the graph runs the same operations in the same order. A test
# checks this for every algorithm, population and precision, and each capture on the CPU checks it again before its
# first replay is used.
#
# **Numbers that are too small.** A hidden unit that is never active has no gradient. Its first moment in Adam shrinks
# by a tenth a step. After some 800 steps the moment is below $10^{-38}$, where a float32 loses precision. It stays
# there, because the smallest such number times 0.9 rounds to itself. Processors are slow at arithmetic with these
# *subnormal* numbers. Subnormal moments make no difference to the weights: a step of Adam divides such a moment by at
# least $10^{-8}$, and the result is still far too small to change a weight. So `engine.prepare` tells the processor to
# treat them as zero.

# %%
size = {False: "of ordinary size", True: "below 1e-38"}
way = {True: "kept, as IEEE 754 says (µs)", False: "taken for zero (µs)"}
moments = measured["moments"]
first, then = (moments["moments"] < 1e-38).map(size), moments["kept"].map(way)
moments = moments.assign(first=first, then=then).pivot(
    index="first", columns="then", values="microseconds"
)
moments[list(way.values())].rename_axis(index="first moments", columns=None).round(0)

# %% [markdown]
# *Read.* A step of Adam on Hopper's critics is several times slower when all first moments are that small. This is not
# a rare case. In one run of ours, after the first 50,000 steps of SAC on Hopper, 70 % of the actor's first moments and
# 46 % of the critics' were below $10^{-38}$ (run `python -m mbaug collect hopper --to 50000` and count the zeros of
# `actor_moments.first` in its checkpoint). Benchmarks on random numbers, like the others here, do not show this effect.
#
# ## 4. The backward pass, by hand
#
# *Ask.* Autograd computes gradients that no update uses. Can we derive the perceptron's backward pass ourselves, and
# compute only the gradients that we need? The losses stay as they are written. The layers are
# $h_l = \mathrm{relu}(h_{l-1} W_l + b_l)$, and the chain rule goes from the last one to the first:
#
# $$ \delta_l = \big(\delta_{l+1} W_{l+1}^\top\big) \odot 1(h_l > 0), \quad
# \nabla_{W_l} = h_{l-1}^\top \delta_l, \quad \nabla_{b_l} = \textstyle\sum_{\text{rows}} \delta_l $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $h_{l-1}$ | `activations`, the input of layer $l$ | `[networks, rows, inputs]` | none |
# | $\delta_l$ | `gradient`, by $h_{l-1} W_l + b_l$, given for the last layer | `[networks, rows, outputs]` | that of the loss |
# | $\nabla_{W_l}, \nabla_{b_l}$ | `weight_gradient`, `bias_gradient` | those of $W_l$, $b_l$ | that of the loss |
# | $W_l, b_l$ | `layers` | `[networks, inputs, outputs]`, `[networks, 1, outputs]` | none |
# | $1(\cdot)$ | 1 if true, else 0 | as $h_l$ | none |
#
# Here is the backward pass of the [class](../mbaug/engine/perceptron.py) that does this. Half of its lines are special
# cases for the last layer and for products in bfloat16.

# %%
show(perceptron._Perceptron.backward)

# %% [markdown]
# *Check by hand.* For one critic and three rows we compare our gradient with autograd's, and with the chain rule in
# NumPy.

# %%
one = networks.perceptron((2, 4, 1), [generator], networks.Arithmetic(precision="float64"))
x = torch.tensor([[[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]]], dtype=torch.float64)
outputs = [call(x, one.flat, one.layers) for call in (perceptron.forward, networks.plain_forward)]
ours, autograds = (torch.autograd.grad(each.sum(), one.flat)[0] for each in outputs)
(weight, bias), (last, _) = [[part[0].numpy() for part in layer] for layer in one.layers]
delta = (x[0].numpy() @ weight + bias > 0) * last[:, 0]  # only where ReLU lets it through
by_hand = x[0].numpy().T @ delta
assert torch.allclose(ours, autograds, rtol=0, atol=1e-12), "our backward pass is autograd's"
assert np.allclose(ours[: by_hand.size].view(2, 4), by_hand), "and the chain rule's"

# %% [markdown]
# ## 5. Why threads hurt
#
# *Ask.* By default torch uses all cores. Is an update nearly twice as fast on two cores? It may be if nothing else runs.
# But when two threads share a product, each waits for the other at the end of the product, and a waiting thread spins.
# If another process occupies one of the cores, one thread is suspended. The other spins until the scheduler resumes it:
#
# $$ \frac1{u_2} = \frac1{2 u_1} + N\,w $$
#
# | symbol | in code | value | unit |
# |---|---|---|---|
# | $u_1, u_2$ | `updates_per_second` | measured | updates a second with one and two threads |
# | $N$ | `products` | at least one wait for each product, counted below | waits per update |
# | $w$ | `wait` | from the equation | seconds per wait, below in milliseconds |

# %%
pace = measured["threads"].set_index(["beside", "threads"])
found = pace["updates_per_second"].unstack("threads")
figure, axis = plt.subplots(figsize=(8, 3.4))
for number, threads in enumerate(found):
    ends = pace.xs(threads, level="threads").loc[found.index]
    middle, place = ends["updates_per_second"], np.arange(len(found)) + 0.4 * number
    look = {
        "label": "one thread" if threads == 1 else "two threads",
        "color": ["#0072B2", "#56B4E9"][number],
    }
    axis.barh(place, middle, 0.36, xerr=reach(ends), **look)
axis.set(yticks=np.arange(len(found)) + 0.2, yticklabels=[f"beside {name}" for name in found.index])
axis.set(xlabel="updates a second of one training process, Hopper, float32")
axis.legend(loc="lower right")
text = "One training process with one thread and with two, alone and beside one other process. "
figures.save_figure(figure, "90_threads", pace.reset_index(), f"{text}{about}.", drawn_as)

# %%
critics, actor = (3 + 2) + 2 + (2 + 1), (3 + 2) + (2 + 3 + 2)  # products, forth and back
products = critics + actor / 2  # the actor's, half as often
wait = 1000 * (1 / found[2] - 1 / (2 * found[1])) / products
columns = {"one thread (1/s)": found[1], "two threads (1/s)": found[2], "a wait (ms)": wait}
pd.DataFrame(columns).round(2)

# %% [markdown]
# *Read.* Alone, two threads are faster than one, but less than twice as fast. Beside another process they are slower
# than one thread: there a wait takes many times as long as alone. (A part of this wait is the other process's fair
# share of a core. The differences between the bars of one thread are noise.) So we use one thread for each process and
# one process for each core: `engine.prepare` sets the threads, `mbaug record` starts the processes.

# %%
show(engine.prepare)

# %% [markdown]
# The length of a wait depends on the machine. The table has the updates a second beside a busy loop, on every processor
# that we measured:

# %%
found = everywhere("threads").query("beside == 'a busy loop'")
found = found.pivot(index="cpu", columns="threads", values="updates_per_second")
found = found.rename(columns={1: "one thread", 2: "two threads"}).round(1)
found.rename_axis(index=None, columns=None)

# %% [markdown]
# ## 6. What do we gain by training several agents in one process?
#
# *Ask.* Every network here has a leading axis P, so that the *seeds* of a study (its repetitions) can train side by
# side, with one product for all. A GPU is mostly idle with one agent, and a population fills it. On a CPU the products
# are the limit, and there are P times as many operations. So we expect neither gain nor loss, and memory that grows
# linearly.

# %%
crowd = measured["populations"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
for precision, some in crowd.groupby("precision", sort=False):
    look = {"color": COLOURS[precision], "label": precision}
    ends = some["updates_per_second_low"], some["updates_per_second_high"]
    left.fill_between(some["population"], *ends, alpha=0.2, **look)
    left.plot(some["population"], some["updates_per_second"], "o-", color=COLOURS[precision])
    right.plot(some["population"], some["peak_megabytes"], "o-", **look)
single = crowd[crowd["precision"] == "float32"]
held = (single["learner_bytes"] + single["table_bytes"]) / 1e6
right.plot(single["population"], held, ":", color="black", label="parameters, moments and data")
left.set(xscale="log", xticks=some["population"], xticklabels=some["population"], ylim=(0, None))
left.set(xlabel="agents side by side", ylabel="updates a second, all agents")
right.set(ylim=(0, None), xlabel="agents side by side", ylabel="peak memory of the process (MB)")
left.minorticks_off()
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
text = "Updates a second and memory by population. Each point is a process of its own. "
figures.save_figure(figure, "90_population", crowd, f"{text}{about}.", drawn_as)


# %%
def straightness(x, y):
    """Returns the slope from end to end, and how far the others are from that line, as a share."""
    slope = (y.iloc[-1] - y.iloc[0]) / (x.iloc[-1] - x.iloc[0])
    off = (y - y.iloc[0] - slope * (x - x.iloc[0])).abs().max() / y.iloc[-1]
    return slope, off


more, off = straightness(single["population"], single["peak_megabytes"])
memory = {"one agent (MB)": single["peak_megabytes"].iloc[0], "each further one (MB)": more}
memory |= {
    "parameters, moments, data of one agent (MB)": held.iloc[0],
    "off a straight line (%)": 100 * off,
}
pd.Series(memory).round(1).to_frame("float32").T

# %%
sections = {"here": crowd, "first figure": measured["updates"].query("task == 'hopper'")}
paces = {
    name: rows.pivot(index="population", columns="precision", values="updates_per_second")
    for name, rows in sections.items()
}
pace = pd.concat({name: each / each.iloc[0] for name, each in paces.items()}, axis=1).sort_index()
pace = pace.rename_axis(columns=["measured", "updates, relative to one agent"])
pace.map("{:.2f}".format).replace("nan", "–")

# %% [markdown]
# *Read.* Below 1, a population makes fewer updates in all than one agent alone. The table has two measurements on one
# machine: this one, and that of the first figure. At four agents they differ by a few percent, but in an earlier
# recording on the same machine by a quarter. So a gain or a loss of that size may be noise. We only conclude that a
# population gains little on a CPU, and that many agents can lose. We suppose that the intermediate results of many
# agents no longer fit into the processor's cache. To train twice as many agents, use two processes on two cores. The
# memory of one agent is nearly all Python and torch. Each further agent mostly adds the intermediate results of a
# stretch, which are all in memory at once during the capture. So on a CPU the axis is useful only for evaluating in
# lockstep, with one call for all.
#
# *Ask.* And on a GPU? There an update of one agent is hundreds of small kernels, each launched by Python. We capture the
# stretch of section 3 as a CUDA graph and launch it as a whole. So we expect that the graph gains much for one agent and
# little for many, whose kernels are larger. We also expect that a few agents cost hardly more time than one.

# %%
show(training.updater, graphs.cuda_graph)


# %%
def on_gpu(document):
    """Returns updates and steps a second, of all agents, and the GPU's memory, by population."""
    tables = {name: results.table(rows) for name, rows in document["sections"].items()}
    found = tables["captures"].pivot(index="population", columns="run", values="updates_per_second")
    steps = tables["acting"].query("algorithm == 'TD3' and precision == 'float32'")
    peaks = tables["populations"].query("precision == 'float32'")
    agents, memory = found.index.to_series(), peaks.set_index("population")["peak_megabytes"]
    columns = {
        "times as fast": found["with a graph"] / found["without"],
        "time": agents * found["with a graph"].iloc[0] / found["with a graph"],
        "cores": found["with a graph"] / hopper.loc["float32", "updates_per_second"],
        "steps a second": steps.set_index("population")["steps_per_second"],
        "memory (MB)": memory,
        "each further (MB)": memory.diff() / agents.diff(),
    }
    found = found[["without", "with a graph"]].assign(**columns).rename_axis(columns=None)
    return pd.concat({document["provenance"]["device"]: found}, names=["GPU"])


gpus = [on_gpu(each) for each in results.load() if "device" in each["provenance"]]
pd.concat(gpus).round(1).astype(object).fillna("–") if gpus else "no GPU was measured"

# %% [markdown]
# *Read.* All rows are Hopper in float32, and all rates count the updates or steps of all agents. *Cores* says how many
# cores of the first figure's machine make as many updates. *Steps a second* is online TD3, one update after each step,
# where simulators and exploring policies run on one core, one after the other. *Time* is that of an update of all
# agents, relative to an update of one. Our expectations hold: the graph matters most for one agent, and a few agents
# take little more time than one. From twenty to eighty agents the rate rises far less than fourfold, so about twenty
# agents nearly fill this GPU. The last column has the memory that each further agent takes. Most of the memory does not
# depend on the population. We suppose that it is cuBLAS's workspaces for the many captures of this measurement.
#
# The torch of this measurement is older than the version that we lock. On the GPU, too, a replay gives the same bits as
# the code as written, and in float64 training on a GPU agrees with training on the CPU. Tests check both wherever there
# is a GPU. An interrupted run continues on a GPU with the same rows. All runs that we compare are recorded on CPUs. To
# measure your GPU, run `python -m benchmarks --device cuda --record`. To train on it, give `record` the options
# `--device cuda --population 20`: we measured one process with many agents.

# %% [markdown]
# ## 7. The cost of a larger dataset
#
# *Ask.* Is an update slower with a million rows than with a thousand? It draws 256 rows either way, but from 112 MB
# instead of 112 KB, so they come from memory, not from a cache. Gathering the rows should take longer, but the update
# as a whole should hardly be slower.

# %%
sizes = measured["datasets"]
precision, millions = sizes["precision"].iloc[0], sizes["rows"] / 1e6
look = {"color": COLOURS[precision]}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
ends = sizes["updates_per_second_low"], sizes["updates_per_second_high"]
left.fill_between(sizes["rows"], *ends, alpha=0.2, **look)
left.plot(sizes["rows"], sizes["updates_per_second"], "o-", **look)
left.set(xscale="log", ylim=(0, None), xlabel="rows of the dataset", ylabel="updates a second")
right.plot(millions, sizes["peak_megabytes"], "o-", **look, label="peak of the process")
right.plot(millions, sizes["table_bytes"] / 1e6, ":", color="black", label="the packed rows")
right.set(ylim=(0, None), xlabel="rows of the dataset (millions)", ylabel="memory (MB)")
right.legend(loc="center left")
text = f"Updates a second in {precision}, and memory, by the size of the dataset. "
figures.save_figure(figure, "90_dataset", sizes, f"{text}{about}.", drawn_as)

# %%
paces = sizes.set_index("rows")[["gather_microseconds", "updates_per_second"]]
share = paces["gather_microseconds"] * paces["updates_per_second"] / 1e6
paces = paces.set_axis(["gather (µs)", "updates a second"], axis=1).round().astype(int)
paces.assign(**{"gather, of an update": share.map("{:.1%}".format)})

# %%
slope, off = straightness(sizes["rows"], sizes["peak_megabytes"])
row_bytes = sizes["table_bytes"].iloc[0] / sizes["rows"].iloc[0]
print(f"memory: {slope * 1e6:.0f} bytes a row, {row_bytes:.0f} packed")
print(f"off a straight line by {off:.0%} at most")

# %% [markdown]
# *Read.* The gather takes longer with more rows, but it stays a tiny part of an update. So the size of the
# dataset hardly matters for speed.
#
# ## 8. Acting, and the world model
#
# Two costs are left: environment steps online, and the [world model](02_world_model.ipynb). The table shows environment
# steps a second with one update after each.

# %%
acting = measured.get("acting", pd.DataFrame())
acting = acting.reindex(columns=["algorithm", "precision", "steps_per_second"])
acting = acting.pivot(index="algorithm", columns="precision", values="steps_per_second").round()
acting.rename_axis(columns="steps a second")

# %%
full, plan, rule = settings.WorldModel(), settings.Pretraining(), settings.Augmentation()
columns = ["precision", "epoch_seconds", "imagine_seconds"]
costs = measured.get("model", pd.DataFrame(columns=columns)).set_index("precision")
tables = plan.updates // rule.redraw_interval * rule.table_samples
seconds = pd.DataFrame(
    {
        "fit of 300 epochs (s)": full.epochs * costs["epoch_seconds"],
        "all imagined tables (s)": tables * costs["imagine_seconds"],
        "pre-training (s)": plan.updates / hopper["updates_per_second"].reindex(costs.index),
    }
)
seconds.round(1)

# %% [markdown]
# *Ask.* What limits the speed of the fit? We let torch's counter count the operations of its second epoch.

# %%
data = transitions.draw(read.load("hopper-medium-replay"), plan.transitions, seed=0)[0]
fit = world_model.epochs(full, data, 0, arithmetic=speed.FAST)
next(fit)  # captures its steps, and so does them several times
with FlopCounterMode(display=False) as counter:
    next(fit)
work_of_fit = full.epochs * counter.get_total_flops() / 1e9
columns = {"products alone (s)": work_of_fit / best, "fit (s)": full.epochs * costs["epoch_seconds"]}
bound = pd.DataFrame(columns).dropna()
bound["share"] = (bound["products alone (s)"] / bound["fit (s)"]).map("{:.0%}".format)
as_many = work_of_fit / work["GFLOP"].sum()
print(f"a fit is {work_of_fit / 1e3:.0f} TFLOP, as much as {as_many:,.0f} updates")
bound.round()

# %% [markdown]
# *Read.* Most operations of a fit are products of 500 units by 500, and most others are the transition's, of 300 by
# 600. At the rate of section 2 these products would take only the share of the time that the table shows. The rest is
# activations, noise and Adam, on layers of 4,096 rows, 8 MB each. The imagined tables are a small part of the cost of
# pre-training.
#
# ## 9. Does an agent learn the same in bfloat16?
#
# *Ask.* A cheaper product is only useful if the trained agent is as good. So we train TD3 from scratch twice with each
# seed, for 100,000 interactions, once in each precision. No other setting differs. We ask whether the difference of the
# scores is zero:
#
# $$ \Delta_s = S_s^{\text{bfloat16}} - S_s^{\text{float32}} $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $S_s$ | `final_score`, `mean_score` | one per run | D4RL-normalised score, after and over 100,000 interactions |
# | $\Delta_s$ | `differences` | one per seed $s$ and task | score |
#
# We expect a wide interval that contains zero. Rounding changes the policy's first action a little, and the next state
# a little more. After a few hundred steps the two runs have no more in common than two seeds have.

# %%
show(statistics.paired_differences)

# %%
study, names = studies.find("precision"), {"td3": "float32", "td3_bfloat16": "bfloat16"}
runs = records.load_runs(records.root(), study.runs())
paired = statistics.evaluations(runs).replace({"arm": names})
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
parts = []
for axis, name in zip(axes, (name for name in tasks.TASKS if name in study.tasks), strict=True):
    wide = paired[paired["task"] == name].pivot(index="steps", columns=["arm", "seed"], values="score")
    delta = wide["bfloat16"] - wide["float32"]
    axis.plot(delta.index / 1000, delta, color="#999999", linewidth=0.8)
    axis.plot(delta.index / 1000, delta.mean(axis=1), color="#000000")
    axis.axhline(0, color="#333333", linewidth=0.8)
    axis.set_title(tasks.find(name).title)
    parts.append(delta.stack().rename("difference").reset_index().assign(task=name))
axes[0].set_ylabel("score in bfloat16 − score in float32")
figure.supxlabel(figures.X_LABELS["finetune"], fontsize=10)
metadata = records.load_metadata(records.root(), study.runs())
text = "TD3 from scratch: what bfloat16 changes. A grey line is one seed, the black line their mean."
caption = figures.caption(text, paired, metadata, "")
figures.save_figure(figure, "90_precision", pd.concat(parts), caption, profile)

# %%
rows = {}
for name, some in paired.groupby("task"):
    for measure in (statistics.final_score, statistics.mean_score):
        pairs = statistics.paired_differences(measure(some), "bfloat16", "float32")
        rows[name, measure.__name__] = statistics.interval(pairs)
found = pd.DataFrame(rows, index=statistics.Interval._fields).T
named = {"value": "bfloat16 − float32", "n_seeds": "seeds"}
looks.titled(found.drop(columns="p").astype({"n_seeds": int}).round(1)).rename(columns=named)

# %% tags=["nbval-check-output"]
cpus = {
    (run.task, run.seed, names[run.arm]): each["provenance"]["cpu"] for run, each in metadata.items()
}
processors = pd.Series(cpus).unstack()
apart = (processors["float32"] != processors["bfloat16"]).sum()
zero = (found["low"] <= 0) & (found["high"] >= 0)
widest = np.maximum(-found["low"], found["high"]).max()
near = (found["low"] >= -5) & (found["high"] <= 5)
text = f"zero lies in {zero.sum()} of {len(zero)} intervals, "
print(text + f"and the farthest end lies {widest:.0f} points from zero")
print(f"{near.sum()} of {len(near)} intervals lie within 5 points of zero")
print(
    f"{apart} of {len(processors)} pairs were trained on two processors, whose roundings differ as well"
)

# %% [markdown]
# *Read.* An interval without zero would show a difference. An interval with zero only shows that a difference is not
# larger than the ends of the interval, and these are far apart. The float32 runs are the runs of the baselines.
#
# We fixed a rule before the runs: we may use bfloat16 for recorded runs if every interval contains zero. The rule is
# weak: the noisier the runs, the easier they pass it. A better one would require every interval to lie within a few
# points of zero, which the second line counts. Each *arm* (one way to train an agent) has the setting `precision`, and
# each record names it. We still record in float32 for three reasons: we compare runs within a study, most studies were
# begun in float32, and few processors can multiply bfloat16.
#
# ## Where we differ from the paper
#
# As far as we know, neither the paper nor its first author's code says anything about time. Our updates do the same
# arithmetic as theirs. Only the order of random draws differs: we draw batches and noise of 50 updates at once, each
# agent has streams of its own, and imagined next states come from a table ([chapter 03](03_augmentation.ipynb)). With
# bfloat16 only the wide products are in bfloat16. Sums, the last layer and Adam stay in float32.
#
# ## Try it
#
# 1. In the last cell of section 1, replace `td3.TD3()` by `td3.TD3(hidden=(512, 512))`. By which factor does the number
#    of operations grow, and why not quite four?
# 2. In a new cell, run `[speed.product_rate("float32", 256, 256, batch=rows) / 1e9 for rows in (64, 256)]`, in GFLOP/s. Do
#    smaller batches run at the same rate?
# 3. In a shell, run `OMP_NUM_THREADS=2 .venv/bin/python -m mbaug record hopper --workers 1 --profile smoke`. Which
#    warning do you get, and why?
#
# ## Questions
#
# <details><summary>Why does a hand-written backward pass help, if autograd computes the same?</summary>
#
# Autograd computes more: gradients of weights that no update uses, buffers for each of them, and a dozen small operations
# between two products. Each is cheap, but beside products of a few hundred microseconds they add up.
#
# </details>
#
# <details><summary>Why not give the second core to the same agent?</summary>
#
# A product of 256 by 256 takes a fraction of a millisecond, and each shared product ends with a wait. Two agents on two
# cores never wait for each other. Sharing is only worth it if a product takes much longer than a wait. The world model's
# batches of 4,096 rows come nearest to that.
#
# </details>
#
# <details><summary>bfloat16 keeps 8 bits. Why does an agent still learn?</summary>
#
# Only the factors of products are rounded to 8 bits. Sums of products are kept in 24 bits, and so are the parameters,
# because Adam's steps would be lost in 8 bits. A gradient is then slightly wrong, and the random choice of 256 rows
# changes it far more. This argument does not show that scores agree: the paired runs of section 9 test that.
#
# </details>
#
# **Next:** back to [00 · Overview](00_overview.ipynb).
