"""The command line: `python -m mbaug COMMAND`. Each command is a thin call into the package."""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch and NumPy are imported: see engine.prepare


def seeds(text: str) -> list[int]:
    """Returns the seeds of "0-4" or "0,2,5".

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"seeds are {text!r}, but they must be a range such as 0-4 or a list such as 0,2,5")
        found += range(int(first), int(last or first) + 1)
    return found


def count(text: str) -> int:
    """Returns a number of processes or agents.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given, but it must be a whole number, 1 or above")
    return int(text)


def record(arguments: argparse.Namespace) -> None:
    """Trains and records the missing runs of a study."""
    import joblib

    from mbaug import engine, grid, recording, settings, study

    wanted, profile = grid.find(arguments.study), settings.profile(arguments.profile)
    settings.choose("device", arguments.device, engine.DEVICES if arguments.cluster else engine.devices())
    workers = arguments.workers or joblib.cpu_count()  # the cores that this process may use
    build = recording.repository() / "build"
    root = recording.root() if profile.name == "paper" else build / profile.name / "runs"
    missing = study.missing(wanted, root, profile, arguments.only, arguments.seeds)
    budgets = replace(wanted, arms={name: profile.apply(arm) for name, arm in wanted.arms.items()})
    train = study.to_train(budgets, missing, root)
    hours = study.seconds(budgets, train, study.step_seconds(recording.root())) / workers / 3600
    print(f"{wanted.name}: {len(missing)} runs missing in {root}, about {hours:.1f} hours with {workers} workers")
    if arguments.dry_run:
        print(*missing, sep="\n")
        return
    work = None if arguments.cluster else build / "checkpoints" / profile.name  # a cluster's workers have folders of their own
    scale = {name: getattr(arguments, name) for name in ("cluster", "population", "device")}
    study.record(wanted, root, work, profile, arguments.only, arguments.seeds, workers, **scale)


def programme(arguments: argparse.Namespace) -> None:
    """Trains and records what is missing of the programme, in the order of its importance; goes on where it was interrupted."""
    import joblib

    from mbaug import recording, study

    work = recording.repository() / "build" / "checkpoints" / "paper"
    study.record_programme(recording.root(), work, arguments.workers or joblib.cpu_count(), partial(print, flush=True))


def status(arguments: argparse.Namespace) -> None:
    """Shows what of the programme, or of one study, is finished, diverged, running and missing."""
    import joblib

    from mbaug import grid, recording, study

    work, root = recording.repository() / "build" / "checkpoints" / "paper", recording.root()
    if arguments.study is not None:
        print(study.status(grid.find(arguments.study), root, work).to_string())
        return
    pace, cores = study.step_seconds(root), joblib.cpu_count()
    for one in grid.STUDIES.values():
        runs = one.runs()
        missing = recording.missing(root, runs)
        train = study.to_train(one, missing, root)
        whole, left = (study.seconds(one, some, pace) / 3600 / cores for some in (runs, train))
        hours = f"{whole:>7.1f} hours on {cores} cores, {left:.1f} left"
        print(f"{one.name:<11}{len(runs) - len(missing):>4} of {len(runs):>3} runs{hours:<36}{one.question}")


def verify(arguments: argparse.Namespace) -> None:
    """Trains a recorded run again, by default the cheapest one in float32, and compares its rows with the record."""
    from mbaug import recording, study

    if arguments.run is None:
        records = recording.load_metadata(recording.root())
        if not records:
            raise FileNotFoundError(f"nothing is recorded in {recording.root()}: python -m mbaug record hopper")
        costs = {run: (one["provenance"]["precision"] != "float32", one["wall_seconds"]) for run, one in records.items()}
        run = min(costs, key=costs.get)  # in float32 if there is one: every processor has that
    else:
        run = recording.Run.parse(arguments.run)
    with tempfile.TemporaryDirectory() as work:
        print(study.verify(run, recording.root(), Path(work), arguments.updates))


def collect(arguments: argparse.Namespace) -> None:
    """Trains the SAC of a task's offline data, records it, and makes the datasets; goes on where it was interrupted."""
    from mbaug import offline_data, pools, recording, study, tasks

    task, work = tasks.find(arguments.task), recording.repository() / "build" / "checkpoints" / "paper"  # those of `record long`
    folders = offline_data.FOLDERS if arguments.output is None else (arguments.output, arguments.output)
    study.collect(task, arguments.seed, recording.root(), work, folders, arguments.to, partial(print, flush=True))
    if arguments.output is None:
        pools.write_readme(folders[0])


