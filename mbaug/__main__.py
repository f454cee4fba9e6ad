"""Trains, records, verifies and draws the runs of mbaug, and manages its offline data.

`python -m mbaug COMMAND --help` lists the options of a command.
"""

import argparse
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from mbaug import checks, ending, files

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch and NumPy are imported: see engine.prepare
if (files.CLONE / "pyproject.toml").is_file():
    os.environ.setdefault("MPLCONFIGDIR", str(files.CLONE / "build" / "matplotlib"))  # we write nothing outside the clone


SEEDS = 100  # upper limit for --seeds: for the whole programme these are 10,000 runs
SPAN = "[0-9]{1,9}(-[0-9]{1,9})?"  # pattern of a seed or a range of seeds
WORKERS_PER_CORE = 4  # upper limit for --workers


def escaped(text: object, keep: str = "") -> str:
    """Returns text with its unprintable characters escaped, except for those in `keep`."""
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in str(text))


def say(text: object) -> None:
    """Prints text with control characters escaped, since a path or a file may hold terminal commands."""
    print(escaped(text, "\n"), flush=True)


def runs_missing(number: int) -> str:
    """Returns how many runs are missing, as "1 run missing"."""
    return f"{number} run{'' if number == 1 else 's'} missing"


class Parser(argparse.ArgumentParser):
    """A parser that escapes control characters in its error messages."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def seeds(text: str) -> list[int]:
    """Returns the seeds in text such as "0-4" or "0,2,5"."""
    if re.fullmatch(f"{SPAN}(,{SPAN})*", text):
        ends = [part.split("-") for part in text.split(",")]
        spans = [range(int(end[0]), int(end[-1]) + 1) for end in ends]
        if all(spans) and sum(map(len, spans)) <= SEEDS:
            return list(chain(*spans))
    allowed = f"a range such as 0-4 or a list such as 0,2,5, with at most {SEEDS} seeds, each below a billion"
    raise argparse.ArgumentTypeError(f"seeds are {text!r:.40}, but they must be {allowed}")


def matching(pattern: str, words: str, kind: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Returns an argparse type that accepts text matching `pattern`, described by `words`, and converts it with `kind`."""

    def convert(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r:.40} was given, but it must be {words}")
        return kind(text)

    return convert


integer = matching("[0-9]{1,9}", "a whole number from 0 to 999,999,999", int)
count = matching("(?!0+$)[0-9]{1,9}", "a whole number from 1 to 999,999,999", int)
# An empty address, e.g. from an unset shell variable, is refused: without an address we would train on this machine.
address = matching(r"([a-z]+://)?([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", "an address such as tcp://HOST:8786")


def workers_for(arguments: argparse.Namespace) -> int:
    """Returns the number of processes that train here; raises ValueError if it is too large or given beside a cluster."""
    import joblib

    both = arguments.workers is not None and arguments.cluster is not None
    checks.require(not both, "--workers and --cluster exclude each other: on a cluster, use `dask worker --nworkers`")
    cores = joblib.cpu_count()  # cores that this process may use
    default = cores if arguments.device == "cpu" else 1  # one process with many agents fills a GPU
    workers, limit = arguments.workers or default, WORKERS_PER_CORE * cores
    checks.require(workers <= limit, f"workers is {workers}, but on {cores} cores it must be at most {limit}")
    return workers


def record(arguments: argparse.Namespace) -> None:
    """Trains and records the missing runs of the programme, in its order, or of one study; resumes interrupted runs."""
    from mbaug import engine
    from mbaug.experiments import records, runner, studies

    profile, workers = studies.profile(arguments.profile), workers_for(arguments)
    if arguments.cluster:
        checks.choose("device", arguments.device, engine.DEVICES)
    else:
        engine.check_device(arguments.device)
    runs = studies.programme(profile.seeds) if arguments.study is None else studies.find(arguments.study).runs(profile.seeds)
    if arguments.seeds is not None:
        runs = studies.with_seeds(runs, arguments.seeds)
    runs = runner.select(runs, arguments.only)
    root = runner.runs_folder(profile.name, retrain=profile.name != "paper")
    missing = runner.missing(runs, root, profile)
    hours = runner.hours(missing, records.load_metadata(records.root()), profile)
    if arguments.cluster or arguments.device != "cpu":
        takes = f"{hours:.1f} hours of one CPU core"
    else:
        takes = f"{hours / workers:.1f} hours with {workers} worker{'s' if workers > 1 else ''}"
    say(f"{arguments.study or 'programme'}: {runs_missing(len(missing))} in {root}, about {takes}")
    if not missing and profile.name != "paper":
        say(f"to train them again after a code change, delete {root}")
    if arguments.dry_run:
        for run in missing:
            say(run)
        return
    runner.record(runs, root, None, profile, workers, arguments.cluster, arguments.population, arguments.device)


