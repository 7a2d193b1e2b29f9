"""Shards ONNX training graphs along the sequence, and runs the ranks.

    import autosp_onnx

    with autosp_onnx.shard("model.onnx", sp=4, dim={"seq": 40}) as sharded:
        outputs = sharded.run(inputs)        # {"loss": ..., "w.grad": ...}
        assert sharded.validate(inputs)

Work is done by the program autosp-onnx in a child process, or by ONNX Runtime.
"""

from autosp_onnx.errors import AutospError
from autosp_onnx.installation import collectives_library
from autosp_onnx.manifest import Input, Manifest, feed, read_manifest, write_feeds
from autosp_onnx.sharded_model import ShardedModel, Validation, shard

__all__ = [
    "AutospError",
    "Input",
    "Manifest",
    "ShardedModel",
    "Validation",
    "collectives_library",
    "feed",
    "read_manifest",
    "shard",
    "write_feeds",
]
