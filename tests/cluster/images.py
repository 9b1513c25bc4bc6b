"""The container images of the tests, from the repository's own Dockerfiles.

Registries of images need not be reachable: the base images are made by mmdebstrap from Debian's packages. All is
kept in the cache folder, and made again only when what it is made from has changed. Needs root and Debian.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import binaries, debian
from tests.cluster.processes import run, say

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
# libstdc++6 is what PyTorch links against; usr-is-merged, with the hook, keeps a whole Perl out.
RUNTIME_PACKAGES = "python3,ca-certificates,libstdc++6,usr-is-merged"
BUILD_PACKAGES = f"{RUNTIME_PACKAGES},python3-venv"
MERGED_USR = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
# A container needs neither manuals nor translations.
UNWANTED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)
CERTIFICATES = Path("/etc/ssl/certs")
KEPT_ARCHIVES = 2


@dataclass(frozen=True)
class Image:
    """An image in a docker-archive, with the name that pods use."""

    name: str
    archive: Path

    @property
    def megabytes(self) -> float:
        """Its uncompressed size, in units of 10^6 bytes."""
        return self.archive.stat().st_size / 1e6


@dataclass(frozen=True)
class Source:
    """What an image is made from: its Dockerfile and the paths that the Dockerfile copies."""

    name: str
    dockerfile: str
    paths: tuple[str, ...]
    cold: str


OPERATOR = Source(
    "finetune-operator", "Dockerfile", ("api", "operator", "requirements/operator.txt", "LICENSE"), "1 minute"
)
TRAINER = Source(
    "finetune-trainer",
    "trainer-image/Dockerfile",
    ("api", "trainer-image", "requirements/trainer.txt", "requirements/torch.txt", "LICENSE"),
    "3 minutes",
)


def operator_image() -> Image:
    """The operator's image."""
    return _image(OPERATOR)


def trainer_image() -> Image:
    """The trainer's image, with whatever build of PyTorch pip finds first (see PIP_FIND_LINKS)."""
    return _image(TRAINER)


def build_all() -> list[Image]:
    """Both of the product's images."""
    return [operator_image(), trainer_image()]


def reference(name: str) -> str:
    """The full name, with its tag, of the image `operator` or `trainer` for the sources as they are now."""
    return _reference({"operator": OPERATOR, "trainer": TRAINER}[name])


def python_image() -> Image:
    """A plain Python image: for pods that a test makes up."""
    _require()
    return _archived(_base("finetune-base", RUNTIME_PACKAGES), "finetune-base")


def _require() -> None:
    debian.require_root("building container images")
    debian.require_programs(debian.IMAGE_PROGRAMS)


def _image(source: Source) -> Image:
    """Builds in layers, so that a change of our sources does not install the dependencies again."""
    _require()
    name = _reference(source)
    done = _archive_path(name)
    if done.exists():
        return Image(name, done)
    base = _base("finetune-base", RUNTIME_PACKAGES)
    build_base = _base("finetune-build-base", BUILD_PACKAGES)
    with binaries.locked(f"image-{source.name}"):
        if done.exists():
            return Image(name, done)
        say(f"building {name} (about {source.cold} the first time)")
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            settings, folders = _pip_settings(Path(scratch))
            _buildah(
                *("bud", "--layers", "--isolation", "chroot", "--network", "host", "--pull-never"),
                *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
                *(word for folder in folders for word in ("--volume", f"{folder}:{folder}:ro")),
                *("--secret", f"id=pip,src={settings}"),
                *("--build-arg", f"BASE={base}", "--build-arg", f"BUILD_BASE={build_base}"),
                *("--file", str(REPOSITORY / source.dockerfile), "--tag", name, str(REPOSITORY)),
            )
        image = _archived(name, source.name)
        say(f"built {name} in {time.monotonic() - begun:.0f} s: {image.megabytes:.0f} MB")
        return image


def _reference(source: Source) -> str:
    bases = (*_debian_command(RUNTIME_PACKAGES), *_debian_command(BUILD_PACKAGES))
    tag = _digest([*_files(source), *bases, *_torch_choice(source)], REPOSITORY)
    return f"localhost/{source.name}:{tag}"