def status(arguments: argparse.Namespace) -> None:
    """Shows how many runs of each study are recorded and how many hours are left, or the state of one study's runs."""
    import joblib

    from mbaug.experiments import records, runner, studies

    work, root = runner.work_folder(), records.root()
    together = "--parquet writes all recorded runs: leave out the study"
    checks.require(arguments.study is None or arguments.parquet is None, together)
    if arguments.parquet is not None:
        records.write_parquet(root, arguments.parquet)
        say(arguments.parquet)
        return
    if arguments.study is not None:
        say(runner.status(studies.find(arguments.study), root, work).to_string())
        return
    metadata, cores, programme = records.load_metadata(root), joblib.cpu_count(), studies.programme()
    for study in studies.STUDIES.values():
        runs = study.runs()
        missing = [run for run in runs if run not in metadata]
        total, left = (runner.hours(some, metadata) / cores for some in (runs, missing))
        hours = f"{total:>7.1f} hours on {cores} cores, {left:.1f} left"
        say(f"{study.name:<11}{len(runs) - len(missing):>4} of {len(runs):>3} runs{hours:<36}  {study.question}")
    missing = [run for run in programme if run not in metadata]
    hours_left = runner.hours(missing, metadata) / cores
    say(f"programme: {runs_missing(len(missing))}, about {hours_left:.1f} hours on {cores} cores")


def verify(arguments: argparse.Namespace) -> None:
    """Trains a recorded run again, by default the cheapest one in float32, and compares it with the record."""
    from mbaug.experiments import records, verify

    if arguments.run is None:
        found = records.load_metadata(records.root())
        if not found:
            raise FileNotFoundError(f"nothing is recorded in {records.root()}: run python -m mbaug record hopper first")

        def cost(run: records.Run) -> tuple:
            origin, seconds = found[run]["provenance"], found[run]["wall_seconds"]
            return "device" in origin, origin["precision"] != "float32", seconds

        run = min(found, key=cost)  # trained on a CPU in float32, which every processor has, then the cheapest
    else:
        run = records.Run.parse(arguments.run)
    with tempfile.TemporaryDirectory() as work:
        say(verify.verify(run, records.root(), Path(work), arguments.updates))


def collect(arguments: argparse.Namespace) -> None:
    """Trains and records the SAC agent that collects a task's offline data, and writes the datasets; resumes if interrupted."""
    from mbaug import tasks
    from mbaug.datasets import collect, pools, read
    from mbaug.experiments import records, run, runner, studies

    task, to, arm = tasks.find(arguments.task), arguments.to, studies.ARMS["sac_million"]
    steps = arm.online.steps
    checks.require(to is None or to <= steps, f"to is {to}, but it must be from 0 to {steps:,}, the number of training steps")
    work = runner.work_folder()  # shared with `record long`, which trains the same run
    folders = read.FOLDERS if arguments.output is None else (arguments.output, arguments.output)
    sac_run, root = records.Run(task.name, "none", "sac_million", arguments.seed), records.root()
    run.prepare_for(arm)
    if runner.is_training(sac_run, arm, work):
        say(f"another process is training {sac_run}: waiting until it ends")
    with runner.held([sac_run], arm, work):
        recorded = runner.recorded_curve(sac_run, root)
        train = partial(run.collected, sac_run, arm, root, work, to)
        collect.collect(task, arguments.seed, folders, recorded, train, say)
    if arguments.output is None:
        pools.write_readme(folders[0])


