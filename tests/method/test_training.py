"""Training: what an agent learns depends on its seed and data alone, not on other agents, evaluations or interruptions."""

import re
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from made import LEARNERS, close, dataset, generators

from mbaug import engine, streams, tasks
from mbaug.engine import graphs, perceptron
from mbaug.experiments import checkpoint
from mbaug.method import td3, training, transitions
from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.iql import IQL
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.sac import SAC
from mbaug.method.settings import Augmentation, Finetuning, Pretraining, WorldModel
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Standardiser
from mbaug.tasks import Evaluator, Lockstep, Step, Task

HOPPER = tasks.find("hopper")
TINY = {"hidden": (8, 8), "batch_size": 32}
PLAN = {
    "model": WorldModel(),
    "augmentation": Augmentation(redraw_interval=50),
    "pretraining": Pretraining(updates=100, evaluation_interval=50),
    "finetuning": Finetuning(steps=150, warmup_steps=50, evaluation_interval=50),
}
OFFLINE = {"td3": Arm(learner=TD3(**TINY), **PLAN), "iql": Arm("iql", IQL(**TINY), **PLAN)}
UNIFORM = Arm("sac", SAC(**TINY), finetuning=replace(PLAN["finetuning"], warmup_policy="uniform"))
ONLINE = OFFLINE | {"sac": UNIFORM}  # the tests fine-tune these from scratch
VANILLA = OFFLINE["td3"]
UNAUGMENTED = replace(VANILLA, model=None, augmentation=None)
KEEPING = replace(VANILLA, finetuning=replace(PLAN["finetuning"], keep_data=True))


def offline(seeds, arm=VANILLA, arithmetic=PLAIN):
    """Returns new learners, their tables, and a function of imagined next states, which differ between agents and redraws."""
    drawn = [dataset(60, HOPPER.state_size, HOPPER.action_size, seed) for seed in seeds]
    standardiser = Standardiser.fit([part.state for part in drawn], 1e-3)
    table = transitions.table(drawn, standardiser).to(arithmetic.device)

    def imagine(number):
        rows = [np.random.default_rng((seed, number)).normal(size=(60, 4, 11)) for seed in seeds]
        return torch.from_numpy(np.stack(rows)).to(table.dtype)

    return training.learner(arm, HOPPER, seeds, standardiser, arithmetic), table, imagine


def pretrained(seeds, arm=VANILLA, **options):
    """Returns learners at the end of pre-training."""
    learner, *data = offline(seeds, arm, **options)
    list(training.pretrain(learner, *data))
    return learner


def flat(part):
    """Returns the parameters of a part of an agent."""
    return part if isinstance(part, torch.Tensor) else part.network.flat


def finetuned(seeds, arm, learner=None):
    """Returns learners, new or given, at the end of fine-tuning, and their replay buffer."""
    learner = learner or training.learner(arm, HOPPER, seeds)
    learner.arm, buffer = arm, training.replay(learner)
    list(training.finetune(learner, Lockstep(HOPPER, seeds), buffer))
    return learner, buffer


def learned(learner, k):
    """Returns the parameters of agent k in one vector: its networks, their targets, its temperature or spread."""
    found, sizes = [], {"log_temperature": 1, "log_std": HOPPER.action_size}
    for name, part in vars(learner.agent).items():
        if name in sizes:
            found.append(part.detach()[k * sizes[name] : (k + 1) * sizes[name]])
        elif name != "moments":
            found += [*training.networks_of(part.network, len(learner.seeds))][k]
    return torch.cat([tensor.flatten() for tensor in found])


def same(one, other):
    """Returns whether the agents of two learners have the same parameters, bit for bit."""
    return all(torch.equal(learned(one, k), learned(other, k)) for k in range(len(one.seeds)))


# --- agents do not affect each other --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", [*OFFLINE, "as recorded"])
def test_pretraining_gives_the_same_agent_again_alone_and_among_others(case):
    """This also holds for the sizes and the arithmetic of the recorded runs."""
    arm, options = OFFLINE.get(case), {}
    if case == "as recorded":
        engine.prepare("float32")
        options = {"arithmetic": Arithmetic(perceptron.forward, graphs.captured)}
        arm = replace(VANILLA, learner=TD3(), pretraining=Pretraining(updates=50, evaluation_interval=50))
    together = pretrained([1, 3, 7], arm, **options)
    assert same(together, pretrained([1, 3, 7], arm, **options))
    for k, seed in enumerate(together.seeds):
        assert torch.equal(learned(together, k), learned(pretrained([seed], arm, **options), 0))
    assert not torch.equal(learned(together, 0), learned(together, 1))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ONLINE)
