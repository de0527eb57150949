"""Tests of examples/kubernetes/: manifests, configuration and the chart's values (issue 6.8, D7).

No Kubernetes and no Helm is here. The manifests are held against Kubernetes' own schemas and against one another; the
configuration is loaded, and run by a member; the servers run with what NATS's chart makes of the values by its
documentation, which `chart` in this file repeats.
"""

import json
import re
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
import yaml

from adapter.config import Config, load
from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import running
from tests.broker_support import Broker
from tests.cli_support import invoke
from tests.cluster_support import until
from tests.examples_cluster_support import (
    SERVERS,
    Places,
    make_files,
    names_in,
    ready,
    refused,
    run_servers,
    secret_names,
    unwell,
    write_secrets,
)
from tests.examples_support import EXAMPLES, ROOT, free_port, replace
from tests.test_examples import VENV_BIN

HERE = EXAMPLES / "kubernetes"
README = (HERE / "README.md").read_text(encoding="utf-8")
FILES = sorted((HERE / "adapter").glob("*.yaml"))
MANIFESTS: list[dict[str, Any]] = [
    manifest for file in FILES for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]
VALUES: dict[str, Any] = yaml.safe_load((HERE / "nats-values.yaml").read_text(encoding="utf-8"))
VERSIONS = ("1.30", "1.37")
"""The oldest and the newest Kubernetes that the README names."""
PODS = [f"nats-{number}.nats-headless" for number in range(SERVERS)]
"""The servers' names, where the release is called ``nats``."""
SECRETS = {"mqtt_password": "secret", "guid_101": "a.AgentGateway0", "password_102": "pw-102"}


