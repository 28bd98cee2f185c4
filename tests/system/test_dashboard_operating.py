"""What an operator does through the dashboard: tries changes, guards a run, gives orders, looks at tokens, teaches."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from dashboard_stage import LUFFY, MARKS, Stage, staged

async_api = pytest.importorskip("playwright.async_api", reason="the browser test needs the playwright package")
pytestmark = MARKS
READER = "reader-token-0123456789"


async def shown(stage: Stage, view: str = "run", steps: int = 12) -> None:
    """Make LUFFY's steps and open a view."""
    await stage.api("PATCH", "/v1/config", json=LUFFY)
    await stage.steps(steps)
    await stage.page.goto(f"{stage.url}/#{view}")
    await stage.until("document.getElementById('connection').dataset.state === 'live'")


async def test_a_change_is_previewed_beside_what_is_in_force_and_then_applied(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await shown(stage)
        page, preview = stage.page, stage.page.locator(".preview")
        await page.get_by_label("Gamma").fill("0.3")
        await page.get_by_role("button", name="Preview", exact=True).click()
        await async_api.expect(preview).to_contain_text("with its next step")
        await stage.steps()
        await async_api.expect(preview).to_contain_text("on step 13")
        await async_api.expect(preview).to_contain_text("0.93 cosine with what is in force")
        figures = await preview.locator("tbody tr").all_inner_texts()
        rows = [" ".join(row.split()) for row in figures]
        assert "Loss -0.3 -0.5" in rows
        assert "demonstration 33 % 60 %" in rows  # of the pull
        assert "demonstration 39 % 29 %" in rows  # effective sample size
        assert (await stage.api("GET", "/v1/config"))["revision"] == 2  # nothing is changed by looking

        await page.get_by_label("Gamma").fill("0.4")
        await async_api.expect(preview).to_contain_text("of an earlier draft")
        await page.get_by_label("Gamma").fill("0.3")
        await async_api.expect(preview.locator(".stale-note")).to_be_hidden()
        await page.get_by_role("button", name="Apply").click()
        await async_api.expect(preview).to_be_hidden()
        await stage.steps(3)
        entry = page.locator("[data-revision='3']")
        await async_api.expect(entry).to_contain_text("in force at step 13")
        await entry.get_by_text("Figures before and after").click()
        await async_api.expect(entry.locator("table")).to_contain_text("10 steps before")
        await async_api.expect(entry.locator("table")).to_contain_text("Reward")
        assert stage.serious() == []


async def test_a_preview_waits_for_a_paused_learner_and_a_refused_one_says_why(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await shown(stage)
        page, preview = stage.page, stage.page.locator(".preview")
        await stage.api("POST", "/v1/learner/pause")
        await async_api.expect(page.locator("#banner")).to_contain_text("paused by")
        await page.get_by_label("Gamma").fill("0.3")
        await page.get_by_role("button", name="Preview", exact=True).click()
        await async_api.expect(preview).to_contain_text("the learner is paused")
        await page.get_by_role("button", name="Resume the learner").click()
        await async_api.expect(page.locator("#banner")).to_be_hidden()
        await stage.steps()
        await async_api.expect(preview).to_contain_text("cosine with what is in force")
        await page.get_by_label("Gamma").fill("-1")
        await page.get_by_role("button", name="Preview", exact=True).click()
        await async_api.expect(page.locator("[id='algorithm.gamma-error']")).to_contain_text("greater than")
        await async_api.expect(preview).to_be_hidden()
        assert stage.serious("422") == []


async def test_guards_are_added_changed_and_removed_in_the_form(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await shown(stage)
        page = stage.page
        await page.get_by_role("button", name="Add a guard").click()
        guard = page.locator(".guard")
        await guard.get_by_label("Name").fill("collapse")
        await guard.get_by_label("Watch").select_option("entropy")
        await guard.get_by_label("Below").fill("much")
        await guard.get_by_label("Action").select_option("set")
        await guard.get_by_label("Patch").fill('{"optimizer": {"learning_rate": 5e-7}}')
        await page.get_by_role("button", name="Apply").click()
        await async_api.expect(page.locator("[id='guards.0.below-error']")).to_contain_text("valid number")
        await guard.get_by_label("Below").fill("0.05")
        await async_api.expect(page.locator(".decide .diff")).to_contain_text("entropy < 0.05 in 3 steps: set")
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('3')")
        (made,) = (await stage.api("GET", "/v1/config"))["config"]["guards"]
        assert (made["name"], made["below"], made["above"]) == ("collapse", 0.05, None)
        assert made["action"] == {"kind": "set", "patch": {"optimizer": {"learning_rate": 5e-7}}}
        await async_api.expect(page.locator("[data-revision='3']")).to_contain_text("guards.collapse")

        await page.get_by_role("button", name="Add a guard").click()
        second = page.locator(".guard").nth(1)
        await second.get_by_label("Name").fill("collapse")
        await page.get_by_role("button", name="Apply").click()
        await async_api.expect(page.locator(".decide")).to_contain_text("names of their own")
        await second.get_by_role("button", name="Remove").click()
        await page.get_by_role("button", name="Remove this guard").click()
        await page.get_by_role("button", name="Apply").click()
        await stage.until("document.getElementById('revision').textContent.startsWith('4')")
        assert (await stage.api("GET", "/v1/config"))["config"]["guards"] == []
        assert stage.serious("422") == []


async def test_learner_and_generators_take_orders_from_the_page(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await shown(stage, "processes")
        await stage.run.furnish(time.time())
        page = stage.page
        await stage.twice("Pause the learner")
        await async_api.expect(page.locator("#banner")).to_contain_text("The learner is paused by")
        await stage.steps(2)
        assert (await stage.api("GET", "/v1/status"))["learner"]["step"] == 12
        await page.get_by_role("button", name="Write a checkpoint now").click()
        await asyncio.sleep(0.3)
        await stage.steps()
        await async_api.expect(page.locator("#learner")).to_contain_text("Written at step 10.")
        await page.get_by_role("button", name="Resume the learner").click()
        await async_api.expect(page.locator("#banner")).to_be_hidden()

        await stage.twice("Drain generator-2")
        await async_api.expect(page.locator("#generators")).to_contain_text("draining")
        await stage.steps()
        await async_api.expect(page.locator("#generators")).to_contain_text("drained")
        await page.get_by_role("button", name="Admit generator-2").click()
        await async_api.expect(page.locator("#generators")).not_to_contain_text("drained")
        assert (await stage.api("GET", "/v1/status"))["drained"] == {}
        await async_api.expect(page.locator("#activity")).to_contain_text("admit generator-2")
        await async_api.expect(page.locator("#quarantine")).to_contain_text("the message is of schema 9")
        await async_api.expect(page.locator("#weights")).to_contain_text("1.33 MB")
        assert stage.serious() == []


async def test_the_tokens_of_a_group_tell_their_numbers_under_the_keyboard_and_change_their_colours(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as stage:
        await shown(stage, "groups")
        page, card = stage.page, stage.page.locator("#token-card")
        assert await page.locator("#group-list a").count() == 12
        await page.locator("#group-list a").first.press("Enter")
        await async_api.expect(page.locator("#group h3")).to_have_text("train:12, step 12")
        texts = await page.locator("#group .tokens").all_inner_texts()
        assert texts[0] == "4096+1904="
        assert texts[5] == texts[6] == "10;0+0;0+9;1+9+1;4+1+1#6000"  # what the expert wrote, in part and in whole
        hinted = page.locator("#group .tokens").nth(5)
        assert await hinted.locator(".source-hint").count() == 13
        assert await hinted.locator(".source-policy").count() == 14

        await hinted.focus()
        await page.keyboard.press("End")
        await async_api.expect(card).to_contain_text("policy")
        await async_api.expect(card).to_contain_text("log π θ")
        await page.keyboard.press("Home")
        await async_api.expect(card).to_contain_text("hint")
        label = await hinted.locator("[aria-selected=true]").get_attribute("aria-label")
        assert label is not None
        assert label.startswith("1: token 4, no. 11, source hint,")
        await page.locator("#group .tokens").nth(6).locator("span").nth(3).hover()
        await async_api.expect(card).to_contain_text("demonstration")

        for look, legend in (("Version", "version"), ("Ratio", "2 or more"), ("Advantage", "0")):
            await page.get_by_role("radio", name=look).check(force=True)
            await async_api.expect(page.locator(".look .legend")).to_contain_text(legend)
        address = page.url
        await page.get_by_label("Only groups of this prompt").fill("train:3")
        await page.keyboard.press("Enter")
        await async_api.expect(page.locator("#group-list a")).to_have_count(1)
        await page.goto(address)
        await async_api.expect(page.locator("#group h3")).to_have_text("train:12, step 12")
        assert stage.serious() == []


async def test_a_prompt_that_is_never_solved_gets_a_demonstration(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.run.furnish(time.time())
        await shown(stage, "prompts")
        page, added = stage.page, stage.page.locator("#demonstrations")
        await async_api.expect(page.locator("#prompt-total")).to_contain_text("16 prompts")
        for text, state in (("10#5990", "refused graded 0"), ("10;0+0;0+9;1+9+1;4+1+1#6000", "in use")):
            await page.get_by_role("button", name="Add a demonstration for train:3", exact=True).click()
            await async_api.expect(page.locator("#demonstration-prompt")).to_have_text("4096+1904=")
            await page.get_by_role("button", name="Add", exact=True).click()
            await async_api.expect(page.locator("#demonstration-error")).not_to_be_empty()
            await page.locator("#demonstration-text").fill(text)
            await page.get_by_role("button", name="Add", exact=True).click()
            await async_api.expect(added).to_contain_text("waiting")
            await stage.steps()
            await async_api.expect(added).to_contain_text(state)
        await page.locator("label", has_text="Always").click()
        await async_api.expect(page.locator("#prompt-table tbody tr").first).to_contain_text("train:7")
        await page.get_by_role("link", name="Groups of train:7", exact=True).click()
        await async_api.expect(page.locator("#group-list")).to_contain_text("train:7")
        assert stage.serious("422") == []


async def test_whoever_may_only_read_sees_everything_and_is_told_that_changes_are_not_theirs(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ada operate operator-token-0123456789\nbob read {READER}\n")
    tokens.chmod(0o600)
    async with staged(tmp_path, more=[f'tokens_file = "{tokens}"']) as stage:
        await stage.steps(3)
        page = stage.page
        await page.goto(stage.url)
        await page.get_by_label("Token (the value of TRIBUTARY_TOKEN)").fill(READER)
        await page.keyboard.press("Enter")
        await stage.until("document.getElementById('revision').textContent.startsWith('1')")
        await page.get_by_label("Learning rate").fill("3e-6")
        await page.get_by_role("button", name="Apply").click()
        await async_api.expect(page.locator(".decide .error").first).to_contain_text("may only read")
        await stage.twice("Pause the learner")
        await async_api.expect(page.locator("#quick")).to_contain_text("may only read")
        stored = await page.evaluate("[JSON.stringify(localStorage), document.cookie]")
        assert stored == ["{}", ""]
        assert stage.serious("401", "403") == []
