"""fly-python-sdk, a client that was not written here, against the server."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fly_python_sdk.fly.api import FlyApi
from fly_python_sdk.fly.org import Org
from fly_python_sdk.models.machine import FlyMachine, FlyMachineConfig, FlyMachineConfigGuest
from tests.api_server import running

T = TypeVar("T", bound=FlyApi)


async def test_fly_python_sdk(tmp_path: Path) -> None:
    """Apps, machines, clones, events: its models read every answer."""
    async with running(tmp_path) as api:

        def there(client: T) -> T:
            client.base_url = api.url
            return client

        org = there(Org("operator", "personal"))
        await org.create_app("sdk")
        assert "sdk" in [app.name for app in await org.list_apps()]
        app = there(org.App("sdk"))
        assert (await app.inspect()).organization.slug == "personal"
        guest = FlyMachineConfigGuest(cpu_kind="shared", cpus=1, memory_mb=256)
        config = FlyMachineConfig(image="alpine:3.20", env={"A": "1"}, guest=guest, metadata={"role": "web"})
        created = await app.create_machine(FlyMachine(name="one", region="local", config=config))
        assert created.config.env == {"A": "1"} and created.created_at is not None
        machine = there(app.Machine(created.id))
        await api.ask("GET", f"/v1/apps/sdk/machines/{created.id}/wait?state=started&timeout=20")
        shown = await machine.inspect()
        assert shown.state == "started" and shown.image_ref is not None and shown.image_ref.tag == "3.20"
        assert {event.type for event in await machine.get_events()} >= {"launch", "start"}
        clone = await machine.clone(name="two")
        assert clone.id != created.id and clone.config == shown.config
        assert {found.name for found in await app.list_machines()} == {"one", "two"}
        for id in await app.list_machines(ids_only=True):
            await api.ask("POST", f"/v1/apps/sdk/machines/{id}/stop")
            await api.ask("GET", f"/v1/apps/sdk/machines/{id}/wait?state=stopped&timeout=20")
            await there(app.Machine(id)).start()
            await api.ask("GET", f"/v1/apps/sdk/machines/{id}/wait?state=started&timeout=20")
            await api.ask("POST", f"/v1/apps/sdk/machines/{id}/stop")
            await api.ask("GET", f"/v1/apps/sdk/machines/{id}/wait?state=stopped&timeout=20")
            await there(app.Machine(id)).destroy()
            await api.ask("GET", f"/v1/apps/sdk/machines/{id}/wait?state=destroyed&timeout=20", status=None)
        await app.delete()
        assert "sdk" not in [found.name for found in await org.list_apps()]
