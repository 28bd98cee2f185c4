"""The dashboard in a real browser: live points, the switch form, rollback, a restart of the control plane, a phone."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from control_process import ControlProcess
from dashboard_stage import LUFFY, MARKS, REWARDS, Scheme, staged

async_api = pytest.importorskip("playwright.async_api", reason="the browser test needs the playwright package")
pytestmark = MARKS
VIEWS = ("run", "groups", "prompts", "processes")
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
UNLABELLED = (
    "[...document.querySelectorAll('input:not([hidden]), select, textarea')].filter((i) => !i.labels.length).length"
)


async def test_points_arrive_live_and_a_switch_and_a_rollback_through_the_page_come_into_force(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.api("PATCH", "/v1/config", json=LUFFY)
        start_s = time.time() - 120
        for i in range(40):
            await stage.run.advance(start_s + 3 * i)
        page = stage.page
        await page.goto(stage.url)
        await stage.until(f"{REWARDS} === 40")
        assert await stage.points("accuracy") == 4

        await stage.steps()
        await stage.until(f"{REWARDS} === 41")
        await stage.until("document.getElementById('step').textContent.startsWith('41')")

        await page.get_by_label("Gamma").fill("0.3")
        assert await page.locator(".decide .diff li").all_inner_texts() == ["algorithm.gamma 0.1 → 0.3"]
        await page.get_by_label("Reason (optional)").fill("more of the expert")
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('3')")
        assert (await stage.api("GET", "/v1/config"))["config"]["algorithm"]["gamma"] == 0.3
        await stage.until("document.getElementById('revision').dataset.state === 'pending'")

        await stage.steps()
        await stage.until("document.getElementById('revision').dataset.state === 'settled'")
        await stage.until(
            "document.querySelector('#chart-reward .plot').layout.annotations?.some((a) => a.text === 'r3')"
        )
        assert "more of the expert" in await page.locator("#history").inner_text()
        assert "in force at step 41" in await page.locator("[data-revision='3']").inner_text()

        rollback = page.get_by_role("button", name="Roll back to revision 2")
        await rollback.click()
        await rollback.click()
        await stage.until("document.getElementById('revision').textContent.startsWith('4')")
        assert (await stage.api("GET", "/v1/config"))["config"]["algorithm"]["gamma"] == 0.1
        await stage.until("document.getElementById('algorithm.gamma').value === '0.1'")
        assert stage.serious() == []


async def test_choosing_an_algorithm_brings_its_parameters_and_a_hint_policy_that_feeds_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        page = stage.page
        await page.goto(stage.url)
        await page.get_by_label("Algorithm", exact=True).select_option("luffy")
        assert await page.get_by_label("Gamma").input_value() == "0.1"
        assert await page.get_by_label("Hint policy", exact=True).input_value() == "demonstration"
        assert "does not suit LUFFY" in await page.locator(".decide").inner_text()
        await page.keyboard.press("Tab")  # the form can be walked through and sent without a mouse
        await page.get_by_label("Gamma").press("Enter")
        await stage.until("document.getElementById('revision').textContent.startsWith('2')")
        config = (await stage.api("GET", "/v1/config"))["config"]
        assert (config["algorithm"]["kind"], config["hints"]["kind"]) == ("luffy", "demonstration")
        assert stage.serious() == []


async def test_the_published_hint_policy_comes_with_an_algorithm_and_goes_with_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        page = stage.page
        await stage.api("PATCH", "/v1/config", json=LUFFY)
        await page.goto(stage.url)
        algorithm, hints = (page.get_by_label(name, exact=True) for name in ("Algorithm", "Hint policy"))
        await algorithm.select_option("relift")
        assert await hints.input_value() == "if_unsolved"
        assert "the published one" in await page.locator(".decide").inner_text()
        await algorithm.select_option("uft")
        assert await hints.input_value() == "cosine_binomial"
        assert "does not suit UFT" in await page.locator(".decide").inner_text()
        await algorithm.select_option("luffy")
        assert await hints.input_value() == "demonstration"
        assert "Nothing yet" in await page.locator(".decide").inner_text()
        assert stage.serious() == []


async def test_values_inside_tables_and_choices_between_numbers_can_be_steered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        page = stage.page
        await page.goto(stage.url)
        await page.get_by_label("Algorithm", exact=True).select_option("srft")
        await page.get_by_label("Sft entropy sign").select_option("1")
        await page.get_by_label("Corrections: truncate at").fill("2")
        await page.get_by_label("Corrections: decoupled").check()
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('2')")
        algorithm = (await stage.api("GET", "/v1/config"))["config"]["algorithm"]
        assert (algorithm["kind"], algorithm["sft_entropy_sign"]) == ("srft", 1)
        assert (algorithm["corrections"]["truncate_at"], algorithm["corrections"]["decoupled"]) == (2, True)
        await page.get_by_label("Corrections: truncate at").fill("")
        assert await page.locator(".decide .diff li").all_inner_texts() == ["algorithm.corrections.truncate_at 2 → –"]
        await page.get_by_label("Corrections: truncate at").fill("-1")
        await page.get_by_role("button", name="Apply").click()
        error = page.locator("[id='algorithm.corrections.truncate_at-error']")
        await async_api.expect(error).to_contain_text("greater than 0")
        assert stage.serious("422") == []


async def test_schedule_and_rehearsal_buffer_are_shown_while_there_are_any(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.api(
            "PATCH", "/v1/config", json={"algorithm": {"kind": "uft"}, "hints": {"kind": "cosine_binomial"}}
        )
        await stage.steps()
        await stage.page.goto(stage.url)
        tiles = stage.page.locator("#tiles")
        await async_api.expect(tiles).to_contain_text("p 0.62 · 12.5 tokens")
        await stage.api("PATCH", "/v1/config", json={"algorithm": {"kind": "relift"}, "hints": {"kind": "if_unsolved"}})
        await stage.steps()
        await async_api.expect(tiles).to_contain_text("Rehearsal buffer")
        await async_api.expect(tiles).not_to_contain_text("Hint schedule")
        await async_api.expect(stage.page.locator("#chart-rehearsal")).to_be_visible()
        assert stage.serious() == []


async def test_a_refused_value_is_explained_at_its_field_and_a_newer_revision_keeps_the_edits(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        page = stage.page
        await page.goto(stage.url)
        rate = page.get_by_label("Learning rate")
        await rate.fill("fast")
        await page.get_by_role("button", name="Apply").click()
        error = page.locator("[id='optimizer.learning_rate-error']")
        await async_api.expect(error).to_contain_text("valid number")
        await async_api.expect(rate).to_have_attribute("aria-invalid", "true")
        await rate.fill("3e-6")
        await stage.api("PATCH", "/v1/config", json={"groups_per_step": 5})
        await async_api.expect(page.get_by_label("Groups per step")).to_have_value("5")
        await async_api.expect(rate).to_have_value("3e-6")
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('3')")
        config = (await stage.api("GET", "/v1/config"))["config"]
        assert (config["optimizer"]["learning_rate"], config["groups_per_step"]) == (3e-6, 5)
        assert stage.serious("422") == []


async def test_the_page_comes_back_by_itself_when_the_control_plane_restarts_and_misses_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.steps()
        await stage.page.goto(stage.url)
        await stage.until("document.getElementById('connection').dataset.state === 'live'")
        port = int(stage.url.rpartition(":")[2])
        await asyncio.to_thread(stage.control.stop)
        await stage.until("document.getElementById('connection').dataset.state === 'away'")
        await stage.steps(9)
        again = ControlProcess(stage.directory / "control", stage.redis_url, port=port)
        try:
            await asyncio.to_thread(again.wait_until_up)
            await stage.until("document.getElementById('connection').dataset.state === 'live'")
            await stage.until(f"{REWARDS} === 10")
        finally:
            await asyncio.to_thread(again.stop)


async def test_with_a_token_the_page_asks_for_it_once(tmp_path: Path) -> None:
    async with staged(tmp_path, token="s3cret") as stage:
        await stage.page.goto(stage.url)
        await stage.page.get_by_label("Token (the value of TRIBUTARY_TOKEN)").fill("wrong")
        await stage.page.keyboard.press("Enter")
        await async_api.expect(stage.page.locator("#token-error")).to_contain_text("not accepted")
        await stage.page.get_by_label("Token (the value of TRIBUTARY_TOKEN)").fill("s3cret")
        await stage.page.keyboard.press("Enter")
        await stage.until("document.getElementById('connection').dataset.state === 'live'")
        await stage.until("document.getElementById('revision').textContent.startsWith('1')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_no_view_runs_over_the_edge_and_every_field_has_a_label(
    tmp_path: Path, scheme: Scheme
) -> None:
    async with staged(tmp_path, width=390, scheme=scheme) as stage:
        await stage.api("PATCH", "/v1/config", json=LUFFY)
        await stage.steps(12)
        await stage.run.furnish(time.time())
        await stage.page.goto(stage.url)
        await stage.until(f"{REWARDS} === 12")
        await stage.until("document.querySelectorAll('#history > li').length === 2")
        for view in VIEWS:
            await stage.page.get_by_role("link", name=view.capitalize(), exact=True).click()
            await stage.until(f"!document.getElementById('view-{view}').hidden")
            await asyncio.sleep(0.5)
            assert await stage.page.evaluate(OVERFLOW) == 0, view
        assert await stage.page.evaluate(UNLABELLED) == 0
        background = await stage.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(json.loads(background.replace("rgb(", "[").replace(")", "]"))) / 3
        assert (brightness > 128) == (scheme == "light")
        assert stage.serious() == []
