"""--deepspeed-config: what a DeepSpeed configuration says about sp, dp and the batch."""

import json

import pytest
from training_graph import GRAPHS

MATRIX = GRAPHS / "matrix" / "llama_h8_kv2.onnx"
SIZES = ["--dim", "seq=61", "--dim", "batch=2"]

# As in DeepSpeed's examples of AutoSP, with what a training adds.
WHOLE = {
    "train_batch_size": 6,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 3,
    "sequence_parallel_size": 2,
    "compile": {"deepcompile": True, "passes": ["autosp", "zero1_compile"]},
    "zero_optimization": {"stage": 1, "overlap_comm": True},
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "bf16": {"enabled": False},
}


@pytest.fixture
def shard(autosp_onnx, tmp_path):
    def call(config, *options):
        path = tmp_path / "ds.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return autosp_onnx("shard", MATRIX, *SIZES, "--deepspeed-config", path, "-o", tmp_path / "out", *options)

    return call


def mesh(tmp_path):
    axes = json.loads((tmp_path / "out" / "manifest.json").read_text())["mesh"]
    return {axis["name"]: axis["size"] for axis in axes if axis["size"] > 1}


def test_sp_and_dp_follow_and_one_note_names_the_rest(shard, tmp_path):
    result = shard(WHOLE)
    assert result.returncode == 0, result.stderr
    assert mesh(tmp_path) == {"dp": 2, "u": 2}
    notes = [line for line in result.stderr.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    named = notes[0].split(": ")[-1].split(", ")
    assert named == [
        "compile.deepcompile",
        "compile.passes 'zero1_compile'",
        "zero_optimization.overlap_comm",
        "optimizer.params.lr",
        "bf16",
    ]


def training(tmp_path):
    return json.loads((tmp_path / "out" / "manifest.json").read_text()).get("training")


def test_optimizer_zero_clipping_and_accumulation_follow(shard, tmp_path):
    assert shard(WHOLE).returncode == 0
    kept = training(tmp_path)
    assert (kept["optimizer"], kept["zero"], kept["accumulate"]) == ("adamw", 1, 3)
    assert {s["name"]: s["value"] for s in kept["settings"]}["clip_norm"] == 1
    assert (tmp_path / "out" / "optimizer_rank_3.onnx").exists()
    momentum = {"type": "SGD", "params": {"momentum": 0.5, "nesterov": True}}
    result = shard({"sequence_parallel_size": 2, "optimizer": momentum}, "--weight-decay", 0.25)
    assert "optimizer.params.nesterov" in result.stderr
    settings = {s["name"]: s["value"] for s in training(tmp_path)["settings"]}
    assert (settings["momentum"], settings["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize(
    "optimizer, name",
    [
        ({"type": "Adam"}, "adamw"),  # DeepSpeed's default
        ({"type": "Adam", "params": {"adam_w_mode": False}}, "adam"),
        ({"type": "ADAMW", "params": {"betas": [0.8, "auto"]}}, None),
        ({"type": "Lamb"}, None),
    ],
)
def test_types_of_optimizers(shard, tmp_path, optimizer, name):
    result = shard({"sequence_parallel_size": 2, "optimizer": optimizer})
    if name:
        assert training(tmp_path)["optimizer"] == name
    elif optimizer["type"] == "Lamb":
        assert "optimizer" in result.stderr
        assert training(tmp_path) is None
    else:
        assert result.returncode == 2
        assert "optimizer.params.betas" in result.stderr


def test_without_an_optimizer_what_belongs_to_it_is_named(shard, tmp_path):
    result = shard({"sequence_parallel_size": 2, "zero_optimization": {"stage": 1}, "gradient_clipping": 1})
    assert "zero_optimization.stage, gradient_clipping" in result.stderr
    assert training(tmp_path) is None
    with_it = shard({"sequence_parallel_size": 2, "zero_optimization": {"stage": 1}}, "--optimizer", "sgd")
    assert with_it.stderr == ""
    assert training(tmp_path)["zero"] == 1


def test_what_the_configuration_leaves_open_the_command_line_gives(shard, tmp_path):
    result = shard({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 1}, "--sp", 3, "--dp", 2)
    assert result.returncode == 0, result.stderr
    assert mesh(tmp_path) == {"dp": 2, "r": 3} or mesh(tmp_path)["dp"] == 2
    assert "train_batch_size" in result.stderr
    result = shard({"zero_optimization": {"stage": 0}, "sequence_parallel_size": 4}, "--sp-mesh", "u=2,g=2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert mesh(tmp_path) == {"u": 2, "g": 2}


@pytest.mark.parametrize(
    "config, options, said",
    [
        (WHOLE, ["--sp", 4], "--sp or --sp-mesh asks for 4 ranks per sequence"),
        (WHOLE, ["--sp-mesh", "u=2,r=2"], "asks for 4 ranks per sequence"),
        (WHOLE, ["--dp", 1], "--dp is 1"),
        (WHOLE, ["--zero", 2], "--zero is 2"),
        (WHOLE, ["--optimizer", "sgd"], "--optimizer is sgd"),
        (WHOLE, ["--clip-norm", 2], "--clip-norm is 2"),
        ({**WHOLE, "gradient_clipping": -1}, [], "'gradient_clipping'"),
        ({"optimizer": "AdamW"}, [], "'optimizer'"),
        ({**WHOLE, "train_batch_size": 7}, [], "train_batch_size 7 is no multiple"),
        ({**WHOLE, "train_batch_size": 9}, [], "has a batch of 2, but"),
        ({"compile": {"passes": ["autosp"]}}, [], "asks for the pass autosp"),
        ({"train_batch_size": 6, "gradient_accumulation_steps": 4}, [], "is no multiple"),
        ({"sequence_parallel_size": 2.5}, [], "'sequence_parallel_size'"),
        ({"sequence_parallel_size": 0}, [], "'sequence_parallel_size'"),
        ({"zero_optimization": {"stage": 4}}, [], "'zero_optimization.stage'"),
        ({"compile": {"passes": "autosp"}}, [], "a list of names"),
        ("[1, 2]", [], "no DeepSpeed configuration"),
        ("{", [], "no DeepSpeed configuration"),
    ],
)
def test_contradictions_are_refused(shard, tmp_path, config, options, said):
    result = shard(config, *options)
    assert result.returncode == 2, result.stdout
    assert said in result.stderr
    said_lines = [line for line in result.stderr.splitlines() if not line.startswith("note: of")]
    assert [line.split(":")[0] for line in said_lines if ":" in line][:1] == ["error"]
    assert sum(line.startswith("help:") for line in said_lines) == 1
    assert not (tmp_path / "out").exists()


def test_other_commands_and_batch_take_it_too(autosp_onnx, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"sequence_parallel_size": 4}))
    given = ["--deepspeed-config", path]
    result = autosp_onnx("plan", MATRIX, *SIZES, *given, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(autosp_onnx("plan", MATRIX, *SIZES, "--sp", 4, "--json").stdout)
    assert autosp_onnx("check", MATRIX, *SIZES, *given).returncode == 0
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(f"jobs: [{{model: {MATRIX}, dim: {{seq: 61, batch: 2}}, deepspeed-config: ds.json}}]\n")

    def status():
        command = ["batch", jobs, "-o", tmp_path / "all", "--report", tmp_path / "report.json"]
        result = autosp_onnx(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads((tmp_path / "report.json").read_text())["jobs"][0]["status"]

    assert [status(), status()] == ["converted", "up-to-date"]
    path.write_text(json.dumps({"sequence_parallel_size": 2}))
    assert status() == "converted"
