import os
import socket

import pytest

from brain_align.common.system.network import have_gloo_listen_on, interface_of


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") in dict(socket.if_nameindex()).values()
    assert interface_of("192.0.2.255") is None


def test_gloo_listens_where_the_other_ranks_reach_this_one_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {})
    have_gloo_listen_on("192.0.2.255")
    assert os.environ == {}
    have_gloo_listen_on("127.0.0.1")
    assert os.environ == {"GLOO_SOCKET_IFNAME": interface_of("127.0.0.1")}
    os.environ["GLOO_SOCKET_IFNAME"] = "ib0"
    have_gloo_listen_on("127.0.0.1")
    assert os.environ == {"GLOO_SOCKET_IFNAME": "ib0"}
