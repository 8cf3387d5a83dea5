"""What a user does on the tab's page, alone or inside the WebUI."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

SUBJECT, STYLE = "minixl_subject_rocket", "minixl_style_streamline-cyber-color"
MERGE_MS = 600_000
STEP_MS = 100
BAR_VALUE = "document.querySelector('#ziplora_bar [role=progressbar]')?.getAttribute('aria-valuenow') ?? null"


class Tab:
    """The ZipLoRA tab."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def pick(self, side: str, name: str) -> None:
        box = self.page.locator(f"#ziplora_{side} input")
        box.click()
        box.fill(name)
        self.page.locator(f"#ziplora_{side} li, ul.options li").filter(has_text=name).first.click()
        expect(self.page.locator(f"#ziplora_{side}_facts .ziplora-facts").first).to_contain_text("rank")

    def set_number(self, name: str, value: float) -> None:
        box = self.page.locator(f"#ziplora_{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")

    def prepare(self, output: str, updates: int, subject: str = SUBJECT, style: str = STYLE) -> None:
        self.pick("subject", subject)
        self.pick("style", style)
        self.text("output").fill(output)
        self.set_number("steps", updates)
        self.set_number("width", 64)
        self.set_number("height", 64)
        if not self.page.locator("#ziplora_sampling_steps").is_visible():
            self.page.locator("#ziplora_advanced").get_by_text("Advanced settings").click()
        self.set_number("sampling_steps", 4)
        self.after_merge("nothing")

    def after_merge(self, what: str) -> None:
        """Choose what is drawn once a merge is made."""
        self.page.locator("#ziplora_after_merge").get_by_text(what, exact=True).click()

    def text(self, name: str) -> Locator:
        return self.page.locator(f"#ziplora_{name} textarea, #ziplora_{name} input").first

    def press(self, name: str) -> None:
        self.page.locator(f"#ziplora_{name}").click()

    def bar_values(self, enough: int) -> list[float]:
        """Different values that the bar shows, until there are enough or the bar is gone."""
        values: list[float] = []
        for _ in range(MERGE_MS // STEP_MS):
            value = self.page.evaluate(BAR_VALUE)
            if value is not None and float(value) not in values:
                values.append(float(value))
            if len(values) >= enough or (values and value is None):
                break
            self.page.wait_for_timeout(STEP_MS)
        return values

    def outcome(self, kind: str, words: str = "", place: str = "result") -> Locator:
        """The box of a job that has ended so; the words tell it from that of the job before."""
        box = self.page.locator(f"#ziplora_{place} [data-outcome={kind}]").filter(has_text=words).first
        expect(box).to_be_visible(timeout=MERGE_MS)
        return box

    def bar(self, words: str | re.Pattern[str]) -> None:
        """Wait until the bar says something."""
        expect(self.page.locator("#ziplora_bar").first).to_contain_text(words, timeout=MERGE_MS)

    def method(self, name: str) -> None:
        self.page.locator("#ziplora_method").get_by_text(name, exact=True).click()

    def idle(self) -> None:
        """Wait until no job runs and the lists are there."""
        self.page.locator("#ziplora_catalog [data-known='1']").wait_for(state="attached", timeout=MERGE_MS)
        expect(self.page.locator("#ziplora_generate")).to_be_visible()
        expect(self.page.locator("#ziplora_interrupt")).to_be_hidden()
        expect(self.page.locator("#ziplora_skip")).to_be_hidden()
