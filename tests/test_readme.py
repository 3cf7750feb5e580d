"""The pages: their code runs and prints what stands below it, and their links lead somewhere."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mimetic_min import vit

ROOT = Path(vit.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture
def names(monkeypatch):
    """What the code of the README supposes: a model of timm's, and linear layers of one's own."""
    model = SimpleNamespace(blocks=[SimpleNamespace(attn=vit.Attention(192, 3))])
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda name: model))
    names = {name: torch.nn.Linear(192, 192) for name in ("query", "key", "value", "projection")}
    return names | {"Attention": vit.Attention, "k": 64}


@every_page
def test_code_runs_and_prints_what_stands_below_it(page, names, capsys):
    pairs = re.findall(r"```python\n(.*?)```\n*(?:```text\n(.*?)```)?", page.read_text(), re.DOTALL)
    for code, expected in pairs:
        exec(code, names)
        assert not expected or capsys.readouterr().out == expected


@every_page
def test_links_lead_to_files_that_are_there(page):
    for path in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text()):
        assert (page.parent / path).exists(), path
