# %% [markdown]
# # 90 · Engine
#
# **How fast is an update, against what, and what is the limit?**
#
# <!-- answer -->
# On one core of the fastest processor measured (Intel(R) Xeon(R) Processor, family 6, model 167), an agent on Hopper makes this
# many updates of TD3+BC a second: 232 in float32 and 313 in bfloat16. That is 54% and 13% of what the matrix products alone
# allow. Of TD3 without BC we make 223 in float32, and plain torch makes 153, Stable-Baselines3 makes 114 and SBX makes 214.
# <!-- /answer -->
#
# | | |
# |---|---|
# | needs | `data/benchmarks/*.json`, one for each processor measured (if none, it measures briefly), and `data/runs` |
# | gives | figures `90_updates`, `90_parts`, `90_threads`, `90_population`, `90_dataset`, `90_precision`, and tables |
# | minutes on one core | paper: below 1 · smoke and quick, which measure live: about 1.5 |
#
# Why ask? A study of this paper is tens of millions of updates. At a hundred a second that is days on a laptop, and what
# takes days nobody repeats.
#
# Nearly all the arithmetic of an update is a dozen matrix products, so the processor's products are the limit. The rest is
# hundreds of small calls. Where bfloat16 makes products cheap, these calls take longer than the products do. So the engine
# does them once and then replays them.

# %% tags=["parameters"]
profile = "paper"  # "smoke" (seconds) . "quick" (a laptop, minutes) . "paper" (the recorded runs)
retrain = False  # False: draw from data/benchmarks; True: measure now, briefly

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results, speed
from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.engine import graphs, perceptron
from mbaug.experiments import records, studies
from mbaug.method import networks, settings, td3, training, transitions, world_model
from mbaug.reporting import figures, statistics
from mbaug.reporting.figures import show

engine.prepare()
figures.style()

# %%
kept = [] if retrain else [each for each in results.load() if "device" not in each["provenance"]]
document = kept[0] if kept else results.measure(speed.TINY, "cpu", speed.LIVE)
measured = {name: results.table(rows) for name, rows in document["sections"].items()}
drawn_as = profile if kept or retrain else "smoke"
made = document["provenance"]
about = f"{made['cpu']}, {made['precision']}, torch {made['torch']}. "
about += f"Median and range of {document['repeats']} measurements"
COLOURS = {"float32": "#0072B2", "bfloat16": "#D55E00"}
print(f"recorded at commit {made['commit'][:9]}" if kept else "measured now: no evidence")
print(about)

# %%
rows = measured["updates"]
alone = rows[rows["population"] == 1]
hopper = alone[alone["task"] == "hopper"].set_index("precision")
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), width_ratios=(3, 2))
for number, (precision, some) in enumerate(alone.groupby("precision", sort=False)):
    place = np.arange(len(some)) + 0.4 * number
    middle = some["updates_per_second"]
    spread = [middle - some["updates_per_second_low"], some["updates_per_second_high"] - middle]
    left.bar(place, middle, 0.36, yerr=spread, color=COLOURS[precision], label=precision)
    bound = middle / some["fraction_of_limit"]
    limits = left.hlines(bound, place - 0.18, place + 0.18, color="black")
left.set(xticks=np.arange(len(some)), ylabel="updates a second, one agent, one core", title="TD3+BC")
titles = [[tasks.find(name).title for name in each.split(", ")] for each in some["task"]]
left.set_xticklabels(map("\n".join, titles))
limits.set_label("limit of the products")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
peers = measured["peers"].assign(
    who=lambda t: t["by"].str.replace(r" [0-9.]+$", "", regex=True) + "\n" + t["precision"]
)
for number, (algorithm, some) in enumerate(peers.groupby("algorithm", sort=False)):
    look = {"label": algorithm, "color": ["#0072B2", "#E69F00"][number]}
    right.plot(some["updates_per_second"], some["who"], "os"[number], **look)
right.set(xlabel="updates a second, Hopper", xlim=(0, None), title="Beside a peer")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
text = (
    f"Updates a second of TD3+BC, against the limit of the products. TD3 and SAC beside a peer. {about}."
)
frame = pd.concat([rows, peers.drop(columns="who")]).assign(cpu=made["cpu"])
path = figures.save_figure(figure, "90_updates", frame, text, drawn_as)

