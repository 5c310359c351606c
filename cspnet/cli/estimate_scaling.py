"""What several devices should give, computed from what one gives: an estimate, docs/SCALING.md."""

from __future__ import annotations

from dataclasses import dataclass

from cspnet.errors import UserError

__all__ = ["BUCKET_BYTES", "Assumptions", "Estimate", "estimate", "exchange_seconds"]

BUCKET_BYTES = 25 * 2**20
"""Of gradients that DistributedDataParallel exchanges at a time, by default."""


@dataclass(frozen=True)
class Assumptions:
    """What is known or taken for granted."""

    images_per_s: float
    """Of one device alone, measured."""
    batch_size: int
    """Pictures per device and step."""
    gradient_bytes: float
    """4 a parameter: gradients are float32, whatever autocast computes in."""
    link_bytes_per_s: float
    """Of the exchange between devices of one machine: what each device sends, one way."""
    network_bytes_per_s: float
    """The same between machines: what each machine sends, one way."""
    devices_per_machine: int = 8
    latency_s: float = 0.0
    """Of each of the 2 (n - 1) rounds of a ring."""
    backward_share: float = 2 / 3
    """Of a step, in which gradients can be exchanged while others are computed."""
    picture_bytes: float = 110e3
    """As they lie on the disk."""
    reading_images_per_s: float | None = None
    """What the cores of one machine decode; None leaves that out."""
    largest_batch: int = 8192
    """Up to which the learning rate grows in proportion, and no accuracy is lost. Source: arXiv 1706.02677."""

    def __post_init__(self) -> None:
        """Raises UserError for what cannot be."""
        rates = [self.images_per_s, self.gradient_bytes, self.link_bytes_per_s, self.network_bytes_per_s]
        rates += [] if self.reading_images_per_s is None else [self.reading_images_per_s]
        if not all(0 < value < float("inf") for value in rates):
            raise UserError("an estimate needs speeds, bandwidths and sizes above 0")
        if min(self.batch_size, self.devices_per_machine, self.largest_batch) < 1:
            raise UserError("an estimate needs whole numbers from 1 on")
        if not (0 <= self.backward_share < 1 and self.latency_s >= 0 and self.picture_bytes > 0):
            raise UserError(
                "an estimate needs a backward share from 0 to 1, a latency from 0 on, pictures of some bytes"
            )


@dataclass(frozen=True)
class Estimate:
    """What follows for a number of devices."""

    devices: int
    step_s: float
    exchange_s: float
    """Of all gradients."""
    exposed_s: float
    """Of that, what the backward pass does not hide."""
    images_per_s: float
    """Of all devices together."""
    global_batch: int
    data_bytes_per_s: float
    """That each machine reads, at this speed."""
    limits: tuple[str, ...]
    """What holds it back: input (the cores decode no faster), network (it adds a tenth or more to a step), batch size
    (lr cannot grow as far); none of them: it is the devices' own speed."""

    @property
    def efficiency(self) -> float:
        """Speed over as many times that of one device."""
        return self.images_per_s * self.step_s / self.global_batch


def exchange_seconds(assumed: Assumptions, devices: int) -> float:
    """A ring all-reduce of all gradients: each device sends 2 (n - 1) / n of them, in 2 (n - 1) rounds.

    A ring over several machines goes through each one's network once, however many devices are in it.
    """
    is_one_machine = devices <= assumed.devices_per_machine
    bytes_per_s = assumed.link_bytes_per_s if is_one_machine else assumed.network_bytes_per_s
    rounds = 2 * (devices - 1)
    return rounds / devices * assumed.gradient_bytes / bytes_per_s + rounds * assumed.latency_s


def estimate(assumed: Assumptions, devices: int) -> Estimate:
    """What so many devices should give, with the same batch for each (weak scaling).

    Args:
        devices: in machines of `devices_per_machine`, the last one of which may have fewer.
    """
    if devices < 1:
        raise UserError(f"{devices} devices: an estimate needs 1 or more")
    step_s = assumed.batch_size / assumed.images_per_s
    exchange_s = exchange_seconds(assumed, devices)
    # The backward pass hides the exchange, but for that of the last bucket, which is full when the pass is over.
    last_s = exchange_s * min(1.0, BUCKET_BYTES / assumed.gradient_bytes)
    exposed_s = max(last_s, exchange_s - assumed.backward_share * step_s)
    global_batch = devices * assumed.batch_size
    images_per_s = global_batch / (step_s + exposed_s)
    machines = -(-devices // assumed.devices_per_machine)
    readable = float("inf") if assumed.reading_images_per_s is None else machines * assumed.reading_images_per_s
    limits = {
        "input": readable < images_per_s,
        "network": exposed_s >= 0.1 * step_s,
        "batch size": global_batch > assumed.largest_batch,
    }
    images_per_s = min(images_per_s, readable)
    busiest = min(devices, assumed.devices_per_machine)
    data_bytes_per_s = images_per_s / devices * busiest * assumed.picture_bytes
    found = tuple(name for name, is_reached in limits.items() if is_reached)
    return Estimate(devices, step_s, exchange_s, exposed_s, images_per_s, global_batch, data_bytes_per_s, found)
