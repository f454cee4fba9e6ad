"""Training: an agent's life depends on its seed and its data, and on nothing that happens beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbaug import engine, graphs, networks, streams, tasks, td3, training, transitions
from mbaug.augmentation import replaced
from mbaug.settings import SAC, TD3, Arm, Augmentation, Finetuning, Pretraining
from mbaug.tasks import Evaluator, Lockstep, Step
from mbaug.transitions import Dataset, Standardiser

HOPPER = tasks.find("hopper")
TINY = {"hidden": (8, 8), "batch_size": 32}
OFFLINE = Arm(
    learner=TD3(**TINY),
    augmentation=Augmentation(redraw_interval=50),
    pretraining=Pretraining(updates=100, evaluation_interval=50),
)
ONLINE = {
    "td3": Arm("td3", TD3(**TINY), finetuning=Finetuning(steps=150, warmup_steps=50, evaluation_interval=50)),
    "sac": Arm("sac", SAC(**TINY), finetuning=Finetuning(150, 50, "uniform", evaluation_interval=50)),
}


@pytest.fixture(autouse=True)
def highest():
    """Plain products: the fast road of `engine.prepare` leaves out small ones, and these networks are small."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# --- lives ----------------------------------------------------------------------------------------------------------------


def dataset(seed, rows=60):
    """Returns random transitions of Hopper's sizes."""
    rng = np.random.default_rng(seed)
    state, next_state = rng.normal(1, 2, (2, rows, 11)).astype(np.float32)
    action, reward = rng.uniform(-1, 1, (rows, 3)).astype(np.float32), rng.normal(size=rows).astype(np.float32)
    ends = rng.random((2, rows)) < 0.1
    return Dataset("made", state, action, reward, next_state, ends[0], ends[1] & ~ends[0], np.arange(rows))


def offline(seeds, arm=OFFLINE):
    """Returns fresh learners, their tables and what imagines for them: rows that differ between agents and draws."""
    drawn = [dataset(seed) for seed in seeds]
    standardiser = Standardiser.fit([part.state for part in drawn], 1e-3)
    table = transitions.table(drawn, standardiser, engine.PARAMETER_DTYPE[arm.precision])

    def imagine(number):
        rows = [np.random.default_rng((seed, number)).normal(size=(60, 4, 11)) for seed in seeds]
        return torch.from_numpy(np.stack(rows)).to(table.dtype)

    return training.learner(arm, HOPPER, seeds, standardiser), table, imagine


def pretrained(seeds, arm=OFFLINE):
    """Returns learners at the end of pre-training."""
    learner, *data = offline(seeds, arm)
    for _ in training.pretrain(learner, *data):
        pass
    return learner


def finetuned(seeds, arm, learner=None):
    """Returns learners at the end of fine-tuning, from scratch or from where they are, and their replay."""
    learner = learner or training.learner(arm, HOPPER, seeds)
    learner.arm, buffer = arm, training.replay(learner)
    for _ in training.finetune(learner, Lockstep(HOPPER, seeds), buffer):
        pass
    return learner, buffer


def tensors(learner, k):
    """Returns everything that agent k has learned: parameters, targets, moments and temperature."""
    agent, population, found = learner.agent, len(learner.seeds), []
    networks = {name: part.network for name, part in vars(agent).items() if hasattr(part, "network")}
    for name, network in networks.items():
        found += next(part for number, part in enumerate(training.networks_of(network, population)) if number == k)
        if moments := getattr(agent, f"{name}_moments", None):
            for flat in (moments.first, moments.second):
                layers = engine.layer_views(flat, network.population, network.sizes)
                found += [tensor[k::population] for layer in layers for tensor in layer]
            found.append(moments.steps)
    if hasattr(agent, "log_temperature"):
        moments = agent.temperature_moments
        found += [flat.detach()[k] for flat in (agent.log_temperature, moments.first, moments.second)]
    return [tensor.detach().clone() for tensor in found]


