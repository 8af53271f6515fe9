"""The pictures of the demo in the docs: taken anew with NOC_REALTIME_TEST_SCREENSHOTS=1."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser.desk import enter_live
from tests.conftest import require
from tests.demo import ROOT, Demo

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.environ.get("NOC_REALTIME_TEST_SCREENSHOTS") != "1", reason="takes no pictures"
    ),
]

PICTURES = ROOT / "docs" / "_static"
LIMIT = 200_000


def take(page: Any, name: str) -> None:
    """Put a picture of the page into the docs."""
    require("PIL")
    from PIL import Image

    # Of what has just arrived.
    page.wait_for_timeout(2000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = PICTURES / f"{name}.png"
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LIMIT


def test_the_docs_have_pictures_of_the_demo(page: Any, tmp_path: Path) -> None:
    """Of each page, as it is."""
    PICTURES.mkdir(exist_ok=True)
    with Demo(tmp_path, DEMO_RATE="4") as demo:
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 1440, "height": 900})
        enter_live(page, demo)
        comments = ("cable is being replaced", "carrier ticket 4711", "watching it")
        for who, comment in zip(("kim", "alex", "kim"), comments, strict=True):
            demo.acknowledge(demo.incident()["id"], who, comment=comment)
        take(page, "demo-desk")
        page.emulate_media(color_scheme="light")
        page.evaluate("theme.apply()")
        enter_live(page, demo, "alex")
        page.locator("#automations button", has_text="succeeded").first.click()
        take(page, "demo-run")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 1920, "height": 1080})
        enter_live(page, demo, path="/?wallboard=1")
        take(page, "demo-wallboard")
        page.set_viewport_size({"width": 1440, "height": 1000})
        enter_live(page, demo, path="/compare")
        slider = page.get_by_role("slider")
        slider.fill("50")
        slider.dispatch_event("change")
        # Longer than the half minute of which the savings are told.
        page.wait_for_timeout(60_000)
        for fault in ("cut", "overflow", "logout", "half-open"):
            page.locator(f'button[data-fault="{fault}"]').click()
            page.wait_for_function(
                "(fault) => document.querySelector(`li[data-fault='${fault}'][data-done]`)",
                arg=fault,
            )
        take(page, "demo-compare")
