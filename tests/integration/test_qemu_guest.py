"""The guest init in real machines: what a command finds, says and gets. Few boots, many checks each."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from castoff.disk.clone import Drive, Role, volume_role
from castoff.errors import Unavailable
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestFile, GuestMount, GuestSettings
from castoff.vmm.guest_session import Exit, Output, Ready, Told
from castoff.vmm.kernel import find_kernel
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
from castoff.vmm.vmm import PortForward
from guests import MIB, Guests, assert_clean, make_empty_ext4, make_rootfs, transcript, until

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))


@pytest.fixture(scope="module")
def rootfs(daemon_directory: Path) -> Iterator[Path]:
    """The root filesystem of all."""
    path = make_rootfs(daemon_directory / "guest.ext4")
    yield path
    path.unlink()


@pytest.fixture
async def guests(rootfs: Path, kernels: Path) -> AsyncIterator[Guests]:
    """Boots guests in a directory of the test's own."""
    with tempfile.TemporaryDirectory(prefix="castoff-guests.", dir="/var/tmp") as name:
        yield Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), rootfs, Path(name))


async def test_a_command_finds_what_containers_have(guests: Guests) -> None:
    """Mounts, devices, hostname, files, environment, limits; and it leaves a clean filesystem behind."""
    script = """
        mount | awk '{print $3, $5}'; echo --; for f in fd stdin stdout stderr; do readlink /dev/$f; done; echo --
        hostname; cat /etc/hostname /etc/hosts; echo --; env | sort; echo --; pwd; ulimit -n; ulimit -Hn; umask; echo --
        cat /opt/deep/file; ls -ln /opt/deep/file | awk '{print $1,$3,$4}'; echo through-dev > /dev/stdout; echo --
        ls -d /castoff /init 2>&1; ip -o link show lo | grep -c UP; ls /proc/self/fd | wc -l; wc -c
        ls -l /etc/resolv.conf | cut -c1
    """
    files = (GuestFile("/opt/deep/file", b"contents\0\xff", 0o640, 1000, 1001),)
    async with guests.boot(
        "facts", "sh", "-c", script, hostname="box-1", env=("PATH=/bin", "A=1", "EMPTY="), cwd="/made/for/it", files=files
    ) as booted:
        said = await transcript(booted.channel)
        assert await booted.ended() == 0
    assert said.stderr == b""
    blocks = [block.splitlines() for block in said.stdout.replace(b"\0\xff", b"\n").decode().split("--\n")]
    mounts = set(blocks[0])
    expected = {
        "/ ext4",
        "/proc proc",
        "/sys sysfs",
        "/sys/fs/cgroup cgroup2",
        "/dev devtmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
    }
    assert mounts == expected | {"/dev/mqueue mqueue"}
    assert blocks[1] == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    assert blocks[2][:3] == ["box-1", "box-1", "127.0.0.1\tlocalhost"]
    assert blocks[2][4] == "127.0.1.1\tbox-1"
    assert {"A=1", "EMPTY=", "HOME=/root", "HOSTNAME=box-1", "PATH=/bin:/dev/castoff/bin"} <= set(blocks[3])
    assert not any(line.startswith("TERM=") for line in blocks[3])
    assert blocks[4] == ["/made/for/it", "1024", "524288", "0022"]
    assert blocks[5] == ["contents", "-rw-r----- 1000 1001", "through-dev"]
    gone = [f"ls: {name}: No such file or directory" for name in ("/castoff", "/init")]
    assert blocks[6] == [*gone, "1", "4", "0", "l"]
    assert_clean(booted.drives[0].path)


