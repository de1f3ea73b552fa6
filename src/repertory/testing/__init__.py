"""The contract that methods keep, as checks to run on one of the catalogue or on your own."""

from repertory.testing.check import CheckFailure
from repertory.testing.contract import CheckResult, check_method, checks_for
from repertory.testing.tiny import Tiny

__all__ = ["CheckFailure", "CheckResult", "Tiny", "check_method", "checks_for"]
