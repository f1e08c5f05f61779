"""The one fixture that several files share."""

import pytest
from helpers import ready

import loopconv


@pytest.fixture(params=list(loopconv.backends()))
def backend(request):
    """Every backend in turn."""
    return ready(request.param)