async def test_users_exit_codes_and_commands_beside_the_first(guests: Guests) -> None:
    """Users by name and number with their groups; every way in which a command cannot be; several at once."""
    async with guests.boot("beside", "sleep", "1000") as booted:
        ids = {
            "": "uid=0(root) gid=0(root) groups=0(root),10(wheel)",
            "app": "uid=1000(app) gid=1001(app) groups=29(audio),1001(app)",
            "1000": "uid=1000(app) gid=1001(app) groups=29(audio),1001(app)",
            "app:audio": "uid=1000(app) gid=29(audio) groups=29(audio)",
            "4242": "uid=4242 gid=0(root) groups=0(root)",
            "4242:4343": "uid=4242 gid=4343 groups=4343",
        }
        said = await asyncio.gather(*(booted.run("id", user=user) for user in ids))
        for (user, expected), one in zip(ids.items(), said, strict=True):
            assert sorted(_ids(one.lines[0])) == sorted(_ids(expected)), user
        codes = {
            ("true",): (0, ""),
            ("sh", "-c", "exit 200"): (200, ""),
            ("no-such-command",): (127, 'exec: "no-such-command": executable file not found in $PATH'),
            ("/no/such/file",): (127, 'exec: "/no/such/file": no such file or directory'),
            ("/srv/not-executable",): (126, 'exec: "/srv/not-executable": permission denied'),
            ("/srv",): (126, 'exec: "/srv": is a directory'),
            ("/srv/no-interpreter",): (127, 'exec: "/srv/no-interpreter": its interpreter or dynamic loader is not in the image'),
            ("/srv/other-format",): (
                126,
                'exec: "/srv/other-format": exec format error (another architecture\'s program, or a script without #!)',
            ),
        }
        for argv, (code, message) in codes.items():
            one = await booted.run(*argv)
            assert one.exit is not None
            assert (one.exit.code, one.exit.message) == (code, message), argv
            assert (one.ready is None) == bool(message), argv
        for user in ("nobody-here", "app:nogroup"):
            one = await booted.run("true", user=user)
            assert one.exit is not None
            assert one.exit.code == 125 and one.exit.message.startswith("unable to find "), user
        pipes = await booted.run("sh", "-c", "echo as app > /dev/stdout; echo x >&2", user="app")
        assert (pipes.stdout, pipes.stderr) == (b"as app\n", b"x\n")
        left = await booted.run("sh", "-c", "sleep 100 & echo started")
        assert left.stdout == b"started\n" and left.code == 0
        reaped = "(true & true &); sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; echo looked"
        assert (await booted.run("sh", "-c", reaped)).stdout == b"looked\n", "orphans stay as zombies"
        killed = await booted.run("sh", "-c", "kill -9 $$")
        assert killed.exit is not None
        assert (killed.exit.code, killed.exit.signal) == (137, 9)
        limits = await booted.run("sh", "-c", "ulimit -n; ulimit -Hn", rlimits=((7, 100, 200),))
        assert limits.lines == ["100", "200"]
        environment = await booted.run("env", env=("PATH=/bin", *(f"V{number}={'x' * 1000}" for number in range(300))))
        assert len([line for line in environment.lines if line.startswith("V")]) == 300
        await booted.channel.shutdown(5)
        said_first = await transcript(booted.channel)
        assert said_first.exit is not None and said_first.exit.signal == signal.SIGTERM
        assert await booted.ended() == 0


def _ids(line: str) -> list[str]:
    return line.replace("groups=", "groups= ").replace(",", " ").split()


async def test_large_output_and_input_arrive_whole_past_slow_readers(guests: Guests) -> None:
    """100 MB out, 8 MB through, both streams at once, a reader that sleeps, a process that does not read."""
    size = 100 * MIB
    async with guests.boot("large", "sh", "-c", f"head -c {size} /dev/zero; exec sleep 1000", cpus=2) as booted:
        total = 0
        digest = hashlib.sha256()
        async with asyncio.timeout(100):
            async for event in booted.channel.events():
                if isinstance(event, Output):
                    total += len(event.data)
                    digest.update(event.data)
                    if total == len(event.data):
                        await asyncio.sleep(0.5)
                    if total >= size:
                        break
        assert total == size and digest.hexdigest() == hashlib.sha256(bytes(size)).hexdigest()
        data = os.urandom(8 * MIB)
        session = await booted.channel.execute(GuestSettings(argv=("tee", "/dev/stderr"), env=("PATH=/bin",), stdin=True))

        async def feed() -> None:
            await session.send_stdin(data)
            await session.close_stdin()

        feeding = asyncio.create_task(feed())
        through = await transcript(session)
        await feeding
        assert through.stdout == data and through.stderr == data and through.code == 0
        deaf = await booted.channel.execute(GuestSettings(argv=("sleep", "1000"), env=("PATH=/bin",), stdin=True))
        stuck = asyncio.create_task(deaf.send_stdin(bytes(MIB)))
        assert (await booted.run("echo", "still served")).stdout == b"still served\n"
        assert not stuck.done()
        await deaf.signal(signal.SIGKILL)
        ended = await transcript(deaf)
        assert ended.exit is not None and ended.exit.signal == 9
        await asyncio.wait_for(stuck, 5)


