# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as somebody on call sees it, on a desktop and on a phone, by day and by night."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from ansible_collections.virtops.live_backup.plugins.plugin_utils._report import page as page_of, report

from .conftest import PLAYBOOKS, REPOSITORY, write
from .sample import HOSTILE, NIGHT, NOW, backup_id, bad_night, domain, good_night, large_night, look, nights

TEMPLATE = REPOSITORY / "roles/status/templates/report.html.j2"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
SCREENS = [pytest.param(screen, scheme, id=f"{screen['width']}-{scheme}") for screen in (DESKTOP, PHONE) for scheme in ("light", "dark")]


@pytest.fixture(params=["bad", "good"])
def night(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def desktop(browser: Browser, reports: Path) -> Iterator[Page]:
    """The bad night's report, with nothing to read it but the file."""
    page = browser.new_page(viewport=DESKTOP, java_script_enabled=False)
    page.goto((reports / "bad.html").as_uri())
    yield page
    page.close()


@pytest.mark.parametrize(("screen", "scheme"), SCREENS)
def test_it_can_be_read(screen: dict[str, int], scheme: str, night: str, browser: Browser, reports: Path) -> None:
    """Contrast, landmarks, names of what scrolls and more, by axe; and nothing but what scrolls is wider than the screen."""
    page = browser.new_page(viewport=screen, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((reports / f"{night}.html").as_uri())
    assert asked == [page.url], "it asks for nothing else"
    assert page.locator("script").count() == 0
    # What axe adds to the page comes after that.
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).every(part => part < 64)")
    assert dark == (scheme == "dark")
    for section in page.locator("section").all():
        box = section.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= screen["width"]
    page.close()


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_what_is_wrong_is_seen_first(screen: dict[str, int], browser: Browser, reports: Path) -> None:
    page = browser.new_page(viewport=screen)
    page.goto((reports / "bad.html").as_uri())
    expect(page).to_have_title("Backups: 6 to look at")
    expect(page.locator("h1")).to_have_text("6 things to look at")
    problems = page.locator("#problems li")
    expect(problems).to_have_text(
        [
            re.compile(r"app1 on kvm2.*not with its group.*1674 ms.*failed its last proof: The guest was not up"),
            re.compile(r"mail on kvm2.*No space left on device.*and run again.*3 days old\. The objective is 26h.*recover repairs it"),
            re.compile(r"kvm3\.example\.org: The backup failed\. There is no domain that matches"),
            re.compile(r"new1 on kvm3.*No good backup exists"),
            re.compile(r"kvm4.*could not be reached"),
            re.compile(r"web1 on kvm1.*\d{8}T\d{6}Z is damaged: vda\.qcow2: it has 512 bytes"),
        ]
    )
    last = problems.last.bounding_box()
    assert last is not None and last["y"] + last["height"] <= screen["height"] * (1 if screen == DESKTOP else 1.5)
    page.close()


def test_a_fleet_of_600_fits_on_few_screens(browser: Browser, tmp_path: Path) -> None:
    """One cause is one line, and what is well is folded."""
    night = large_night()
    html = page_of(report(night["looks"], night["results"], night["hosts"], NOW), TEMPLATE.read_text(encoding="utf-8"), "x")
    assert len(html.encode()) < 1_000_000
    (tmp_path / "x.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport=DESKTOP, java_script_enabled=False)
    page.goto((tmp_path / "x.html").as_uri())
    expect(page.locator("h1")).to_have_text("1 thing to look at")
    [problem] = page.locator("#problems > li").all()
    expect(problem).to_contain_text("20 domains on 20 hypervisors: The backup failed. It is full.")
    expect(problem.locator("a")).to_have_attribute("href", re.compile(r"/troubleshooting\.md#no_free_space$"))
    expect(problem.get_by_text("kvm03-vm3 on kvm03.example.org")).to_be_hidden()
    problem.locator("summary").click()
    expect(problem.get_by_text("kvm03-vm3 on kvm03.example.org")).to_be_visible()
    expect(page.locator("#verdict code")).to_contain_text("--limit 'kvm00.example.org,kvm03.example.org,")
    expect(page.locator("#tiles li").first).to_have_text("580 of 600 have a recent good backup")
    expect(page.locator("#domains > details")).to_have_count(21)
    expect(page.locator("#domains > details").last.locator("summary").first).to_have_text("40 hypervisors on which all is well")
    height = page.evaluate("document.documentElement.scrollHeight")
    assert height < 3 * DESKTOP["height"]
    page.close()


def test_all_is_well(browser: Browser, reports: Path) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto((reports / "good.html").as_uri())
    expect(page.locator("h1")).to_have_text("All is well")
    expect(page.locator("#verdict")).to_contain_text("2 of 2 domains on 1 hypervisor have a good backup that is recent")
    assert page.locator("#problems, #run").count() == 0
    expect(page.locator("#timeline .bar")).to_have_count(2)
    page.close()


def test_the_windows_stand_where_their_times_are(desktop: Page) -> None:
    timeline = desktop.locator("#timeline")
    expect(timeline.locator("h3")).to_have_text(["kvm1.example.org", "kvm2.example.org"])
    expect(timeline.locator(".track > span[title]")).to_have_text(["db1", "web1", HOSTILE, "app1"])
    tracks, bars, instants = ([one.bounding_box() for one in timeline.locator(what).all()] for what in (".bar", ".bar i", ".bar u"))
    spans = [(0, 95.5), (120, 360), (0, 95.5), (60, 155.5)]
    for track, window, instant, (begin, end) in zip(tracks, bars, instants, spans):
        assert track and window and instant
        second = track["width"] / 360
        assert window["x"] - track["x"] == pytest.approx(begin * second, abs=1)
        assert window["width"] == pytest.approx((end - begin) * second, abs=1)
        assert instant["x"] - track["x"] == pytest.approx((begin + 0.8) * second, abs=1)
    ticks = timeline.locator(".ticks span")
    expect(ticks).to_have_text([f"{NIGHT + timedelta(minutes=minute):%H:%M}" for minute in range(7)])
    third, track = ticks.nth(3).bounding_box(), tracks[0]
    assert third and track and third["x"] + third["width"] / 2 == pytest.approx(track["x"] + track["width"] / 2, abs=1)


def test_the_run_is_told_failures_first(desktop: Page) -> None:
    rows = desktop.locator("#run tbody tr")
    expect(rows).to_have_count(6)
    expect(rows.first).to_contain_text("failed")
    cells = rows.filter(has_text="web1").locator("th, td").all_inner_texts()
    expected = [
        "web1",
        "kvm1.example.org",
        "published",
        "push",
        "full",
        "11.5 GiB",
        "240",
        "49.07 MiB/s",
        "163 ms",
        "filesystem",
        "check",
        "–",
    ]
    assert cells == expected
    assert "shop, within 78 ms" in rows.filter(has_text="db1").inner_text()


def test_the_domains_and_what_is_kept_of_them(desktop: Page) -> None:
    row = desktop.locator("#domains tbody tr").filter(has_text="db1").locator("th, td").all_inner_texts()
    assert [row[0], row[1], *row[3:]] == [
        "db1", f"{NIGHT:%Y-%m-%d %H:%M}", "full", "3 GiB", "32.17 MiB/s", "163 ms", "filesystem",
        f"boot, {NIGHT + timedelta(hours=1):%Y-%m-%d %H:%M}", "8.123 s", "17"
    ]  # fmt: skip
    expect(desktop.locator("#domains")).to_contain_text("kvm4.example.org: The hypervisor could not be reached.")
    kept = desktop.locator("#calendar tbody tr").filter(has_text="db1")
    expect(kept.locator(".day.proven")).to_have_count(14)
    expect(kept).to_contain_text(f"3, since {NIGHT - timedelta(days=42):%Y-%m-%d}")
    damaged = desktop.locator("#calendar tbody tr").filter(has_text="web1").locator(".day.damaged")
    expect(damaged).to_have_attribute("title", f"{backup_id(NIGHT + timedelta(days=-5, minutes=2))}: damaged")
    expect(desktop.locator("#calendar tbody tr").filter(has_text="mail")).to_contain_text("1 unfinished")


def test_both_targets_are_in_a_domains_line(browser: Browser, reports: Path) -> None:
    """Of one domain there is no copy. Where there is no second target, there is no column."""
    page = browser.new_page(viewport=DESKTOP)
    page.goto((reports / "good.html").as_uri())
    expect(page.locator("#domains th").last).to_have_text("web1")
    assert page.locator("#domains thead th").nth(3).inner_text() == "Copy"
    assert [row.locator("td").nth(2).inner_text() for row in page.locator("#domains tbody tr").all()] == ["29 h", "none"]
    page.goto((reports / "bad.html").as_uri())
    expect(page.locator("#domains")).not_to_contain_text("Copy")
    page.close()


def test_a_name_is_text_whatever_is_in_it(desktop: Page, reports: Path) -> None:
    expect(desktop.locator("#domains").get_by_text(HOSTILE, exact=True)).to_be_visible()
    told = json.loads((reports / "bad.json").read_text(encoding="utf-8"))
    assert HOSTILE in [row["domain"] for look in told["hypervisors"] for row in look["domains"]]
    assert told["run"]["failed"] == 2 and len(told["problems"]) == 6


@pytest.mark.parametrize("playbook", PLAYBOOKS.values(), ids=["2.19", "2.16"])
def test_a_report_that_cannot_be_written(playbook: str, tmp_path: Path) -> None:
    hosts = ["kvm1", "kvm2"]
    night = {"looks": [look(host, [domain("db1")], nights("db1", 1)) for host in hosts], "results": [], "hosts": hosts}
    output = write(night, tmp_path, "x", playbook, status_report_directory="/nonexistent")
    assert "The report could not be written. Destination directory /nonexistent does not exist" in output
    assert_told_to_each(output, hosts)


@pytest.mark.parametrize("playbook", PLAYBOOKS.values(), ids=["2.19", "2.16"])
def test_a_report_on_a_host_that_cannot_be_reached(playbook: str, tmp_path: Path) -> None:
    hosts = ["kvm1", "kvm2"]
    night = {"looks": [look(host, [domain("db1")], nights("db1", 1)) for host in hosts], "results": [], "hosts": hosts}
    away = {"away": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}}
    output = write(night, tmp_path, "x", playbook, others=away, status_report_host="away")
    assert "The report could not be written. " in output and "Connection refused" in output
    assert_told_to_each(output, hosts)


def assert_told_to_each(output: str, hosts: list[str]) -> None:
    """Each goes on to the end, where what else is wrong with it would be told."""
    for host in hosts:
        assert re.search(rf"^{host} .*unreachable=0 .*failed=1 .*rescued=0 ", output, re.MULTILINE), output


def test_no_domain_is_no_good_news(browser: Browser, tmp_path: Path) -> None:
    write({"looks": [look("kvm1", [], [])], "results": [], "hosts": ["kvm1"]}, tmp_path, "x")
    page = browser.new_page(viewport=PHONE)
    page.goto((tmp_path / "x.html").as_uri())
    expect(page).to_have_title("Backups: no domain")
    expect(page.locator("h1")).to_have_text("There is no domain")
    page.close()


@pytest.mark.parametrize("playbook", PLAYBOOKS.values(), ids=["2.19", "2.16"])
def test_what_a_look_fails_for_is_in_the_report(playbook: str, tmp_path: Path) -> None:
    """An age that is none, and metrics that cannot be written, which hides nothing of the domains."""
    hosts: dict[str, dict[str, str]] = {"kvm1": {"status_max_age": "1"}, "kvm2": {"status_metrics_directory": "/nonexistent"}}
    common = {
        "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "backup_target": str(tmp_path),
        "backup_libvirt_uri": "test:///default", "status_report_directory": str(tmp_path), "status_fail": "false",
    }  # fmt: skip
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"hypervisors": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    command = [playbook, "-i", str(inventory), "virtops.live_backup.status"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout
    told = json.loads((tmp_path / "live_backup.json").read_text(encoding="utf-8"))
    assert [(one["hypervisor"], one["domain"], one["what"][-1]) for one in told["problems"]] == [
        ("kvm1", "", "It could not be examined. status_max_age is 1; it must be a number and s, m, h, d or w, as in 26h."),
        ("kvm2", "", "Its metrics could not be written. Destination directory /nonexistent does not exist"),
        ("kvm2", "test", "No good backup exists. The objective is 26h (status_max_age)."),
    ]
    assert "Could not examine domain 'test'" in told["problems"][2]["what"][0], "since this driver of libvirt knows no jobs"


def test_one_message_for_all_hypervisors(tmp_path: Path) -> None:
    newest, oldest = PLAYBOOKS.values()
    told, tasks = tmp_path / "told", tmp_path / "tasks.yml"
    copy = "{content: '{{ status_message.title }}', dest: '{{ status_report_directory }}/told', mode: '0600'}"
    tasks.write_text(f"- ansible.builtin.copy: {copy}\n", encoding="utf-8")
    write(good_night(), tmp_path, "well", newest, status_notify=str(tasks))
    assert not told.exists()
    write(bad_night(), tmp_path, "ill", oldest, status_notify=str(tasks))
    assert told.read_text(encoding="utf-8") == "Backups: 6 things to look at"


def test_a_message_that_cannot_be_sent(tmp_path: Path) -> None:
    """The report is written, the play fails at its end, and no host is lost, as ansible-core 2.19 would with run_once."""
    tasks = tmp_path / "tasks.yml"
    tasks.write_text("- ansible.builtin.fail: {msg: The server is away.}\n", encoding="utf-8")
    hosts = ["kvm1", "kvm2"]
    night = {"looks": [look(host, [domain("db1")], nights("db1", 1)) for host in hosts], "results": [], "hosts": hosts}
    output = write(night, tmp_path, "x", status_notify=str(tasks), status_notify_always="true")
    assert "Nobody could be notified. The server is away." in output and (tmp_path / "x.html").exists()
    assert re.search(r"^kvm1 .*failed=1 .*rescued=1 ", output, re.MULTILINE), output
    assert re.search(r"^kvm2 .*failed=0 .*rescued=0 ", output, re.MULTILINE), output
