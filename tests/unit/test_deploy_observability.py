"""Alert rules, dashboard, runbook and logs: every name they use is one that the code knows."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from benchmarks.transport import make_group
from common import metrics
from common.wire import encode_group
from services.control.app import ROOMS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
ROLES = ("control", "curriculum", "generator", "learner", "scorer")

# What Prometheus itself knows of a target or a rule, and the labels that it and Kubernetes add to every series.
BUILT_IN: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity", "service"}}
TARGET_LABELS = {"job", "instance", "namespace"}
FUNCTIONS = {
    *("absent", "avg", "avg_over_time", "count", "delta", "histogram_quantile", "increase", "max", "max_over_time"),
    *("rate", "sum", "time", "vector"),
}
OPERATORS = {"and", "or", "unless", "by", "without", "on", "group_left", "offset", "bool"}


def exported() -> dict[str, set[str]]:
    """Every series that any process exports, as Prometheus names it, with its labels."""
    classes = [value for name, value in vars(metrics).items() if name.endswith("Metrics")]
    series: dict[str, set[str]] = {}
    for made in classes:
        for metric in vars(made(CollectorRegistry())).values():
            family, labels = metric.describe()[0], set(metric._labelnames)
            match family.type:
                case "counter":
                    series[f"{family.name}_total"] = labels
                case "histogram":
                    names = {"bucket": {*labels, "le"}, "sum": labels, "count": labels}
                    series |= {f"{family.name}_{suffix}": had for suffix, had in names.items()}
                case _:
                    series[family.name] = labels
    return series


SERIES = exported() | BUILT_IN


def complaints(expression: str) -> Iterator[str]:
    """What in a PromQL expression names something that is not there."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    if text.count("(") != text.count(")") or text.count("{") != text.count("}"):
        yield "its brackets do not match"
    known: set[str] = set(TARGET_LABELS)
    for name, matchers in re.findall(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}", text):
        labels = TARGET_LABELS | SERIES.get(name, set())
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            if label not in labels:
                yield f"{name} has no label {label}"
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    groupings = re.findall(r"\b(?:by|without|on|group_left)\s*\(([^)]*)\)", text)
    text = re.sub(r"\b(?:by|without|on|group_left)\s*\([^)]*\)", " ", text)
    used = set(re.findall(r"(?<![\w.])[A-Za-z_:][\w:]*", text)) - FUNCTIONS - OPERATORS
    for name in sorted(used):
        known |= SERIES.get(name, set())
        if name not in SERIES:
            yield f"{name} is exported by no process"
    for label in re.findall(r"\w+", " ".join(groupings)):
        if label not in known:
            yield f"it groups by {label}, which none of its series has"


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboards" / "tributary.json").read_text())


def panel_expressions() -> list[tuple[str, str]]:
    """Panel and expression, with Grafana's variables replaced by what they stand for."""
    document = dashboard()
    asked = [(p["title"], target["expr"]) for p in document["panels"] for target in p.get("targets", ())]
    asked += [(a["name"], a["expr"]) for a in document["annotations"]["list"]]
    return [(t, e.replace("$__rate_interval", "1m").replace("$namespace", ".*")) for t, e in asked]


