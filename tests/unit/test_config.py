"""Configuration: files, flags, and the documents that tell of it."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from castoff.cli.config import toml
from castoff.config import Config, load, read_file
from castoff.errors import Invalid, NotFound

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: the tests' user may have a configuration."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CASTOFF_CONFIG", raising=False)
    monkeypatch.delenv("CASTOFF_STATE", raising=False)
    (tmp_path / "config" / "castoff").mkdir(parents=True)
    return tmp_path / "config" / "castoff"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_no_file_is_needed(home: Path) -> None:
    """Every setting has a default; state is absolute."""
    assert load().state.is_absolute()
    assert load().image.max_manifest_size == Config().image.max_manifest_size


def test_a_file_is_laid_over_the_defaults_and_flags_over_it(home: Path) -> None:
    """Table by table; what it does not name stays."""
    (home / "config.toml").write_text('state = "/srv/castoff"\n[image]\nretries = 9\n[vmm.qemu]\naccelerator = "tcg"\n')
    config = load()
    assert (config.state, config.image.retries, config.image.max_manifest_size) == (
        Path("/srv/castoff"),
        9,
        Config().image.max_manifest_size,
    )
    assert config.vmm.qemu.accelerator == "tcg"
    assert load(state=Path("/x")).state == Path("/x")


def test_the_environment_names_file_and_state(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For programs as for the command line; arguments win."""
    (tmp_path / "named.toml").write_text('state = "/in/file"\n[image]\nretries = 2\n')
    monkeypatch.setenv("CASTOFF_CONFIG", str(tmp_path / "named.toml"))
    assert (load().state, load().image.retries) == (Path("/in/file"), 2)
    monkeypatch.setenv("CASTOFF_STATE", "/in/environment")
    assert load().state == Path("/in/environment")
    assert load(state=Path("/argument")).state == Path("/argument")


def test_a_named_file_is_the_only_one(home: Path, tmp_path: Path) -> None:
    """And it must be there."""
    (home / "config.toml").write_text("[image]\nretries = 9\n")
    (tmp_path / "other.toml").write_text("[image]\nmax_manifest_size = 2\n")
    config = load(tmp_path / "other.toml")
    assert (config.image.max_manifest_size, config.image.retries) == (2, Config().image.retries)
    with pytest.raises(NotFound, match=r"missing\.toml"):
        load(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense = 1", "nonsense"),
        ("[image]\nretrys = 1", "retrys"),
        ("[vmm.qemu]\nbinry = 'x'", "vmm.qemu"),
        ("[image]\nretries = 'many'", "image.retries"),
        ("[store]\nbacking = 'floppy'", "store.backing"),
        ("[rootfs]\nclone = 'dolly'", "rootfs.clone"),
        ("[machine]\ncpus = 0", "machine.cpus"),
        ("state = 5", "state"),
        ("[image", "TOML"),
        ("a = " + "[" * 5000, "TOML"),
        ("image = 1", "image"),
    ],
)
def test_a_slip_is_one_line_that_names_the_key_and_the_file(tmp_path: Path, text: str, told: str) -> None:
    """Whether the key is unknown, the value is wrong, or it is no TOML at all."""
    file = tmp_path / "castoff.toml"
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        load(file)
    message = str(caught.value)
    assert told in message and str(file) in message and "\n" not in message


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, directories, and more than anybody writes."""
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff")
    large.write_bytes(b"#" * (2 << 20))
    for path in (binary, large, tmp_path):
        with pytest.raises(Invalid):
            read_file(path)


def test_what_show_prints_can_be_read_again(tmp_path: Path) -> None:
    """`castoff config show > file` is a configuration with the same meaning."""
    file = tmp_path / "in.toml"
    file.write_text(
        '[image]\nca_file = "/a\\"b\\u007f\\n"\n[image.mirrors]\n"docker.io" = ["m:5000", "n"]\n'
        "[rootfs.containerd]\ntimeout = 3\n"
    )
    config = load(file)
    (tmp_path / "out.toml").write_text(toml(msgspec.to_builtins(config, enc_hook=str)))
    assert load(tmp_path / "out.toml") == config


def test_documents_are_what_the_settings_say() -> None:
    """docs/configuration.md and the example were made from these settings: run docs/generate_configuration.py."""
    generator = _generator()
    assert (ROOT / "docs" / "configuration.md").read_text() == generator.document()
    assert (ROOT / "packaging" / "config.example.toml").read_text() == generator.example()


def test_every_setting_is_documented() -> None:
    """Each setting of the tree stands in the page, under its table, with a text."""
    settings = list(_generator().settings())
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert len(settings) > 40
    for setting in settings:
        table = page.partition(f"\n## {'.'.join(setting.table) or 'At the top'}\n")[2].partition("\n## ")[0]
        assert f"**`{setting.name}`**" in table, setting
        assert len(setting.text) > 10, setting


def test_the_settings_that_errors_name_exist() -> None:
    """`raise X in the configuration` names an X that there is."""
    known = {".".join((*setting.table, setting.name)) for setting in _generator().settings()}
    named = set()
    for source in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"""setting=f?["']([a-z_.]+)["']""", source.read_text()))
    assert named
    assert named <= known


def test_the_example_loads_as_it_is_and_with_every_default_uncommented(tmp_path: Path) -> None:
    """Commented out it changes nothing; uncommented it says what the defaults say."""
    example = ROOT / "packaging" / "config.example.toml"
    assert load(example) == Config()
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in example.read_text().splitlines()
    ]
    (tmp_path / "all.toml").write_text("\n".join(lines))
    told, default = load(tmp_path / "all.toml", state=Path("/s")), load(example, state=Path("/s"))
    assert msgspec.structs.replace(told, rootfs=default.rootfs) == default
    assert told.rootfs.containerd is not None
    assert msgspec.structs.replace(told.rootfs, containerd=None) == default.rootfs


