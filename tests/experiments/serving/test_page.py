"""The page at `/`: who may see which budgets, and what a real browser makes of it, on a phone and on a desk."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from experiments.serving.amounts import Plan, digest
from experiments.serving.app import application
from experiments.serving.budget import Budget, make_budget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.http import HTTPSolver
from tests.processes import child
from tests.upstream import Upstream, serving

EVIL = '<script>document.title="broken"</script>"><img src=x onerror=alert(1)>&amp;'
TIERS = [ThinkingTier("now", 0, 10), ThinkingTier(EVIL, 40, 10)]


@contextmanager
def proxy(state: Path, plans: Sequence[Plan], **options: Any) -> Iterator[tuple[str, list[Budget]]]:
    with serving(Upstream().app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm", first_wait=0.001, deadline=20.0)
        made = [make_budget(plan.name, plan, solver, TIERS, "fixed-2", 50, 4, state) for plan in plans]
        with serving(application(made, **options)) as address:
            yield address, made


def get(address: str, password: str | None = None, path: str = "/", **headers: str) -> httpx.Response:
    if password is not None:
        headers["authorization"] = "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()
    with httpx.Client(verify=False) as client:
        return client.get(f"{address}{path}", headers=headers)


def ask(address: str, name: str, key: str = "x", text: str = "a secret question?") -> httpx.Response:
    body = {"model": "stub", "messages": [{"role": "user", "content": text}]}
    with httpx.Client(verify=False, timeout=30) as client:
        headers = {"authorization": f"Bearer {key}"}
        return client.post(f"{address}/{name}/v1/chat/completions", json=body, headers=headers)


class Parts(HTMLParser):
    """Tags, their attributes and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data.strip())


def test_the_page_loads_nothing_runs_nothing_and_tells_no_text(tmp_path: Path) -> None:
    with proxy(tmp_path, [Plan("a", 10_000)]) as (address, _):
        for _ in range(3):
            assert ask(address, "a").status_code == 200
        response = get(address)
    parts = Parts(response.text)
    assert not {"script", "img", "link", "iframe", "form", "object"} & set(parts.tags)
    assert not {"src", "href", "style"} & set(parts.attributes)
    assert not [name for name in parts.attributes if name.startswith("on")]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert "secret" not in response.text
    assert "the answer is" not in response.text
    assert "&lt;script&gt;" in response.text
    assert parts.headings[0] == "a"


def test_skipped_questions_and_charges_are_counted(tmp_path: Path) -> None:
    with proxy(tmp_path, [Plan("a", 10_000)]) as (address, (budget,)):
        for _ in range(2):
            ask(address, "a")
        ledger = budget.clerk.books
        for number in range(3):
            ledger.skip((number, "q", 0, 9), 1)
        charged = ledger.charged
        text = get(address).text
    each = (charged - 3) // 2
    assert f"3 were skipped. At {each} tokens, the mean of the others, that saved about {3 * each - 3}." in text
    assert f"<b>{charged}</b>" in text


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("admin", [None, "chief"])
def test_a_key_sees_its_own_budget_and_the_admin_all(local: bool, admin: str | None, tmp_path: Path) -> None:
    plans = [Plan(name, 1000, key=digest(f"key-{name}".encode())) for name in ("a", "b")]
    options: dict[str, Any] = {} if local else {"hosts": None}
    with proxy(tmp_path, plans, admin=admin, **options) as (address, _):

        def seen(**how: Any) -> list[str] | int:
            response = get(address, **how)
            return response.status_code if response.status_code != 200 else Parts(response.text).headings

        for name in ("a", "b"):
            assert seen(password=f"key-{name}") == [name]
            assert seen(authorization=f"Bearer key-{name}") == [name]
        assert seen() == (["a", "b"] if local and admin is None else 401)
        assert seen(password="wrong") == 401
        assert seen(password="") == (401)
        assert seen(authorization="Basic !!") == 401
        assert seen(password="chief") == (["a", "b"] if admin else 401)
        refused = get(address, "wrong")
        assert refused.headers["www-authenticate"].startswith("Basic")
        metrics = get(address, path="/metrics").status_code
        assert metrics == (200 if local and admin is None else 401)
        assert get(address, "chief", path="/metrics").status_code == (200 if admin or local else 401)
        if local:  # a page of another site that resolves to this machine
            assert get(address, host="evil.example").status_code == 403


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, driven as the WebDriver protocol has it: a function (method, path, body) -> value."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a browser: Debian's chromium and chromium-driver")
    with child([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = next(line for line in process.stdout if "successfully on port" in line).rstrip(".\n").rpartition(" ")[2]
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chrome = {"binary": chromium, "args": arguments}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, verify=False) as client:
            body = {"capabilities": {"alwaysMatch": wanted}}
            session = client.post("/session", json=body).json()["value"]["sessionId"]

            def call(method: str, path: str, **body: Any) -> Any:
                asked = {"json": body} if method == "POST" else {}
                value = client.request(method, f"/session/{session}/{path}", **asked).json()["value"]
                assert not (isinstance(value, dict) and "error" in value), value
                return value

            try:
                yield call
            finally:
                client.delete(f"/session/{session}")


@pytest.mark.slow
def test_in_a_browser_it_fits_a_phone_and_a_desk(tmp_path: Path) -> None:
    with browser() as call, proxy(tmp_path, [Plan("a" * 64, 10**12), Plan("b", 90)], admin="chief") as (address, made):
        for _ in range(4):
            ask(address, "a" * 64)
        ask(address, "b")
        made[0].clerk.books.skip((0, "q", 0, 9), 10**11)
        for width, height in ((390, 844), (1280, 900)):
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            call("POST", "goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
            call("POST", "url", url=address.replace("//", "//anyone:chief@"))
            told = call(
                "POST",
                "execute/sync",
                script="""const shown = e => e.getBoundingClientRect();
                return {title: document.title, wide: document.documentElement.scrollWidth, inner: window.innerWidth,
                  sections: document.querySelectorAll("section").length,
                  bars: [...document.querySelectorAll(".chart .charged")].map(e => shown(e).height),
                  gauge: [...document.querySelectorAll(".gauge .charged")].map(e => shown(e).width),
                  styled: getComputedStyle(document.querySelector("section")).borderTopStyle,
                  images: document.images.length, scripts: document.scripts.length,
                  text: document.body.innerText};""",
                args=[],
            )
            (tmp_path / f"page-{width}.png").write_bytes(base64.b64decode(call("GET", "screenshot")))
            assert told["title"] == "Budgets"
            assert told["wide"] <= told["inner"] == width
            assert (told["sections"], told["images"], told["scripts"]) == (2, 0, 0)
            assert told["styled"] == "solid", "the policy lets the page's own style in"
            assert max(told["bars"]) > 50
            assert all(width > 0 for width in told["gauge"])
            assert EVIL in told["text"]
            log = call("POST", "se/log", type="browser")
            assert [entry for entry in log if "favicon" not in entry["message"]] == []
