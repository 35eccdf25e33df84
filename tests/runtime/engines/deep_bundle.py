"""The tiny bundle with a transformer of many blocks of weights, in several types."""

import json
from pathlib import Path

import numpy as np

from tests.conftest import graph_entry, seal


def deepen(folder: Path, *, blocks: int, width: int, kind: str = "float32") -> int:
    """Send the features of the tiny bundle's transformer through blocks: norm, product, sum.

    Weights are in one file beside the graph, as exports store them: "float32", "float16" with a
    cast, "int4" and "int8" dequantised in blocks of 32.

    Returns:
        Bytes of the weights.
    """
    import onnx
    from onnx import TensorProto, helper, shape_inference, version_converter

    file, weights = folder / "transformer.vectors.onnx", folder / "transformer.weights"
    model = version_converter.convert_version(onnx.load(file), 21)
    graph, rng = model.graph, np.random.default_rng(0)
    base = (rng.standard_normal((width, width), dtype=np.float32) / width**0.5).astype(np.float32)
    with weights.open("wb") as stream:

        def store(name: str, dtype: int, shape: tuple[int, ...], data: bytes) -> str:
            stream.write(bytes(-stream.tell() % 4096))
            tensor = graph.initializer.add(name=name, data_type=dtype, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": weights.name, "offset": stream.tell(), "length": len(data)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write(data)
            return name

        def weight(name: str, block: int) -> str:
            shape = (width, width)
            draw = np.roll(base, block)  # onnxruntime keeps equal weights once
            if kind == "float32":
                return store(name, TensorProto.FLOAT, shape, draw.tobytes())
            if kind == "float16":
                store(name, TensorProto.FLOAT16, shape, draw.astype(np.float16).tobytes())
                node = helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT)
            else:
                top = 7 if kind == "int4" else 127
                scale = float(np.abs(draw).max()) / top
                levels = np.round(draw / scale).astype(np.int8)
                if kind == "int4":
                    low, high = levels.reshape(-1, 2).T.astype(np.uint8) & 15
                    data, dtype = (low | high << 4).tobytes(), TensorProto.INT4
                else:
                    data, dtype = levels.tobytes(), TensorProto.INT8
                store(name, dtype, shape, data)
                scales = np.full((width // 32, width), scale, np.float32)
                store(f"{name}.scale", TensorProto.FLOAT, scales.shape, scales.tobytes())
                node = helper.make_node(
                    "DequantizeLinear", [name, f"{name}.scale"], [f"{name}.wide"],
                    axis=0, block_size=32,
                )  # fmt: skip
            graph.node.append(node)
            return f"{name}.wide"

        store("ones", TensorProto.FLOAT, (width,), np.ones(width, np.float32).tobytes())
        ends = {"into": (3, width), "back": (width, 3)}
        for name, shape in ends.items():
            value = rng.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5
            store(name, TensorProto.FLOAT, shape, value.astype(np.float32).tobytes())
        last = next(node for node in graph.node if "features" in node.output)
        last.output[0] = value = "features.before"
        graph.node.append(helper.make_node("MatMul", [value, "into"], ["h"]))
        stream_name = "h"
        for block in range(blocks):
            name = weight(f"dit.blocks.{block}.fc.weight", block)
            made = [f"h.{block}.product", f"h.{block}.tanh", f"h.{block}"]
            normal = [f"h.{block}.normal"]
            graph.node.append(
                helper.make_node("LayerNormalization", [stream_name, "ones"], normal, axis=-1)
            )
            graph.node.append(helper.make_node("MatMul", [*normal, name], made[:1]))
            graph.node.append(helper.make_node("Tanh", made[:1], made[1:2]))
            graph.node.append(helper.make_node("Add", [stream_name, made[1]], made[2:]))
            stream_name = made[2]
        graph.node.append(helper.make_node("MatMul", [stream_name, "back"], ["turned"]))
        graph.node.append(helper.make_node("Add", [value, "turned"], ["features"]))
        size = stream.tell()
    model.ir_version = 10
    onnx.save_model(shape_inference.infer_shapes(model), file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["transformer.vectors"] = graph_entry(file)
    manifest["method"]["feature_dim"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    return size