# %% [markdown]
# *Read.* Left, one agent on one core. The black line is the limit that its matrix products set (section 2). Right, plain
# TD3 and SAC beside [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3), [SBX](https://github.com/araffin/sbx)
# (JAX) and the same method on plain torch, as far as they were measured. All draw their batches and noise
# inside what is timed, with 2 x 256 units and batches of 256.

# %%
ours = hopper[["updates_per_second", "updates_per_second_low", "fraction_of_limit"]]
ours = ours.set_axis(["updates a second", "the slowest", "share of the limit"], axis=1)
ours["minutes for 200,000 updates"] = 200_000 / ours["updates a second"] / 60
ours.round(2)

# %% [markdown]
# How many times as fast are we? Each peer is one column.

# %%
turns = {
    True: "They take turns, each in a process of its own, on one core.",
    False: "They ran in one process that our engine had prepared, which flatters our ratios.",
}
print(turns[document["format"] > 1])
faster = results.pairs(document["sections"]["peers"])
faster = faster.pivot(index=["algorithm", "precision"], columns="by_peer", values="times")
faster.rename_axis(columns="times as fast as").round(2)

# %% [markdown]
# The table below has every processor that was measured, one agent on Hopper. Where updates are not replayed, the
# measurement is older than the graph of section 3.


# %%
def everywhere(section):
    """Returns the rows of a section for every processor that was measured."""
    each = kept or [document]
    rows = [results.table(one["sections"][section]).assign(cpu=one["provenance"]["cpu"]) for one in each]
    return pd.concat(rows)


found = everywhere("updates").query("population == 1 and task == 'hopper'")
found = found.pivot(index="cpu", columns="precision", values="updates_per_second").round()
replays = everywhere("parts").groupby("cpu")["part"].agg(lambda parts: "whole, as a graph" in set(parts))
found.assign(replayed=replays.map({True: "yes", False: "no"})).rename_axis(index=None)

# %% [markdown]
# ## 1. What an update computes
#
# *Ask.* How much arithmetic is one update of [TD3+BC](https://arxiv.org/abs/2106.06860)? We count the products alone and
# expect them to be nearly all. A network of 2 x 256 units has one large product a pass, 256 by 256, and everything else is
# thin.
#
# A product of a batch with a weight, $[B, n] \cdot [n, m]$, is $2 B n m$ operations: a multiplication and an addition each.
# Going back through it takes as much for the gradient of the weight, and as much again for that of its input, where
# somebody needs them. Of the first layer's input nobody does:
#
# $$ C = 2B \Big[ \underbrace{\pi + 2q}_{\text{target}} + \underbrace{2q + 2\,(q + \tilde q)}_{\text{critics}}
# + \tfrac1d \big( \underbrace{\pi + q + q}_{\text{through } Q_1} + \underbrace{\pi + \tilde \pi}_{\text{actor}} \big) \Big] $$
#
# | symbol | in code | value | unit |
# |---|---|---|---|
# | $B$, $d$ | `batch_size`, `policy_delay` | 256, 2 | rows, updates |
# | $\pi$, $q$ | `actor`, `critic` in `operations` | sum of $n m$ over the layers | products a row |
# | $\tilde \pi$, $\tilde q$ | `hidden_gradients`, for the critic | the same without the first layer | products a row |
# | $C$ | `operations` | below | floating-point operations an update |

# %%
show(speed.operations)

# %% [markdown]
# *Check by hand.* We count on Hopper, product by product. Torch's own counter then watches the networks run as
# `networks.plain_forward` states them, differentiated by autograd.

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
work = pd.DataFrame.from_dict(passes, orient="index", columns=["times", "products a row"])
work["GFLOP"] = 2 * 256 * work["times"] * work["products a row"] / 1e9
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
# *Read.* The state's dimensions hardly matter. That is why Ant, with 27, costs little more than Hopper, with 11. And what is
# *not* computed counts: the actor's step goes through the first critic but needs no gradient of its weights. Code that
# forgets this pays a pass more.
#
# ## 2. The limit
#
# *Ask.* How many operations a second can one core do? We let it multiply, and nothing else, at the shapes of an update
# ([`benchmarks/speed.py`](../benchmarks/speed.py), `product_rate`).
#
# $$ u_{\max} = \frac{R}{C} $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $R$ | `product_rate`, at 256 by 256 | one number a precision | floating-point operations a second |
# | $C$ | `operations` | one number a task | operations an update |
# | $u_{\max}$ | `limit` | one number a precision | updates a second |