async def test_a_terminal(guests: Guests) -> None:
    """Its size, also when it changes; control characters; the end of input; one stream."""
    script = "tty; echo $TERM; while read line; do [ $line = size ] && stty size || echo got $line >&2; done; echo over"
    async with guests.boot("terminal", "sh", "-c", script, tty=True, rows=33, columns=99) as booted:
        channel = booted.channel
        assert await until(channel, b"xterm\r\n") == b"/dev/pts/0\r\nxterm\r\n"
        await channel.send_stdin(b"size\n")
        assert b"\r\n33 99\r\n" in await until(channel, b"99\r\n")
        await channel.resize(40, 120)
        await channel.send_stdin(b"size\none\n")
        assert b"\r\n40 120\r\ngot one\r\n" in await until(channel, b"got one\r\n")
        loop = "trap 'echo interrupted; exit 5' INT; echo up; while :; do sleep 1; done"
        inner = await channel.execute(GuestSettings(argv=("sh", "-c", loop), env=("PATH=/bin",), tty=True, user="app"))
        await until(inner, b"up\r\n")
        await inner.send_stdin(b"\x03")
        said = await transcript(inner)
        assert said.stdout == b"^Cinterrupted\r\n" and said.code == 5
        await channel.close_stdin()
        rest = await transcript(channel)
        assert rest.stdout == b"over\r\n" and rest.stderr == b"" and rest.code == 0
        assert await booted.ended() == 0


async def test_signals_reach_the_command(guests: Guests) -> None:
    """An interrupt reaches the whole group, as from a terminal; other signals the command alone."""
    script = "trap 'echo int' INT; trap 'echo usr; exit 9' USR1; echo up; while :; do sleep 1000 & wait $!; wait $!; done"
    async with guests.boot("signals", "sh", "-c", script) as booted:
        await until(booted.channel, b"up\n")
        await booted.channel.signal(signal.SIGINT)
        await until(booted.channel, b"int\n")
        await booted.channel.signal(signal.SIGUSR1)
        said = await transcript(booted.channel)
        assert said.stdout == b"usr\n" and said.code == 9
        assert await booted.ended() == 0
    assert_clean(booted.drives[0].path)


async def test_an_overlay_joins_a_shared_base_and_an_upper_drive(guests: Guests) -> None:
    """What is written lands in the upper drive, also in a second life; the base keeps every byte."""
    before = hashlib.sha256(guests.rootfs.read_bytes()).digest()
    upper = make_empty_ext4(guests.directory / "upper.ext4")
    drives = (Drive(Role.BASE, guests.rootfs, True, False), Drive(Role.UPPER, upper, False, True))
    script = "mount | grep ' / ' | cut -d' ' -f1-5; cat /srv/kept 2>&1; echo new > /srv/kept; rm /srv/not-executable; "
    script += "ls -ld / | cut -c1-10"
    for name, kept in (("overlay-1", "cat: can't open '/srv/kept': No such file or directory"), ("overlay-2", "new")):
        async with guests.boot(name, "sh", "-c", script, drives=drives) as booted:
            said = await transcript(booted.channel)
            assert await booted.ended() == 0
        assert said.lines == ["overlay on / type overlay", kept, "drwxr-xr-x"]
        assert (said.stderr == b"") == (name == "overlay-1")  # the second time there is nothing left to remove
        assert_clean(upper)
    assert hashlib.sha256(guests.rootfs.read_bytes()).digest() == before