def data(arguments: argparse.Namespace) -> None:
    """Lists and verifies the datasets that are here, or makes one of a D4RL v2 file or a Minari set."""
    from mbaug import offline_data, pools, probes, settings

    if arguments.readme:
        pools.write_readme()
    elif arguments.probes:
        probes.write()
    elif arguments.source is not None or arguments.name is not None:
        settings.require(arguments.source is not None, "--as NAME also needs PATH.hdf5 or minari:ID, which names what to import")
        settings.require(arguments.name is not None, "--as names the dataset that is made, e.g. --as hopper-d4rl: add it")
        print(pools.import_dataset(arguments.source, arguments.name, arguments.output or offline_data.FOLDERS[1]))
    else:
        table = pools.listing()
        print(table.to_string())
        bad = table.index[table.checksum != pools.VERIFIED]
        settings.require(bad.empty, f"not as their cards say: {', '.join(bad)}; restore or make pool and card again")


def strips(arguments: argparse.Namespace) -> None:
    """Renders a strip of frames of each dataset in data/offline that has none, without a screen."""
    from mbaug import rendering

    os.environ["MUJOCO_GL"] = rendering.opengl()  # before MuJoCo is imported: it fails on a library that is not there
    from mbaug import files, offline_data, pools, tasks, transitions

    (folder, _), (count, size) = offline_data.FOLDERS, rendering.STRIP
    for path in pools.paths([folder]):
        if pools.strip_of(path).exists():
            continue
        task, data = tasks.find(path.stem.split("-")[0]), transitions.load(path.stem)
        environment = tasks.make(task, render_mode="rgb_array", width=size, height=size, **rendering.CLOSE)
        states = pools.moments(data, count, most=round(1 / environment.unwrapped.dt))  # a second
        files.write_atomically(pools.strip_of(path), rendering.strip(rendering.stills(environment, states)))
        environment.close()
        print(pools.strip_of(path))


def watch(arguments: argparse.Namespace) -> None:
    """Renders a few seconds of a recorded policy to MP4 and GIF, without a screen."""
    given = os.environ.pop("MUJOCO_GL", "")  # MuJoCo, when it is imported, fails on a library that is not there
    from mbaug import files, recording, rendering, settings, study, tasks

    task, run = tasks.find(arguments.task), recording.Run.parse(arguments.run)
    settings.require(run.task == task.name, f"{run} is a run of {run.task}, but {task.name} was asked for")
    act = study.policy(run, recording.root(), arguments.policy)
    rendering.check_seconds(arguments.seconds)
    os.environ["MUJOCO_GL"] = given
    os.environ["MUJOCO_GL"] = rendering.opengl()  # takes seconds, and so comes after what is wrong with what was typed
    environment = tasks.make(task, render_mode="rgb_array", width=rendering.SIZE, height=rendering.SIZE)
    frames, frames_per_second = rendering.frames(environment, act, arguments.seconds)
    environment.close()
    folder = arguments.output or recording.repository() / "build" / "watch"
    for suffix, write in (("mp4", rendering.mp4), ("gif", rendering.gif)):
        path = folder / f"{str(run).replace('/', '-')}-{arguments.policy}.{suffix}"
        files.write_atomically(path, write(frames, frames_per_second))
        print(path)


def bench(arguments: argparse.Namespace) -> None:
    """Measures updates a second against the processor's limit, and against peers that are installed."""
    from mbaug import benchmark

    benchmark.main(arguments.json, arguments.device, arguments.record)


def figures(arguments: argparse.Namespace) -> None:
    """Runs the notebooks headless, draws every figure, and brings the README's tables up to date."""
    from mbaug import chapters, presentation, recording

    chapters.run(arguments.profile, only=arguments.only)
    if arguments.profile == "paper":
        presentation.gallery(presentation.figures_folder())
        presentation.update_readme(recording.repository() / "README.md", recording.load_runs(recording.root()))


