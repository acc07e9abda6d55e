"""Deployments that meet every kind of trouble: no pod is left, and the cap holds."""

from __future__ import annotations

from tests.cloud.conftest import Cloud, check_money, check_silence


def test_a_run_is_trained_and_brought_home(cloud: Cloud):
    ended = cloud.deploy()
    print(ended.text)
    assert ended.status == 0
    check_money(cloud)
    check_silence(cloud, ended)