def same(first, second):
    """Returns whether two lists of tensors are equal bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- nothing beside an agent matters --------------------------------------------------------------------------------------


def test_pretraining_is_the_same_alone_and_among_neighbours():
    together = pretrained([1, 3, 7])
    for k, seed in enumerate(together.seeds):
        assert same(tensors(together, k), tensors(pretrained([seed]), 0))
    assert not same(tensors(together, 0), tensors(together, 1))


@pytest.mark.parametrize("algorithm", ONLINE)
def test_finetuning_is_the_same_alone_and_among_neighbours(algorithm):
    together, buffer = finetuned([1, 3, 7], ONLINE[algorithm])
    for k, seed in enumerate(together.seeds):
        alone, alone_buffer = finetuned([seed], ONLINE[algorithm])
        assert same(tensors(together, k), tensors(alone, 0))
        assert torch.equal(buffer.rows[k], alone_buffer.rows[0])
    assert not torch.equal(buffer.rows[0], buffer.rows[1])


def test_nor_do_neighbours_matter_at_the_sizes_and_with_the_products_of_the_recorded_runs():
    engine.prepare("float32")
    arm = replace(OFFLINE, learner=TD3(), pretraining=Pretraining(updates=50, evaluation_interval=50))
    together = pretrained([3, 7], arm)
    for k, seed in enumerate(together.seeds):
        assert same(tensors(together, k), tensors(pretrained([seed], arm), 0))


@pytest.mark.parametrize("algorithm", ONLINE)
def test_the_same_seed_twice_is_equal(algorithm):
    lives = [finetuned([2, 6], ONLINE[algorithm]) for _ in range(2)]
    (first, first_buffer), (second, second_buffer) = lives
    assert torch.equal(first_buffer.rows, second_buffer.rows)
    for k in range(2):
        assert same(tensors(first, k), tensors(second, k))


def test_evaluating_more_often_changes_no_weight():
    evaluate = Evaluator(HOPPER, [1, 3], 2, 0.99)
    online = replace(ONLINE["td3"].finetuning, evaluation_interval=150)
    rare = replace(OFFLINE, pretraining=Pretraining(updates=100, evaluation_interval=100), finetuning=online)
    often = replace(OFFLINE, finetuning=ONLINE["td3"].finetuning)
    lives = []
    for arm in (rare, often):
        learner, *data = offline([1, 3], arm)
        evaluations = 0
        for _ in training.pretrain(learner, *data):
            evaluations += 1
            evaluate(learner.policy, "pretrain", learner.gradient_steps)
        training.carry(learner, arm.finetuning)
        for _ in training.finetune(learner, Lockstep(HOPPER, [1, 3]), training.replay(learner)):
            evaluations += 1
            evaluate(learner.policy, "finetune", learner.environment_steps)
        lives.append((evaluations, learner))
    assert [evaluations for evaluations, _ in lives] == [1 + 1, 2 + 3]
    for k in range(2):
        assert same(tensors(lives[0][1], k), tensors(lives[1][1], k))


# --- pre-training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """What `td3.update` is called with, in place of updates and of their replay."""
    calls = []
    monkeypatch.setattr(graphs, "captured", lambda period, *_: period)
    monkeypatch.setattr(td3, "update", lambda *arguments: calls.append(arguments))
    return calls


def test_augmentation_replaces_its_share_of_next_states_and_nothing_else(seen):
    learner, table, imagine = offline([1, 3])
    list(training.pretrain(learner, table, imagine))
    plain, _, _ = offline([1, 3])
    list(training.pretrain(plain, table))
    count = replaced(OFFLINE.augmentation.rate, 32)
    assert (len(seen), count) == (200, 16)
    for number, (with_it, without) in enumerate(zip(seen[:100], seen[100:], strict=True)):
        (_, batch, noise, *_), (_, recorded, recorded_noise, *_) = with_it, without
        for field in ("state", "action", "reward", "terminal"):
            assert torch.equal(getattr(batch, field), getattr(recorded, field))
        assert torch.equal(noise, recorded_noise)
        assert torch.equal(batch.next_state[:, count:], recorded.next_state[:, count:])
        imagined = imagine(number // OFFLINE.augmentation.redraw_interval)
        for k in range(2):
            rows = transitions.unpack(table[k : k + 1], 11, 3).state[0]
            for place in range(count):  # each is one of its own row's imagined next states, of the table of the day
                (row,) = (rows == batch.state[k, place]).all(dim=1).nonzero()[:, 0]
                assert (imagined[k, row] == batch.next_state[k, place]).all(dim=1).any()


def test_pretraining_uses_the_behaviour_cloning_loss_and_counts_its_updates(seen):
    learner, table, _ = offline([1])
    counts = [learner.gradient_steps for _ in training.pretrain(learner, table)]
    assert counts == [50, 100]
    assert [arguments[4] for arguments in seen] == list(range(1, 101))
    assert {arguments[5] for arguments in seen} == {td3.actor_loss_bc}
    assert learner.environment_steps == 0


def test_a_table_is_imagined_at_every_redraw_interval():
    learner, table, imagine = offline([1])
    numbers = []
    list(training.pretrain(learner, table, lambda number: numbers.append(number) or imagine(number)))
    assert numbers == [0, 1]


@pytest.mark.parametrize("changed", [{"updates": 120}, {"evaluation_interval": 60}])
def test_budgets_off_the_grid_are_refused(changed):
    learner, table, _ = offline([1], replace(OFFLINE, pretraining=replace(OFFLINE.pretraining, **changed)))
    ((name, number),) = changed.items()
    with pytest.raises(ValueError, match=f"^{name} is {number}, but it must be a multiple of 50$"):
        next(training.pretrain(learner, table))


# --- the switch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carried", ["actor", "critics", "moments", "all", "nothing"])
def test_carry_keeps_what_it_should_and_makes_the_rest_anew(carried):
    names = ("carry_actor", "carry_critics", "carry_moments")
    plan = Finetuning(**{name: carried == "all" or name == f"carry_{carried}" for name in names})
    learner, before = pretrained([1, 3]), pretrained([1, 3]).agent
    training.carry(learner, plan)
    agent = learner.agent
    for name in ("actor", "critics"):
        kept = getattr(plan, f"carry_{name}")
        new, old = (getattr(part, name).network.flat for part in (agent, before))
        assert torch.equal(new, old) == kept
        assert new.requires_grad
        target = getattr(agent, f"target_{name}").network.flat
        assert torch.equal(target, new)
        assert target.data_ptr() != new.data_ptr()
        moments, old_moments = (getattr(part, f"{name}_moments") for part in (agent, before))
        if kept and plan.carry_moments:
            assert torch.equal(moments.second, old_moments.second)
            assert moments.steps == old_moments.steps > 0
        else:
            assert moments.first.eq(0).all()
            assert moments.second.eq(0).all()
            assert moments.steps == 0


def test_what_is_made_anew_is_not_the_first_initialisation_again():
    learner = training.learner(OFFLINE, HOPPER, [1])
    first = learner.agent.actor.network.flat.clone()
    training.carry(learner, Finetuning(carry_actor=False))
    assert not torch.equal(learner.agent.actor.network.flat, first)


def test_the_replay_starts_empty_or_with_the_offline_rows():
    learner, table, _ = offline([1, 3], replace(OFFLINE, finetuning=Finetuning(steps=150, warmup_steps=50)))
    empty, full = training.replay(learner), training.replay(learner, table)
    assert (empty.size, empty.rows.shape[1]) == (0, 150)
    assert (full.size, full.rows.shape[1]) == (60, 210)
    assert torch.equal(full.rows[:, :60], table)


# --- fine-tuning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["agent", "uniform"])
def test_the_warm_up_counts_its_steps_and_learns_nothing(policy):
    plan = Finetuning(steps=150, warmup_steps=100, warmup_policy=policy, evaluation_interval=50)
    learner, _, _ = offline([1, 3], replace(OFFLINE, finetuning=plan))
    before, counts = [tensors(learner, k) for k in range(2)], []
    buffer = training.replay(learner)
    for _ in training.finetune(learner, Lockstep(HOPPER, [1, 3]), buffer):
        counts.append((learner.environment_steps, learner.gradient_steps, buffer.size))
        unmoved = [same(tensors(learner, k), before[k]) for k in range(2)]
        assert unmoved == [learner.environment_steps <= 100] * 2
    assert counts == [(50, 0, 50), (100, 0, 100), (150, 50, 150)]


def test_the_uniform_warm_up_fills_the_action_space():
    learner, buffer = finetuned([1, 3], ONLINE["sac"])
    actions = buffer.rows[:, :50, 11:14]
    assert actions.abs().max() <= 1
    assert actions.abs().mean() == pytest.approx(0.5, abs=0.05)
    assert actions.mean() == pytest.approx(0, abs=0.1)
    assert learner.gradient_steps == 100


def test_what_is_collected_is_what_happened():
    """Standardised states, the carried actor with noise, real next states across resets, a fall as terminal."""
    arm = replace(OFFLINE, finetuning=Finetuning(steps=150, warmup_steps=150, evaluation_interval=150))
    learner, _, _ = offline([1, 3], arm)
    _, buffer = finetuned([1, 3], arm, learner)
    batch = transitions.unpack(buffer.rows, 11, 3)
    ends = buffer.rows[..., -2:].any(dim=-1)
    assert batch.terminal.sum() >= 2
    goes_on = ~ends[:, :-1]
    assert torch.equal(batch.next_state[:, :-1][goes_on], batch.state[:, 1:][goes_on])
    assert not (batch.next_state[:, :-1] == batch.state[:, 1:]).all(dim=-1)[~goes_on].any()
    height = learner.standardiser.invert(batch.next_state)[..., 0]
    assert (height[batch.terminal > 0] < height[batch.terminal == 0].mean()).all()
    difference = batch.action - td3.greedy(learner.agent, batch.state)
    inside = batch.action.abs() < 1
    assert difference[inside].std() == pytest.approx(arm.learner.exploration_noise, rel=0.15)


def test_updates_see_only_what_is_in_the_replay(seen):
    _, buffer = finetuned([1, 3], ONLINE["td3"])
    assert len(seen) == 100
    for number, (_, batch, *_) in enumerate(seen, start=51):
        for k in range(2):
            known = transitions.unpack(buffer.rows[k : k + 1, :number], 11, 3).state[0]
            assert (batch.state[k][:, None] == known[None]).all(dim=-1).any(dim=-1).all()
    newest = [(batch.state[0] == buffer.rows[0, n, :11]).all(dim=-1).any() for n, (_, batch, *_) in enumerate(seen, start=50)]
    assert any(newest), "the transition of this very step can be drawn"


class OneStep(Lockstep):
    """Reward -(a - 0.3)^2, then the end; the state says nothing."""

    def __init__(self, population):
        self.random = [np.random.default_rng(k) for k in range(population)]
        self.state = self.somewhere()

    def somewhere(self):
        return np.stack([random.random(1, dtype=np.float32) for random in self.random])

    def step(self, action):
        ends, next_state = np.ones(len(action), dtype=bool), self.somewhere()
        self.state = self.somewhere()
        reward = -np.square(action[:, 0] - 0.3).astype(np.float32)
        return Step(next_state, reward, ends, ~ends, self.state)


LEARNERS = {
    "td3": TD3(hidden=(16, 16), batch_size=64, learning_rate=3e-3),
    "sac": SAC((16, 16), batch_size=64, learning_rate=3e-3, initial_temperature=0.1, temperature_learning_rate=0.01),
}


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_one_step_task_is_solved_by_what_the_agent_collects(algorithm):
    arm = Arm(algorithm, LEARNERS[algorithm], finetuning=Finetuning(800, 100, "uniform", evaluation_interval=800))
    task = tasks.Task("one step", "none", 1, 1, -1.0, 0.0, None)
    learner = training.learner(arm, task, [0, 1])
    for _ in training.finetune(learner, OneStep(2), training.replay(learner)):
        pass
    state = np.linspace(0, 1, 20, dtype=np.float32).reshape(1, 20, 1).repeat(2, axis=0)
    assert np.abs(learner.policy(state) - 0.3).max() < 0.12


def test_the_policy_of_an_evaluation_standardises_states():
    learner = pretrained([1, 3])
    state = np.stack([dataset(seed).state for seed in (1, 3)])
    standardised = (torch.from_numpy(state) - learner.standardiser.mean[:, None]) / learner.standardiser.std[:, None]
    np.testing.assert_allclose(learner.policy(state), td3.greedy(learner.agent, standardised).numpy(), rtol=0, atol=1e-6)


# --- divergence -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_diverges_offline_stops_and_the_others_go_on():
    learner, table, imagine = offline([1, 3, 7])
    table[1, :, -3] = float("inf")  # the rewards of the second
    evaluations = sum(1 for _ in training.pretrain(learner, table, imagine))
    assert learner.diverged_at == [None, {"gradient_steps": 50, "environment_steps": 0}, None]
    assert evaluations == 2
    assert learner.gradient_steps == 100
    healthy = pretrained([1, 3, 7])
    for k in (0, 2):
        assert same(tensors(learner, k), tensors(healthy, k))
    assert not same(tensors(learner, 1), tensors(healthy, 1))
    actions = learner.policy(np.ones((3, 2, 11), dtype=np.float32))
    assert np.isfinite(actions).all(), "an evaluation of the others needs actions of all"


@pytest.mark.parametrize("network", ["actor", "critics"])
def test_an_agent_that_diverges_online_stops_and_the_others_go_on(network):
    poisoned = training.learner(ONLINE["td3"], HOPPER, [1, 3, 7])
    weight, _ = getattr(poisoned.agent, network).network.layers[0]
    weight[1, 0, 0] = float("nan")  # of critics, the first of the second agent's two
    _, buffer = finetuned([1, 3, 7], ONLINE["td3"], poisoned)
    assert buffer.rows.isfinite().all(), "no simulator is asked for an action that is no number"
    healthy, _ = finetuned([1, 3, 7], ONLINE["td3"])
    assert poisoned.diverged_at == [None, {"gradient_steps": 0, "environment_steps": 50}, None]
    for k in (0, 2):
        assert same(tensors(poisoned, k), tensors(healthy, k))


def test_training_ends_when_no_agent_is_left():
    learner, table, _ = offline([1, 3])
    table[:, :, -3] = float("inf")
    assert list(training.pretrain(learner, table)) == []
    assert learner.gradient_steps == 50
    assert None not in learner.diverged_at


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_restored_learner_goes_on_bit_for_bit_offline():
    whole = pretrained([1, 3])
    learner, *data = offline([1, 3])
    next(training.pretrain(learner, *data))
    saved, plain = training.save(learner)
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    other, *data = offline([1, 3])
    training.restore(other, saved, plain)
    assert other.gradient_steps == 50
    for _ in training.pretrain(other, *data):
        pass
    for k in range(2):
        assert same(tensors(other, k), tensors(whole, k))


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_restored_learner_goes_on_bit_for_bit_online(algorithm):
    arm = ONLINE[algorithm]
    whole, whole_buffer = finetuned([1, 3], arm)
    learner, environments = training.learner(arm, HOPPER, [1, 3]), Lockstep(HOPPER, [1, 3])
    buffer = training.replay(learner)
    steps = training.finetune(learner, environments, buffer)
    next(steps), next(steps)
    (saved, plain), snapshot = training.save(learner), environments.snapshot()
    saved = {name: tensor.clone() for name, tensor in saved.items()}
    other, elsewhere = training.learner(arm, HOPPER, [1, 3]), Lockstep(HOPPER, [8, 9])
    training.restore(other, saved, plain)
    elsewhere.restore(*snapshot)
    kept = training.replay(other)
    kept.extend(buffer.rows[:, : buffer.size])
    for _ in training.finetune(other, elsewhere, kept):
        pass
    assert torch.equal(kept.rows, whole_buffer.rows)
    for k in range(2):
        assert same(tensors(other, k), tensors(whole, k))


# --- elsewhere than on the CPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_what_is_captured_learns_the_same_bit_for_bit(monkeypatch, delay):
    """Offline and online, also where a block of updates ends within a policy delay."""
    arm = replace(OFFLINE, learner=TD3(**TINY, policy_delay=delay), finetuning=Finetuning(150, 50, evaluation_interval=50))
    replayed, same_rows = finetuned([0, 1], arm, pretrained([0, 1], arm))
    monkeypatch.setattr(graphs, "captured", lambda period, *_: period)
    plain, rows = finetuned([0, 1], arm, pretrained([0, 1], arm))
    assert torch.equal(rows.rows, same_rows.rows)
    assert replayed.gradient_steps == plain.gradient_steps == 200
    for name, tensor in training.memory(plain).items():
        assert torch.equal(training.memory(replayed)[name], tensor), name


def test_a_capture_is_made_once_for_each_kind_of_stretch(monkeypatch):
    made = []
    monkeypatch.setattr(graphs, "captured", lambda period, *_: made.append(period) or period)
    pretrained([0], replace(OFFLINE, pretraining=Pretraining(updates=200, evaluation_interval=50)))
    assert len(made) == 1  # two updates from where the actor has just moved
    finetuned([0], ONLINE["td3"])
    assert len(made) == 3  # one update, with the actor and without


@pytest.fixture
def without_data(monkeypatch):
    """A device that has shapes but no numbers: what mixes devices, or fetches a number in the middle of training, fails there."""
    for_cpu = streams.torch_generators
    monkeypatch.setattr(streams, "torch_generators", lambda seeds, *name, device="cpu": for_cpu(seeds, *name))
    monkeypatch.setattr(training.Learner, "watch", lambda learner: True)  # once in a block of updates this fetches a number
    return "meta"


def devices(learner):
    return {tensor.device.type for name, tensor in training.memory(learner).items() if "standard" not in name}


def test_no_number_leaves_the_device_while_agents_learn_offline(without_data):
    learner, table, imagine = offline([0, 1])
    learner = training.learner(OFFLINE, HOPPER, [0, 1], learner.standardiser, without_data)
    for _ in training.pretrain(learner, table.to(without_data), imagine):
        pass
    assert learner.gradient_steps == 100
    assert devices(learner) == {"meta"}
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        learner.policy(np.zeros((2, 1, 11), np.float32))  # an evaluation does fetch its actions


def test_what_a_block_draws_and_what_starts_fresh_are_on_the_device(without_data):
    learner, table, _ = offline([0, 1])
    learner = training.learner(OFFLINE, HOPPER, [0, 1], learner.standardiser, without_data)
    index, batches, noise = training.block(learner, table.to(without_data))
    assert {tensor.device.type for tensor in (index, *batches, noise)} == {"meta"}
    training.carry(learner, Finetuning(carry_actor=False, carry_critics=False))
    assert devices(learner) == {"meta"}


@pytest.mark.parametrize("algorithm", ONLINE)
def test_no_number_but_the_actors_leaves_the_device_while_agents_learn_online(without_data, monkeypatch, algorithm):
    """Who acts reads a copy of the actor on the CPU, after every update; nothing else is fetched."""
    fetched = []

    def on_cpu(network):
        flat = torch.zeros(network.flat.shape)
        layers = engine.layer_views(flat, network.population, network.sizes)
        fetched.append(copied := replace(network, flat=flat, layers=layers))
        return copied

    copy_ = torch.Tensor.copy_
    copies = []
    monkeypatch.setattr(networks.Perceptron, "on_cpu", on_cpu)
    monkeypatch.setattr(
        torch.Tensor,
        "copy_",
        lambda to, tensor: copies.append(to) if to.device.type != tensor.device.type else copy_(to, tensor),
    )
    learner = training.learner(ONLINE[algorithm], HOPPER, [0, 1], device=without_data)
    buffer = training.replay(learner)
    for _ in training.finetune(learner, Lockstep(HOPPER, [0, 1]), buffer):
        pass
    assert learner.gradient_steps == 100
    assert buffer.rows.device.type == "meta"
    assert len(fetched) == 1
    assert len(copies) == 100
    assert all(tensor is fetched[0].flat for tensor in copies)


def test_who_acts_on_the_cpu_reads_the_actors_own_memory():
    network = training.learner(ONLINE["td3"], HOPPER, [0]).agent.actor.network
    acting = network.on_cpu()
    assert acting.flat is network.frozen.flat
    assert acting.layers[0][0].data_ptr() == network.layers[0][0].data_ptr()


@pytest.mark.parametrize("algorithm", ["offline", *ONLINE])
def test_training_tells_of_threads(monkeypatch, algorithm):
    told = []
    monkeypatch.setattr(engine, "tell_of_threads", lambda: told.append(algorithm))
    if algorithm == "offline":
        pretrained([0])
    else:
        finetuned([0], ONLINE[algorithm])
    assert told == [algorithm]


def test_imagination_that_is_the_truth_is_vanilla_pretraining():
    """An arm whose predictor returns the recorded next state ends bit-equal to one without augmentation."""
    learner, table, _ = offline([1, 3])
    truth = transitions.unpack(table, HOPPER.state_size, HOPPER.action_size).next_state.unsqueeze(2)
    for _ in training.pretrain(learner, table, lambda number: truth):
        pass
    vanilla = training.learner(OFFLINE, HOPPER, [1, 3], learner.standardiser)
    for _ in training.pretrain(vanilla, table):
        pass
    for k in range(2):
        assert same(tensors(learner, k), tensors(vanilla, k))


def test_critics_alone_move_when_the_warm_up_ends():
    """With `critic_updates` the critics learn on the replay before the actor moves, and each update counts."""
    arm = replace(ONLINE["td3"], finetuning=replace(ONLINE["td3"].finetuning, steps=100, warmup_steps=50))
    learner = training.learner(arm, HOPPER, [1])
    buffer = training.replay(learner)
    buffer.extend(torch.randn(1, 50, buffer.rows.shape[2], generator=torch.Generator().manual_seed(0)))
    before = [learner.agent.actor.network.flat.clone(), learner.agent.critics.network.flat.clone()]
    training.settle(learner, buffer, 100)
    assert torch.equal(before[0], learner.agent.actor.network.flat)
    assert torch.equal(before[0], learner.agent.target_actor.network.flat)
    assert not torch.equal(before[1], learner.agent.critics.network.flat)
    assert not torch.equal(before[1], learner.agent.target_critics.network.flat)
    assert learner.gradient_steps == 100
    settled, _ = finetuned([1], replace(arm, finetuning=replace(arm.finetuning, critic_updates=50)))
    assert settled.gradient_steps == 50 + 50
