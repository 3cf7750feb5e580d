"""What all tests share: the import path, an empty folder for each test, hypothesis, and the option
--implementation.

    python -m pytest tests/test_method.py --implementation my_attention.py

This tests a file of your own. It needs a class `Attention(dim, heads)` with the weights
of `WEIGHTS` below and the method `mimetic_init_`.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# The tests find the project from whatever folder they are started in.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The matrices are small. More threads would only wait for each other.
torch.set_num_threads(1)

# Few examples, and no deadline, because no test measures time. No database, so that nothing is left
# behind. No shrinking: the examples are a few small numbers already.
settings.register_profile(
    "suite",
    max_examples=20,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Each test starts in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------------------
# The option --implementation

# The four weights of an attention: the shape in words, and that of Attention(dim=8, heads=2)
WEIGHTS = {
    "W_Q": ("(heads, dim, head_dim)", (2, 8, 4)),
    "W_K": ("(heads, dim, head_dim)", (2, 8, 4)),
    "W_V": ("(dim, dim)", (8, 8)),
    "W_proj": ("(dim, dim)", (8, 8)),
}


def pytest_addoption(parser):
    parser.addoption(
        "--implementation",
        metavar="FILE",
        help="test the class Attention in this Python file, instead of the project's own",
    )


def pytest_configure(config):
    path = config.getoption("--implementation")
    config.implementation = load_attention(path) if path else None


def load_attention(path):
    """The class Attention in the file `path`. Raises pytest.UsageError, which pytest prints as one
    line, for a file that cannot be tested.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise pytest.UsageError(f"--implementation must be a Python file, but {path} is not")
    spec = importlib.util.spec_from_file_location(f"implementation_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # The file may import its neighbours.
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise pytest.UsageError(f"{path} cannot be imported: {in_one_line(error)}") from None

    if not hasattr(module, "Attention"):
        raise pytest.UsageError(f"{path} must have a class Attention, but it has none")
    if not hasattr(module.Attention, "mimetic_init_"):
        raise pytest.UsageError(
            f"the class Attention in {path} must have a method mimetic_init_(qk_alpha, qk_beta,"
            " vp_alpha, vp_beta, generator=None), but it has none"
        )
    try:
        attention = module.Attention(8, 2)
        attention.mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=torch.Generator().manual_seed(0))
    except Exception as error:
        raise pytest.UsageError(
            "Attention(8, 2).mimetic_init_(0.7, 0.7, 0.4, -0.4, generator=generator) in"
            f" {path} fails: {in_one_line(error)}"
        ) from None

    for name, (in_words, shape) in WEIGHTS.items():
        W = getattr(attention, name, None)
        if not isinstance(W, torch.Tensor):
            raise pytest.UsageError(
                f"Attention in {path} must have a weight {name} {in_words}, but it has none"
            )
        if W.shape != shape:
            raise pytest.UsageError(
                f"{name} in {path} must have the shape {in_words}, which is {shape} for"
                f" Attention(8, 2), but it has {tuple(W.shape)}"
            )
    return module.Attention


def in_one_line(error):
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"


def pytest_generate_tests(metafunc):
    """A test with the argument `Attention` runs on the class in the reader's file, or else on those
    in vit.py and gpt.py.
    """
    if "Attention" not in metafunc.fixturenames:
        return
    if metafunc.config.implementation:
        classes = {"implementation": metafunc.config.implementation}
    else:
        from mimetic_min import gpt, vit

        classes = {"vit.py": vit.Attention, "gpt.py": gpt.Attention}
    metafunc.parametrize("Attention", classes.values(), ids=classes.keys())


def pytest_collection_modifyitems(config, items):
    """With --implementation, run only the tests that can judge any implementation."""
    if config.implementation is None:
        return
    kept = [item for item in items if "Attention" in getattr(item, "fixturenames", ())]
    left_out = [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
