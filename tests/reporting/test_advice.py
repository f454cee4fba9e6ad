"""The advice on what to keep online: its rule by hand, how we judge it, and the report on a user's own dataset."""

import re
from functools import partial

import h5py
import numpy as np
import pandas as pd
import pytest
from evaluated import runs

from mbaug import tasks
from mbaug.datasets import export, read
from mbaug.experiments.studies import find
from mbaug.reporting import advice
from mbaug.reporting.advice import KEEPS
from mbaug.tasks import normalised_score

NAMES = [arm for arm, _ in KEEPS.values()]


def rows(*cases):
    """Returns cases: a task, the scores of its data and of the policy, and those of the three arms."""
    table = pd.DataFrame(cases, columns=["task", "data", "policy", *NAMES])
    return table.astype({name: float for name in table if name != "task"}).assign(seed=0)


@pytest.mark.parametrize(
    ("data", "policy", "expected"),
    [(10.0, 16.0, "superior"), (10.0, 15.0, "comparable"), (10.0, 5.0, "comparable"), (10.0, 4.0, "inferior")],
)
def test_the_regime_compares_the_policy_with_the_data_by_a_margin(data, policy, expected):
    assert advice.regime(data, policy, 5.0) == expected


def test_the_loss_of_the_rule_is_its_distance_from_the_best_arm():
    found = rows(("hopper", 10, 30, 50, 60, 20), ("ant", 30, 10, 50, 60, 20), ("ant", 10, 11, 50, 60, 20))
    assert advice.judged(found, 5.0)["lost"].tolist() == [10, 40, 0]
    assert advice.judged(found, 20.0)["lost"].tolist() == [0, 0, 0]


def test_the_best_margin_is_the_middle_of_those_with_the_least_loss():
    wide, narrow = ("hopper", 10, 30, 50, 60, 20), ("ant", 10, 20, 60, 50, 20)
    assert advice.best_margin(rows(wide)) == 35  # margins of 20 to 50 keep both
    assert advice.best_margin(rows(narrow)) == 5  # margins of 0 to 9 keep the policy
    assert advice.best_margin(rows()) == 0


def test_each_task_is_judged_with_the_margin_of_the_other_tasks():
    """Hopper needs a margin below 10 and Ant one of 20 or more, so what is learned from one fails on the other."""
    found = rows(("hopper", 10, 20, 60, 50, 20), ("ant", 10, 30, 50, 60, 20))
    judged = advice.leave_one_task_out(found).set_index("task")
    assert judged["regime"].to_dict() == {"hopper": "comparable", "ant": "superior"}
    assert judged["margin"].to_dict() == {"hopper": 35, "ant": 5}
    assert judged["named"].to_dict() == {"hopper": "vanilla_data", "ant": "vanilla"}
    assert judged["lost"].to_dict() == {"hopper": 10, "ant": 10}
    said = advice.track_record(found)
    assert "in 0 of 2 cases on 2 tasks, and lost 10 points of mean score on average. " in said
    assert said.endswith("Always choosing “vanilla pre-training” would have been right in 1, and lost 5.0")
    assert advice.track_record(found[:1]).startswith("the rule is not tested: it takes two tasks")


def test_a_case_needs_all_three_arms_and_the_score_of_the_policy():
    arms = {"vanilla": 40, "vanilla_data": 50, "td3_data": 30}
    found = advice.cases(runs(arms, seeds=2, tasks=("hopper", "halfcheetah")))
    assert found["vanilla_data"].round().tolist() == [50] * 4
    assert found["policy"].round().tolist() == [40] * 4
    assert found["data"].round().tolist() == [23, 23, 11, 11]
    assert advice.cases(runs(arms | {"td3_data": 30}, seeds=2).query("arm != 'td3_data'")).empty
    frame = runs(arms, seeds=2)
    early = frame[frame["phase"] == "pretrain"].assign(gradient_steps=20_000, score=15.0)
    assert advice.cases(pd.concat([frame, early]), updates=20_000)["policy"].tolist() == [15, 15]


