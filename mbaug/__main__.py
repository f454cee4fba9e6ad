"""The command line: `python -m mbaug COMMAND`. Each command is a thin call into the package."""

import argparse
import os
import re
import select
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from mbaug import ending

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch and NumPy are imported: see engine.prepare


SEEDS = 100  # at most, of a command: of the whole programme these are 10,000 runs
SPAN = "[0-9]{1,9}(-[0-9]{1,9})?"
WORKERS = 4  # at most, a core


def escaped(text: object, keep: str = "") -> str:
    """Returns text in which no code reaches a terminal as a command to it; those to `keep` stay."""
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in str(text))


def say(*parts: object, sep: str = " ") -> None:
    """Prints: a path, a file or what was typed may hold codes that command a terminal."""
    print(escaped(sep.join(map(str, parts)), "\n"), flush=True)


class Parser(argparse.ArgumentParser):
    """One whose errors are printed as by `say`."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def seeds(text: str) -> list[int]:
    """Returns the seeds of "0-4" or "0,2,5"."""
    if re.fullmatch(f"{SPAN}(,{SPAN})*", text):
        ends = [part.split("-") for part in text.split(",")]
        spans = [range(int(end[0]), int(end[-1]) + 1) for end in ends]
        if all(spans) and sum(map(len, spans)) <= SEEDS:
            return list(chain(*spans))
    allowed = f"a range such as 0-4 or a list such as 0,2,5, of {SEEDS} at most, each below a billion"
    raise argparse.ArgumentTypeError(f"seeds are {text!r:.40}, but they must be {allowed}")


def typed(pattern: str, words: str, kind: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Returns what makes a value of a typed text: of a `kind`, or a sentence with `words` where the pattern does not match."""

    def value(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r:.40} was given, but it must be {words}")
        return kind(text)

    return value


integer = typed("[0-9]{1,9}", "a whole number from 0 to 999,999,999", int)  # of steps, of a seed
count = typed("(?!0+$)[0-9]{1,9}", "a whole number from 1 to 999,999,999", int)  # of processes, of agents, of updates
seconds = typed(r"[0-9]{1,9}(\.[0-9]*)?|\.[0-9]+", "a number of seconds, e.g. 5", float)
# An empty address, as of a variable that is not set, would train here.
address = typed(r"([a-z]+://)?([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", "an address such as tcp://HOST:8786")


def record(arguments: argparse.Namespace) -> None:
    """Trains and records what is missing of the programme, in its order, or of one study; goes on where it was interrupted."""
    import joblib

    from mbaug import checks, engine
    from mbaug.experiments import records, runner, studies

    profile = studies.profile(arguments.profile)
    checks.choose("device", arguments.device, engine.DEVICES if arguments.cluster else engine.devices())
    runs = studies.programme() if arguments.study is None else studies.find(arguments.study).runs()
    if arguments.seeds is not None:
        runs = studies.with_seeds(runs, arguments.seeds)
    elif profile.seeds is not None:
        runs = [run for run in runs if run.seed < profile.seeds]
    runs = runner.select(runs, arguments.only)
    cores = joblib.cpu_count()  # that this process may use
    workers, most = arguments.workers or cores, WORKERS * cores
    checks.require(workers <= most, f"workers is {workers}, but on {cores} cores it must be at most {most}")
    root = runner.runs_folder(profile.name, retrain=profile.name != "paper")
    missing = runner.missing(runs, root, profile)
    hours = runner.seconds(missing, runner.step_seconds(records.root()), profile) / workers / 3600
    name = arguments.study or "programme"
    say(f"{name}: {len(missing)} runs missing in {root}, about {hours:.1f} hours with {workers} workers")
    if arguments.dry_run:
        say(*missing, sep="\n")
        return
    runner.record(runs, root, None, profile, workers, arguments.cluster, arguments.population, arguments.device)


def status(arguments: argparse.Namespace) -> None:
    """Shows what of the programme, or of one study, is finished, diverged, running and missing; or exports what is recorded."""
    import joblib

    from mbaug import files
    from mbaug.experiments import records, runner, studies

    work, root = files.repository() / "build" / "checkpoints" / "paper", records.root()
    if arguments.parquet is not None:
        records.write_parquet(root, arguments.parquet)
        say(arguments.parquet)
        return
    if arguments.study is not None:
        say(runner.status(studies.find(arguments.study), root, work).to_string())
        return
    pace, cores, programme = runner.step_seconds(root), joblib.cpu_count(), studies.programme()
    every = dict.fromkeys([*programme, *(run for study in studies.STUDIES.values() for run in study.runs())])
    absent = set(records.missing(root, every))  # each record is read once
    for study in studies.STUDIES.values():
        runs = study.runs()
        missing = [run for run in runs if run in absent]
        whole, left = (runner.seconds(some, pace) / 3600 / cores for some in (runs, missing))
        hours = f"{whole:>7.1f} hours on {cores} cores, {left:.1f} left"
        say(f"{study.name:<11}{len(runs) - len(missing):>4} of {len(runs):>3} runs{hours:<36}{study.question}")
    left = [run for run in programme if run in absent]
    say(f"programme: {len(left)} runs missing, about {runner.seconds(left, pace) / 3600 / cores:.1f} hours on {cores} cores")


