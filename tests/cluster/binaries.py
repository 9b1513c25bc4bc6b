"""The programs of the test cluster, built once from their Go modules and kept outside the checkout.

The cache is ${FINETUNE_TEST_CACHE:-~/.cache/finetune-operator}/bin; every program has a folder whose name has the
hash of what it is made from, so that another version never overwrites one that is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.processes import run, say

HERE = Path(__file__).parent
GO_MODULE = HERE / "go"
KSTATUS_MODULE = HERE / "kstatus"  # apart: it stands on another version of the API machinery
KUEUE_MODULE = HERE / "kueue"  # apart: it needs other versions of Kubernetes' modules than ours
KUBERNETES = "1.36.3"
# The names that the multi-call binary answers to; the folder then looks like KUBEBUILDER_ASSETS.
KUBE_NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
API_SERVER_NAMES = ("etcd", "kube-apiserver", "kubectl")
REMEDY = (
    "install Go 1.26 or newer (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd "
    "and kubectl (`setup-envtest use -p path`), which is enough for the tests that need the API server only"
)


@dataclass(frozen=True)
class Recipe:
    """How one program is made: `build(folder)` writes it there; `key` changes whenever the result would."""

    name: str
    key: str
    cold: str
    build: Callable[[Path], None]
    needs: str = "go"


def cache_root() -> Path:
    """The folder for everything that the tests build and want to find again."""
    return Path(os.environ.get("FINETUNE_TEST_CACHE") or Path.home() / ".cache" / "finetune-operator").resolve()


def api_server_assets() -> Path:
    """A folder with kube-apiserver, etcd and kubectl: the user's own, or the built one."""
    own = os.environ.get("KUBEBUILDER_ASSETS")
    if own:
        missing = [name for name in API_SERVER_NAMES if not (Path(own) / name).exists()]
        if missing:
            raise Unavailable(f"KUBEBUILDER_ASSETS={own} lacks {', '.join(missing)}; unset it, or complete the folder")
        return Path(own).resolve()
    return kube_assets()


def kube_assets() -> Path:
    """The folder with every Kubernetes component and etcd, as links to one binary."""
    sources = sorted(path for path in GO_MODULE.rglob("*") if path.is_file())
    return _made(Recipe("kube", _hash(KUBERNETES, *sources), "5 minutes", _build_kube))


def helm() -> Path:
    """The Helm program."""
    return _installed("helm", "helm.sh/helm/v3/cmd/helm@v3.22.0", "1 minute")


def coredns() -> Path:
    """The CoreDNS program."""
    return _installed("coredns", "github.com/coredns/coredns@v1.15.0", "2 minutes")


def versitygw() -> Path:
    """An S3 server that keeps its objects as plain files."""
    return _installed("versitygw", "github.com/versity/versitygw/cmd/versitygw@v1.8.0", "45 seconds")


def registry() -> Path:
    """An OCI registry: the reference implementation of the distribution protocol."""
    return _installed("registry", "github.com/distribution/distribution/v3/cmd/registry@v3.1.2", "1 minute")


def kueue() -> Path:
    """A folder with Kueue's program `manager` and its Helm chart `chart`, both of the version that go.mod pins."""
    sources = [KUEUE_MODULE / name for name in ("go.mod", "go.sum", "tools.go")]
    return _made(Recipe("kueue", _hash(*(path.read_text() for path in sources)), "3 minutes", _build_kueue))


def mlflow() -> Path:
    """MLflow's program in an environment of its own: it wants an older pyarrow than ours."""
    wanted = "mlflow[auth]==3.17.2"

    def build(folder: Path) -> None:
        run(sys.executable, "-m", "venv", str(folder))
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(folder / "bin/python"), wanted)

    return (
        _made(Recipe("mlflow", _hash(wanted, sys.version), "half a minute", build, needs=sys.executable))
        / "bin"
        / "python"
    )


def promtool() -> Path:
    """Prometheus' checker of rules: the one in PATH, or Debian's, unpacked; installed, its package starts a server."""
    if found := shutil.which("promtool"):
        return Path(found)
    if not shutil.which("apt-get"):
        raise Unavailable("promtool is not in PATH: it comes with Prometheus (https://prometheus.io/download)")
    recipe = Recipe("promtool", _hash("prometheus"), "5 seconds", _unpack_promtool, needs="apt-get")
    return _made(recipe) / "promtool"


