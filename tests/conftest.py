"""The fixtures that several files share."""

import pytest
from helpers import ready, takes

import loopconv


@pytest.fixture(params=list(loopconv.backends()))
def backend(request):
    """Every backend in turn."""
    return ready(request.param)


@pytest.fixture(params=list(loopconv.backends()))
def integer_backend(request):
    """Every backend that computes in integers, in turn."""
    return takes(ready(request.param), "int64")
