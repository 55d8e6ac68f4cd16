"""What the command line's options may choose from."""

from enum import StrEnum


class Render(StrEnum):
    """How `enjoy` shows an episode."""

    human = "human"
    video = "video"
    none = "none"


class Format(StrEnum):
    """What `export` writes."""

    safetensors = "safetensors"
    onnx = "onnx"
    c = "c"
    numpy = "numpy"


class Dtype(StrEnum):
    """In which number type an exported program computes."""

    float32 = "float32"
    float64 = "float64"


class Norm(StrEnum):
    """What the sizes of `certify --return` are of."""

    per_step_l2 = "per_step_l2"
    per_step_linf = "per_step_linf"
    total_l2 = "total_l2"


class TableFormat(StrEnum):
    """How `compare` writes its table."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    json = "json"
