"""Point-to-point links between network namespaces, with a delay each way; run as a process, for kernels without netem.

usage: python -m benchmarks.link.delay_line DELAY_SECONDS NAMESPACE_A:DEVICE_A:NAMESPACE_B:DEVICE_B ...

Each link is two TUN devices. What one side sends is written to the other side DELAY_SECONDS later. Segmentation
offload stays on, so that a packet may hold 64 KB, as on a veth pair. The rate is set by tc on the devices.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import selectors
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP over IPv4, TCP over IPv6
LARGEST_PACKET = 70_000


def open_tun(namespace: str, device: str) -> int:
    """A descriptor of a new TUN device in a named network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(place, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"network namespace {namespace}")
    os.close(place)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tun, TUNSETOFFLOAD, OFFLOADS)
    return tun


def main(delay_seconds: float, links: list[str]) -> None:
    """Forward until killed."""
    selector = selectors.DefaultSelector()
    other: dict[int, int] = {}
    for link in links:
        a, device_a, b, device_b = link.split(":")
        ends = open_tun(a, device_a), open_tun(b, device_b)
        for end, far in (ends, ends[::-1]):
            other[end] = far
            selector.register(end, selectors.EVENT_READ)
    print("ready", flush=True)
    queue: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        for key, _ in selector.select(wait):
            try:
                packet = os.read(key.fd, LARGEST_PACKET)
            except BlockingIOError:
                continue
            number += 1
            heapq.heappush(queue, (time.monotonic() + delay_seconds, number, other[key.fd], packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, to, packet = heapq.heappop(queue)
            try:
                os.write(to, packet)
            except OSError:
                continue  # the other end is down or full: the packet is lost, as on a wire


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