async def test_volumes_are_mounted_and_left_clean(guests: Guests) -> None:
    """In the order of the settings, where no directory was, through the image's symlinks but never out of the root."""
    volumes = [make_empty_ext4(guests.directory / f"volume{number}.ext4") for number in range(2)]
    drives = tuple(Drive(volume_role(number), path, False, True) for number, path in enumerate(volumes))
    mounts = (GuestMount("volume0", "/var/lib/my data"), GuestMount("volume1", "/link/inner"))
    root = guests.directory / "root.ext4"
    shutil.copyfile(guests.rootfs, root)
    subprocess.run(["debugfs", "-w", "-R", "symlink /link ../../../../../srv", str(root)], check=True, capture_output=True)
    script = "mount | grep -e /var -e /srv | cut -d' ' -f3-; cd '/var/lib/my data'; cat kept; echo kept > kept; "
    script += "(trap '' TERM; exec 3> held; while :; do echo x >&3; sleep 1; done) & "
    script += "cat /srv/inner/file; id > /srv/inner/big; ls /srv/inner"
    for name, kept in (("volumes-1", []), ("volumes-2", ["kept"])):
        async with guests.boot(
            name,
            "sh",
            "-c",
            script,
            drives=(Drive(Role.ROOT, root, False, True), *drives),
            mounts=mounts,
            files=(GuestFile("/srv/inner/file", b"in the volume\n"),),
        ) as booted:
            said = await transcript(booted.channel)
            assert await booted.ended() == 0
        options = "type ext4 (rw,nosuid,nodev,noatime)"
        found = [f"/var/lib/my data {options}", f"/srv/inner {options}"]
        assert [line.replace("on ", "") for line in said.lines] == [*found, *kept, "in the volume", "big", "file", "lost+found"]
        for image in (root, *volumes):
            assert_clean(image)

    broken = guests.directory / "broken.ext4"
    broken.write_bytes(bytes(MIB))
    for name, wanted, message in (
        ("broken", (GuestMount("volume0", "/data"),), "mounting the volume at /data: Invalid argument"),
        (
            "in-a-file",
            (GuestMount("volume0", "/etc/passwd"),),
            "making the directory of the volume at /etc/passwd: Not a directory",
        ),
    ):
        disks = (Drive(Role.ROOT, root, False, True), Drive(Role.VOLUME0, broken, False, True))
        async with guests.boot(name, "true", drives=disks, mounts=wanted) as booted:
            said = await transcript(booted.channel)
            assert said.exit is not None
            assert (said.exit.code, said.exit.message) == (125, message)
            assert await booted.ended() == 0