def test_finetuning_gives_the_same_agent_again_alone_and_among_others(algorithm):
    together, buffer = finetuned([1, 3, 7], ONLINE[algorithm])
    assert same(together, finetuned([1, 3, 7], ONLINE[algorithm])[0])
    for k, seed in enumerate(together.seeds):
        alone, alone_buffer = finetuned([seed], ONLINE[algorithm])
        assert torch.equal(learned(together, k), learned(alone, 0))
        assert torch.equal(buffer.rows[k], alone_buffer.rows[0])
    assert not torch.equal(buffer.rows[0], buffer.rows[1])


@pytest.mark.parametrize(("episodes", "apart"), [(10, 0), (1, 1e-6), (2, 1e-6), (5, 1e-6)])
def test_an_evaluation_gives_the_same_actions_alone_and_among_others(episodes, apart):
    """Bit for bit with the recorded sizes and 10 episodes; with fewer episodes up to rounding, about 4e-8 as README says."""
    engine.prepare("float32")
    seeds, options = [1, 3, 7], {"arithmetic": Arithmetic(perceptron.forward, graphs.captured)}
    state = np.random.default_rng(0).standard_normal((3, episodes, HOPPER.state_size)).astype(np.float32)
    together = training.learner(Arm(), HOPPER, seeds, **options).policy(state)
    alone = [training.learner(Arm(), HOPPER, [seed], **options).policy(one[None]) for seed, one in zip(seeds, state, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=apart)


def test_evaluating_more_often_changes_no_weight():
    evaluate, learners, counts = Evaluator(HOPPER, [1, 3], 2, 0.99), [], []
    rare = {name: replace(PLAN[name], evaluation_interval=steps) for name, steps in (("pretraining", 100), ("finetuning", 150))}
    for arm in (replace(VANILLA, **rare), VANILLA):
        learner, *data = offline([1, 3], arm)
        counts.append([evaluate(learner.policy, "offline", 0).length for _ in training.pretrain(learner, *data)])
        training.carry(learner, arm.finetuning)
        steps = training.finetune(learner, Lockstep(HOPPER, [1, 3]), training.replay(learner))
        counts.append([evaluate(learner.policy, "online", 0).length for _ in steps])
        learners.append(learner)
    assert [*map(len, counts)] == [1, 1, 2, 3]
    assert same(*learners)


# --- pre-training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """The arguments of each call of TD3's `update`, which is replaced and changes nothing."""
    calls = []
    algorithm = replace(td3.ALGORITHM, update=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(ALGORITHMS, "td3", algorithm)
    return calls


def test_augmentation_replaces_its_share_of_next_states_and_nothing_else(seen):
    learner, table, imagine = offline([1, 3])
    list(training.pretrain(learner, table, imagine))
    list(training.pretrain(offline([1, 3], UNAUGMENTED)[0], table))
    assert len(seen) == 200
    for number, (with_it, without) in enumerate(zip(seen[:100], seen[100:], strict=True)):
        (_, batch, _, noise, *_), (_, recorded, _, recorded_noise, *_) = with_it, without
        for field in ("state", "action", "reward", "terminal"):
            assert torch.equal(getattr(batch, field), getattr(recorded, field))
        assert torch.equal(noise, recorded_noise)
        assert torch.equal(batch.next_state[:, 16:], recorded.next_state[:, 16:])
        imagined = imagine(number // VANILLA.augmentation.redraw_interval)
        for k in range(2):
            rows = transitions.unpack(table[k : k + 1], 11, 3).state[0]
            for place in range(16):  # each is an imagined next state of its own row, from the current table
                (row,) = (rows == batch.state[k, place]).all(dim=1).nonzero()[:, 0]
                assert (imagined[k, row] == batch.next_state[k, place]).all(dim=1).any()


def test_with_a_branch_the_critics_learn_from_whole_imagined_transitions_and_the_actor_from_recorded_ones(seen):
    """Imagined rows come from another draw; recorded rows and noise are as without augmentation."""
    rule = replace(PLAN["augmentation"], source="simulator", branch=1)
    learner, table, _ = offline([1, 3], replace(VANILLA, model=None, augmentation=rule))
    others, numbers = offline([2, 4])[1], []
    list(training.pretrain(learner, table, lambda number: numbers.append(number) or others))
    list(training.pretrain(offline([1, 3], UNAUGMENTED)[0], table))
    assert numbers == [0, 1]
    for (_, batch, _, noise, *_), (_, recorded, _, recorded_noise, *_) in zip(seen[:100], seen[100:], strict=True):
        assert torch.equal(noise, recorded_noise)
        for part, old in zip(batch, recorded, strict=True):
            assert torch.equal(part[:, 16:], old[:, 16:])
        for k in range(2):
            states = transitions.unpack(others[k : k + 1], 11, 3).state[0]
            assert all((states == each).all(dim=1).any() for each in batch.state[k, :16])
    agent, settings, loss = learner.agent, learner.arm.learner, seen[99][5]
    for rows, ignored in ((slice(16), True), (slice(16, 32), False)):
        shifted = batch.action.clone()
        shifted[:, rows] += 1
        found = [loss(agent.actor, agent.critics, batch._replace(action=each), settings) for each in (batch.action, shifted)]
        assert torch.equal(*found) == ignored


def test_picks_by_doubt_draw_the_same_rows_and_imagine_the_trusted_ones(seen):
    """Row r of the table has the doubt r, so the 16 lowest rows of each batch are imagined and the others recorded."""
    rule = replace(PLAN["augmentation"], picks="trusted")
    learner, table, imagine = offline([1, 3], replace(VANILLA, augmentation=rule))
    list(training.pretrain(learner, table, imagine, torch.arange(60.0).expand(2, -1)))
    list(training.pretrain(offline([1, 3], UNAUGMENTED)[0], table))
    for (_, batch, *_), (_, recorded, *_) in zip(seen[:100], seen[100:], strict=True):
        for k in range(2):
            state, *_, next_state, _ = transitions.unpack(table[k : k + 1], 11, 3)
            rows = [(state[0] == each).all(dim=1).nonzero().item() for each in batch.state[k]]
            assert rows == sorted((state[0] == each).all(dim=1).nonzero().item() for each in recorded.state[k])
            assert torch.equal(batch.next_state[k, 16:], next_state[0, rows[16:]])
            assert not (batch.next_state[k, :16] == next_state[0, rows[:16]]).any()


def test_picks_by_doubt_need_doubts_and_random_picks_refuse_them():
    doubtful = replace(VANILLA, augmentation=replace(PLAN["augmentation"], picks="distrusted"))
    for arm, doubt in ((doubtful, None), (VANILLA, torch.zeros(1, 60))):
        learner, table, imagine = offline([1], arm)
        with pytest.raises(ValueError, match=r"^picks is '\w+', but doubt is (None|given): all but 'random' need it$"):
            next(training.pretrain(learner, table, imagine, doubt))


def test_pretraining_uses_the_offline_loss_counts_its_updates_and_redraws_its_table(seen):
    learner, table, imagine = offline([1])
    numbers = []
    steps = training.pretrain(learner, table, lambda number: numbers.append(number) or imagine(number))
    assert [learner.gradient_steps for _ in steps] == [50, 100]
    assert [arguments[4] for arguments in seen] == [False, True] * 50, "Every second update is a policy step."
    assert {arguments[5] for arguments in seen} == {td3.actor_loss_bc}
    assert (learner.environment_steps, numbers) == (0, [0, 1])


@pytest.mark.parametrize(
    ("stage", "name", "changes"),
    [
        ("pretraining", "updates", {"updates": 120, "evaluation_interval": 40}),
        ("pretraining", "evaluation_interval", {"updates": 600, "evaluation_interval": 120}),
        ("augmentation", "redraw_interval", {"redraw_interval": 120}),
        ("finetuning", "warmup_steps", {"warmup_steps": 120}),
        ("finetuning", "critic_updates", {"critic_updates": 120}),
        ("finetuning", "steps", {"steps": 120, "warmup_steps": 50, "evaluation_interval": 40}),
        ("finetuning", "evaluation_interval", {"steps": 600, "evaluation_interval": 120}),
    ],
)
def test_a_budget_must_be_a_multiple_of_50(stage, name, changes):
    """Training checks only every 50 updates or steps: others would skip evaluations or tables."""
    with pytest.raises(ValueError, match=f"^{name} is 120, but it must be a multiple of 50$"):
        replace(PLAN[stage], **changes)


def test_policy_steps_are_counted_across_blocks(monkeypatch):
    """With a policy delay of 3, blocks of 7 updates end between two policy steps."""
    learner, table, _ = offline([1], replace(UNAUGMENTED, learner=replace(UNAUGMENTED.learner, policy_delay=3)))
    found = []
    monkeypatch.setattr(learner, "algorithm", replace(learner.algorithm, update=lambda *given: found.append(given[4])))
    learn = training.updater(learner, None)
    for _ in range(3):
        learn(*training.block(learner, table, 7)[1:])
    assert found == [False, False, True] * 7


@pytest.mark.parametrize(
    ("imagined", "said"),
    [
        (torch.zeros(60, 4, 11), "has the shape [60, 4, 11], but these agents of hopper need [1, 60, samples, 11]"),
        (torch.zeros(1, 59, 4, 11), "has the shape [1, 59, 4, 11], but these agents"),
        (np.zeros(1), "float64, but it must return a torch tensor of floating-point numbers"),
        (torch.ones(1).long(), "torch.int64, but it must"),
        ([], "list, but it must"),
    ],
    ids=["axes", "rows", "NumPy", "integers", "list"],
)
def test_imagined_next_states_of_another_kind_or_shape_are_refused(imagined, said):
    learner, table, _ = offline([1])
    with pytest.raises(ValueError, match=f"^(what )?imagine returned {re.escape(said)}"):
        next(training.pretrain(learner, table, lambda number: imagined))


def test_agents_of_the_same_seed_are_refused():
    with pytest.raises(ValueError, match=r"^seeds is \[3, 3\], but agents of the same seed would be equal: give each its own$"):
        training.learner(VANILLA, HOPPER, [3, 3])


def test_imagined_next_states_may_have_another_precision():
    learner, table, imagine = offline([1, 3])
    list(training.pretrain(learner, table, lambda number: imagine(number).double()))
    assert same(learner, pretrained([1, 3]))


def test_a_model_that_predicts_what_was_recorded_is_vanilla_pretraining():
    """So what can help is only the error of a model. Chapter 07 rests on this."""
    augmented, table, _ = offline([1, 3])
    recorded = transitions.unpack(table, HOPPER.state_size, HOPPER.action_size).next_state
    list(training.pretrain(augmented, table, lambda number: recorded[:, :, None].expand(-1, -1, 4, -1)))
    vanilla, table, _ = offline([1, 3], UNAUGMENTED)
    list(training.pretrain(vanilla, table))
    assert same(augmented, vanilla)
    assert not same(augmented, pretrained([1, 3]))


@pytest.mark.parametrize("shape", [(1, 60, 28), (2, 60, 27)])
def test_a_table_of_other_agents_or_of_another_task_is_refused(shape):
    sentence = f"the table has the shape {[*shape]}, but these agents of hopper need [2, rows, 28]"
    learner = training.learner(replace(KEEPING, model=None, augmentation=None), HOPPER, [1, 3])
    for use in (lambda table: next(training.pretrain(learner, table)), lambda table: training.replay(learner, table)):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            use(torch.zeros(shape))


def test_environments_or_a_standardiser_of_other_agents_or_of_another_task_are_refused():
    for seeds, task in (([1], HOPPER), ([1, 3], tasks.find("ant"))):
        found, learner = [len(seeds), task.state_size], training.learner(VANILLA, HOPPER, [1, 3])
        sentence = re.escape(f"{found}, but these agents of hopper need [2, 11]")
        with pytest.raises(ValueError, match=f"^the environments' state has the shape {sentence}$"):
            next(training.finetune(learner, Lockstep(task, seeds), training.replay(learner)))
        with pytest.raises(ValueError, match=f"^the standardiser's mean has the shape {sentence}$"):
            training.learner(VANILLA, HOPPER, [1, 3], Standardiser.identity(*found))


def test_online_learning_continues_only_with_the_buffer_that_the_agents_filled():
    """A fresh buffer would lack what they have collected, and updates would draw from the new rows alone."""
    learner = training.learner(VANILLA, HOPPER, [1, 3])
    learner.environment_steps = 200
    sentence = "the replay buffer has 0 rows, but after 200 interactions it must have 200: continue with the buffer"
    with pytest.raises(ValueError, match=f"^{sentence}"):
        next(training.finetune(learner, Lockstep(HOPPER, [1, 3]), training.replay(learner)))


def test_a_learner_needs_a_seed_and_an_actor_is_set_in_a_single_agent():
    with pytest.raises(ValueError, match=r"^seeds is empty, but a learner has one agent per seed, so it needs at least one$"):
        training.learner(VANILLA, HOPPER, [])
    pair = offline([1, 3])[0]
    before = pair.agent.actor.network.flat.detach().clone()
    with pytest.raises(ValueError, match=r"^the learner has 2 agents, but set_actor needs a learner of one agent$"):
        training.set_actor(pair, training.actors(pair)[1])
    assert torch.equal(pair.agent.actor.network.flat, before)


def test_imagined_next_states_are_given_if_and_only_if_the_arm_has_an_augmentation():
    """An augmented arm without them would train as vanilla does, and vanilla would ignore them."""
    learner, table, imagine = offline([1])
    for arm, given, said in ((VANILLA, None, "None, but the arm has an"), (UNAUGMENTED, imagine, "given, but the arm has no")):
        learner.arm = arm
        with pytest.raises(ValueError, match=f"^imagine is {said} augmentation: "):
            next(training.pretrain(learner, table, given))


def test_each_kind_of_random_number_has_a_stream_of_its_own(seen):
    """Recorded runs depend on which."""
    learner, table, imagine = offline([1, 3])
    list(training.pretrain(learner, table, imagine))
    assert set(learner.generators) == {"batches", "update noise", "imagined samples"}
    pairs = zip(*(streams.torch_generators([1, 3], name) for name in ("batches", "update noise")), strict=True)
    for k, (batches, noise) in enumerate(pairs):
        rows = transitions.unpack(table[k, torch.randint(60, (50, 32), generator=batches)], 11, 3)
        normal = torch.randn(50, 1, 32, 3, generator=noise)
        assert torch.equal(torch.stack([batch.state[k] for _, batch, *_ in seen[:50]]), rows.state)
        assert torch.equal(torch.stack([drawn[:, k] for _, _, _, drawn, *_ in seen[:50]]), td3.smoothing_noise(normal, TD3()))
    plan = replace(PLAN["finetuning"], warmup_policy="uniform")
    learner, buffer = finetuned([1, 3], replace(VANILLA, finetuning=plan))
    assert set(learner.generators) == {"batches", "update noise", "exploration", "uniform actions"}
    for rows, uniform in zip(buffer.rows, streams.torch_generators([1, 3], "uniform actions"), strict=True):
        assert torch.equal(rows[:50, 11:14], 2 * torch.rand(50, 3, generator=uniform) - 1)


# --- from offline to online -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", OFFLINE)
@pytest.mark.parametrize("carried", ["actor", "critics", "moments", "all", "nothing"])
def test_carry_keeps_the_chosen_parts_and_makes_the_others_anew(carried, algorithm):
    names = "carry_actor", "carry_critics", "carry_moments"
    plan = Finetuning(**{name: carried == "all" or name == f"carry_{carried}" for name in names})
    learner = pretrained([1, 3], OFFLINE[algorithm])
    before, first = learner.agent, offline([1, 3], OFFLINE[algorithm])[0].agent
    training.carry(learner, plan)
    for group, parts in learner.algorithm.carried.items():
        for name in parts:
            kept, moments = getattr(plan, f"carry_{group}"), learner.agent.moments[name]
            new, old, initial = (flat(getattr(agent, name)) for agent in (learner.agent, before, first))
            assert torch.equal(new, old) == kept
            assert not torch.equal(new, initial) or name == "log_std", "a new part must not repeat the first initialisation"
            assert new.requires_grad
            if kept and plan.carry_moments:
                assert moments is before.moments[name]
                assert moments.steps > 0
            else:
                assert not any(moment.any() for moment in (moments.first, moments.second, moments.steps))
            if target := getattr(learner.agent, f"target_{name}", None):
                assert torch.equal(target.network.flat, new)
                assert target.network.flat.data_ptr() != new.data_ptr()


def test_the_replay_buffer_starts_empty_or_with_the_offline_rows():
    learner, table, _ = offline([1, 3])
    empty = training.replay(learner)
    learner.arm = KEEPING
    full = training.replay(learner, table)
    assert (empty.size, empty.rows.shape[1]) == (0, 150)
    assert (full.size, full.rows.shape[1]) == (60, 210)
    assert torch.equal(full.rows[:, :60], table)


def test_a_replay_buffer_has_offline_rows_if_and_only_if_the_plan_keeps_the_data():
    """Without any, RLPD would take half of each batch from the first transition, and TD3 would silently keep nothing."""
    learner, table, _ = offline([1, 3])
    for arm, rows, number in ((KEEPING, None, 0), (VANILLA, table, 60)):
        learner.arm, kept = arm, arm.online.keep_data
        with pytest.raises(
            ValueError, match=f"^keep_data is {kept}, but the replay buffer would start with {number} offline rows"
        ):
            training.replay(learner, rows)


# --- fine-tuning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["agent", "uniform"])
def test_the_warm_up_counts_its_steps_and_learns_nothing(policy):
    plan = Finetuning(steps=150, warmup_steps=100, warmup_policy=policy, evaluation_interval=50)
    (learner, *_), (fresh, *_) = (offline([1, 3], replace(VANILLA, finetuning=plan)) for _ in range(2))
    buffer, counts = training.replay(learner), []
    for _ in training.finetune(learner, Lockstep(HOPPER, [1, 3]), buffer):
        counts.append((learner.environment_steps, learner.gradient_steps, buffer.size))
        assert same(learner, fresh) == (learner.environment_steps <= 100)
    assert counts == [(50, 0, 50), (100, 0, 100), (150, 50, 150)]
    actions = buffer.rows[:, :100, 11:14]
    assert actions.abs().max() <= 1
    assert (actions.abs().mean() == pytest.approx(0.5, abs=0.05)) == (policy == "uniform"), "uniform in [-1, 1]: mean |a| is 0.5"


def test_the_replay_buffer_holds_what_happened():
    """Standardised states, actions of the carried actor with noise, the true next states at resets, falls as terminal."""
    arm = replace(VANILLA, finetuning=Finetuning(steps=150, warmup_steps=150, evaluation_interval=150))
    learner, buffer = finetuned([1, 3], arm, offline([1, 3])[0])
    batch = transitions.unpack(buffer.rows, 11, 3)
    goes_on = ~buffer.rows[:, :-1, -2:].any(dim=-1)
    assert batch.terminal.sum() >= 2
    assert torch.equal(batch.next_state[:, :-1][goes_on], batch.state[:, 1:][goes_on])
    assert not (batch.next_state[:, :-1] == batch.state[:, 1:]).all(dim=-1)[~goes_on].any()
    height = learner.standardiser.invert(batch.next_state)[..., 0]
    assert (height[batch.terminal > 0] < height[batch.terminal == 0].mean()).all()
    difference, inside = batch.action - td3.greedy(learner.agent, batch.state), batch.action.abs() < 1
    assert difference[inside].std() == pytest.approx(arm.learner.exploration_noise, rel=0.15)


def test_the_replay_buffer_marks_time_limits_as_truncated():
    task = replace(tasks.find("halfcheetah"), options={"max_episode_steps": 20})
    learner = training.learner(replace(VANILLA, finetuning=Finetuning(50, 50, evaluation_interval=50)), task, [1, 3])
    buffer = training.replay(learner)
    list(training.finetune(learner, Lockstep(task, [1, 3]), buffer))
    assert not buffer.rows[..., -2].any()
    assert buffer.rows[..., -1].nonzero().tolist() == [[0, 19], [0, 39], [1, 19], [1, 39]]


def test_updates_draw_only_from_the_replay_buffer(seen):
    _, buffer = finetuned([1, 3], VANILLA)
    assert len(seen) == 100
    assert {arguments[5] for arguments in seen} == {td3.actor_loss}
    for number, (_, batch, *_) in enumerate(seen, start=51):
        for k in range(2):
            known = transitions.unpack(buffer.rows[k : k + 1, :number], 11, 3).state[0]
            assert (batch.state[k][:, None] == known[None]).all(dim=-1).any(dim=-1).all()
    newest = [(batch.state[0] == buffer.rows[0, n, :11]).all(dim=-1).any() for n, (_, batch, *_) in enumerate(seen, start=50)]
    assert any(newest), "the transition of the current step can be drawn"


def test_critics_that_settle_draw_only_from_the_filled_part_of_the_replay_buffer(seen):
    learner, table, _ = offline([1, 3], KEEPING)
    training.warm_up_critics(learner, training.replay(learner, table), 50)
    known = transitions.unpack(table, 11, 3).state
    assert len(seen) == 50
    for _, batch, *_, loss in seen:
        assert (batch.state[:, :, None] == known[:, None]).all(dim=-1).any(dim=-1).all()
        assert loss is None


def test_only_the_critics_move_right_after_the_warm_up():
    """With `critic_updates` the critics learn from the replay buffer before the actor moves. Each of these updates counts."""
    (learner, table, _), (before, *_) = offline([1], KEEPING), offline([1])
    training.warm_up_critics(learner, training.replay(learner, table), 100)
    names = "actor", "target_actor", "critics", "target_critics"
    moved = [name for name in names if not torch.equal(flat(getattr(learner.agent, name)), flat(getattr(before.agent, name)))]
    assert (moved, learner.gradient_steps) == (["critics", "target_critics"], 100)
    settled, _ = finetuned([1], replace(VANILLA, finetuning=replace(PLAN["finetuning"], critic_updates=50)))
    assert settled.gradient_steps == 100 + 50


class OneStep(Lockstep):
    """Episodes of one step with reward -(a - 0.3)^2; the state carries no information."""

    def __init__(self):
        self.random, self.state = np.random.default_rng(0), np.zeros((2, 1), np.float32)

    def step(self, action):
        ends, (next_state, self.state) = np.ones(2, dtype=bool), self.random.random((2, 2, 1), dtype=np.float32)
        return Step(next_state, -np.square(action[:, 0] - 0.3).astype(np.float32), ends, ~ends)


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_an_agent_solves_a_one_step_task_from_the_transitions_that_it_collects(algorithm):
    kept = ALGORITHMS[algorithm].rows is not None  # it also learns from offline rows
    plan = Finetuning(700, 200, "uniform", keep_data=kept, evaluation_interval=700)
    arm = Arm(algorithm, LEARNERS[algorithm], pretraining=Pretraining(updates=0), finetuning=plan)
    action = torch.linspace(-1, 1, 20).view(1, 20, 1).expand(2, -1, -1)
    zero, one = torch.zeros(2, 20, 1), torch.ones(2, 20, 1)
    table = torch.cat([zero, action, zero, -(action - 0.3).square(), one, zero], dim=-1)
    learner = training.learner(arm, Task("one", "none", 1, -1.0, 0.0, None, (), ("somewhere",)), [0, 1])
    list(training.finetune(learner, OneStep(), training.replay(learner, table if kept else None)))
    state = np.linspace(0, 1, 20, dtype=np.float32).reshape(1, 20, 1).repeat(2, axis=0)
    error = np.abs(learner.policy(state) - 0.3).max()
    assert error < 0.12, f"{error:.2f} from the best action: the settings in LEARNERS may need a larger weight on values"


def test_every_algorithm_must_solve_that_task():
    # bc differs from TD3 only offline
    assert {*LEARNERS, "bc"} == {*ALGORITHMS}, "add the settings of a new algorithm to LEARNERS in tests/made.py"


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_all_that_an_algorithm_trains_can_be_carried_online(algorithm):
    agent = algorithm.create(3, 2, algorithm.settings(), generators(0), PLAIN)
    assert {*chain(*algorithm.carried.values())} == {*agent.moments}, "`carried` must name each part in `moments`"


def test_the_policy_of_an_evaluation_standardises_states():
    learner, table, _ = offline([1, 3])
    state = transitions.unpack(table, 11, 3).state
    close(learner.policy(learner.standardiser.invert(state).numpy()), td3.greedy(learner.agent, state), 1e-5)


# --- divergence -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_diverges_offline_stops_and_the_others_continue():
    learner, table, imagine = offline([1, 3, 7])
    table[1, :, -3] = float("inf")  # the rewards of the second agent
    assert len(list(training.pretrain(learner, table, imagine))) == 2
    assert learner.diverged_at == [None, {"gradient_steps": 50, "environment_steps": 0}, None]
    assert learner.gradient_steps == 100
    healthy = pretrained([1, 3, 7])
    assert [torch.equal(learned(learner, k), learned(healthy, k)) for k in range(3)] == [True, False, True]
    actions = learner.policy(np.ones((3, 2, 11), dtype=np.float32))
    assert np.isfinite(actions).all(), "evaluating the others needs finite actions of all agents"
    learner, table, _ = offline([1, 3], UNAUGMENTED)
    table[:, :, -3] = float("inf")
    assert list(training.pretrain(learner, table)) == [], "training must end when no agent is left"
    assert learner.gradient_steps == 50


@pytest.mark.parametrize("network", ["actor", "critics"])
def test_an_agent_that_diverges_online_stops_and_the_others_continue(network):
    poisoned = training.learner(VANILLA, HOPPER, [1, 3, 7])
    weight, _ = getattr(poisoned.agent, network).network.layers[0]
    weight[1, 0, 0] = float("nan")  # of the critics: the first one of the second agent
    _, buffer = finetuned([1, 3, 7], VANILLA, poisoned)
    assert buffer.rows.isfinite().all(), "no simulator may receive an action that is NaN"
    assert poisoned.diverged_at == [None, {"gradient_steps": 0, "environment_steps": 50}, None]
    healthy, _ = finetuned([1, 3, 7], VANILLA)
    assert [torch.equal(learned(poisoned, k), learned(healthy, k)) for k in range(3)] == [True, False, True]


def restored(learner, arm):
    """Returns a new learner with a copy of another's state; the other can go on training."""
    tensors, plain = checkpoint.learner_state(learner)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    other = training.learner(arm, HOPPER, learner.seeds)
    checkpoint.restore_learner(other, tensors, plain)
    return other


@pytest.mark.parametrize("algorithm", OFFLINE)
def test_a_restored_learner_continues_bit_for_bit_offline(algorithm):
    learner, *data = offline([1, 3], OFFLINE[algorithm])
    steps = training.pretrain(learner, *data)
    next(steps)
    other = restored(learner, OFFLINE[algorithm])
    list(training.pretrain(other, *data)), list(steps)
    assert (other.gradient_steps, same(other, learner)) == (100, True)


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_restored_learner_continues_bit_for_bit_online(algorithm):
    arm = ONLINE[algorithm]
    learner, environments = training.learner(arm, HOPPER, [1, 3]), Lockstep(HOPPER, [1, 3])
    buffer = training.replay(learner)
    steps = training.finetune(learner, environments, buffer)
    next(steps), next(steps)
    other, elsewhere = restored(learner, arm), Lockstep(HOPPER, [8, 9])
    elsewhere.restore(*environments.snapshot())
    kept = training.replay(other)
    kept.extend(buffer.rows[:, : buffer.size])
    list(training.finetune(other, elsewhere, kept)), list(steps)
    assert torch.equal(kept.rows, buffer.rows)
    assert same(other, learner)


# --- elsewhere than on the CPU --------------------------------------------------------------------------------------------


@pytest.fixture
def without_data(monkeypatch):
    """Arithmetic on torch's meta device, which has no data: mixing devices or reading a number while training raises."""
    for_cpu = streams.torch_generators
    monkeypatch.setattr(streams, "torch_generators", lambda seeds, *name, device="cpu": for_cpu(seeds, *name))
    monkeypatch.setattr(training.Learner, "check_divergence", lambda learner: True)  # it reads a number once per block
    return Arithmetic(device="meta")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ONLINE)
def test_only_the_actor_leaves_the_device_while_agents_learn(without_data, monkeypatch, algorithm):
    """Offline nothing does. Online the agent acts with a copy of its actor on the CPU, renewed before each step."""
    plan = Finetuning(steps=100, warmup_steps=50, evaluation_interval=50, keep_data=True, carry_critics=False)
    drawing = {"pretraining": ONLINE[algorithm].pretraining or Pretraining(updates=0), "finetuning": plan}
    learner, table, imagine = offline([0, 1], replace(ONLINE[algorithm], **drawing), without_data)
    on_cpu, copies, copy_ = [], [], torch.Tensor.copy_
    if algorithm in OFFLINE:
        next(training.pretrain(learner, table, imagine))
    training.carry(learner, plan)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        learner.policy(np.zeros((2, 1, 11), np.float32))  # an evaluation does read its actions

    def counted(to, tensor):
        return copies.append(id(to)) if to.device.type != tensor.device.type else copy_(to, tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: on_cpu.append(torch.zeros(tensor.shape)) or on_cpu[-1])
    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    buffer = training.replay(learner, table)
    list(training.finetune(learner, Lockstep(HOPPER, [0, 1]), buffer))
    agent = [tensor for name, tensor in training.memory(learner).items() if "standard" not in name]
    assert {tensor.device.type for tensor in (buffer.rows, *agent)} == {"meta"}
    assert len(on_cpu) == len(learner.algorithm.carried["actor"])
    assert copies == 100 * [id(tensor) for tensor in on_cpu]
