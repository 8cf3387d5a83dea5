"""The README's pictures of the tab: ``python -m benchmarks.screenshots [--out docs/images] [NAME ...]``.

They are taken in a real WebUI where ``ZIPLORA_WEBUI`` and ``ZIPLORA_WEBUI_PYTHON`` name one (its extensions link to
this checkout), on ``serve``'s page otherwise; merges are of MiniXL. Needs Chromium, as the tab's tests do.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.browser import serving, webui
from tests.browser.conftest import CHROMIUM_ARGUMENTS, CHROMIUM_NAMES, EXPECT_MS
from tests.browser.pages import MERGE_MS, STYLE, SUBJECT, Tab
from tests.browser.webui_pages import show_tab

WIDTH, PHONE = 1280, 390
COLOURS = 192
GAP = 8
OTHER_SUBJECT, OTHER_STYLE = "minixl_subject_crown", "minixl_style_picon"
NAMES = ("tab", "more", "running", "result", "steer", "explain", "matrix", "phone")


class Shots:
    """Takes the pictures whose names are wanted.

    Args:
        page: that shows the tab.
        folder: for the pictures.
        names: of those that are wanted.
    """

    def __init__(self, page: Page, folder: Path, names: frozenset[str]) -> None:
        self.page, self.folder, self.names = page, folder, names

    def take(self, name: str, first: Locator, last: Locator | None = None) -> None:
        """A picture from the top of one element to the end of another one, in few colours."""
        if name not in self.names:
            return
        self.page.mouse.move(0, 0)
        self.page.evaluate("window.scrollTo(0, 0)")
        boxes = [one.bounding_box() for one in (first, last or first)]
        top, bottom = boxes[0], boxes[1]
        assert top and bottom, name
        left, width = min(top["x"], bottom["x"]), max(top["width"], bottom["width"])
        height = bottom["y"] + bottom["height"] - top["y"]
        clip = {"x": left - GAP, "y": top["y"] - GAP, "width": width + 2 * GAP, "height": height + 2 * GAP}
        file = self.folder / f"{name}.png"
        self.page.screenshot(path=file, full_page=True, clip=clip)
        shrink(Image.open(file), file)


def shrink(picture: Image.Image, file: Path) -> None:
    """Save a picture as a PNG of few colours."""
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


@contextmanager
def address(folder: Path) -> Iterator[str]:
    """Where the tab is shown."""
    if webui.PRESENT:
        with webui.running(folder) as real:
            yield real.url
    else:
        with serving.running(folder) as server:
            yield server.url


def opened(page: Page, url: str, dark: bool = False) -> Tab:
    """The tab on a page."""
    page.goto(f"{url}?__theme={'dark' if dark else 'light'}")
    if webui.PRESENT:
        show_tab(page, "ZipLoRA")
    tab = Tab(page)
    tab.idle()
    return tab


def take_all(page: Page, url: str, shots: Shots) -> None:
    """One merge and one matrix, with a picture at every step."""
    tab = opened(page, url)
    place = page.locator
    tab.pick("subject", SUBJECT)
    tab.pick("style", STYLE)
    for name in ("width", "height"):
        tab.set_number(name, 64)
    tab.text("output").fill("rocket in cyber")
    expect(place("#ziplora_preflight [data-check]").first).to_have_attribute("data-check", "fine")
    shots.take("tab", place("#ziplora_root"), place("#ziplora_body"))
    tab.page.locator("#ziplora_more").get_by_text("More LoRAs").click()
    tab.pick("third", OTHER_SUBJECT)
    shots.take("more", place("#ziplora_more"))
    tab.press("third_clear")
    place("#ziplora_more").get_by_text("More LoRAs").click()
    tab.press("generate")
    curves = place("#ziplora_curves").first
    expect(curves.locator("svg")).to_have_count(3, timeout=MERGE_MS)
    shots.take("running", place("#ziplora_bar").first, curves)
    tab.outcome("done", "rocket in cyber")
    tab.outcome("done", "Drew 2 of 2", place="drawn_note")
    tab.idle()
    expect(place("#ziplora_drawn img").first).to_be_visible()
    page.add_style_tag(content=".ziplora-path { display: none; }")  # a temporary folder
    shots.take("result", place("#ziplora_result").first, place("#ziplora_tag_panel"))
    shots.take("steer", place("#ziplora_adjusting"))
    shots.take("explain", place("#ziplora_explaining"))
    take_matrix(tab, shots)
    take_phone(tab, url, shots)


def take_matrix(tab: Tab, shots: Shots) -> None:
    """Two subjects with two styles, and their sheet."""
    panel = tab.page.locator("#ziplora_matrix")
    panel.get_by_text("Matrix", exact=True).click()
    tab.text("matrix_subjects").fill(f"{SUBJECT} | a sks icon\n{OTHER_SUBJECT} | a sks icon")
    tab.text("matrix_styles").fill(
        f"{STYLE} | a bell icon in szn style\n{OTHER_STYLE} | a bell icon in szn style"
    )
    tab.method("balanced")
    tab.page.locator("#ziplora_matrix_sheet input").check()
    tab.press("matrix_run")
    tab.outcome("done", "4 of 4 pairs merged")
    tab.idle()
    shots.take("matrix", tab.page.locator("#ziplora_result").first)


def take_phone(tab: Tab, url: str, shots: Shots) -> None:
    """The tab on a phone: its top in the dark, and what is known of a pair in the light."""
    if "phone" not in shots.names:
        return
    tab.page.set_viewport_size({"width": PHONE, "height": 844})
    sides = []
    for dark, below in ((True, "#ziplora_root"), (False, "#ziplora_preflight")):
        tab = opened(tab.page, url, dark)
        tab.pick("subject", SUBJECT)
        tab.pick("style", STYLE)
        expect(tab.page.locator("#ziplora_preflight [data-check]").first).to_be_visible()
        tab.page.locator(below).first.evaluate("element => element.scrollIntoView()")
        file = shots.folder / "phone.png"
        tab.page.screenshot(path=file)
        sides.append(Image.open(file).convert("RGB"))
    sheet = Image.new("RGB", (2 * PHONE + GAP, sides[0].height), "white")
    for number, side in enumerate(sides):
        sheet.paste(side, (number * (PHONE + GAP), 0))
    shrink(sheet, shots.folder / "phone.png")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=EXPECT_MS)
    chromium = next(path for name in CHROMIUM_NAMES if (path := shutil.which(name)))
    names = frozenset(arguments.names or NAMES)
    with (
        tempfile.TemporaryDirectory() as folder,
        address(Path(folder)) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(EXPECT_MS)
        take_all(page, url, Shots(page, arguments.out, names))
        browser.close()


if __name__ == "__main__":
    main()