async def test_a_network_and_a_published_port(guests: Guests) -> None:
    """The guest reaches its host, the host what the guest publishes; any user may listen on a low port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    script = "cat /etc/resolv.conf; ip -o -4 addr show eth0 | awk '{print $4}'; ip route | head -1; "
    script += "echo page > /srv/page/index.html; exec httpd -f -p 80 -h /srv/page"
    forward = (PortForward(host_port=port, guest_port=80),)
    async with guests.boot(
        "network",
        "sh",
        "-c",
        script,
        network=True,
        ports=forward,
        user="app",
        files=(GuestFile("/srv/page/index.html", b"", 0o666),),
    ) as booted:
        said = await until(booted.channel, b"default")
        assert said.decode().splitlines()[:3] == ["nameserver 10.0.2.3", "10.0.2.15/24", "default via 10.0.2.2 dev eth0 "]
        page = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{port}/index.html")
        assert page == b"page\n"
        second = guests.spec("network-2", GuestSettings(argv=("true",)), network=True, ports=forward)
        with pytest.raises(Unavailable, match="Could not set up host forwarding rule"):
            await guests.vmm.start(second)


def _fetch(url: str) -> bytes:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


async def test_running_out_of_memory_is_told(guests: Guests) -> None:
    """The kernel's killer ends the command; its exit says so, and another's does not."""
    async with guests.boot("memory", "sh", "-c", "exec tail /dev/zero", memory=128 * MIB) as booted:
        said = await transcript(booted.channel)
        assert said.exit is not None
        assert (said.exit.signal, said.exit.code, said.exit.out_of_memory) == (9, 137, True)
        assert await booted.ended() == 0


async def test_a_client_that_dies_loses_nothing(guests: Guests) -> None:
    """Its successor goes on at the byte after the last one acknowledged; the exit waits for it."""
    count = 300_000
    async with guests.boot("succession", "sh", "-c", f"seq {count}; exit 4") as booted:
        said = {}
        for stop_after in (1000, 400_000, None):
            channel = booted.channel if stop_after == 1000 else await GuestChannel.connect(booted.handle, 20)
            async with channel:
                async for event in channel.events():
                    if isinstance(event, Output):
                        said.update({event.offset + at: event.data[at : at + 1] for at in range(len(event.data))})
                        if stop_after is not None and len(said) > stop_after:
                            break
                    if isinstance(event, Exit):
                        assert event.code == 4
        whole = b"".join(said[at] for at in range(len(said)))
        assert whole == "".join(f"{number}\n" for number in range(1, count + 1)).encode()
        assert await booted.ended() == 0


async def test_a_command_tells_that_it_is_ready(guests: Guests) -> None:
    """Whoever it runs as, before any output, once however often; a client that comes later is told too. By its name, which PATH
    ends with, or by its path, where PATH is the command's own; it does nothing else."""
    script = (
        "castoff ready && PATH= /dev/castoff/ready && read word && echo $word; cd /dev/castoff; ls -l fifo ready | cut -c1-10"
    )
    script += "; castoff steady 2>/dev/null; echo $?"
    async with guests.boot("ready", "sh", "-c", script, user="app", env=("PATH=/bin",), stdin=True) as booted:
        events = booted.channel.events()
        async with asyncio.timeout(30):
            assert isinstance(await anext(events), Ready)
            assert isinstance(await anext(events), Told)
        await booted.channel.close()
        async with await GuestChannel.connect(booted.handle, 20) as channel:
            await channel.send_stdin(b"word\n")
            seen = [event async for event in channel.events()]
            assert [type(event) for event in seen[:2]] == [Ready, Told]
            said = b"".join(event.data for event in seen if isinstance(event, Output))
            assert said.split() == [b"word", b"prw--w--w-", b"-rwxr-xr-x", b"2"]
            assert sum(isinstance(event, Told) for event in seen) == 1
        assert await booted.ended() == 0


async def test_a_killed_machine_leaves_a_recoverable_filesystem(guests: Guests) -> None:
    """kill -9 of QEMU in the middle of writes: the journal is replayed and the filesystem is clean."""
    script = (
        "echo up; while :; do for n in 1 2 3 4 5 6 7 8; do head -c 100000 /dev/urandom > /tmp/f$n; sync; rm /tmp/f$n; done; done"
    )
    async with guests.boot("killed", "sh", "-c", script) as booted:
        await until(booted.channel, b"up\n")
        await asyncio.sleep(1)
        await booted.handle.kill()
        with pytest.raises(Unavailable, match="machine ended before its command did"):
            await transcript(booted.channel)
    image = booted.drives[0].path
    done = subprocess.run(["e2fsck", "-fy", "-E", "journal_only", str(image)], capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    assert_clean(image)


async def test_a_boot_without_its_drive_is_told_to_the_host(guests: Guests) -> None:
    """Not a silence that ends in a timeout: the guest's init says what it lacks."""
    only_base = (Drive(Role.BASE, guests.rootfs, True, False),)
    async with guests.boot("driveless", "true", drives=only_base) as booted:
        said = await transcript(booted.channel)
        assert said.exit is not None
        assert said.exit.code == 125 and said.exit.message.startswith("finding a drive that is called root, or base and upper")
        assert await booted.ended() == 0
