"""A model pack for insightface that finds magenta squares: the real package without real weights.

`write_pack` writes two networks with the output shapes by which insightface recognises a detector
and a recogniser. The first scores each 32-pixel cell by how magenta it is, with a box and key
points of fixed size around it. The second projects the mean colours of an aligned crop to 512
numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

STRIDE = 32
HALF_BOX = 1.5  # strides from a cell's corner to each edge of its box
POINTS = np.array([[-0.6, -0.4], [0.6, -0.4], [0.0, 0.1], [-0.5, 0.7], [0.5, 0.7]])
"""Eyes, nose and corners of the mouth, in strides from the cell's corner."""


def write_pack(folder: Path) -> Path:
    import onnx

    folder.mkdir(parents=True)
    onnx.save(_model(_detector()), folder / "det.onnx")
    onnx.save(_model(_recogniser()), folder / "rec.onnx")
    return folder


def _model(graph: Any) -> Any:
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _array(name: str, values: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values), name)


def _detector() -> Any:
    """Nine outputs: scores, box distances and key points at strides 8, 16 and 32, two anchors."""
    from onnx import TensorProto, helper

    node = helper.make_node
    colour = np.array([1.0, -1.0, 1.0], np.float32).reshape(1, 3, 1, 1) / 3  # magenta is 1
    known = [
        _array("colour", colour),
        _array("steep", np.float32(40)),
        _array("limit", np.float32(0.8)),
        _array("zero", np.float32(0)),
        _array("flat", np.array([-1, 1], np.int64)),
        _array("twice", np.array([1, 2], np.int64)),
        _array("boxes", np.full((1, 4), HALF_BOX, np.float32)),
        _array("points", POINTS.reshape(1, 10).astype(np.float32)),
    ]
    nodes = [node("Conv", ["x", "colour"], ["map"])]
    for stride in (8, 16, 32):
        size = [stride, stride]
        s = str(stride)
        nodes += [
            node("AveragePool", ["map"], [f"mean{s}"], kernel_shape=size, strides=size),
            node("Sub", [f"mean{s}", "limit"], [f"above{s}"]),
            node("Mul", [f"above{s}", "steep"], [f"steeper{s}"]),
            node("Sigmoid", [f"steeper{s}"], [f"sure{s}"]),
            node("Reshape", [f"sure{s}", "flat"], [f"column{s}"]),
            node("Tile", [f"column{s}", "twice"], [f"anchors{s}"]),
            node("Reshape", [f"anchors{s}", "flat"], [f"all{s}"]),
            node("Mul", [f"all{s}", "zero"], [f"none{s}"]),
            node("Identity" if stride == STRIDE else "Mul",
                 [f"all{s}"] if stride == STRIDE else [f"all{s}", "zero"], [f"score{s}"]),
            node("Add", [f"none{s}", "boxes"], [f"box{s}"]),
            node("Add", [f"none{s}", "points"], [f"kps{s}"]),
        ]  # fmt: skip
    outputs = [f"{kind}{s}" for kind in ("score", "box", "kps") for s in (8, 16, 32)]
    widths = {"score": 1, "box": 4, "kps": 10}
    return helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["n", widths[name.rstrip("0123456789")]]
            )
            for name in outputs
        ],
        known,
    )


def _recogniser() -> Any:
    """[1, 3, 112, 112] -> [1, 512]: 28-pixel means, projected."""
    from onnx import TensorProto, helper

    gen = np.random.default_rng(0)
    weight = gen.standard_normal((3 * 4 * 4, 512)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["mean"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["mean"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["embedding"]),
    ]
    return helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 512])],
        [_array("weight", weight)],
    )
