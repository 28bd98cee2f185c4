"""Commands that look into what was trained on: `groups`, `prompts`, `quarantine`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import SettingsError
from services.cli.client import ControlClient
from services.cli.commands.auditing import moment
from services.cli.commands.options import JsonOption, LimitOption, RunOption, UrlOption, connect, print_json
from services.cli.legible import legible, one_line
from services.cli.progress import percent
from services.cli.token_view import Aspect, show_group, token_table

Json = dict[str, Any]
_NEWEST = "newest"
_PREVIEW = 60

commands = typer.Typer()


@commands.command()
def groups(
    entry_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="show this group's tokens; or: newest", show_default=False)
    ] = None,
    prompt_id: Annotated[str, typer.Option("--prompt", help="only groups of this prompt, such as train:17")] = "",
    aspect: Annotated[Aspect, typer.Option("--by", help="what the colours tell")] = Aspect.SOURCE,
    member: Annotated[int | None, typer.Option(min=1, help="only this trajectory, token by token")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="how many at most")] = 20,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest groups as the learner saw them; or show one: its text, coloured by who wrote each token."""
    query: Json = {"limit": limit, **({"prompt_id": prompt_id} if prompt_id else {})}
    with connect(run, url) as client:
        document = client.groups(**query) if entry_id is None else _one(client, entry_id, prompt_id)
    if member is not None and entry_id is not None and member > len(document["trajectories"]):
        raise SettingsError(f"the group has {len(document['trajectories'])} trajectories: --member counts from 1")
    if as_json:
        print_json(document)
    elif entry_id is None:
        _show_groups(document["groups"], prompt_id)
    else:
        console = Console(highlight=False)
        show_group(console, document, aspect, member)
        if member is not None:
            console.print(token_table(document["trajectories"][member - 1]))


def _one(client: ControlClient, entry_id: str, prompt_id: str) -> Json:
    """The group of an id; "newest" is the newest one, of a prompt if one is named."""
    if entry_id == _NEWEST:
        newest = client.groups(limit=1, **({"prompt_id": prompt_id} if prompt_id else {}))["groups"]
        if not newest:
            raise SettingsError(_none_kept(prompt_id))
        entry_id = newest[0]["id"]
    return client.group(entry_id)


def _none_kept(prompt_id: str) -> str:
    of_it = f" of prompt {prompt_id}" if prompt_id else ""
    return f"no group{of_it} is kept: a few of each step are ([learner] examined_groups), and the oldest are let go"


def _show_groups(found: list[Json], prompt_id: str) -> None:
    if not found:
        print(_none_kept(prompt_id))
        return
    table = Table("id", "step", "prompt", "rewards", "made of", "tokens")
    table.add_column("prompt's text", overflow="fold")
    for group in found:
        kinds = ", ".join(f"{group['kinds'].count(kind)} {kind}" for kind in dict.fromkeys(group["kinds"]))
        rewards = " ".join(f"{reward:g}" for reward in group["rewards"])
        cells = [group["id"], group["step"], group["prompt_id"], rewards, kinds, group["tokens"]]
        table.add_row(*(Text(one_line(cell)) for cell in cells), Text(one_line(group["prompt"], _PREVIEW)))
    Console(highlight=False).print(table)
    print(f"tributary groups {found[0]['id']} shows one token by token")


@commands.command()
def prompts(
    solve_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="only prompts solved so often: 0 never, 1 always")
    ] = None,
    at_most: Annotated[float | None, typer.Option(min=0, max=1, help="only prompts solved no more often")] = None,
    min_attempts: Annotated[int, typer.Option(min=1, help="only prompts tried so often at least")] = 1,
    limit: LimitOption = 20,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List prompts and how often the policy solved them, the hardest first."""
    query = {"solve_rate": solve_rate, "solve_rate_max": at_most, "min_attempts": min_attempts, "limit": limit}
    with connect(run, url) as client:
        document = client.prompts(**{name: value for name, value in query.items() if value is not None})
    if as_json:
        print_json(document)
        return
    table = Table("prompt", "solved", "attempts", "rate", "hinted", "anchor")
    table.add_column("text", overflow="fold")
    for prompt in document["prompts"]:
        cells = [prompt["prompt_id"], prompt["solved"], prompt["attempts"], percent(prompt["solve_rate"])]
        hinted = prompt["hinted"]
        cells += ["–" if hinted is None else f"{hinted['solved']} of {hinted['attempts']}"]
        cells += ["–" if prompt["anchor"] is None else f"{prompt['anchor']} tokens"]
        table.add_row(*(Text(legible(cell)) for cell in cells), Text(one_line(prompt["text"] or "", _PREVIEW)))
    Console(highlight=False).print(table)
    print(f"{len(document['prompts'])} of {document['total']}; help one with: tributary demonstrate PROMPT TEXT")


@commands.command()
def quarantine(
    limit: LimitOption = 20, run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List the messages that could not be used, newest first: what, why, and who put them aside."""
    with connect(run, url) as client:
        document = client.quarantine(limit)
    if as_json:
        print_json(document)
        return
    if not document["messages"]:
        print("nothing is in quarantine")
        return
    table = Table("when", "stream", "put aside by", "group")
    table.add_column("why", overflow="fold")
    for message in document["messages"]:
        cells = [moment(message["at_s"]), message["stream"], message["by"], message["group_id"] or "–"]
        table.add_row(*(Text(legible(cell)) for cell in cells), Text(legible(message["reason"])))
    Console(highlight=False).print(table)
    print(f"{len(document['messages'])} of {document['total']}")
