"""The pictures: what is drawn is what was given, and a reader can read it."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from mimetic_min import GPT, ViT, gpt, vit
from mimetic_min.lab import figures


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def a_vit(depth=4, mimetic=False):
    torch.manual_seed(0)
    config = vit.ViTConfig(dim=16, depth=depth, heads=2, image_size=8)
    model = ViT(config)
    return model.mimetic_init_() if mimetic else model


def attentions_of(depth, dim=16, heads=2):
    """Attentions with weights that no other has."""
    torch.manual_seed(1)
    return [vit.Attention(dim, heads) for _ in range(depth)]


def heads_of(attention, which):
    """One product of an attention, computed by NumPy: a list of one matrix per head."""
    W_Q, W_K, W_V, W_proj = (W.detach().numpy() for W in attention.parameters())
    if which == "query-key":
        return [q @ k.T for q, k in zip(W_Q, W_K)]
    return [W_V @ W_proj]


def a_run(init="mimetic", values=(2.0, 1.5), lr=0.1, seed=0, metric="loss", diverged=False):
    """An entry of results.json, evaluated every 10 steps."""
    curve = [
        {"step": 10 * (i + 1), "train_loss": 1.0, metric: value} for i, value in enumerate(values)
    ]
    run = {"init": init, "lr": lr, "seed": seed, "curve": curve}
    return run | ({"diverged": 99} if diverged else {"final": {metric: values[-1]}})


def panels(figure):
    """The axes that show a matrix, in the order of reading, without the scale beside them."""
    return [axes for axes in figure.axes if axes.images and axes.get_visible()]


def array(axes):
    return np.asarray(axes.images[0].get_array())


def lines_of(axes):
    """{label: points (n, 2)} of the lines that stand in the legend."""
    return {
        line.get_label(): line.get_xydata()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


# ---------------------------------------------------------------------------------------------
# Without matplotlib


def test_without_matplotlib_one_line_says_how_to_get_it(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    # Python imports nothing under these names now. A fresh copy of the file loads all the same.
    spec = importlib.util.spec_from_file_location("mimetic_min.lab.a_copy", figures.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    line = "^pictures need matplotlib: python -m pip install matplotlib$"
    with pytest.raises(ValueError, match=line):
        copy.check()
    with pytest.raises(ValueError, match=line):
        copy.curves([a_run()])


def test_with_matplotlib_check_says_nothing(matplotlib):
    assert figures.check() is None


# ---------------------------------------------------------------------------------------------
# Files


def test_a_png_is_written_whole_or_not_at_all(matplotlib, tmp_path):
    path = tmp_path / "new" / "picture.png"
    figure = figures.new_figure(2, 1)
    figures.save(figure, path)
    whole = path.read_bytes()
    assert whole.startswith(b"\x89PNG") and whole.endswith(b"IEND\xaeB`\x82")

    figure.suptitle(r"$\nonsense$")  # matplotlib finds out while it draws
    with pytest.raises(ValueError):
        figures.save(figure, path)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_pictures_are_written_by_the_function_that_writes_whole_files(
    matplotlib, tmp_path, monkeypatch
):
    written = {}
    monkeypatch.setattr(figures, "write", written.__setitem__)
    figures.save(figures.new_figure(2, 1), tmp_path / "picture.png")
    assert list(written) == [tmp_path / "picture.png"]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Matrices


def test_matrices_are_drawn_as_they_are_with_one_scale(matplotlib):
    """995 of 1,000 entries of a matrix lie within the scale. Of -20, ..., 20 these are those up to
    20 - 0.005 * 40 in size or more, so the scale ends near 20, and at the same value everywhere.
    """
    small = np.arange(9.0).reshape(3, 3) - 4
    large = np.linspace(-20, 20, 1600).reshape(40, 40)
    rows = {"one": [("left", small, 0.5), ("right", large, -0.004)], "$two_$": [("left", small, 3)]}
    figure = figures.matrices("What to look for", rows, signed=True)
    drawn = panels(figure)
    assert len(drawn) == 3
    for axes, matrix in zip(drawn, (small, large, small)):
        assert np.array_equal(array(axes), matrix)
        lowest, highest = axes.images[0].get_clim()
        assert lowest == -highest
        assert 19.8 <= highest <= 20
    assert [axes.get_title() for axes in drawn] == ["left", "right", ""]
    assert [axes.get_ylabel() for axes in drawn] == ["one", "", "$two_$"]
    # No minus sign before a zero.
    assert [axes.get_xlabel() for axes in drawn] == ["+0.50", "+0.00", "+3.00"]
    assert figure.get_suptitle() == "What to look for"
    assert_all_text_is_inside(figure)  # and a dollar sign in a name is no formula


def test_without_sign_white_is_zero_and_black_is_five_times_the_mean(matplotlib):
    maps = [np.full((4, 4), 0.25), np.eye(4)]  # both have a mean of 1/4
    rows = {"": [("even", maps[0], 0.25), ("itself", maps[1], 1.0)]}
    for axes in panels(figures.matrices("Maps", rows, signed=False)):
        assert axes.images[0].get_clim() == (0, 1.25)
        assert axes.images[0].get_cmap()(0.0)[:3] == (1, 1, 1)


def test_a_matrix_of_zeros_can_be_drawn(matplotlib):
    rows = {"off": [("layer 1", np.zeros((4, 4)), 0.0)]}
    (axes,) = panels(figures.matrices("Nothing", rows, signed=True))
    assert axes.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("which", ["query-key", "value-projection"])
def test_products_are_those_of_numpy(matplotlib, which):
    """Of 80 rows and columns the first 64 are drawn. The number is the mean of all 80 diagonal
    entries.
    """
    attentions = attentions_of(depth=2, dim=80, heads=5)
    for attention in attentions:
        # Weights of a size that two decimals can tell
        attention.mimetic_init_(0.7, 0.7, 0.4, -0.4)
    figure = figures.product_matrices(which, {("mimetic", "start"): attentions}, "seed 0")
    for i, (axes, attention) in enumerate(zip(panels(figure), attentions, strict=True)):
        mean = np.mean(heads_of(attention, which), axis=0)
        # A sum of 80 products of float32, each below 1: an error of 80 * 6e-8 at most
        assert np.allclose(array(axes), mean[:64, :64], rtol=0, atol=1e-5)
        assert axes.get_title() == f"layer {i + 1}"
        # Rounded to two decimals
        assert abs(float(axes.get_xlabel()) - np.diag(mean).mean()) < 0.0051
    title = " ".join(figure.get_suptitle().split())
    for words in (which, "seed 0", "diagonal", "rows and columns 1 to 64"):
        assert words in title


def test_some_layers_are_early_middle_and_late():
    assert figures.some_layers(1, most=3) == [0]
    assert figures.some_layers(2, most=3) == [0, 1]
    assert figures.some_layers(3, most=3) == [0, 1, 2]
    assert figures.some_layers(12, most=3) == [2, 6, 10]
    assert figures.some_layers(30, most=3) == [5, 15, 25]
    assert figures.some_layers(6, most=6) == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------
# Attention maps


def layer_inputs(model, x):
    """What the attention of each block reads, block by block."""
    for block in model.blocks:
        yield block.attention, block.norm1(x)
        x = block(x)


@pytest.mark.parametrize("kind", ["vit", "gpt"])
def test_attention_maps_are_those_of_what_each_layer_reads(matplotlib, kind):
    if kind == "vit":
        model = a_vit(mimetic=True)
        batch = torch.randn(3, 1, 8, 8)
        patches = torch.nn.functional.pixel_unshuffle(batch, 2).flatten(2).mT
        x = model.embed(patches) + model.positions
    else:
        torch.manual_seed(0)
        model = GPT(gpt.GPTConfig(vocab_size=9, context=8, dim=16, depth=4, heads=2))
        model.mimetic_init_()
        batch = torch.randint(9, (3, 8))
        x = 4 * model.embed(batch) + model.positions  # 4 is the root of dim
    with torch.no_grad():
        maps = [a.attention_map(y).mean((0, 1)).numpy() for a, y in layer_inputs(model, x)]

    drawn = panels(figures.attention_maps(model, batch))
    assert [axes.get_title() for axes in drawn] == ["layer 1", "layer 3", "layer 4"]
    for axes, i in zip(drawn, (0, 2, 3)):
        # Numbers below 1 in float32, computed in another order
        assert np.allclose(array(axes), maps[i], rtol=0, atol=1e-5)
        assert axes.get_xlabel() == f"{np.diag(maps[i]).mean():.3f}"
    # The model is as it was: no hook stays.
    assert not any(block.norm1._forward_hooks for block in model.blocks)


def test_a_model_that_fails_keeps_no_hook():
    model = a_vit()
    with pytest.raises(RuntimeError):
        figures.mean_maps(model, torch.randn(3, 2, 8, 8))
    assert not any(block.norm1._forward_hooks for block in model.blocks)


# ---------------------------------------------------------------------------------------------
# Diagonals


def test_diagonals_are_those_of_numpy_hollow_at_the_start_and_filled_after(matplotlib):
    start = attentions_of(3)
    trained = [block.attention for block in a_vit(3, mimetic=True).blocks]
    layers = {("default", "start"): start, ("default", "trained"): trained}
    figure = figures.diagonals("Do they grow?", layers)
    for axes in figure.axes:
        which = axes.get_title()
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert [line.get_label() for line in lines] == ["default, start", "default, trained"]
        assert [line.get_markerfacecolor() for line in lines] == ["none", "#000000"]
        for line, attentions in zip(lines, layers.values()):
            means = [np.mean([np.diag(P) for P in heads_of(a, which)]) for a in attentions]
            assert np.array_equal(line.get_xdata(), [1, 2, 3])
            # Sums of 16 products of float32, each below 1
            assert np.allclose(line.get_ydata(), means, rtol=0, atol=1e-6)
    assert [axes.get_title() for axes in figure.axes] == ["query-key", "value-projection"]


def test_thirty_layers_are_all_in_the_diagonals_and_six_are_matrices(matplotlib):
    layers = {("mimetic", "start"): attentions_of(30)}
    for axes in figures.diagonals("", layers).axes:
        assert len(lines_of(axes)["mimetic, start"]) == 30
        marks = axes.get_xticks()
        assert len(marks) <= 12
        assert all(mark == int(mark) and 1 <= mark <= 30 for mark in marks)
    drawn = panels(figures.product_matrices("query-key", layers))
    assert [axes.get_title() for axes in drawn] == [f"layer {i}" for i in (3, 8, 13, 18, 23, 28)]


def test_the_starts_differ_in_colour_and_in_dash():
    known = "off default xavier noise simple mimetic query-key value-projection language".split()
    assert sorted(figures.STYLES) == sorted(known)
    styles = [*figures.STYLES.values(), figures.OTHER_STYLE]
    assert len({color for color, _ in styles}) == len(styles)
    assert len({dash for _, dash in styles}) == len(styles)


# ---------------------------------------------------------------------------------------------
# Curves


def test_a_line_is_the_mean_over_seeds_and_its_band_goes_from_least_to_most(matplotlib):
    """10 % and 30 % have the mean 20 %, 50 % and 70 % the mean 60 %."""
    runs = [
        a_run("default", (0.1, 0.5), seed=0, metric="accuracy"),
        a_run("default", (0.3, 0.7), seed=1, metric="accuracy"),
        a_run("default", (0.2, 0.4), lr=0.2, seed=0, metric="accuracy"),
    ]
    figure = figures.curves(runs)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("learning rate 0.1", "learning rate 0.2")
    assert left.get_ylabel() == "accuracy, %"
    assert np.allclose(lines_of(left)["default"], [[10, 20], [20, 60]])
    assert np.allclose(lines_of(right)["default"], [[10, 20], [20, 40]])
    band = left.collections[0].get_paths()[0].vertices
    for step, least, most in ((10, 10, 30), (20, 50, 70)):
        heights = band[band[:, 0] == step, 1]
        assert np.allclose([heights.min(), heights.max()], [least, most])
    assert "0, 1" in figure.get_suptitle()


def test_a_line_ends_in_a_cross_where_the_first_seed_diverged(matplotlib):
    """Beyond it, the mean would be one of the lucky seeds."""
    runs = [
        a_run(values=(3.0, 2.0, 1.5), seed=0),
        a_run(values=(3.2, 2.4), seed=1, diverged=True),
    ]
    (axes,) = figures.curves(runs).axes
    lines = lines_of(axes)
    assert np.allclose(lines["mimetic"], [[10, 3.1], [20, 2.2]])
    assert np.allclose(lines["a seed diverged"], [[20, 2.2]])


def test_a_start_that_diverged_before_its_first_evaluation_is_named(matplotlib):
    runs = [a_run("default"), a_run("mimetic", seed=0), a_run("mimetic", (), seed=1, diverged=True)]
    (axes,) = figures.curves(runs).axes
    assert list(lines_of(axes)) == ["default"]
    assert axes.get_title() == "learning rate 0.1\nmimetic diverged at once"


def test_one_seed_has_a_line_and_no_cross(matplotlib):
    figure = figures.curves([a_run(seed=7)])
    (axes,) = figure.axes
    assert list(lines_of(axes)) == ["mimetic"]
    assert "Seed 7" in figure.get_suptitle()


def test_a_single_evaluation_is_a_point_that_can_be_seen(matplotlib):
    (axes,) = figures.curves([a_run(values=(2.0,))]).axes
    assert axes.lines[0].get_marker() == "."
    lowest, highest = axes.get_ylim()
    assert lowest < 2 < highest


@pytest.mark.parametrize("explosion", [6.0, 1e6, 1e30])
def test_a_run_that_explodes_leaves_the_picture_and_the_others_fill_it(matplotlib, explosion):
    """The others go from 2.4 to 1.4, which is at least nine tenths of the axis: its margins are a
    twentieth each.
    """
    runs = [
        a_run("default", (2.4, 2.0, 1.6)),
        a_run("noise", (2.3, explosion, explosion)),
        a_run("mimetic", (2.2, 1.8, 1.4)),
    ]
    figure = figures.curves(runs)
    (axes,) = figure.axes
    lowest, highest = axes.get_ylim()
    assert lowest < 1.4 and 2.4 < highest
    assert 2.4 - 1.4 > 0.9 * (highest - lowest)
    assert axes.get_title() == "learning rate 0.1\nnoise leaves the picture"
    # What is drawn is still what was given.
    assert lines_of(axes)["noise"][1, 1] == explosion
    assert_all_text_is_inside(figure)


def test_a_rate_that_is_too_high_for_all_starts_does_not_hide_the_others(matplotlib):
    good = [a_run(init, (2.5, 1.5), lr=0.1) for init in ("default", "mimetic")]
    bad = [a_run(init, (900.0, 1000.0), lr=0.8) for init in ("default", "mimetic")]
    left, right = figures.curves(good + bad).axes
    assert left.get_ylim() == right.get_ylim()
    assert 2.5 < left.get_ylim()[1] < 3
    assert "mimetic leaves the picture" in right.get_title()


def test_ordinary_runs_stay_in_the_picture(matplotlib):
    """A start that hardly learns is worse than the others, and belongs there."""
    runs = [
        a_run("off", (3.0, 2.9, 2.8)),
        a_run("default", (2.6, 2.0, 1.7)),
        a_run("mimetic", (2.4, 1.7, 1.4)),
    ]
    (axes,) = figures.curves(runs).axes
    assert axes.get_title() == "learning rate 0.1"
    assert axes.get_ylim()[1] > 3


def test_an_accuracy_is_shown_whole(matplotlib):
    runs = [a_run("default", (0.10, 0.09), metric="accuracy")]
    runs += [a_run(init, (0.90, 0.91), metric="accuracy") for init in ("noise", "mimetic")]
    (axes,) = figures.curves(runs).axes
    lowest, highest = axes.get_ylim()
    assert lowest < 9 and highest > 91


def test_a_start_of_another_name_is_drawn(matplotlib):
    (axes,) = figures.curves([a_run("mine")]).axes
    assert "mine" in lines_of(axes)
    layers = {("mine", "start"): attentions_of(2)}
    assert "mine, start" in lines_of(figures.diagonals("", layers).axes[0])


def test_seven_rates_have_seven_panels_in_rows(matplotlib):
    runs = [a_run(lr=2.0**-i) for i in range(7)]
    figure = figures.curves(runs)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == [f"learning rate {2.0**-i:g}" for i in reversed(range(7))]
    assert figure.get_figwidth() < 10


def test_no_evaluation_is_one_line():
    with pytest.raises(ValueError, match="^there are no curves to draw, because no run was eval"):
        figures.curves([a_run(values=(), diverged=True)])


# ---------------------------------------------------------------------------------------------
# Trained networks


def test_trained_networks_are_drawn_in_standard_deviations(matplotlib):
    networks = {
        "vision": attentions_of(12),
        "language": [block.attention for block in a_vit(5, mimetic=True).blocks],
    }
    figure = figures.trained_networks(networks)
    blocks = figure.subfigs
    for block, attentions in zip(blocks, networks.values(), strict=True):
        matrices = panels(block)
        (plot,) = (axes for axes in block.axes if axes.lines)
        chosen = figures.some_layers(len(attentions), most=3)
        for row, which in enumerate(("query-key", "value-projection")):
            products = [np.mean(heads_of(attention, which), axis=0) for attention in attentions]
            products = [product / product.std() for product in products]
            for axes, i in zip(matrices[3 * row :], chosen):
                # Entries below 6 in float32
                assert np.allclose(array(axes), products[i], rtol=0, atol=1e-4)
            means = [np.diag(product).mean() for product in products]
            assert np.allclose(lines_of(plot)[which][:, 1], means, rtol=0, atol=1e-4)
        assert block.get_suptitle() in networks
    # One scale for the matrices, and one for the diagonals
    assert len({axes.images[0].get_clim() for axes in panels(figure)}) == 1
    assert len({axes.get_ylim() for axes in figure.axes if axes.lines}) == 1
    assert_all_text_is_inside(figure)


def test_the_signs_of_the_mimetic_start_can_be_seen(matplotlib):
    """Query-key above 0 and value-projection below, in every layer."""
    layers = [block.attention for block in a_vit(mimetic=True).blocks]
    figure = figures.trained_networks({"a": layers}, reference={"b": layers, "c": layers})
    plots = [axes for axes in figure.axes if axes.lines]
    assert [block.get_suptitle() for block in figure.subfigs if block.axes] == ["a", "b", "c"]
    for plot in plots:
        assert (lines_of(plot)["query-key"][:, 1] > 0).all()
        assert (lines_of(plot)["value-projection"][:, 1] < 0).all()


def test_a_product_of_zeros_has_a_diagonal_of_zero(matplotlib):
    (attention,) = attentions_of(1)
    attention.value_projection_init_(0, 0)
    figure = figures.trained_networks({"off": [attention]})
    (plot,) = (axes for axes in figure.axes if axes.lines)
    assert lines_of(plot)["value-projection"].tolist() == [[1, 0]]


# ---------------------------------------------------------------------------------------------
# All pictures of an experiment

NAMES = ["attention.png", "curves.png", "diagonals.png", "query-key.png", "value-projection.png"]


def test_an_experiment_has_five_pictures(matplotlib, tmp_path):
    models = {}
    for init in ("default", "mimetic"):
        models[init, "start"] = a_vit(2, mimetic=init == "mimetic")
        models[init, "trained"] = a_vit(2, mimetic=init == "mimetic")
    runs = [a_run("default"), a_run("mimetic")]
    paths = figures.draw_run(tmp_path / "run", runs, models, torch.randn(3, 1, 8, 8), "seed 0")
    assert sorted(path.name for path in paths) == NAMES
    assert sorted(paths) == sorted((tmp_path / "run").iterdir())
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width = int.from_bytes(content[16:20])  # in pixels, from the header
        assert 500 < width < 1100


def test_the_rows_of_an_experiment_are_the_start_and_the_trained_model_of_each_init(
    matplotlib, tmp_path, monkeypatch
):
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.update({path.name: figure}))
    models = {("default", "start"): a_vit(2), ("default", "trained"): a_vit(2, mimetic=True)}
    figures.draw_run(tmp_path, [a_run("default")], models, torch.randn(3, 1, 8, 8), "seed 0")
    assert sorted(drawn) == NAMES
    for name in ("query-key.png", "value-projection.png", "attention.png"):
        names_of_rows = [axes.get_ylabel() for axes in panels(drawn[name])]
        assert names_of_rows == ["default\nstart", "", "default\ntrained", ""]
        assert "seed 0" in " ".join(drawn[name].get_suptitle().split())
    for figure in drawn.values():
        assert_all_text_is_inside(figure)


def test_without_models_only_curves_are_drawn_and_without_results_nothing(matplotlib, tmp_path):
    paths = figures.draw_run(tmp_path, [a_run()], {}, None)
    assert paths == [tmp_path / "curves.png"]
    paths[0].unlink()
    diverged = a_run(values=(), diverged=True)
    assert figures.draw_run(tmp_path, [diverged], {}, None) == []
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Text


def assert_all_text_is_inside(figure):
    """No text is cut off by the edge of the figure, and the legend beside the axes covers none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    box = figure.get_tightbbox()  # of all that is drawn, in inches
    assert box.x0 >= 0 and box.x1 <= figure.get_figwidth()
    assert box.y0 >= 0 and box.y1 <= figure.get_figheight()
    for legend in figure.legends:
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_text_that_is_cut_off_is_noticed(matplotlib):
    figure = figures.new_figure(2, 2)
    figure.suptitle("a title that is far wider than two inches")
    with pytest.raises(AssertionError):
        assert_all_text_is_inside(figure)


@pytest.mark.parametrize("rates", [1, 4])
def test_long_names_and_many_of_them_fit(matplotlib, rates):
    inits = [*figures.STYLES, "a start with a long name"]
    runs = [
        a_run(init, lr=0.1 * 2**i, seed=s) for init in inits for i in range(rates) for s in (0, 1)
    ]
    assert_all_text_is_inside(figures.curves(runs))
    layers = {(init, when): attentions_of(2) for init in inits for when in ("start", "trained")}
    assert_all_text_is_inside(figures.diagonals("Do they grow? " * 12, layers))
    if rates == 1:
        assert_all_text_is_inside(figures.product_matrices("query-key", layers, "seed 0, lr 0.002"))
