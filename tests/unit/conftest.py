"""An endpoint that fails as planned, the store of its answers, and clients of both."""

import pytest


@pytest.fixture
def endpoint():
    from tests.faulty_endpoint import FaultyEndpoint

    with FaultyEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def store(tmp_path):
    from prism_cli.endpoint.store import AnswerStore

    return AnswerStore(tmp_path / "answers.sqlite")


@pytest.fixture
def connect(endpoint, store):
    """Makes clients of the endpoint; all are closed in the end."""
    from tests.faulty_endpoint import connecting

    with connecting(endpoint.url, store) as connect:
        yield connect


@pytest.fixture
def no_key(monkeypatch):
    """The key of whoever runs the tests is not there."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
