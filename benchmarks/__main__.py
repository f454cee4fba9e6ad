"""Measures updates per second, and compares them with the processor's limit, plain torch and other installed libraries."""

import argparse
import json
import os
import sys

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch and NumPy are imported: see engine.prepare


def bench(as_json: bool, record: bool, device: str) -> None:
    """Measures a few sections and prints them as tables or JSON, or measures all sections and records them."""
    from benchmarks import results, speed
    from mbaug import engine, files

    engine.prepare("float32", device)
    thorough, all_sections = (speed.FULL, speed.SECTIONS) if device == "cpu" else (speed.FULL_ON_GPU, speed.ON_GPU)
    effort, sections = (thorough, all_sections) if record else (speed.QUICK, speed.SHORT)
    if record:
        minutes = f"Measures every section {effort.repeats} times, in up to {40 if device == 'cpu' else 10} minutes"
        print(f"{minutes}: leave the machine otherwise idle", flush=True)
    document = results.measure(effort, device, [one for one in sections if one in all_sections])
    if record or as_json:
        print(results.keep(document) if record else json.dumps(files.finite(files.plain(document)), indent=2))
        return
    for name, rows in document["sections"].items():
        print(results.text(name, rows))
    if device == "cpu":
        print(*results.ratios(document["sections"]["peers"]), sep="\n")
    if not engine.has_bfloat16(device):
        print(f"The device {device!r} has no bfloat16 products in hardware, so only float32 was measured.")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. Any expected error ends the process with one sentence."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    to = options.add_mutually_exclusive_group()
    to.add_argument("--json", action="store_true", help="print JSON instead of tables")
    to.add_argument("--record", action="store_true", help="record all sections in data/benchmarks (up to 40 minutes)")
    options.add_argument("--device", default="cpu", help="device to measure: cpu or cuda (default: cpu)")
    given = options.parse_args(arguments)
    try:
        bench(given.json, given.record, given.device)
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    main()
