"""Every benchmark beside this file, or those named, each in a process of its own, and the table of results.

    python -m benchmarks                      all, printed
    python -m benchmarks unet glow --rounds 3 two of them, quicker
    python -m benchmarks --results            all, and written to benchmarks/RESULTS.md as this kind of processor's table

Options that are not its own go to each benchmark. A peer that is not installed is left out with a sentence.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, MARKS = HERE / "RESULTS.md", ("<!-- measured -->", "<!-- end of measured -->")
PEERS = ("torch", "diffusers", "transformers", "pythae", "normflows", "pytorch-fid", "torchmetrics", "prdc", "ema-pytorch",
         "denoising-diffusion-pytorch")  # fmt: skip


def measured(name: str, options: Iterable[str]) -> Iterable[dict[str, Any]]:
    """The lines of one benchmark, as they come; what is no line of the table is passed on to the screen."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *options]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                print(text, end="", flush=True)
                continue
            if isinstance(line, dict) and "rates" in line:
                yield line
            else:
                print(text, end="", flush=True)
        if process.wait():
            print(f"{name} ended with exit code {process.returncode}.", flush=True)


def shown(line: dict[str, Any]) -> list[str]:
    """Rows of a table, one a contestant; the share of the limit stands with ours."""
    rows = []
    for i, (name, rate) in enumerate(line["rates"].items()):
        share = f"{100 * line['share']:.0f} % of {line['limit']:.3g}" if i == 0 and line["share"] is not None else ""
        times = "" if i == 0 else f"{line['ours_is_times'][name]:.2f}"
        rows.append(f"| {line['row'] if i == 0 else ''} | {name} | {rate:.4g} {line['unit']} | {times} | {share} |")
    return rows


def processor() -> str:
    """Its name and what it multiplies with, which is what a table holds for."""
    found = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = {line.partition(":")[2].strip() for line in found.splitlines() if line.startswith("model name")}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx2") if flag in found]
    return f"{', '.join(names) or platform.processor()} ({', '.join(flags)})"


def versions() -> str:
    """Of Python, torch, the peers and this, in a sentence."""
    found = [f"Python {platform.python_version()}"]
    for peer in PEERS:
        try:
            found.append(f"{peer} {metadata.version(peer)}")
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    return f"{', '.join(found)}; commit {commit}."


def with_table(text: str, heading: str, table: str) -> str:
    """The results with this processor's table in place of its former one, or after those of others."""
    before, _, rest = text.partition(MARKS[0])
    found, _, after = rest.partition(MARKS[1])
    first, *parts = found.split("\n### ")
    tables = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts} | {heading: table}
    sections = [f"### {name}\n\n{said}\n" for name, said in tables.items()]
    return before + MARKS[0] + "\n".join([first.rstrip() + "\n", *sections]) + "\n" + MARKS[1] + after


def main() -> None:
    asked = sys.argv[1:]
    if "--help" in asked or "-h" in asked:
        print(__doc__)
        return
    write = "--results" in asked
    everything = sorted(f.stem for f in HERE.glob("*.py") if not f.stem.startswith("_"))
    named = [a for a in asked if a in everything]
    options = [a for a in asked if a not in named and a != "--results"]
    table = ["| row | contestant | median | ours is times | share of the limit |", "|---|---|---|---|---|"]
    print(processor(), versions(), *table, sep="\n", flush=True)
    for name in named or everything:
        for line in measured(name, options):
            print(*(rows := shown(line)), sep="\n", flush=True)
            table += rows
            if line["note"]:
                table.append(f"| | {line['note']} | | | |")
    if write:
        text = with_table(RESULTS.read_text(encoding="utf-8"), processor(), "\n".join([versions(), "", *table]))
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