def only(kind: str, name: str = "ccgateway2mqtt") -> dict[str, Any]:
    """Find a manifest."""
    (found,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


SET = only("StatefulSet")["spec"]
POD = SET["template"]["spec"]
(ADAPTER,) = POD["containers"]
CONFIG_MAP: dict[str, str] = only("ConfigMap")["data"]
LABELS: dict[str, str] = SET["template"]["metadata"]["labels"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """What the servers' README makes with the names that the README of Kubernetes gives it; the adapters' secrets."""
    (names,) = re.findall(r'`SERVERS="([^"]+)"`', README)
    path = tmp_path_factory.mktemp("files")
    return path, make_files(path, names.split())


def created() -> dict[str, dict[str, str]]:
    """Say what the README's commands create: of each ConfigMap or Secret the keys, with the files they are made of."""
    made: dict[str, dict[str, str]] = {}
    for command in re.findall(r"^ *kubectl create (?:secret generic|configmap) (.+)$", README, re.MULTILINE):
        name, *options = shlex.split(command)
        for option in options:
            key, _, file = option.removeprefix("--from-file=").rpartition("=")
            made.setdefault(name, {})[key or Path(file).name] = file
    return made


def mounted() -> dict[str, tuple[str, str]]:
    """Say what lies in /config: of each file the kind and name of what it comes from."""
    (volume,) = [volume for volume in POD["volumes"] if volume["name"] == "config"]
    found: dict[str, tuple[str, str]] = {}
    for source in volume["projected"]["sources"]:
        ((kind, what),) = source.items()
        keys = CONFIG_MAP if (kind, what["name"]) == ("configMap", "ccgateway2mqtt") else created()[what["name"]]
        items = what.get("items", [{"key": key, "path": key} for key in keys])
        assert {item["key"] for item in items} <= set(keys)
        found |= {item["path"]: (kind, what["name"]) for item in items}
    return found


def lay_out(path: Path, files: tuple[Path, dict[str, str]], **secrets: str) -> Path:
    """Make a directory as /config is in a pod; give the configuration."""
    for name in mounted():
        if name in CONFIG_MAP:
            (path / name).write_text(CONFIG_MAP[name], encoding="utf-8")
        elif name == "secrets.yaml":
            write_secrets(path, SECRETS | files[1] | secrets)
        elif name == "nats-ca.pem":
            shutil.copy(files[0] / "nats-ca.pem", path)
        else:
            trustme.CA().cert_pem.write_to_path(str(path / name))
    return path / "config.yaml"


@pytest.fixture
def config(tmp_path: Path, files: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration, as a pod has it."""
    monkeypatch.setenv("POD_NAME", "ccgateway2mqtt-1")
    return load(lay_out(tmp_path, files))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_take_the_manifests(version: str) -> None:
    """Every manifest fits the schemas of that Kubernetes, with no member that they do not know."""
    command = [str(VENV_BIN / "kubernetes-validate"), "--strict", "-k", version, *map(str, FILES)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)

    said = completed.stdout.splitlines()
    assert completed.returncode == 0, completed.stdout
    assert len(said) == len(MANIFESTS)
    assert [line for line in said if not line.endswith(f"against version {version}")] == []
    assert f"Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}" in README


def test_check_accepts_the_configuration(tmp_path: Path, files: tuple[Path, dict[str, str]], config: Config) -> None:
    """`ccgateway2mqtt check` has nothing to say about it, with what is mounted and nothing else."""
    checked = invoke("check", "-c", tmp_path / "config.yaml")

    assert (checked.exit_code, checked.stderr) == (0, f"{tmp_path}/config.yaml: valid, 2 agents\n")
    assert secret_names(*CONFIG_MAP.values()) == {*SECRETS, *files[1]}
    assert config.gateway.ca_file == tmp_path / "gateway-ca.pem"
    assert config.mqtt.ca_file == tmp_path / "broker-ca.pem"


def test_a_member_has_its_pods_name(config: Config) -> None:
    """`instance` is the pod's name, which the pod is told; ordinals begin anew under the same names."""
    assert config.instance == "ccgateway2mqtt-1"
    assert "instance: !env_var POD_NAME" in CONFIG_MAP["config.yaml"]
    assert {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} in ADAPTER["env"]
    assert SET["replicas"] >= 2
    assert SET["podManagementPolicy"] == "Parallel"


def test_the_adapter_is_run_as_the_image_does() -> None:
    """Image, arguments and user are those of the Dockerfile and the other examples."""
    compose = yaml.safe_load((EXAMPLES / "compose/compose.yaml").read_text(encoding="utf-8"))
    repository, _, tag = ADAPTER["image"].rpartition(":")
    assert repository.rpartition("/")[2] == compose["services"]["adapter"]["image"]
    assert tag == "CHANGE-ME"
    assert f"docker build -t {repository}:" in README
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"CMD {json.dumps(ADAPTER['args'])}" in dockerfile
    context = POD["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile
    assert "command" not in ADAPTER  # the entry point: no shell stands between SIGTERM and the adapter
    assert '"$1[cluster]"' in dockerfile  # without nats-py there is no fleet


def test_probes_ask_where_the_adapter_listens(config: Config) -> None:
    """Each probe asks the port of `http.listen`, which is open to the kubelet, for what the listener serves."""
    assert config.http is not None
    (port,) = [port for port in ADAPTER["ports"] if port["name"] == "http"]
    assert port["containerPort"] == config.http.port
    assert config.http.host == "0.0.0.0"  # noqa: S104 - the pod's network; on loopback no probe reaches it
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert ADAPTER[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_probes_are_patient(config: Config) -> None:
    """A member is not killed while it waits for the servers or for its own lease, nor for being slow for a moment."""
    start, live = ADAPTER["startupProbe"], ADAPTER["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 20 * (config.gateway.hold_s + 5)
    assert live["periodSeconds"] * live["failureThreshold"] >= config.gateway.hold_s + 30


def test_members_have_time_to_hand_over(config: Config) -> None:
    """D7, point 4: polls may end, agents are handed over and the outbox is flushed; SIGTERM suffices for it."""
    assert POD["terminationGracePeriodSeconds"] >= config.gateway.hold_s + 2 + 15
    assert "lifecycle" not in ADAPTER
    assert "STOPSIGNAL SIGTERM" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_an_update_takes_one_after_the_other() -> None:
    """Point 4: pods are replaced one by one, each ready for a while before the next one goes."""
    assert SET["updateStrategy"] == {"type": "RollingUpdate"}
    assert SET["minReadySeconds"] >= 10


def test_selectors_select_the_pods() -> None:
    """The set, the services, the disruption budget, the spread constraints and the monitor mean the same pods."""
    assert LABELS
    monitor = yaml.safe_load((HERE / "podmonitor.yaml").read_text(encoding="utf-8"))
    selectors = {
        "StatefulSet": SET["selector"]["matchLabels"],
        "PodDisruptionBudget": only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        "PodMonitor": monitor["spec"]["selector"]["matchLabels"],
        **{each["metadata"]["name"]: each["spec"]["selector"] for each in MANIFESTS if each["kind"] == "Service"},
        **{each["topologyKey"]: each["labelSelector"]["matchLabels"] for each in POD["topologySpreadConstraints"]},
    }
    assert {
        name for name, selector in selectors.items() if not selector.items() <= LABELS.items() or not selector
    } == set()
    assert {"kubernetes.io/hostname", "topology.kubernetes.io/zone", SET["serviceName"]} <= set(selectors)
    used = {label for text in re.findall(r"-l (\S+)", README) for label in [text.rstrip("`")]}
    assert used == {f"{name}={value}" for name, value in LABELS.items()}


def test_one_member_at_a_time_may_be_taken_away() -> None:
    """Point 8, disruption budget: one at a time, and one that is not ready anyway does not hold a drain up."""
    spec = only("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_members_are_spread() -> None:
    """Members are on different nodes; nodes that are being drained do not count."""
    by_key = {each["topologyKey"]: each for each in POD["topologySpreadConstraints"]}
    assert by_key["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert {each["maxSkew"] for each in by_key.values()} == {1}
    assert {each["nodeTaintsPolicy"] for each in by_key.values()} == {"Honor"}


def test_metrics_are_found() -> None:
    """Services and monitor lead to the adapter's own port, also of members that are not ready."""
    assert only("Service", SET["serviceName"])["spec"]["clusterIP"] == "None"
    (named,) = [port for port in ADAPTER["ports"] if port["name"] == "http"]
    services = [each for each in MANIFESTS if each["kind"] == "Service"]
    for service in services:
        (port,) = service["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (named["containerPort"], "http")
        assert service["spec"]["publishNotReadyAddresses"] is True
    annotations = only("Service", "ccgateway2mqtt-metrics")["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(named["containerPort"])
    monitor = yaml.safe_load((HERE / "podmonitor.yaml").read_text(encoding="utf-8"))["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    rules = (EXAMPLES / "prometheus/alerts.yml").read_text(encoding="utf-8")
    assert f'job="{LABELS[monitor["jobLabel"]]}"' in rules


def test_the_pod_is_locked_down() -> None:
    """It meets Kubernetes' Pod Security Standard "restricted", on a root that cannot be written, with no token."""
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert ADAPTER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    kinds = {kind for volume in POD["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"projected", "emptyDir"}


def test_it_may_write_where_it_has_to(config: Config) -> None:
    """The database lies on a volume that the pod's group may write and that is larger than it may become."""
    mounts = {mount["mountPath"]: mount for mount in ADAPTER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts) == {"/config", "/data", "/tmp"}  # noqa: S108 - a name inside the container
    assert mounts["/config"]["readOnly"] is True
    assert config.storage.path.parent == Path("/data")
    assert bytes_of(volumes["data"]["emptyDir"]["sizeLimit"]) >= 2 * config.storage.max_mb << 20
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsUser"]
    # Scratch, in a fleet: nothing is claimed, and nothing ties a pod to a node.
    assert "volumeClaimTemplates" not in SET


def bytes_of(quantity: str) -> int:
    """Read a quantity of Kubernetes."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()  # type: ignore[union-attr] # else the test fails
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def test_resources_are_as_measured() -> None:
    """Memory is enough for the agents that are named, by the README's figures; CPU is asked for, and not throttled."""
    costs = (ROOT / "README.md").read_text(encoding="utf-8")
    each = re.search(r"^\| memory per idle agent, 5,000 agents \| (\d+) KB", costs, re.MULTILINE)
    base = re.search(r"^Ten agents take (\d+) MB", costs, re.MULTILINE)
    assert each is not None
    assert base is not None
    needed = int(base[1]) * 1000 + 5000 * int(each[1])
    assert f"{base[1]} MB, and {each[1]} KB for each agent: {needed // 1000} MB for 5,000" in README
    resources = ADAPTER["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert bytes_of(resources["requests"]["memory"]) >= 2 * needed * 1000
    assert resources["requests"]["cpu"]
    assert "cpu" not in resources["limits"]


def test_secrets_are_referred_to_and_nowhere_else() -> None:
    """No secret stands in a manifest: the ConfigMap says `!secret`, and each Secret is made by a command."""
    assert "Secret" not in {each["kind"] for each in MANIFESTS}
    kept = re.findall(r"\b(?:password|key|former_key|guid): *([^\s,}]+)", "\n".join(CONFIG_MAP.values()))
    assert len(kept) == 5
    assert set(kept) == {"!secret"}
    assert mounted()["secrets.yaml"] == ("secret", "ccgateway2mqtt")
    assert [variable for variable in ADAPTER["env"] if "value" in variable] == []
    (volume,) = [volume for volume in POD["volumes"] if volume["name"] == "config"]
    assert volume["projected"]["defaultMode"] == 0o400


def test_the_readme_makes_what_is_not_in_the_manifests(files: tuple[Path, dict[str, str]]) -> None:
    """Everything that manifests and values refer to is made by a command, of files that there are."""
    made = created()
    variables = [
        value["valueFrom"]["secretKeyRef"] for value in VALUES["container"]["env"].values() if isinstance(value, dict)
    ]
    for reference in variables:
        assert reference["key"] in made[reference["name"]]
    for tls in (VALUES["config"]["nats"]["tls"], VALUES["config"]["cluster"]["tls"]):
        assert {"tls.crt", "tls.key"} <= set(made[tls["secretName"]])
    assert VALUES["tlsCA"]["key"] in made[VALUES["tlsCA"]["secretName"]]
    for file in (file for keys in made.values() for file in keys.values() if file.startswith("files/")):
        assert (files[0] / file.removeprefix("files/")).is_file()
    named = set(re.findall(r"kubectl apply -f (\S+?)[`.]*$", README, re.MULTILINE))
    assert {"adapter/", "adapter/configmap.yaml", "adapter/statefulset.yaml"} <= named
    assert [name for name in named if not (HERE / name).exists()] == []


def test_members_reach_the_servers(config: Config, files: tuple[Path, dict[str, str]]) -> None:
    """`cluster.url` names each server's pod, the certificate is for each of them, and the release is named so."""
    assert config.cluster is not None
    assert [urlsplit(url).hostname for url in config.cluster.urls] == PODS
    assert {urlsplit(url).scheme for url in config.cluster.urls} == {"tls"}
    assert names_in(files[0] / "nats-server.pem") >= {"nats", *PODS}
    assert config.cluster.replicas == VALUES["config"]["cluster"]["replicas"] == SERVERS
    assert "helm upgrade --install nats nats/nats -f nats-values.yaml" in README


KNOWN = {
    "config.cluster": {"enabled", "replicas", "tls", "port", "merge", "patch", "noAdvertise", "routeURLs"},
    "config.cluster.tls": {"enabled", "secretName", "dir", "cert", "key", "merge", "patch"},
    "config.nats": {"port", "tls"},
    "config.nats.tls": {"enabled", "secretName", "dir", "cert", "key", "merge", "patch"},
    "config.jetstream": {"enabled", "fileStore", "memoryStore", "merge", "patch"},
    "config.jetstream.memoryStore": {"enabled", "maxSize"},
    "config.jetstream.fileStore": {"enabled", "dir", "pvc", "maxSize"},
    "config.jetstream.fileStore.pvc": {"enabled", "size", "storageClassName", "merge", "patch", "name"},
    "config": {"cluster", "jetstream", "nats", "merge", "patch", "monitor", "mqtt", "websocket", "serverNamePrefix"},
    "tlsCA": {"enabled", "configMapName", "secretName", "dir", "key"},
    "container": {"image", "ports", "env", "merge", "patch"},
    "container.image": {"repository", "tag", "pullPolicy", "registry"},
    "reloader": {"enabled", "image", "env", "natsVolumeMountPrefixes", "merge", "patch"},
    "podTemplate": {"configChecksumAnnotation", "topologySpreadConstraints", "merge", "patch"},
    "podDisruptionBudget": {"enabled", "merge", "patch", "name"},
    "natsBox": {"enabled"},
    "": {"config", "tlsCA", "container", "reloader", "podTemplate", "podDisruptionBudget", "natsBox"},
}
"""What NATS's chart takes, of what is used here.

Source: README.md, values.yaml and test/ of the chart `nats` in github.com/nats-io/k8s, releases 1.0.0 to 1.3.
"""


@pytest.mark.parametrize("section", KNOWN)
def test_the_chart_knows_the_values(section: str) -> None:
    """Each key is one that the chart documents: it ignores others without a word."""
    values: Any = VALUES
    for name in section.split(".") if section else ():
        values = values[name]
    assert set(values) <= KNOWN[section]


def test_the_chart_would_lock_the_servers_down() -> None:
    """The servers meet the standard "restricted", are on nodes of their own, and go one at a time."""
    spec = VALUES["podTemplate"]["merge"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert VALUES["container"]["merge"]["securityContext"] == locked
    assert VALUES["reloader"]["merge"]["securityContext"] == locked
    (apart,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == "nats"
    assert VALUES["podDisruptionBudget"]["enabled"] is True
    assert VALUES["natsBox"]["enabled"] is False


def test_kubernetes_would_take_what_is_merged(tmp_path: Path) -> None:
    """What the values add to the chart's pods fits Kubernetes' schemas."""
    zones = VALUES["podTemplate"]["topologySpreadConstraints"]
    labels = {"app.kubernetes.io/name": "nats", "app.kubernetes.io/component": "nats"}
    env = [
        {"name": name, **({"value": value} if isinstance(value, str) else value)}
        for name, value in VALUES["container"]["env"].items()
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "nats-0", "labels": labels},
        "spec": {
            **VALUES["podTemplate"]["merge"]["spec"],
            "topologySpreadConstraints": [{"topologyKey": key, **rule} for key, rule in zones.items()],
            "containers": [
                {"name": "nats", "image": "nats", "env": env, **VALUES["container"]["merge"]},
                {"name": "reloader", "image": "reloader", **VALUES["reloader"]["merge"]},
            ],
        },
    }
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod), encoding="utf-8")
    command = [str(VENV_BIN / "kubernetes-validate"), "--strict", "-k", VERSIONS[0], str(tmp_path / "pod.yaml")]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (completed.returncode, completed.stdout.split()[0]) == (0, "INFO"), completed.stdout


def chart(number: int, places: Places, files: Path) -> str:
    """Do what the chart does with the values, as its documentation says, for one server on this machine."""
    values = VALUES["config"]
    assert values["cluster"]["enabled"]
    assert values["jetstream"]["enabled"]
    certificate = {"cert_file": f"{files}/nats-server.pem", "key_file": f"{files}/nats-server.key"}
    # `tlsCA` adds the authority to every section of TLS.
    authority = {"ca_file": f"{files}/nats-ca.pem"} if VALUES["tlsCA"]["enabled"] else {}
    conf: dict[str, Any] = {
        "server_name": PODS[number],
        "listen": f"127.0.0.1:{places.clients[number]}",
        "cluster": {
            "name": "nats",
            "listen": f"127.0.0.1:{places.routes[number]}",
            "no_advertise": True,
            "routes": [f"tls://localhost:{port}" for port in places.routes],
        },
        "jetstream": {"store_dir": f"{places.path}/data-{number}", "max_memory_store": 0, "max_file_store": 8 << 30},
    }
    if values["nats"]["tls"]["enabled"]:
        conf["tls"] = certificate | authority
    if values["cluster"]["tls"]["enabled"]:
        conf["cluster"]["tls"] = certificate | authority
    conf |= values["merge"]
    # << >> is taken off with the quotes around it: what is left is the server's own notation.
    return re.sub(r'"<< (.*?) >>"', r"\1", json.dumps(conf))


@pytest.fixture
async def gateway() -> Any:  # noqa: ANN401 - an asynchronous iterator of a simulator
    """A gateway where 101 is signed in and 102 signs in with a password."""
    agents = [SimAgent(work_no="101"), SimAgent(work_no="102", password="pw-102", phone="8102", signed_in=False)]  # noqa: S106 - a test's
    async with Simulator(agents=agents, hold_s=1.0) as simulator:
        yield simulator


async def test_a_member_runs_on_the_servers(
    tmp_path: Path,
    files: tuple[Path, dict[str, str]],
    shared_broker: Broker,
    gateway: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three servers run with the values, and a member with the ConfigMap: it polls, and its probes are answered.

    Nobody comes into the servers without the password of the Secret.
    """
    places = Places(tmp_path)
    (variable,) = [name for name in VALUES["container"]["env"] if name.endswith("PASSWORD")]
    reference = VALUES["container"]["env"][variable]["valueFrom"]["secretKeyRef"]
    file = files[0] / created()[reference["name"]][reference["key"]].removeprefix("files/")
    environment = {variable: file.read_text(encoding="utf-8")}
    (tmp_path / "config").mkdir()
    guid = next(str(agent.guid) for agent in gateway.agents if agent.work_no == "101")
    path = lay_out(tmp_path / "config", files, guid_101=guid)
    port = free_port()
    (broker,) = re.findall(r"  url: (mqtts://.*?)\n\n", CONFIG_MAP["config.yaml"], re.DOTALL)
    replacements = {
        broker: shared_broker.url(),
        ",".join(f"tls://{pod}:4222" for pod in PODS): places.url,
        "https://gateway.example:8043/agentgateway": gateway.url,
        "/data/": f"{tmp_path}/",
        "0.0.0.0:9464": f"127.0.0.1:{port}",
    }
    path.write_text(replace(path.read_text(encoding="utf-8"), replacements), encoding="utf-8")
    shutil.copy(str(gateway.ca_file), path.parent / "gateway-ca.pem")
    monkeypatch.setenv("POD_NAME", "ccgateway2mqtt-0")
    config = load(path)
    assert config.cluster is not None

    confs = [chart(number, places, files[0]) for number in range(SERVERS)]
    async with run_servers(places, confs, [environment] * SERVERS) as parts:
        await ready(config.cluster, parts)
        async with running(path) as member, httpx.AsyncClient() as client:
            await until(lambda: set(member.app._fleet.pollers) == {"101", "102"})
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                answer = await client.get(f"http://127.0.0.1:{port}{ADAPTER[probe]['httpGet']['path']}")
                assert answer.status_code == 200
            assert await unwell(config) == []
        tls = ssl.create_default_context(cafile=files[0] / "nats-ca.pem")
        for url in config.cluster.urls:
            assert await refused(url, tls=tls)
            assert await refused(url, tls=tls, user="adapter", password="p")  # noqa: S106 - is to be wrong
            assert not await refused(url, tls=tls, user="adapter", password=config.cluster.password)
