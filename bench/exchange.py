"""The exchange between ranks of this machine: our transports beside memcpy, Open MPI and gloo, GiB/s sent per rank.

    python bench/exchange.py [--binary build/release/bin/bench_exchange] [--ranks 2] [1 4 16 64]

gloo needs PyTorch (models/requirements.txt).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

COLUMNS = ("autosp-onnx threads", "autosp-onnx mpi", "memcpy", "Open MPI", "gloo")


def rates(command: list[str]) -> dict[int, dict[str, float]]:
    """MiB -> who -> GiB/s, from a program that prints a JSON object per size."""
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return {row["mib"]: row for row in map(json.loads, output.splitlines())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path("build/release/bin/bench_exchange"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("mib", type=int, nargs="*", default=[1, 4, 16, 64])
    options = parser.parse_args()
    sizes = list(map(str, options.mib))
    # Without a binding, as the processes of gloo are.
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(options.ranks)]
    ours = rates([*mpirun, str(options.binary), *sizes])
    gloo_script = Path(__file__).parent / "peers" / "exchange_gloo.py"
    gloo = rates([sys.executable, str(gloo_script), "--ranks", str(options.ranks), *sizes])
    print(f"{'MiB':>5}" + "".join(f"{name:>21}" for name in COLUMNS))
    for size in options.mib:
        row = ours[size] | gloo[size]
        print(f"{size:5}" + "".join(f"{row[name]:21.2f}" for name in COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