def verify(arguments: argparse.Namespace) -> None:
    """Trains a recorded run again, by default the cheapest one in float32, and compares its rows with the record."""
    from mbaug.experiments import records, verify

    if arguments.run is None:
        found = records.load_metadata(records.root())
        if not found:
            raise FileNotFoundError(f"nothing is recorded in {records.root()}: python -m mbaug record hopper")
        costs = {run: (one["provenance"]["precision"] != "float32", one["wall_seconds"]) for run, one in found.items()}
        run = min(costs, key=costs.__getitem__)  # in float32 if there is one: every processor has that
    else:
        run = records.Run.parse(arguments.run)
    with tempfile.TemporaryDirectory() as work:
        say(verify.verify(run, records.root(), Path(work), arguments.updates))


def collect(arguments: argparse.Namespace) -> None:
    """Trains the SAC of a task's offline data, records it, and makes the datasets; goes on where it was interrupted."""
    from mbaug import checks, files, tasks
    from mbaug.datasets import collect, pools, read
    from mbaug.experiments import records, run, runner, studies

    task, to, arm = tasks.find(arguments.task), arguments.to, studies.ARMS["sac_million"]
    steps = arm.online.steps
    checks.require(to is None or to <= steps, f"to is {to}, but it must be from 0 to {steps:,}, the steps of the training")
    work = files.repository() / "build" / "checkpoints" / "paper"  # those of `record long`
    folders = read.FOLDERS if arguments.output is None else (arguments.output, arguments.output)
    which, root = records.Run(task.name, "none", "sac_million", arguments.seed), records.root()
    run.prepare_for(arm)
    if runner.is_training(which, arm, work):
        say(f"another process is at {which}: this one waits until it ends")
    with runner.held([which], arm, work):
        recorded = runner.recorded(which, root)
        train = partial(run.collected, which, arm, root, work, to)
        collect.collect(task, arguments.seed, folders, recorded, train, say)
    if arguments.output is None:
        pools.write_readme(folders[0])


def data(arguments: argparse.Namespace) -> None:
    """Lists and verifies the datasets that are here, or makes one of a D4RL v2 file or a Minari set."""
    from mbaug import files
    from mbaug.checks import given, require
    from mbaug.datasets import check, export, pools
    from mbaug.experiments import probes

    imports = arguments.source is not None or arguments.name is not None
    unused = "--output names the folder of what is imported or exported: add PATH.hdf5 --as NAME, or --export minari"
    require(imports or arguments.export or arguments.output is None, unused)
    # Without a clone there are no pools, and no place for what is imported but one that is named.
    into = (arguments.output if imports else None) or files.repository() / "build" / "offline"
    if arguments.export:
        folder = arguments.output or into.with_name("minari")
        say(*export.minari_datasets(folder), f"in {folder}, with a card: Minari reads them with MINARI_DATASETS_PATH", sep="\n")
    elif arguments.readme:
        pools.write_readme()
    elif arguments.probes:
        probes.write()
    elif imports:
        source = given(arguments.source, "--as NAME also needs PATH.hdf5 or minari:ID, which names what to import")
        name = given(arguments.name, "--as names the dataset that is made, e.g. --as hopper-d4rl: add it")
        say(check.import_dataset(source, name, into, say))
    else:
        table = pools.listing()
        say(table.to_string())
        bad = table.index[table.checksum != pools.VERIFIED]
        require(bad.empty, f"not as their cards say: {', '.join(bad)}; restore or make pool and card again")


def strips(arguments: argparse.Namespace) -> None:
    """Renders a strip of frames of each dataset in data/offline that has none, without a screen."""
    from mbaug.datasets import render

    os.environ["MUJOCO_GL"] = render.opengl()  # before MuJoCo is imported: it fails on a library that is not there
    from mbaug import files, tasks
    from mbaug.datasets import read

    files.repository()  # says where pools are, where there are none
    count, size = render.STRIP
    for path in read.bundled([read.FOLDER]).values():
        strip = path.with_suffix(".png")
        if strip.exists():
            continue
        task, data = tasks.find(path.stem.split("-")[0]), read.load(path.stem)
        environment = tasks.make(task, render_mode="rgb_array", width=size, height=size, **render.CLOSE)
        states = render.moments(data, count, most=round(1 / environment.get_wrapper_attr("dt")))  # a second
        files.write_atomically(strip, render.strip(render.stills(environment, states)))
        environment.close()
        say(strip)