# %%
rates = measured["products"]
best = rates[(rates["inputs"] == 256) & (rates["outputs"] == 256)].set_index("precision")["gflops"]
limit = best / work["GFLOP"].sum()
rates.rename(columns={"gflops": "GFLOP/s", "gflops_low": "lowest", "gflops_high": "highest"}).round(1)

# %%
limits = {"GFLOP/s at 256 by 256": best, "no update on Hopper is faster than (1/s)": limit}
pd.DataFrame(limits).round().astype(int)

# %% [markdown]
# *Read.* The thinnest product is limited by memory bandwidth, so it stays far below the wide one. A processor without
# bfloat16 products has no second row.
#
# ## 3. Where the time goes
#
# *Ask.* If products are nearly all of the arithmetic, are they nearly all of the time? We take Python's own profiler to the
# updates as `td3` writes them, draws of batches and noise included, and sort what it saw. We expect two thirds.

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
axis.set(yticks=np.arange(len(table)), yticklabels=table.index, xlabel="microseconds of an update")
axis.invert_yaxis()
axis.legend(loc="lower right")
text = "Where the time of an update of TD3+BC on Hopper goes as it is written, by Python's profiler. "
path = figures.save_figure(figure, "90_parts", parts.reset_index(), f"{text}{about}.", drawn_as)

# %%
share = table / table.sum()
share.loc["the profiler itself adds"] = table.sum() / whole - 1
share.map("{:.1%}".format).rename_axis(index=None, columns=None)

# %% [markdown]
# *Read.* What is not a product is mostly bias, ReLU and the last layer, which is a weighted sum rather than a product, and
# the losses as they are written in `td3`. bfloat16 makes the products alone cheaper and adds casts, so there the rest
# weighs more. The profiler, which charges each call, exaggerates it. Two things can be done about the rest, and neither
# touches an equation.
#
# **A graph.** An update is the same sequence of operations each time, on tensors of the same shapes. What Python, autograd
# and the allocator do to arrive at that sequence need be done only once. So a stretch of updates, up to where the actor
# moves, runs once as it is written. Below autograd a recorder writes down what torch was asked to do. From then on the list
# is played from fixed memory. On a GPU that is a [CUDA graph](https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).
# On the CPU torch has none, and ours is a page.

# %%
show(graphs.captured, graphs.cpu_graph)

# %% [markdown]
# *Check by hand.* A small one: the mean square of a product, and its gradient, captured and replayed on another vector.

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
print(
    f"{kept_calls} of {len(recorder.operations)} recorded operations compute, the others describe memory"
)

# %%
gains = pd.DataFrame(
    {"as written (us)": whole, "as a graph (us)": replayed, "times as fast": whole / replayed}
)
gains.round(2)

# %% [markdown]
# *Read.* The numbers that come out are the same to the last bit: the same operations, in the same order. A test holds every
# algorithm, population and precision to that. Each capture checks it, too, before its first replay is used.
#
# **Numbers that nobody needs.** A hidden unit that is never active has no gradient. Its first moment in Adam shrinks by a
# tenth a step. After some 800 steps it is below $10^{-38}$, where a float32 has no full precision left. There it stays,
# because the smallest such number times 0.9 rounds to itself. Processors do arithmetic with these *subnormal* numbers by a
# detour. A weight never notices: its step is such a moment over $10^{-8}$ at least. So `engine.prepare` has them taken for
# zero.

# %%
size = {False: "of ordinary size", True: "below 1e-38"}
way = {True: "kept, as IEEE 754 says (us)", False: "taken for zero (us)"}
moments = measured["moments"]
first, then = (moments["moments"] < 1e-38).map(size), moments["kept"].map(way)
moments = moments.assign(first=first, then=then).pivot(
    index="first", columns="then", values="microseconds"
)
moments[list(way.values())].rename_axis(index="first moments", columns=None).round(0)

