"""Every benchmark beside this file, or those named: python -m benchmarks input_pipeline."""

import importlib
import sys
from pathlib import Path

for name in sys.argv[1:] or sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_")):
    print(f"\n# {name}", flush=True)
    importlib.import_module(f"benchmarks.{name}").main()
