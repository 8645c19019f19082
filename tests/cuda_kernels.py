"""Which ONNX operators ONNX Runtime's CUDA provider can run, so that a graph stays on the GPU.

Read from ONNX Runtime's docs/OperatorKernels.md, section CUDAExecutionProvider, as it stood when
Attention 24 had been added: those with a kernel that opset 20 resolves to, float32 where it is
numbers.
"""

from collections.abc import Iterable, Iterator

import onnx

_TABLE = """
Abs Add And AveragePool Cast Ceil Clip Concat ConstantOfShape Conv Cos CumSum Div Equal Exp
Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater
GreaterOrEqual GridSample Identity If IsNaN LayerNormalization Less LessOrEqual Log Loop MatMul
Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean
ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize Round Shape Sigmoid Sign Sin Slice
Softmax Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where
"""
CUDA_KERNELS = frozenset(_TABLE.split())
FOLDED = frozenset({"Constant", "CastLike"})
"""Gone before kernels are chosen: a constant is a weight, the other a function made of Casts."""


def without_cuda_kernel(model: onnx.ModelProto) -> set[str]:
    """Return the operators of a model, also inside loops, that would run on the CPU."""
    return {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in _nodes(model.graph.node)
        if node.domain not in {"", "ai.onnx"} or node.op_type not in CUDA_KERNELS | FOLDED
    }


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes(graph.node)
