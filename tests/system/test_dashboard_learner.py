"""The dashboard in a real browser: what a step's time went to, and a schedule of the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard_stage import MARKS, staged

async_api = pytest.importorskip("playwright.async_api", reason="the browser test needs the playwright package")
pytestmark = MARKS
TIMELINE = "document.querySelector('#chart-timeline .plot')?.data"


async def test_the_time_of_every_step_is_shown_by_what_it_went_to(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for _ in range(3):
            await stage.steps()
        await stage.page.goto(stage.url)
        await stage.page.locator("#chart-timeline").scroll_into_view_if_needed()
        await stage.until(f"({TIMELINE}?.[0].x.length ?? 0) === 3")
        parts = await stage.page.evaluate(f"Object.fromEntries({TIMELINE}.map((t) => [t.name, t.y.at(-1)]))")
        assert list(parts) == ["wait", "pack", "forward", "backward", "optimiser", "publish", "checkpoint", "other"]
        assert sum(parts.values()) == pytest.approx(2.1)
        assert (parts["forward"], parts["backward"]) == (0.4, 0.9)
        assert "900 ms" in await stage.page.locator("#chart-timeline .legend").inner_text()
        assert stage.serious() == []


async def test_a_schedule_is_chosen_by_its_kind_and_brings_its_fields(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        page = stage.page
        await page.goto(stage.url)
        await page.get_by_label("Schedule", exact=True).select_option("cosine")
        assert await page.get_by_label("Schedule: steps").input_value() == "1000"
        await page.get_by_label("Schedule: steps").fill("200")
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('2')")
        schedule = (await stage.api("GET", "/v1/config"))["config"]["optimizer"]["schedule"]
        assert schedule == {"kind": "cosine", "steps": 200, "final_ratio": 0, "after": 0}
        await page.get_by_label("Schedule", exact=True).select_option("linear")
        await page.get_by_label("Schedule", exact=True).select_option("cosine")
        assert "Nothing yet" in await page.locator(".decide").inner_text(), (
            "back at the kind in force, back at its values"
        )
        await page.get_by_label("Schedule: final ratio").fill("3")
        await page.get_by_role("button", name="Apply").click()
        error = page.locator("[id='optimizer.schedule.final_ratio-error']")
        await async_api.expect(error).to_contain_text("less than or equal to 1")
        await page.get_by_label("Schedule", exact=True).select_option("constant")
        assert await page.get_by_label("Schedule: steps").count() == 0
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('3')")
        assert (await stage.api("GET", "/v1/config"))["config"]["optimizer"]["schedule"] == {"kind": "constant"}
        assert stage.serious("422") == []
