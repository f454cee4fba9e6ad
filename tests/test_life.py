"""What a life is made of: when it leaves a checkpoint, which stages have one name, what is watched. Whole lives: test_study."""

from dataclasses import replace

from mbaug import grid, life
from mbaug.settings import Finetuning


def test_a_long_life_has_a_checkpoint_at_every_25_000_steps():
    """A replay of a million rows is large; the other lives, as short as they are, have one at every evaluation."""
    plans = grid.find("long").arm("sac_million").finetuning, grid.SCRATCH
    due = [[steps for steps in range(5_000, plan.steps + 1, 5_000) if life.checkpoint_due(plan, steps)] for plan in plans]
    assert due == [list(range(25_000, 1_000_001, 25_000)), list(range(5_000, 100_001, 5_000))]


def test_the_failure_signatures_are_named():
    """The drop at the switch and the gap between value and return, by hand."""
    row = {"episode": 0, "length": 1, "data_value": 0.0, "imagined_outside": float("nan"), "gradient_steps": 1}
    table = [("pretrain", 0, 100.0, 10.0, 15.0), ("finetune", 5, 40.0, 8.0, 9.0), ("finetune", 10, 70.0, 7.0, 6.0)]
    rows = [
        {**row, "phase": phase, "environment_steps": steps, "return": total, "discounted_return": part, "predicted_value": value}
        for phase, steps, total, part, value in table
    ]
    assert life.signatures(rows) == {"score_drop": 60.0, "value_gap": 5.0, "imagined_outside": None}
    assert life.signatures(rows[1:])["score_drop"] is None


def test_a_stage_shared_by_two_arms_has_one_name():
    """Arms that differ only in fine-tuning share the name of their pre-training; other arms do not."""
    arm = grid.ARMS["vanilla"]
    other = replace(arm, finetuning=Finetuning(keep_data=True))
    names = {life.key(replace(each, finetuning=Finetuning())) for each in (arm, other)}
    assert len(names) == 1
    assert life.key(grid.ARMS["augmented"]) != life.key(grid.ARMS["noise"])