def data(arguments: argparse.Namespace) -> None:
    """Lists and verifies the offline datasets, imports a D4RL v2 file or a Minari dataset, or exports to Minari."""
    from mbaug.datasets import export, pools
    from mbaug.experiments import probes

    importing = arguments.source is not None or arguments.name is not None
    unused = "--output names the folder of an import or export: add PATH.hdf5 --as NAME, or --export minari"
    checks.require(importing or arguments.export or arguments.output is None, unused)
    asked = [f"--{each}" for each in ("export", "readme", "probes") if getattr(arguments, each)]
    if importing:
        asked.insert(0, "an import")
    checks.require(len(asked) <= 1, f"{' and '.join(asked)} cannot be combined: run one command for each")
    if importing:
        import_data(arguments)
        return
    repository = files.repository()  # raises without a clone
    if arguments.export:
        folder = arguments.output or repository / "build" / "minari"
        note = f"in {folder}, with a card: set MINARI_DATASETS_PATH to this folder and Minari finds them"
        for identifier in export.minari_datasets(folder):
            say(identifier)
        say(note)
    elif arguments.readme:
        pools.write_readme()
    elif arguments.probes:
        for path in probes.write():
            say(path)
    else:
        table = pools.listing()
        say(table.to_string())
        bad = table.index[table.checksum != pools.VERIFIED]
        differ = f"these pools do not match their cards: {', '.join(bad)}; restore pool and card, or make both again"
        checks.require(bad.empty, differ)


def import_data(arguments: argparse.Namespace) -> None:
    """Imports a dataset under a new name; raises ValueError if one of the two is missing."""
    from mbaug.datasets import imports

    source = checks.given(arguments.source, "--as NAME needs a dataset to import: add PATH.hdf5 or minari:ID")
    name = checks.given(arguments.name, "an import needs a name for the new dataset: add --as NAME, e.g. --as hopper-d4rl")
    folder = arguments.output or files.repository() / "build" / "offline"
    say(imports.import_dataset(source, name, folder, say))


def strips(arguments: argparse.Namespace) -> None:
    """Renders a strip of frames for each dataset in data/offline that lacks one; needs no display."""
    from mbaug.datasets import render

    os.environ["MUJOCO_GL"] = render.opengl()  # before importing MuJoCo, which fails if the library it names is missing
    from mbaug import tasks
    from mbaug.datasets import read

    files.repository()  # raises without a clone, where there would be nothing to render
    count, size = render.STRIP
    for path in read.bundled([read.FOLDER]).values():
        strip = path.with_suffix(".png")
        if strip.exists():
            continue
        task, data = tasks.find(path.stem.split("-")[0]), read.load(path.stem)
        environment = tasks.make(task, width=size, height=size, **render.CLOSE)
        states = render.moments(data, count, most=round(1 / environment.get_wrapper_attr("dt")))  # a span of 1 s
        files.write_atomically(strip, render.strip(render.stills(environment, states)))
        environment.close()
        say(strip)


def models(arguments: argparse.Namespace) -> None:
    """Writes the missing files of data/models: fits models and trains short policies (minutes each), and extracts agents."""
    from mbaug.experiments import records, runner, trained
    from mbaug.reporting import advice

    work = arguments.work or runner.work_folder()
    for line in trained.make(records.root(), work):
        say(line)
    trained.update_along_actions(records.root(), work)
    for line in advice.update_policies():
        say(line)


def advise(arguments: argparse.Namespace) -> None:
    """Reports a dataset's score, how good a world model of it is, and what to keep online (takes minutes)."""
    from mbaug.experiments import records
    from mbaug.reporting import advice

    for line in advice.advise(arguments.dataset, arguments.task, records.load_runs(records.root())):
        say(line)