# %% [markdown]
# *Read.* A step of Adam on Hopper's critics is many times slower where all first moments are that small. That is no rare
# case. After the first 50,000 steps of SAC on Hopper 70 % of the actor's first moments and 46 % of the critics' were below
# $10^{-38}$ (`python -m mbaug collect hopper --to 50000`, and in its checkpoint the zeros of `actor_moments.first`). No
# benchmark on random numbers, like the others here, shows it.
#
# ## 4. The backward pass, by hand
#
# *Ask.* Autograd computes gradients that nobody steps along. What if we derive the perceptron's backward pass ourselves,
# and compute only what is needed? The losses stay as they are written.

# %%
show(perceptron._Perceptron, networks.descend)

# %% [markdown]
# *Check by hand.* One critic, three rows: our gradient, autograd's, and NumPy's chain rule.

# %%
one = networks.perceptron((2, 4, 1), [generator], networks.Arithmetic(precision="float64"))
x = torch.tensor([[[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]]], dtype=torch.float64)
outputs = [call(x, one.flat, one.layers) for call in (perceptron.forward, networks.plain_forward)]
ours, autograds = (torch.autograd.grad(each.sum(), one.flat)[0] for each in outputs)
(weight, bias), (last, _) = [[part[0].numpy() for part in layer] for layer in one.layers]
passes = (x[0].numpy() @ weight + bias > 0) * last[
    :, 0
]  # what reaches a unit, where ReLU lets it through
by_hand = x[0].numpy().T @ passes
assert torch.allclose(ours, autograds, rtol=0, atol=1e-12), "our backward pass is autograd's"
assert np.allclose(ours[: by_hand.size].view(2, 4), by_hand), "and the chain rule's"

# %% [markdown]
# ## 5. Why threads hurt
#
# *Ask.* torch takes all cores by default. With two, should an update not be nearly twice as fast? Alone, perhaps. But every
# product that two threads share ends where each waits for the other, and it waits by spinning. If another process holds one
# of the cores, its thread is not there, and the other spins until the scheduler brings it back:
#
# $$ \frac1{u_2} = \frac1{2 u_1} + n\,w $$
#
# | symbol | in code | value | unit |
# |---|---|---|---|
# | $u_1, u_2$ | `updates_per_second` | measured | updates a second with one and two threads |
# | $n$ | `products` | at least one wait a product, counted below | waits an update |
# | $w$ | `wait` | what solves the equation | milliseconds a wait |

# %%
pace = measured["threads"].set_index(["beside", "threads"])
found = pace["updates_per_second"].unstack("threads")
figure, axis = plt.subplots(figsize=(8, 3.4))
for number, threads in enumerate(found):
    ends = pace.xs(threads, level="threads").loc[found.index]
    middle, place = ends["updates_per_second"], np.arange(len(found)) + 0.4 * number
    spread = [middle - ends["updates_per_second_low"], ends["updates_per_second_high"] - middle]
    look = {
        "label": "one thread" if threads == 1 else "two threads",
        "color": ["#0072B2", "#D55E00"][number],
    }
    axis.barh(place, middle, 0.36, xerr=spread, **look)
axis.set(yticks=np.arange(len(found)) + 0.2, yticklabels=[f"beside {name}" for name in found.index])
axis.set(xlabel="updates a second of one training process, Hopper, float32")
axis.legend(loc="lower right")
text = "One training process with one thread and with two, alone and beside one other process. "
path = figures.save_figure(figure, "90_threads", pace.reset_index(), f"{text}{about}.", drawn_as)

# %%
critics, actor = (3 + 2) + 2 + (2 + 1), (3 + 2) + (2 + 3 + 2)  # products, forth and back
products = critics + actor / 2  # the actor's, half as often
wait = 1000 * (1 / found[2] - 1 / (2 * found[1])) / products
columns = {"one thread (1/s)": found[1], "two threads (1/s)": found[2], "a wait (ms)": wait}
pd.DataFrame(columns).round(2)

