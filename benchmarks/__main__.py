"""Measures updates a second against the processor's limit, against plain torch, and against peers that are installed."""

import argparse
import os
import sys

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch and NumPy are imported: see engine.prepare


def bench(as_json: bool, record: bool, device: str) -> None:
    """Prints a few sections, as tables or as JSON, or measures all of them and keeps them."""
    from benchmarks import results, speed
    from mbaug import engine, files

    engine.prepare("float32", device)
    effort, sections = (speed.FULL, speed.SECTIONS) if record else (speed.QUICK, speed.SHORT)
    if record:
        print("All sections, five times each: up to 40 minutes, in which the machine should do nothing else", flush=True)
    document = results.measure(effort, device, [one for one in sections if device == "cpu" or one in speed.ON_GPU])
    if record or as_json:
        print(results.keep(document) if record else files.json_text(document))
        return
    for name, rows in document["sections"].items():
        print(results.text(name, rows))
    if device == "cpu":
        print(*results.ratios(document["sections"]["peers"]), sep="\n")
    if not engine.has_bfloat16(device):
        print("This processor has no bfloat16 products (avx512_bf16 or amx_bf16): float32 alone is measured.")


def main(arguments: list[str] | None = None) -> None:
    """Measures; whatever was wrong with what was given ends in one sentence."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument("--record", action="store_true", help="measure all, several times, into data/benchmarks (long)")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    given = options.parse_args(arguments)
    try:
        bench(given.json, given.record, given.device)
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    main()
