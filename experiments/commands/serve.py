"""`roi serve`: an OpenAI-compatible proxy that keeps budgets. A user's client points at it and changes nothing else.

Every chat completion is one question of a budget: the agent decides its tier (or refuses it), the worst case is reserved,
the answer is settled. Budgets have names, ``/NAME/v1`` is the address of one, ``/v1`` that of the first. Their ledgers make
charges survive a restart and a kill. Clients' credentials are never passed on: the upstream's key comes from the
environment.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import endpoints
from experiments.commands.answer import ANSWER_TOKENS, TIERS
from experiments.config import ConfigError
from experiments.options import Imports, option_groups, own_agents
from experiments.serving.amounts import NAME, Plan, check_units, keeping, parse_amount, read_file, read_plans
from experiments.serving.app import application
from experiments.serving.attend import Queue
from experiments.serving.budget import Budget, Served, check_models, make_budget
from experiments.serving.ending import make_server
from experiments.serving.guard import BODY_SECONDS, LOOPBACK, patient_protocol
from experiments.serving.menus import Menu, check_unit, menu_solver, read_menus
from experiments.serving.metrics import log_to_stderr
from experiments.terminal import console, heard_or_not
from roi_env.answering.ledger import BooksAway
from roi_env.sources.units import cost_text, cost_with_unit

if TYPE_CHECKING:
    from roi_env.answering.base import ThinkingTier
    from roi_env.answering.dialect import Dialect
    from roi_env.answering.http import ByTier, HTTPSolver


@dataclass(frozen=True)
class Upstream:
    """Options of the endpoint that answers, where the configuration names none."""

    upstream: Annotated[
        str | None,
        typer.Option(help="Base address of the endpoint, e.g. http://127.0.0.1:8000/v1; several: tiers in --config"),
    ] = None
    model: Annotated[str | None, typer.Option(help="The endpoint's model; default: its only one")] = None
    backend: endpoints.BackendName = "generic"
    tier: endpoints.Tiers = None
    answer_tokens: Annotated[
        int | None,
        typer.Option(help="Answer tokens of tiers that name none; default: 512, in the dialect instruct 32", min=1),
    ] = None

    def tiers(self, spoken: Dialect | None) -> list[ThinkingTier]:
        """Its tiers.

        :param spoken: how the model speaks; None: the endpoint cuts thoughts itself.
        """
        return endpoints.chosen_tiers(self.tier, self.answer_tokens, spoken, TIERS, ANSWER_TOKENS)

    def open(
        self,
        menus: Sequence[Menu],
        connection: endpoints.Connection,
        config: Path | None,
        spoken: Dialect | None,
        **http: Any,
    ) -> tuple[HTTPSolver | ByTier, Sequence[ThinkingTier] | Sequence[Served]]:
        """Who answers, and what is served.

        :param menus: of the configuration, which take the place of these options.
        :raises ConfigError: where both are given, or none.
        """
        if menus:
            said: dict[str, Any] = asdict(self) | {"dialect": spoken and spoken.name}
            said["backend"] = None if self.backend == "generic" else self.backend
            endpoints.refuse_beside_tiers(connection, f"{config}: tiers", **said)
            for note in (note for menu in menus for note in menu.dearer_first()):
                endpoints.report(note)
            served = [Served(menu.name, menu.tiers, menu.rates, menu.models) for menu in menus]
            return menu_solver(menus, connection, **http), served
        if self.upstream is None:
            raise ConfigError("give the endpoint: --upstream URL, or `tiers:` in --config FILE")
        name, tiers = self.model or endpoints.only_model(self.upstream, self.backend, connection), self.tiers(spoken)
        return endpoints.http_solver(self.upstream, name, self.backend, connection, spoken, tiers, **http), tiers


@dataclass(frozen=True)
class Access:
    """Options of where the proxy listens, and to whom."""

    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need --token-env")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(help="0: any free one", min=0, max=65535)] = 8700
    key: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ENV: environment variable with the key that opens this budget alone; repeatable"),
    ] = None
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key of all budgets that have none of their own")
    ] = None
    admin_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key of /metrics and of all budgets at /; default: none on this machine's own addresses"
        ),
    ] = None

    @staticmethod
    def check(plans: Sequence[Plan], keys: Collection[str]) -> None:
        """A budget has one key.

        :raises ConfigError: naming one that has two.
        """
        if twice := [plan.name for plan in plans if plan.key is not None and plan.name in keys]:
            raise ConfigError(f"--key {twice[0]}=...: the file gives this budget a key: leave one of them out")

    def bare(self, plans: Sequence[Plan], keys: Collection[str]) -> str | None:
        """The first budget that others could use without a key; None: there is none."""
        if self.host in LOOPBACK or self.token_env:
            return None
        return next((plan.name for plan in plans if plan.key is None and plan.name not in keys), None)


Maker = Callable[[Sequence[Menu], Sequence[Plan]], Callable[[Plan], Budget]]
"""Given the tiers and all budgets: how one of them is opened."""
_LEFT = 600.0
"""Seconds without work after which a budget that others replaced is closed, when the file is read again."""


class _Budgets:
    """The budgets that are served, and how they are read again.

    :param menus: of the configuration.
    :param in_file: whether the configuration names them, not options.
    """

    def __init__(self, plans: Sequence[Plan], menus: Sequence[Menu], maker: Maker, in_file: bool = True) -> None:
        self.plans, self.menus, self.maker, self.in_file = plans, menus, maker, in_file
        self.make = maker(menus, plans)
        try:
            self.open = _opened(self.make, plans)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        self._turn = asyncio.Lock()
        self.left: dict[Budget, float] = {}
        """Budgets in whose place others are, and when they were last seen at work: requests that began there end there."""

    async def reload(self, config: Path, access: Access, keys: Collection[str]) -> None:
        """Read the configuration again; where it cannot be used everything stays as it was.

        Other tiers and prices are for requests from now on. What was charged stays charged; agents begin anew and learn
        from the answers so far, at their present prices.
        """
        async with self._turn:  # of two signals the second one's reading stays
            await self._reload(config, access, keys)

    async def _reload(self, config: Path, access: Access, keys: Collection[str]) -> None:
        try:
            parts = read_file(config)
            if self.in_file != ("budgets" in parts):
                raise ConfigError(
                    f"{config}: budgets: " + ("are gone" if self.in_file else "are those of --budget, take them out")
                )
            given = read_plans(config, parts) if self.in_file else self.plans
            plans = keeping(given, config, parts)
            access.check(plans, keys)
            if (bare := access.bare(plans, keys)) is not None:
                raise ConfigError(
                    f"{config}: budgets.{bare} has no key, and --host {access.host} is reachable by others"
                )
            menus, made = read_menus(config, parts), {old.name: old for old in self.open}
            if menus != self.menus:
                for plan in plans:  # all of them, before anything is changed
                    check_models(plan, [menu.name for menu in menus])
                make, made = self.maker(menus, plans), {}
            else:
                make = self.make
                for plan in plans:
                    if plan.name in made:
                        made[plan.name].check(plan)
            new = [plan for plan in plans if plan.name not in made]
            made |= {one.name: one for one in await asyncio.to_thread(_opened, make, new)}
            renewed = [await made[plan.name].renewed(plan) for plan in plans]
        except (ValueError, OSError, BooksAway) as error:
            endpoints.report(f"The budgets stay as they were: {error}")
            return
        now = time.monotonic()
        quiet = [old for old, since in self.left.items() if not old.busy and now - since > _LEFT]
        self.left |= {old: now for old in self.left if old.busy} | {old: now for old in self.open if old not in renewed}
        self.open[:] = renewed
        self.plans, self.menus, self.make = plans, menus, make
        for old in quiet:
            del self.left[old]
            await asyncio.to_thread(old.close)
        in_use = {one.solver for one in (*self.open, *self.left)}
        for solver in {old.solver for old in quiet} - in_use:
            await solver.close()
        names = ", ".join(plan.name for plan in plans)
        with heard_or_not():
            console.print(f"{config} was read again: {names}", highlight=False, soft_wrap=True)


def _opened(make: Callable[[Plan], Budget], plans: Sequence[Plan]) -> list[Budget]:
    """All of them, or none."""
    made: list[Budget] = []
    try:
        for plan in plans:
            made.append(make(plan))
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


@option_groups
def serve(
    *,
    endpoint: Upstream,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=AMOUNT: tokens (50000, 50k, 1e6), or dollars (2.50usd) where tiers have prices; or AMOUNT for one named "
            "default; repeatable"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with budgets (instead of --budget), and tiers over several models (instead of --upstream, --tier); read "
            "again at SIGHUP"
        ),
    ] = None,
    agent: Annotated[
        str,
        typer.Option(
            help="Who decides: a planner of `roi agents` that needs no training; or FILE.py:CLASS", callback=own_agents
        ),
    ] = "online-lp",
    imports: Imports = None,
    predictor: Annotated[
        str | None, typer.Option(help="File of `roi predict fit`: beliefs from texts instead of lengths")
    ] = None,
    expected: Annotated[
        int, typer.Option(help="Questions to plan for in every budget; later ones count as the last", min=1)
    ] = 100,
    window: Annotated[int, typer.Option(help="Questions of a budget in flight", min=1)] = 8,
    state: Annotated[Path, typer.Option(help="Folder of the budgets' ledgers: a restart goes on there")] = Path(
        "runs/serve"
    ),
    database: Annotated[
        str | None,
        typer.Option(
            envvar="ROI_DATABASE",
            help="postgresql://USER@HOST/NAME: the ledgers there instead of in --state, for several proxies",
        ),
    ] = None,
    access: Access,
    speech: endpoints.Dialects,
    spent_status: Annotated[
        int, typer.Option(help="HTTP status of a spent budget: 429, or 402, 403 for clients that retry 429 for ever")
    ] = 429,
    connection: endpoints.Connection,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default: the endpoint's own", min=0)] = None,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds that a request may wait for its turn, and for an endpoint that refuses it for now; then it is "
            "answered 503 with Retry-After",
            min=1,
        ),
    ] = 60.0,
    queue: Annotated[
        int, typer.Option(help="Requests of a budget that may wait for their turn; others are answered 503", min=1)
    ] = 64,
) -> None:
    """Serve chat completions, responses, messages and text completions under budgets of tokens or dollars.

    Clients use http://HOST:PORT/NAME/v1 as their base address (Anthropic's: http://HOST:PORT/NAME).
    """
    try:
        import uvicorn

        from experiments.predicting import groups_of_file
    except ImportError as error:
        raise ConfigError(f'{error}; the proxy needs: pip install "roi-reasoning[live]"') from None
    if spent_status not in (402, 403, 429):
        raise ConfigError(f"--spent-status must be 402, 403 or 429, got {spent_status}")
    spoken = speech.at_endpoint(connection)
    endpoint.tiers(spoken)  # what is written wrongly is said before anything is read
    parts = {} if config is None else read_file(config)
    menus = [] if config is None else read_menus(config, parts)
    in_file = "budgets" in parts
    if in_file == bool(budget):
        raise ConfigError("give the budgets: --budget NAME=AMOUNT, or `budgets:` in --config FILE")
    given = read_plans(config, parts) if in_file and config else parse_budgets(budget or ())
    plans = keeping(given, config, parts)
    known = None if predictor is None else groups_of_file(predictor)
    token = _secret("--token-env", access.token_env) if access.token_env else None
    keys = parse_keys(access.key or (), [plan.name for plan in plans])
    access.check(plans, keys)
    if (bare := access.bare(plans, keys)) is not None:
        raise ConfigError(
            f"--host {access.host} is reachable by others: give --key {bare}=VARIABLE with a key of this budget, or "
            "--token-env VARIABLE with one for all"
        )
    http = {"temperature": temperature, "patience": patience, "say": endpoints.report}

    def maker(menus: Sequence[Menu], plans: Sequence[Plan]) -> Callable[[Plan], Budget]:
        check_unit(plans[0].unit, menus, f"the budget {plans[0].name!r}", str(config or "--budget"))
        solver, served = endpoint.open(menus, connection, config, spoken, concurrency=window * len(plans), **http)

        def make(plan: Plan) -> Budget:
            waiting = Queue(queue, patience)
            return make_budget(
                plan.name, plan, solver, served, agent, expected, window, state, waiting, database, known
            )

        return make

    _open_files(window * len(plans), queue * len(plans))
    budgets = _Budgets(plans, menus, maker, in_file)
    app = application(
        budgets.open,
        token,
        keys=keys,
        admin=_secret("--admin-key-env", access.admin_key_env) if access.admin_key_env else None,
        hosts=LOOPBACK if access.host in LOOPBACK else None,
        spent_status=spent_status,
        left=budgets.left,
        reload=None if config is None else lambda: budgets.reload(config, access, keys),
    )
    options = uvicorn.Config(
        app,
        host=access.host,
        port=access.port,
        log_level="warning",
        http=patient_protocol(BODY_SECONDS),
        proxy_headers=False,  # nobody asks where a client is
    )
    listening = options.bind_socket()
    for one in budgets.open:
        console.print(
            f"{one.name}: {cost_text(one.session.remaining, one.plan.unit)} of "
            f"{cost_with_unit(one.session.budget, one.plan.unit)} left, models {', '.join(one.menus)}, base address "
            f"http://{access.host}:{listening.getsockname()[1]}/{one.name}/v1",
            highlight=False,
            soft_wrap=True,
        )
    log_to_stderr()
    gc.collect()
    gc.freeze()  # what was made until now stays: no collection looks through it while streams wait
    gc.set_threshold(_YOUNG)
    make_server(options).run(sockets=[listening])


_YOUNG = 20_000
"""Objects made since the last collection that begin one: a request makes hundreds, which need none."""
_OTHER_FILES = 128
"""Files that a process has open beside its connections."""


def _open_files(answered: int, waiting: int) -> None:
    """Let this process have as many connections as the system allows, and say where these are too few.

    :param answered: clients whose answers are made at a time; each needs a connection to the endpoint too.
    :param waiting: clients that wait.
    """
    need = 2 * answered + waiting + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    allowed = max(soft, need) if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if need > allowed:
        endpoints.report(
            f"--window and --queue may need {need:,} open files, this process may have {allowed:,}: clients beyond that cannot "
            "connect (raise ulimit -Hn, LimitNOFILE= of systemd, or lower them)"
        )


def parse_budgets(texts: Sequence[str]) -> list[Plan]:
    """Budgets as the options write them.

    :raises ConfigError: for what cannot be read, or budgets of two units.
    """
    named: dict[str, Plan] = {}
    for text in texts:
        name, named_so, amount = text.rpartition("=")
        name = name if named_so else "default"
        try:
            if NAME.fullmatch(name) is None or name == "v1":
                raise ConfigError(name)
            read, unit = parse_amount(amount, text)
        except ConfigError:
            raise ConfigError(
                f"--budget {text!r} must read TOKENS or NAME=TOKENS, e.g. team-a=50000 (or dollars: team-a=2.50usd): a positive "
                "whole number, and a name of letters, digits, - and _ (but v1)"
            ) from None
        if name in named:
            raise ConfigError(f"--budget: {name!r} is named twice")
        named[name] = Plan(name, read, unit=unit)
    check_units(list(named.values()), "--budget")
    return list(named.values())


def parse_keys(texts: Sequence[str], budgets: Collection[str]) -> dict[str, str]:
    """Keys by budget, as the options write them.

    :param budgets: their names.
    :raises ConfigError: for what cannot be read.
    """
    keys: dict[str, str] = {}
    for text in texts:
        name, given, variable = text.partition("=")
        if not given or not variable:
            raise ConfigError(f"--key {text!r} must read NAME=ENV, e.g. team-a=TEAM_A_KEY")
        if name not in budgets:
            raise ConfigError(f"--key {text!r}: there is no budget {name!r}, but {', '.join(budgets)}")
        if name in keys:
            raise ConfigError(f"--key: {name!r} is named twice")
        keys[name] = _secret(f"--key {name}", variable)
    return keys


def _secret(option: str, variable: str) -> str:
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise ConfigError(f"{option} {variable}: this environment variable is empty")
    return secret