def pause() -> Path:
    """The program that holds a pod's namespaces open."""
    source = GO_MODULE / "cmd" / "pause" / "main.go"
    return _made(Recipe("pause", _hash(source), "5 seconds", lambda folder: _go_build(folder, "./cmd/pause"))) / "pause"


def kstatus() -> Path:
    """The judgement of kstatus, as Flux has it, as a program: objects in, statuses out."""
    sources = sorted(path for path in KSTATUS_MODULE.iterdir() if path.is_file())
    recipe = Recipe(
        "kstatus", _hash(*sources), "1 minute", lambda folder: _go_build(folder, ".", module=KSTATUS_MODULE)
    )
    return _made(recipe) / "kstatus"


def everything() -> dict[str, Path]:
    """Builds what is missing of all programs; their paths by name."""
    return {
        "kube": kube_assets(),
        "coredns": coredns(),
        "helm": helm(),
        "versitygw": versitygw(),
        "registry": registry(),
        "pause": pause(),
        "kstatus": kstatus(),
    }


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock of this name among all processes that share the cache; waits, and says so."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is at it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unlocked(name: str) -> bool:
    """Whether no process holds this lock now."""
    path = cache_root() / "locks" / f"{name}.lock"
    if not path.exists():
        return True
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _installed(name: str, package: str, cold: str) -> Path:
    def build(folder: Path) -> None:
        run("go", "install", "-trimpath", package, env={**_go_environment(), "GOBIN": str(folder)}, timeout=1800)

    return _made(Recipe(name, _hash(package), cold, build)) / name


def _build_kube(folder: Path) -> None:
    major, minor, _ = KUBERNETES.split(".")
    values = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in values.items()
    ]
    _go_build(folder, "./cmd/kube", "-ldflags", " ".join(["-s -w", *flags]))
    for name in KUBE_NAMES:
        (folder / name).symlink_to("kube")


def _build_kueue(folder: Path) -> None:
    def go(*words: str) -> str:
        return run("go", *words, cwd=KUEUE_MODULE, env=_go_environment(), timeout=3600)

    package = "sigs.k8s.io/kueue"
    go("build", "-trimpath", "-ldflags", "-s -w", "-o", str(folder / "manager"), f"{package}/cmd/kueue")
    shutil.copytree(Path(go("list", "-m", "-f", "{{.Dir}}", package).strip()) / "charts" / "kueue", folder / "chart")


def _unpack_promtool(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run("apt-get", "download", "prometheus", cwd=Path(scratch), timeout=300)
        except CommandFailed as error:
            raise Unavailable(f"promtool is not in PATH; `sudo apt-get update`, and it is fetched: {error}") from error
        (package,) = Path(scratch).glob("*.deb")
        run("dpkg-deb", "-x", package, scratch)
        shutil.move(Path(scratch) / "usr" / "bin" / "promtool", folder)


def _go_build(folder: Path, package: str, *flags: str, module: Path = GO_MODULE) -> None:
    command = ["go", "build", "-trimpath", *flags, "-o", f"{folder}/", package]
    run(*command, cwd=module, env=_go_environment(), timeout=3600)


def _go_environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}


def _made(recipe: Recipe) -> Path:
    """The recipe's folder, built by exactly one process and moved into place complete."""
    folder = cache_root() / "bin" / f"{recipe.name}-{recipe.key}"
    if folder.exists():
        return folder
    if not shutil.which(recipe.needs):
        raise Unavailable(f"{recipe.name} is not built yet and Go is not installed: {REMEDY}")
    with locked(f"build-{recipe.name}"):
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        say(f"building {recipe.name} (about {recipe.cold} on 2 cores the first time, then kept in {folder.parent})")
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{recipe.name}-") as scratch:
            target = Path(scratch) / "made"
            target.mkdir()
            recipe.build(target)
            target.rename(folder)
        say(f"built {recipe.name} in {time.monotonic() - begun:.0f} s")
    return folder


def _hash(*parts: str | Path) -> str:
    """A short hash of texts, of files' names (inside their module) and contents, and of the machine that it runs on."""
    digest = hashlib.sha256(f"{platform.system()}/{platform.machine()}".encode())
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        label = "/".join(part.relative_to(HERE).parts[1:]) if isinstance(part, Path) else ""
        digest.update(f"\0{label}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
