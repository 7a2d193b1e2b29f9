#!/usr/bin/env python3
"""Trains a model over ranks and as a whole, and compares the curves: every (sp, dp) of a matrix by every stage of ZeRO.

    bench/correctness.py                                        the whole matrix, on a committed Llama
    bench/correctness.py --sp-size 2 --seq-length 64 --num-layers 1 --steps 1 --deterministic

Each case shards the model with `--optimizer sgd`, and `validate --steps` compares losses, the gradients of every step by
name, and the parameters after the last one, relative to 1e-4. Exit code 1 when a case differs. Needs the environment of
the tests; another number of layers than the committed model's needs the exporter's (`--exporter PYTHON`).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = ROOT / "build" / "release" / "bin" / "autosp-onnx"
COMMITTED = ROOT / "models" / "graphs" / "llama.onnx"
COMMITTED_LAYERS = 2
MATRIX = [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2)]  # sp, dp
STAGES = [0, 1, 2, 3]


class Failed(Exception):
    """A command that could not do its work."""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sp-size", type=int, help="ranks of one sequence; with --dp-size one case instead of the matrix"
    )
    parser.add_argument("--dp-size", type=int, default=1, help="ranks of the batch")
    parser.add_argument("--zero", type=int, nargs="*", choices=STAGES, default=STAGES, help="stages")
    parser.add_argument("--seq-length", type=int, default=40)
    parser.add_argument("--num-layers", type=int, default=COMMITTED_LAYERS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument(
        "--deterministic", action="store_true", help="trains twice too: the same parameters, to the bit"
    )
    parser.add_argument("--model", type=pathlib.Path, help="another training graph, whose sequence is called 'seq'")
    parser.add_argument("--exporter", default=sys.executable, help="a Python with the exporter's packages")
    parser.add_argument("--autosp-onnx", type=pathlib.Path, default=BINARY, help="the program")
    parser.add_argument("--json", action="store_true", help="prints a line of JSON per case")
    return parser.parse_args()


def call(command, accepted=(0,)):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in accepted:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def find_model(arguments, folder):
    if arguments.model:
        return arguments.model
    if arguments.num_layers == COMMITTED_LAYERS:
        return COMMITTED
    model = folder / "model.onnx"
    exporter = ROOT / "models" / "export_training_graph.py"
    call([arguments.exporter, exporter, "--hf", "llama", "--layers", arguments.num_layers, "-o", model])
    return model


def trained_twice(arguments, out, feed, folder):
    """Whether two runs end with the same bytes."""
    results = []
    for run in range(2):
        trained = folder / f"trained_{run}.npz"
        command = [
            arguments.autosp_onnx,
            "train",
            out,
            "--data",
            feed,
            "--steps",
            arguments.steps,
            "--lr",
            arguments.lr,
        ]
        call([*command, "--output", trained])
        results.append(trained.read_bytes())
    return results[0] == results[1]


def run_case(arguments, model, sp, dp, zero, folder):
    out = folder / f"sp{sp}_dp{dp}_zero{zero}"
    dims = ["--dim", f"seq={arguments.seq_length}"]
    training = ["--optimizer", arguments.optimizer, "--zero", zero]
    call([arguments.autosp_onnx, "shard", model, *dims, "--sp", sp, "--dp", dp, "-o", out, *training])
    command = [
        arguments.autosp_onnx,
        "validate",
        model,
        out,
        "--steps",
        arguments.steps,
        "--lr",
        arguments.lr,
        "--json",
    ]
    report = json.loads(call(command, accepted=(0, 1)).stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    kept = manifest["training"]["bytes"]
    row = {
        "sp": sp,
        "dp": dp,
        "zero": zero,
        "equal": report["equal"],
        "first_loss": report["losses"][0]["whole"],
        "last_loss": report["losses"][-1]["whole"],
        "loss_error": max(entry["relative_error"] for entry in report["outputs"] if entry["role"] == "loss"),
        "gradient_error": max(entry["relative_error"] for entry in report["outputs"] if entry["role"] == "gradient"),
        "parameter_error": max(entry["relative_error"] for entry in report["parameters"]),
        "parameter_bytes": max(entry["parameters"] for entry in kept),
        "gradient_bytes": max(entry["gradients"] for entry in kept),
        "state_bytes": max(entry["optimizer_state"] for entry in kept),
    }
    if arguments.deterministic:
        feed = folder / "data.npz"
        if not feed.exists():
            write_feed(model, arguments.seq_length, feed)
        row["deterministic"] = trained_twice(arguments, out, feed, folder)
        row["equal"] = row["equal"] and row["deterministic"]
    return row


def write_feed(model, length, path):
    import numpy as np

    sys.path.insert(0, str(ROOT / "test" / "e2e"))
    from training_graph import TrainingGraph

    np.savez(path, **TrainingGraph(pathlib.Path(model)).inputs({"seq": length}))


def print_row(row):
    print(
        f"{row['sp']:>3} {row['dp']:>3} {row['zero']:>4} {row['first_loss']:>11.6f} {row['last_loss']:>11.6f} "
        f"{row['loss_error']:>9.1e} {row['gradient_error']:>9.1e} {row['parameter_error']:>9.1e} "
        f"{row['parameter_bytes'] / 1024:>9.0f} {row['gradient_bytes'] / 1024:>9.0f} {row['state_bytes'] / 1024:>9.0f}  "
        f"{'equal' if row['equal'] else 'DIFFERENT'}",
        flush=True,
    )


def main():
    arguments = parse_arguments()
    cases = [(arguments.sp_size, arguments.dp_size)] if arguments.sp_size else MATRIX
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = find_model(arguments, folder)
        if not arguments.json:
            print(
                f"{model.name}, {arguments.seq_length} tokens, {arguments.steps} steps of {arguments.optimizer}; KiB per rank"
            )
            print(" sp  dp zero  first loss   last loss      loss  gradient parameter parameter  gradient     state")
        for sp, dp in cases:
            for zero in arguments.zero:
                row = run_case(arguments, model, sp, dp, zero, folder)
                rows.append(row)
                print(json.dumps(row), flush=True) if arguments.json else print_row(row)
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"error: {failure}")
