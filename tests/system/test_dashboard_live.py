"""The dashboard of a system that trains, real engine and all: a change is tried, made, seen in force, taken back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_stage import LUFFY, MARKS, REWARDS, Watched, browser_page, listen
from up_process import UpProcess, write_run

async_api = pytest.importorskip("playwright.async_api", reason="the browser test needs the playwright package")
pytestmark = [*MARKS[:2], pytest.mark.engine, pytest.mark.timeout(600), MARKS[3]]
STEP_S = 60  # a step of a busy machine
SHOTS = os.environ.get("DASHBOARD_SHOTS")  # a directory that pictures of the page go to


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpProcess]:
    """A run under way; it does not outlive its test."""
    started = UpProcess(write_run(tmp_path, generators=1))
    yield started
    started.clean_up()


async def pictured(watched: Watched, name: str) -> None:
    if SHOTS:
        await watched.page.screenshot(path=Path(SHOTS) / f"live-{name}.png")


async def test_a_running_system_is_watched_tried_out_changed_and_rolled_back(up: UpProcess) -> None:
    url = (await asyncio.to_thread(up.wait_for, r"dashboard: (http://\S+)", 240))[1]
    await asyncio.to_thread(up.wait_for, "first optimiser step", 240)
    async with browser_page(1280, "light") as page:
        watched = Watched(page, url)
        listen(watched)
        await watched.api("PATCH", "/v1/config", json=LUFFY)
        await page.goto(url)
        await watched.until(f"{REWARDS} > 0")
        known = int(await page.evaluate(REWARDS))
        await watched.until(f"{REWARDS} > {known + 2}", 3 * STEP_S)
        await watched.until("document.getElementById('revision').dataset.state === 'settled'", 2 * STEP_S)

        await page.get_by_label("Gamma").fill("0.3")
        await page.get_by_role("button", name="Preview", exact=True).click()
        preview = page.locator(".preview")
        await async_api.expect(preview).to_contain_text("osine", timeout=1000 * STEP_S)
        await async_api.expect(preview).to_contain_text("Pull by source")
        await pictured(watched, "preview")
        await page.get_by_role("button", name="Apply").click()
        await watched.until("document.getElementById('revision').textContent.startsWith('3')")
        await watched.until("document.getElementById('revision').dataset.state === 'settled'", 2 * STEP_S)
        await async_api.expect(page.locator("[data-revision='3']")).to_contain_text("in force at step")
        await watched.until(
            "document.querySelector('#chart-reward .plot').layout.annotations?.some((a) => a.text === 'r3')"
        )
        await pictured(watched, "in-force")

        await watched.twice("Roll back to revision 2")
        await watched.until("document.getElementById('revision').textContent.startsWith('4')")
        await watched.until("document.getElementById('revision').dataset.state === 'settled'", 2 * STEP_S)
        assert (await watched.api("GET", "/v1/config"))["config"]["algorithm"]["gamma"] == 0.1

        await page.get_by_role("link", name="Groups", exact=True).click()
        await page.locator("#group-list a").first.click(timeout=1000 * STEP_S)
        await async_api.expect(page.locator("#group h3")).to_contain_text("train:")
        texts = await page.locator("#group .tokens").all_inner_texts()
        assert "+" in texts[0]
        assert texts[0].endswith("=")
        await pictured(watched, "group")
        await page.get_by_role("link", name="Prompts", exact=True).click()
        await async_api.expect(page.locator("#prompt-total")).to_contain_text("prompt")
        await pictured(watched, "prompts")
        await page.get_by_role("link", name="Processes", exact=True).click()
        await async_api.expect(page.locator("#generators")).to_contain_text("generator")
        await pictured(watched, "processes")
        assert watched.serious() == []
