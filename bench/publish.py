"""Publishing: what it costs over converting alone, and what travels when the registry has most of it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from tests import daemons

from bench.lazy_lab import Lab, push
from bench.measure import Failed, run
from bench.results import Row, at_least, at_most

__all__ = ["rows"]


def rows(lab: Lab) -> Iterable[Row]:
    """Converts and publishes the image, twice in turn, each time to a registry that has only the image; then what it shares."""
    converted, published, sent = [], [], 0
    for number in range(1 if lab.cold.quick else 2):
        converted.append(_convert(lab))
        if number == 0:
            seconds, sent = _publish(lab, lab.near)
        else:
            with daemons.registry(lab.cold.directory / f"registry-{number}") as fresh:
                push(fresh, lab.image, ("plain",))
                seconds, sent = _publish(lab, fresh)
        published.append(seconds)
    told = {"convert": converted, "publish": published, "bytes": sent}
    name = f"{lab.image}: publish to a registry on loopback: conversion's seconds / its own"
    yield Row("lazy", name, median(converted) / median(published), "x", at_least(0.7), told)
    again = lab.publish(lab.reference("profiled", lab.near.host))
    yield Row(
        "lazy", "published again, to another repository: blobs that travel", again["sent"] / 1e3, "KB", at_most(4), again["blobs"]
    )
    push(lab.near, "medium", ("plain",))
    shared = lab.publish(f"{lab.near.host}/plain/medium:latest")
    what = f"an image is published whose layers {lab.image} has, too: blobs that travel"
    yield Row("lazy", what, shared["sent"] / 1e3, "KB", at_most(4), shared["blobs"])


def _convert(lab: Lab) -> float:
    lab.forget()
    command = lab.command(lab.settings(), "rootfs", "build", lab.reference("plain", lab.near.host))
    return run(command, watch=False).seconds


def _publish(lab: Lab, registry: daemons.Registry) -> tuple[float, int]:
    """Seconds, and bytes that travelled."""
    lab.forget()
    command = lab.publish_command(lab.reference("plain", registry.host))
    usage = run(command, watch=False)
    sent = int(lab.answer(usage.output)["sent"])
    if sent == 0:
        raise Failed("nothing was published: the registry had it already")
    return usage.seconds, sent