def sections() -> list[str]:
    """The alerts that the runbook explains: the third-level headings below "Alerts"."""
    text = RUNBOOK.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    return re.findall(r"^### (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("tributary_steps > 0", "tributary_steps is exported by no process"),
        ('rate(tributary_quarantined_total{steam="x"}[5m])', "tributary_quarantined_total has no label steam"),
        ("sum by (source) (tributary_entropy)", "it groups by source, which none of its series has"),
        ("rate(tributary_pause_seconds_sum[5m])", "tributary_pause_seconds_sum is exported by no process"),
        ("sum(tributary_entropy", "its brackets do not match"),
    ],
)
def test_a_name_that_is_not_there_is_noticed(expression: str, complaint: str) -> None:
    assert complaint in list(complaints(expression))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_rests_on_exported_metrics_and_says_what_to_read(rule: dict[str, Any]) -> None:
    assert list(complaints(rule["expr"])) == []
    assert rule["labels"] == {"severity": rule["labels"]["severity"], "service": "tributary"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    alerts = [rule["alert"] for rule in rules()]
    assert sorted(sections()) == sorted(alerts)
    assert len(set(alerts)) == len(alerts)


def test_every_alert_is_tested_to_fire_and_to_keep_still() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    wanted = {(rule["alert"], fires) for rule in rules() for fires in (True, False)}
    assert set(cases) == wanted


@pytest.mark.parametrize(("panel", "expression"), panel_expressions())
def test_a_panel_asks_for_exported_metrics(panel: str, expression: str) -> None:
    assert list(complaints(expression)) == [], panel


def test_the_dashboard_is_whole() -> None:
    document = dashboard()
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {f"${{{v['name']}}}" for v in document["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] in variables, panel["title"]
            assert panel["description"], panel["title"]


@pytest.mark.parametrize(
    "words",
    [
        *("tributary_reward_mean", "tributary_heldout_accuracy", "tributary_entropy", "tributary_staleness_mean"),
        *("tributary_importance_ratio_mean", "tributary_hint_length_mean", "tributary_hint_p", "tributary_hint_phase"),
        *("tributary_rehearsal_buffer", "tributary_generated_tokens_total", "tributary_trained_tokens_total"),
        *("tributary_publication_bytes_total", "tributary_weight_pause_seconds_bucket", "tributary_credit_groups"),
        *("tributary_stream_messages", "tributary_quarantined_total", "tributary_redis_memory_used_bytes"),
        *("tributary_canary_difference", "tributary_canary_failures_total", "tributary_weight_fetched_bytes_total"),
        *("tributary_weight_reseeds_total", "tributary_publication_seconds_sum", "tributary_publication_changed_ratio"),
        *("tributary_publications_coalesced_total", "tributary_publication_anchors_total"),
        *("tributary_learner_stage_seconds_total", "tributary_checkpoint_seconds_sum"),
        *("tributary_learner_out_of_memory_total",),
    ],
)
def test_what_an_operator_has_to_see_has_a_panel(words: str) -> None:
    assert any(words in expression for _, expression in panel_expressions())


def test_grafana_is_given_the_data_source_and_the_directory_of_the_dashboard() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (source,) = sources["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "tributary.yml").read_text())
    (provider,) = providers["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def test_every_role_is_scraped_by_a_job_of_its_name() -> None:
    document = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert document["rule_files"] == ["alerts.yml"]
    ports: dict[str, int] = {}
    for job in document["scrape_configs"]:
        for found in job.get("dns_sd_configs", ()):
            assert (found["names"], found["type"]) == ([job["job_name"]], "A")
            ports[job["job_name"]] = found["port"]
        for static in job.get("static_configs", ()):
            for target in static["targets"]:
                host, _, port = target.partition(":")
                assert host in (job["job_name"], "localhost")
                ports[job["job_name"]] = int(port)
    assert ports == {**dict.fromkeys(ROLES, 9464), "control": 8700, "prometheus": 9090}


def test_the_runbook_calls_routes_and_commands_that_exist() -> None:
    text = RUNBOOK.read_text()
    routes = {route.path for room in ROOMS for route in room.router.routes}
    called = {path.rstrip("/") for path in re.findall(r"(?<![\w.])(/v1/[\w/-]+)", text)}
    assert called
    assert called <= routes, "routes that are not there"
    commands = set(
        re.findall(r"(?<!-n )\btributary (\w+)", "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)))
    )
    assert "status" in commands
    assert commands <= {"up", "down", "status", "watch", "config", "switch", "check", "resume"}


def log_fields() -> Iterator[tuple[str, str]]:
    """Where a log line gets fields of its own, and their names."""
    for room in ("common", "learner", "services"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                    for key in node.value.keys:
                        if isinstance(key, ast.Constant):
                            yield f"{path.relative_to(ROOT)}:{node.value.lineno}", str(key.value)


def test_no_log_line_writes_over_the_fields_that_every_line_carries() -> None:
    carried = {"run", "process", "revision", "version", "at_s", "level", "message", "logger"}
    fields = list(log_fields())
    assert len(fields) > 30
    assert [(place, name) for place, name in fields if name in carried] == []


def test_the_scale_page_reckons_with_what_a_group_really_takes() -> None:
    group = make_group(1, mean_response=1000)
    tokens = sum(len(trajectory.tokens) for trajectory in group.trajectories)
    assert 9.0 < len(encode_group(group)) / tokens < 9.2
    assert "9 200 tokens: **83 kB**" in (ROOT / "deploy" / "SCALE.md").read_text()


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing: it is in Debian's package prometheus")
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_the_rules_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts.test.yml")


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    asked = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(panel_expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    promtool("check", "rules", str(tmp_path / "panels.yml"))
