"""Every method of the catalogue keeps the contract."""

from __future__ import annotations

import pytest

from repertory.catalogue import entries
from repertory.testing import check_method, checks_for
from repertory.testing.tiny import EXPECTED_FAILURES, TINY

METHODS = [*entries(), *(name for name in TINY if ":" in name)]


@pytest.mark.parametrize(("method", "check"), [(method, check) for method in METHODS for check in checks_for(method)])
def test_method_keeps_the_contract(method: str, check: str) -> None:
    check_method(method, only=check)


def test_literal_tables_name_methods_that_exist() -> None:
    assert {name for name in TINY if ":" not in name} <= set(entries())
    assert set(EXPECTED_FAILURES) <= set(entries())


@pytest.mark.parametrize("slug", entries())
def test_capability_table_has_a_row_for_every_check(slug: str) -> None:
    stale = "measure again with python -m repertory.testing.capabilities"
    assert set(entries()[slug].capabilities()) == set(checks_for(slug)), stale
