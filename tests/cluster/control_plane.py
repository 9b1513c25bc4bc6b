"""etcd and the API server on this machine, without root: 2 seconds to start, nothing left after stop()."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import binaries
from tests.cluster.credentials import (
    ADMIN,
    User,
    standard_users,
    write_kubeconfig,
    write_signing_key,
    write_token_file,
)
from tests.cluster.errors import ComponentDied
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import Component, free_ports, start, tails, wait_until

ISSUER = "https://kubernetes.default.svc.cluster.local"
# Two cores may be busy with other tests; alone it takes 2 s.
START_SECONDS = 90
CONTROLLER_MANAGER = User("kube-controller-manager", user="system:kube-controller-manager")


@dataclass(frozen=True)
class Address:
    """Where the API server listens, and what others call it.

    A whole node needs an address that pods can reach; alone, the loopback interface is enough.
    """

    host: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    port: int = 0
    for_pods: bool = False


@dataclass(frozen=True)
class ControlPlane:
    """A running API server. `kubeconfig` is the administrator's; `kubectl` uses it."""

    folder: Path
    assets: Path
    url: str
    users: Mapping[str, User]
    components: list[Component]
    owns_folder: bool

    @property
    def pki(self) -> Path:
        """The folder of keys, certificates and kubeconfigs."""
        return self.folder / "pki"

    @property
    def ca(self) -> Path:
        """The API server's own certificate, which is also the CA to trust."""
        return self.pki / "apiserver.crt"

    @property
    def signing_key(self) -> Path:
        """The key of service account tokens."""
        return self.pki / "sa.key"

    @property
    def logs(self) -> Path:
        """The folder with one log a component."""
        return self.folder / "log"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.kubeconfig_of(ADMIN)

    @property
    def token(self) -> str:
        """The administrator's bearer token."""
        return self.users[ADMIN].token

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return Kubectl(self.assets / "kubectl", self.kubeconfig)

    def kubeconfig_of(self, name: str) -> Path:
        """The kubeconfig of one of the users, for example `developer`."""
        return self.pki / f"{name}.kubeconfig"

    def request(self, path: str, timeout: float = 5) -> bytes:
        """GET of an API path as the administrator, without kubectl."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            return bytes(answer.read())

    def start_component(self, name: str, *flags: str | Path, die_with_parent: bool = True) -> Component:
        """Starts one more Kubernetes program beside the API server."""
        # A folder of setup-envtest has no controller-manager; the built one, if Go is here, does as well.
        own = self.assets / name
        command = [own if own.exists() else binaries.kube_assets() / name, *flags]
        component = start(name, command, self.logs, die_with_parent=die_with_parent, cwd=self.folder)
        self.components.append(component)
        return component

    def pause_api_server(self) -> None:
        """Freezes the API server, as a fault: connections hang, as with a dead network."""
        self._signal_api_server(signal.SIGSTOP)

    def resume_api_server(self) -> None:
        """Ends the fault of pause_api_server."""
        self._signal_api_server(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """Ends one of the programs by SIGKILL, as a fault."""
        self._component(name).end(signal.SIGKILL)

    def revive(self, name: str) -> None:
        """Starts a program that was killed again, as it was; not waited for."""
        old = self._component(name)
        assert old.process
        new = start(name, list(old.process.args), self.logs, die_with_parent=False, cwd=self.folder)  # type: ignore[arg-type]
        self.components[self.components.index(old)] = new

    def stop(self) -> None:
        """Ends everything at once (the API server would drain for a minute) and removes the folder."""
        for component in reversed(self.components):
            component.end(signal.SIGKILL)
        self.components.clear()
        if self.owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _signal_api_server(self, what: signal.Signals) -> None:
        process = self._component("kube-apiserver").process
        assert process
        process.send_signal(what)

    def _component(self, name: str) -> Component:
        return next(each for each in self.components if each.name == name)


def start_control_plane(
    folder: Path | None = None,
    *,
    controller_manager: bool = False,
    controller_manager_flags: Sequence[str] = (),
    address: Address | None = None,
    users: Sequence[User] = (),
    api_server_flags: Sequence[str] = (),
    die_with_parent: bool = True,
    assets: Path | None = None,
) -> ControlPlane:
    """Starts etcd and the API server on free ports and returns when /readyz says ok.

    RBAC and the Node authorizer are on, service account tokens are issued for `ISSUER`, and every user has a
    token. With `controller_manager` Jobs get their pods, namespaces go away when deleted, and service accounts
    exist. Raises Unavailable when this machine has neither Go nor KUBEBUILDER_ASSETS, WaitTimeout with the logs'
    ends when it does not come up.
    """
    assets = assets or binaries.api_server_assets()
    if controller_manager and not (assets / "kube-controller-manager").exists():
        binaries.kube_assets()  # Unavailable before anything is started
    owns_folder = folder is None
    place = Path(tempfile.mkdtemp(prefix="control-plane-")) if folder is None else folder.resolve()
    (place / "pki").mkdir(parents=True, exist_ok=True)
    where = address or Address()
    everyone = (*standard_users(), CONTROLLER_MANAGER, *users)
    port, etcd_port, peer_port = free_ports(3)
    url = f"https://{where.host}:{where.port or port}"
    plane = ControlPlane(place, assets, url, {user.name: user for user in everyone}, [], owns_folder)
    try:
        _start(plane, where, etcd_port, peer_port, api_server_flags, die_with_parent)
        if controller_manager:
            start_controller_manager(plane, *controller_manager_flags, die_with_parent=die_with_parent)
    except BaseException:
        plane.stop()
        raise
    return plane


def start_controller_manager(plane: ControlPlane, *flags: str, die_with_parent: bool = True) -> None:
    """Starts the controllers and waits for the first thing that they make: the default service account."""
    plane.start_component(
        "kube-controller-manager",
        f"--kubeconfig={plane.kubeconfig_of(CONTROLLER_MANAGER.name)}",
        f"--service-account-private-key-file={plane.signing_key}",
        f"--root-ca-file={plane.ca}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
        *flags,
        die_with_parent=die_with_parent,
    )
    path = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_until(_answers(plane, lambda: plane.request(path)), START_SECONDS, "controller-manager", _tails_of(plane))


def _start(
    plane: ControlPlane,
    where: Address,
    etcd_port: int,
    peer_port: int,
    api_server_flags: Sequence[str],
    die_with_parent: bool,
) -> None:
    write_signing_key(plane.signing_key)
    write_token_file(plane.pki / "tokens.csv", list(plane.users.values()))
    for user in plane.users.values():
        write_kubeconfig(plane.kubeconfig_of(user.name), plane.url, plane.ca, user)
    etcd = f"http://127.0.0.1:{etcd_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    plane.start_component(
        "etcd",
        *("--name=test", f"--data-dir={plane.folder / 'etcd'}", "--log-level=warn"),
        "--unsafe-no-fsync",  # what is lost when the power fails does not matter here, and it is much faster
        *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}"),
        die_with_parent=die_with_parent,
    )
    plane.start_component(
        "kube-apiserver",
        *_api_server_flags(plane, where, etcd),
        *api_server_flags,
        die_with_parent=die_with_parent,
    )
    ready = _answers(plane, lambda: plane.request("/readyz") == b"ok" and _has_default_namespace(plane))
    wait_until(ready, START_SECONDS, "the API server", _tails_of(plane))


def _api_server_flags(plane: ControlPlane, where: Address, etcd: str) -> list[str]:
    # Without pods nobody needs the endpoints of the `kubernetes` Service, and a loopback address is refused there.
    pods = ["--kubelet-preferred-address-types=InternalIP"] if where.for_pods else []
    return [
        f"--etcd-servers={etcd}",
        f"--bind-address={where.bind}",
        f"--advertise-address={where.host}",
        f"--secure-port={plane.url.rpartition(':')[2]}",
        f"--cert-dir={plane.pki}",
        f"--token-auth-file={plane.pki / 'tokens.csv'}",
        f"--service-account-key-file={plane.signing_key}",
        f"--service-account-signing-key-file={plane.signing_key}",
        f"--service-account-issuer={ISSUER}",
        f"--endpoint-reconciler-type={'lease' if where.for_pods else 'none'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--allow-privileged=true",
        *pods,
    ]


def _has_default_namespace(plane: ControlPlane) -> bool:
    return bool(json.loads(plane.request("/api/v1/namespaces/default"))["metadata"]["uid"])


def _answers(plane: ControlPlane, ask: Callable[[], object]) -> Callable[[], bool]:
    """A predicate that also looks whether everything is still alive: no use waiting for the dead."""

    def predicate() -> bool:
        for component in plane.components:
            if not component.running():
                raise ComponentDied(f"{component.name} ended:\n{component.tail()}")
        return bool(ask())

    return predicate


def _tails_of(plane: ControlPlane) -> Callable[[], str]:
    return lambda: tails(plane.components)
