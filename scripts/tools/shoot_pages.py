"""Draw docs/figures: the report of MiniLM → SRE as a browser shows it, and its heat map as it stands on a card.

    python -m scripts.tools.shoot_pages

Needs Chromium (PARAMDELTA_CHROMIUM, or on the path), playwright, and the checkpoints of scripts/weights.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import paramdelta_hub as pd
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from scripts.weights import fetch

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
SHOTS = {"report-light": ("light", 860, 1400), "report-dark": ("dark", 860, 1400), "report-phone": ("light", 390, 1400)}
"""File: (colour scheme, width, height)."""


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        delta = Path(scratch, "minilm-sre")
        pd.extract(fetch("minilm-base"), fetch("minilm-sre"), delta, name="minilm-sre", license="apache-2.0")
        report = pd.inspect(delta, samples=None)
        page = pd.write_report(report, Path(scratch, "report.html"), reference="demo/minilm-sre@1.0.0")
        (FIGURES / "heatmap.svg").write_text(
            heat_map(heat_parts(report.manifest.tensors), alone=True), encoding="utf-8"
        )
        shoot(page)


def shoot(page: Path) -> None:
    """Take every picture of a page, from its top."""
    path = os.environ.get("PARAMDELTA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, (scheme, width, height) in SHOTS.items():
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            shown = context.new_page()
            shown.goto(page.as_uri())
            shown.screenshot(path=FIGURES / f"{name}.png")
            print(FIGURES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