def test_the_command_shows_and_checks(tmp_path: Path) -> None:
    """As a person and a script use it."""
    file = tmp_path / "bad.toml"
    file.write_text("[image]\nretrys = 1\n")

    def castoff(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "castoff", *words], capture_output=True, text=True, check=False)

    refused = castoff("config", "check", str(file))
    assert refused.returncode == 4 and "retrys" in refused.stderr and refused.stderr.count("\n") == 1
    file.write_text("[image]\nretries = 1\n")
    assert castoff("config", "check", str(file)).stdout == f"{file}: good\n"
    assert "retries = 1\n" in castoff("--config", str(file), "config", "show").stdout


def test_a_state_that_is_nowhere_is_told(home: Path) -> None:
    """Nobody's home, and an empty path, which would be the current directory."""
    with pytest.raises(Invalid, match="nobody's home"):
        load(state=Path("~nosuchuser/state"))
    (home / "config.toml").write_text('state = ""\n')
    with pytest.raises(Invalid, match="expected a path"):
        load()


# Everything is imported before: that user may not be able to read the checkout.
_AS_NOBODY_KNOWN = """
import contextlib, io, os, sys
from castoff.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["--config", "/dev/null", "config", "show"]) == 0
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
sys.exit(main(["config", "show"]))
"""


def test_a_user_without_account_and_home_is_told_what_to_set() -> None:
    """As in containers that run under a bare number."""
    done = subprocess.run([sys.executable, "-c", _AS_NOBODY_KNOWN], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert re.fullmatch(r"castoff: [^\n]*set HOME or XDG_[A-Z_]*\n", done.stderr), done.stderr


def test_a_home_that_is_closed_is_told() -> None:
    """`su` without `-` keeps root's HOME."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o700)
        command = [sys.executable, "-c", _AS_NOBODY_KNOWN]
        done = subprocess.run(command, env={"HOME": home}, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert re.fullmatch(r"castoff: [^\n]*Permission denied; is HOME yours\?\n", done.stderr), done.stderr
