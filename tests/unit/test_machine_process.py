"""What a machine runs, by Docker's rules."""

import pytest

from castoff.errors import Invalid
from castoff.image.image import ImageConfig
from castoff.machine.model import MachineRequest
from castoff.machine.process import guest_settings
from castoff.vmm.guest import GuestSettings

CONFIG = ImageConfig(entrypoint=("/entry",), cmd=("serve", "-x"), env=("PATH=/bin", "A=1"), user="app", working_dir="/srv")


def _process(config: ImageConfig = CONFIG, **wish: object) -> GuestSettings:
    return guest_settings(config, MachineRequest(image="team/app", **wish), hostname="m1")


def test_an_image_alone_runs_its_entrypoint_and_cmd() -> None:
    """Nothing asked for: all as the image says."""
    process = _process()
    assert (process.argv, process.user, process.cwd) == (("/entry", "serve", "-x"), "app", "/srv")
    assert (process.env, process.hostname) == (("PATH=/bin", "A=1"), "m1")


@pytest.mark.parametrize(
    ("wish", "argv"),
    [
        ({"command": ("other",)}, ("/entry", "other")),
        ({"entrypoint": ("/bin/sh",)}, ("/bin/sh",)),
        ({"entrypoint": ("/bin/sh",), "command": ("-c", "id")}, ("/bin/sh", "-c", "id")),
        ({"entrypoint": (), "command": ("id",)}, ("id",)),
    ],
)
def test_entrypoint_and_command_combine_as_dockers_do(wish: dict[str, object], argv: tuple[str, ...]) -> None:
    """A command replaces cmd; an entrypoint drops cmd; an empty entrypoint drops the image's."""
    assert _process(**wish).argv == argv


def test_variables_replace_those_of_the_same_name() -> None:
    """The request's over the image's; what is no variable sets nothing."""
    process = _process(ImageConfig(cmd=("x",), env=("A=1", "broken", "=y")), env=("A=2", "B="))
    assert process.env == ("A=2", "B=")


def test_a_person_names_user_directory_and_host() -> None:
    """The request wins, also with an empty user (root)."""
    process = _process(user="", working_dir="/tmp", hostname="web")
    assert (process.user, process.cwd, process.hostname) == ("", "/tmp", "web")


def test_an_images_relative_directory_is_below_the_root_and_a_persons_is_refused() -> None:
    """Runtimes read `WORKDIR app` so; on the command line it is a slip."""
    assert _process(ImageConfig(cmd=("x",), working_dir="app")).cwd == "/app"
    with pytest.raises(Invalid, match="relative"):
        _process(working_dir="app")


@pytest.mark.parametrize(
    "wish",
    [
        {"entrypoint": ()},
        {"entrypoint": ("",)},
        {"command": ("a\0b",)},
        {"env": ("A=" + "x" * 200_000,)},
        {"command": tuple("x" * 100_000 for _ in range(100))},
        {"command": ("x",), "hostname": "h" * 65},
    ],
)
def test_what_could_never_be_executed_is_refused_before_anything_starts(wish: dict[str, object]) -> None:
    """Nothing to run, NULs, and more than execve takes."""
    with pytest.raises(Invalid):
        _process(ImageConfig(), **wish)


@pytest.mark.parametrize(
    ("name", "number"), [("SIGQUIT", 3), ("QUIT", 3), ("3", 3), ("", 15), ("SIGNONE", 15), ("999", 15), ("0", 15)]
)
def test_an_images_stop_signal_is_known_by_name_and_number(name: str, number: int) -> None:
    """What is no signal is SIGTERM."""
    assert _process(ImageConfig(cmd=("x",), stop_signal=name)).stop_signal == number
