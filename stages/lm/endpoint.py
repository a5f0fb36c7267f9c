"""A reference to a language model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from graftline.stages.errors import EndpointRefused, InvalidField
from graftline.stages.specification import Execution
from graftline.stages.stage import Context, Stage


class Endpoint(Stage):
    """A model that a server answers for. It can generate and judge; it cannot be trained, merged or served, and it
    tells no log-probabilities of given text.

    The model's name and `prefix` are what was asked for; where the server is, what it costs and how hard it is asked
    are not, so that a run may go on elsewhere. A server that pushes back (429) or fails (5xx, no connection, an answer
    that is no JSON) is asked again, more slowly, as it says in Retry-After; one that gives nothing for `patience`
    seconds stops the stage, which goes on from its ledger when it is run again. Rows never fail for it.

    Args:
        model: given by position. Its name at the server.
        url: the server, with its version: `https://host/v1`.
        key_env: the name of the environment variable that holds the key, set where stages run (None: no key).
        prefix: how a request whose answer is already begun is sent: `ask` asks in the user's turn to go on from the
            text, which any server understands; `continue` sends it as an unfinished assistant turn the way vLLM and
            SGLang take it (`continue_final_message`), `mark` the way Mistral and DeepSeek do (`prefix: true`).
        concurrency: requests in flight at most, of the whole run, all its workers together; how many there are
            follows what the server takes.
        timeout: seconds a request may take.
        patience: seconds without any answer after which the stage stops.
        retries: how often one request that fails is sent again while others are answered.
        price_in, price_out: of a million tokens, in the currency of the budget.

    Raises:
        InvalidField: the URL is none, or holds a password.
        EndpointRefused: the key is not set or is refused, or the server does not know the model.
    """

    makes = "model"
    method = "lm.endpoint"
    origin: ClassVar[str] = "OpenAI's chat completions, as many servers speak it"
    specimen: ClassVar[dict[str, Any]] = {"url": "http://localhost/v1"}

    model: str
    url: Annotated[str, Execution]
    key_env: Annotated[str | None, Execution] = None
    prefix: Literal["ask", "continue", "mark"] = "ask"
    concurrency: Annotated[int, Field(ge=1), Execution] = 16
    timeout: Annotated[float, Field(gt=0), Execution] = 120.0
    patience: Annotated[float, Field(gt=0), Execution] = 300.0
    retries: Annotated[int, Field(ge=0), Execution] = 6
    price_in: Annotated[float, Field(ge=0), Execution] = 0.0
    price_out: Annotated[float, Field(ge=0), Execution] = 0.0

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        super().__init__(**(fields if model is None else {"model": model, **fields}))

    def check(self) -> None:
        if not self.model.strip():
            raise InvalidField("is empty", where="Endpoint.model", do="name a model")
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        except ValueError:
            good = False
        if not good:
            raise InvalidField("is no address of a server", where="Endpoint.url", do="use https://host/v1")
        if parts.username or parts.password:
            raise InvalidField("holds a user or password, which would be kept with the run", where="Endpoint.url",
                               do="put the key into an environment variable and name it in key_env")  # fmt: skip

    @property
    def name(self) -> str:
        """The label, else the model's name."""
        return self.label or self.model

    def preflight(self, file: Callable[[str], str]) -> None:
        from graftline.stages.lm.endpoint_engine import EndpointEngine

        with EndpointEngine(self, {}) as engine:
            engine.refuse_unknown()

    def make(self, context: Context, out: Path, **inputs: Any) -> dict[str, Any]:
        (out / "endpoint.json").write_text(json.dumps({"model": self.model}), encoding="utf-8")
        return {}


def no_logprobs(model: str) -> EndpointRefused:
    """What a server cannot do."""
    return EndpointRefused(
        "a server tells no log-probabilities of given text", where=model, do="use an Llm for scores and choices"
    )