def watch(arguments: argparse.Namespace) -> None:
    """Films a few seconds of a recorded policy as MP4 and GIF; needs no display."""
    users_choice = os.environ.pop("MUJOCO_GL", "")  # importing MuJoCo fails if the library it names is missing
    from mbaug import tasks
    from mbaug.datasets import render
    from mbaug.experiments import records, runner

    task, run = tasks.find(arguments.task), records.Run.parse(arguments.run)
    checks.require(run.task == task.name, f"{run} is a run of {run.task}, but the task given is {task.name}")
    act = runner.policy(run, records.root(), arguments.policy)
    render.check_seconds(arguments.seconds)
    os.environ["MUJOCO_GL"] = users_choice
    os.environ["MUJOCO_GL"] = render.opengl()  # takes seconds, so we check the arguments first
    environment = tasks.make(task, width=render.SIZE, height=render.SIZE, **render.FOLLOWED)
    frames, frames_per_second = render.frames(environment, act, arguments.seconds)
    environment.close()
    folder = arguments.output or files.repository() / "build" / "watch"
    for suffix, write in (("mp4", render.mp4), ("gif", render.gif)):
        path = folder / f"{str(run).replace('/', '-')}-{arguments.policy}.{suffix}"
        files.write_atomically(path, write(frames, frames_per_second))
        say(path)


def films(arguments: argparse.Namespace) -> None:
    """Films each agent of data/models before, during and after learning online."""
    from mbaug.datasets import render

    os.environ["MUJOCO_GL"] = render.opengl()  # before importing MuJoCo, which fails if the library it names is missing
    from mbaug.experiments import records
    from mbaug.reporting import chapters, figures, films

    folder = chapters.committed_figures()
    for path in films.make(folder / "films", records.root()):
        say(path)
    figures.write_gallery(folder)


def figures(arguments: argparse.Namespace) -> None:
    """Runs the notebooks headless, draws every figure, and updates the README's tables and the chapters' answers."""
    from mbaug.experiments import records, studies
    from mbaug.reporting import answers, chapters, figures, stored, tables

    paper = studies.profile(arguments.profile).name == "paper"
    refused = f"--anew writes tables of the profile 'paper', but the profile is {arguments.profile!r}"
    checks.require(paper or not arguments.anew, refused)
    frame = None
    if paper:
        chapters.find(arguments.only)  # refuses an unknown chapter before the work
        frame = records.load_runs(records.root())
        tables.update(frame)
    if arguments.anew:
        os.environ[stored.ANEW] = "1"
    chapters.run(arguments.profile, only=arguments.only)
    if frame is None:
        say(f"look:  {figures.figures_folder(arguments.profile)}; reduced budgets test the code, but are not evidence")
        return
    tables.update(frame)  # again, since an answer may use numbers that were just drawn
    folder = chapters.committed_figures()
    figures.write_gallery(folder)
    say(f"found: {answers.readme(frame)}")
    say(f"look:  README.md has the paper's claims, and {os.path.relpath(folder / 'README.md')} every figure")
    say("next:  read on with .venv/bin/jupyter lab notebooks/00_overview.ipynb, or train the missing runs with make record")


def notebooks(arguments: argparse.Namespace) -> None:
    """Updates the chapters' answers, and executes the notebooks to renew their reading copies."""
    from mbaug.experiments import records
    from mbaug.reporting import chapters, tables

    chapters.find(arguments.only)  # refuses an unknown chapter before the work
    tables.update(records.load_runs(records.root()))
    chapters.reading_copies(only=arguments.only)


