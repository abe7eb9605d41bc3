"""The network interfaces of this machine."""

import os

_GLOO = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an IP address, or None."""
    import psutil  # comes with Ray, vLLM and DeepSpeed, which only services load

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None


def have_gloo_listen_on(address: str) -> None:
    """Have gloo listen on the interface of an address, unless the user has named one.

    It would listen on what the machine's name stands for, which may be nothing, or a loopback device (127.0.1.1).
    """
    if _GLOO not in os.environ and (name := interface_of(address)) is not None:
        os.environ[_GLOO] = name