def _debian_command(packages: str) -> list[str]:
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED]
    return ["mmdebstrap", "--variant=essential", MERGED_USR, f"--include={packages}", *options, SUITE]


def _base(name: str, packages: str) -> str:
    """A Debian with these packages as an image of buildah's; returns its name."""
    command = _debian_command(packages)
    tag = hashlib.sha256(" ".join(command).encode()).hexdigest()[:12]
    image = f"localhost/{name}:{tag}"
    with binaries.locked(f"image-{name}"):
        if image not in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            say(f"making {image} from Debian packages (about 1 minute)")
            with tempfile.TemporaryDirectory() as scratch:
                run(*command, f"{scratch}/base.tar", timeout=1200)
                (Path(scratch) / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
                _buildah("bud", "--isolation", "chroot", "--tag", image, scratch)
    return image


def _archived(image: str, short_name: str) -> Image:
    """The image as a file; older ones of the same name are removed, but for the newest."""
    target = _archive_path(image)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        _buildah("push", image, f"docker-archive:{partial}:{image}")
        partial.rename(target)
        others = sorted(target.parent.glob(f"{short_name}-*.tar"), key=lambda path: path.stat().st_mtime)
        for old in others[:-KEPT_ARCHIVES]:
            old.unlink(missing_ok=True)
        _remove_unarchived(short_name)
    return Image(image, target)


def _remove_unarchived(short_name: str) -> None:
    """Removes the images of which no file is kept. What they share with others, and the layers of a build, stay."""
    found = _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
    old = [each for each in found if each.startswith(f"localhost/{short_name}:") and not _archive_path(each).exists()]
    if old:
        _buildah("rmi", *old)


def _archive_path(image: str) -> Path:
    return binaries.cache_root() / "images" / f"{image.rpartition('/')[2].replace(':', '-')}.tar"


def _buildah(*arguments: str) -> str:
    store = binaries.cache_root() / "buildah"
    place = ("--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", "overlay")
    return run("buildah", *place, *arguments, timeout=3600)


def _files(source: Source) -> list[Path]:
    """Every file that can change the image, in a fixed order."""

    def below(path: Path) -> Iterator[Path]:
        if path.is_file():
            yield path
        else:
            skipped = {"__pycache__", "Dockerfile"}
            yield from (
                each
                for each in path.rglob("*")
                if each.is_file() and not skipped & set(each.parts) and ".egg-info" not in str(each)
            )

    listed = [REPOSITORY / source.dockerfile, REPOSITORY / ".dockerignore"]
    for path in source.paths:
        listed.extend(below(REPOSITORY / path))
    return sorted(listed)


def _torch_choice(source: Source) -> Iterable[str]:
    """Which PyTorch is used depends on the wheels that pip is pointed to."""
    if source is not TRAINER:
        return []
    return sorted(wheel.name for folder in _wheel_folders(_pip_options()) for wheel in folder.glob("torch-*.whl"))


def _digest(parts: Iterable[Path | str], root: Path) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            content = part.read_bytes()
            digest.update(f"\0{part.relative_to(root)}\0{len(content)}\0".encode() + content)
        else:
            digest.update(f"\0{part}".encode())
    return digest.hexdigest()[:12]


def _pip_options() -> dict[str, str]:
    """pip's settings on this machine, from its files and the environment: index, certificates, wheels."""
    options: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        from_environment = section == ":env:"  # which wins over the files
        if from_environment or (section in ("global", "install") and option not in options):
            options[option] = str(ast.literal_eval(value))
    return options


def _wheel_folders(options: dict[str, str]) -> list[Path]:
    links = options.get("find-links", "").split()
    return [Path(link).resolve() for link in links if "://" not in link and Path(link).is_dir()]


def _pip_settings(scratch: Path) -> tuple[Path, list[Path]]:
    """A pip.conf for the build that reaches what pip reaches here, and the folders that it mentions."""
    options = _pip_options()
    folders = _wheel_folders(options)
    if folders:
        options["find-links"] = " ".join(str(folder) for folder in folders)
    target = scratch / "pip.conf"
    lines = [f"{name} = {' '.join(value.split())}" for name, value in sorted(options.items())]
    target.write_text("\n".join(["[global]", *lines, ""]))
    return target, folders