def test_a_case_whose_pool_is_not_here_is_left_out(monkeypatch):
    frame = runs({"vanilla": 40, "vanilla_data": 50, "td3_data": 30}, seeds=2, tasks=("hopper", "halfcheetah"))
    for names, left in ((["hopper-medium-replay"], ["hopper", "hopper"]), ([], [])):
        monkeypatch.setattr(read, "bundled", lambda names=names: {name: read.FOLDER / f"{name}.hdf5" for name in names})
        found = advice.cases(frame)
        assert found["task"].tolist() == left
        assert advice.track_record(found).startswith("the rule is not tested: it takes two tasks with a medium-replay pool")


def test_the_score_of_a_dataset_is_the_mean_over_complete_episodes():
    """A reader marks the last row of a file as truncated, even if the file ends in the middle of an episode."""
    pool = read.load("hopper-random")
    half = pool.rows(np.flatnonzero(pool.episode <= 1)[:-1])  # the second episode lacks its end
    half.truncated[-1] = True
    score = partial(normalised_score, tasks.find("hopper"))
    assert advice._score(tasks.find("hopper"), half) == pytest.approx(score(pool.reward[pool.episode == 0].sum()))
    cheetah = read.load("halfcheetah-random")
    longer = cheetah.rows(np.arange(1_010))  # one episode at the time limit, and the start of the next
    longer.truncated[-1] = True
    score_of_one = normalised_score(tasks.find("halfcheetah"), cheetah.reward[:1_000].sum())
    assert advice._score(tasks.find("halfcheetah"), longer) == pytest.approx(score_of_one)
    cut = half.rows(np.arange(3))
    assert advice._score(tasks.find("hopper"), cut) == pytest.approx(score(cut.reward.sum())), (
        "Without complete episodes the incomplete ones should count."
    )


def test_the_rule_is_compared_with_the_arm_that_we_recommend():
    """LayerNorm has 20 points more than the best choice of the rule, on two tasks with two seeds."""
    where = {"seeds": 2, "tasks": ("hopper", "halfcheetah")}
    frame = runs({"vanilla": 40, "vanilla_data": 50, "td3_data": 30}, **where)
    assert advice.without_rule(frame, advice.cases(frame)) == "", "No arm has two seeds on every task."
    every = pd.concat([frame, runs({"layernorm_data": 90, "td3": 10}, seeds=2, tasks=tuple(tasks.TASKS))])
    said = advice.without_rule(every, advice.cases(every))
    assert said.startswith("of all recorded arms we would take 'layernorm_data', “LayerNorm critics, data kept”: ")
    assert said.endswith("in 4 of 4 cases, by 40 points on average")
    assert advice.without_rule(every, advice.cases(every)[:1]) == "", "The rule is not tested on one task."


def test_policies_are_trained_once_for_each_pool(tmp_path, monkeypatch):
    """An interrupted command goes on where it was."""
    trained = []

    def pretrained(drawn, task, updates):
        trained.append((drawn.name, len(drawn), updates))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return task

    monkeypatch.setattr(advice, "_pretrained", pretrained)
    monkeypatch.setattr(advice, "_policy_score", lambda task: 12.0)
    monkeypatch.setattr(tasks, "TASKS", {"hopper": tasks.find("hopper")})
    path = tmp_path / "11_policies.csv"
    with pytest.raises(KeyboardInterrupt):
        list(advice.update_policies(path, updates=50))
    lines = list(advice.update_policies(path, updates=50))
    assert trained[:2] == [("hopper-random", 10_000, 50), ("hopper-medium-replay", 10_000, 50)]
    assert trained[2:] == [(f"hopper-{q}", 10_000, 50) for q in ("medium-replay", "medium", "medium-expert", "expert")]
    assert lines[0] == "hopper-medium-replay: the policy scores 12 after 50 updates"
    table = pd.read_csv(path)
    assert table["policy"].tolist() == [12.0] * 5
    assert table["quality"].tolist() == ["random", "medium-replay", "medium", "medium-expert", "expert"]


