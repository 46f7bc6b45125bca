"""What every room's tests stand on."""

import importlib.util
from pathlib import Path

import torch
from hypothesis import settings


def let_torchvision_import() -> None:
    """Make torchvision's models importable beside a torch that its compiled operators do not fit.

    The wheels on PyPI are built for CUDA; next to a CPU torch their library does not load, and the import
    then fails over two operators, whose shapes it describes without asking. Declared, they need not
    exist: the tests use only the models of torchvision (and, through it, of timm).
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(library)
        except OSError:
            for name in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", schema)


let_torchvision_import()

# The models of the tests are tiny: a second thread gains nothing, and costs tenfold on a busy machine.
torch.set_num_threads(1)

# The machine is shared and shapes vary: a slow example is no failure, `timeout` catches what hangs. What runs
# before something lands draws the same examples every time; `pytest --hypothesis-profile=soak` looks for new ones.
settings.register_profile("isthmus", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=1000)
settings.load_profile("isthmus")
