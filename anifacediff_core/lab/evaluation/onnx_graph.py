"""What an ONNX file would do, looked at before anything of it is run.

An ONNX graph is a program: it can loop for ever, call operators of any library, and refer to other files. A
network that makes numbers of pictures needs none of that. The file is read here by the few rules of its
encoding (protocol buffers), since the runtime that knows it whole also runs parts of it while it opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anifacediff_core.claims import shown

# What networks for pictures are made of; nothing with a graph inside, of varying results, or of texts.
_NAMES = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization BitShift Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin
    Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile
    TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())
MOST_OPERATORS = 20_000
MOST_FIELDS = 2_000_000  # of the encoding, in all
LARGEST_FILE = 2**31  # bytes; beyond, the format itself needs other files

# Numbers of the fields in onnx.proto.
MODEL_GRAPH, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 20, 25
GRAPH_NODE, GRAPH_TENSOR, GRAPH_SPARSE = 1, 5, 15
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS = 5, 10
ATTRIBUTE_FOREIGN = (6, 11, 22, 23)  # graphs and sparse tensors
TENSOR_DIMS, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 13, 14
TENSOR_DATA = (4, 5, 6, 7, 9, 10, 11)

Field = tuple[int, "int | memoryview"]


class Refusal(ValueError):
    """A whole file that does more than it should; the text is what it does, for a sentence."""


def require_plain(path: Path) -> None:
    """Refuse a file that is more than a network of operators that are known to end.

    Raises:
        Refusal: it is.
        ValueError: it is no ONNX file, or damaged.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise Refusal("is larger than any ONNX file can be")
    reader = _Reader()
    graphs = 0
    for number, value in reader.fields(memoryview(path.read_bytes())):
        if number in (MODEL_TRAINING, MODEL_FUNCTIONS):
            raise Refusal("defines functions of its own")
        if number == MODEL_GRAPH:
            graphs += 1
            _check_graph(reader, reader.part(value))
    if graphs != 1:
        raise ValueError("it has no graph")


def _check_graph(reader: _Reader, graph: memoryview) -> None:
    operators = 0
    for number, value in reader.fields(graph):
        if number == GRAPH_NODE:
            operators += 1
            _check_node(reader, reader.part(value))
        elif number == GRAPH_TENSOR:
            _check_tensor(reader, reader.part(value))
        elif number == GRAPH_SPARSE:
            raise Refusal("holds sparse weights")
    if operators > MOST_OPERATORS:
        raise Refusal(f"has more than {MOST_OPERATORS} operators")


def _check_node(reader: _Reader, node: memoryview) -> None:
    operator = domain = ""
    for number, value in reader.fields(node):
        if number == NODE_OPERATOR:
            operator = bytes(reader.part(value)).decode()
        elif number == NODE_DOMAIN:
            domain = bytes(reader.part(value)).decode()
        elif number == NODE_ATTRIBUTE:
            for kind, content in reader.fields(reader.part(value)):
                if kind in ATTRIBUTE_FOREIGN:
                    raise Refusal("holds a graph within its graph, which could run for ever")
                if kind in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                    _check_tensor(reader, reader.part(content))
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        name = f"{domain}.{operator}" if domain else operator
        raise Refusal(f"uses the operator {shown(name, 60)}, which no network for pictures needs")


def _check_tensor(reader: _Reader, tensor: memoryview) -> None:
    """Its shape must not claim more numbers than it holds."""
    numbers, stored = 1, 0
    for number, value in reader.fields(tensor):
        if number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value):
            raise Refusal("keeps weights in other files")
        if number == TENSOR_DIMS:
            for length in [value] if isinstance(value, int) else reader.integers(value):
                numbers *= length
        elif number in TENSOR_DATA:
            stored += len(value) if isinstance(value, memoryview) else 1
    if numbers > 2 * stored:  # the smallest types have two numbers in a byte
        raise ValueError("a tensor is larger than its bytes")


class _Reader:
    """Reads messages of protocol buffers, and counts how much it has read."""

    def __init__(self) -> None:
        self.count = 0

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Number and value of each field: an integer, or the bytes of a text, a message or a list."""
        position = 0
        while position < len(message):
            self.count += 1
            if self.count > MOST_FIELDS:
                raise Refusal("has more parts than any network")
            key, position = _integer(message, position)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, position = _integer(message, position)
                yield number, value
                continue
            if kind == 2:
                length, position = _integer(message, position)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise ValueError("it has a field of no known kind")
            if length > len(message) - position:
                raise ValueError("it ends early")
            yield number, message[position : position + length]
            position += length

    def integers(self, packed: memoryview) -> Iterator[int]:
        position = 0
        while position < len(packed):
            self.count += 1
            value, position = _integer(packed, position)
            yield value

    @staticmethod
    def part(value: int | memoryview) -> memoryview:
        if isinstance(value, int):
            raise ValueError("it has a number in place of a part")
        return value


def _integer(data: memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes with seven bits each, and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("it has a number without an end")