def notebooks(arguments: argparse.Namespace) -> None:
    """Executes the notebooks' reading copies again."""
    from mbaug import chapters

    chapters.reading_copies(only=arguments.only)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m mbaug", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("record", help=record.__doc__)
    command.add_argument("study", help="name of a study, e.g. hopper")
    command.add_argument("--only", default="*", metavar="PATTERN", help="runs whose name matches, e.g. 'sac/*'")
    command.add_argument("--seeds", type=seeds, metavar="0-4", help="in place of the study's own")
    command.add_argument("--workers", type=count, help="processes (default: one per core)")
    command.add_argument("--population", type=count, default=1, help="agents that one process trains side by side (default: 1)")
    command.add_argument("--cluster", metavar="tcp://HOST:8786", help="train on the workers of a Dask cluster")
    command.add_argument("--device", default="cpu", help="what trains: cpu or cuda (default: cpu)")
    command.add_argument("--profile", default="paper", help="budgets: smoke, quick or paper")
    command.add_argument("--dry-run", action="store_true", help="list what is missing and stop")
    command.set_defaults(call=record)

    command = commands.add_parser("programme", help=programme.__doc__)
    command.add_argument("--workers", type=count, help="processes (default: one per core)")
    command.set_defaults(call=programme)

    command = commands.add_parser("status", help=status.__doc__)
    command.add_argument("study", nargs="?", help="name of a study (default: a line for each)")
    command.set_defaults(call=status)

    command = commands.add_parser("verify", help=verify.__doc__)
    command.add_argument("run", nargs="?", help="study/task/dataset/arm/seed<k> (default: the cheapest recorded one)")
    command.add_argument("--updates", type=count, default=10_000, help="gradient steps to train (default: 10,000)")
    command.set_defaults(call=verify)

    command = commands.add_parser("collect", help=collect.__doc__)
    command.add_argument("task", help="hopper, walker2d, halfcheetah or ant")
    command.add_argument("--to", type=int, metavar="STEPS", help="stop there: 0 makes only the random dataset, at once")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--output", type=Path, help="folder (default: data/offline; the whole replay: build/offline)")
    command.set_defaults(call=collect)

    command = commands.add_parser("data", help=data.__doc__)
    command.add_argument("source", nargs="?", help="PATH.hdf5 or minari:ID, to import")
    command.add_argument("--as", dest="name", metavar="NAME", help="of the dataset that is made, e.g. hopper-d4rl")
    command.add_argument("--output", type=Path, help="folder of what is imported (default: build/offline)")
    command.add_argument("--readme", action="store_true", help="write data/offline/README.md anew, from the cards")
    command.add_argument("--probes", action="store_true", help="write data/probes anew, from the bundled pools")
    command.set_defaults(call=data)

    command = commands.add_parser("watch", help=watch.__doc__)
    command.add_argument("task", help="hopper, walker2d, halfcheetah or ant")
    command.add_argument("--run", required=True, help="study/task/dataset/arm/seed<k>, e.g. long/hopper/none/sac_million/seed0")
    command.add_argument("--policy", default="final", help="final or medium (default: final)")
    command.add_argument("--seconds", type=float, default=5.0, help="of simulated time (default: 5)")
    command.add_argument("--output", type=Path, help="folder (default: build/watch)")
    command.set_defaults(call=watch)

    command = commands.add_parser("strips", help=strips.__doc__)
    command.set_defaults(call=strips)

    command = commands.add_parser("bench", help=bench.__doc__)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--record", action="store_true", help="measure all, several times, into data/benchmarks (long)")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.set_defaults(call=bench)

    command = commands.add_parser("figures", help=figures.__doc__)
    command.add_argument("--profile", default="paper", help="smoke, quick or paper")
    command.add_argument("--only", help="chapters whose name begins so, e.g. 02")
    command.set_defaults(call=figures)

    command = commands.add_parser("notebooks", help=notebooks.__doc__)
    command.add_argument("--only", help="chapters whose name begins so, e.g. 02")
    command.set_defaults(call=notebooks)
    return top


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; whatever was wrong with what was given ends in one sentence."""
    given = parser().parse_args(arguments)
    try:
        given.call(given)
    except KeyboardInterrupt:
        resumes = given.call in (record, programme, collect)
        sys.exit("mbaug: interrupted" + ("; the same command goes on from the last checkpoints" if resumes else ""))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"mbaug: {error}")


if __name__ == "__main__":
    main()