def test_the_committed_policies_are_those_of_every_task_and_quality():
    table = pd.read_csv(advice.POLICIES)
    wanted = [(task, quality) for task in tasks.TASKS for quality in find("qualities").qualities]
    assert [*table[["task", "quality"]].itertuples(index=False, name=None)] == wanted
    assert table["policy"].notna().all()
    assert table["commit"].str.fullmatch("[0-9a-f]{40}").all(), "They come from committed code."


@pytest.mark.parametrize(
    ("name", "task"),
    [("mujoco-hopper-medium-v0", "hopper"), ("walker2d_medium_replay-v2", "walker2d"), ("My-HalfCheetah", "halfcheetah")],
)
def test_the_task_is_found_in_the_name_of_the_dataset(name, task):
    """It must be a whole word, as in the names of Minari and D4RL."""
    assert advice._task_in(name) == task
    with pytest.raises(ValueError, match=r"^the name 'antmaze-umaze-v2' has no task in it: add --task with one of hopper"):
        advice._task_in("antmaze-umaze-v2")


@pytest.fixture
def advised(monkeypatch):
    """Returns a function that gives the advice on a dataset, after tiny fits."""
    small = partial(advice.WorldModel, hidden=(32, 32), transition_hidden=(32,))  # as quickly fitted as reported
    monkeypatch.setattr(advice, "WorldModel", small)
    frame = runs({"vanilla": 40, "vanilla_data": 50, "td3_data": 30}, seeds=2, tasks=("hopper", "halfcheetah"))
    frame.loc[frame["phase"] == "pretrain", "gradient_steps"] = 50
    return lambda name: list(advice.advise(name, None, frame, updates=50, epochs=1))


@pytest.mark.slow
def test_the_advice_reports_one_step_on_each_line(advised, monkeypatch):
    monkeypatch.setattr(advice, "_score", lambda *given: -100.0)  # every policy is far better
    lines = advised("hopper-random")
    kinds = ["dataset", "", "data", "model", "", "critics", "policy", "regime", "advice", "record"]
    assert [line[:10].strip() for line in lines] == kinds
    assert "20,026 transitions in 891 episodes; 10,000 are drawn" in lines[0]
    vae, persistence, verdict = re.search(r"VAE is (\S+), .* changes (\S+), .*: the VAE (is worse|beats)", lines[3]).groups()
    assert (verdict == "is worse") == (float(vae) > float(persistence))
    assert lines[7].startswith("regime    superior (a difference of ")
    assert lines[8].startswith("advice    keep the policy: it scores more than the data. The arm is 'vanilla': ")
    assert re.search(r"in [0-4] of 4 cases on 2 tasks", lines[-1])


@pytest.mark.slow
def test_a_d4rl_file_gets_the_advice_that_the_same_rows_get_as_a_pool(advised, tmp_path):
    pool, path = read.load("hopper-random"), tmp_path / "hopper_random-v2.hdf5"
    columns = {
        "observations": pool.state,
        "actions": pool.action,
        "next_observations": pool.next_state,
        "rewards": pool.reward,
        "terminals": pool.terminal,
        "timeouts": pool.truncated,
    }
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
    assert advised(str(path))[2:] == advised("hopper-random")[2:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Minari itself warns
def test_a_minari_set_gets_the_advice_that_the_same_rows_get_as_a_pool(advised, tmp_path, monkeypatch):
    pytest.importorskip("minari", reason="Minari is not installed: `make setup`")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/nowhere")  # monkeypatch restores it after the export has changed it
    with monkeypatch.context() as only:
        only.setattr(read, "bundled", lambda folders: {"hopper-random": read.FOLDER / "hopper-random.hdf5"})
        (identifier,) = export.minari_datasets(tmp_path)
    assert advised(f"minari:{identifier}")[2:] == advised("hopper-random")[2:]


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        ("hopper-random", "hoper", "unknown task 'hoper': did you mean 'hopper'"),
        (
            "hopper-random",
            "ant",
            "hopper-random: state has 11 dimensions, but in Ant-v5 it has 27: the data belong to another task",
        ),
        ("hopper-radnom", None, "unknown dataset 'hopper-radnom': did you mean 'hopper-random'"),
    ],
)
def test_a_wrong_dataset_or_task_is_refused(name, task, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        next(advice.advise(name, task, pd.DataFrame()))