def models(arguments: argparse.Namespace) -> None:
    """Makes what is missing of data/models: fits world models (minutes each), takes agents from what recorded runs kept."""
    from mbaug import files
    from mbaug.experiments import records, trained

    for line in trained.make(arguments.work or files.repository() / "build" / "checkpoints" / "paper", records.root()):
        say(line)


def advise(arguments: argparse.Namespace) -> None:
    """Says of a dataset, in minutes: its score, how good a world model of it is, and what to keep of it online."""
    from mbaug.experiments import records
    from mbaug.reporting import advice

    for line in advice.advise(arguments.dataset, arguments.task, records.load_runs(records.root())):
        say(line)


def watch(arguments: argparse.Namespace) -> None:
    """Renders a few seconds of a recorded policy to MP4 and GIF, without a screen."""
    given = os.environ.pop("MUJOCO_GL", "")  # MuJoCo, when it is imported, fails on a library that is not there
    from mbaug import files, tasks
    from mbaug.checks import require
    from mbaug.datasets import render
    from mbaug.experiments import records, runner

    task, run = tasks.find(arguments.task), records.Run.parse(arguments.run)
    require(run.task == task.name, f"{run} is a run of {run.task}, but {task.name} was asked for")
    act = runner.policy(run, records.root(), arguments.policy)
    render.check_seconds(arguments.seconds)
    os.environ["MUJOCO_GL"] = given
    os.environ["MUJOCO_GL"] = render.opengl()  # takes seconds, and so comes after what is wrong with what was typed
    environment = tasks.make(task, width=render.SIZE, height=render.SIZE, **render.FOLLOWED)
    frames, frames_per_second = render.frames(environment, act, arguments.seconds)
    environment.close()
    folder = arguments.output or files.repository() / "build" / "watch"
    for suffix, write in (("mp4", render.mp4), ("gif", render.gif)):
        path = folder / f"{str(run).replace('/', '-')}-{arguments.policy}.{suffix}"
        files.write_atomically(path, write(frames, frames_per_second))
        say(path)


def films(arguments: argparse.Namespace) -> None:
    """Makes figures/films: each agent of data/models at the switch, after 50,000 and after 100,000 interactions, as a GIF."""
    from mbaug.datasets import render

    os.environ["MUJOCO_GL"] = render.opengl()  # before MuJoCo is imported: it fails on a library that is not there
    from mbaug.experiments import records
    from mbaug.reporting import chapters, figures, films

    folder = chapters.committed_figures()
    for path in films.make(folder / "films", records.root()):
        say(str(path))
    figures.write_gallery(folder)


def figures(arguments: argparse.Namespace) -> None:
    """Runs the notebooks headless, draws every figure, and brings the README's tables and the chapters' answers up to date."""
    from mbaug.experiments import records
    from mbaug.reporting import answers, chapters, figures, stored, tables

    paper = arguments.profile == "paper"
    frame = records.load_runs(records.root()) if paper and chapters.find(arguments.only) else None
    if frame is not None:
        tables.update(frame)
    if arguments.anew:
        os.environ[stored.ANEW] = "1"
    chapters.run(arguments.profile, only=arguments.only)
    if frame is None:
        say(f"look:  {figures.figures_folder(arguments.profile)}; tiny budgets show that it runs, and are no evidence")
        return
    tables.update(frame)  # an answer may be of numbers that were just drawn
    folder = chapters.committed_figures()
    figures.write_gallery(folder)
    say(f"found: {answers.sentence(frame)}")
    say(f"look:  README.md has the paper's claims, {os.path.relpath(folder / 'README.md')} every figure")
    say("next:  read on with .venv/bin/jupyter lab notebooks/00_overview.ipynb, or train what is missing with make record")


def notebooks(arguments: argparse.Namespace) -> None:
    """Brings the chapters' answers up to date and executes the notebooks' reading copies again."""
    from mbaug.experiments import records
    from mbaug.reporting import chapters, tables

    if chapters.find(arguments.only):
        tables.update(records.load_runs(records.root()))
    chapters.reading_copies(only=arguments.only)


