"""The pages: their code runs and prints what stands below it, and their links lead somewhere."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mimetic_min import ViT, ViTConfig, vit

ROOT = Path(vit.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture
def names(monkeypatch):
    """What the code of the README supposes: a model of timm's, linear layers, and a trained run."""
    model = SimpleNamespace(blocks=[SimpleNamespace(attn=vit.Attention(192, 3))])
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda name: model))
    folder = Path("runs/vit-shifted-digits")
    folder.mkdir(parents=True)
    state = {"config": asdict(ViTConfig()), "model": ViT(ViTConfig()).state_dict()}
    torch.save(state, folder / "mimetic-seed0-lr0.002.pt")
    names = {name: torch.nn.Linear(192, 192) for name in ("query", "key", "value", "projection")}
    return names | {"Attention": vit.Attention, "ViT": ViT, "ViTConfig": ViTConfig, "k": 64}


@every_page
def test_code_runs_and_prints_what_stands_below_it(page, names, capsys):
    blocks = re.findall(r"```(python|text)\n(.*?)```", page.read_text(), re.DOTALL)
    for (kind, code), (next_kind, expected) in zip(blocks, [*blocks[1:], ("", "")]):
        if kind == "python":
            exec(code, names)
            printed = capsys.readouterr().out
            if next_kind == "text":
                assert printed == expected
    torch.set_printoptions(profile="default")


@every_page
def test_links_lead_somewhere_and_lines_fit(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if not path.startswith("http"):
            target = (page.parent / path) if path else page
            headings = re.findall(r"(?m)^#+ (.*)", target.read_text()) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings]
            assert target.exists() and (not anchor or anchor in anchors), link
    assert max(map(len, text.splitlines())) <= 120 or "| --- |" in text