# %% [markdown]
# *Read.* Beside another process a wait takes several times as long as alone. That is the scheduler's time, not arithmetic.
# Hence one thread a process, and a process for each core: `engine.prepare` sees to the first, `mbaug record` to the second.

# %%
show(engine.prepare)

# %% [markdown]
# How bad the wait is depends on the machine. These are updates a second beside a busy loop, on every processor that was
# measured:

# %%
found = everywhere("threads").query("beside == 'a busy loop'")
found = found.pivot(index="cpu", columns="threads", values="updates_per_second")
found = found.rename(columns={1: "one thread", 2: "two threads"}).round(1)
found.rename_axis(index=None, columns=None)

# %% [markdown]
# ## 6. What the population axis buys
#
# *Ask.* Every network here carries a leading axis P, so that a study's *seeds* (its repetitions) can train side by side, one
# product for all. On a GPU that fills a device that one agent leaves idle. On a CPU the products bind, and there are P
# times as many. So we expect nothing gained and nothing lost, and memory on a straight line.

# %%
crowd = measured["populations"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
for precision, some in crowd.groupby("precision", sort=False):
    look = {"color": COLOURS[precision], "label": precision}
    ends = some["updates_per_second_low"], some["updates_per_second_high"]
    left.fill_between(some["population"], *ends, alpha=0.2, **look)
    left.plot(some["population"], some["updates_per_second"], "o-", color=COLOURS[precision])
    right.plot(some["population"], some["peak_megabytes"], "o-", **look)
held = (crowd["learner_bytes"] + crowd["table_bytes"]) / 1e6
right.plot(crowd["population"], held, ":", color="black", label="parameters, moments and data")
left.set(xscale="log", xticks=some["population"], xticklabels=some["population"], ylim=(0, None))
left.set(xlabel="agents side by side", ylabel="updates a second, all agents")
right.set(ylim=(0, None), xlabel="agents side by side", ylabel="peak memory of the process (MB)")
left.minorticks_off()
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
text = "Updates a second and memory by population. Each point is a process of its own. "
path = figures.save_figure(figure, "90_population", crowd, f"{text}{about}.", drawn_as)


# %%
def straightness(x, y):
    """Returns the slope from end to end, and how far the others are from that line, as a share."""
    slope = (y.iloc[-1] - y.iloc[0]) / (x.iloc[-1] - x.iloc[0])
    off = (y - y.iloc[0] - slope * (x - x.iloc[0])).abs().max() / y.iloc[-1]
    return slope, off


single = crowd[crowd["precision"] == "float32"]
more, off = straightness(single["population"], single["peak_megabytes"])
memory = {"one agent (MB)": single["peak_megabytes"].iloc[0], "each further one (MB)": more}
memory |= {"of it parameters, moments, data (MB)": held.iloc[0], "off a straight line (%)": 100 * off}
pd.Series(memory).round(1).to_frame("float32").T

# %%
pace = crowd.pivot(index="population", columns="precision", values="updates_per_second")
(pace / pace.iloc[0]).round(2).rename_axis(columns="updates, beside those of one agent")

# %% [markdown]
# *Read.* Where the products bind, the axis buys next to nothing. Where they are cheap, a few agents share what stands
# between them. With many the gain is gone. Two processes on two cores are the way to twice as many. The memory of one agent
# is nearly all Python and torch. That of a further one is mostly every intermediate result of a stretch, which are there
# together once, at its capture.
#
# What it is for, then, is lockstep evaluation in one call, and a GPU. There an update of one agent is hundreds of small
# kernels, each launched by Python. So the stretch that section 3 captured for the CPU is captured as a CUDA graph there, and
# launched whole. **Not measured: no GPU was at hand.** The code around the capture is what runs on the CPU. If you have a
# GPU, `python -m benchmarks --device cuda` measures it, and `--record` keeps it.

# %%
show(training.updater, graphs.cuda_graph)

# %% [markdown]
# ## 7. What data cost
#
# *Ask.* A million rows instead of a thousand: does an update notice? It draws 256 of them either way, but from 112 MB
# instead of 112 KB, so they come from memory, not from a cache. That should show in the gather, and hardly in the whole.

# %%
sizes = measured["datasets"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
ends = sizes["updates_per_second_low"], sizes["updates_per_second_high"]
left.fill_between(sizes["rows"], *ends, alpha=0.2)
left.plot(sizes["rows"], sizes["updates_per_second"], "o-", color="#0072B2", label="updates a second")
look = {"color": "#E69F00", "label": "gather, microseconds an update"}
left.plot(sizes["rows"], sizes["gather_microseconds"], "s--", **look)
left.set(xscale="log", ylim=(0, None), xlabel="rows of the dataset")
left.set_ylabel("updates a second (●), microseconds (■)")
millions = sizes["rows"] / 1e6
right.plot(millions, sizes["peak_megabytes"], "o-", color="#0072B2", label="peak of the process")
right.plot(millions, sizes["table_bytes"] / 1e6, ":", color="black", label="the packed rows")
right.set(ylim=(0, None), xlabel="rows of the dataset (millions)", ylabel="memory (MB)")
for axis in (left, right):
    axis.legend(loc="center left")
text = "Updates a second, the time to gather their batches, and memory, by the size of the dataset. "
path = figures.save_figure(figure, "90_dataset", sizes, f"{text}{about}.", drawn_as)

# %%
paces = sizes.set_index("rows")[["gather_microseconds", "updates_per_second"]]
share = paces["gather_microseconds"] * paces["updates_per_second"] / 1e6
paces = paces.set_axis(["gather (us)", "updates a second"], axis=1).round().astype(int)
paces.assign(**{"gather, of an update": share.map("{:.1%}".format)})

# %%
slope, off = straightness(sizes["rows"], sizes["peak_megabytes"])
row_bytes = sizes["table_bytes"].iloc[0] / sizes["rows"].iloc[0]
print(f"memory: {slope * 1e6:.0f} bytes a row, {row_bytes:.0f} packed")
print(f"off a straight line by {off:.0%} at most")

# %% [markdown]
# *Read.* The speed is no straight line and need not be one. Rows in a cache come at once, rows in memory do not, and beyond
# that size no row costs more than another.
#
# ## 8. Acting, and the world model
#
# Two costs are left: environment steps online, and the [world model](02_world_model.ipynb). They are measured with the
# record alone.

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
# *Ask.* What bounds the fit? Torch's counter watches its second epoch.

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
# *Read.* Nearly all of a fit is products of 500 units by 500. The rest is activations, noise and Adam, on layers of 4,096
# rows, 8 MB each. The imagined tables cost a small part of pre-training.
#
# ## 9. Does an agent learn the same in bfloat16?
#
# *Ask.* A cheaper product is worth having only if the agent that comes of it is as good. So TD3 from scratch trains twice
# with each seed, for 100,000 interactions, once in either precision. No other setting differs. We hold the difference of the
# scores against zero:
#
# $$ d_s = S_s^{\text{bfloat16}} - S_s^{\text{float32}} $$
#
# | symbol | in code | shape | unit |
# |---|---|---|---|
# | $S_s$ | `final_score`, `mean_score` | one a run | D4RL-normalised score, after and over 100,000 interactions |
# | $d_s$ | `differences` | one a seed $s$ and task | score |
#
# We expect an interval around zero, and a wide one. A rounding changes the first action a little and the next state a
# little more. After some hundred steps the two trainings have no more in common than two seeds have.

# %%
show(statistics.differences)

# %%
study, names = studies.find("precision"), {"td3": "float32", "td3_bfloat16": "bfloat16"}
runs = records.load_runs(records.root(), study.runs())
paired = statistics.evaluations(runs).replace({"arm": names})
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
parts = []
for axis, name in zip(axes, (name for name in tasks.TASKS if name in study.tasks), strict=True):
    drawn = statistics.summarise(paired[paired["task"] == name], ["arm", "steps"]).assign(task=name)
    for precision, some in drawn.groupby("arm"):
        look, steps = {"color": COLOURS[precision]}, some["steps"] / 1000
        axis.plot(steps, some["score"], label=precision, **look)
        axis.fill_between(steps, some["low"], some["high"], alpha=0.15, linewidth=0, **look)
    axis.set_title(tasks.find(name).title)
    parts.append(drawn)
axes[0].set_ylabel(figures.QUANTITIES["score"])
axes[0].legend(loc="upper left")
figure.supxlabel(figures.STEPS["finetune"], fontsize=10)
metadata = records.load_metadata(records.root(), study.runs())
caption = figures.caption("TD3 from scratch in both precisions, paired by seed.", paired, metadata)
path = figures.save_figure(figure, "90_precision", pd.concat(parts), caption, profile)

# %%
rows = {}
for name, some in paired.groupby("task"):
    for measure in (statistics.final_score, statistics.mean_score):
        pairs = statistics.differences(measure(some), "bfloat16", "float32")
        rows[name, measure.__name__] = statistics.interval(pairs)
found = pd.DataFrame(rows, index=statistics.Interval._fields).T
found.astype({"n_seeds": int}).round(1)

# %% tags=["nbval-check-output"]
cpus = {
    (run.task, run.seed, names[run.arm]): each["provenance"]["cpu"] for run, each in metadata.items()
}
processors = pd.Series(cpus).unstack()
apart = (processors["float32"] != processors["bfloat16"]).sum()
zero = (found["low"] <= 0) & (found["high"] >= 0)
widest = np.maximum(-found["low"], found["high"]).max()
print(f"zero lies in {zero.sum()} of {len(zero)} intervals, the widest reaches {widest:.0f} points")
print(
    f"{apart} of {len(processors)} pairs were trained on two processors, whose roundings differ as well"
)

# %% [markdown]
# *Read.* An interval without zero would show a difference. An interval with it shows only that a difference is not larger
# than its ends, and these are wide. The float32 runs are the baselines' own.
#
# We wrote the rule down before the runs: bfloat16 may record if every interval holds zero. It is a setting of an *arm* (one
# way to an agent), `precision`, and each record names its own. The programme records in float32 all the same. Runs of one
# study are held against each other, most of them were begun in it, and few processors multiply bfloat16 at all.
#
# ## Where we differ from the paper
#
# The paper says nothing of time, and its authors' code nothing that we know of. Our updates are the same arithmetic as
# theirs. What differs is the order in which things are drawn: batches and noise of 50 updates at once, each agent from
# streams of its own, and imagined next states from a table ([chapter 03](03_augmentation.ipynb)). bfloat16 multiplies the
# wide products alone. Sums, the last layer and Adam stay in float32.
#
# ## Try it
#
# - `td3.TD3(hidden=(512, 512))` in the last cell of section 1: how many times as many operations are it, and why not quite four?
# - In a new cell, `[speed.product_rate("float32", 256, 256, batch=rows) / 1e9 for rows in (64, 256)]`, in GFLOP/s: do smaller
#   batches run at the same rate?
# - In a shell, `OMP_NUM_THREADS=2 .venv/bin/python -m mbaug record hopper --workers 1 --profile smoke`: what does it tell you?
#
# ## Questions
#
# <details><summary>Why does a hand-written backward pass help, if autograd computes the same?</summary>
#
# Autograd would compute more: gradients of weights that nobody steps along, buffers for each of them, and a dozen small
# operations between two products. Each is cheap. Beside products of a few hundred microseconds they add up.
#
# </details>
#
# <details><summary>Why not give the second core to the same agent?</summary>
#
# Because a product of 256 by 256 is over in a fraction of a millisecond, and sharing it ends in a wait each time. Two agents
# on two cores never wait for each other. Only a product that takes much longer than a wait is worth sharing. The world
# model's batches of 4,096 rows come nearest to that.
#
# </details>
#
# <details><summary>bfloat16 keeps 8 bits. Why does an agent still learn?</summary>
#
# Only factors are rounded. Sums of products are kept in 24 bits, and so are the parameters, to which Adam adds steps that 8
# bits would swallow. A gradient is then wrong by a percent or two, far less than what the choice of 256 rows does to it.
# Whether the scores agree is a question for paired runs, not for this argument: section 9.
#
# </details>
#
# **Next:** back to [00 · Overview](00_overview.ipynb), or on to what the minutes are spent on.
