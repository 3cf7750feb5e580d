"""The pictures: what is in them against NumPy, where they are written, and what happens without matplotlib."""
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_vit
from mimetic_min import data, figures, options, training, vit
from test_faults import TINY
from test_training import MAIN, ROOT, both_scripts, results, script

NAMES = ["attention.png", "curves.png", "diagonals.png", "query-key.png", "value-projection.png"]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def pictures(folder):
    return sorted(path.name for path in Path(folder).glob("*.png"))


def drawn(picture):
    """[(title, matrix, least, most)] of the panels, in the order of reading."""
    axes = [axis for axis in picture.axes if axis.images]
    return [(axis.get_title(), np.asarray(axis.images[0].get_array().filled(np.nan)), *axis.images[0].get_clim())
            for axis in axes]


# ---- without matplotlib

@both_scripts
def test_without_matplotlib_plot_is_one_line_before_anything_is_trained(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    right = "^matplotlib is None: it must be installed for pictures: python -m pip install matplotlib$"
    with pytest.raises(ValueError, match=right):
        MAIN[task]([*TINY[task], "--plot"])
    assert os.listdir() == []
    MAIN[task]([*TINY[task], "--out", "run"])                        # and all else works
    for path in ("run", next(Path("run").glob("*.pt"))):
        with pytest.raises(ValueError, match=right):
            figures.main([str(path)])


def test_matplotlib_is_imported_in_figures_alone_and_only_for_a_picture():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("mimetic_min/*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        imports = [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert any("matplotlib" in line for line in imports) == (path.name == "figures.py"), path
    code = "import sys, train_vit, train_lm, mimetic_min.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- with it

@both_scripts
def test_plot_leaves_five_pictures_and_the_module_draws_them_again(task, matplotlib):
    words = [*TINY[task], "--init", "default", "mimetic", "--lr", "1e-3", "2e-3", "--seed", "0", "1"]
    MAIN[task]([*words, "--plot", "--out", "run"])
    assert pictures("run") == NAMES
    sizes = []
    for name in NAMES:
        content = Path("run", name).read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(content[16:20]))                 # the width, in the header
        Path("run", name).unlink()
    assert all(400 < width < 1100 for width in sizes)                # a README page shows about 900
    done = subprocess.run([sys.executable, "-m", "mimetic_min.figures", os.path.abspath("run")], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and pictures("run") == NAMES
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == NAMES


@both_scripts
def test_before_is_what_the_training_started_with_and_after_what_it_ended_with(task, monkeypatch):
    model, starts = {"vit": train_vit.ViT, "lm": sys.modules["train_lm"].GPT}[task], []
    forward = model.forward

    def spy(self, batch):
        if self.training and not starts:
            starts.append({name: W.clone() for name, W in self.state_dict().items()})
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", spy)
        MAIN[task]([*TINY[task], "--seed", "3", "--out", "run"])
    state = torch.load(next(Path("run").glob("*.pt")), weights_only=True)
    for trained, weights in ((False, starts[0]), (True, state["model"])):
        found = figures.model_of(state, trained).state_dict()
        assert all(torch.equal(W, weights[name]) for name, W in found.items()) and found.keys() == weights.keys()


def test_the_products_are_those_of_numpy_with_one_symmetric_scale(matplotlib):
    """Of 80 rows and columns the first 64 are drawn, five heads in three columns; the number is of the whole."""
    torch.manual_seed(0)
    layers = {"one": [vit.Attention(80, 5) for _ in range(3)], "other": [vit.Attention(80, 5) for _ in range(2)]}
    for attention in layers["other"]:
        attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)
    made = figures.product_pictures(layers, "seed 0")
    assert list(made) == ["query-key.png", "value-projection.png"]
    for name, picture in made.items():
        panels = drawn(picture)
        assert len({panel[2:] for panel in panels}) == 1 and panels[0][2] == -panels[0][3] < 0
        for i, attention in enumerate(layers["one"] + layers["other"]):
            W_Q, W_K, W_V, W_proj = (W.detach().numpy() for W in attention.parameters())
            heads = [q @ k.T for q, k in zip(W_Q, W_K)] if name == "query-key.png" else [W_V @ W_proj]
            title, matrix, *_ = panels[i]
            assert title == f"layer {i % 3 + 1}\n{np.mean([np.diag(head) for head in heads]):+.3f}"
            for j, head in enumerate(heads):
                row, column = 66 * (j // 3), 66 * (j % 3)
                corner = matrix[row : row + 64, column : column + 64]
                assert np.allclose(corner, head[:64, :64], rtol=0, atol=1e-5)          # float32 sums of 80 terms
        assert "rows and columns 1 to 64" in picture.get_suptitle() and "diagonal" in picture.get_suptitle()


@both_scripts
def test_the_attention_maps_are_those_of_the_layers_inputs(task, matplotlib):
    """Of the first, the middle and the last of 4 layers, computed block by block; rows sum to 1."""
    MAIN[task]([*TINY[task], "--depth", "4", "--out", "run"])
    state = torch.load(next(Path("run").glob("*.pt")), weights_only=True)
    model, (batch, _) = figures.model_of(state), figures.example(state)
    if task == "vit":
        train, _, test, _ = (t.numpy() for t in data.load_images("digits", 10))
        assert np.allclose(batch, (test[:64] - train.mean()) / train.std(), rtol=0, atol=1e-5)
        x = model.embed(torch.nn.functional.pixel_unshuffle(batch, 2).flatten(2).mT) + model.position
    else:
        assert bytes(batch.flatten().tolist()) == data.load_text("docs", 8)[1][:128].tobytes()
        x = model.embed(batch) + model.position
    expected = []
    with torch.no_grad():
        for block in model.blocks:
            expected.append(block.attention.attention_map(block.norm1(x)).mean((0, 1)).numpy())
            x = block(x)
    found = figures.attention_maps(model, batch)
    assert [title for title, *_ in found] == ["layer 1", "layer 3", "layer 4"]
    for (_, matrix, number), i in zip(found, (0, 2, 3)):
        assert np.allclose(matrix, expected[i], rtol=0, atol=1e-5) and np.allclose(matrix.sum(1), 1, rtol=0, atol=1e-5)
        assert abs(number - np.diag(matrix).mean()) < 1e-6


def test_curves_show_the_mean_and_the_band_over_seeds_for_each_rate(matplotlib):
    """0.5 and 0.7 are 60 %, from 50 to 70; where a run diverged the line ends in a cross."""
    def run(init, lr, seed, *accuracies):
        curve = [{"step": 10 * (i + 1), "train_loss": 1.0, "accuracy": a} for i, a in enumerate(accuracies)]
        return {"init": init, "lr": lr, "seed": seed, "curve": curve}

    picture = figures.curves([run("default", 0.1, 0, 0.1, 0.5), run("default", 0.1, 1, 0.3, 0.7),
                              run("mimetic", 0.1, 0, 0.4, 0.8), run("mimetic", 0.1, 1, 0.6) | {"diverged": 12},
                              run("default", 0.2, 0, 0.2)])
    left, right = picture.axes
    assert (left.get_title(), right.get_title(), left.get_ylabel()) == ("lr 0.1", "lr 0.2", "accuracy, %")
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert np.allclose(lines["default"], [[10, 20], [20, 60]]) and np.allclose(lines["mimetic"], [[10, 50]])
    cross, = (line for line in left.lines if line.get_marker() == "x")
    assert np.allclose(cross.get_xydata(), [[10, 50]])               # no mean of the survivors alone after that
    band = left.collections[0].get_paths()[0].vertices
    assert np.allclose([band[:, 1].min(), band[:, 1].max()], [10, 70])
    assert len({line.get_linestyle() for line in left.lines if line is not cross}) == 2   # told apart without colour


def test_diagonals_are_those_of_numpy_before_and_after(matplotlib):
    MAIN["vit"]([*TINY["vit"], "--depth", "3", "--init", "default", "mimetic", "--out", "run"])
    states = {init: torch.load(f"run/{init}-seed0-lr0.002.pt", weights_only=True) for init in ("default", "mimetic")}
    layers = {f"{init}\n{when}": [block.attention for block in figures.model_of(state, when == "trained").blocks]
              for init, state in states.items() for when in ("before", "trained")}
    for axis in figures.diagonals(layers, "seed 0").axes:
        lines = {line.get_label(): line.get_xydata() for line in axis.lines if line.get_label().count(",")}
        assert len(lines) == 4
        for label, points in lines.items():
            for (x, y), attention in zip(points, layers[label.replace(", ", "\n")], strict=True):
                W_Q, W_K, W_V, W_proj = (W.detach().numpy() for W in attention.parameters())
                heads = [W_V @ W_proj] if axis.get_title() != "query-key" else [q @ k.T for q, k in zip(W_Q, W_K)]
                assert abs(y - np.mean([np.diag(head) for head in heads])) < 1e-6


def test_a_file_of_weights_is_drawn_alone_and_beside_a_run(matplotlib):
    MAIN["vit"]([*TINY["vit"], "--out", "run"])
    torch.save({f"blocks.{i}.attn.{name}": torch.randn(shape) for i in range(2)
                for name, shape in (("qkv.weight", (384, 128)), ("proj.weight", (128, 128)))}, "vit.pth")
    figures.main(["vit.pth"])
    assert pictures(".") == ["vit.pth-query-key.png", "vit.pth-value-projection.png"]
    assert [path.name for path in figures.draw("run", "vit.pth")] != [] and pictures("run") == NAMES
    shutil.copy(next(Path("run").glob("*.pt")), "own.pt")
    panels = figures.panels
    seen = []
    figures.panels = lambda title, rows, signed: seen.append(list(rows)) or panels(title, rows, signed)
    try:
        figures.draw("run", "own.pt")                                # a model of the same images: its maps as well
        figures.draw("run", "vit.pth")
    finally:
        figures.panels = panels
    rows = ["mimetic\nbefore", "mimetic\ntrained"]
    assert seen == [rows + ["pretrained"]] * 3 + [rows + ["pretrained"]] * 2 + [rows]


@pytest.mark.parametrize("words, line", [
    ("nothing", "figures.py: checkpoint is 'nothing': it must be a file of weights; it cannot be read (No such "),
    (".", "figures.py: run is '.': it must be the folder of a run, but its results.json is missing or damaged"),
    ("file --pretrained x", "figures.py: --pretrained is 'x': it must be left out, as there is no run beside it"),
    ("file --heads 0", "figures.py: --heads is '0': it must be a whole number from 1"),
    ("", "figures.py: the following arguments are required: RUN_OR_CHECKPOINT"),
    ("file", "figures.py: checkpoint is 'file': it must be a file of weights, of PyTorch or .safetensors; it cannot"),
])
def test_bad_input_is_one_line_and_status_2(words, line, matplotlib):
    Path("file").write_text("mine")
    done = subprocess.run([sys.executable, "-m", "mimetic_min.figures", *words.split()], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert os.listdir() == ["file"] and done.stdout == ""


def test_all_inits_can_be_drawn_and_the_runs_shown_are_of_one_seed(matplotlib, monkeypatch):
    """Seed 1 is the first that all have finished: default's seed 0 is not shown beside it. And the titles say so."""
    monkeypatch.setattr(training, "rate", lambda step, steps, peak: np.nan if diverge.pop(step, None) else 1e-3)
    diverge = {3: True}                                              # the first run, which is default's of seed 0
    MAIN["vit"]([*TINY["vit"], "--init", *options.INITS, "--seed", "0", "1", "--plot", "--out", "run"])
    assert pictures("run") == NAMES and "diverged" in results("run")["runs"][0]
    _, which, models, _ = figures._read(Path("run"))
    assert which == "seed 1, lr 0.002" and len(models) == 10
    state = torch.load("run/default-seed1-lr0.002.pt", weights_only=True)
    assert torch.equal(models["default\ntrained"].head.weight, state["model"]["head.weight"])


def test_of_many_layers_twelve_are_drawn_and_any_file_name_is_a_title(matplotlib):
    torch.save({f"h.{i}.attn.{name}": torch.randn(shape) for i in range(24)
                for name, shape in (("c_attn.weight", (64, 192)), ("c_proj.weight", (64, 64)))}, "a$b_$c.bin")
    figures.main(["a$b_$c.bin"])
    assert pictures(".") == ["a$b_$c.bin-query-key.png", "a$b_$c.bin-value-projection.png"]
    picture = figures.product_pictures({"": [vit.Attention(8, 2)] * 24}, "x")["query-key.png"]
    numbers = [int(title.split()[1]) for title, *_ in drawn(picture)]
    assert len(numbers) == 12 and numbers == sorted(numbers) and (numbers[0], numbers[-1]) == (1, 24)


@pytest.mark.parametrize("damage, wrong", [
    (lambda: next(Path("run").glob("*.pt")).unlink(), "mimetic-seed0-lr0.002.pt is missing or damaged"),
    (lambda: next(Path("run").glob("*.pt")).write_bytes(b"x"), "mimetic-seed0-lr0.002.pt is missing or damaged"),
    (lambda: torch.save({"model": {}}, next(Path("run").glob("*.pt"))), "lr0.002.pt is missing or damaged"),
    (lambda: Path("run/results.json").write_text("{}"), "results.json is missing or damaged"),
    (lambda: np.savez("my", **images(1)), "data are what they were, but my.npz has changed since"),
    (lambda: os.unlink("my.npz"), "my.npz"),
])
def test_a_damaged_run_or_other_data_is_one_line(damage, wrong, matplotlib):
    np.savez("my", **images(0))
    MAIN["vit"]([*TINY["vit"], "--data", "my.npz", "--out", "run"])
    damage()
    with pytest.raises(ValueError) as error:
        figures.draw("run")
    assert wrong in str(error.value) and "\n" not in str(error.value) and pictures("run") == []


def images(seed):
    pixels, labels = np.random.default_rng(seed).integers(0, 256, (20, 8, 8), dtype=np.uint8), np.arange(20) % 2
    return dict(train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)


def test_a_run_that_all_diverged_has_no_pictures_and_says_so(matplotlib):
    done = script("lm", *TINY["lm"], "--lr", "1e30", "--plot", "--out", "run")
    assert done.returncode == 0 and "final" not in results("run")["runs"][0] and pictures("run") == []
    with pytest.raises(ValueError, match="it must be the folder of a run of which something is finished$"):
        figures.main(["run"])