TASK = {"help": "a task of the paper, e.g. hopper; a name that is none of them lists them all"}
PROFILE = {"default": "paper", "help": "budgets: smoke, quick or paper"}
CHAPTERS = {"metavar": "NN", "help": "one chapter: its number or its name, e.g. 02 or 02_world_model"}
# Of each command its arguments, as argparse takes them.
COMMANDS: dict[Callable[[argparse.Namespace], None], dict[str, dict[str, Any]]] = {
    record: {
        "study": {"nargs": "?", "help": "name of a study, e.g. hopper (default: the programme, in its order)"},
        "--only": {"default": "*", "metavar": "PATTERN", "help": "runs whose name matches, e.g. 'sac/*'"},
        "--seeds": {"type": seeds, "metavar": "0-4", "help": "in place of the study's own"},
        "--workers": {"type": count, "help": "processes (default: one per core)"},
        "--population": {"type": count, "default": 1, "help": "agents that one process trains side by side (default: 1)"},
        "--cluster": {"type": address, "metavar": "tcp://HOST:8786", "help": "train on the workers of a Dask cluster"},
        "--device": {"default": "cpu", "help": "what trains: cpu or cuda (default: cpu)"},
        "--profile": PROFILE,
        "--dry-run": {"action": "store_true", "help": "list what is missing and stop"},
    },
    status: {
        "study": {"nargs": "?", "help": "name of a study (default: a line for each)"},
        "--parquet": {"type": Path, "metavar": "PATH", "help": "write every recorded row as one Parquet file"},
    },
    verify: {
        "run": {"nargs": "?", "help": "task/dataset/arm/seed<k> (default: the cheapest recorded one)"},
        "--updates": {"type": count, "default": 10_000, "help": "gradient steps to train (default: 10,000)"},
    },
    collect: {
        "task": TASK,
        "--to": {"type": integer, "metavar": "STEPS", "help": "stop there: 0 makes only the random dataset, at once"},
        "--seed": {"type": integer, "default": 0, "help": "of the training (default: 0)"},
        "--output": {"type": Path, "help": "folder (default: data/offline; the whole replay: build/offline)"},
    },
    data: {
        "source": {"nargs": "?", "help": "PATH.hdf5 or minari:ID, to import"},
        "--as": {"dest": "name", "metavar": "NAME", "help": "of the dataset that is made, e.g. hopper-d4rl"},
        "--output": {"type": Path, "help": "folder of what is imported or exported (default: build/offline, build/minari)"},
        "--export": {"choices": ["minari"], "help": "make Minari datasets of the bundled pools (in build/minari)"},
        "--readme": {"action": "store_true", "help": "write data/offline/README.md anew, from the cards"},
        "--probes": {"action": "store_true", "help": "write data/probes anew, from the bundled pools"},
    },
    advise: {
        "dataset": {"help": "a pool's name, the path of a D4RL v2 file, or minari:ID"},
        "--task": {"help": "of the dataset (default: the task in its name)"},
    },
    watch: {
        "task": TASK,
        "--run": {"required": True, "help": "task/dataset/arm/seed<k>, e.g. hopper/none/sac_million/seed0"},
        "--policy": {"default": "final", "help": "final or medium (default: final)"},
        "--seconds": {"type": seconds, "default": 5.0, "help": "of simulated time (default: 5)"},
        "--output": {"type": Path, "help": "folder (default: build/watch)"},
    },
    strips: {},
    models: {"--work": {"type": Path, "help": "folder of the checkpoints (default: build/checkpoints/paper)"}},
    films: {},
    figures: {
        "--profile": PROFILE,
        "--only": CHAPTERS,
        "--anew": {"action": "store_true", "help": "write data/models/drawn anew in place of comparing with it"},
    },
    notebooks: {"--only": CHAPTERS},
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = Parser(prog="python -m mbaug", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for call, options in COMMANDS.items():
        command = commands.add_parser(call.__name__, help=call.__doc__)
        command.set_defaults(call=call)
        for name, option in options.items():
            command.add_argument(name, **option)
    return top


def end_of_pipe(error: BrokenPipeError) -> None:
    """Ends silently where nobody reads any more, as in `mbaug status | head -1`; another broken pipe is told."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not output.poll(0):  # somebody reads
        sys.exit(f"mbaug: {error}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; whatever was wrong with what was given ends in one sentence."""
    given = parser().parse_args(arguments)
    try:
        with ending.as_by_ctrl_c():
            given.call(given)
            sys.stdout.flush()
    except BrokenPipeError as error:
        end_of_pipe(error)
    except KeyboardInterrupt:
        resumes = given.call in (record, collect)
        sys.exit("mbaug: interrupted" + ("; the same command goes on from the last checkpoints" if resumes else ""))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        several = "\n" if isinstance(error, RuntimeError) else ""  # runs or notebooks that failed have a line each, or more
        sys.exit(f"mbaug: {escaped(error, several)}")


if __name__ == "__main__":
    main()
