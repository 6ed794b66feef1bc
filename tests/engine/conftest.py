import numba
import pytest


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Rows of 97 logits: a parallel region would cost more than all its work."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)