TASK = {"help": "name of a task, e.g. hopper (any unknown name prints the list)"}
PROFILE = {"default": "paper", "help": "training budgets: smoke, quick or paper (default: paper)"}
CHAPTER = {"metavar": "NN", "help": "execute only this chapter, e.g. 02 or 02_world_model"}
FOLDER = {"type": Path, "metavar": "FOLDER"}
# The arguments of each command, as keyword arguments of `add_argument`.
COMMANDS: dict[Callable[[argparse.Namespace], None], dict[str, dict[str, Any]]] = {
    record: {
        "study": {"nargs": "?", "help": "name of a study, e.g. hopper (default: the whole programme, in its order)"},
        "--only": {"default": "*", "metavar": "PATTERN", "help": "train only runs whose name matches, e.g. 'sac/*'"},
        "--seeds": {"type": seeds, "metavar": "SEEDS", "help": "train these seeds instead of the study's, e.g. 0-4 or 0,2,5"},
        "--workers": {"type": count, "metavar": "N", "help": "number of processes (default: one per core, or one on a GPU)"},
        "--population": {"type": count, "default": 1, "metavar": "N", "help": "agents trained by each process (default: 1)"},
        "--cluster": {"type": address, "metavar": "tcp://HOST:8786", "help": "train on the workers of this Dask cluster"},
        "--device": {"default": "cpu", "help": "device to train on: cpu or cuda (default: cpu)"},
        "--profile": PROFILE,
        "--dry-run": {"action": "store_true", "help": "list the missing runs and exit"},
    },
    status: {
        "study": {"nargs": "?", "help": "name of a study to show in detail (default: one line for each study)"},
        "--parquet": {"type": Path, "metavar": "PATH", "help": "write all recorded rows to one Parquet file instead"},
    },
    verify: {
        "run": {"nargs": "?", "help": "run to verify, as task/dataset/arm/seed<k> (default: the cheapest recorded run)"},
        "--updates": {"type": count, "default": 10_000, "metavar": "N", "help": "gradient steps to train (default: 10,000)"},
    },
    collect: {
        "task": TASK,
        "--to": {"type": integer, "metavar": "STEPS", "help": "stop after STEPS environment steps (0: only write random data)"},
        "--seed": {"type": integer, "default": 0, "help": "random seed of the training (default: 0)"},
        "--output": FOLDER | {"help": "folder to write to (default: data/offline; for the whole replay: build/offline)"},
    },
    data: {
        "source": {"nargs": "?", "help": "dataset to import: PATH.hdf5 or minari:ID"},
        "--as": {"dest": "name", "metavar": "NAME", "help": "name for the imported dataset, e.g. hopper-d4rl"},
        "--output": FOLDER | {"help": "folder for the import or export (default: build/offline or build/minari)"},
        "--export": {"choices": ["minari"], "help": "export the bundled datasets as Minari datasets"},
        "--readme": {"action": "store_true", "help": "write data/offline/README.md again from the datasets' cards"},
        "--probes": {"action": "store_true", "help": "write the missing files of data/probes, from medium-replay pools"},
    },
    advise: {
        "dataset": {"help": "name of an offline dataset, path of a D4RL v2 file, or minari:ID"},
        "--task": {"help": "task of the dataset (default: the task in its name)"},
    },
    watch: {
        "task": TASK,
        "--run": {"required": True, "help": "run to film, as task/dataset/arm/seed<k>, e.g. hopper/none/sac_million/seed0"},
        "--policy": {"default": "final", "help": "which policy of the run: final or medium (default: final)"},
        "--seconds": {"type": float, "default": 5.0, "help": "simulated time to film, in seconds (default: 5)"},
        "--output": FOLDER | {"help": "folder to write to (default: build/watch)"},
    },
    strips: {},
    models: {"--work": FOLDER | {"help": "folder of the checkpoints (default: build/checkpoints/paper)"}},
    films: {},
    figures: {
        "--profile": PROFILE,
        "--only": CHAPTER,
        "--anew": {"action": "store_true", "help": "overwrite the tables in data/models/drawn instead of checking them"},
    },
    notebooks: {"--only": CHAPTER},
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser for all commands."""
    top = Parser(prog="python -m mbaug", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for call, options in COMMANDS.items():
        command = commands.add_parser(call.__name__, help=call.__doc__, description=call.__doc__)
        command.set_defaults(call=call)
        for name, option in options.items():
            command.add_argument(name, **option)
    return top


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. Any expected error ends the process with one sentence."""
    for stream in (sys.stdout, sys.stderr):  # a locale such as ISO-8859-1 lacks some of our letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = parser().parse_args(arguments)
    try:
        with ending.as_by_ctrl_c():
            given.call(given)
            if sys.stdout is not None:  # None where a shell closed it with >&-
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `mbaug status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes standard output, 1, once more on exit
        sys.exit(1)
    except KeyboardInterrupt:
        resumes = given.call in (record, collect)
        sys.exit("mbaug: interrupted" + ("; the same command continues from the last checkpoints" if resumes else ""))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        keep = "\n" if isinstance(error, RuntimeError) else ""  # failed runs and notebooks have at least one line each
        sys.exit(f"mbaug: {escaped(error, keep)}")


if __name__ == "__main__":
    main()
