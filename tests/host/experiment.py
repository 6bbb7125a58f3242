"""What the processes of tests.host.one_process train."""

from tests.host.test_processes import CONFIG as config

__all__ = ["config"]
